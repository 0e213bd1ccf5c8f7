"""Folders of images for the tests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.data import ImageFolder


def picture(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """Noise, smoothed, so that resizing has something to get wrong."""
    shape = (height // 8 + 2, width // 8 + 2, len(Image.new(mode, (1, 1)).getbands()))
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    bands = [Image.fromarray(band) for band in pixels.transpose(2, 0, 1)]
    return Image.merge(mode, bands).resize((width, height), Image.Resampling.BICUBIC)


def make_folder(root: Path, train: int = 12, val: int = 4, size: tuple[int, int] = (40, 30)) -> Path:
    """train/CLASS/*.jpg and val/CLASS/*.jpg of cats and dogs, so many each; `size` is (width, height)."""
    for part, count in (("train", train), ("val", val)):
        for number, name in enumerate(("cat", "dog")):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                seed = 1000 * number + i + (500 if part == "val" else 0)
                picture(*size, seed).save(root / part / name / f"{name}{i:03}.jpg", quality=95)
    return root


def _turned(path: Path, side: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    picture(2 * side, side).save(path, exif=exif, quality=95)


def _turned_tiff(path: Path, side: int) -> None:
    picture(2 * side, side).save(path, tiffinfo={0x0112: 6})


def _sixteen_bits(path: Path, side: int) -> None:
    grey = np.asarray(picture(side, side).convert("L")).astype(np.uint16)
    Image.fromarray(grey * 256 + 200).save(path)


def _several(path: Path, side: int) -> None:
    """An animation, or pages."""
    first, second = (picture(side, side, seed) for seed in (0, 1))
    first.save(path, save_all=True, append_images=[second], lossless=True)


# Name → who writes such a file, given its path and a side of so many pixels.
FILES: dict[str, Callable[[Path, int], None]] = {
    "at the size.png": lambda path, side: picture(side, side).save(path),
    "large.png": lambda path, side: picture(3 * side, 2 * side).save(path),
    "small.png": lambda path, side: picture(side // 2, side // 2 + 3).save(path),
    "odd.png": lambda path, side: picture(side + 1, 2 * side + 1).save(path),
    "turned.jpg": _turned,
    "grey.png": lambda path, side: picture(side, side).convert("L").save(path),
    "two colours.png": lambda path, side: picture(side, side).convert("1").save(path),
    "glass.png": lambda path, side: picture(side, side, mode="RGBA").save(path),
    "grey glass.png": lambda path, side: picture(side, side).convert("LA").save(path),
    "palette.png": lambda path, side: picture(side, side).convert("P").save(path),
    "palette and glass.png": lambda path, side: (
        picture(side, side).convert("P").save(path, transparency=b"\x00\xff\x80")
    ),
    "ink.jpg": lambda path, side: picture(side, side).convert("CMYK").save(path),
    "sixteen bits.png": _sixteen_bits,
    "colours.bmp": lambda path, side: picture(side, side).save(path),
    "palette.bmp": lambda path, side: picture(side, side).convert("P").save(path),
    "turned.tif": _turned_tiff,
    "ink.tif": lambda path, side: picture(side, side).convert("CMYK").save(path),
    "glass.tiff": lambda path, side: picture(side, side, mode="RGBA").save(path, compression="tiff_lzw"),
    "sixteen bits.tif": _sixteen_bits,
    "pages.tif": _several,
    "moving.webp": _several,
    "glass.webp": lambda path, side: picture(side, side, mode="RGBA").save(path, lossless=True, exact=True),
}


def write_file(folder: Path, kind: str, side: int) -> Path:
    """The file of this kind in a folder."""
    FILES[kind](folder / kind, side)
    return folder / kind


def dealt_out(root: str | Path, num_workers: int, **options: Any) -> str:
    """A digest of all batches of a folder's data module with these options."""
    digest = hashlib.sha256()
    module = ImageFolder(root, **options, num_workers=num_workers)
    for loader in (module.train_dataloader(3, 1), module.val_dataloader()):
        for x, y in loader:
            digest.update(x.tobytes() + y.tobytes())
    return digest.hexdigest()
