"""`verify`: backends and other ports against the oracle, layer by layer, and the cause where one differs.

The recordings are made by code of their own: a plain port in NumPy, and layers of PyTorch, Keras
and Flax as people use them.
"""

import io
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from common import Architecture, cli, save_checkpoint
from common.backend import BACKENDS
from common.errors import BadInput
from common.horizon import LAYER_BOUNDS
from common.proof import verify
from common.proof.verify import Expected, Match, Recording, against, check_shapes, read_recording, readings
from common.weights import Weights
from tests.helpers import one_line, random_batch, random_weights

# As many classes as channels, so that the dense layer's weight is square.
RESIDUAL = Architecture(stages=((1, 6), (2, 8)), stem_channels=6, in_channels=3, num_classes=8)
RESNEXT = replace(RESIDUAL, block="resnext", groups=(3, 4), bot_mul=1.0)
ARCHS = {"residual": RESIDUAL, "resnext": RESNEXT}
BOTH = pytest.mark.parametrize("block", list(ARCHS))
EVEN, ODD, MIXED = (48, 48), (33, 33), (34, 36)
LAYERS = ["b1", "b2", "b3", "last"]


@dataclass(frozen=True)
class Naive:
    """A port in plain NumPy, with its ways to be wrong. It shares no code with the oracle or with verify."""

    same_conv: bool = False
    same_pool: bool = False
    epsilon: float = 1e-5
    statistics: str = "running"
    early_stride: bool = False
    activation: str = "relu"
    relu_at: str = "after"
    pool: str = "max"
    global_pool: str = "average"
    no_norm: str = "none"  # the end of the name of those that are missing
    only: tuple[str, ...] = ("b1", "b2", "b3")  # layers that are wrong

    def activations(self, arch: Architecture, weights: Weights, x: NDArray) -> dict[str, NDArray]:
        right = Naive()
        y = (self if "b1" in self.only else right).stem(weights, x)
        outputs = {"b1": y}
        for k, stage in enumerate(arch.blocks(), start=2):
            for block in stage:
                y = (self if f"b{k}" in self.only else right).block(weights, block, y)
            outputs[f"b{k}"] = y
        y = y.max((2, 3)) if self.global_pool == "max" else y.mean((2, 3))
        return outputs | {"last": y @ weights["last.weight"].T + weights["last.bias"]}

    def stem(self, weights: Weights, x: NDArray) -> NDArray:
        y = self.relu(self.norm(weights, "b1.bn", self.conv(weights, "b1.conv", x, 2)))
        outside = {"max": -np.inf, "average": np.nan, "average of zeros too": 0}[self.pool]
        y, (height, width) = self.padded(y, 3, 2, self.same_pool, outside)
        shifts = [y[:, :, i:, j:][:, :, ::2, ::2][:, :, :height, :width] for i in range(3) for j in range(3)]
        return np.max(shifts, axis=0) if self.pool == "max" else np.nanmean(shifts, axis=0)

    def block(self, weights: Weights, block: Any, x: NDArray) -> NDArray:
        name, strides = block.name, {1: 1, 2: 1, 3: 1}
        strides[1 if block.groups is None or self.early_stride else 2] = block.strides
        count = 2 if block.groups is None else 3
        y = x
        for i in range(1, count + 1):
            y = self.norm(weights, f"{name}.bn{i}", self.conv(weights, f"{name}.conv{i}", y, strides[i]))
            y = self.relu(y) if i < count or "before" in self.relu_at else y
        if block.use_1x1conv:
            x = self.conv(weights, f"{name}.conv{count + 1}", x, block.strides)
            if block.groups is not None:
                x = self.norm(weights, f"{name}.bn{count + 1}", x)
        return self.relu(x + y) if "after" in self.relu_at else x + y

    def relu(self, x: NDArray) -> NDArray:
        if self.activation == "gelu":  # as it is defined
            return x * np.vectorize(NormalDist().cdf)(x)
        if self.activation == "tanh gelu":  # with the logistic function that tanh is
            return x / (1 + np.exp(-2 * (2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))
        return np.where(x > 0, x, 0.01 * x if self.activation == "leaky" else 0)

    def conv(self, weights: Weights, name: str, x: NDArray, stride: int) -> NDArray:
        weight = weights[f"{name}.weight"]
        size, groups = weight.shape[2], x.shape[1] // weight.shape[1]
        x, (height, width) = self.padded(x, size, stride, self.same_conv, 0)
        y = 0
        for i in range(size):
            for j in range(size):
                pixels = x[:, :, i:, j:][:, :, ::stride, ::stride][:, :, :height, :width]
                parts = zip(np.split(pixels, groups, 1), np.split(weight[:, :, i, j], groups), strict=True)
                y = y + np.concatenate([np.einsum("nchw,oc->nohw", p, w) for p, w in parts], 1)
        return y + weights[f"{name}.bias"][:, None, None]

    def norm(self, weights: Weights, name: str, x: NDArray) -> NDArray:
        if name.endswith(self.no_norm):
            return x
        weight, bias, mean, var = (
            weights[f"{name}.{part}"][:, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        if self.statistics != "running":
            mean = x.mean((0, 2, 3), keepdims=True)
            var = x.var((0, 2, 3), keepdims=True, ddof=1 if self.statistics == "unbiased" else 0)
        return (x - mean) / np.sqrt(var + self.epsilon) * weight + bias

    @staticmethod
    def padded(x: NDArray, size: int, stride: int, same: bool, value: float) -> tuple[NDArray, list[int]]:
        out = [(pixels + stride - 1) // stride for pixels in x.shape[2:]]
        before = [size // 2] * 2
        if same:
            total = [max((o - 1) * stride + size - p, 0) for o, p in zip(out, x.shape[2:], strict=True)]
            before = [t // 2 for t in total]
        pads = [(0, 0), (0, 0), (before[0], size), (before[1], size)]  # more after than any window needs
        return np.pad(x, pads, constant_values=value), out


SAME = Naive(same_conv=True, same_pool=True)
EPSILON = Naive(epsilon=1e-3)


@dataclass(frozen=True)
class Network:
    """A network and images, and what the oracle computes."""

    expected: Expected

    @classmethod
    def of(
        cls, block: str, size: tuple[int, int], count: int = 3, weights: Weights | None = None
    ) -> "Network":
        arch = ARCHS[block]
        x, _ = random_batch(arch, count, *size)
        return cls(Expected.of(arch, weights or random_weights(arch), x))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.expected, name)

    def record(self, port: Naive = Naive(), **changed: Any) -> dict[str, NDArray]:
        return port.activations(self.arch, changed.get("weights", self.weights), changed.get("x", self.x))

    def judge(self, layers: dict[str, NDArray]) -> Match:
        """As the command does, through a file."""
        recording = through_a_file(layers, self.arch)
        check_shapes(recording, self.computed, "the images")
        return against(self.expected, recording)


def through_a_file(layers: dict[str, NDArray], arch: Architecture) -> Recording:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recorded.npz"
        np.savez(path, **layers)
        return read_recording(path, arch)


def to_float32(layers: dict[str, NDArray]) -> dict[str, NDArray]:
    return {name: array.astype(np.float32) for name, array in layers.items()}


def in_type(array: NDArray, dtype: str) -> NDArray:
    """bfloat16, which NumPy has not, as float32."""
    if dtype != "bfloat16":
        return array.astype(dtype)
    return (array.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


@BOTH
@pytest.mark.parametrize("size", [EVEN, ODD, MIXED])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_a_right_port_agrees(block: str, size: tuple[int, int], dtype: str) -> None:
    network = Network.of(block, size)
    layers = {name: in_type(array, dtype) for name, array in network.record().items()}
    match = network.judge(layers)
    assert match.agrees, match
    assert match.precision == dtype
    assert [line.layer for line in match.lines] == LAYERS


# What the first batch norm subtracts, and how far a right port may then be off.
LARGE_MEANS = {"float64": (3e5, 0.0), "float32": (3e3, 3e-4)}


def with_mean(plain: Network, mean: float) -> Network:
    """The same network, whose first batch norm has to take away this mean, and so magnifies rounding."""
    added = {"b1.conv.bias": mean, "b1.bn.running_mean": mean}
    weights = {name: array + added.get(name, 0.0) for name, array in plain.weights.items()}
    return Network.of("residual", EVEN, weights=weights)


def recorded_of_large_means(port: Naive, dtype: str) -> tuple[Network, dict[str, NDArray]]:
    """A network with a large mean, and what a port records that leaves it out."""
    mean, off = LARGE_MEANS[dtype]
    plain = Network.of("residual", EVEN)
    layers = {name: (array * (1 + off)).astype(dtype) for name, array in plain.record(port).items()}
    return with_mean(plain, mean), layers


@pytest.mark.parametrize("dtype", LARGE_MEANS)
def test_a_right_port_of_a_network_that_magnifies_rounding_agrees(dtype: str) -> None:
    network, layers = recorded_of_large_means(Naive(), dtype)
    match = network.judge(layers)
    assert max(line.deviation for line in match.lines) > 3 * LAYER_BOUNDS[dtype]
    assert match.agrees, match


@pytest.mark.parametrize("dtype", LARGE_MEANS)
def test_a_cause_is_named_in_a_network_that_magnifies_rounding(dtype: str) -> None:
    network, layers = recorded_of_large_means(SAME, dtype)
    assert "Likely cause: padding SAME" in network.judge(layers).cause


def flip(name: str, array: NDArray) -> NDArray:
    return np.flip(array, (2, 3)) if array.ndim == 4 else array


def forget_statistics(name: str, array: NDArray) -> NDArray:
    return array * 0 + name.endswith("var") if "running" in name else array


def forget_biases(name: str, array: NDArray) -> NDArray:
    return 0 * array if "conv" in name and "bias" in name else array


TRAPS: dict[str, tuple[dict[str, Any], str, str]] = {
    # what the port does, the layer where it shows, what is said
    "SAME": ({"port": SAME}, "b1", "padding SAME in convolutions and max-pool"),
    "SAME convolutions": ({"port": Naive(same_conv=True)}, "b1", "padding SAME in convolutions (lop"),
    "SAME pool": ({"port": Naive(same_pool=True)}, "b1", "padding SAME in the max-pool"),
    "SAME later": ({"port": replace(SAME, only=("b3",))}, "b3", "padding SAME in convolutions"),
    "epsilon": ({"port": EPSILON}, "b1", "epsilon 1e-3"),
    "epsilon later": ({"port": replace(EPSILON, only=("b2", "b3"))}, "b2", "epsilon 1e-3"),
    "training": ({"port": Naive(statistics="batch")}, "b1", "batch statistics in batch norm (training"),
    "unbiased": ({"port": Naive(statistics="unbiased")}, "b1", "with the unbiased variance"),
    "not loaded": ({"weights": forget_statistics}, "b1", "running statistics of 0 and 1"),
    "no biases": ({"weights": forget_biases}, "b1", "no biases in the convolutions"),
    "0..255": ({"x": lambda x: 255 * x}, "b1", "images in 0..255"),
    "/255 twice": ({"x": lambda x: x / 255}, "b1", "divided by 255 once too often"),
    "−1..1": ({"x": lambda x: (x - 0.5) / 0.5}, "b1", "scaled to [−1, 1]"),
    "BGR": ({"x": lambda x: np.stack([x[:, 2], x[:, 1], x[:, 0]], 1)}, "b1", "in the order BGR"),
    "W, H": ({"x": lambda x: np.moveaxis(x, 3, 2)}, "b1", "images with height and width swapped"),
    "reshaped": (
        {"x": lambda x: np.moveaxis(x, 1, 3).reshape(x.shape)},
        "b1",
        "NHWC images reshaped, not transposed",
    ),
    "reshaped to NHWC": (
        {"x": lambda x: np.moveaxis(x.reshape(-1, 48, 48, 3), 3, 1)},
        "b1",
        "NCHW images reshaped, not transposed",
    ),
    "ImageNet": (
        {
            "x": lambda x: (
                (x - np.array([[[[0.485]], [[0.456]], [[0.406]]]]))
                / np.array([[[[0.229]], [[0.224]], [[0.225]]]])
            )
        },
        "b1",
        "ImageNet's mean",
    ),
    "true convolution": ({"weights": flip}, "b1", "kernels flipped"),
    "kernels W, H": (
        {"weights": lambda name, a: np.moveaxis(a, 3, 2) if a.ndim == 4 else a},
        "b1",
        "kernels with height and width swapped",
    ),
    "ReLU before": ({"port": Naive(relu_at="before")}, "b2", "cause: ReLU before the addition (here"),
    "ReLU before too": (
        {"port": Naive(relu_at="before, after")},
        "b2",
        "cause: ReLU before the addition too (here",
    ),
    "no ReLU after": ({"port": Naive(relu_at="")}, "b2", "no ReLU after the addition"),
    "GELU": ({"port": Naive(activation="gelu")}, "b1", "GELU for ReLU"),
    "GELU later": ({"port": Naive(activation="gelu", only=("b3",))}, "b3", "GELU for ReLU"),
    "tanh GELU": ({"port": Naive(activation="tanh gelu")}, "b1", "GELU in its tanh approximation"),
    "no norm": ({"port": Naive(no_norm="")}, "b1", "cause: no batch norm anywhere."),
    "no norm later": ({"port": Naive(no_norm="", only=("b2", "b3"))}, "b2", "no batch norm anywhere."),
    "no norm in the stem": ({"port": Naive(no_norm="b1.bn")}, "b1", "no batch norm in the stem"),
    "average": ({"port": Naive(pool="average")}, "b1", "average-pool for the max-pool, its padding not"),
    "average of zeros too": (
        {"port": Naive(pool="average of zeros too")},
        "b1",
        "average-pool for the max-pool, its padding counted",
    ),
    "global max": ({"port": Naive(global_pool="max")}, "last", "global max-pool for the global average"),
    "dense": (
        {"weights": lambda name, a: a.T if name == "last.weight" else a},
        "last",
        "dense weight transposed",
    ),
}
PAIRS: dict[str, tuple[dict[str, Any], str, str]] = {
    "Keras' defaults": ({"port": replace(SAME, epsilon=1e-3)}, "b1", "padding SAME|epsilon 1e-3"),
    "training, SAME": ({"port": replace(SAME, statistics="batch")}, "b1", "batch statistics|padding SAME"),
    "0..255, SAME": ({"port": SAME, "x": lambda x: 255 * x}, "b1", "0..255|padding SAME"),
    "BGR, 0..255": ({"x": lambda x: 255 * x[:, ::-1]}, "b1", "0..255|BGR"),
    "BGR, SAME": ({"port": SAME, "x": lambda x: x[:, ::-1]}, "b1", "BGR|padding SAME"),
    "BGR, epsilon": ({"port": EPSILON, "x": lambda x: x[:, ::-1]}, "b1", "BGR|epsilon 1e-3"),
    "flipped, training": (
        {"port": Naive(statistics="batch"), "weights": flip},
        "b1",
        "kernels flipped|batch statistics",
    ),
    "GELU, epsilon": ({"port": replace(EPSILON, activation="gelu")}, "b1", "GELU for ReLU|epsilon 1e-3"),
    "average, SAME": (
        {"port": replace(SAME, pool="average")},
        "b1",
        "average-pool for the max-pool, its padding not|padding SAME in convolutions and max-pool",
    ),
    "no norm, 0..255": (
        {"port": Naive(no_norm=""), "x": lambda x: 255 * x},
        "b1",
        "no batch norm anywhere|0..255",
    ),
    "GELU, ReLU before": (
        {"port": Naive(activation="gelu", relu_at="before", only=("b2", "b3"))},
        "b2",
        "GELU for ReLU|ReLU before the addition",
    ),
}


def recorded_with(network: Network, port: Naive = SAME, **changes: Callable) -> dict[str, NDArray]:
    changed: dict[str, Any] = {}
    if "x" in changes:
        changed["x"] = changes["x"](network.x)
    if "weights" in changes:
        changed["weights"] = {n: changes["weights"](n, array) for n, array in network.weights.items()}
    return network.record(port, **changed)


@pytest.fixture(scope="module", params=list(ARCHS))
def even(request: pytest.FixtureRequest) -> Network:
    return Network.of(request.param, EVEN)


@pytest.mark.parametrize("case", [*TRAPS, *PAIRS])
def test_the_cause_is_named(even: Network, case: str) -> None:
    changes, layer, words = (TRAPS | PAIRS)[case]
    layers = recorded_with(even, **{"port": Naive(), **changes})
    for stored, small in ((layers, 1e-10), (to_float32(layers), 1e-4)):
        match = even.judge(stored)
        assert not match.agrees
        assert match.difference.startswith(f"First layer that differs: {layer}, by ")
        assert match.cause.startswith("Likely cause: "), match
        for word in words.split("|"):
            assert word in match.cause
        assert ("; and " in match.cause) == (case in PAIRS)
        for line in match.lines:
            reached = LAYERS.index(line.layer) >= LAYERS.index(layer)
            assert (line.explained is not None) == reached
            assert not reached or line.explained <= small
        if layer != "last":
            assert "and so are the later layers" in match.cause


@pytest.mark.parametrize("case", ["ReLU before", "ReLU before too", "no ReLU after", "GELU", "tanh GELU"])
@pytest.mark.parametrize("also", [{}, {"epsilon": 1e-3}])
def test_the_activation_shows_in_the_logits(even: Network, case: str, also: dict[str, float]) -> None:
    logits_alone(even, (TRAPS[case][0] | {"port": replace(TRAPS[case][0]["port"], **also)}), TRAPS[case][2])


@pytest.mark.parametrize(
    "case",
    ["no norm", "no norm in the stem", "average", "average of zeros too", "global max", "no norm, 0..255"],
)
def test_a_missing_norm_or_another_pool_shows_in_the_logits(even: Network, case: str) -> None:
    changes, _, words = (TRAPS | PAIRS)[case]
    logits_alone(even, changes, words)


def logits_alone(network: Network, changes: dict[str, Any], words: str) -> None:
    layers = recorded_with(network, **{"port": Naive(), **changes})
    match = network.judge({"last": layers["last"]})
    assert match.cause.startswith("Likely cause: "), match
    for word in words.split("|"):
        assert word.removeprefix("cause: ") in match.cause


@pytest.mark.parametrize("kept", [LAYERS, ["last"]])
@pytest.mark.parametrize(
    ("port", "words"),
    [
        (Naive(early_stride=True), "stride in a bottleneck's first convolution"),
        (Naive(no_norm="bn4"), "no batch norm on the shortcuts"),
    ],
)
def test_a_bottleneck_of_its_own_kind(port: Naive, words: str, kept: list[str]) -> None:
    network = Network.of("resnext", EVEN)
    layers = network.record(port)
    match = network.judge({name: layers[name] for name in kept})
    assert f"First layer that differs: {'b3' if len(kept) > 1 else 'last'}" in match.difference
    assert f"Likely cause: {words}" in match.cause


def test_probabilities_in_place_of_logits(even: Network) -> None:
    layers = even.record()
    exponentials = np.exp(layers["last"])
    layers["last"] = exponentials / exponentials.sum(1, keepdims=True)
    match = even.judge(layers)
    assert "last" in match.difference
    assert "Likely cause: softmax after the last layer" in match.cause


def test_images_rounded_to_float32(even: Network) -> None:
    match = even.judge(even.record(x=even.x.astype(np.float32).astype(np.float64)))
    assert "Likely cause: images rounded to float32" in match.cause


def test_the_epsilon_of_keras_applications(even: Network) -> None:
    assert (
        "Likely cause: batch norm's epsilon 1.001e-5"
        in even.judge(even.record(Naive(epsilon=1.001e-5))).cause
    )


@BOTH
def test_same_padding_is_right_on_odd_sizes(block: str) -> None:
    network = Network.of(block, ODD)
    assert network.judge(network.record(SAME)).agrees


@BOTH
def test_causes_that_come_to_the_same_are_all_named(block: str) -> None:
    network = Network.of(block, MIXED)  # 34×36, then 17×18: the pool is lopsided in width only
    assert "padding SAME in convolutions and max-pool" in network.judge(network.record(SAME)).cause
    network = Network.of(block, (34, 34))  # 17×17: the pool is symmetric either way
    cause = network.judge(network.record(SAME)).cause
    assert "convolutions and max-pool (" in cause
    assert " or padding SAME in convolutions (" in cause


@BOTH
@pytest.mark.parametrize("kept", [["last"], ["b2"], ["b1", "last"], ["b3", "b2"]])
def test_any_part_of_the_layers_will_do(block: str, kept: list[str]) -> None:
    network = Network.of(block, EVEN)
    right, wrong = network.record(), network.record(replace(SAME, epsilon=1e-3))
    assert network.judge({name: right[name] for name in kept}).agrees
    match = network.judge({name: wrong[name] for name in kept})
    assert f"First layer that differs: {sorted(kept)[0]}" in match.difference
    assert "Likely cause: padding SAME in convolutions and max-pool" in match.cause
    assert "epsilon 1e-3" in match.cause


def test_float16_is_enough_for_a_visible_cause(even: Network) -> None:
    layers = even.record(SAME)
    match = even.judge({name: array.astype(np.float16) for name, array in layers.items()})
    assert match.precision == "float16"
    assert "Likely cause: padding SAME" in match.cause


def test_a_type_that_holds_more_than_the_values_have_is_seen_through(even: Network) -> None:
    rounded = {name: array.astype(np.float64) for name, array in to_float32(even.record()).items()}
    match = even.judge(rounded)
    assert match.precision == "float32"
    assert match.agrees


@pytest.mark.parametrize("cause", ["", "padding SAME"])
def test_layouts_are_recognised_and_are_no_difference(even: Network, cause: str) -> None:
    layers = even.record(SAME if cause else Naive())
    layers["b1"] = layers["b1"].transpose(0, 2, 3, 1)
    layers["b2"] = layers["b2"].transpose(0, 2, 3, 1).reshape(3, -1)
    layers["b3"] = layers["b3"].reshape(3, -1)
    match = even.judge(layers)
    assert match.agrees == (not cause)
    assert cause in match.cause
    if not cause:
        layouts = ["NHWC", "NHWC flattened", "NCHW flattened", ""]
        assert [line.layout for line in match.lines] == layouts


def test_a_layout_the_shape_leaves_open_is_found_by_trying() -> None:
    array = np.arange(2 * 4 * 4 * 4.0).reshape(2, 4, 4, 4)
    read = readings(array.transpose(0, 2, 3, 1), array.shape)
    assert list(read) == ["NCHW", "NHWC"]
    assert verify.nearest(read, array) == (0.0, "NHWC")


def zeroed(layers: dict[str, NDArray]) -> dict[str, NDArray]:
    return layers | {"b2": layers["b2"] * (np.arange(6) != 3)[:, None, None]}


def noisy(layers: dict[str, NDArray]) -> dict[str, NDArray]:
    generator = np.random.default_rng(0)
    return {name: array * (1 + 0.1 * generator.normal(size=array.shape)) for name, array in layers.items()}


UNKNOWN: dict[str, Callable[[Network], dict[str, NDArray]]] = {
    "leaky ReLU": lambda network: network.record(Naive(activation="leaky")),
    "another checkpoint": lambda network: network.record(weights=random_weights(network.arch, 1)),
    "other images": lambda network: network.record(x=network.x[::-1]),
    "a zeroed channel": lambda network: zeroed(network.record()),
    "noise": lambda network: noisy(network.record()),
    "a layer scaled": lambda network: network.record() | {"b2": 1.1 * network.computed["b2"]},
    "all scaled": lambda network: {name: 2 * array for name, array in network.record().items()},
    "nothing put out": lambda network: {name: 0 * array for name, array in network.record().items()},
}


@pytest.mark.parametrize("kept", [LAYERS, ["last"], ["b2"]])
@pytest.mark.parametrize("fault", UNKNOWN)
def test_an_unknown_difference_is_not_recognised(even: Network, fault: str, kept: list[str]) -> None:
    layers = {name: array for name, array in UNKNOWN[fault](even).items() if name in kept}
    match = even.judge(layers)
    if match.agrees:
        assert (fault, kept) in [("a zeroed channel", ["last"]), ("a layer scaled", ["last"])]
        return
    assert all(line.explained is None for line in match.lines)
    if kept == ["last"] and "Nearest: " in match.cause:  # by chance: these are 24 numbers
        assert 2 * still_off(match) <= match.lines[0].deviation
    else:
        assert match.cause == verify.UNKNOWN


def still_off(match: Match) -> float:
    assert match.cause.startswith("Cause not recognised. Nearest: ")
    return float(match.cause.split(" is still off by ")[1])


def test_the_nearest_is_named_where_a_known_cause_is_not_all(even: Network) -> None:
    generator = np.random.default_rng(0)
    for x, nearest in ((255 * even.x, ["images in 0..255"]), (255 * even.x[:, ::-1], ["0..255", "BGR"])):
        for noise, named in ((1e-3, True), (2, False)):
            layers = even.record(x=x)
            layers["b1"] = layers["b1"] * (1 + noise * generator.normal(size=layers["b1"].shape))
            match = even.judge(layers)
            if not named:
                assert match.cause == verify.UNKNOWN
                continue
            assert all(words in match.cause for words in nearest)
            assert match.cause.count("; and ") == len(nearest) - 1
            assert 0 < 2 * still_off(match) <= match.lines[0].deviation


def test_an_epsilon_shows_where_means_are_large() -> None:
    """Rounding must not excuse more than it does: in float32 this is ten times as far off as a right port."""
    plain = Network.of("residual", EVEN)
    network = with_mean(plain, 300)
    assert network.judge(to_float32(plain.record())).agrees
    assert not network.judge(to_float32(plain.record(EPSILON))).agrees


def test_the_coarsest_layer_says_what_was_computed(even: Network) -> None:
    """Logits in float64, of features in float32, all stored as float64; zeros fit every type."""
    layers = even.record()
    layers |= {
        name: array.astype(np.float32).astype(np.float64) for name, array in layers.items() if name != "last"
    }
    match = even.judge(layers)
    assert (match.precision, match.agrees) == ("float32", True)
    layers["b1"] = np.zeros_like(layers["b1"])
    assert even.judge(layers).precision == "float32"


@pytest.mark.parametrize("port", [SAME, Naive(activation="leaky")])
def test_a_trap_that_overflows_never_wins(port: Naive) -> None:
    small = Network.of("resnext", EVEN)
    scales = {"weight": 1e120, "bias": 1e120, "running_mean": 1e120, "running_var": 1e240}
    weights = {
        name: array * scales[name.split(".")[-1]]  # without batch norm, 1e120 to the fourth
        if "conv" in name or "running" in name
        else array
        for name, array in small.weights.items()
    }
    network = Network.of("resnext", EVEN, weights=weights)
    for layers in (network.record(port), {"last": network.record(port)["last"]}):
        cause = network.judge(layers).cause
        assert "Likely cause: padding SAME" in cause if port == SAME else cause == verify.UNKNOWN


def test_one_wrong_image_of_several_is_not_explained_by_the_trap_it_looks_like(even: Network) -> None:
    layers = even.record()
    for name, array in even.record(SAME).items():
        layers[name][1] = array[1]
    cause = even.judge(layers).cause
    assert cause.startswith("Cause not recognised")
    assert "e-16" not in cause


def test_a_second_difference_after_the_first_is_said(even: Network) -> None:
    match = even.judge(even.record(replace(SAME, only=("b1",))))
    assert "Likely cause: padding SAME" in match.cause
    assert "; b3 is still off by" in match.cause


@contextmanager
def keras_in_float64() -> Iterator[Any]:
    from resnet_tf.layers import keras, precision

    with precision("float64"):
        yield keras


def keras_port(network: Network, epsilon: dict[str, float]) -> dict[str, NDArray]:
    """Layers as the chapter's TensorFlow tab has them: "same", and Keras' own epsilon unless one is given."""
    with keras_in_float64() as keras:
        layers, w = keras.layers, network.weights

        def conv(name: str, x: Any, stride: int = 1) -> Any:
            weight = w[f"{name}.weight"].transpose(2, 3, 1, 0)
            groups = x.shape[-1] // weight.shape[2]
            layer = layers.Conv2D(weight.shape[3], weight.shape[0], stride, padding="same", groups=groups)
            layer.build(x.shape)
            layer.set_weights([weight, w[f"{name}.bias"]])
            return layer(x)

        def norm(name: str, x: Any) -> Any:
            layer = layers.BatchNormalization(**epsilon)
            layer.build(x.shape)
            parts = ("weight", "bias", "running_mean", "running_var")
            layer.set_weights([w[f"{name}.{part}"] for part in parts])
            return layer(x, training=False)

        def pool(x: Any) -> Any:
            return layers.MaxPooling2D(3, 2, padding="same")(x)

        x = keras.ops.convert_to_tensor(network.x.transpose(0, 2, 3, 1))
        outputs = chain(network.arch, x, conv, norm, pool, keras.ops.relu)
        pooled = np.mean(outputs[-1], axis=(1, 2))
        return dict(zip(LAYERS, [*map(np.asarray, outputs), dense(network, pooled)], strict=True))


def torch_port(network: Network, epsilon: dict[str, float]) -> dict[str, NDArray]:
    """Functional PyTorch, in training mode or with another epsilon."""
    import torch
    from torch.nn import functional as F

    w = {name: torch.from_numpy(array) for name, array in network.weights.items()}

    def conv(name: str, x: Any, stride: int = 1) -> Any:
        weight = w[f"{name}.weight"]
        groups, padding = x.shape[1] // weight.shape[1], weight.shape[2] // 2
        return F.conv2d(x, weight, w[f"{name}.bias"], stride, padding, groups=groups)

    def norm(name: str, x: Any) -> Any:
        weight, bias = w[f"{name}.weight"], w[f"{name}.bias"]
        mean, var = w[f"{name}.running_mean"], w[f"{name}.running_var"]
        if epsilon:
            return F.batch_norm(x, mean, var, weight, bias, False, 0.1, **epsilon)
        return F.batch_norm(x, None, None, weight, bias, True)

    def pool(x: Any) -> Any:
        return F.max_pool2d(x, 3, 2, 1)

    outputs = chain(network.arch, torch.from_numpy(network.x), conv, norm, pool, F.relu)
    arrays = [output.numpy() for output in outputs]
    return dict(zip(LAYERS, [*arrays, dense(network, arrays[-1].mean((2, 3)))], strict=True))


def flax_port(network: Network, epsilon: dict[str, float]) -> dict[str, NDArray]:
    """Flax layers with their default padding, SAME, and max-pool told the same; in float32, as JAX is."""
    from flax import linen as nn

    w = to_float32(network.weights)

    def conv(name: str, x: Any, stride: int = 1) -> Any:
        weight = w[f"{name}.weight"].transpose(2, 3, 1, 0)
        groups = x.shape[-1] // weight.shape[2]
        layer = nn.Conv(weight.shape[3], weight.shape[:2], stride, feature_group_count=groups)
        return layer.apply({"params": {"kernel": weight, "bias": w[f"{name}.bias"]}}, x)

    def norm(name: str, x: Any) -> Any:
        layer = nn.BatchNorm(use_running_average=True, **epsilon)
        params = {"scale": w[f"{name}.weight"], "bias": w[f"{name}.bias"]}
        statistics = {"mean": w[f"{name}.running_mean"], "var": w[f"{name}.running_var"]}
        return layer.apply({"params": params, "batch_stats": statistics}, x)

    def pool(x: Any) -> Any:
        return nn.max_pool(x, (3, 3), (2, 2), "SAME")

    x = network.x.transpose(0, 2, 3, 1).astype(np.float32)
    outputs = chain(network.arch, x, conv, norm, pool, nn.relu)
    arrays = [np.asarray(output) for output in outputs]
    logits = dense(network, arrays[-1].mean((1, 2))).astype(np.float32)
    return dict(zip(LAYERS, [*arrays, logits], strict=True))


def chain(
    arch: Architecture, x: Any, conv: Callable, norm: Callable, pool: Callable, relu: Callable
) -> list[Any]:
    """The network of these operations; the outputs of b1, b2 and b3."""
    outputs = [pool(relu(norm("b1.bn", conv("b1.conv", x, 2))))]
    for stage in arch.blocks():
        x = outputs[-1]
        for block in stage:
            name, s = block.name, block.strides
            if block.groups is None:
                y = norm(
                    f"{name}.bn2",
                    conv(f"{name}.conv2", relu(norm(f"{name}.bn1", conv(f"{name}.conv1", x, s)))),
                )
                x = conv(f"{name}.conv3", x, s) if block.use_1x1conv else x
            else:
                y = relu(norm(f"{name}.bn1", conv(f"{name}.conv1", x)))
                y = relu(norm(f"{name}.bn2", conv(f"{name}.conv2", y, s)))
                y = norm(f"{name}.bn3", conv(f"{name}.conv3", y))
                x = norm(f"{name}.bn4", conv(f"{name}.conv4", x, s)) if block.use_1x1conv else x
            x = relu(y + x)
        outputs.append(x)
    return outputs


def dense(network: Network, pooled: NDArray) -> NDArray:
    return pooled @ network.weights["last.weight"].T + network.weights["last.bias"]


PORTS = {"tf": keras_port, "torch": torch_port, "jax": flax_port}
# With the framework's own defaults, and with the chapter's epsilon.
SAID = {
    "tf": ("padding SAME in convolutions and max-pool|; and |epsilon 1e-3", "padding SAME"),
    "torch": ("batch statistics in batch norm (training mode", ""),
    "jax": ("padding SAME in convolutions and max-pool", "padding SAME"),
}


def test_ports_in_the_frameworks_own_layers(even: Network, backend: str) -> None:
    if backend not in PORTS:
        pytest.skip(f"{backend} pads as it is told, and its defaults are ours")
    for epsilon, words in zip(({}, {"epsilon": 1e-5}), SAID[backend], strict=True):
        if backend == "torch":
            epsilon = {"eps": 1e-5} if epsilon else {}
        match = even.judge(PORTS[backend](even, epsilon))
        assert match.agrees == (not words)
        for word in words.split("|"):
            assert word in match.cause
        if words:
            assert match.cause.startswith("Likely cause"), match
            assert "and so are the later layers" in match.cause


class Here:
    """Shares whose processes are this one, so that a test can break what they do."""

    count = 1

    def __init__(self, most: int) -> None: ...

    @contextmanager
    def process(self) -> Iterator["Here"]:
        yield self

    def run(self, function: Callable, *args: Any) -> Any:
        return function(*args)


def test_a_broken_backend_is_named_with_its_first_layer(
    even: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str, *_: Any) -> dict[str, NDArray]:
        if name == "mxnet":
            raise RuntimeError("out of memory")
        outputs = {layer: array.copy() for layer, array in even.computed.items()}
        if name == "jax":
            outputs["b3"][0, 0, 0, 0] += 1e-3
            outputs["last"][0] += 1
        return outputs

    monkeypatch.setattr(verify, "Shares", Here)
    monkeypatch.setattr(verify, "activations", broken)
    names = ["mxnet", "torch", "tf", "jax"]
    found = verify.verify(even.expected, names, "float64", "cpu")
    assert not found.agree
    assert found.failures == {"mxnet": "RuntimeError: out of memory"}
    lines = [line for line in found.differences if line.startswith("jax in float64: First layer that")]
    assert len(lines) == 1
    assert "b3, by " in lines[0]
    assert "(b2 just before: 0.0e+00)" in lines[0]
    assert any(line.startswith("torch–jax ") for line in found.differences)
    assert not any("torch–tf" in line or line.startswith(("torch in", "tf in")) for line in found.differences)


# The command.


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, images, and recordings good and bad."""
    folder = tmp_path_factory.mktemp("verify")
    network = Network.of("residual", EVEN)
    right, x = network.record(), network.x
    wrong = network.record(SAME)
    save_checkpoint(folder / "net.safetensors", network.arch, network.weights)
    whole = (folder / "net.safetensors").read_bytes()
    (folder / "damaged.safetensors").write_bytes(whole[:-8])
    np.save(folder / "x.npy", x)
    np.save(folder / "bytes.npy", (255 * x).astype(np.uint8))
    np.save(folder / "nan.npy", x * np.nan)
    np.save(folder / "channels.npy", x[:, :1])
    np.savez(folder / "right.npz", x=x, **right)
    np.savez(folder / "wrong.npz", x=x, **wrong)
    np.savez(folder / "without_x.npz", y=x, **right)
    (folder / "text.npz").write_text("not an archive")
    (folder / "damaged.npz").write_bytes((folder / "right.npz").read_bytes()[:-100])
    np.savez(folder / "pickle.npz", b1=np.array([{"a": 1}], dtype=object))
    np.savez(folder / "unknown.npz", layer1=right["b1"])
    np.savez(folder / "shape.npz", b1=right["b1"][:, :, :-1], x=x)
    np.savez(folder / "count.npz", last=right["last"][:2])
    np.savez(folder / "nan.npz", b1=right["b1"] * np.nan)
    np.savez(folder / "whole_numbers.npz", last=right["last"].astype(int))
    np.savez(folder / "grey.npz", x=x[:, :1], **right)
    np.savez(folder / "small.npz", x=x[:, :, :4, :4], **right)
    np.savez(folder / "x_only.npz", x=x)
    with zipfile.ZipFile(folder / "other.npz", "w") as archive:
        archive.writestr("b1", b"raw bytes")
    packed = io.BytesIO()
    np.savez_compressed(packed, b1=right["b1"])
    (folder / "altered.npz").write_bytes(packed.getvalue()[:300] + b"altered" + packed.getvalue()[307:])
    return folder


@pytest.fixture
def command(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """The command in this process: exit code, output with single spaces, and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        argv = ["resnet-tabs", "verify", *[str(argument).replace("{}", str(files)) for argument in arguments]]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as stop:
            cli.main()
        said = capsys.readouterr()
        return int(stop.value.code or 0), " ".join(said.out.split()), said.err

    return run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("{}/no.safetensors", ["not found"]),
        ("{}/damaged.safetensors", ["not a complete safetensors file"]),
        ("{}/net.safetensors --backends tourch", ["unknown backend 'tourch'", "did you mean torch?"]),
        ("{}/net.safetensors --against {}/right.npz --backends x", ["unknown backend 'x'"]),
        ("{}/net.safetensors --input-shape 3x48x48", ["malformed input shape '3x48x48'"]),
        ("{}/net.safetensors --input-shape 1,48,48", ["1 channels but the network takes 3"]),
        ("{}/net.safetensors --input-shape 3,2,48", ["too small"]),
        ("{}/net.safetensors --precision float16", ["unknown precision 'float16'", "float64"]),
        ("{}/net.safetensors --device tpu", ["unknown device 'tpu'"]),
        ("{}/net.safetensors --images {}/no.npy", ["no.npy not found"]),
        ("{}/net.safetensors --images {}/right.npz", ["is not an array"]),
        ("{}/net.safetensors --images {}/bytes.npy", ["floating point numbers"]),
        ("{}/net.safetensors --images {}/nan.npy", ["NaN or infinite"]),
        ("{}/net.safetensors --images {}/channels.npy", ["1 channels but the network takes 3"]),
        ("{}/net.safetensors --images {}/x.npy --input-shape 3,48,48", ["leave out --input-shape"]),
        ("{}/net.safetensors --against {}/no.npz", ["no.npz not found"]),
        ("{}/net.safetensors --against {}", ["not found"]),
        ("{}/net.safetensors --against {}/text.npz", ["text.npz is not a .npz file", "numpy.savez"]),
        ("{}/net.safetensors --against {}/x.npy", ["x.npy is not a .npz file"]),
        ("{}/net.safetensors --against {}/damaged.npz", ["damaged.npz is not a .npz file"]),
        ("{}/net.safetensors --against {}/altered.npz", ["cannot be read: b1 is damaged"]),
        ("{}/net.safetensors --against {}/pickle.npz", ["b1", "Python objects, which are never unpickled"]),
        ("{}/net.safetensors --against {}/other.npz", ["b1 is damaged"]),
        ("{}/net.safetensors --against {}/unknown.npz", ["none of b1, b2, b3, last", "it has 'layer1'"]),
        ("{}/net.safetensors --against {}/x_only.npz", ["none of b1, b2, b3, last", "it has 'x'"]),
        (
            "{}/net.safetensors --against {}/shape.npz",
            ["b1 is (3, 6, 11, 12), expected (3, 6, 12, 12)", "(3, 864)", "3 images from x in"],
        ),
        (
            "{}/net.safetensors --against {}/count.npz --input-shape 3,33,33",
            ["last is (2, 8), expected (8, 8) on 8 images from the shipped sample", "--images"],
        ),
        ("{}/net.safetensors --against {}/nan.npz", ["b1 in", "NaN or infinite"]),
        ("{}/net.safetensors --against {}/whole_numbers.npz", ["last in", "floating point"]),
        ("{}/net.safetensors --against {}/grey.npz", ["x in", "1 channels but the network takes 3"]),
        ("{}/net.safetensors --against {}/small.npz", ["x in", "too small"]),
        ("{}/net.safetensors --against {}/right.npz --images {}/x.npy", ["has its own images, x"]),
        ("{}/net.safetensors --against {}/right.npz --input-shape 3,48,48", ["has its own images, x"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    command: Callable[..., tuple[int, str, str]], arguments: str, words: list[str]
) -> None:
    code, _, errors = command(*arguments.split())
    assert code == 2
    assert errors.count("\n") == 1, errors
    for word in words:
        assert word in errors


def test_pickles_are_never_executed(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "executed",))

    np.savez(tmp_path / "trap.npz", b1=np.array([Trap()], dtype=object))
    with pytest.raises(BadInput) as error:
        read_recording(tmp_path / "trap.npz", RESIDUAL)
    one_line(error, "never unpickled")
    assert not (tmp_path / "executed").exists()


def test_a_recording_that_agrees_exits_with_0(command: Callable[..., tuple[int, str, str]]) -> None:
    code, said, errors = command("{}/net.safetensors", "--against", "{}/right.npz")
    assert (code, errors) == (0, "")
    assert "SAME: the recording and the oracle are one network, to the last digits of float64" in said
    assert "Backends" not in said


def test_a_recording_that_differs_exits_with_1_and_says_why(
    command: Callable[..., tuple[int, str, str]],
) -> None:
    code, said, errors = command("{}/net.safetensors", "--against", "{}/wrong.npz")
    assert (code, errors) == (1, "")
    assert "DIFFERENT: First layer that differs: b1" in said
    assert "Likely cause: padding SAME in convolutions and max-pool" in said


def test_images_beside_the_recording(command: Callable[..., tuple[int, str, str]]) -> None:
    images = ["--images", "{}/x.npy"]
    code, said, _ = command("{}/net.safetensors", "--against", "{}/without_x.npz", *images)
    assert code == 0
    assert "Not compared: 'y'" in said


@pytest.mark.deep
def test_the_backends_under_test_agree(
    command: Callable[..., tuple[int, str, str]], backends: list[str]
) -> None:
    names = ",".join(backends)
    code, said, errors = command("{}/net.safetensors", "--backends", names, "--input-shape", "3,33,47")
    assert (code, errors) == (0, "")
    assert "3×33×47 from the shipped sample" in said
    assert "SAME: " in said
    assert "to the last digits of float64" in said


def test_backends_and_a_recording_in_float32(
    command: Callable[..., tuple[int, str, str]], backends: list[str]
) -> None:
    options = ["--backends", backends[0], "--precision", "float32", "--against", "{}/wrong.npz"]
    code, said, errors = command("{}/net.safetensors", *options)
    assert (code, errors) == (1, "")
    assert "SAME: " in said
    assert "to the last digits of float32" in said
    assert "DIFFERENT: First layer that differs: b1" in said


def test_a_backend_that_is_missing_is_a_row_and_no_pass(
    command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, entry in BACKENDS.items():
        monkeypatch.setitem(BACKENDS, name, replace(entry, packages=("no_such_framework",)))
    code, said, _ = command("{}/net.safetensors", "--images", "{}/x.npy")
    assert code == 1
    for name in BACKENDS:
        assert f'pip install "resnet-tabs[{name}]"' in said
    assert "NOT PROVEN" in said
    code, _, errors = command("{}/net.safetensors", "--backends", "jax")
    assert code == 2
    assert "'jax' is not installed; run: pip install" in errors


def test_a_recording_needs_no_framework(files: Path) -> None:
    script = (
        "import sys; from common import cli\n"
        f"folder = {str(files)!r}\n"
        "sys.argv = ['', 'verify', f'{folder}/net.safetensors', '--against', f'{folder}/wrong.npz']\n"
        "try: cli.main()\n"
        "except SystemExit as stop: assert stop.code == 1, stop.code\n"
        "names = {'torch', 'tensorflow', 'keras', 'jax', 'flax', 'mxnet', 'matplotlib'}\n"
        "sys.exit(','.join(names & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
