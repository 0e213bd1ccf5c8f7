"""Images in batches: resized, augmented, in the same order for every backend, and got ready in time."""

from __future__ import annotations

import atexit
import pickle
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from common.architecture import unknown
from common.errors import BadInput
from common.processes.group import ALONE, Group
from common.reading import brief

Batch = tuple[NDArray[np.floating], NDArray[np.int32]]

AUGMENTATIONS = ("flip", "crop")
PADDING = 4  # pixels on every side, for "crop"
MOST_PIXELS = 1 << 24  # of an image as a network sees it: 4096×4096


def resize(images: ArrayLike, size: tuple[int, int], dtype: str = "float32") -> NDArray[np.floating]:
    """Images (N, H, W) at another (height, width), as float (N, height, width), bilinear.

    Pixel centres are at halves, edges are clamped and nothing is smoothed first:
    `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`. uint8 is divided by 255
    to lie in [0, 1]; floats, which must be finite, keep their scale.

    Raises:
        ValueError: for images of another shape or type, a size below 1, or an unknown dtype.
    """
    images = np.asarray(images)
    check_resizable(images, size, dtype)
    values = images.astype(dtype)
    if images.dtype == np.uint8:
        values /= 255
    _, height, width = images.shape
    # Along one axis bilinear interpolation is a matrix; small dense products beat gathering.
    return _interpolation(height, size[0], dtype) @ values @ _interpolation(width, size[1], dtype).T


def check_resizable(images: NDArray, size: tuple[int, int], dtype: str) -> None:
    """Raise `ValueError` unless `resize` can make images of this size and type of these."""
    if dtype not in ("float32", "float64"):
        raise BadInput(f"unknown dtype {dtype!r}; give float32 or float64")
    if images.ndim != 3 or 0 in images.shape[1:]:
        raise BadInput(f"images must be (N, H, W), not {images.shape}")
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise BadInput(f"images must be uint8 or floating point, not {images.dtype}")
    check_size("size", size)


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


class Batches(Sequence[Batch]):
    """Images by number, in the order of `order`, so many at a time; a batch is made when it is asked for.

    Of each batch there is the share of a worker of `group`.
    """

    order: NDArray[np.intp]
    batch_size: int
    group: Group = ALONE

    def __len__(self) -> int:
        return count_batches(len(self.order), self.batch_size)

    def __getitem__(self, number: int) -> Batch:  # type: ignore[override]  # no slices are asked for
        if not 0 <= number < len(self):
            raise IndexError(number)
        return self.make(self.group.share(self.order[number * self.batch_size :][: self.batch_size]))

    @abstractmethod
    def make(self, chosen: NDArray[np.intp]) -> Batch:
        """The batch of the images of these numbers."""


class ArrayBatches(Batches):
    """One epoch of x (N, channels, *size) in [0, 1] and y int32 (N,), resized a batch at a time.

    The order depends only on seed, epoch and the number of images. Grey is repeated in every
    channel. The last batch may be smaller, unless `drop_last` leaves it out. With `augment`, "flip" and
    "crop" change the images before they are resized; what happens to an image depends only on seed,
    epoch and its index.

    Raises:
        ValueError: for anything that would leave no batch or make one wrong.
    """

    def __init__(
        self,
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
    ) -> None:
        count = len(images)
        if np.shape(labels) != (count,):
            raise BadInput(f"labels must be of shape ({count},), one an image, not {np.shape(labels)}")
        check_whole("batch_size", batch_size, 1)
        check_whole("channels", channels, 1)
        check_whole("seed", seed, 0)
        check_whole("epoch", epoch, 0)
        check_augment(augment)
        end = count - count % batch_size if drop_last else count
        if end < 1:
            raise BadInput(
                f"{count} images make no batch of {batch_size}; give more, or a smaller batch_size"
            )
        check_resizable(np.asarray(images), size, dtype)  # now, not at the first batch

        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.size, self.channels, self.dtype, self.augment = size, channels, dtype, augment
        order = np.random.default_rng([seed, epoch]).permutation(count) if shuffle else np.arange(count)
        self.order = order[:end]
        # By the image's index: the first draws do not depend on how many there are. The third number is
        # not 0, because [seed, epoch, 0] is the generator of the order over again.
        self.turned = np.random.default_rng([seed, epoch, 1]).random(count) < 0.5
        shares = np.random.default_rng([seed, epoch, 2]).random((count, 2))
        self.corners = (shares * (2 * PADDING + 1)).astype(int)

    def make(self, chosen: NDArray[np.intp]) -> Batch:
        originals = self.images[chosen]
        if "flip" in self.augment:
            originals = flip(originals, self.turned[chosen])
        if "crop" in self.augment:
            originals = crop(originals, self.corners[chosen])
        x = resize(originals, self.size, self.dtype)[:, None]
        if self.channels > 1:
            x = np.repeat(x, self.channels, axis=1)
        return x, self.labels[chosen].astype(np.int32)


def batches(*arguments: Any, start: int = 0, **options: Any) -> Iterator[Batch]:
    """The batches of `ArrayBatches`, whose arguments these are, from number `start` on.

    Raises:
        ValueError: at once, for anything that would leave no batch or make one wrong.
    """
    dealt = ArrayBatches(*arguments, **options)
    check_start(start, len(dealt))
    return (dealt[number] for number in range(start, len(dealt)))


def read_ahead(
    batches: Sequence[Batch], start: int = 0, num_threads: int = 1, num_workers: int = 0, every: int = 1
) -> Iterator[Batch]:
    """The batches from number `start` on, one in `every`, got ready before their time by Grain.

    So many threads make them, of this process or of so many others. An error of a batch is raised here, in
    its turn.

    Raises:
        ValueError: at once, if there are not so many batches.
    """
    check_start(start, len(batches))
    check_whole("num_workers", num_workers, 0)
    return _read_ahead(batches, start, num_threads, num_workers, every)


def _read_ahead(
    batches: Sequence[Batch], start: int, num_threads: int, num_workers: int, every: int
) -> Iterator[Batch]:
    import grain  # takes a second where it finds JAX
    from absl import flags

    if start == len(batches):
        return
    ahead = grain.ReadOptions(num_threads, prefetch_buffer_size=num_threads + 1)
    ready = grain.MapDataset.source(batches)[start::every]
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
        raise BadInput(f"{name} must be a whole number, not {brief(value)}")
    if int(value) < least:
        raise BadInput(f"{name} must be {least} or more, not {brief(value)}")


def is_size(size: object) -> bool:
    """Whether this is a height and a width, and not beyond what any network is shown."""
    return _is_pair(size) and int(size[0]) * int(size[1]) <= MOST_PIXELS  # type: ignore[index]


def _is_pair(size: object) -> bool:
    return (
        isinstance(size, list | tuple)
        and len(size) == 2
        and all(isinstance(length, Integral) and int(length) >= 1 for length in size)
    )


def check_size(name: str, size: object) -> None:
    """Raise `ValueError` unless this is a height and a width."""
    if not _is_pair(size):
        raise BadInput(f"{name} must be a height and a width of 1 or more, not {brief(size)}")
    if not is_size(size):
        raise BadInput(f"{name} must be of {MOST_PIXELS:,} pixels or fewer, unlike {brief(size)}")


def check_augment(augment: Sequence[str]) -> None:
    """Raise `ValueError` unless these are names of `AUGMENTATIONS`."""
    if isinstance(augment, str):
        raise BadInput(f"augment must be a list of names, not {augment!r}; give [{augment!r}]")
    for name in augment:
        if name not in AUGMENTATIONS:
            raise BadInput(unknown("augmentation", str(name), AUGMENTATIONS))


def check_start(start: int, num_batches: int) -> None:
    """Raise `ValueError` unless an epoch of so many batches can begin with this one."""
    check_whole("start", start, 0)
    if start > num_batches:
        raise BadInput(
            f"start {start} is beyond the epoch's {num_batches} batches; give {num_batches} or less"
        )


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
