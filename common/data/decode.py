"""Image files, opened in this one place: by training, `evaluate`, `predict` and the search for bad ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.errors import BadInput
from common.reading import check_regular, shown

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
# Whatever a file's name says. Pillow would hand others, such as EPS, to programs beside it.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
MOST_PIXELS = 1 << 26  # of a file: more than any of ImageNet's; a thousand bytes can announce 4 GB of them
UNOPENED = "cannot be opened: "
MODES = {1: "L", 3: "RGB"}  # by the network's channels


def decode(path: Path, channels: int) -> Image:
    """The image in a file as uint8, RGB for 3 `channels` and grey for 1, whatever it is in the file.

    It is turned as its EXIF says. Of 16 bits the upper 8 are kept, of transparency the colours beneath it,
    of an animation, or of several pages, the first image.

    Raises:
        ValueError: if the file is no JPEG, PNG, WebP, BMP or TIFF that can be read, or has more than 2²⁶
            pixels, or others than of 8 or 16 bits.
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

    check_regular(path)
    with Image.open(path, formats=FORMATS) as image:
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"{image.width}×{image.height} pixels, and {MOST_PIXELS:,} is the most")
        if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
            raise ValueError("its pixels are of 32 bits, of which nothing says what is white")
        if quickly:
            image.draft("RGB", (1, 1))  # a JPEG at an eighth of its size
        image.load()
        ImageOps.exif_transpose(image, in_place=True)  # a copy less
    found: Image.Image = image
    if found.mode.startswith("I"):  # 16 bits, of which `convert` would make white
        found = Image.fromarray((np.asarray(found) >> 8).clip(0, 255).astype(np.uint8))
    elif "transparency" in found.info:  # one colour, or a palette's; `convert` would warn of it
        found = found.convert("RGBA")
    return found if found.mode == mode else found.convert(mode)


def _reason(error: Exception) -> str:
    """What Pillow raised, in one line."""
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):  # which says no more than the path
        return "no JPEG, PNG, WebP, BMP or TIFF"
    if isinstance(error, OSError) and error.strerror:
        return UNOPENED + error.strerror
    return shown(" ".join(str(error).split()) or type(error).__name__, 200)
