"""Fashion-MNIST: found, checked, resized, and dealt out in the same batches to every backend."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import urllib.request
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray
from platformdirs import user_cache_path

from common.architecture import unknown
from common.errors import BadInput, MissingFile
from common.files import write_atomically

Batch = tuple[NDArray[np.floating], NDArray[np.int32]]
T = TypeVar("T")

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

# SHA-256 of the IDX files inside the .gz files: Debian packs the same content with another gzip
# header than the publisher's, and some people have the files unpacked.
FULL_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
SAMPLE_SHA256 = {
    "train-images-idx3-ubyte": "e40edda7e9d8af05f5b762673ec21bbef87429a0c217d9e7953c711409749e45",
    "train-labels-idx1-ubyte": "78ada934314bea75dcf5d086dfaad6ca75d2ed2801b6e35392fdb406a6338c12",
    "t10k-images-idx3-ubyte": "c9bd0ed7148856eb2287d902861921296d6c36d95a5113341a35554343e84123",
    "t10k-labels-idx1-ubyte": "9f5f7b9143df7bffff73a8bf7d8a53545dbf787f86e5e195c64401d2c6f8f372",
}

SAMPLE = Path(__file__).with_name("fashion_mnist")
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
MIRROR = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"  # no https: the sums guard it

AUGMENTATIONS = ("flip", "crop")
PADDING = 4  # pixels on every side, for "crop"


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images uint8 (N, 28, 28) and labels uint8 (N,), read-only; `source` says which data this is."""

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.uint8]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.uint8]
    source: str


class FashionMNIST:
    """The chapter's data module: the images, and an epoch of them in batches, got ready in the background.

    A batch is x, float (N, channels, *resize) in [0, 1], and y, int32 (N,). Training images are shuffled
    and, with `augment`, changed: "flip" turns an image left to right with probability 1/2, "crop" shifts
    it by up to 4 pixels. Validation images are neither. The last batch may be smaller.

    The data is `full(directory)`; where nothing was named and the full set is not on the machine, it is
    `sample()`, and `source` says so. The limits keep the first images only.

    Raises:
        ValueError: for anything that would make a wrong batch or none, and as `full` does.
    """

    def __init__(
        self,
        batch_size: int = 64,
        resize: tuple[int, int] = (28, 28),
        *,
        augment: Sequence[str] = (),
        limit_train: int | None = None,
        limit_val: int | None = None,
        seed: int = 0,
        directory: str | os.PathLike[str] | None = None,
    ) -> None:
        _check_whole("batch_size", batch_size, 1)
        _check_whole("seed", seed, 0)
        for name, limit in (("limit_train", limit_train), ("limit_val", limit_val)):
            if limit is not None:
                _check_whole(name, limit, 1)
        _check_size("resize", resize)
        _check_augment(augment)
        self.batch_size, self.resize, self.augment, self.seed = batch_size, resize, tuple(augment), seed
        self.limit_train, self.limit_val = limit_train, limit_val

        found = _full_or_sample(directory)
        self.source = found.source
        self.size = f"{len(found.train_images):,} + {len(found.test_images):,} images"
        self.train = found.train_images[:limit_train], found.train_labels[:limit_train]
        self.val = found.test_images[:limit_val], found.test_labels[:limit_val]
        self.num_train, self.num_val = len(self.train[0]), len(self.val[0])
        if batch_size > self.num_train:
            raise BadInput(
                f"batch_size {batch_size} is larger than the {self.num_train} training images; "
                f"give {self.num_train} or less, or more images"
            )
        self.num_train_batches = _num_batches(self.num_train, batch_size)
        self.num_val_batches = _num_batches(self.num_val, batch_size)

    def train_dataloader(
        self, epoch: int = 0, start: int = 0, dtype: str = "float32", channels: int = 1
    ) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on, the same whether or not those before were made.

        Raises:
            ValueError: at once, for bad arguments; see `batches`.
        """
        return self._deal(
            *self.train, epoch=epoch, start=start, augment=self.augment, dtype=dtype, channels=channels
        )

    def val_dataloader(self, dtype: str = "float32", channels: int = 1) -> Iterator[Batch]:
        """The validation batches, in the order of the file.

        Raises:
            ValueError: at once, for bad arguments; see `batches`.
        """
        return self._deal(*self.val, shuffle=False, dtype=dtype, channels=channels)

    def settings(self) -> dict[str, Any]:
        """All that decides what the batches are, wherever the files lie."""
        names = ("batch_size", "resize", "augment", "seed", "limit_train", "limit_val")
        return {name: getattr(self, name) for name in names} | {"data": self.size}

    def _deal(self, images: NDArray[np.uint8], labels: NDArray[np.uint8], **options: Any) -> Iterator[Batch]:
        return prefetch(batches(images, labels, self.batch_size, self.seed, size=self.resize, **options))


def sample() -> Dataset:
    """The first 1,000 training and 500 test images, which come with this package."""
    return _read(SAMPLE, SAMPLE_SHA256, "the shipped sample", "install resnet-tabs again")


def full(directory: str | os.PathLike[str] | None = None) -> Dataset:
    """All 60,000 training and 10,000 test images.

    Read from `directory`, else from RESNET_TABS_DATA, else from the first of the user's cache and
    Debian's folder that has the four files, as .gz or unpacked. A folder that was named is the
    only place looked in.

    Raises:
        FileNotFoundError: if the files are not there; the message says how to get them.
        ValueError: if a file is not the one that was published.
    """
    named = directory or os.environ.get("RESNET_TABS_DATA")
    if named:
        folder = Path(named)
        if missing := _missing(folder):
            said = folder if directory else f"RESNET_TABS_DATA={folder}"
            raise MissingFile(
                f"{said} has no {missing[0]}.gz; name a folder that has the four files, "
                "or none to use those `resnet-tabs download` fetches"
            )
    else:
        complete = [place for place in (_cache(), DEBIAN) if not _missing(place)]
        if not complete:
            raise MissingFile(
                "the full Fashion-MNIST is not on this machine; run `resnet-tabs download`, install Debian's "
                "dataset-fashion-mnist, or name a folder that has it with --data DIR or RESNET_TABS_DATA"
            )
        folder = complete[0]
    remedy = "replace it (`resnet-tabs download` fetches good ones)"
    return _read(folder, FULL_SHA256, f"the full set in {folder}", remedy)


def download(directory: str | os.PathLike[str] | None = None) -> Path:
    """Fetch the four files (30 MB) into `directory`, by default the user's cache; returns the folder.

    Files already there and whole are kept; each new one is checked before it is put in place.

    Raises:
        ValueError: if the mirror cannot be reached or sends something else, or the folder cannot be written.
    """
    folder = Path(directory or _cache())
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"cannot make the folder {folder}: {error.strerror}; choose another place") from None
    for name, sha256 in FULL_SHA256.items():
        path = folder / f"{name}.gz"
        with suppress(OSError, BadInput):
            _unpack(path.read_bytes(), path, sha256, "")
            continue
        url = MIRROR + path.name
        remedy = "try again later, or install Debian's dataset-fashion-mnist"
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                packed = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise BadInput(f"cannot download {url}: {getattr(error, 'reason', error)}; {remedy}") from None
        _unpack(packed, url, sha256, remedy)
        write_atomically(path, packed)
    return folder


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
    _check_size("size", size)

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
    _check_whole("batch_size", batch_size, 1)
    _check_whole("channels", channels, 1)
    for name, value in (("seed", seed), ("epoch", epoch), ("start", start)):
        _check_whole(name, value, 0)
    _check_augment(augment)
    end = count - count % batch_size if drop_last else count
    if end < 1:
        raise BadInput(f"{count} images make no batch of {batch_size}; give more, or a smaller batch_size")
    num_batches = _num_batches(end, batch_size)
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


def _cache() -> Path:
    return user_cache_path("resnet-tabs") / "fashion-mnist"


def _full_or_sample(directory: str | os.PathLike[str] | None) -> Dataset:
    """The full set; where none was named and there is none, the sample."""
    try:
        return full(directory)
    except MissingFile:
        if directory or os.environ.get("RESNET_TABS_DATA"):
            raise
    found = sample()
    remedy = "the full set is not on this machine, `resnet-tabs download` fetches it"
    return replace(found, source=f"{found.source}: {remedy}")


def _find(folder: Path, name: str) -> Path | None:
    """The file of this name, packed or not."""
    return next((path for path in (folder / f"{name}.gz", folder / name) if os.path.isfile(path)), None)


def _missing(folder: Path) -> list[str]:
    return [name for name in FULL_SHA256 if _find(folder, name) is None]


def _read(folder: Path, sums: Mapping[str, str], what: str, remedy: str) -> Dataset:
    train_images, train_labels, test_images, test_labels = (
        _array(folder, name, sha256, remedy) for name, sha256 in sums.items()
    )
    source = f"{what} ({len(train_images):,} + {len(test_images):,} images)"
    return Dataset(train_images, train_labels, test_images, test_labels, source)


def _array(folder: Path, name: str, sha256: str, remedy: str) -> NDArray[np.uint8]:
    path = _find(folder, name)
    if path is None:
        raise MissingFile(f"{folder / name}.gz not found; {remedy}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}; {remedy}") from None
    idx = _unpack(content, path, sha256, remedy)
    # IDX: two zero bytes, the type (8 is uint8), the number of dimensions, each as uint32, the values.
    shape = np.frombuffer(idx, ">u4", count=idx[3], offset=4)
    return np.frombuffer(idx, np.uint8, offset=4 + shape.nbytes).reshape(shape)


def _unpack(content: bytes, origin: str | Path, sha256: str, remedy: str) -> bytes:
    """The IDX file in what was read from `origin`, a .gz or not, checked."""
    if str(origin).endswith(".gz"):
        try:
            content = gzip.decompress(content)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise BadInput(f"{origin} is not a whole gzip file ({error}); {remedy}") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise BadInput(f"{origin} is not the Fashion-MNIST file it should be (wrong SHA-256); {remedy}")
    return content


def _check_whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, Integral):
        raise BadInput(f"{name} must be a whole number, not {value!r}")
    if int(value) < least:
        raise BadInput(f"{name} must be {least} or more, not {value}")


def _check_size(name: str, size: object) -> None:
    if (
        not isinstance(size, list | tuple)
        or len(size) != 2
        or not all(isinstance(length, Integral) and int(length) >= 1 for length in size)
    ):
        raise BadInput(f"{name} must be a height and a width of 1 or more, not {size!r}")


def _check_augment(augment: Sequence[str]) -> None:
    if isinstance(augment, str):
        raise BadInput(f"augment must be a list of names, not {augment!r}; give [{augment!r}]")
    for name in augment:
        if name not in AUGMENTATIONS:
            raise BadInput(unknown("augmentation", str(name), AUGMENTATIONS))


def _num_batches(count: int, batch_size: int) -> int:
    return -(-count // batch_size)  # rounded up: the last may be smaller


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
