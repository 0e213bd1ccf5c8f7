"""Checkpoints of torchvision, timm and transformers to ours, and ours to theirs.

The networks are the same function under other names, but for two things. Their convolutions have no
bias: that is one of 0. And their basic block has a batch norm on its shortcut where the chapter's
`Residual` has none: with its running statistics it folds into the 1×1 convolution, for inference
(Jacob et al., "Quantization and Training of Neural Networks", 2018, section 3.2, equation 14).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.architecture import ZOO, Architecture, Shape, architecture, unknown
from common.backend import BACKENDS, load_backend
from common.errors import BadInput, MissingBackend, MissingFile
from common.oracle import EPSILON  # theirs is the same
from common.summary import KINDS
from common.weights import NUMPY_TYPES, Weights, check_tensors, open_safetensors, some

UNSEEN = (
    "ReLU, batch norm epsilon 1e-5, a 3×3 max-pool after the stem, stride 2 from the second stage on, "
    "a bottleneck's on its 3×3 convolution, no anti-aliasing"
)

FOLDED = (
    "the batch norms of the shortcuts are folded into their 1×1 convolutions, with the running statistics; "
    "in training the two networks differ"
)
NO_NORM = (
    "the shortcuts' batch norms are identities on the running statistics, because Residual has none; "
    "in training the two networks differ"
)


@dataclass(frozen=True)
class Names:
    """What a family calls its layers; stages and a block's convolutions count from `first`, blocks from 0."""

    first: int
    stem: tuple[str, str]
    block: str
    conv: str
    norm: str
    shortcut: tuple[str, str]
    last: str

    def layers(self, arch: Architecture) -> Iterator[tuple[str, str, Shape]]:
        """Our name, theirs, and the weight's shape, of every layer of theirs.

        A batch norm on the shortcut of a basic block is "b3.0.bn3", which `Residual` does not have.
        """
        yield "b1.conv", self.stem[0], (arch.stem_channels, arch.in_channels, 7, 7)
        yield "b1.bn", self.stem[1], (arch.stem_channels,)
        for k, stage in enumerate(arch.blocks(), self.first):
            for j, block in enumerate(stage):
                layers = block.layers()
                chain = 2 if block.groups is None else 3
                if block.groups is None and block.use_1x1conv:
                    layers.append(("bn3", (block.num_channels,)))
                for layer, shape in layers:
                    kind, i = layer[:-1], int(layer[-1])
                    if i > chain:
                        name = self.shortcut[kind == "bn"]
                    else:
                        name = (self.norm if kind == "bn" else self.conv).format(i - 1 + self.first)
                    yield f"{block.name}.{layer}", f"{self.block.format(k, j)}.{name}", shape
        yield "last", self.last, (arch.num_classes, arch.stages[-1][1])

    def shapes(self, arch: Architecture) -> dict[str, Shape]:
        """Their name to shape, of every tensor."""
        found = {}
        for _, theirs, shape in self.layers(arch):
            found[f"{theirs}.weight"] = shape
            if len(shape) < 4:
                found[f"{theirs}.bias"] = shape[:1]
            if len(shape) == 1:
                found[f"{theirs}.running_mean"] = found[f"{theirs}.running_var"] = shape
        return found


_TORCHVISION = Names(
    first=1,
    stem=("conv1", "bn1"),
    block="layer{}.{}",
    conv="conv{}",
    norm="bn{}",
    shortcut=("downsample.0", "downsample.1"),
    last="fc",
)
FAMILIES = {
    "torchvision": _TORCHVISION,
    "timm": _TORCHVISION,
    "transformers": Names(
        first=0,
        stem=("resnet.embedder.embedder.convolution", "resnet.embedder.embedder.normalization"),
        block="resnet.encoder.stages.{}.layers.{}",
        conv="layer.{}.convolution",
        norm="layer.{}.normalization",
        shortcut=("shortcut.convolution", "shortcut.normalization"),
        last="classifier.1",
    ),
}
TARGETS = ("torchvision", "transformers")  # timm reads torchvision's


@dataclass(frozen=True)
class Converted:
    """A network under other names.

    Attributes:
        family: whose names were read or are written.
        arch: the network.
        tensors: name to array; ours where a family's were read, theirs where ours were.
        inference_only: why the two networks agree in inference only; empty where they do in training, too.
        rounded: what was computed, to rounding, that changes neither; empty where nothing was.
    """

    family: str
    arch: Architecture
    tensors: Weights
    inference_only: str = ""
    rounded: str = ""


def read_tensors(path: Path) -> tuple[dict[str, NDArray], list[str]]:
    """Name to array of a .safetensors file or one that PyTorch wrote, and the names that were bfloat16.

    NumPy has no bfloat16; float32 holds it exactly. A pickle is read by PyTorch's weights-only loading,
    which runs no code.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, holds more than tensors or types NumPy lacks, or PyTorch is missing.
    """
    if not path.is_file():
        raise MissingFile(f"{path} not found; give a .safetensors, .pth, .pt or .bin file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    writer = next((backend for backend in BACKENDS.values() if path.suffix in backend.suffixes), None)
    if writer is None:
        raise BadInput(f"{path} is of no known kind; give a .safetensors, .pth, .pt or .bin file")
    try:
        return load_backend(writer.name).read_tensors(path)
    except MissingBackend as error:
        raise BadInput(f"{path} takes {writer.label} to read, or save it as .safetensors: {error}") from None


def _read_safetensors(path: Path) -> tuple[dict[str, NDArray], list[str]]:
    with open_safetensors(path) as file:
        types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        tensors = {name: file.get_tensor(name) for name, kind in types.items() if kind in NUMPY_TYPES}
    halves = [name for name, kind in types.items() if kind == "BF16"]
    if foreign := [f"{name} ({types[name]})" for name in types if name not in tensors and name not in halves]:
        raise BadInput(f"{path} is not of float16, bfloat16, float32 or float64: {some(foreign)}")
    if halves:
        with path.open("rb") as binary:
            length = int.from_bytes(binary.read(8), "little")
            header = json.loads(binary.read(length))
            for name in halves:
                begin, end = header[name]["data_offsets"]
                binary.seek(8 + length + begin)
                upper = np.frombuffer(binary.read(end - begin), "<u2")  # the upper half of a float32
                tensors[name] = (
                    (upper.astype(np.uint32) << 16).view(np.float32).reshape(header[name]["shape"])
                )
    return tensors, halves


def from_family(tensors: Mapping[str, NDArray], family: str = "auto") -> Converted:
    """Our weights, and the architecture that the tensors show, of a checkpoint of one of `FAMILIES`.

    Raises:
        ValueError: if the family is unknown or another, or a tensor is missing, extra or of the wrong kind.
    """
    if family not in ("auto", *FAMILIES):
        raise BadInput(unknown("family", family, ["auto", *FAMILIES]))
    tensors = {  # how many batches a running statistic has seen is no part of the network
        name.removeprefix("module."): array  # of a network trained on several GPUs
        for name, array in tensors.items()
        if not name.endswith("num_batches_tracked")
    }
    if "b1.conv.weight" in tensors:
        raise BadInput("it is one of this project already; give --to torchvision or --to transformers")
    fitting = [name for name, names in FAMILIES.items() if f"{names.stem[0]}.weight" in tensors]
    if not fitting:
        raise BadInput(
            f"it is no ResNet of {', '.join(FAMILIES)}; it holds {some(list(tensors)) or 'nothing'}"
        )
    if family not in ("auto", *fitting):
        raise BadInput(f"it is not named as {family} names; give --from {fitting[0]}, or leave --from out")
    family = fitting[0] if family == "auto" else family

    names = FAMILIES[family]
    try:
        arch = _detect(names, tensors)
        checked = check_tensors(names.shapes(arch), tensors)
    except BadInput as error:
        raise BadInput(f"it is no plain ResNet or ResNeXt of {family}: {error}") from None

    weights: Weights = {}
    folds = False
    ours = arch.parameter_shapes()
    for layer, theirs, shape in names.layers(arch):
        if f"{layer}.weight" not in ours:
            folds = True
            conv = layer.replace("bn", "conv")
            weights[f"{conv}.weight"], weights[f"{conv}.bias"] = _fold(
                weights[f"{conv}.weight"],
                *(checked[f"{theirs}.{kind}"] for kind in ("weight", "bias", "running_mean", "running_var")),
            )
            continue
        for kind in ("weight", "bias", "running_mean", "running_var"):
            if f"{theirs}.{kind}" in checked:
                weights[f"{layer}.{kind}"] = checked[f"{theirs}.{kind}"]
        if len(shape) == 4:
            weights[f"{layer}.bias"] = np.zeros(shape[0], weights[f"{layer}.weight"].dtype)
    return Converted(family, arch, weights, FOLDED if folds else "")


def _fold(
    weight: NDArray, scale: NDArray, shift: NDArray, mean: NDArray, var: NDArray
) -> tuple[NDArray, NDArray]:
    """Weight (O, I, 1, 1) and bias (O,) of the convolution that a convolution and its batch norm are."""
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite then is refused as such
        factor = scale.astype(np.float64) / np.sqrt(var.astype(np.float64) + EPSILON)
        folded = weight * factor[:, None, None, None], shift - mean * factor
        return folded[0].astype(weight.dtype), folded[1].astype(weight.dtype)


def to_family(arch: Architecture, weights: Weights, family: str) -> Converted:
    """The tensors of one of `TARGETS`, named as it names them.

    A convolution's bias moves into the running mean of the batch norm after it, which leaves the network
    what it is, in training too; a bias of 0 leaves the mean as it is to the bit. The batch norm that
    `Residual` lacks on its shortcut becomes one of mean 0 and variance 1 − 1e-5: with the epsilon it
    divides by 1, and comes back as it went.

    Raises:
        ValueError: if the family is unknown or has no such network.
    """
    if family not in TARGETS:
        raise BadInput(unknown("family to convert to", family, TARGETS))
    if family == "transformers" and any(
        block.groups is not None and not block.groups == block.bot_channels == block.num_channels // 4
        for stage in arch.blocks()
        for block in stage
    ):
        raise BadInput(
            "transformers has bottlenecks of one group and a quarter of the channels only; "
            "give --to torchvision"
        )
    tensors: Weights = {}
    moved = identities = False
    for layer, theirs, shape in FAMILIES[family].layers(arch):
        conv = layer.replace("bn", "conv")
        if f"{layer}.weight" not in weights:
            identities = True
            bias = weights[f"{conv}.bias"]
            tensors[f"{theirs}.weight"] = np.ones_like(bias)
            tensors[f"{theirs}.bias"] = bias
            tensors[f"{theirs}.running_mean"] = np.zeros_like(bias)
            tensors[f"{theirs}.running_var"] = np.full_like(bias, 1 - EPSILON)
            continue
        tensors[f"{theirs}.weight"] = weights[f"{layer}.weight"]
        if len(shape) < 4:
            tensors[f"{theirs}.bias"] = weights[f"{layer}.bias"]
        if len(shape) == 1:
            mean, bias = weights[f"{layer}.running_mean"], weights[f"{conv}.bias"]
            moved = moved or bool(bias.any())
            tensors[f"{theirs}.running_mean"] = (mean - bias).astype(mean.dtype)
            tensors[f"{theirs}.running_var"] = weights[f"{layer}.running_var"]
    return Converted(
        family,
        arch,
        tensors,
        NO_NORM if identities else "",
        "the convolutions' biases are subtracted from the running means" if moved else "",
    )


def check_network(
    found: Architecture, name: str | None, num_classes: int | None, in_channels: int | None
) -> None:
    """Raise `ValueError` unless the network is this one of the zoo, with these classes and input channels.

    What is None is not asked for.
    """
    if name is not None and not found.is_like(architecture(name)):
        raise BadInput(f"it is not {name} but {describe(found)}")
    for what, count, wanted in (
        ("classes", found.num_classes, num_classes),
        ("input channels", found.in_channels, in_channels),
    ):
        if wanted not in (None, count):
            raise BadInput(f"it has {count} {what}, not {wanted}")


def describe(arch: Architecture) -> str:
    """The network in a few words: its name in the zoo if it has one, else its stages."""
    name = next((name for name in ZOO if arch.is_like(architecture(name))), None)
    if name is None:
        groups = (
            f", groups of width {', '.join(map(str, arch.groups))}" if isinstance(arch.groups, tuple) else ""
        )
        stages = ", ".join(f"{count} × {channels}" for count, channels in arch.stages)
        name = f"{KINDS[arch.block]} in stages of {stages} channels{groups}"
    return f"{name}; {arch.in_channels} input channels, {arch.num_classes} classes"


def check_config(path: Path) -> None:
    """Raise `ValueError` if a config.json beside the file names what tensors do not show and ours do not do.

    transformers and timm publish one beside every checkpoint.
    """
    config = path.with_name("config.json")
    if not config.is_file():
        return
    try:
        said = dict(json.loads(config.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise BadInput(
            f"{config} is not what a model's config.json is ({error}); mend it or take it away"
        ) from None
    served = {"hidden_act": "relu", "downsample_in_bottleneck": False, "downsample_in_first_stage": False}
    others = [name for name, value in served.items() if said.get(name, value) != value]
    if str(said.get("architecture")).startswith(("resnetaa", "resnetblur")):  # timm's anti-aliased ones
        others.append("architecture")
    if others:
        found = ", ".join(f"{name} {said[name]!r}" for name in others)
        raise BadInput(f"{config} says {found}, which the blocks of this project do not do")


def _detect(names: Names, tensors: Mapping[str, NDArray]) -> Architecture:
    """The architecture whose stages, widths and groups the tensors show."""

    def shape(name: str, dimensions: int = 4) -> Shape:
        if f"{name}.weight" not in tensors:
            raise BadInput(f"missing: {name}.weight")
        found = tensors[f"{name}.weight"].shape
        if len(found) != dimensions:
            raise BadInput(f"wrong shape: {name}.weight is {found}, expected {dimensions} dimensions")
        return found

    def depth(k: int) -> int:
        first = f"{names.conv.format(names.first)}.weight"
        return next(j for j in itertools.count() if f"{names.block.format(k, j)}.{first}" not in tensors)

    depths = list(itertools.takewhile(bool, map(depth, itertools.count(names.first))))

    def conv(stage: int, i: int) -> str:
        return f"{names.block.format(stage + names.first, 0)}.{names.conv.format(i - 1 + names.first)}"

    if not depths:
        raise BadInput(f"missing: {conv(0, 1)}.weight")
    bottleneck = f"{conv(0, 3)}.weight" in tensors
    channels = [shape(conv(stage, 3 if bottleneck else 2))[0] for stage in range(len(depths))]
    options: dict[str, Any] = {}
    if bottleneck:
        middle = [shape(conv(stage, 2)) for stage in range(len(depths))]
        options = {
            "block": "resnext",
            "groups": tuple(width for _, width, _, _ in middle),
            "bot_mul": _bot_mul(channels, [bot for bot, *_ in middle]),
        }
    stem = shape(names.stem[0])
    return Architecture(
        stages=tuple(zip(depths, channels, strict=True)),
        stem_channels=stem[0],
        in_channels=stem[1],
        num_classes=shape(names.last, 2)[0],
        **options,
    )


def _bot_mul(channels: list[int], bottlenecks: list[int]) -> float:
    """The share of the channels that rounds to these bottlenecks in every stage."""
    pairs = list(zip(channels, bottlenecks, strict=True))
    low = max((bottleneck - 0.5) / count for count, bottleneck in pairs)
    high = min((bottleneck + 0.5) / count for count, bottleneck in pairs)
    for share in (*(bottleneck / count for count, bottleneck in pairs), (low + high) / 2, low, high):
        if all(int(round(count * share)) == bottleneck for count, bottleneck in pairs):
            return share
    raise BadInput(
        f"bottlenecks of {bottlenecks} channels in stages of {channels} are not one share of them; "
        "an Architecture has one bot_mul"
    )
