"""How an image becomes what a network sees, the same in validation, `evaluate` and `predict`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from common.architecture import unknown
from common.data import imagenet
from common.data.colours import NAMED, colours, normalise, read
from common.data.pipeline import check_size, resize
from common.errors import BadInput
from common.reading import check_fields, parse_json

if TYPE_CHECKING:
    from PIL.Image import Image

FASHION_SIZE = (28, 28)  # of its images in the files
FITS = ("crop", "folder", "whole", "fashion-mnist")
HALVES: dict[str, Callable[[float], int]] = {"even": round, "down": math.floor}
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")  # Pillow's


@dataclass(frozen=True)
class Preparation:
    """How an image becomes what a network sees. A checkpoint's metadata has it, and so it travels along.

    - "crop": the image is brought to `scaled`, which it covers, its sides as they are to each other, and the
      centre is cut out. So torchvision, timm and transformers do.
    - "folder", by `ImageFolder`: the same, but an image that has the size already is taken as it is, so that
      images written at the network's size keep their pixels.
    - "whole": the image is brought to `scaled` whatever its sides, and the centre is cut out.
    - "fashion-mnist": an image is brought to 28×28, as those are, and then to the size, as those were.

    Args:
        size: (height, width) of what the network sees.
        channels: 3, or 1 for greys.
        normalize: what becomes of colours, as `common.data.colours` reads it.
        fit: one of these.
        scaled: (height, width), not below the size; 8/7 of it unless told, 256 for 224.
        interpolation: one of Pillow's, by whose resampling an image that shrinks is smoothed.
        half: where the centre begins at half a pixel: "even", to the even one, as torchvision and timm do, or
            "down", as transformers and Gluon do.

    Raises:
        ValueError: for anything else.
    """

    size: tuple[int, int]
    channels: int
    normalize: str = "none"
    fit: str = "crop"
    scaled: tuple[int, int] | None = None
    interpolation: str = "bilinear"
    half: str = "even"

    def __post_init__(self) -> None:
        for name in ("size", "scaled"):  # lists, from JSON
            if (pair := getattr(self, name)) is not None:
                check_size("resize", tuple(pair))
                object.__setattr__(self, name, tuple(pair))
        if self.scaled is None:
            object.__setattr__(self, "scaled", tuple(side * 8 // 7 for side in self.size))
        if any(mine < least for mine, least in zip(self.around, self.size, strict=True)):
            raise BadInput(f"an image brought to {self.around} has no centre of {self.size}")
        for name, known in (("fit", FITS), ("interpolation", INTERPOLATIONS), ("half", tuple(HALVES))):
            if getattr(self, name) not in known:
                raise BadInput(unknown(name, str(getattr(self, name)), known))
        read(self.normalize)

    @property
    def around(self) -> tuple[int, int]:
        """What an image is brought to before the centre is cut out: `scaled`, once that is known."""
        return self.scaled or self.size

    def at(self, size: tuple[int, int]) -> Preparation:
        """The same for another size, `scaled` in proportion."""
        (height, width), (tall, wide) = self.size, self.around
        scaled = (size[0] * tall // height, size[1] * wide // width)
        return replace(self, size=size, scaled=scaled)

    def check(self) -> None:
        """Raise `ValueError` unless image files can be had in so many channels."""
        if self.channels not in (1, 3):
            raise BadInput(
                f"image files have 3 channels, or 1 for greys, not {self.channels}; "
                "give a network of so many, or to `predict` an array, X.npy"
            )
        colours(self.normalize, self.channels)

    def pixels(self, image: Image) -> NDArray[np.uint8]:
        """An image of so many channels as uint8 (H, W, C): of the size, or 28×28."""
        from PIL.Image import Resampling

        if self.fit == "fashion-mnist":
            return imagenet.pixels(image.resize(FASHION_SIZE, Resampling.BILINEAR))
        if self.fit == "folder" and image.size == self.size[::-1]:
            return imagenet.pixels(image)
        return imagenet.centre_crop(
            image,
            self.size,
            self.around,
            self.resampling,
            keep_ratio=self.fit != "whole",
            half=HALVES[self.half],
        )

    @property
    def resampling(self) -> int:
        """Pillow's number for the interpolation."""
        from PIL.Image import Resampling

        return Resampling[self.interpolation.upper()]

    def floats(self, images: NDArray[np.uint8], dtype: str) -> NDArray[np.floating]:
        """Images (N, H, W, C) of `pixels`, or random crops of the size, as float (N, C, *size)."""
        if self.fit == "fashion-mnist":
            n, height, width, channels = images.shape
            planes = images.transpose(0, 3, 1, 2).reshape(-1, height, width)
            return resize(planes, self.size, dtype).reshape(n, channels, *self.size)
        return normalise(images, dtype, self.normalize)

    def to_json(self) -> str:
        """All but the channels, which a network has, as a checkpoint's metadata keeps it."""
        said = {
            "size": self.size,
            "normalize": self.normalize,
            "fit": self.fit,
            "scaled": self.around,
            "interpolation": self.interpolation,
            "half": self.half,
        }
        return json.dumps(said)

    @classmethod
    def from_json(cls, text: str, channels: int) -> Preparation:
        """What `to_json` wrote.

        Raises:
            ValueError: if it is anything else.
        """
        fields: dict[str, Any] = parse_json(text, dict)
        fields |= {"channels": channels}
        try:
            check_fields(fields, cls)
            made = cls(**fields)
        except TypeError as error:
            raise BadInput(str(error)) from None
        if made.normalize != "none":
            colours(made.normalize, channels)
        return made

    def __str__(self) -> str:
        """In one line, for who wonders what is done to their images."""
        size, around = (f"{height}×{width}" for height, width in (self.size, self.around))
        if self.fit == "fashion-mnist":
            return f"brought to 28×28, as Fashion-MNIST's are, then to {size}; in [0, 1]"
        if self.fit == "whole":
            cut = "" if size == around else f", the centre of {size}"
            how = f"brought to {around} ({self.interpolation}){cut}"
        else:
            square = len({*self.size}) == len({*self.around}) == 1
            to = f"the shorter side to {self.around[0]}" if square else f"brought to cover {around}"
            own = f"{size} as they are, others " if self.fit == "folder" else ""
            how = f"{own}{to} ({self.interpolation}), the centre of {size}"
        kind = "greys" if self.channels == 1 else "RGB"
        if self.normalize == "none":
            return f"{how}; {kind} in [0, 1]"
        if self.normalize == "caffe":
            return f"{how}; BGR in 0…255 less ImageNet's mean, as Caffe and Keras have it"
        if self.normalize in NAMED:
            return f"{how}; {kind} normalised as {self.normalize}"
        mean, std = self.normalize.split("/")
        return f"{how}; {kind} in [0, 1] less {mean} over {std}"
