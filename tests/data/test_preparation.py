"""One preparation of images: what it does to those that have the size, by what the network was trained on."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from common import data
from common.data.imagenet import centre_crop
from common.data.preparation import Preparation
from common.errors import BadInput
from tests.data.folders import picture
from tests.helpers import one_line

SIZE = (32, 48)


def cut(image: Image.Image) -> NDArray[np.uint8]:
    return centre_crop(image, SIZE, (36, 54), Image.Resampling.BILINEAR)


def test_a_converted_networks_images_are_always_cut() -> None:
    for image in (picture(48, 32), picture(100, 60)):
        np.testing.assert_array_equal(Preparation(SIZE, 3, "imagenet").pixels(image), cut(image))


def test_a_folders_images_are_cut_unless_they_have_the_size() -> None:
    preparation = Preparation(SIZE, 3, fit="folder")
    np.testing.assert_array_equal(preparation.pixels(picture(48, 32)), picture(48, 32))
    for image in (picture(32, 48), picture(100, 60)):
        np.testing.assert_array_equal(preparation.pixels(image), cut(image))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fashion_mnist_in_files_is_what_training_saw(channels: int, dtype: str) -> None:
    preparation = Preparation(SIZE, channels, fit="fashion-mnist")
    originals, labels = data.sample().test_images[:8], data.sample().test_labels[:8]
    mode = {1: "L", 3: "RGB"}[channels]
    pixels = np.stack([preparation.pixels(Image.fromarray(image).convert(mode)) for image in originals])
    expected, _ = next(
        data.batches(originals, labels, 8, 0, shuffle=False, size=SIZE, channels=channels, dtype=dtype)
    )
    found = preparation.floats(pixels, dtype)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("channels", "normalize", "said"),
    [
        (4, "none", "3 channels, or 1 for greys, not 4"),
        (1, "imagenet", "give a network of 3, or normalize none"),
    ],
)
def test_channels_that_files_do_not_have_are_one_line(channels: int, normalize: str, said: str) -> None:
    with pytest.raises(BadInput, match=said) as error:
        Preparation(SIZE, channels, normalize).check()
    one_line(error)
