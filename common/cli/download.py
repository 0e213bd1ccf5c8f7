"""The command `download`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def download(
    to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to fetch into. Default: the user's cache.")
    ] = None,
) -> None:
    """Fetch the full Fashion-MNIST (30 MB) from its official mirror and check it."""
    from common import data

    typer.echo(f"Fashion-MNIST is in {data.download(to)}")
