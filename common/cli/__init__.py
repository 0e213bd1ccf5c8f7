"""The command `resnet-tabs`: one file a command, and the options they share."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

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
for command in (compare, bench, summary, download, train, evaluate, predict, convert, verify):
    app.command(context_settings={"token_normalize_func": lambda name: RENAMED.get(name, name)})(command)


def main() -> None:
    """The console script: what goes wrong is one line on standard error; bad input exits with 2."""
    for backend in BACKENDS.values():  # before a framework is imported, here or in a worker
        for name, value in backend.environment.items():
            os.environ.setdefault(name, value)
    try:
        exit_code = app(standalone_mode=False)
    except BadInput as error:
        _end(str(error), 2)
    except typer.TyperException as error:  # of the option parser
        _end(error.format_message(), 2)
    except Stopped as error:
        _end(str(error), error.exit_code)
    if exit_code == 130:  # what typer makes of KeyboardInterrupt
        _end("stopped at once", 130)
    sys.exit(exit_code)


def _end(line: str, exit_code: int) -> NoReturn:
    print(f"resnet-tabs: {shown(line)}", file=sys.stderr)
    sys.exit(exit_code)
