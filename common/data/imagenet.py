"""ImageNet: its thousand classes, and images as the networks trained on it want them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

NAME = "imagenet"  # under "dataset" in a checkpoint's metadata
NUM_CLASSES = 1000
SIZE = 224  # height and width, unless told otherwise

# Of the channels of the training images, red, green, blue: what torchvision, timm and transformers use.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def classes() -> tuple[str, ...]:
    """The names of the classes, in the order of the logits, as torchvision's weights name them."""
    path = Path(__file__).with_name("imagenet_classes.txt")
    return tuple(path.read_text(encoding="utf-8").splitlines())


def preprocess(image: Image, size: int = SIZE) -> NDArray[np.float32]:
    """An image as float32 (3, size, size), normalised.

    The shorter side is brought to 8/7 of `size` (256 for 224), bilinear and smoothed; the centre is cut
    out: the usual evaluation (He et al. 2015, section 4.1: single crop).
    """
    from PIL.Image import Resampling

    shorter = size * 8 // 7
    width, height = image.size
    if width <= height:
        scaled = (shorter, int(shorter * height / width))
    else:
        scaled = (int(shorter * width / height), shorter)
    left, top = (int(round((side - size) / 2)) for side in scaled)
    cut = image.convert("RGB").resize(scaled, Resampling.BILINEAR).crop((left, top, left + size, top + size))
    pixels = np.asarray(cut, np.float32) / 255  # (size, size, 3)
    normalised = (pixels - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return normalised.transpose(2, 0, 1).astype(np.float32)
