"""Exact resizing, one batch order for everyone, augmentation by index, and batches got ready in time."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import data
from common.errors import BadInput
from tests.data.helpers import same
from tests.helpers import one_line

lengths = st.integers(1, 40)


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
        ({"size": 28}, "size must be a height and a width of 1 or more, not 28"),
        ({"dtype": "int8"}, "int8"),
        ({"batch_size": 2.5}, "batch_size must be a whole number, not 2.5"),
        ({"start": -1}, "start"),
        ({"start": 3}, "start 3 is beyond the epoch's 2 batches; give 2 or less"),
        ({"start": 2, "batch_size": 3, "drop_last": True}, "the epoch's 1 batches"),
        ({"augment": ["flop"]}, "unknown augmentation 'flop'; did you mean flip? Known: flip, crop"),
        ({"augment": [None]}, "unknown augmentation 'None'"),
        ({"augment": "flip"}, "augment must be a list of names, not 'flip'; give ['flip']"),
    ],
)
def test_batches_refuses_at_once(options: dict, words: str) -> None:
    images, labels = numbered(4)
    with pytest.raises(BadInput) as error:
        data.batches(**{"images": images, "labels": labels, "batch_size": 2, "seed": 0, **options})
    one_line(error, words)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("start", [0, 1, 7, 14, 15])
def test_a_later_start_gives_the_rest_of_the_epoch(start: int, drop_last: bool) -> None:
    images = data.sample()
    deal = partial(
        data.batches, images.train_images[:117], images.train_labels[:117], 8, seed=3, epoch=2, size=(12, 12)
    )
    start = min(start, 14) if drop_last else start
    whole = list(deal(augment=["flip", "crop"], drop_last=drop_last))
    same(deal(augment=["flip", "crop"], drop_last=drop_last, start=start), iter(whole[start:]))


# Augmentation


def reference_augmentation(image: np.ndarray, names: tuple[str, ...], draws: list[float]) -> np.ndarray:
    """One (H, W) image, pixel by pixel, from the definition; the draws are in [0, 1)."""
    height, width = image.shape
    turn, down, along = draws
    top, left = (int(9 * down), int(9 * along)) if "crop" in names else (4, 4)
    out = np.zeros_like(image)
    for row in range(height):
        for column in range(width):
            y, x = row + top - 4, column + left - 4  # in the image; beyond it there are zeros
            if 0 <= y < height and 0 <= x < width:
                out[row, column] = image[y, width - 1 - x if "flip" in names and turn < 0.5 else x]
    return out


@pytest.mark.parametrize("names", [(), ("flip",), ("crop",), ("flip", "crop"), ("crop", "flip")])
@pytest.mark.parametrize("epoch", [0, 5])
def test_augmentation_is_the_reference_whatever_the_order_and_the_batch_size(
    names: tuple[str, ...], epoch: int
) -> None:
    images, labels = data.sample().train_images[:40], np.arange(40)
    turns = np.random.default_rng([7, epoch, 1]).random(1000)  # of a larger set: it begins the same
    corners = np.random.default_rng([7, epoch, 2]).random((1000, 2))
    expected = np.stack(
        [
            reference_augmentation(image, names, [turn, *corner])
            for image, turn, corner in zip(images, turns, corners, strict=False)
        ]
    )
    for batch_size, count, shuffle in [(40, 40, False), (7, 40, True), (3, 11, True)]:
        deal = data.batches(
            images[:count], labels[:count], batch_size, 7, epoch, shuffle, size=(28, 28), augment=names
        )
        for x, y in deal:
            np.testing.assert_array_equal(np.rint(x[:, 0] * 255), expected[y])


def test_augmentation_comes_before_the_resize_and_is_the_same_in_every_channel() -> None:
    images = data.sample()
    deal = partial(data.batches, images.train_images[:9], images.train_labels[:9], 9, 0, shuffle=False)
    original, _ = next(deal(size=(28, 28), augment=["flip", "crop"]))
    x, _ = next(deal(size=(40, 33), augment=["flip", "crop"], channels=3))
    for channel in range(3):
        np.testing.assert_allclose(x[:, channel], data.resize(original[:, 0], (40, 33)), atol=1e-6)


def test_flip_and_crop_are_drawn_evenly_and_apart_from_the_order() -> None:
    # A left half of 200 and a right half of 100, so that what was done can be read off.
    images = np.full((9000, 8, 8), 100, np.uint8)
    images[:, :, :4] = 200
    deal = partial(data.batches, images, np.zeros(9000), 9000, seed=1, size=(8, 8), shuffle=False)
    ((x, _),) = deal(augment=["flip"])
    turned = x[:, 0, 0, 0] < 0.5
    assert 0.48 < turned.mean() < 0.52
    ((x, _),) = deal(augment=["crop"])
    tops = (x[:, 0] == 0).all(axis=2)  # the rows that are padding
    shifts = np.where(tops[:, 0], tops.sum(axis=1), -tops.sum(axis=1))
    assert set(shifts) == set(range(-4, 5))
    assert all(800 < count < 1200 for count in np.unique(shifts, return_counts=True)[1])
    ordered = np.random.default_rng([1, 0]).random(9000)
    assert abs(np.corrcoef(turned, ordered)[0, 1]) < 0.05


def test_augmentation_changes_with_epoch_and_seed_and_leaves_the_images_alone() -> None:
    images = data.sample().train_images[:50].copy()
    kept = images.copy()

    def augmented(seed: int, epoch: int) -> bytes:
        deal = data.batches(
            images, np.zeros(50), 50, seed, epoch, False, size=(28, 28), augment=["flip", "crop"]
        )
        return next(deal)[0].tobytes()

    assert len({augmented(seed, epoch) for seed in range(3) for epoch in range(3)}) == 9
    assert augmented(1, 1) == augmented(1, 1)
    np.testing.assert_array_equal(images, kept)


# Getting ready ahead


Threads = Callable[[], list[threading.Thread]]


def soon(true: Callable[[], bool]) -> bool:
    """Whether it comes true within a minute: the machine may be busy."""
    end = time.monotonic() + 60
    while not true() and time.monotonic() < end:
        time.sleep(0.001)
    return true()


@pytest.fixture
def threads() -> Iterator[Threads]:
    """Grain's threads since the test began; none may be left when it ends.

    Another test's may still be here: an exception kept by a reference cycle keeps the loader it interrupted.
    """
    before = set(threading.enumerate())

    def begun() -> list[threading.Thread]:
        return [each for each in threading.enumerate() if "grain" in each.name and each not in before]

    yield begun
    assert soon(lambda: not begun())


class Counted(Sequence[Any]):
    """0, 1, 2, … 99, or what is given; counts what it was asked for."""

    def __init__(self, *items: object) -> None:
        self.items = items or range(100)
        self.asked: set[int] = set()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: Any) -> Any:
        self.asked.add(number)
        item = self.items[number]
        if isinstance(item, BaseException):
            raise item
        return item


@pytest.mark.parametrize("start", [0, 1, 97, 100])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_reading_ahead_keeps_items_and_order(start: int, num_threads: int) -> None:
    assert list(data.read_ahead(Counted(), start, num_threads)) == list(range(start, 100))


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_reading_ahead_works_ahead_but_not_without_bound(threads: Threads, num_threads: int) -> None:
    source = Counted()
    ahead = data.read_ahead(source, 0, num_threads)
    assert not source.asked and not threads()
    for number in range(4):
        assert next(ahead) == number
        assert soon(lambda taken=number + 1: len(source.asked) > taken)
    time.sleep(0.1)
    assert len(source.asked) <= 4 + 2 * (num_threads + 1)
    ahead.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("error", [ValueError, BadInput])
def test_reading_ahead_raises_an_error_in_its_turn(threads: Threads, error: type[Exception]) -> None:
    ahead = data.read_ahead(Counted(0, 1, error("broken"), 3))
    assert [next(ahead), next(ahead)] == [0, 1]
    with pytest.raises(error, match="broken"):
        next(ahead)
    assert next(ahead, None) is None


@pytest.mark.parametrize(("start", "message"), [(101, "beyond the epoch's 100 batches"), (-1, "0 or more")])
def test_a_start_that_is_not_there_is_said_at_once(start: int, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        data.read_ahead(Counted(), start)


@pytest.mark.parametrize("how", ["close", "forget", "cycle", "interrupt", "before the start"])
def test_reading_ahead_ends_its_threads_with_the_consumer(threads: Threads, how: str) -> None:
    source = Counted()
    ahead = data.read_ahead(source)
    if how != "before the start":
        next(ahead)
        assert threads()
    if how == "close":
        ahead.close()  # type: ignore[attr-defined]
    elif how == "cycle":
        cycle: list[object] = [ahead]
        cycle.append(cycle)
        del ahead, cycle
        gc.collect()
    elif how == "interrupt":
        with pytest.raises(KeyboardInterrupt):
            for number in ahead:
                if number == 3:
                    raise KeyboardInterrupt
        del ahead
    else:
        del ahead
    assert soon(lambda: not threads())
    asked = len(source.asked)
    assert asked <= 8
    time.sleep(0.01)
    assert len(source.asked) == asked


def test_an_open_dataloader_does_not_keep_the_program_from_ending() -> None:
    program = (
        "from common.data import FashionMNIST\n"
        "module = FashionMNIST(limit_train=640)\n"
        "loader = module.train_dataloader()\n"
        "print(len(next(loader)[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "64\n", "")


def test_many_abandoned_dataloaders_leave_no_thread(threads: Threads) -> None:
    module = data.FashionMNIST(10, augment=("flip", "crop"))
    for _ in range(50):
        next(module.train_dataloader())
        next(module.val_dataloader())
