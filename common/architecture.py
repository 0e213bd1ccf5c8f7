"""What a network is, as data: its stages, its blocks, and the names and shapes of its parameters.

Every package builds from this description, so the four networks cannot drift apart in shape.
He et al., "Deep Residual Learning for Image Recognition" (2015), section 3.3 and table 1;
Xie et al., "Aggregated Residual Transformations for Deep Neural Networks" (2016), section 3.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

from common.errors import BadInput
from common.reading import brief, parse_json, shown

Shape = tuple[int, ...]


def _basic(*depths: int) -> dict[str, Any]:
    """Stages of these depths of two 3×3 convolutions each (He et al. 2015, table 1)."""
    return {"stages": tuple(zip(depths, (64, 128, 256, 512), strict=True))}


def _bottleneck(*depths: int, bot_mul: float, width: int) -> dict[str, Any]:
    """Stages of these depths of bottlenecks; `width` is that of a group in the first stage, then it doubles.

    A ResNet's bottleneck is one group (He et al. 2015, table 1), a wide one's is twice as wide (Zagoruyko
    and Komodakis 2016); a ResNeXt named 32×4d has 32 groups of width 4 (Xie et al. 2016, table 1). The
    stride is on the 3×3 convolution, as in torchvision ("v1.5").
    """
    return {
        "stages": tuple(zip(depths, (256, 512, 1024, 2048), strict=True)),
        "block": "resnext",
        "groups": (width, 2 * width, 4 * width, 8 * width),
        "bot_mul": bot_mul,
    }


ZOO: dict[str, dict[str, Any]] = {
    "resnet18": _basic(2, 2, 2, 2),
    "resnet34": _basic(3, 4, 6, 3),
    "resnet50": _bottleneck(3, 4, 6, 3, bot_mul=0.25, width=64),
    "resnet101": _bottleneck(3, 4, 23, 3, bot_mul=0.25, width=64),
    "resnet152": _bottleneck(3, 8, 36, 3, bot_mul=0.25, width=64),
    "resnext50_32x4d": _bottleneck(3, 4, 6, 3, bot_mul=0.5, width=4),
    "resnext101_32x8d": _bottleneck(3, 4, 23, 3, bot_mul=1.0, width=8),
    "resnext101_64x4d": _bottleneck(3, 4, 23, 3, bot_mul=1.0, width=4),
    "wide_resnet50_2": _bottleneck(3, 4, 6, 3, bot_mul=0.5, width=128),
    "wide_resnet101_2": _bottleneck(3, 4, 23, 3, bot_mul=0.5, width=128),
    # Gluon's names: the paper's own networks, a batch norm on every shortcut, the stride on the first 1×1.
    "resnet18_v1": {**_basic(2, 2, 2, 2), "shortcut_norm": True},
    "resnet34_v1": {**_basic(3, 4, 6, 3), "shortcut_norm": True},
    "resnet50_v1": {**_bottleneck(3, 4, 6, 3, bot_mul=0.25, width=64), "stride_on": "1x1"},
    "resnet101_v1": {**_bottleneck(3, 4, 23, 3, bot_mul=0.25, width=64), "stride_on": "1x1"},
    "resnet152_v1": {**_bottleneck(3, 8, 36, 3, bot_mul=0.25, width=64), "stride_on": "1x1"},
}

PADDINGS = ("symmetric", "same")
# Far above any network's, and low enough that a stranger's description is refused before it costs anything.
MOST_BLOCKS, MOST_CHANNELS, MOST_PARAMETERS = 10_000, 1 << 24, 1 << 31
# What no tensor shows, and frameworks do differently in networks of one name.
CONVENTIONS = ("stride_on", "epsilon", "padding", "stem_padding", "decay")


@dataclass(frozen=True)
class Block:
    """One residual block: the constructor arguments of its class, its name and its input."""

    name: str
    in_channels: int
    num_channels: int
    strides: int
    groups: int | None
    bot_mul: float
    shortcut_norm: bool = False
    stride_on: str = "3x3"
    epsilon: float = 1e-5
    padding: str = "symmetric"
    decay: float = 0.9

    @property
    def use_1x1conv(self) -> bool:
        """Whether the shortcut needs a 1×1 convolution to change the shape."""
        return self.strides != 1 or self.in_channels != self.num_channels

    @property
    def bot_channels(self) -> int:
        """Channels of the bottleneck, rounded as the d2l chapter does."""
        return int(round(self.num_channels * self.bot_mul))

    @property
    def chapter_options(self) -> dict[str, Any]:
        """Keyword arguments of the chapter's `Residual`, or `ResNeXtBlock` where `groups` is set."""
        shortcut = {"use_1x1conv": self.use_1x1conv, "strides": self.strides}
        if self.groups is None:
            return {"num_channels": self.num_channels, **shortcut}
        return {
            "num_channels": self.num_channels,
            "groups": self.groups,
            "bot_mul": self.bot_mul,
            **shortcut,
        }

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of our own, which has more."""
        own = {"shortcut_norm": self.shortcut_norm} if self.groups is None else {"stride_on": self.stride_on}
        conventions = {"epsilon": self.epsilon, "padding": self.padding, "decay": self.decay}
        return {**self.chapter_options, **own, **conventions}

    @property
    def chain(self) -> tuple[int, ...]:
        """The strides of the convolutions that the shortcut goes around: conv1, conv2, …"""
        if self.groups is None:
            return self.strides, 1
        return *bottleneck_strides(self.strides, self.stride_on), 1

    def layers(self) -> list[tuple[str, Shape]]:
        """Layers in the order data meets them: ("conv1", OIHW shape) or ("bn1", (channels,))."""
        c, c_in, bot = self.num_channels, self.in_channels, self.bot_channels
        layers: list[tuple[str, Shape]]
        shortcut: list[tuple[str, Shape]]
        if self.groups is None:
            layers = [("conv1", (c, c_in, 3, 3)), ("bn1", (c,)), ("conv2", (c, c, 3, 3)), ("bn2", (c,))]
            shortcut = [("conv3", (c, c_in, 1, 1))]
            if self.shortcut_norm:
                shortcut.append(("bn3", (c,)))
        else:
            layers = [
                ("conv1", (bot, c_in, 1, 1)),
                ("bn1", (bot,)),
                ("conv2", (bot, self.groups, 3, 3)),
                ("bn2", (bot,)),
                ("conv3", (c, bot, 1, 1)),
                ("bn3", (c,)),
            ]
            shortcut = [("conv4", (c, c_in, 1, 1)), ("bn4", (c,))]
        return layers + shortcut if self.use_1x1conv else layers


@dataclass(frozen=True)
class Architecture:
    """A ResNet or ResNeXt for images.

    Args:
        stages: one `(num_residuals, num_channels)` per stage.
        block: "residual" (two 3×3 convolutions) or "resnext" (a grouped bottleneck).
        in_channels: channels of the image.
        num_classes: number of logits.
        stem_channels: channels after the first convolution.
        groups: for "resnext", the *width of a group* (the d2l name misleads): one number, or
            one per stage. The 3×3 convolution then has `bot_channels // groups` groups.
        bot_mul: for "resnext", bottleneck channels over block channels.
        shortcut_norm: for "residual", batch norm on the shortcuts' convolutions, as "resnext" always has it
            (He et al. 2015, section 3.4); the chapter has none.
        stride_on: for "resnext", the convolution of a bottleneck that carries its stride: "3x3", or "1x1",
            the first, as the paper has it.
        epsilon: what batch norm adds to the variance.
        padding: of the 3×3 convolutions and the max-pool: "symmetric", or "same", which is as little as makes
            ⌈H / stride⌉ rows, the odd one below; likewise columns.
        stem_padding: of the 7×7 convolution, likewise.
        decay: share of the old value that a running statistic keeps in training.

    Raises:
        ValueError: if the network cannot be built, or has more than 10,000 blocks, 2²⁴ channels or classes,
            or 2³¹ parameters, saying why.
    """

    stages: tuple[tuple[int, int], ...]
    block: str = "residual"
    in_channels: int = 1
    num_classes: int = 10
    stem_channels: int = 64
    groups: int | tuple[int, ...] | None = None
    bot_mul: float = 1.0
    shortcut_norm: bool = False
    stride_on: str = "3x3"
    epsilon: float = 1e-5
    padding: str = "symmetric"
    stem_padding: str = "symmetric"
    decay: float = 0.9

    def __post_init__(self) -> None:
        try:
            given = itertools.islice(self.stages, MOST_BLOCKS + 1)
            stages = tuple((operator.index(n), operator.index(c)) for n, c in given)
        except (TypeError, ValueError):
            raise BadInput(
                "stages must be pairs (num_residuals, num_channels) of whole numbers, "
                f"not {brief(self.stages)}"
            ) from None
        if not stages or min(min(stage) for stage in stages) < 1:
            raise BadInput(f"stages must be one or more pairs of numbers from 1 up, not {brief(stages)}")
        if sum(n for n, _ in stages) > MOST_BLOCKS:
            raise BadInput(f"stages must have {MOST_BLOCKS:,} blocks or fewer, unlike {brief(stages)}")
        for _, channels in stages:
            _check_count("num_channels", channels)
        object.__setattr__(self, "stages", stages)

        for name in ("in_channels", "num_classes", "stem_channels"):
            object.__setattr__(self, name, _check_count(name, getattr(self, name)))

        self._check_conventions()
        if self.block == "residual":
            if self.groups is not None or self.bot_mul != 1.0 or self.stride_on != "3x3":
                raise BadInput(
                    "groups, bot_mul and stride_on belong to block='resnext'; leave them out for 'residual'"
                )
        elif self.block == "resnext":
            if self.shortcut_norm:
                raise BadInput(
                    "shortcut_norm belongs to block='residual'; leave it out for 'resnext', which has it"
                )
            object.__setattr__(self, "groups", self._groups_per_stage())
            self._check_bottlenecks()
        else:
            raise BadInput(f"block must be 'residual' or 'resnext', not {brief(self.block)}")
        if (parameters := self._count_parameters()) > MOST_PARAMETERS:
            raise BadInput(f"the network has {parameters:.2g} parameters; {MOST_PARAMETERS:.2g} is the most")

    def _check_conventions(self) -> None:
        if not isinstance(self.shortcut_norm, bool):
            raise BadInput(f"shortcut_norm must be True or False, not {brief(self.shortcut_norm)}")
        bottleneck_strides(1, self.stride_on)
        for name in ("padding", "stem_padding"):
            check_padding(getattr(self, name), name)
        if not 0 < _number(self.epsilon) < math.inf:
            raise BadInput(f"epsilon must be a number above 0, not {brief(self.epsilon)}")
        if not 0 <= _number(self.decay) < 1:
            raise BadInput(f"decay must be a number from 0 up and below 1, not {brief(self.decay)}")
        object.__setattr__(self, "epsilon", float(self.epsilon))
        object.__setattr__(self, "decay", float(self.decay))

    def _groups_per_stage(self) -> tuple[int, ...]:
        groups: Any = self.groups if isinstance(self.groups, Sequence) else (self.groups,) * len(self.stages)
        if len(groups) != len(self.stages) or not all(map(_is_count, groups)):
            raise BadInput(
                f"block='resnext' needs groups, the width of a group: one number, or one for each of "
                f"the {len(self.stages)} stages, not {brief(self.groups)}"
            )
        return tuple(_check_count("groups", width) for width in groups)

    def _check_bottlenecks(self) -> None:
        if not 0 < _number(self.bot_mul) <= MOST_CHANNELS:
            raise BadInput(f"bot_mul must be a number above 0, to {MOST_CHANNELS}, not {brief(self.bot_mul)}")
        for block in (stage[0] for stage in self.blocks()):
            check_bottleneck(block.num_channels, block.groups, block.bot_mul)

    def _count_parameters(self) -> int:
        """Of the convolutions and the last layer; all blocks of a stage but the first are of one shape."""
        count = 49 * self.stem_channels * self.in_channels + self.num_classes * self.stages[-1][1]
        for stage in self.blocks():
            first, last = (sum(math.prod(shape) for _, shape in stage[i].layers()) for i in (0, -1))
            count += first + (len(stage) - 1) * last
        return count

    @classmethod
    def of(cls, arch: Architecture | Sequence[tuple[int, int]], num_classes: int = 10) -> Architecture:
        """The architecture itself, or the plain ResNet of a chapter-style tuple of stages."""
        return arch if isinstance(arch, Architecture) else cls(tuple(arch), num_classes=num_classes)

    def blocks(self) -> list[list[Block]]:
        """The blocks of each stage. The first block of every stage but the first has stride 2."""
        names = ("shortcut_norm", "stride_on", "epsilon", "padding", "decay")
        options: dict[str, Any] = {name: getattr(self, name) for name in names}
        stages, in_channels = [], self.stem_channels
        for i, (num_residuals, num_channels) in enumerate(self.stages):
            groups = self.groups[i] if isinstance(self.groups, tuple) else None
            stage = []
            for j in range(num_residuals):
                strides = 2 if j == 0 and i > 0 else 1
                name = f"b{i + 2}.{j}"
                stage.append(
                    Block(name, in_channels, num_channels, strides, groups, float(self.bot_mul), **options)
                )
                in_channels = num_channels
            stages.append(stage)
        return stages

    def stage_names(self) -> list[str]:
        """The names of the parts of the network, first to last: b1, b2, …, last."""
        return [f"b{k + 1}" for k in range(len(self.stages) + 1)] + ["last"]

    def parameter_shapes(self) -> dict[str, Shape]:
        """Canonical name to shape (convolutions OIHW, dense (out, in)), in the order data meets them.

        Running statistics are included: they are part of the network's state.
        """
        stem = self.stem_channels
        layers: list[tuple[str, Shape]] = [("b1.conv", (stem, self.in_channels, 7, 7)), ("b1.bn", (stem,))]
        for block in (block for stage in self.blocks() for block in stage):
            layers += [(f"{block.name}.{layer}", shape) for layer, shape in block.layers()]
        layers.append(("last", (self.num_classes, self.stages[-1][1])))

        shapes: dict[str, Shape] = {}
        for name, shape in layers:
            shapes[f"{name}.weight"] = shape
            shapes[f"{name}.bias"] = shape[:1]
            if len(shape) == 1:
                shapes[f"{name}.running_mean"] = shape
                shapes[f"{name}.running_var"] = shape
        return shapes

    def is_like(self, other: Architecture) -> bool:
        """Whether both are the same network, image channels and classes aside."""
        other = dataclasses.replace(other, in_channels=self.in_channels, num_classes=self.num_classes)
        if any(getattr(self, name) != getattr(other, name) for name in CONVENTIONS):
            return False
        return self.parameter_shapes() == other.parameter_shapes()

    @property
    def smallest_input(self) -> int:
        """The least height and width served, never more than 32: no stride acts on a single pixel."""
        return min(32, 2 ** len(self.stages) + 1)

    def check_input(self, shape: Shape) -> None:
        """Raise `ValueError` unless images of this (N, C, H, W) shape fit the network."""
        if len(shape) != 4 or shape[0] < 1:
            raise BadInput(f"images must have the shape (N, C, H, W) with N from 1 up, not {shape}")
        if shape[1] != self.in_channels:
            raise BadInput(
                f"images have {shape[1]} channels but the network takes {self.in_channels}; "
                f"give images of {self.in_channels}, or build it with in_channels={shape[1]}"
            )
        if min(shape[2:]) < self.smallest_input:
            raise BadInput(
                f"images of {shape[2]}×{shape[3]} are too small for this network; "
                f"give {self.smallest_input}×{self.smallest_input} or more"
            )

    def to_json(self) -> str:
        """The architecture as JSON, for a checkpoint's metadata."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Architecture:
        """The architecture that `to_json` wrote; `ValueError` if it is not one."""
        try:
            return cls(**parse_json(text, dict))
        except (TypeError, ValueError) as error:
            raise BadInput(f"not the description of an architecture ({shown(str(error), 300)})") from None


def _is_count(value: Any) -> bool:
    """Whether this is a whole number from 1 up, of Python or NumPy."""
    return _is_whole(value) and int(value) > 0


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _check_count(name: str, value: Any) -> int:
    """A whole number that channels and classes can be so many of; `ValueError` for anything else."""
    if not _is_count(value):
        raise BadInput(f"{name} must be a whole number from 1 up, not {brief(value)}")
    if value > MOST_CHANNELS:
        raise BadInput(f"{name} must be {MOST_CHANNELS:,} or less, not {brief(value)}")
    return int(value)


def _number(value: Any) -> float:
    """A real number of Python or NumPy; NaN for anything else, and for more than a float can be."""
    try:
        return float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return math.nan


def bottleneck_strides(strides: Any, stride_on: str) -> tuple[Any, Any]:
    """Strides of a bottleneck's first 1×1 convolution and of its 3×3 one; `ValueError` for another place."""
    if stride_on not in ("3x3", "1x1"):
        raise BadInput(f"stride_on must be '3x3' or '1x1', not {brief(stride_on)}")
    return (strides, 1) if stride_on == "1x1" else (1, strides)


def check_padding(padding: Any, name: str = "padding", zeros: bool = False) -> None:
    """Raise `ValueError` unless this is "symmetric" or "same"; or, with `zeros`, how many to put around."""
    if isinstance(padding, str) and padding in PADDINGS:
        return
    if zeros and (isinstance(padding, (tuple, list)) or (_is_whole(padding) and padding >= 0)):
        return
    others = ", or a number of zeros" if zeros else ""
    raise BadInput(f"{name} must be 'symmetric' or 'same'{others}, not {brief(padding)}")


def parts_of_groups(groups: int, channels: int, most: int | None = None) -> int:
    """How many parts a convolution in groups is computed in: as many as have 32 channels each, or more.

    Parts of whole groups, each with zeros between its groups in its kernel, are quicker on a CPU than groups
    are. No more than `most`.
    """
    limit = channels // 32 if most is None else min(most, channels // 32)
    return max((parts for parts in range(1, limit + 1) if groups % parts == 0), default=1)


def check_bottleneck(num_channels: int, groups: int | None, bot_mul: float) -> None:
    """Raise `ValueError` unless the bottleneck channels divide into groups of this width."""
    bot_channels = int(round(num_channels * bot_mul))
    if not groups or bot_channels < 1 or bot_channels % groups:
        raise BadInput(
            f"bot_channels = int(round({num_channels} * {bot_mul})) = {bot_channels} does not divide into "
            f"groups of width {groups}; choose groups, the width of a group, to divide bot_channels"
        )


def architecture(name: str, in_channels: int = 1, num_classes: int = 10) -> Architecture:
    """A network of the zoo by name, such as "resnet18".

    Raises:
        ValueError: if the name is unknown; the message gives the nearest one.
    """
    if name not in ZOO:
        raise BadInput(unknown("architecture", name, list(ZOO)))
    return Architecture(**ZOO[name], in_channels=in_channels, num_classes=num_classes)


def published(cls: type, num_classes: int = 10) -> Architecture:
    """The network of the zoo that a class, or the nearest one it is derived from, is named after."""
    names = (parent.__name__.lower() for parent in cls.__mro__)
    return architecture(next(name for name in names if name in ZOO), num_classes=num_classes)


def unknown(what: str, name: str, known: Sequence[str]) -> str:
    """The line for a name nobody knows: the nearest known one, and all of them."""
    nearest = get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {nearest[0]}? Known" if nearest else "known"
    return f"unknown {what} {brief(name)}; {hint}: {', '.join(known)}"
