"""Other people's networks to ours and ours to theirs: the same function under other names."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.architecture import CONVENTIONS, ZOO, Architecture, Shape, architecture, unknown
from common.data import CLASSES
from common.errors import BadInput
from common.interop.configs import Said
from common.interop.families import FAMILIES, Family, Place
from common.interop.prepared import by_default, of_published, usual_classes
from common.reading import brief, shown, some
from common.summary import KINDS
from common.weights import Weights, check_tensors, initial_weights, load_metadata

# What tensors do not show.
UNSEEN = (
    "ReLU, a 3×3 max-pool after the stem, stride 2 from the second stage on, a global average pool, "
    "no anti-aliasing"
)
OF_IMAGES = ("preparation", "classes")  # in a checkpoint's metadata
NOTHING_SAID = Said()

AVERAGED = re.compile("ema|averag|swa", re.IGNORECASE)  # what weights over many steps are called

EXPORTED = re.compile(r"_stage\d+_conv\d+_weight$")  # of Gluon's zoo by `export` and `collect_params().save`
COUNTER = "num_batches_tracked"  # of a running statistic, in PyTorch: no part of the network
COUNTED = ("total_ops", "total_params")  # what thop leaves in a network that it has looked at

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
        said: what was done to a family's names and last layer, in lines.
        source: a family's tensors, by its own names.
        has_new_head: whether the last layer was drawn, because there was none.
    """

    family: str
    arch: Architecture
    tensors: Weights
    inference_only: str = ""
    rounded: str = ""
    others: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    source: Weights = field(default_factory=dict)
    has_new_head: bool = False


@dataclass(frozen=True)
class Images:
    """What is known of a network's images.

    Attributes:
        metadata: what a checkpoint keeps of it: "preparation" and "classes", as far as they are known.
        assumed: what of it is taken for granted.
        lines: how images are prepared, and what is not kept.
    """

    metadata: Mapping[str, str]
    assumed: tuple[str, ...]
    lines: tuple[str, ...]


def images_of(found: Converted, said: Said, path: Path) -> Images:
    """How a family's network, from this file or folder, wants its images, and what it calls their classes."""
    arch, metadata, assumed, lines = found.arch, {}, [], []
    made, whose = None, f"as {found.family}'s own weights take them"
    if arch.in_channels not in (1, 3):
        lines = [f"images: arrays, because image files do not have {arch.in_channels} channels"]
    elif said.prepare:
        try:
            made, whose = said.prepare(arch.in_channels), "as its folder says"
        except BadInput as error:
            lines = [f"how images are prepared is not kept, because it is none of our ways: {error}"]
    elif found.family == "torchvision" and (made := of_published(path)):
        whose = "as torchvision published these weights"
    elif made := by_default(found.family, arch):
        assumed.append(f"images prepared {whose}")
    else:
        lines = ["images: nothing says how they are prepared"]
    if made:
        metadata["preparation"] = made.to_json()
        lines.append(f"images, {whose}: {made}")
    if len(said.classes) == arch.num_classes:
        metadata["classes"] = json.dumps(said.classes)
    else:
        if said.classes:
            lines.append(f"names of {len(said.classes)} classes are not kept: it has {arch.num_classes}")
        if usual := usual_classes(found.family, arch):
            metadata["classes"] = json.dumps(usual)
            assumed.append(f"classes named as {'Fashion-MNIST' if usual == CLASSES else 'ImageNet'}'s")
    return Images(metadata, tuple(assumed), tuple(lines))


def from_family(
    tensors: Mapping[str, NDArray],
    family: str = "auto",
    said: Said = NOTHING_SAID,
    num_classes: int | None = None,
    key: str | None = None,
) -> Converted:
    """Our weights, and the architecture that the tensors show, of a checkpoint of one of `FAMILIES`.

    A convolution of theirs without a bias has one of 0 here.

    Args:
        tensors: name to array, as the family names and lays them out. There may be more before each name, as
            "module." of a network that was trained on several GPUs, and other tensors beside the network's;
            the last layer may be called otherwise, have no bias, or not be there.
        family: one of `FAMILIES`, or "auto": the first that the names fit.
        said: what a config.json says of the model.
        num_classes: of a new last layer, drawn from seed 0, where there is none.
        key: what the network's names begin with, where there are several networks: "state_dict_ema".

    Raises:
        ValueError: if the family is unknown or another, or a tensor is missing, extra or of the wrong kind.
    """
    if family not in ("auto", *FAMILIES):
        raise BadInput(unknown("family", family, ["auto", *FAMILIES]))
    tensors = {name: array for name, array in tensors.items() if not name.endswith(COUNTER)}
    if "b1.conv.weight" in tensors:
        raise BadInput("it is one of this project already; give --to and the family it shall become")
    places = _places(tensors, key)
    fitting = [name for name, found in places.items() if found]
    if not fitting and any(EXPORTED.search(name) for name in tensors):
        raise BadInput("its names are those of Gluon's export; save it with net.save_parameters instead")
    if not fitting:
        what = "it is no ResNet" if key is None else f"under {brief(key)} is no ResNet"
        raise BadInput(f"{what} of {', '.join(FAMILIES)}; it holds {some(list(tensors)) or 'no tensors'}")
    if family not in ("auto", *fitting):
        raise BadInput(f"it is not named as {family} names; give --from {fitting[0]}, or leave --from out")
    if family == "auto":
        family = next((name for name in said.families if name in fitting), fitting[0])
    said = said.of(family)

    theirs = FAMILIES[family]
    tensors, lines, left_out = _taken(theirs, places[family], tensors)
    try:
        known = {name: value for name, value in said.axes.items() if name in (theirs.config or ())}
        arch = _detect(theirs, tensors, known, num_classes)
        has_new_head = _last_layer(theirs, len(arch.stages), tensors) is None
        tensors, head = _with_whole_last_layer(theirs, arch, tensors)
        lines += head
        lines += [f"left out: {some(left_out)}"] if left_out else []
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
    others = tuple(name for name in fitting if name != family)
    return Converted(
        family,
        arch,
        weights,
        others=others,
        said=tuple(lines),
        source=checked,
        has_new_head=has_new_head,
    )


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
        raise BadInput(unknown("family to convert to", family, [*FAMILIES, "onnx"]))
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


def carried(source: Path) -> dict[str, str]:
    """What a checkpoint of ours says of images and classes, which holds for another file of it, too."""
    return {name: text for name, text in load_metadata(source).items() if name in OF_IMAGES}


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
        family = FAMILIES.get(converted.family)  # a file of ONNX is of none
        theirs = family.axes(ours.block == "residual") if family else {}
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


def _places(tensors: Weights, key: str | None) -> dict[str, list[tuple[str, str]]]:
    """By family, what to take off names, and put before them, to have its own: of each network there is."""
    places = {name: list(family.beginnings(tensors)) for name, family in FAMILIES.items()}
    if key is not None:
        under = re.compile(rf"{re.escape(key.rstrip('./'))}[./]")
        places = {name: [at for at in found if under.match(at[0])] for name, found in places.items()}
    # The first convolution of a block may be called as that of a network is, of another family too.
    tops = {begins for found in places.values() for begins, _ in found}

    def is_within(begins: str) -> bool:
        above = ("", *(begins[: mark.end()] for mark in re.finditer("[./]", begins)))
        return any(top in tops for top in above if top != begins)

    return {name: [at for at in found if not is_within(at[0])] for name, found in places.items()}


def _taken(
    family: Family, places: list[tuple[str, str]], tensors: Weights
) -> tuple[Weights, list[str], list[str]]:
    """The tensors of one network by its family's names; lines that say what was done; what is left out.

    An average of the weights is taken only where there is nothing else.
    """
    places = [at for at in places if not AVERAGED.search(at[0])] or places
    if len(places) > 1:
        places = [at for at in places if _has_blocks(family, at, tensors)]
    if not places:
        raise BadInput("its layers have no known names, as in a list of layers; save the whole network")
    if len(places) > 1:
        raise BadInput(f"it has several networks, {some([at for at, _ in places])}; choose one with --key")
    ((taken_off, put_before),) = places
    own = {name for name in tensors if name.startswith(taken_off) and not name.endswith(COUNTED)}
    taken = {put_before + name.removeprefix(taken_off): tensors[name] for name in tensors if name in own}
    others = [name for name in tensors if name not in own]
    if before := _before(taken_off, others):
        raise BadInput(
            f"in its network {some(before)} come before the ResNet, which this project's have not; "
            "save the ResNet alone"
        )
    head = _head_beside(family, taken, {name: tensors[name] for name in others})
    lines = [f"the weights are those under {shown(taken_off.rstrip('./'), 100)}"] if taken_off else []
    return taken | head, lines, [name for name in others if name not in head]


def _has_blocks(family: Family, at: tuple[str, str], tensors: Weights) -> bool:
    """Whether there is a first block under these names: a block's own layers may be called as a stem is."""
    ends = f"{family.words.separator}{family.words.weight}"
    firsts = (family.pair(Place(basic=basic))[0] for basic in (True, False))
    return any(f"{at[0]}{first.removeprefix(at[1])}{ends}" in tensors for first in firsts)


def _before(begins: str, others: list[str]) -> list[str]:
    """Which of other tensors are of layers before this one in an `nn.Sequential`."""
    found = re.fullmatch(r"(.*?)(\d+)\.", begins)
    if not found:
        return []
    above, number = found[1], int(found[2])
    return [
        name
        for name in others
        if (at := re.match(rf"{re.escape(above)}(\d+)\.", name)) and int(at[1]) < number
    ]


def _head_beside(family: Family, tensors: Weights, others: Weights) -> Weights:
    """The only dense layer beside a network that has none, by its own names: people put one behind."""
    separator, kernel = family.words.separator, f"{family.words.separator}{family.words.weight}"

    def dense(among: Weights) -> list[str]:
        return [name for name, array in among.items() if name.endswith(kernel) and np.ndim(array) == 2]

    found = [name for name in dense(others) if not AVERAGED.search(name)]
    if dense(tensors) or len(found) != 1:
        return {}
    bias = f"{found[0].removesuffix(kernel)}{separator}bias"
    return {name: others[name] for name in (found[0], bias) if name in others}


def _last_layer(family: Family, stages: int, tensors: Weights) -> str | None:
    """Which layer is the last: that of the usual name, or else the only dense one; None if there is none."""
    kernel = f"{family.words.separator}{family.words.weight}"
    usual = family.last(stages)
    if usual + kernel in tensors:
        return usual
    dense = [name.removesuffix(kernel) for name, array in tensors.items() if np.ndim(array) == 2]
    if len(dense) > 1:
        raise BadInput(f"it has several dense layers ({some(dense)}), and this network has one")
    return dense[0] if dense else None


def _with_whole_last_layer(family: Family, arch: Architecture, tensors: Weights) -> tuple[Weights, list[str]]:
    """The tensors, the last layer under its usual name and with a bias; and a line if it is not as usual."""
    separator, usual = family.words.separator, family.last(len(arch.stages))
    weight, bias = f"{usual}{separator}{family.words.weight}", f"{usual}{separator}bias"
    own, said = _last_layer(family, len(arch.stages), tensors), []
    if own is None:
        drawn = initial_weights(arch)["last.weight"].astype(tensors[family.stem_tensors()[0]].dtype)
        tensors = tensors | {weight: family.to_theirs(drawn)}
        said = [f"it has no last layer: a new one of {arch.num_classes} classes is drawn"]
    elif own != usual:
        begins = own + separator
        tensors = {
            usual + name.removeprefix(own) if name.startswith(begins) else name: array
            for name, array in tensors.items()
        }
        said = [f"the last layer is its {shown(own, 100)}"]
    if bias not in tensors:
        tensors = tensors | {bias: np.zeros(arch.num_classes, tensors[weight].dtype)}
        said = said or ["the last layer has no bias: here it has one of 0"]
    return tensors, said


def _detect(
    family: Family, tensors: Weights, axes: Mapping[str, Any], num_classes: int | None
) -> Architecture:
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
    if last := _last_layer(family, len(depths), tensors):
        num_classes = shape(last, 2)[0]
    if num_classes is None:
        raise BadInput("it has no last layer; give --num-classes, and a new one is drawn")
    return Architecture(
        stages=tuple(zip(depths, channels, strict=True)),
        stem_channels=stem[0],
        in_channels=stem[1],
        num_classes=num_classes,
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
