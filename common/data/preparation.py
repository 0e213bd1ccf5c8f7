"""How an image becomes what a network sees, the same in validation, `evaluate` and `predict`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from common.data import imagenet
from common.data.pipeline import resize
from common.errors import BadInput

if TYPE_CHECKING:
    from PIL.Image import Image

FASHION_SIZE = (28, 28)  # of its images in the files


@dataclass(frozen=True)
class Preparation:
    """What is done to images depends on what the network was trained on.

    - "imagenet", as converted networks were: what torchvision's weights ask for. The shorter side is brought
      to 8/7 of the size (256 for 224) and the centre cut out, also of an image that has the size already.
    - "folder", by `ImageFolder`: the same, but an image that has the size already is taken as it is, so that
      images written at the network's size keep their pixels.
    - "fashion-mnist": an image is brought to 28×28, as those are, and then to the size, as those were.

    Args:
        trained_on: one of these.
        size: (height, width) of what the network sees.
        channels: 3, or 1 for greys.
        normalize: "imagenet" takes ImageNet's mean and deviation off; "none" leaves values in [0, 1].
    """

    trained_on: str
    size: tuple[int, int]
    channels: int
    normalize: str = "none"

    def pixels(self, image: Image) -> NDArray[np.uint8]:
        """An image of so many channels as uint8 (H, W, C): of the size, or 28×28."""
        from PIL.Image import Resampling

        if self.trained_on == "fashion-mnist":
            return imagenet.pixels(image.resize(FASHION_SIZE, Resampling.BILINEAR))
        if self.trained_on == "folder" and image.size == self.size[::-1]:
            return imagenet.pixels(image)
        return imagenet.centre_crop(image, self.size)

    def floats(self, images: NDArray[np.uint8], dtype: str) -> NDArray[np.floating]:
        """Images (N, H, W, C) of `pixels`, or random crops of the size, as float (N, C, *size)."""
        if self.trained_on == "fashion-mnist":
            n, height, width, channels = images.shape
            planes = images.transpose(0, 3, 1, 2).reshape(-1, height, width)
            return resize(planes, self.size, dtype).reshape(n, channels, *self.size)
        return imagenet.normalise(images, imagenet.levels(dtype, self.normalize, self.channels))

    def check(self) -> None:
        """Raise `ValueError` unless image files can be had in so many channels."""
        if self.channels not in (1, 3):
            raise BadInput(
                f"image files have 3 channels, or 1 for greys, not {self.channels}; "
                "give a network of so many, or to `predict` an array, X.npy"
            )
        if self.channels == 1 and self.normalize != "none":
            raise BadInput(
                "ImageNet's mean and deviation are of 3 channels; give a network of 3, or normalize none"
            )
