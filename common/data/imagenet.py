"""ImageNet's conventions: how its images are prepared and augmented, and what its classes are called.

The pixels are those of torchvision's transforms, as its reference training has them: by Pillow's resampling,
which smooths where an image shrinks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

NUM_CLASSES = 1000
SIZE = 224  # height and width, unless told otherwise

# Of the channels of the training images, red, green, blue: what torchvision, timm and transformers use.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

SCALE = (0.08, 1.0)  # of a random crop: its share of the image's area
RATIO = (3 / 4, 4 / 3)  # and its width by its height


def classes() -> tuple[str, ...]:
    """The names of the classes, in the order of the logits, as torchvision's weights name them."""
    path = Path(__file__).with_name("imagenet_classes.txt")
    return tuple(path.read_text(encoding="utf-8").splitlines())


def centre_crop(
    image: Image,
    size: tuple[int, int],
    around: tuple[int, int],
    resampling: int,
    *,
    keep_ratio: bool = True,
    half: Callable[[float], int] = round,
) -> NDArray[np.uint8]:
    """The centre of an image, as uint8 (height, width, C).

    The image is brought to `around` (256×256 for 224×224), of which it has at least as much as there is if it
    keeps its ratio, and the centre is cut out (He et al. 2015, section 4.1: single crop). Where that begins
    at half a pixel, `half` makes it a whole one.
    """
    (height, width), (tall, wide) = size, around
    if not keep_ratio:
        scaled = wide, tall
    elif image.width * tall >= image.height * wide:  # as wide or wider
        scaled = int(tall * image.width / image.height), tall
    else:
        scaled = wide, int(wide * image.height / image.width)
    left, top = half((scaled[0] - width) / 2), half((scaled[1] - height) / 2)
    if scaled[0] * scaled[1] > 64 * width * height:  # a ribbon, which as a whole would fill the memory
        across, down = image.width / scaled[0], image.height / scaled[1]
        box = (left * across, top * down, (left + width) * across, (top + height) * down)
        return pixels(image.resize((width, height), resampling, box=box))
    return pixels(image.resize(scaled, resampling).crop((left, top, left + width, top + height)))


def random_resized_crop(
    image: Image, size: tuple[int, int], resampling: int, generator: np.random.Generator
) -> NDArray[np.uint8]:
    """A random part of an image, resized: uint8 (height, width, C).

    Its area is 8 % to all of the image's, its shape 3:4 to 4:3 (Szegedy et al. 2014, section 6). After ten
    draws that do not fit it is the largest central part of such a shape.
    """
    height, width = size
    box = _random_box(image.width, image.height, generator)
    return pixels(image.resize((width, height), resampling, box=box))


def random_flip(image: NDArray[np.uint8], generator: np.random.Generator) -> NDArray[np.uint8]:
    """An image (H, W, C), left to right with probability 1/2."""
    return image[:, ::-1] if generator.random() < 0.5 else image


def pixels(image: Image) -> NDArray[np.uint8]:
    """(H, W, C), grey with its one channel."""
    return np.asarray(image).reshape(image.height, image.width, -1)


def _random_box(width: int, height: int, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a random part."""
    for _ in range(10):
        area = width * height * generator.uniform(*SCALE)
        ratio = math.exp(generator.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = (int(generator.integers(0, room + 1)) for room in (width - w, height - h))
            return left, top, left + w, top + h
    w = min(width, max(1, round(height * RATIO[1])))
    h = min(height, max(1, round(width / RATIO[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
