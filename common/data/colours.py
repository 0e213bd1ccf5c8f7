"""What becomes of a pixel's colours: their order, their range, and the mean and deviation of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.data.imagenet import MEAN, STD
from common.errors import BadInput
from common.reading import brief


@dataclass(frozen=True)
class Colours:
    """(value · highest / 255 − mean) / std of each channel of a uint8 pixel, in an order.

    Attributes:
        mean, std: of each channel, in that order.
        order: "rgb" or "bgr".
        highest: what 255 becomes before the mean is taken off.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    order: str = "rgb"
    highest: int = 1


# What libraries call their conventions. "caffe" is that of keras.applications' ResNets, "inception" its "tf".
NAMED = {
    "imagenet": Colours(MEAN, STD),
    "inception": Colours((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "caffe": Colours((103.939, 116.779, 123.68), (1, 1, 1), "bgr", 255),
}
KNOWN = f"{', '.join(NAMED)}, none, or means and deviations in [0, 1] such as 0.5,0.5,0.5/0.2,0.2,0.2"


def colours(normalize: str, channels: int) -> Colours:
    """What a text means, for images of so many channels.

    Args:
        normalize: one of `NAMED`, "none" for values in [0, 1], or "MEAN,…/DEVIATION,…", for each channel one.

    Raises:
        ValueError: if it means nothing, or is of another number of channels.
    """
    found = read(normalize) or Colours((0,) * channels, (1,) * channels)
    if len(found.mean) != channels:
        raise BadInput(
            f"normalize {brief(normalize)} is of {len(found.mean)} channels, and the network of {channels}; "
            f"give a network of {len(found.mean)}, or normalize none"
        )
    return found


def read(normalize: str) -> Colours | None:
    """What a text means; None for "none", which is of any number of channels.

    Raises:
        ValueError: if it means nothing.
    """
    return None if normalize == "none" else NAMED.get(normalize) or _in_figures(normalize)


def in_figures(mean: Sequence[float], std: Sequence[float]) -> str:
    """How these means and deviations are written, for values in [0, 1]: by their name if they have one."""
    mean, std = tuple(mean), tuple(std)
    if (mean, std) == ((0,) * len(mean), (1,) * len(std)):
        return "none"
    named = (name for name, known in NAMED.items() if (known.mean, known.std) == (mean, std))
    return next(named, "/".join(",".join(map(str, figures)) for figures in (mean, std)))


def _in_figures(text: str) -> Colours:
    try:
        mean, std = (tuple(map(float, part.split(","))) for part in text.split("/"))
    except ValueError:
        raise BadInput(f"unknown normalize {brief(text)}; give {KNOWN}") from None
    is_whole = all(map(math.isfinite, mean)) and all(0 < each < math.inf for each in std)
    if len(mean) != len(std) or not is_whole:
        raise BadInput(f"normalize {brief(text)} is no mean and deviation above 0 a channel; give {KNOWN}")
    return Colours(mean, std)


def levels(dtype: str, normalize: str, channels: int) -> NDArray[np.floating]:
    """What each of a pixel's 256 values becomes, (channels, 256), in the order of `colours`."""
    how = colours(normalize, channels)
    values = np.arange(256, dtype=dtype)
    if how.highest == 1:
        values = values / np.array(255, dtype)
    mean, std = np.array(how.mean, dtype)[:, None], np.array(how.std, dtype)[:, None]
    return (values - mean) / std


def normalise(images: NDArray[np.uint8], dtype: str, normalize: str) -> NDArray[np.floating]:
    """Images (N, H, W, C) as float (N, C, H, W), by a table: quicker than arithmetic."""
    n, height, width, channels = images.shape
    table = levels(dtype, normalize, channels)
    planes = images[..., ::-1] if colours(normalize, channels).order == "bgr" else images
    x = np.empty((n, channels, height, width), dtype)
    for image, out in zip(planes, x, strict=True):
        for channel in range(channels):
            np.take(table[channel], image[:, :, channel], out=out[channel], mode="clip")
    return x
