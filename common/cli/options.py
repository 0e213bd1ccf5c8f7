"""Arguments and options that several commands take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.architecture import ZOO, Architecture
from common.backend import BACKENDS, DTYPES, Backend, available_backends, find_backend, load_backend
from common.data import imagenet
from common.errors import BadInput

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
            f"malformed input shape {text!r}; give channels,height,width such as 1,96,96"
        ) from None
    if min(channels, height, width) < 1:
        raise BadInput(f"input shape {text!r} must be of numbers from 1 up, such as 1,96,96")
    return channels, height, width


def open_checkpoint(
    path: Path, resize: int | None
) -> tuple[Path, Architecture, Weights, tuple[int, int], str]:
    """The checkpoint meant, its architecture and weights, and the size and data set of its images."""
    from common.training.runs import checkpoint_file, is_run, read_settings
    from common.weights import load_checkpoint, load_metadata

    path = checkpoint_file(path)
    network, weights = load_checkpoint(path)
    dataset = load_metadata(path).get("dataset", "")
    if dataset == imagenet.NAME and (network.in_channels, network.num_classes) != (3, imagenet.NUM_CLASSES):
        raise BadInput(f"{path} says it is of ImageNet, but has not its 3 channels and 1,000 classes")
    size = (imagenet.SIZE,) * 2 if dataset == imagenet.NAME else (96, 96)
    if resize is not None:
        size = (resize, resize)
    elif says := load_metadata(path).get("resize"):
        size = _parse_size(path, says)
    elif is_run(path.parent):
        size = read_settings(path.parent).resize
    network.check_input((1, network.in_channels, *size))
    return path, network, weights, size, dataset


def folder_of_images(path: Path, network: Architecture) -> tuple[tuple[str, ...], str]:
    """Class names and `normalize` of the image folder that a checkpoint was trained on; else none and ""."""
    from common.weights import load_metadata

    says = load_metadata(path)
    if "classes" not in says:
        return (), ""
    try:
        classes = tuple(str(name) for name in json.loads(says["classes"]))
    except (ValueError, TypeError):
        raise BadInput(f"checkpoint {path} is damaged: its classes are not a list of names") from None
    if len(classes) > network.num_classes:
        raise BadInput(f"checkpoint {path} is damaged: it has more classes than its network tells")
    unnamed = tuple(f"class {i}" for i in range(len(classes), network.num_classes))
    return classes + unnamed, says.get("normalize", "imagenet")


def _parse_size(path: Path, text: str) -> tuple[int, int]:
    """ "[224, 224]" → (224, 224)."""
    try:
        height, width = (int(side) for side in json.loads(text))
    except (ValueError, TypeError):
        raise BadInput(f"checkpoint {path} is damaged: its size of images is {text!r}") from None
    return height, width
