"""Folders of images for the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


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
