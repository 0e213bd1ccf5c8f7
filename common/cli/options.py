"""Arguments and options that several commands take."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.architecture import ZOO, Architecture
from common.backend import BACKENDS, DTYPES, Backend, available_backends, find_backend, load_backend
from common.data import CLASSES, imagenet
from common.data.colours import KNOWN, colours
from common.data.pipeline import check_size, is_size
from common.data.preparation import Preparation
from common.errors import BadInput
from common.reading import brief, parse_json

if TYPE_CHECKING:
    from common.weights import Weights

Arch = Annotated[str, typer.Argument(metavar="ARCH", help=f"Name of the network: {', '.join(ZOO)}.")]
Backends = Annotated[
    str | None,
    typer.Option(metavar="NAMES", help=f"Comma-separated: {', '.join(BACKENDS)}, oracle. Default: the four."),
]
InputShape = Annotated[str, typer.Option(metavar="C,H,W", help="Channels, height and width of an image.")]
Device = Annotated[str, typer.Option(help="cpu or gpu.")]
Precision = Annotated[str, typer.Option(help="float32, float64, bfloat16 or, on a GPU, tf32.")]
Compile = Annotated[bool, typer.Option("--compile", help="Compile in PyTorch too, as the others always do.")]
AnyBackend = Annotated[
    str, typer.Option(metavar="NAME", help=f"{', '.join(BACKENDS)}, oracle, or any: the first installed.")
]
Data = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        envvar="RESNET_TABS_DATA",
        help="Folder of the full Fashion-MNIST, or of images: train/CLASS/*.jpg and val/CLASS/*.jpg, or "
        "CLASS/*.jpg. Default: Fashion-MNIST where it is found, else the shipped sample.",
    ),
]
ValShare = Annotated[
    float | None,
    typer.Option(
        help="Share of a folder's images for validation, where it has no train and val. Default: 0.1."
    ),
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out files that are no images.")]
Loaders = Annotated[int, typer.Option(help="Processes that load images; with 0, threads do.")]

OF_RUN = ("best.safetensors", "last.safetensors", "ema.safetensors")

Checkpoint = Annotated[
    Path, typer.Argument(metavar="CHECKPOINT", help="A .safetensors file, or the folder of a run: its best.")
]
Resize = Annotated[
    int | None,
    typer.Option(help="Height and width the network sees. Default: as trained; else 224, of greys 96."),
]
Normalize = Annotated[
    str | None,
    typer.Option(metavar="HOW", help=f"What becomes of colours: {KNOWN}. Default: as trained."),
]


def check_device(device: str) -> None:
    """Raise `ValueError` unless there is such a kind of device."""
    if device not in ("cpu", "gpu"):
        raise BadInput(f"unknown device {device!r}; give cpu or gpu")


def check_precision(precision: str) -> None:
    """Raise `ValueError` unless there is such a precision; not every backend has every one."""
    if precision not in DTYPES:
        raise BadInput(f"unknown precision {precision!r}; give {', '.join(DTYPES)}")


def any_backend(name: str) -> str:
    """The name itself, once its framework is known to be installed; for "any", the first that is."""
    name = (available_backends() or ["oracle"])[0] if name == "any" else name
    return load_backend(name).name


def choose_backends(names: str | None) -> list[Backend]:
    """The backends asked for. One that was named must be installed; the four are shown either way."""
    if names is None:
        return list(BACKENDS.values())
    chosen = list(dict.fromkeys(name.strip() for name in names.split(",")))
    known = [find_backend(name) for name in chosen]  # an unknown name is said before a missing framework
    return [load_backend(backend.name) for backend in known]


def parse_shape(text: str) -> tuple[int, int, int]:
    """ "1,96,96" → (1, 96, 96)."""
    try:
        channels, height, width = (int(part) for part in text.split(","))
    except ValueError:
        raise BadInput(
            f"malformed input shape {brief(text)}; give channels,height,width such as 1,96,96"
        ) from None
    if min(channels, height, width) < 1:
        raise BadInput(f"input shape {brief(text)} must be of numbers from 1 up, such as 1,96,96")
    check_size("height and width", (height, width))
    return channels, height, width


@dataclass(frozen=True, eq=False)
class Opened:
    """A checkpoint, read once: its network, and what it says of the images that one was trained on.

    Attributes:
        path: the file.
        arch, weights: the network.
        preparation: of images, as the network's own validation had them, but for what was asked for.
        is_said: whether the checkpoint says how they are prepared; if not, they are as usual.
        classes: their names in the order of the logits; empty where it has none.
        data: which folder it was trained on, as `ImageFolder.size` says; "" where it was none.
        val_share: the share of that folder that was for validation; None where other folders said.
    """

    path: Path
    arch: Architecture
    weights: Weights
    preparation: Preparation
    is_said: bool
    classes: tuple[str, ...]
    data: str
    val_share: float | None

    def prepared(self) -> str:
        """What is done to image files, in one line."""
        unsaid = "" if self.is_said else " (the checkpoint does not say; --resize and --normalize do)"
        return f"images: {self.preparation}{unsaid}"


def open_checkpoint(path: Path, resize: int | None, normalize: str | None = None) -> Opened:
    """The checkpoint meant by a path, for images prepared as was asked for, else as its own.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged, contradicts itself, or its network cannot take such images.
    """
    from common.training.runs import checkpoint_file
    from common.weights import read_checkpoint

    path = checkpoint_file(path)
    arch, weights, says = read_checkpoint(path)
    own = said_preparation(path, arch, says)
    preparation = own or _usual(arch.in_channels)
    if resize is not None:
        preparation = preparation.at((resize, resize))
    if normalize is not None:
        if preparation.fit == "fashion-mnist":
            raise BadInput(f"{path} is of Fashion-MNIST, whose greys are in [0, 1]; leave out --normalize")
        preparation = dataclasses.replace(preparation, normalize=normalize)
        preparation.check()
    arch.check_input((1, arch.in_channels, *preparation.size))
    classes = tuple(
        _said(path, says, "classes", list[str], lambda names: len(names) <= arch.num_classes)
        or _usual_classes(says, preparation, arch)
    )
    if classes:  # the last layer may have more
        classes += tuple(f"class {i}" for i in range(len(classes), arch.num_classes))
    share = _said(path, says, "val_share", float | None, lambda it: it is None or 0 < it < 1)
    return Opened(path, arch, weights, preparation, own is not None, classes, says.get("data", ""), share)


def said_preparation(path: Path, arch: Architecture, says: Mapping[str, str]) -> Preparation | None:
    """Of images as a checkpoint's own validation had them; None where it does not say.

    Raises:
        ValueError: if it is damaged, or contradicts itself.
    """
    from common.training.runs import is_run, read_settings

    try:
        if "preparation" in says:
            return Preparation.from_json(says["preparation"], arch.in_channels)
    except ValueError as error:
        raise BadInput(f"checkpoint {path} is damaged: its preparation cannot be ({error})") from None
    # Checkpoints of before said less.
    if says.get("dataset") == "imagenet":
        if (arch.in_channels, arch.num_classes) != (3, imagenet.NUM_CLASSES):
            raise BadInput(f"{path} says it is of ImageNet, but has not its 3 channels and 1,000 classes")
        return _usual(3)
    if "classes" in says:
        size = _said(path, says, "resize", tuple[int, int], is_size) or (96, 96)
        try:
            made = Preparation(size, arch.in_channels, says.get("normalize", "imagenet"), "folder")
            colours(made.normalize, arch.in_channels)
        except BadInput as error:
            raise BadInput(f"checkpoint {path} is damaged: its normalize cannot be ({error})") from None
        return made
    if path.name in OF_RUN and is_run(path.parent) and (settings := read_settings(path.parent)).fit:
        return settings.preparation(arch.in_channels)
    return None


def _usual(channels: int) -> Preparation:
    """What most libraries do, as far as a network's channels tell."""
    if channels != 3:
        return Preparation((96, 96), channels)
    return Preparation((imagenet.SIZE, imagenet.SIZE), channels, "imagenet")


def _usual_classes(says: Mapping[str, str], preparation: Preparation, arch: Architecture) -> tuple[str, ...]:
    """Of a checkpoint that does not name its classes: those of its data set, if that is known."""
    if says.get("dataset") == "imagenet":
        return imagenet.classes()
    is_fashion = preparation.fit == "fashion-mnist" and arch.num_classes >= len(CLASSES)
    return CLASSES if is_fashion else ()


def _said(path: Path, says: Mapping[str, str], name: str, kind: Any, is_such: Callable[[Any], bool]) -> Any:
    """What a checkpoint's metadata has under a name, as JSON of a kind; None where it has nothing."""
    if name not in says:
        return None
    with suppress(ValueError):
        value = parse_json(says[name], kind)
        if is_such(value):
            return value
    raise BadInput(f"checkpoint {path} is damaged: its {name} cannot be {brief(says[name])}")
