"""Arguments and options that several commands take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.architecture import ZOO, Architecture
from common.backend import BACKENDS, DTYPES, Backend, available_backends, find_backend, load_backend
from common.data import CLASSES, imagenet
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

Checkpoint = Annotated[
    Path, typer.Argument(metavar="CHECKPOINT", help="A .safetensors file, or the folder of a run: its best.")
]
Resize = Annotated[
    int | None,
    typer.Option(help="Height and width the network sees. Default: as trained; else 96, of ImageNet 224."),
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
        preparation: of images, as the network's own validation had them, for the size that was asked for.
        classes: their names in the order of the logits; empty where it has none.
        data: which folder it was trained on, as `ImageFolder.size` says; "" where it was none.
        val_share: the share of that folder that was for validation; None where other folders said.
    """

    path: Path
    arch: Architecture
    weights: Weights
    preparation: Preparation
    classes: tuple[str, ...]
    data: str
    val_share: float | None

    def usual_classes(self) -> tuple[str, ...]:
        """For a checkpoint without names: those of its data set; empty where there are more or fewer."""
        usual = imagenet.classes() if self.preparation.trained_on == imagenet.NAME else CLASSES
        return usual if len(usual) == self.arch.num_classes else ()


def open_checkpoint(path: Path, resize: int | None) -> Opened:
    """The checkpoint meant by a path, for images of the height and width asked for, else of its own.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged, contradicts itself, or its network cannot take such images.
    """
    from common.training.runs import checkpoint_file
    from common.weights import read_checkpoint

    path = checkpoint_file(path)
    arch, weights, says = read_checkpoint(path)
    preparation = _preparation(path, arch, says, resize)
    classes = tuple(
        _said(path, says, "classes", list[str], lambda names: len(names) <= arch.num_classes) or ()
    )
    if classes:  # the last layer may have more
        classes += tuple(f"class {i}" for i in range(len(classes), arch.num_classes))
    share = _said(path, says, "val_share", float | None, lambda it: it is None or 0 < it < 1)
    return Opened(path, arch, weights, preparation, classes, says.get("data", ""), share)


def _preparation(path: Path, arch: Architecture, says: Mapping[str, str], resize: int | None) -> Preparation:
    """Of images as a checkpoint's own validation had them."""
    from common.training.runs import is_run, read_settings

    trained_on, normalize, size = "fashion-mnist", "none", (96, 96)
    if "classes" in says:
        trained_on, normalize = "folder", says.get("normalize", "imagenet")
    if says.get("dataset") == imagenet.NAME:
        if (arch.in_channels, arch.num_classes) != (3, imagenet.NUM_CLASSES):
            raise BadInput(f"{path} says it is of ImageNet, but has not its 3 channels and 1,000 classes")
        trained_on, normalize, size = imagenet.NAME, "imagenet", (imagenet.SIZE, imagenet.SIZE)
    if resize is not None:
        size = resize, resize
    elif own := _said(path, says, "resize", tuple[int, int], is_size):
        size = own[0], own[1]
    elif is_run(path.parent):
        size = read_settings(path.parent).resize
    check_size("resize", size)
    if normalize not in ("imagenet", "none"):
        raise BadInput(f"checkpoint {path} is damaged: its normalize cannot be {brief(normalize)}")
    arch.check_input((1, arch.in_channels, *size))
    return Preparation(trained_on, size, arch.in_channels, normalize)


def _said(path: Path, says: Mapping[str, str], name: str, kind: Any, is_such: Callable[[Any], bool]) -> Any:
    """What a checkpoint's metadata has under a name, as JSON of a kind; None where it has nothing."""
    if name not in says:
        return None
    with suppress(ValueError):
        value = parse_json(says[name], kind)
        if is_such(value):
            return value
    raise BadInput(f"checkpoint {path} is damaged: its {name} cannot be {brief(says[name])}")
