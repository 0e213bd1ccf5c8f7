"""The command `download`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from common.pages import say


def download(
    to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to fetch into. Default: the user's cache.")
    ] = None,
    as_images: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Write its images here, too, as PNG files in folders of classes."
        ),
    ] = None,
) -> None:
    """Fetch the full Fashion-MNIST (30 MB) from its official mirror and check it.

    With --as-images, nothing is fetched where the full set is on the machine already.
    """
    from common import data
    from common.errors import MissingFile

    if as_images is None:
        say(f"Fashion-MNIST is in {data.download(to)}")
        return
    try:
        images = data.full(to)
    except MissingFile:
        images = data.full(data.download(to))
    data.write_images(images, as_images)
    count = len(images.train_images) + len(images.test_images)
    say(f"{count:,} images of Fashion-MNIST are in {as_images}, a folder for `train --data`")
