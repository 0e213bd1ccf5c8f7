"""Channels last, as TensorFlow and JAX keep them, and the canonical channels first. All are views."""

from numpy.typing import NDArray

from common.architecture import Shape


def nhwc(images: NDArray) -> NDArray:
    """(N, C, H, W) → (N, H, W, C)."""
    return images.transpose(0, 2, 3, 1)


def nchw(output: NDArray) -> NDArray:
    """(N, H, W, C) → (N, C, H, W); logits (N, classes) stay as they are."""
    return output.transpose(0, 3, 1, 2) if output.ndim == 4 else output


def to_channels_last(weight: NDArray) -> NDArray:
    """OIHW → HWIO, (out, in) → (in, out)."""
    return weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T


def shape_channels_last(shape: Shape) -> Shape:
    """The shape of `to_channels_last` of a weight of this shape."""
    return shape if len(shape) == 1 else (*shape[2:], shape[1], shape[0])


def from_channels_last(weight: NDArray) -> NDArray:
    """HWIO → OIHW, (in, out) → (out, in)."""
    return weight.transpose(3, 2, 0, 1) if weight.ndim == 4 else weight.T
