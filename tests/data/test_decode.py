"""Image files: every kind is decoded, none by another program, and what is no image is one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data.decode import decode, why_bad
from common.errors import BadInput
from tests.data.folders import FILES, picture, write_file
from tests.helpers import one_line


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", FILES)
def test_every_kind_of_file_is_decoded(tmp_path: Path, kind: str, channels: int) -> None:
    path = write_file(tmp_path, kind, 40)
    assert why_bad(path) == ""
    found = decode(path, channels)
    assert found.mode == {1: "L", 3: "RGB"}[channels]
    pixels = np.asarray(found).astype(int)
    sizes = {"large.png": (120, 80), "small.png": (20, 23), "odd.png": (41, 81)}
    sizes |= {"turned.jpg": (40, 80), "turned.tif": (40, 80)}
    if kind in sizes:
        assert found.size == sizes[kind]
        return
    expected = picture(40, 40, mode="RGBA" if kind.startswith("glass") else "RGB").convert("RGB")
    if kind.startswith(("grey", "sixteen bits")):
        expected = expected.convert("L")
    if kind == "two colours.png":
        expected = expected.convert("1")
    far = abs(pixels - np.asarray(expected.convert(found.mode)).astype(int))
    if kind.startswith(("palette", "ink")):  # which lose some colours
        assert far.mean() < 60
    else:
        assert far.max() == 0


@pytest.mark.parametrize("kind", ["jpg", "tif"])
def test_exif_turns_it(tmp_path: Path, kind: str) -> None:
    picture(80, 40).save(tmp_path / f"lying.{kind}", quality=95)
    lying = decode(tmp_path / f"lying.{kind}", 3)
    turned = decode(write_file(tmp_path, f"turned.{kind}", 40), 3)
    np.testing.assert_array_equal(turned, lying.transpose(Image.Transpose.ROTATE_270))


def test_the_first_of_an_animation_is_taken(tmp_path: Path) -> None:
    first, second = picture(48, 32, 1), picture(48, 32, 2)
    first.save(tmp_path / "animated.webp", save_all=True, append_images=[second], lossless=True)
    np.testing.assert_array_equal(decode(tmp_path / "animated.webp", 3), first)


def test_a_photograph_with_a_second_image_in_it_is_a_jpeg(tmp_path: Path) -> None:
    picture(48, 32, 1).save(tmp_path / "two.jpg", "MPO", save_all=True, append_images=[picture(48, 32, 2)])
    assert decode(tmp_path / "two.jpg", 3).size == (48, 32)


@pytest.mark.parametrize("kind", ["EPS", "GIF", "PPM", "ICO", "PDF"])
def test_other_formats_are_not_opened_whatever_they_are_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("subprocess.check_call", lambda *_: pytest.fail("a program was started"))
    path = tmp_path / "drawing.jpg"
    picture(40, 40).save(path, kind)
    with pytest.raises(
        BadInput, match=r"\(no JPEG, PNG, WebP, BMP or TIFF\); replace it, or skip bad ones"
    ) as error:
        decode(path, 3)
    one_line(error)
    assert why_bad(path) == "no JPEG, PNG, WebP, BMP or TIFF"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_more_pixels_than_any_photograph_has_are_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = tmp_path / "large.png"
    Image.new("L", (100, 51)).save(path, kind)
    monkeypatch.setattr("common.data.decode.MOST_PIXELS", 5000)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("it was decoded"))
    assert why_bad(path) == "100×51 pixels, and 5,000 is the most"
    with pytest.raises(BadInput, match="5,000 is the most"):
        decode(path, 3)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_without_a_white_are_refused(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (40, 40), 1).save(tmp_path / "depths.tif")
    with pytest.raises(BadInput, match="of 32 bits, of which nothing says what is white"):
        decode(tmp_path / "depths.tif", 3)


def test_whatever_pillow_raises_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_file(tmp_path, "grey.png", 40)

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr(Image, "open", broken)
    with pytest.raises(BadInput, match=r"grey\.png is not an image that can be read \(two lines\)") as error:
        decode(path, 3)
    one_line(error)
    monkeypatch.setattr(Image, "open", lambda *_, **__: [][0])
    assert why_bad(path) == "list index out of range"
