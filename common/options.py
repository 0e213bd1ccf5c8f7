"""Arguments and options that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

from common.architecture import ZOO
from common.backend import BACKENDS, available_backends, load_backend
from common.errors import BadInput

Arch = Annotated[str, typer.Argument(metavar="ARCH", help=f"Name of the network: {', '.join(ZOO)}.")]
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
