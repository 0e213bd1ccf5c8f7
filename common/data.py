"""Fashion-MNIST: found, checked, resized, and dealt out in the same batches to every backend."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import urllib.request
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from platformdirs import user_cache_path

from common.errors import BadInput, MissingFile
from common.files import write_atomically

Batch = tuple[NDArray[np.floating], NDArray[np.int32]]

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


@dataclass(frozen=True, eq=False)
class FashionMNIST:
    """Images uint8 (N, 28, 28) and labels uint8 (N,), read-only; `source` says which data this is."""

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.uint8]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.uint8]
    source: str


def sample() -> FashionMNIST:
    """The first 1,000 training and 500 test images, which come with this package."""
    return _read(SAMPLE, SAMPLE_SHA256, "the shipped sample", "install resnet-tabs again")


def full(directory: str | os.PathLike[str] | None = None) -> FashionMNIST:
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
    if len(size) != 2 or min(size) < 1:
        raise BadInput(f"size must be a height and a width of 1 or more, not {size}")

    values = images.astype(dtype)
    if images.dtype == np.uint8:
        values /= 255
    _, height, width = images.shape
    # Along one axis bilinear interpolation is a matrix; small dense products beat gathering.
    return _interpolation(height, size[0], dtype) @ values @ _interpolation(width, size[1], dtype).T


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
) -> Iterator[Batch]:
    """One epoch of x (N, channels, *size) in [0, 1] and y int32 (N,), resized a batch at a time.

    The order depends only on seed, epoch and the number of images. Grey is repeated in every
    channel. The last batch may be smaller, unless `drop_last` leaves it out.

    Raises:
        ValueError: at once, for anything that would leave no batch or make one wrong.
    """
    count = len(images)
    if np.shape(labels) != (count,):
        raise BadInput(f"labels must be of shape ({count},), one an image, not {np.shape(labels)}")
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("channels", channels, 1),
        ("seed", seed, 0),
        ("epoch", epoch, 0),
    ):
        if value < least:
            raise BadInput(f"{name} must be {least} or more, not {value}")
    end = count - count % batch_size if drop_last else count
    if end < 1:
        raise BadInput(f"{count} images make no batch of {batch_size}; give more, or a smaller batch_size")
    resize(images[:0], size, dtype)  # speaks up now, not at the first batch

    order = np.random.default_rng([seed, epoch]).permutation(count) if shuffle else np.arange(count)

    def batch(chosen: NDArray[np.intp]) -> Batch:
        x = resize(images[chosen], size, dtype)[:, None]
        if channels > 1:
            x = np.repeat(x, channels, axis=1)
        return x, labels[chosen].astype(np.int32)

    return (batch(order[start : start + batch_size]) for start in range(0, end, batch_size))


def _cache() -> Path:
    return user_cache_path("resnet-tabs") / "fashion-mnist"


def _find(folder: Path, name: str) -> Path | None:
    """The file of this name, packed or not."""
    return next((path for path in (folder / f"{name}.gz", folder / name) if os.path.isfile(path)), None)


def _missing(folder: Path) -> list[str]:
    return [name for name in FULL_SHA256 if _find(folder, name) is None]


def _read(folder: Path, sums: Mapping[str, str], what: str, remedy: str) -> FashionMNIST:
    train_images, train_labels, test_images, test_labels = (
        _array(folder, name, sha256, remedy) for name, sha256 in sums.items()
    )
    source = f"{what} ({len(train_images):,} + {len(test_images):,} images)"
    return FashionMNIST(train_images, train_labels, test_images, test_labels, source)


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
