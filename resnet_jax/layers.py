"""Where Flax is told to agree with the other three. Every trap is named, with its reason."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
from flax import linen as nn
from jax import Array, lax
from jax import numpy as jnp

from common.architecture import Architecture, check_padding, parts_of_groups

# Trap: XLA takes three quarters of a GPU's memory at the start; another framework may need it.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

# Trap: Flax draws weights from LeCun normal. The others start from Glorot uniform
# (Glorot and Bengio 2010, equation 16); biases are 0 everywhere.
_glorot = nn.initializers.glorot_uniform()


def _precise() -> lax.Precision | None:
    """Trap: on a GPU, JAX rounds float32 products to TF32, ten bits of mantissa, unless told "highest".

    What the caller has chosen with `jax.default_matmul_precision` stays.
    """
    chosen = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]  # JAX adds it as it starts
    return None if chosen else lax.Precision.HIGHEST


def convolve(
    X: Array, kernel: Array, strides: Sequence[int], padding: str | Sequence[tuple[int, int]], **options: Any
) -> Array:
    """`lax.conv_general_dilated` of images (N, H, W, C) and a kernel (height, width, C / groups, features).

    Trap: XLA's convolution on a CPU has blind spots, in which it takes up to 40 times as long as a product of
    matrices and, for the gradient of a grouped kernel, 1,000 times as long as PyTorch.
    """
    rates = options.get("rhs_dilation") or (1, 1)
    reach = [(size - 1) * rate + 1 for size, rate in zip(kernel.shape[:2], rates, strict=True)]
    if isinstance(padding, str):
        pads = lax.padtype_to_pads(X.shape[1:3], reach, strides, padding.upper())
    else:
        pads = padding  # type: ignore[assignment]  # to mypy a list, as JAX returns it
    plain = partial(lax.conv_general_dilated, window_strides=strides, padding=pads, **options)
    if any(rate != 1 for rate in (*rates, *(options.get("lhs_dilation") or ()))):
        return plain(X, kernel)
    on_cpu = partial(_convolve_on_cpu, strides=strides, padding=pads, **options)
    return lax.platform_dependent(X, kernel, cpu=on_cpu, default=plain)


def _convolve_on_cpu(
    X: Array,
    kernel: Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    precision: Any = None,
    feature_group_count: int = 1,
    **options: Any,
) -> Array:
    """As products of matrices where XLA is slow: for few pixels, 1×1, gradients at a stride in float64.

    Groups are put together into parts of 32 channels or more, with zeros between them in the kernels.
    """
    (height, width), (down, across), groups = kernel.shape[:2], strides, feature_group_count
    rows, columns = (
        (size + sum(zeros) - reach) // stride + 1
        for size, zeros, reach, stride in zip(X.shape[1:3], padding, (height, width), strides, strict=True)
    )
    few = rows * columns <= height * width
    strided = down * across > 1 and X.dtype == jnp.float64
    if few or (groups == 1 and (height * width == 1 or strided)):
        kernels = _in_parts(kernel, groups, parts_of_groups(groups, X.shape[-1]))
        X = jnp.pad(X, ((0, 0), *padding, (0, 0)))
        shifted = [
            X[:, i : i + (rows - 1) * down + 1 : down, j : j + (columns - 1) * across + 1 : across]
            for i in range(height)
            for j in range(width)
        ]
        return _multiply(shifted, kernels, precision).reshape(len(X), rows, columns, -1)
    parts = parts_of_groups(groups, X.shape[-1], most=8)  # XLA compiles each by itself
    kernels = _in_parts(kernel, groups, parts)
    conv = partial(lax.conv_general_dilated, window_strides=strides, padding=padding, **options)
    pairs = zip(jnp.split(X, len(kernels), -1), kernels, strict=True)
    return jnp.concatenate([conv(X, kernel, precision=precision) for X, kernel in pairs], -1)


def _in_parts(kernel: Array, groups: int, parts: int) -> Array:
    """(height, width, C / groups, features) → (parts, height, width, C / parts, features / parts)."""
    if groups == 1:
        return kernel[None]
    height, width, channels, features = kernel.shape
    each = groups // parts
    kernels = kernel.reshape(height, width, channels, parts, each, features // groups)
    kernels = jnp.einsum("hwcpgf,Gg->phwGcgf", kernels, jnp.eye(each, dtype=kernel.dtype))
    return kernels.reshape(parts, height, width, each * channels, features // parts)


def _multiply(shifted: Sequence[Array], kernels: Array, precision: Any) -> Array:
    """What lies under each pixel of the kernels (N, H, W, C), times these: (N·H·W, features)."""
    parts, height, width, channels, features = kernels.shape
    if parts == 1:
        patches = jnp.concatenate(shifted, -1).reshape(-1, height * width * channels)
        return jnp.dot(patches, kernels.reshape(-1, features), precision=precision)
    patches = jnp.stack(shifted, 3).reshape(-1, height * width, parts, channels)
    kernels = kernels.reshape(parts, height * width, channels, features)
    return jnp.einsum("nkpc,pkcf->npf", patches, kernels, precision=precision)


def Conv(features: int, kernel_size: tuple[int, int], padding: int | str = 0, **options: Any) -> nn.Conv:
    """Convolution over (N, H, W, C).

    `padding` is "symmetric", kernel_size // 2 zeros on every side; Flax's "same"; or a number of zeros.

    Trap: Flax pads "SAME" by default, which at stride 2 on an even size is 0 before and 1 after.
    """
    check_padding(padding, zeros=True)
    return nn.Conv(
        features,
        kernel_size,
        padding=_pads(kernel_size) if padding == "symmetric" else padding,
        kernel_init=_glorot,
        precision=_precise(),
        conv_general_dilated=convolve,
        **options,
    )


def _pads(kernel_size: tuple[int, int]) -> list[tuple[int, int]]:
    return [(size // 2, size // 2) for size in kernel_size]


def Dense(features: int, **options: Any) -> nn.Dense:
    """Fully connected layer over (N, C)."""
    return nn.Dense(features, kernel_init=_glorot, precision=_precise(), **options)


# Trap: Flax's running statistics keep 0.99 of the old value, and its "fast" variance
# E[x²] − E[x]² cancels where the mean is large.
BatchNorm = partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5, use_fast_variance=False)


class Unsaid(int):
    """A default, told from the same number when somebody gives it."""


def agreed(arch: Architecture | Sequence[tuple[int, int]], num_classes: int) -> Architecture:
    """The architecture of a network, with the number of classes that holds: its own, if it brings one.

    Trap: `clone` and `dataclasses.replace` hand a network's architecture on, as they do every other field. In
    that one a number given anew holds.
    """
    arch = Architecture.of(arch, num_classes)
    holds = getattr(arch, "of_network", False) and not isinstance(num_classes, Unsaid)
    arch = replace(arch, num_classes=num_classes if holds else arch.num_classes)
    object.__setattr__(arch, "of_network", True)  # of this copy
    return arch


class Sequential(nn.Module):
    """Layers in a row, by name.

    Trap: Flax's own numbers its layers, functions too: a parameter's name would count what comes before it.
    Trap: `nn.remat` and its like sort the names in a dictionary, so their order is kept beside it.
    """

    layers: dict[str, Callable[[Array], Array]]
    order: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.order = self.order or tuple(self.layers)
        super().__post_init__()

    def __call__(self, X: Array) -> Array:
        for name in self.order:
            X = self.layers[name](X)
        return X


def max_pool(X: Array, padding: str = "symmetric") -> Array:
    """3×3 max-pool at stride 2 over (N, H, W, C); `padding`, of −∞, is "symmetric" or "same"."""
    check_padding(padding)
    return nn.max_pool(X, (3, 3), strides=(2, 2), padding="SAME" if padding == "same" else _pads((3, 3)))


def global_average_pool(X: Array) -> Array:
    """(N, H, W, C) → (N, C)."""
    return X.mean((1, 2))
