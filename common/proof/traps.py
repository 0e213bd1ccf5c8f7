"""Known ways in which a port computes something else than the oracle, and what the network then puts out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from common import oracle
from common.architecture import Architecture, Block
from common.data import imagenet
from common.oracle import Array
from common.oracle import evaluation_has_no_gradient as no_gradient
from common.weights import STATISTICS, Weights, is_statistic


@dataclass(frozen=True)
class Trap:
    """A known way to compute something else.

    Attributes:
        cause: what a person reads; in braces, what the network does instead.
        kind: of two traps of one kind a port can have only one.
        images: what it makes of the images (N, C, H, W).
        weights: what it makes of the tensor of a canonical name.
        axes: of the `Architecture`, what it makes of them.
        port: the arguments it gives `Port`.
    """

    cause: str
    kind: str
    images: Callable[[Array], Array] | None = None
    weights: Callable[[str, Array], Array] | None = None
    axes: Mapping[str, Any] = field(default_factory=dict)
    port: Mapping[str, Any] = field(default_factory=dict)

    def text(self, arch: Architecture) -> str:
        """The cause, said of this network."""
        words = {"symmetric": "symmetric", "same": "SAME"}
        padding, stem = words[arch.padding], words[arch.stem_padding]
        return self.cause.format(
            padding=padding if padding == stem else f"{padding}, in the stem's convolution {stem}",
            epsilon=np.format_float_scientific(arch.epsilon, trim="-", exp_digits=1),
        )

    def changed(self, arch: Architecture) -> Architecture:
        """The network with this trap's axes, as far as its blocks know them."""
        foreign = "stride_on" if arch.block == "residual" else "shortcut_norm"
        axes = {name: value for name, value in self.axes.items() if name != foreign}
        return dataclasses.replace(arch, **axes)


def _normalised(x: Array) -> Array:
    if x.shape[1] != 3:
        return x
    mean, std = (np.reshape(values, (3, 1, 1)) for values in (imagenet.MEAN, imagenet.STD))
    return (x - mean) / std


def _bgr(x: Array) -> Array:
    return x[:, ::-1] if x.shape[1] == 3 else x


def _swapped(x: Array) -> Array:
    return x.swapaxes(2, 3) if x.shape[2] == x.shape[3] else x


def _reshaped_to_nchw(x: Array) -> Array:
    return x.transpose(0, 2, 3, 1).reshape(x.shape)


def _reshaped_to_nhwc(x: Array) -> Array:
    n, c, h, w = x.shape
    return x.reshape(n, h, w, c).transpose(0, 3, 1, 2)


def _initial_statistics(name: str, array: Array) -> Array:
    return np.full_like(array, name.endswith("var")) if is_statistic(name) else array


def _without_biases(name: str, array: Array) -> Array:
    return np.zeros_like(array) if ".conv" in name and name.endswith("bias") else array


def _flipped(name: str, array: Array) -> Array:
    return array[..., ::-1, ::-1] if array.ndim == 4 else array


def _swapped_kernel(name: str, array: Array) -> Array:
    return array.swapaxes(2, 3) if array.ndim == 4 else array


def _transposed_dense(name: str, array: Array) -> Array:
    return array.T if name == "last.weight" and array.shape[0] == array.shape[1] else array


_erf = np.frompyfunc(math.erf, 1, 1)  # NumPy has none


def _gelu(x: Array) -> Array:
    return x * (1 + _erf(x / math.sqrt(2)).astype(np.float64)) / 2


def _tanh_gelu(x: Array) -> Array:
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def _padding(text: str, value: str) -> tuple[Trap, ...]:
    """Padding of this kind in all layers, in the convolutions alone, in the max-pool alone."""
    return (
        Trap(
            text.format("convolutions and max-pool"),
            "padding",
            axes={"padding": value, "stem_padding": value},
        ),
        Trap(text.format("convolutions"), "padding", port={"convolution_padding": value}),
        Trap(text.format("the max-pool"), "padding", port={"pool_padding": value}),
    )


TRAPS = (
    Trap("images in 0..255 (the division by 255 is missing)", "scale", lambda x: x * 255),
    Trap("images divided by 255 once too often", "scale", lambda x: x / 255),
    Trap("images scaled to [−1, 1] (here taken as they are)", "scale", lambda x: 2 * x - 1),
    Trap(
        "images normalised with ImageNet's mean and deviation (here taken as they are)", "scale", _normalised
    ),
    Trap("images rounded to float32", "scale", lambda x: x.astype(np.float32).astype(np.float64)),
    Trap("images with channels in the order BGR (here RGB)", "order", _bgr),
    Trap("images with height and width swapped", "order", _swapped),
    Trap("NHWC images reshaped, not transposed, to NCHW", "order", _reshaped_to_nchw),
    Trap("NCHW images reshaped, not transposed, to NHWC", "order", _reshaped_to_nhwc),
    *_padding("padding SAME in {} (lopsided at stride 2 on an even size; here {{padding}})", "same"),
    *_padding("symmetric padding in {} (here {{padding}})", "symmetric"),
    Trap("batch norm's epsilon 1e-3 (Keras' default; here {epsilon})", "epsilon", axes={"epsilon": 1e-3}),
    Trap(
        "batch norm's epsilon 1.001e-5 (keras.applications'; here {epsilon})",
        "epsilon",
        axes={"epsilon": 1.001e-5},
    ),
    Trap(
        "batch norm's epsilon 1e-5 (PyTorch's, Flax's and Gluon's; here {epsilon})",
        "epsilon",
        axes={"epsilon": 1e-5},
    ),
    Trap(
        "batch statistics in batch norm (training mode; here running ones)",
        "statistics",
        port={"statistics": "batch"},
    ),
    Trap(
        "batch statistics in batch norm, with the unbiased variance (here running ones)",
        "statistics",
        port={"statistics": "unbiased"},
    ),
    Trap("running statistics of 0 and 1 (not loaded)", "statistics", weights=_initial_statistics),
    Trap("no biases in the convolutions", "biases", weights=_without_biases),
    Trap("kernels flipped (true convolution; here cross-correlation)", "kernels", weights=_flipped),
    Trap("kernels with height and width swapped", "kernels", weights=_swapped_kernel),
    Trap(
        "stride in a bottleneck's first convolution (here in the 3×3 one)",
        "stride",
        axes={"stride_on": "1x1"},
    ),
    Trap(
        "stride in a bottleneck's 3×3 convolution (here in the first one)",
        "stride",
        axes={"stride_on": "3x3"},
    ),
    Trap("ReLU before the addition (here after it)", "addition", port={"relu_at": ("before",)}),
    Trap("ReLU before the addition too (here after it)", "addition", port={"relu_at": ("before", "after")}),
    Trap("no ReLU after the addition", "addition", port={"relu_at": ()}),
    Trap("GELU for ReLU", "activation", port={"activation": _gelu}),
    Trap("GELU in its tanh approximation for ReLU", "activation", port={"activation": _tanh_gelu}),
    Trap("no batch norm anywhere", "batch norm", port={"no_norm": ("",)}),
    Trap("no batch norm in the stem", "batch norm", port={"no_norm": ("b1.bn",)}),
    Trap(
        "no batch norm on the shortcuts",
        "batch norm",
        axes={"shortcut_norm": False},
        port={"no_norm": ("bn4",)},
    ),
    Trap(
        "average-pool for the max-pool, its padding counted (as PyTorch's AvgPool2d does)",
        "pool",
        port={"pool": "average with padding"},
    ),
    Trap(
        "average-pool for the max-pool, its padding not counted (as in TensorFlow)",
        "pool",
        port={"pool": "average"},
    ),
    Trap("global max-pool for the global average-pool", "global pool", port={"global_max": True}),
    Trap("dense weight transposed (here (out, in))", "dense", weights=_transposed_dense),
    Trap("softmax after the last layer (here logits)", "softmax", port={"softmax": True}),
)


class Port(oracle.Pass):
    """The oracle's pass in evaluation, as a port that fell into traps would compute it.

    Args:
        arch: the network, with the port's axes.
        weights: by canonical name.
        convolution_padding, pool_padding: in place of the network's.
        statistics: batch norm's: "running", "batch" or "unbiased", the batch's with an unbiased variance.
        relu_at: where the addition has its ReLU: "before" it, on the chain, or "after" it.
        activation: in place of ReLU.
        no_norm: ends of the names of the batch norms that are left out.
        pool: the stem's: "max", "average", or "average with padding", of zeros.
        global_max: pool globally with the maximum.
        softmax: put out probabilities.
    """

    def __init__(
        self,
        arch: Architecture,
        weights: Weights,
        convolution_padding: str | None = None,
        pool_padding: str | None = None,
        statistics: str = "running",
        relu_at: tuple[str, ...] = ("after",),
        activation: Callable[[Array], Array] | None = None,
        no_norm: tuple[str, ...] = (),
        pool: str = "max",
        global_max: bool = False,
        softmax: bool = False,
    ) -> None:
        super().__init__(arch, weights, training=False)
        self.convolution_padding, self.pool_padding = convolution_padding, pool_padding
        self.statistics, self.relu_at, self.activation = statistics, relu_at, activation
        self.no_norm, self.pool, self.global_max, self.softmax = no_norm, pool, global_max, softmax

    def outputs(self, x: Array, start: int) -> Iterator[Array]:
        """The outputs of the layers from number `start` on, given the input of that one."""
        stages = [partial(self.stage, blocks) for blocks in self.arch.blocks()]
        parts: list[Callable[[Array], tuple[Array, Callable]]] = [self.stem, *stages, self.head]
        for part in parts[start:]:
            x, _ = part(x)
            yield x

    def stage(self, blocks: list[Block], x: Array) -> tuple[Array, Callable]:
        """Blocks in a row."""
        for block in blocks:
            x, back = self.block(block, x)
        return x, back

    def convolution(
        self, name: str, x: Array, stride: int = 1, padding: str = "symmetric"
    ) -> tuple[Array, Callable]:
        return super().convolution(name, x, stride, self.convolution_padding or padding)

    def batch_norm(self, name: str, x: Array) -> tuple[Array, Callable]:
        if name.endswith(self.no_norm):
            return x, no_gradient
        mean, var = (self.weights[f"{name}.{statistic}"] for statistic in STATISTICS)
        if self.statistics != "running":
            mean = oracle.channel_mean(x)
            var = oracle.channel_mean((x - mean[:, None, None]) ** 2)
        if self.statistics == "unbiased":
            n = x.size // x.shape[1]
            var = var * n / max(n - 1, 1)
        return oracle.batch_norm(x, *self._parameters(name), mean, var, self.arch.epsilon), no_gradient

    def relu(self, x: Array) -> tuple[Array, Callable]:
        return (self.activation(x), no_gradient) if self.activation else oracle.relu(x)

    def addition(self, y: Array, shortcut: Array) -> tuple[Array, Callable]:
        if "before" in self.relu_at:
            y, _ = self.relu(y)
        return self.relu(y + shortcut) if "after" in self.relu_at else (y + shortcut, no_gradient)

    def max_pool(self, x: Array, padding: str, size: int = 3, stride: int = 2) -> tuple[Array, Callable]:
        padding = self.pool_padding or padding
        if self.pool == "max":
            return oracle.max_pool(x, padding, size, stride)
        around = oracle.pads(x, size, stride, padding)
        counted = oracle.pad(np.ones(x.shape), around, float(self.pool == "average with padding"))
        padded = oracle.pad(x, around)
        sums = (oracle.windows(array, size, stride).sum((-2, -1)) for array in (padded, counted))
        return np.divide(*sums), no_gradient

    def global_average_pool(self, x: Array) -> tuple[Array, Callable]:
        return (x.max((2, 3)), no_gradient) if self.global_max else oracle.global_average_pool(x)

    def head(self, x: Array) -> tuple[Array, Callable]:
        logits, back = super().head(x)
        if not self.softmax:
            return logits, back
        return oracle.softmax(logits), no_gradient


def port(
    arch: Architecture, weights: Weights, x: Array, start: int, traps: Sequence[Trap]
) -> Iterator[Array]:
    """The outputs of the layers from number `start` on, given the input of that one, with these traps."""
    settings: dict[str, Any] = {}
    for trap in traps:
        arch = trap.changed(arch)
        settings |= trap.port
        if trap.images:
            x = trap.images(x)
        if trap.weights:
            weights = {name: trap.weights(name, array) for name, array in weights.items()}
    return Port(arch, weights, **settings).outputs(x, start)
