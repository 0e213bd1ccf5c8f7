"""Other people's networks to ours and ours to theirs: the same function under other names."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.architecture import CONVENTIONS, ZOO, Architecture, Shape, architecture, unknown
from common.errors import BadInput
from common.interop.families import FAMILIES, Family, Place
from common.reading import brief, read_json, some
from common.summary import KINDS
from common.weights import Weights, check_tensors

UNSEEN = "ReLU, a 3×3 max-pool after the stem, stride 2 from the second stage on, no anti-aliasing"

NO_NORM = (
    "the shortcuts' batch norms are identities on the running statistics, because Residual has none; "
    "in training the two networks differ"
)


@dataclass(frozen=True)
class Converted:
    """A network under other names.

    Attributes:
        family: whose names were read or are written.
        arch: the network.
        tensors: name to array; ours where a family's were read, theirs where ours were.
        inference_only: why the two networks agree in inference only; empty where they do in training, too.
        rounded: what was computed, to rounding, that changes neither; empty where nothing was.
        others: families whose names are the same.
    """

    family: str
    arch: Architecture
    tensors: Weights
    inference_only: str = ""
    rounded: str = ""
    others: tuple[str, ...] = ()


def from_family(
    tensors: Mapping[str, NDArray], family: str = "auto", axes: Mapping[str, Any] | None = None
) -> Converted:
    """Our weights, and the architecture that the tensors show, of a checkpoint of one of `FAMILIES`.

    A convolution of theirs without a bias has one of 0 here.

    Args:
        tensors: name to array, as the family names and lays them out.
        family: one of `FAMILIES`, or "auto": the first that the names fit.
        axes: of the `Architecture`, what a config.json says, where the family has one.

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
        raise BadInput("it is one of this project already; give --to and the family it shall become")
    fitting = [
        name for name, each in FAMILIES.items() if all(stem in tensors for stem in each.stem_tensors())
    ]
    if not fitting:
        raise BadInput(
            f"it is no ResNet of {', '.join(FAMILIES)}; it holds {some(list(tensors)) or 'nothing'}"
        )
    if family not in ("auto", *fitting):
        raise BadInput(f"it is not named as {family} names; give --from {fitting[0]}, or leave --from out")
    family = fitting[0] if family == "auto" else family

    theirs = FAMILIES[family]
    try:
        if theirs.any_head:
            tensors = _with_usual_head(theirs, tensors)
        said = {name: value for name, value in (axes or {}).items() if name in (theirs.config or ())}
        arch = _detect(theirs, tensors, said)
        checked = check_tensors(theirs.shapes(arch), tensors)
    except BadInput as error:
        raise BadInput(f"it is no plain ResNet or ResNeXt of {family}: {error}") from None

    names = theirs.names(arch)
    weights: Weights = {}
    for name, shape in arch.parameter_shapes().items():
        if name in names:
            weights[name] = theirs.to_ours(checked[names[name]])
        else:
            weights[name] = np.zeros(shape, weights[name.replace("bias", "weight")].dtype)
    return Converted(family, arch, weights, others=tuple(name for name in fitting if name != family))


def to_family(arch: Architecture, weights: Weights, family: str) -> Converted:
    """The tensors of one of `FAMILIES`, as it names them and lays them out.

    Where a convolution of theirs has no bias, ours moves into the running mean of the batch norm after it,
    which leaves the network what it is, in training too; a bias of 0 leaves the mean as it is to the bit.
    The batch norm that the chapter's `Residual` lacks on its shortcut becomes one of mean 0 and variance
    1 − epsilon: with the epsilon it divides by 1, and comes back as it went.

    Raises:
        ValueError: if the family is unknown or has no such network.
    """
    if family not in FAMILIES:
        raise BadInput(unknown("family to convert to", family, list(FAMILIES)))
    theirs = FAMILIES[family]
    _check_has_such(family, theirs, arch)
    basic = arch.block == "residual"
    normed = dataclasses.replace(arch, shortcut_norm=theirs.axes(basic).get("shortcut_norm", False))
    names = theirs.names(normed)
    tensors: Weights = {}
    moved = identities = False
    for name, their_name in names.items():
        layer, kind = name.rsplit(".", 1)
        bias = layer.replace("bn", "conv") + ".bias"  # of the convolution before a batch norm
        if name not in weights:
            identities = True
            array = _identity(kind, weights[bias], arch.epsilon)
        elif kind == "running_mean" and bias not in names:
            moved = moved or bool(weights[bias].any())
            array = (weights[name] - weights[bias]).astype(weights[name].dtype)
        else:
            array = weights[name]
        tensors[their_name] = theirs.to_theirs(array)
    return Converted(
        family,
        arch,
        tensors,
        NO_NORM if identities else "",
        "the convolutions' biases are subtracted from the running means" if moved else "",
    )


def _identity(kind: str, bias: NDArray, epsilon: float) -> NDArray:
    """A tensor of a batch norm that adds the bias of the convolution before it, and does nothing else."""
    values = {"weight": 1.0, "running_mean": 0.0, "running_var": 1 - epsilon}
    return bias if kind == "bias" else np.full_like(bias, values[kind])


def _check_has_such(family: str, theirs: Family, arch: Architecture) -> None:
    """Raise `ValueError` unless the family has networks that compute what this one computes."""
    basic = arch.block == "residual"
    if basic and theirs.basic is None:
        raise BadInput(f"{family} has bottlenecks only")
    usual = Architecture(
        arch.stages, arch.block, **theirs.axes(basic), groups=arch.groups, bot_mul=arch.bot_mul
    )
    if arch.shortcut_norm and not usual.shortcut_norm:
        raise BadInput(f"{family} has no batch norm on the shortcuts, and this network has")
    said = theirs.config or ()
    if others := [
        name for name in CONVENTIONS if name not in said and getattr(arch, name) != getattr(usual, name)
    ]:
        ours, wanted = (
            ", ".join(f"{name} {getattr(each, name)}" for name in others) for each in (arch, usual)
        )
        raise BadInput(f"{family} computes with {wanted}, and this network with {ours}")
    quarters = all(
        block.groups is None or block.groups == block.bot_channels == block.num_channels // 4
        for stage in arch.blocks()
        for block in stage
    )
    if not (quarters or theirs.grouped):
        raise BadInput(f"{family} has bottlenecks of one group and a quarter of the channels only")


def check_network(
    converted: Converted, name: str | None, num_classes: int | None, in_channels: int | None
) -> None:
    """Raise `ValueError` unless the network is this one of the zoo, with these classes and input channels.

    A name means the family's own network of that name. What is None is not asked for.
    """
    found = converted.arch
    if name is not None:
        ours = architecture(name)
        theirs = FAMILIES[converted.family].axes(ours.block == "residual")
        if not (found.is_like(ours) or found.is_like(dataclasses.replace(ours, **theirs))):
            raise BadInput(f"it is not {name} but {describe(found)}")
    for what, count, wanted in (
        ("classes", found.num_classes, num_classes),
        ("input channels", found.in_channels, in_channels),
    ):
        if wanted not in (None, count):
            raise BadInput(f"it has {count} {what}, not {wanted}")


def describe(arch: Architecture) -> str:
    """The network in a few words: its name in the zoo, else its stages; and what is not as there."""
    plain = Architecture(arch.stages)
    own = [
        name
        for name in ("epsilon", "padding", "stem_padding", "decay")
        if getattr(arch, name) != getattr(plain, name)
    ]
    usual = dataclasses.replace(arch, **{name: getattr(plain, name) for name in own})
    name = next((name for name in ZOO if usual.is_like(architecture(name))), None)
    if name is None:
        groups = (
            f", groups of width {', '.join(map(str, arch.groups))}" if isinstance(arch.groups, tuple) else ""
        )
        stages = ", ".join(f"{count} × {channels}" for count, channels in arch.stages)
        norm = ", a batch norm on the shortcuts" if arch.shortcut_norm else ""
        stride = ", the stride on the first 1×1" if arch.stride_on == "1x1" else ""
        name = f"{KINDS[arch.block]} in stages of {stages} channels{groups}{norm}{stride}"
    name = ", ".join([name, *(f"{what} {getattr(arch, what)}" for what in own)])
    return f"{name}; {arch.in_channels} input channels, {arch.num_classes} classes"


def read_config(path: Path) -> dict[str, Any]:
    """The axes that a config.json beside the file says; transformers and timm publish one.

    Raises:
        ValueError: if it is damaged, or names what no network of this project does.
    """
    config = path.with_name("config.json") if path.is_file() else path / "config.json"
    if not config.is_file():
        return {}
    try:
        said = read_json(config)
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{config} is not what a model's config.json is ({error}); mend it or take it away"
        ) from None
    served = {"hidden_act": "relu", "downsample_in_first_stage": False}
    others = [name for name, value in served.items() if said.get(name, value) != value]
    if str(said.get("architecture")).startswith(("resnetaa", "resnetblur")):  # timm's anti-aliased ones
        others.append("architecture")
    if others:
        found = ", ".join(f"{name} {brief(said[name])}" for name in others)
        raise BadInput(f"{config} says {found}, which the blocks of this project do not do")
    return {"stride_on": "1x1"} if said.get("downsample_in_bottleneck") is True else {}


def _with_usual_head(family: Family, tensors: Mapping[str, NDArray]) -> Mapping[str, NDArray]:
    """The tensors, the only dense layer among them under its usual name."""
    kernel = f"{family.words.separator}{family.words.weight}"
    heads = [name.removesuffix(kernel) for name, array in tensors.items() if np.ndim(array) == 2]
    if len(heads) != 1:
        return tensors
    usual = family.last(0)
    return {
        usual + name.removeprefix(heads[0])
        if name.startswith(heads[0] + family.words.separator)
        else name: array
        for name, array in tensors.items()
    }


def _detect(family: Family, tensors: Mapping[str, NDArray], axes: Mapping[str, Any]) -> Architecture:
    """The architecture whose stages, widths and groups the tensors show."""
    words = family.words

    def has(layer: str, kind: str = words.weight) -> bool:
        return f"{layer}{words.separator}{kind}" in tensors

    def shape(layer: str, dimensions: int = 4) -> Shape:
        name = f"{layer}{words.separator}{words.weight}"
        if name not in tensors:
            raise BadInput(f"missing: {name}")
        found = tensors[name]
        if found.ndim != dimensions:
            raise BadInput(f"wrong shape: {name} is {found.shape}, expected {dimensions} dimensions")
        return family.to_ours(found).shape

    def conv(at: Place) -> str:
        return family.pair(at)[0]

    basic = not has(family.pair(Place(conv=2, basic=False))[1], words.norm[0])
    place = partial(Place, basic=basic)
    if family.numbered:
        count = next(n for n in itertools.count() if not has(conv(place(number=n))))
        shortcut = 2 if basic else 3
        starts = [n for n in range(count) if n == 0 or has(conv(place(number=n, conv=shortcut)))]
        depths = [end - start for start, end in itertools.pairwise([*starts, count])]
    else:
        depths = []
        while has(conv(place(stage=len(depths)))):
            stage = len(depths)
            depths.append(next(j for j in itertools.count() if not has(conv(place(stage=stage, block=j)))))
    if not depths:
        raise BadInput(f"missing: {conv(place())}{words.separator}{words.weight}")
    firsts = [
        partial(place, stage=k, number=start)
        for k, start in enumerate(itertools.accumulate([0, *depths[:-1]]))
    ]
    channels = [shape(conv(first(conv=1 if basic else 2)))[0] for first in firsts]
    options: dict[str, Any] = {}
    if not basic:
        middle = [shape(conv(first(conv=1))) for first in firsts]
        options = {
            "block": "resnext",
            "groups": tuple(width for _, width, _, _ in middle),
            "bot_mul": _bot_mul(channels, [bot for bot, *_ in middle]),
        }
        options |= axes
    stem = shape(family.stem[0])
    return Architecture(
        stages=tuple(zip(depths, channels, strict=True)),
        stem_channels=stem[0],
        in_channels=stem[1],
        num_classes=shape(family.last(len(depths)), 2)[0],
        **{**family.axes(basic), **options},
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
