"""Known ways in which a port computes something else than the oracle, and what the network then puts out."""

from __future__ import annotations

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
        cause: what a person reads.
        kind: of two traps of one kind a port can have only one.
        images: what it makes of the images (N, C, H, W).
        weights: what it makes of the tensor of a canonical name.
        port: the arguments it gives `Port`.
    """

    cause: str
    kind: str
    images: Callable[[Array], Array] | None = None
    weights: Callable[[str, Array], Array] | None = None
    port: Mapping[str, Any] = field(default_factory=dict)


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


_SAME = "padding SAME in {} (lopsided at stride 2 on an even size; here symmetric)"
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
    Trap(_SAME.format("convolutions and max-pool"), "padding", port={"same": ("convolution", "max-pool")}),
    Trap(_SAME.format("convolutions"), "padding", port={"same": ("convolution",)}),
    Trap(_SAME.format("the max-pool"), "padding", port={"same": ("max-pool",)}),
    Trap("batch norm's epsilon 1e-3 (Keras' default; here 1e-5)", "epsilon", port={"epsilon": 1e-3}),
    Trap(
        "batch norm's epsilon 1.001e-5 (keras.applications'; here 1e-5)",
        "epsilon",
        port={"epsilon": 1.001e-5},
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
        port={"early_stride": True},
    ),
    Trap("ReLU before the addition (here after it)", "addition", port={"relu_at": ("before",)}),
    Trap("ReLU before the addition too (here after it)", "addition", port={"relu_at": ("before", "after")}),
    Trap("no ReLU after the addition", "addition", port={"relu_at": ()}),
    Trap("GELU for ReLU", "activation", port={"activation": _gelu}),
    Trap("GELU in its tanh approximation for ReLU", "activation", port={"activation": _tanh_gelu}),
    Trap("no batch norm anywhere", "batch norm", port={"no_norm": ("",)}),
    Trap("no batch norm in the stem", "batch norm", port={"no_norm": ("b1.bn",)}),
    Trap("no batch norm on the shortcuts", "batch norm", port={"no_norm": ("bn4",)}),
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
        weights: by canonical name.
        same: "convolution", "max-pool" or both: those that pad SAME.
        epsilon: of batch norm.
        statistics: batch norm's: "running", "batch" or "unbiased", the batch's with an unbiased variance.
        early_stride: put the stride of a bottleneck in its first convolution.
        relu_at: where the addition has its ReLU: "before" it, on the chain, or "after" it.
        activation: in place of ReLU.
        no_norm: ends of the names of the batch norms that are left out.
        pool: the stem's: "max", "average", or "average with padding", of zeros.
        global_max: pool globally with the maximum.
        softmax: put out probabilities.
    """

    def __init__(
        self,
        weights: Weights,
        same: tuple[str, ...] = (),
        epsilon: float = oracle.EPSILON,
        statistics: str = "running",
        early_stride: bool = False,
        relu_at: tuple[str, ...] = ("after",),
        activation: Callable[[Array], Array] | None = None,
        no_norm: tuple[str, ...] = (),
        pool: str = "max",
        global_max: bool = False,
        softmax: bool = False,
    ) -> None:
        super().__init__(weights, training=False)
        self.same, self.epsilon, self.statistics = same, epsilon, statistics
        self.early_stride, self.relu_at, self.activation = early_stride, relu_at, activation
        self.no_norm, self.pool, self.global_max, self.softmax = no_norm, pool, global_max, softmax

    def outputs(self, arch: Architecture, x: Array, start: int) -> Iterator[Array]:
        """The outputs of the layers from number `start` on, given the input of that one."""
        stages = [partial(self.stage, blocks) for blocks in arch.blocks()]
        parts: list[Callable[[Array], tuple[Array, Callable]]] = [self.stem, *stages, self.head]
        for part in parts[start:]:
            x, _ = part(x)
            yield x

    def stage(self, blocks: list[Block], x: Array) -> tuple[Array, Callable]:
        """Blocks in a row."""
        for block in blocks:
            x, back = self.block(block, x)
        return x, back

    def block(self, block: Block, x: Array) -> tuple[Array, Callable]:
        self.strides = block.strides
        return super().block(block, x)

    def convolution(self, name: str, x: Array, stride: int, padding: int) -> tuple[Array, Callable]:
        if self.early_stride and name.endswith(("conv1", "conv2")):  # which changes nothing in Residual
            stride = self.strides if name.endswith("conv1") else 1
        if "convolution" in self.same:
            size = self.weights[f"{name}.weight"].shape[-1]
            x, padding = _pad_same(x, size, stride), 0
        return super().convolution(name, x, stride, padding)

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
        var = var + (self.epsilon - oracle.EPSILON)
        return oracle.batch_norm(x, *self._parameters(name), mean, var), no_gradient

    def relu(self, x: Array) -> tuple[Array, Callable]:
        return (self.activation(x), no_gradient) if self.activation else oracle.relu(x)

    def addition(self, y: Array, shortcut: Array) -> tuple[Array, Callable]:
        if "before" in self.relu_at:
            y, _ = self.relu(y)
        return self.relu(y + shortcut) if "after" in self.relu_at else (y + shortcut, no_gradient)

    def max_pool(self, x: Array, size: int = 3, stride: int = 2, padding: int = 1) -> tuple[Array, Callable]:
        def padded(x: Array, value: float = 0.0) -> Array:
            if "max-pool" in self.same:
                return _pad_same(x, size, stride, value)
            return oracle.pad(x, padding, value)

        if self.pool == "max":
            return oracle.max_pool(padded(x, -np.inf), size, stride, padding=0)
        counted = padded(np.ones(x.shape), float(self.pool == "average with padding"))
        sums = (oracle.windows(array, size, stride).sum((-2, -1)) for array in (padded(x), counted))
        return np.divide(*sums), no_gradient

    def global_average_pool(self, x: Array) -> tuple[Array, Callable]:
        return (x.max((2, 3)), no_gradient) if self.global_max else oracle.global_average_pool(x)

    def head(self, x: Array) -> tuple[Array, Callable]:
        logits, back = super().head(x)
        if not self.softmax:
            return logits, back
        return oracle.softmax(logits), no_gradient


def _pad_same(x: Array, size: int, stride: int, value: float = 0.0) -> Array:
    """As TensorFlow pads SAME: as little as makes ⌈H / stride⌉ windows, and the odd pixel after."""
    pads = [(0, 0), (0, 0)]
    for pixels in x.shape[2:]:
        total = max((-(-pixels // stride) - 1) * stride + size - pixels, 0)
        pads.append((total // 2, total - total // 2))
    return np.pad(x, pads, constant_values=value)


def port(
    arch: Architecture, weights: Weights, x: Array, start: int, traps: Sequence[Trap]
) -> Iterator[Array]:
    """The outputs of the layers from number `start` on, given the input of that one, with these traps."""
    settings: dict[str, Any] = {}
    for trap in traps:
        settings |= trap.port
        if trap.images:
            x = trap.images(x)
        if trap.weights:
            weights = {name: trap.weights(name, array) for name, array in weights.items()}
    return Port(weights, **settings).outputs(arch, x, start)
