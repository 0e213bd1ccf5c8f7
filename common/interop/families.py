"""What other people call the layers of a ResNet, and what their networks compute otherwise.

To add one, write its entry in `FAMILIES`, and name it in the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from common.architecture import Architecture, Shape
from common.layout import from_channels_last, shape_channels_last, to_channels_last


@dataclass(frozen=True)
class Words:
    """What a framework calls the tensors of a layer, and how it joins names and lays out kernels."""

    weight: str
    norm: tuple[str, str, str, str]  # scale, shift, running mean, running variance
    separator: str
    channels_last: bool = False

    def tensors(self, layer: str, shape: Shape, biased: bool) -> Iterator[tuple[str, str]]:
        """Our kind and their name, of each tensor of a layer of theirs whose weight has our `shape`."""
        if len(shape) == 1:
            kinds = dict(zip(("weight", "bias", "running_mean", "running_var"), self.norm, strict=True))
        else:
            kinds = {"weight": self.weight, "bias": "bias"} if biased else {"weight": self.weight}
        for ours, theirs in kinds.items():
            yield ours, f"{layer}{self.separator}{theirs}"


STATE_DICT = (".safetensors", ".pth")

TORCH = Words("weight", ("weight", "bias", "running_mean", "running_var"), ".")
GLUON = Words("weight", ("gamma", "beta", "running_mean", "running_var"), ".")
KERAS = Words("kernel", ("gamma", "beta", "moving_mean", "moving_variance"), "/", channels_last=True)
FLAX = Words("kernel", ("scale", "bias", "mean", "var"), "/", channels_last=True)


@dataclass(frozen=True)
class Place:
    """Where a convolution and its norm are: stage, block and convolution from 0, and the block's number."""

    stage: int = 0
    block: int = 0
    conv: int = 0
    number: int = 0
    basic: bool = True


Name = Callable[[Place], str]


@dataclass(frozen=True)
class Layer:
    """A layer under both names, with our shape of its weight, and whether theirs has a bias."""

    ours: str
    theirs: str
    shape: Shape
    biased: bool


@dataclass(frozen=True)
class Family:
    """Other people's networks.

    Attributes:
        framework: whose `files.py` writes their files, and whose `families.py` builds their networks.
        package: the one that has these networks.
        suffixes: of the files they load; "" is a folder, or several files of one beginning.
        words: of their tensors.
        stem: its convolution and norm.
        block: the beginning of the names in a block.
        conv, norm: what follows, of the convolutions the shortcut goes around.
        shortcut: likewise, of the shortcut's; None where it is counted on from the others'.
        last: the dense layer of a network of so many stages.
        biased: which convolutions have a bias.
        basic, bottleneck: the axes of `Architecture` that are not the chapter's; None for no such block.
        numbered: whether blocks are numbered through all stages.
        grouped: whether a bottleneck may be of any width, and in groups; else a quarter of the channels.
        by_depth: whether they load by the order of layers, which is that of Keras: by depth in the graph.
        body: what all names but the last layer's begin with, and a network without that layer leaves out.
        config: the axes that a config.json beside the tensors says; None where there is no such file.
        install: what pip is told, where the package's name is not enough.
    """

    framework: str
    package: str
    suffixes: tuple[str, ...]
    words: Words
    stem: tuple[str, str]
    block: Name
    conv: Name
    norm: Name
    shortcut: tuple[str, str] | None
    last: Callable[[int], str]
    biased: Callable[[Place], bool] = lambda at: False
    basic: Mapping[str, Any] | None = field(default_factory=lambda: {"shortcut_norm": True})
    bottleneck: Mapping[str, Any] = field(default_factory=dict)
    numbered: bool = False
    grouped: bool = False
    by_depth: bool = False
    body: str = ""
    config: tuple[str, ...] | None = None
    install: str = ""

    def axes(self, basic: bool) -> Mapping[str, Any]:
        """What a network of theirs of these blocks computes otherwise than the chapter's."""
        return (self.basic or {}) if basic else self.bottleneck

    def pair(self, at: Place) -> tuple[str, str]:
        """A convolution and its norm; the shortcut's where the place is beyond the others."""
        if self.shortcut and at.conv == (2 if at.basic else 3):
            return self.block(at) + self.shortcut[0], self.block(at) + self.shortcut[1]
        return self.block(at) + self.conv(at), self.block(at) + self.norm(at)

    def layers(self, arch: Architecture) -> Iterator[Layer]:
        """Every layer, in the order of their files."""
        basic, number = arch.block == "residual", 0
        biased = self.biased(Place(stage=-1, basic=basic))
        yield Layer("b1.conv", self.stem[0], (arch.stem_channels, arch.in_channels, 7, 7), biased)
        yield Layer("b1.bn", self.stem[1], (arch.stem_channels,), True)
        for k, stage in enumerate(arch.blocks()):
            for j, block in enumerate(stage):
                layers = block.layers()
                if self.by_depth and block.use_1x1conv:
                    *layers, conv, norm, shortcut, shortcut_norm = layers
                    layers += [shortcut, conv, shortcut_norm, norm]
                for layer, shape in layers:
                    i = int(layer[-1]) - 1
                    at = Place(k, j, i, number, basic)
                    theirs = self.pair(at)[len(shape) == 1]
                    yield Layer(f"{block.name}.{layer}", theirs, shape, self.biased(at))
                number += 1
        yield Layer("last", self.last(len(arch.stages)), (arch.num_classes, arch.stages[-1][1]), True)

    def stem_tensors(self) -> tuple[str, str]:
        """The stem's kernel and its norm's scale, by which a family is known."""
        separator = self.words.separator
        return (
            f"{self.stem[0]}{separator}{self.words.weight}",
            f"{self.stem[1]}{separator}{self.words.norm[0]}",
        )

    def beginnings(self, names: Collection[str]) -> Iterator[tuple[str, str]]:
        """What to take off names, and what to put before them, to have this family's; of each network."""
        for body in dict.fromkeys(("", self.body)):
            kernel, scale = (name.removeprefix(body) for name in self.stem_tensors())
            for name in names:
                before = name.removesuffix(kernel)
                if name.endswith(kernel) and before[-1:] in ("", ".", "/") and before + scale in names:
                    yield before, body

    def names(self, arch: Architecture) -> dict[str, str]:
        """Our name to theirs, of every tensor of theirs."""
        return {
            f"{layer.ours}.{kind}": theirs
            for layer in self.layers(arch)
            for kind, theirs in self.words.tensors(layer.theirs, layer.shape, layer.biased)
        }

    def shapes(self, arch: Architecture) -> dict[str, Shape]:
        """Their name to shape, of every tensor of theirs."""
        ours = arch.parameter_shapes()
        turn = shape_channels_last if self.words.channels_last else tuple
        return {theirs: turn(ours[name]) for name, theirs in self.names(arch).items()}

    def to_ours(self, array: NDArray) -> NDArray:
        """A tensor of theirs as we lay it out: a view."""
        return from_channels_last(array) if self.words.channels_last else array

    def to_theirs(self, array: NDArray) -> NDArray:
        """A tensor of ours as they lay it out: a view."""
        return to_channels_last(array) if self.words.channels_last else array


_SAME = {"padding": "same", "stem_padding": "same", "decay": 0.99}


def _every(at: Place) -> bool:
    return True


# d2l asks for packages of 2022; of those it really needs, these are not ours.
_D2L = "--no-deps d2l && pip install ipython pandas requests"


def _d2l(
    framework: str, suffixes: tuple[str, ...], words: Words, install: str = _D2L, **names: Any
) -> Family:
    """The chapter's own names: `conv1`, `bn1`, …, and a bias in every convolution."""
    return Family(
        framework,
        "d2l",
        suffixes,
        words,
        conv=lambda at: f"conv{at.conv + 1}",
        norm=lambda at: f"bn{at.conv + 1}",
        shortcut=None,
        biased=_every,
        grouped=True,
        install=install,
        **names,
    )


def _torchvision(
    framework: str, package: str, suffixes: tuple[str, ...], words: Words, grouped: bool
) -> Family:
    return Family(
        framework,
        package,
        suffixes,
        words,
        stem=("conv1", "bn1"),
        block=lambda at: f"layer{at.stage + 1}.{at.block}.",
        conv=lambda at: f"conv{at.conv + 1}",
        norm=lambda at: f"bn{at.conv + 1}",
        shortcut=("downsample.0", "downsample.1"),
        last=lambda stages: "fc",
        grouped=grouped,
        install=f"--no-deps {package}" if package == "gluoncv" else "",
    )


FAMILIES: dict[str, Family] = {
    "torchvision": _torchvision("torch", "torchvision", STATE_DICT, TORCH, grouped=True),
    "timm": _torchvision("torch", "timm", STATE_DICT, TORCH, grouped=True),
    "transformers": Family(
        "torch",
        "transformers",
        ("", *STATE_DICT),
        TORCH,
        stem=("resnet.embedder.embedder.convolution", "resnet.embedder.embedder.normalization"),
        block=lambda at: f"resnet.encoder.stages.{at.stage}.layers.{at.block}.",
        conv=lambda at: f"layer.{at.conv}.convolution",
        norm=lambda at: f"layer.{at.conv}.normalization",
        shortcut=("shortcut.convolution", "shortcut.normalization"),
        last=lambda stages: "classifier.1",
        body="resnet.",
        config=("stride_on",),
    ),
    # The last transformers with Flax and TensorFlow is 4.57. What a config.json says of strides they ignore.
    "transformers-flax": Family(
        "jax",
        "transformers",
        ("", ".msgpack"),
        FLAX,
        stem=("resnet/embedder/embedder/convolution", "resnet/embedder/embedder/normalization"),
        block=lambda at: f"resnet/encoder/stages/{at.stage}/layers/{at.block}/",
        conv=lambda at: f"layer/{'layer_' if at.basic else ''}{at.conv}/convolution",
        norm=lambda at: f"layer/{'layer_' if at.basic else ''}{at.conv}/normalization",
        shortcut=("shortcut/convolution", "shortcut/normalization"),
        last=lambda stages: "classifier/1",
        body="resnet/",
        config=(),
        install='"transformers==4.57.1"',
    ),
    "transformers-tf": Family(
        "tf",
        "transformers",
        ("", ".h5"),
        KERAS,
        stem=("resnet/embedder/embedder/convolution", "resnet/embedder/embedder/normalization"),
        block=lambda at: f"resnet/encoder/stages.{at.stage}/layers.{at.block}/",
        conv=lambda at: f"layer.{at.conv}/convolution",
        norm=lambda at: f"layer.{at.conv}/normalization",
        shortcut=("shortcut/convolution", "shortcut/normalization"),
        last=lambda stages: "classifier.1",
        body="resnet/",
        config=(),
        install='"transformers==4.57.1" tf-keras',
    ),
    "keras": Family(
        "tf",
        "keras",
        (".h5",),
        KERAS,
        stem=("conv1_conv", "conv1_bn"),
        block=lambda at: f"conv{at.stage + 2}_block{at.block + 1}_",
        conv=lambda at: f"{at.conv + 1}_conv",
        norm=lambda at: f"{at.conv + 1}_bn",
        shortcut=("0_conv", "0_bn"),
        last=lambda stages: "predictions",
        biased=_every,
        basic=None,
        bottleneck={"stride_on": "1x1", "epsilon": 1.001e-5, "decay": 0.99},
        by_depth=True,
    ),
    "flax-example": Family(
        "jax",
        "flax",
        (".msgpack", ""),
        FLAX,
        stem=("conv_init", "bn_init"),
        block=lambda at: f"{'' if at.basic else 'Bottleneck'}ResNetBlock_{at.number}/",
        conv=lambda at: f"Conv_{at.conv}",
        norm=lambda at: f"BatchNorm_{at.conv}",
        shortcut=("conv_proj", "norm_proj"),
        last=lambda stages: "Dense_0",
        basic={"shortcut_norm": True, "padding": "same"},
        bottleneck={"padding": "same"},
        numbered=True,
    ),
    "gluon": Family(
        "mxnet",
        "mxnet",
        (".params",),
        GLUON,
        stem=("features.0", "features.1"),
        block=lambda at: f"features.{at.stage + 4}.{at.block}.",
        conv=lambda at: f"body.{3 * at.conv}",
        norm=lambda at: f"body.{3 * at.conv + 1}",
        shortcut=("downsample.0", "downsample.1"),
        last=lambda stages: "output",
        biased=lambda at: not at.basic and at.stage >= 0 and at.conv in (0, 2),
        bottleneck={"stride_on": "1x1"},
    ),
    "gluoncv": _torchvision("mxnet", "gluoncv", (".params",), GLUON, grouped=False),
    "d2l-torch": _d2l(
        "torch",
        STATE_DICT,
        TORCH,
        stem=("net.0.0", "net.0.1"),
        block=lambda at: f"net.b{at.stage + 2}.{at.block}.",
        last=lambda stages: "net.last.2",
        basic={},
    ),
    "d2l-mxnet": _d2l(
        "mxnet",
        (".params",),
        GLUON,
        stem=("net.0.0", "net.0.1"),
        block=lambda at: f"net.{at.stage + 1}.{at.block}.",
        last=lambda stages: f"net.{stages + 2}",
        basic={},
    ),
    "d2l-tf": _d2l(
        "tf",
        ("",),
        KERAS,
        f"{_D2L} tf-keras",
        stem=(
            "net/layer_with_weights-0/layer_with_weights-0",
            "net/layer_with_weights-0/layer_with_weights-1",
        ),
        block=lambda at: f"net/layer_with_weights-{at.stage + 1}/layer_with_weights-{at.block}/",
        last=lambda stages: f"net/layer_with_weights-{stages + 1}/layer_with_weights-0",
        basic={**_SAME, "epsilon": 1e-3},
        bottleneck={**_SAME, "epsilon": 1e-3},
    ),
    "d2l-jax": _d2l(
        "jax",
        (".msgpack", ""),
        FLAX,
        stem=("net/layers_0/layers_0", "net/layers_0/layers_1"),
        block=lambda at: f"net/layers_{at.stage + 1}/layers_{at.block}/",
        last=lambda stages: f"net/layers_{stages + 1}/layers_2",
        basic=_SAME,
        bottleneck=_SAME,
    ),
}


def hugging_face_config(arch: Architecture, classes: Sequence[str] = ()) -> dict[str, object]:
    """What transformers' `ResNetConfig` is made of; `classes` are their names, as far as they have any."""
    labels = {str(i): f"LABEL_{i}" for i in range(arch.num_classes)}
    labels |= {str(i): name for i, name in enumerate(classes)}
    return {
        "architectures": ["ResNetForImageClassification"],
        "model_type": "resnet",
        "num_channels": arch.in_channels,
        "embedding_size": arch.stem_channels,
        "hidden_sizes": [channels for _, channels in arch.stages],
        "depths": [depth for depth, _ in arch.stages],
        "layer_type": "basic" if arch.block == "residual" else "bottleneck",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": arch.stride_on == "1x1",
        "id2label": labels,
        "label2id": {label: int(i) for i, label in labels.items()},
    }
