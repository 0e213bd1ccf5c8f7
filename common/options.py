"""Arguments and options that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

from common.architecture import ZOO
from common.backend import BACKENDS, Backend, available_backends, find_backend, load_backend
from common.errors import BadInput

Arch = Annotated[str, typer.Argument(metavar="ARCH", help=f"Name of the network: {', '.join(ZOO)}.")]
Backends = Annotated[
    str | None,
    typer.Option(metavar="NAMES", help=f"Comma-separated: {', '.join(BACKENDS)}, oracle. Default: the four."),
]
InputShape = Annotated[str, typer.Option(metavar="C,H,W", help="Channels, height and width of an image.")]
Device = Annotated[str, typer.Option(help="cpu or gpu.")]
Precision = Annotated[str, typer.Option(help="float32, float64 or bfloat16.")]
AnyBackend = Annotated[
    str, typer.Option(metavar="NAME", help=f"{', '.join(BACKENDS)}, oracle, or any: the first installed.")
]
Data = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        envvar="RESNET_TABS_DATA",
        help="Folder of the full Fashion-MNIST. Default: where it is found, else the shipped sample.",
    ),
]


def check_device(device: str) -> None:
    """Raise `ValueError` unless there is such a kind of device."""
    if device not in ("cpu", "gpu"):
        raise BadInput(f"unknown device {device!r}; give cpu or gpu")


def check_precision(precision: str) -> None:
    """Raise `ValueError` unless there is such a precision; not every backend has every one."""
    if precision not in ("float32", "float64", "bfloat16"):
        raise BadInput(f"unknown precision {precision!r}; give float32, float64 or bfloat16")


def any_backend(name: str) -> str:
    """The name itself, once its framework is known to be installed; for "any", the first that is."""
    name = (available_backends() or ["oracle"])[0] if name == "any" else name
    return load_backend(name).name


def choose_backends(names: str | None) -> list[Backend]:
    """The backends asked for. One that was named must be installed; the four are shown either way."""
    if names is None:
        return list(BACKENDS.values())
    chosen = list(dict.fromkeys(name.strip() for name in names.split(",")))
    for name in chosen:
        find_backend(name)  # an unknown name is said before a missing framework
    return [load_backend(name) for name in chosen]


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
