"""The command `resnet-tabs`: one file a command, and the options they share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args, get_type_hints

import typer

from common.backend import BACKENDS
from common.cli.bench import bench
from common.cli.compare import compare
from common.cli.convert import convert
from common.cli.download import download
from common.cli.evaluate import evaluate
from common.cli.predict import predict
from common.cli.summary import summary
from common.cli.train import train
from common.cli.verify import verify
from common.errors import BadInput, Stopped
from common.processes.output import lost, occupy_standard_descriptors, unfailing
from common.reading import shown

app = typer.Typer(
    help="One ResNet in MXNet, PyTorch, TensorFlow and JAX, proven to be the same network.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
# Options of an earlier name, which help no longer shows.
RENAMED = {"num-workers": "loaders", "dtype": "precision"}


def named(name: str | Path) -> Path:
    """A file or folder; not the current one for an empty name, that of a variable that is not set."""
    if name == "":
        raise typer.BadParameter("it is empty; name a file or a folder")
    return Path(name)


def with_named_paths(command: Callable[..., None]) -> Callable[..., None]:
    """The command, whose every file and folder is `named`."""
    command.__annotations__ = get_type_hints(command, include_extras=True)
    for hint in command.__annotations__.values():
        match get_args(hint):
            case (kind, typer.models.ParameterInfo() as info) if Path in (kind, *get_args(kind)):
                info.parser = named
    return command


for command in (compare, bench, summary, download, train, evaluate, predict, convert, verify):
    renaming = {"token_normalize_func": lambda name: RENAMED.get(name, name)}
    app.command(context_settings=renaming)(with_named_paths(command))


def main() -> None:
    """The console script: what goes wrong is one line on standard error; bad input exits with 2.

    Output that cannot be written ends nothing. At the end a line says so, and the exit code is 1, but for
    `train`, whose run is in its folder, and where the reader has closed the pipe.
    """
    occupy_standard_descriptors()
    sys.stdout, sys.stderr = unfailing(sys.stdout), unfailing(sys.stderr)
    for backend in BACKENDS.values():  # before a framework is imported, here or in a worker
        for name, value in backend.environment.items():
            os.environ.setdefault(name, value)
    exit_code, line = _run()
    if line:
        print(f"resnet-tabs: {shown(line)}", file=sys.stderr)
    error = lost(sys.stdout)
    if error and not isinstance(error, BrokenPipeError):
        print(f"resnet-tabs: not all could be printed: {error.strerror}", file=sys.stderr)
        exit_code = exit_code or int(sys.argv[1:2] != ["train"])
    sys.exit(exit_code)


def _run() -> tuple[int, str]:
    """The exit code of the command that was given, and what to say of it."""
    try:
        exit_code = app(standalone_mode=False) or 0
    except (BadInput, Stopped) as error:
        return error.exit_code, str(error)
    except typer.TyperException as error:  # of the option parser
        return 2, error.format_message()
    except OSError as error:  # no room for temporary files, too many open ones
        return 1, str(error)
    return exit_code, "stopped at once" if exit_code == 130 else ""  # what typer makes of KeyboardInterrupt
