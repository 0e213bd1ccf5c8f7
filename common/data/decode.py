"""Image files, opened in this one place: by training, `evaluate`, `predict` and the search for bad ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.errors import BadInput

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
# Whatever a file's name says. Pillow would hand others, such as EPS, to programs beside it.
FORMATS = ("JPEG", "PNG", "WEBP")
MODES = {1: "L", 3: "RGB"}  # by the network's channels


def decode(path: Path, channels: int) -> Image:
    """The image in a file as uint8, RGB for 3 `channels` and grey for 1, whatever it is in the file.

    It is turned as its EXIF says. Of 16 bits the upper 8 are kept, of transparency the colours beneath it,
    of an animation the first image.

    Raises:
        ValueError: if the file is no JPEG, PNG or WebP that can be read, or has so many pixels that they
            would fill the memory.
    """
    try:
        return _open(path, MODES[channels])
    except Exception as error:  # a damaged file can make Pillow raise anything
        raise BadInput(
            f"{path} is not an image that can be read ({_reason(error)}); replace it, or skip bad ones"
        ) from None


def why_bad(path: Path) -> str:
    """Why a file is no image that `decode` can read; empty where it is one."""
    try:
        _open(path, "RGB", quickly=True)
    except Exception as error:
        return _reason(error)
    return ""


def _open(path: Path, mode: str, quickly: bool = False) -> Image:
    """Raises whatever Pillow does. `quickly`, the image is a small one, of a file that was read whole."""
    from PIL import Image, ImageOps

    with Image.open(path, formats=FORMATS) as image:
        if quickly:
            image.draft("RGB", (1, 1))  # a JPEG at an eighth of its size
        image.load()
    turned = ImageOps.exif_transpose(image)
    if turned.mode.startswith("I"):  # 16 bits, of which `convert` would make white
        upper = np.asarray(turned).astype(np.int64) >> 8
        turned = Image.fromarray(upper.clip(0, 255).astype(np.uint8))
    elif "transparency" in turned.info:  # one colour, or a palette's; `convert` would warn of it
        turned = turned.convert("RGBA")
    return turned.convert(mode)


def _reason(error: Exception) -> str:
    """What Pillow raised, in one line."""
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):  # which says no more than the path
        return "no JPEG, PNG or WebP"
    return " ".join(str(error).split()) or type(error).__name__
