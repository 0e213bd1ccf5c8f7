"""Fashion-MNIST: the right files or one clear line, exact resizing, one batch order for everyone."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import data
from common.errors import BadInput, MissingFile

NAMES = tuple(data.FULL_SHA256)
TRAIN_IMAGES = f"{NAMES[0]}.gz"

lengths = st.integers(1, 40)


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No full set anywhere, unless a test puts one there; returns where the user's cache would be."""
    monkeypatch.delenv("RESNET_TABS_DATA", raising=False)
    monkeypatch.setattr(data, "user_cache_path", lambda name: tmp_path / "cache" / name)
    monkeypatch.setattr(data, "DEBIAN", tmp_path / "debian")
    return tmp_path / "cache" / "resnet-tabs" / "fashion-mnist"


@pytest.fixture
def sample_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample's files pass for the full set, so that its whole path runs on any machine."""
    monkeypatch.setattr(data, "FULL_SHA256", data.SAMPLE_SHA256)


def put_sample(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in NAMES:
        shutil.copy(data.SAMPLE / f"{name}.gz", folder)
    return folder


def one_line(error: pytest.ExceptionInfo[BaseException], *words: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


# The files


def test_sample_is_small_and_whole() -> None:
    images = data.sample()
    assert images.train_images.shape == (1000, 28, 28) and images.train_labels.shape == (1000,)
    assert images.test_images.shape == (500, 28, 28) and images.test_labels.shape == (500,)
    for array in (images.train_images, images.train_labels, images.test_images, images.test_labels):
        assert array.dtype == np.uint8
    assert images.source == "the shipped sample (1,000 + 500 images)"
    assert set(images.train_labels) == set(images.test_labels) == set(range(len(data.CLASSES)))
    assert images.train_images.min() == 0 and images.train_images.max() == 255


def test_sample_files_have_the_digests_and_are_under_a_megabyte() -> None:
    assert {path.name for path in data.SAMPLE.iterdir()} == {f"{name}.gz" for name in NAMES} | {"LICENSE"}
    for name, digest in data.SAMPLE_SHA256.items():
        content = gzip.decompress((data.SAMPLE / f"{name}.gz").read_bytes())
        assert hashlib.sha256(content).hexdigest() == digest
    assert sum(path.stat().st_size for path in data.SAMPLE.iterdir()) < 1_000_000
    licence = (data.SAMPLE / "LICENSE").read_text(encoding="utf-8")
    assert "Zalando SE" in licence and "Permission is hereby granted" in licence


def test_sample_is_the_head_of_the_full_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # look where a user's set would be found
    try:
        everything = data.full()
    except MissingFile as error:
        pytest.skip(str(error))
    head = data.sample()
    assert everything.train_images.shape == (60_000, 28, 28) and everything.train_labels.shape == (60_000,)
    assert everything.test_images.shape == (10_000, 28, 28) and everything.test_labels.shape == (10_000,)
    assert everything.source.endswith("(60,000 + 10,000 images)")
    np.testing.assert_array_equal(everything.train_images[:1000], head.train_images)
    np.testing.assert_array_equal(everything.train_labels[:1000], head.train_labels)
    np.testing.assert_array_equal(everything.test_images[:500], head.test_images)
    np.testing.assert_array_equal(everything.test_labels[:500], head.test_labels)
    assert (np.bincount(everything.train_labels) == 6000).all()
    assert (np.bincount(everything.test_labels) == 1000).all()


def test_full_looks_in_the_named_folder_then_the_variable_then_cache_then_debian(
    sample_is_full: None, nowhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found() -> str:
        return data.full().source

    put_sample(data.DEBIAN)
    assert f"in {data.DEBIAN} " in found()
    put_sample(nowhere)
    assert f"in {nowhere} " in found()
    monkeypatch.setenv("RESNET_TABS_DATA", str(put_sample(tmp_path / "variable")))
    assert f"in {tmp_path / 'variable'} " in found()
    named = put_sample(tmp_path / "named")
    assert data.full(named).source == f"the full set in {named} (1,000 + 500 images)"
    assert f"in {named} " in data.full(str(named)).source


def test_a_cache_with_a_file_missing_is_passed_over(sample_is_full: None, nowhere: Path) -> None:
    put_sample(data.DEBIAN)
    (put_sample(nowhere) / TRAIN_IMAGES).unlink()
    assert f"in {data.DEBIAN} " in data.full().source


def test_unpacked_files_are_read_and_checked_too(sample_is_full: None, tmp_path: Path) -> None:
    folder = put_sample(tmp_path / "unpacked")
    for name in NAMES:
        packed = folder / f"{name}.gz"
        (folder / name).write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    np.testing.assert_array_equal(data.full(folder).train_images, data.sample().train_images)

    with (folder / NAMES[0]).open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(BadInput) as error:
        data.full(folder)
    one_line(error, str(folder / NAMES[0]), "wrong SHA-256")


def test_found_nowhere_says_every_way_to_get_it() -> None:
    with pytest.raises(MissingFile) as error:
        data.full()
    one_line(error, "--data", "RESNET_TABS_DATA", "resnet-tabs download", "dataset-fashion-mnist")


@pytest.mark.parametrize("how", ["argument", "variable"])
@pytest.mark.parametrize("what", ["no folder", "empty folder", "one file missing"])
def test_a_named_folder_without_the_files_is_an_error(
    sample_is_full: None, nowhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, what: str
) -> None:
    put_sample(nowhere)  # there, and not to be fallen back on
    folder = tmp_path / "named"
    if what == "one file missing":
        (put_sample(folder) / TRAIN_IMAGES).unlink()
    elif what == "empty folder":
        folder.mkdir()
    if how == "variable":
        monkeypatch.setenv("RESNET_TABS_DATA", str(folder))
    with pytest.raises(MissingFile) as error:
        data.full(folder if how == "argument" else None)
    one_line(error, str(folder), TRAIN_IMAGES, "resnet-tabs download")
    assert ("RESNET_TABS_DATA=" in str(error.value)) == (how == "variable")


def flip_a_byte(content: bytes) -> bytes:
    return content[:1000] + bytes([content[1000] ^ 1]) + content[1001:]


def other_pixels(content: bytes) -> bytes:
    return gzip.compress(flip_a_byte(gzip.decompress(content)))


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut short": (lambda content: content[:-100], "not a whole gzip file"),
    "cut in the header": (lambda content: content[:5], "not a whole gzip file"),
    "a bit flipped": (flip_a_byte, "not a whole gzip file"),
    "not gzip": (lambda content: b"<html>404</html>", "not a whole gzip file"),
    "empty": (lambda content: b"", "wrong SHA-256"),
    "other pixels": (other_pixels, "wrong SHA-256"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("which", ["sample", "full"])
def test_a_damaged_file_is_one_line_that_names_it(
    sample_is_full: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str, which: str
) -> None:
    folder = put_sample(tmp_path / "damaged")
    change, words = DAMAGE[damage]
    path = folder / TRAIN_IMAGES
    path.write_bytes(change(path.read_bytes()))
    monkeypatch.setattr(data, "SAMPLE", folder)
    with pytest.raises(BadInput) as error:
        data.sample() if which == "sample" else data.full(folder)
    one_line(error, str(path), words, "install resnet-tabs again" if which == "sample" else "replace it")


def test_an_incomplete_sample_says_install_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "SAMPLE", tmp_path)
    with pytest.raises(MissingFile) as error:
        data.sample()
    one_line(error, TRAIN_IMAGES, "install resnet-tabs again")


# Downloading, from a mirror on this machine


class Mirror(SimpleHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is served in the place of the official mirror; it holds the sample's files."""
    folder = put_sample(tmp_path / "mirror")
    Mirror.asked = []
    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Mirror, directory=str(folder))) as server:
        monkeypatch.setattr(data, "MIRROR", f"http://127.0.0.1:{server.server_address[1]}/")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder
        server.shutdown()
        thread.join()


def test_download_puts_the_files_where_full_finds_them(
    mirror: Path, sample_is_full: None, nowhere: Path
) -> None:
    assert data.download() == nowhere
    assert sorted(path.name for path in nowhere.iterdir()) == sorted(f"{name}.gz" for name in NAMES)
    for path in nowhere.iterdir():
        assert path.read_bytes() == (mirror / path.name).read_bytes()
    np.testing.assert_array_equal(data.full().test_images, data.sample().test_images)


def test_download_fetches_only_what_is_missing_or_damaged(
    mirror: Path, sample_is_full: None, tmp_path: Path
) -> None:
    folder = put_sample(tmp_path / "mine")
    (folder / f"{NAMES[1]}.gz").write_bytes(b"not gzip")
    (folder / f"{NAMES[3]}.gz").unlink()
    assert data.download(folder) == folder
    assert Mirror.asked == [f"/{NAMES[1]}.gz", f"/{NAMES[3]}.gz"]
    assert data.full(folder).train_images.shape == (1000, 28, 28)


@pytest.mark.parametrize("damage", DAMAGE)
def test_download_of_something_else_leaves_nothing(
    mirror: Path, sample_is_full: None, nowhere: Path, damage: str
) -> None:
    change, words = DAMAGE[damage]
    path = mirror / TRAIN_IMAGES
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(BadInput) as error:
        data.download()
    one_line(error, data.MIRROR + TRAIN_IMAGES, words, "dataset-fashion-mnist")
    assert list(nowhere.iterdir()) == []


def test_download_checks_against_the_published_files(mirror: Path, nowhere: Path) -> None:
    with pytest.raises(BadInput) as error:  # whole files, though not the full set's
        data.download()
    one_line(error, "wrong SHA-256")
    assert list(nowhere.iterdir()) == []


def test_download_of_a_file_the_mirror_lacks(mirror: Path, sample_is_full: None, nowhere: Path) -> None:
    (mirror / TRAIN_IMAGES).unlink()
    with pytest.raises(BadInput) as error:
        data.download()
    one_line(error, data.MIRROR + TRAIN_IMAGES, "cannot download", "not found")
    assert list(nowhere.iterdir()) == []


def test_download_that_breaks_off(
    mirror: Path, sample_is_full: None, nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(self: Mirror) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"half")

    monkeypatch.setattr(Mirror, "do_GET", half)
    with pytest.raises(BadInput) as error:
        data.download()
    one_line(error, data.MIRROR + TRAIN_IMAGES, "cannot download", "IncompleteRead")
    assert list(nowhere.iterdir()) == []


def test_download_without_a_network(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(data, "MIRROR", "http://127.0.0.1:1/")  # nobody listens on port 1
    with pytest.raises(BadInput) as error:
        data.download()
    one_line(error, "cannot download", "http://127.0.0.1:1/", "dataset-fashion-mnist")
    assert list(nowhere.iterdir()) == []


def test_download_into_something_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput) as error:
        data.download(tmp_path / "file")
    one_line(error, str(tmp_path / "file"), "choose another place")


# Resizing


def reference_resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """One (H, W) image in float64, pixel by pixel, from the definition."""

    def neighbours(target: int, length: int, new_length: int) -> tuple[int, int, float]:
        source = max((target + 0.5) * length / new_length - 0.5, 0.0)
        first = min(int(source), length - 1)
        return first, min(first + 1, length - 1), source - first

    out = np.empty((height, width))
    for row in range(height):
        top, bottom, down = neighbours(row, image.shape[0], height)
        for column in range(width):
            left, right, along = neighbours(column, image.shape[1], width)
            above = (1 - along) * image[top, left] + along * image[top, right]
            below = (1 - along) * image[bottom, left] + along * image[bottom, right]
            out[row, column] = (1 - down) * above + down * below
    return out


@given(
    shape=st.tuples(st.integers(1, 3), lengths, lengths),
    size=st.tuples(lengths, lengths),
    seed=st.integers(0, 99),
)
def test_resize_is_bilinear_for_any_sizes(
    shape: tuple[int, int, int], size: tuple[int, int], seed: int
) -> None:
    images = np.random.default_rng(seed).random(shape)
    expected = np.stack([reference_resize(image, *size) for image in images])
    np.testing.assert_allclose(data.resize(images, size, "float64"), expected, rtol=0, atol=1e-14)
    np.testing.assert_allclose(data.resize(images, size, "float32"), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(96, 96), (14, 14), (13, 29), (224, 64), (1, 1)])
def test_resize_of_the_sample(size: tuple[int, int]) -> None:
    images = data.sample().test_images[:2]
    resized = data.resize(images, size, "float64")
    assert resized.shape == (2, *size)
    expected = np.stack([reference_resize(image / 255, *size) for image in images])
    np.testing.assert_allclose(resized, expected, rtol=0, atol=1e-14)


def test_resize_numbers_worked_out_by_hand() -> None:
    np.testing.assert_array_equal(data.resize([[[0.0, 1.0]]], (1, 4)), [[[0, 0.25, 0.75, 1]]])
    np.testing.assert_array_equal(data.resize([[[0.0], [1.0]]], (4, 1)), [[[0], [0.25], [0.75], [1]]])
    np.testing.assert_array_equal(data.resize([[[0.0, 1.0, 2.0, 4.0]]], (1, 2)), [[[0.5, 3]]])


@given(height=lengths, width=lengths, dtype=st.sampled_from(["float32", "float64"]))
def test_resize_to_the_same_size_is_the_identity(height: int, width: int, dtype: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, height, width), dtype=np.uint8)
    resized = data.resize(images, (height, width), dtype)
    assert resized.dtype == dtype
    np.testing.assert_array_equal(resized, images.astype(dtype) / np.asarray(255, dtype))


@given(
    value=st.integers(0, 255),
    old=st.tuples(lengths, lengths),
    new=st.tuples(lengths, lengths),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_resize_keeps_a_constant_image(
    value: int, old: tuple[int, int], new: tuple[int, int], dtype: str
) -> None:
    resized = data.resize(np.full((1, *old), value, np.uint8), new, dtype)
    np.testing.assert_allclose(resized, np.full((1, *new), value / 255), rtol=4 * float(np.finfo(dtype).eps))


def test_resize_does_not_touch_its_input_and_takes_no_images() -> None:
    images = np.ones((1, 2, 2), np.float32)
    data.resize(images, (2, 2))[:] = 0
    assert (images == 1).all()
    assert data.resize(np.zeros((0, 28, 28), np.uint8), (96, 96)).shape == (0, 96, 96)


@pytest.mark.parametrize(
    ("images", "size", "dtype", "words"),
    [
        (np.zeros((28, 28)), (96, 96), "float32", "(N, H, W)"),
        (np.zeros((1, 0, 28)), (96, 96), "float32", "(N, H, W)"),
        (np.zeros((1, 28, 28), np.int64), (96, 96), "float32", "int64"),
        (np.zeros((1, 28, 28)), (0, 96), "float32", "size"),
        (np.zeros((1, 28, 28)), (96,), "float32", "size"),
        (np.zeros((1, 28, 28)), (96, 96), "float16", "float16"),
    ],
)
def test_resize_refuses(images: np.ndarray, size: tuple[int, int], dtype: str, words: str) -> None:
    with pytest.raises(BadInput) as error:
        data.resize(images, size, dtype)
    one_line(error, words)


# Batches


def numbered(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images 1×1 whose only pixel, like the label, is their number."""
    numbers = np.arange(count, dtype=np.uint8)
    return numbers.reshape(count, 1, 1), numbers


def order(count: int, batch_size: int, seed: int, **options: object) -> list[int]:
    images, labels = numbered(count)
    found: list[int] = []
    for x, y in data.batches(images, labels, batch_size, seed, size=(1, 1), **options):  # type: ignore[arg-type]
        np.testing.assert_array_equal(np.rint(x[:, 0, 0, 0] * 255), y)  # an image keeps its label
        found += y.tolist()
    return found


@given(
    count=st.integers(1, 99),
    batch_size=st.integers(1, 120),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 9),
)
def test_batches_cover_every_image_once_in_the_order_of_the_seed(
    count: int, batch_size: int, seed: int, epoch: int
) -> None:
    expected = np.random.default_rng([seed, epoch]).permutation(count).tolist()
    assert order(count, batch_size, seed, epoch=epoch) == expected
    assert sorted(expected) == list(range(count))


def test_the_order_changes_with_seed_and_epoch_only() -> None:
    first = order(90, 7, 0)
    assert first == order(90, 64, 0) == order(90, 7, 0, dtype="float64") == order(90, 7, 0, channels=3)
    assert len({tuple(order(90, 7, seed, epoch=epoch)) for seed in range(3) for epoch in range(3)}) == 9
    assert order(90, 7, 0, shuffle=False) == list(range(90)) != first


def test_the_order_of_seed_0_never_changes() -> None:
    assert order(10, 4, 0) == [4, 6, 2, 7, 3, 5, 9, 0, 8, 1]


def test_the_last_batch_is_smaller_or_dropped() -> None:
    images, labels = numbered(10)

    def sizes(drop_last: bool) -> list[int]:
        return [len(y) for _, y in data.batches(images, labels, 4, seed=0, drop_last=drop_last)]

    assert sizes(drop_last=False) == [4, 4, 2]
    assert sizes(drop_last=True) == [4, 4]
    assert order(10, 4, 0, drop_last=True) == order(10, 4, 0)[:8]
    assert order(8, 4, 0, drop_last=True) == order(8, 4, 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_batch_shapes_types_and_values(dtype: str) -> None:
    images = data.sample()
    deal = partial(data.batches, images.train_images, images.train_labels, 5, seed=0, shuffle=False)
    x, y = next(deal(size=(48, 32), channels=3, dtype=dtype))
    assert x.shape == (5, 3, 48, 32) and x.dtype == dtype and x.flags.c_contiguous and x.flags.writeable
    assert y.dtype == np.int32
    np.testing.assert_array_equal(y, images.train_labels[:5])
    for channel in range(3):
        np.testing.assert_array_equal(x[:, channel], data.resize(images.train_images[:5], (48, 32), dtype))
    assert x.min() == 0 and 0.9 < x.max() <= 1


def test_batch_defaults_are_grey_96_float32() -> None:
    images = data.sample()
    x, y = next(data.batches(images.test_images, images.test_labels, 128, seed=1))
    assert x.shape == (128, 1, 96, 96) and x.dtype == np.float32 and y.shape == (128,)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size must be 1 or more, not 0"),
        ({"batch_size": -1}, "batch_size"),
        ({"channels": 0}, "channels"),
        ({"seed": -1}, "seed"),
        ({"epoch": -1}, "epoch"),
        ({"batch_size": 5, "drop_last": True}, "4 images make no batch of 5"),
        ({"images": np.zeros((0, 1, 1), np.uint8), "labels": np.zeros(0, np.uint8)}, "0 images"),
        ({"labels": np.zeros(3, np.uint8)}, "labels must be of shape (4,)"),
        ({"size": (0, 1)}, "size"),
        ({"dtype": "int8"}, "int8"),
    ],
)
def test_batches_refuses_at_once(options: dict, words: str) -> None:
    images, labels = numbered(4)
    with pytest.raises(BadInput) as error:
        data.batches(**{"images": images, "labels": labels, "batch_size": 2, "seed": 0, **options})
    one_line(error, words)
