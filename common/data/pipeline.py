"""Images in batches: resized, augmented, in the same order for every backend, and got ready in time."""

from __future__ import annotations

import atexit
import os
import pickle
from collections.abc import Iterator, Sequence
from numbers import Integral
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from common.architecture import unknown
from common.errors import BadInput

Batch = tuple[NDArray[np.floating], NDArray[np.int32]]
T = TypeVar("T")

AUGMENTATIONS = ("flip", "crop")
PADDING = 4  # pixels on every side, for "crop"


def resize(images: ArrayLike, size: tuple[int, int], dtype: str = "float32") -> NDArray[np.floating]:
    """Images (N, H, W) at another (height, width), as float (N, height, width), bilinear.

    Pixel centres are at halves, edges are clamped and nothing is smoothed first:
    `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`. uint8 is divided by 255
    to lie in [0, 1]; floats, which must be finite, keep their scale.

    Raises:
        ValueError: for images of another shape or type, a size below 1, or an unknown dtype.
    """
    images = np.asarray(images)
    if dtype not in ("float32", "float64"):
        raise BadInput(f"unknown dtype {dtype!r}; give float32 or float64")
    if images.ndim != 3 or 0 in images.shape[1:]:
        raise BadInput(f"images must be (N, H, W), not {images.shape}")
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise BadInput(f"images must be uint8 or floating point, not {images.dtype}")
    check_size("size", size)

    values = images.astype(dtype)
    if images.dtype == np.uint8:
        values /= 255
    _, height, width = images.shape
    # Along one axis bilinear interpolation is a matrix; small dense products beat gathering.
    return _interpolation(height, size[0], dtype) @ values @ _interpolation(width, size[1], dtype).T


def flip(images: NDArray, turned: NDArray[np.bool_]) -> NDArray:
    """Images (N, H, W), those that are `turned` (N,) left to right."""
    return np.where(turned[:, None, None], images[:, :, ::-1], images)


def crop(images: NDArray, corners: NDArray[np.integer]) -> NDArray:
    """Images (N, H, W), padded with 4 zeros on every side and cut to their size again at `corners` (N, 2).

    A corner is the first row and column in the padded image, 0 to 8 each.
    He et al., "Deep Residual Learning for Image Recognition" (2015), section 4.2.
    """
    padded = np.pad(images, ((0, 0), (PADDING, PADDING), (PADDING, PADDING)))
    windows = sliding_window_view(padded, images.shape[1:], axis=(1, 2))  # (N, 9, 9, H, W), nothing copied
    return windows[np.arange(len(images)), corners[:, 0], corners[:, 1]]


def batches(
    images: NDArray,
    labels: NDArray,
    batch_size: int,
    seed: int,
    epoch: int = 0,
    shuffle: bool = True,
    drop_last: bool = False,
    size: tuple[int, int] = (96, 96),
    channels: int = 1,
    dtype: str = "float32",
    augment: Sequence[str] = (),
    start: int = 0,
) -> Iterator[Batch]:
    """One epoch of x (N, channels, *size) in [0, 1] and y int32 (N,), resized a batch at a time.

    The order depends only on seed, epoch and the number of images. Grey is repeated in every
    channel. The last batch may be smaller, unless `drop_last` leaves it out. With `augment`, "flip" and
    "crop" change the images before they are resized; what happens to an image depends only on seed,
    epoch and its index. The first `start` batches are passed over, and cost nothing.

    Raises:
        ValueError: at once, for anything that would leave no batch or make one wrong.
    """
    count = len(images)
    if np.shape(labels) != (count,):
        raise BadInput(f"labels must be of shape ({count},), one an image, not {np.shape(labels)}")
    check_whole("batch_size", batch_size, 1)
    check_whole("channels", channels, 1)
    for name, value in (("seed", seed), ("epoch", epoch), ("start", start)):
        check_whole(name, value, 0)
    check_augment(augment)
    end = count - count % batch_size if drop_last else count
    if end < 1:
        raise BadInput(f"{count} images make no batch of {batch_size}; give more, or a smaller batch_size")
    num_batches = count_batches(end, batch_size)
    if start > num_batches:
        raise BadInput(
            f"start {start} is beyond the epoch's {num_batches} batches; give {num_batches} or less"
        )
    resize(images[:0], size, dtype)  # speaks up now, not at the first batch

    order = np.random.default_rng([seed, epoch]).permutation(count) if shuffle else np.arange(count)
    # By the image's index: the first draws do not depend on how many there are. The third number is
    # not 0, because [seed, epoch, 0] is the generator of the order over again.
    turned = np.random.default_rng([seed, epoch, 1]).random(count) < 0.5
    shares = np.random.default_rng([seed, epoch, 2]).random((count, 2))
    corners = (shares * (2 * PADDING + 1)).astype(int)

    def batch(chosen: NDArray[np.intp]) -> Batch:
        originals = images[chosen]
        if "flip" in augment:
            originals = flip(originals, turned[chosen])
        if "crop" in augment:
            originals = crop(originals, corners[chosen])
        x = resize(originals, size, dtype)[:, None]
        if channels > 1:
            x = np.repeat(x, channels, axis=1)
        return x, labels[chosen].astype(np.int32)

    return (batch(order[i : i + batch_size]) for i in range(start * batch_size, end, batch_size))


def prefetch(items: Iterator[T], depth: int = 2) -> Iterator[T]:
    """The same items, up to `depth` of them (1 or more) got ready in a background thread before their time.

    An error of `items` is raised here, in its turn. The thread starts with the first item asked for and
    ends with the last, or soon after this generator is closed or forgotten.
    """
    # Unlike Queue, a SimpleQueue may be put to while the garbage collector closes this generator.
    ready: SimpleQueue[Any] = SimpleQueue()
    taken: SimpleQueue[None] = SimpleQueue()
    errors: list[BaseException] = []
    end = object()
    closed = False

    def work() -> None:
        try:
            for number, item in enumerate(items, 1):
                ready.put(item)
                if number >= depth:  # all places are full, until the consumer has taken one more
                    taken.get()
                if closed:
                    return
        except BaseException as error:
            errors.append(error)
        ready.put(end)

    try:
        Thread(target=work, name="prefetch", daemon=True).start()
        while (item := ready.get()) is not end:
            taken.put(None)
            yield item
        if errors:
            raise errors.pop()
    finally:
        # The thread is not joined: when the interpreter ends, that would wait for ever.
        closed = True
        taken.put(None)


def read_ahead(batches: Sequence[Batch], start: int = 0, num_workers: int = 0) -> Iterator[Batch]:
    """The batches from number `start` on, got ready before their time: in threads, or in so many processes.

    An error of a batch is raised here, in its turn.
    """
    import grain  # takes a second or two where it finds JAX
    from absl import flags

    if start == len(batches):
        return
    at_once = min(os.cpu_count() or 1, 8)
    ahead = grain.ReadOptions(num_threads=at_once, prefetch_buffer_size=at_once)
    ready = grain.MapDataset.source(batches)[start:]
    if num_workers:
        flags.FLAGS.mark_as_parsed()  # Grain reads one of its own, which only an absl program parses
        # Arrays would travel in shared memory, of which containers have little and Grain leaves some behind.
        processes = grain.multiprocessing.MultiprocessingOptions(num_workers)
        iterator = iter(
            ready.map(pickle.dumps).to_iter_dataset(ahead).mp_prefetch(processes).map(pickle.loads)
        )
    else:
        iterator = iter(ready.to_iter_dataset(ahead))
    atexit.register(iterator.close)  # for one left half-way; while modules are taken down it is too late
    try:
        yield from iterator
    finally:
        atexit.unregister(iterator.close)
        iterator.close()


def check_whole(name: str, value: object, least: int) -> None:
    """Raise `ValueError` unless this is a whole number from `least` up."""
    if not isinstance(value, Integral):
        raise BadInput(f"{name} must be a whole number, not {value!r}")
    if int(value) < least:
        raise BadInput(f"{name} must be {least} or more, not {value}")


def check_size(name: str, size: object) -> None:
    """Raise `ValueError` unless this is a height and a width."""
    if (
        not isinstance(size, list | tuple)
        or len(size) != 2
        or not all(isinstance(length, Integral) and int(length) >= 1 for length in size)
    ):
        raise BadInput(f"{name} must be a height and a width of 1 or more, not {size!r}")


def check_augment(augment: Sequence[str]) -> None:
    """Raise `ValueError` unless these are names of `AUGMENTATIONS`."""
    if isinstance(augment, str):
        raise BadInput(f"augment must be a list of names, not {augment!r}; give [{augment!r}]")
    for name in augment:
        if name not in AUGMENTATIONS:
            raise BadInput(unknown("augmentation", str(name), AUGMENTATIONS))


def count_batches(count: int, batch_size: int) -> int:
    """Batches of so many images; the last may be smaller."""
    return -(-count // batch_size)


def _interpolation(length: int, new_length: int, dtype: str) -> NDArray[np.floating]:
    """(new_length, length): the share of every old pixel in every new one."""
    centres = (np.arange(new_length) + 0.5) * length / new_length - 0.5
    position = np.clip(centres, 0, length - 1)  # beyond the outer centres the edge goes on
    left = position.astype(int)
    right = np.minimum(left + 1, length - 1)
    rows = np.arange(new_length)
    matrix = np.zeros((new_length, length), dtype)
    matrix[rows, left] = 1 - (position - left)
    matrix[rows, right] += position - left
    return matrix
