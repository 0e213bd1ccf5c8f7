"""Fashion-MNIST: found, checked, and dealt out in the same batches to every backend."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import os
import urllib.request
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_path
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from common.architecture import Architecture, Shape
from common.data.module import DataModule
from common.data.pipeline import ArrayBatches, Batch, batches, read_ahead
from common.errors import BadInput, MissingFile
from common.files import cannot_write, output_folder, write_atomically
from common.processes.group import ALONE, Group
from common.reading import read_file, shown

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

MOST_BYTES = 1 << 26  # of a file; the largest has 47,040,016
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

SAMPLE = Path(__file__).with_name("sample")
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
MIRROR = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"  # no https: the sums guard it


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images uint8 (N, 28, 28) and labels uint8 (N,), read-only; `source` says which data this is."""

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.uint8]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.uint8]
    source: str


class FashionMNIST(DataModule):
    """The chapter's data module: the images, and an epoch of them in batches, got ready in the background.

    A batch is x, float (N, channels, *resize) in [0, 1], and y, int32 (N,). Training images are shuffled
    and, with `augment`, changed: "flip" turns an image left to right with probability 1/2, "crop" shifts
    it by up to 4 pixels. Validation images are neither. The last batch may be smaller.

    The data is `full(directory)`; where nothing was named and the full set is not on the machine, it is
    `sample()`, and `source` says so. The limits keep the first images only.

    Raises:
        ValueError: for anything that would make a wrong batch or none, and as `full` does.
    """

    classes = CLASSES

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
        super().__init__(batch_size, resize, augment, limit_train, limit_val, seed)
        found = _full_or_sample(directory)
        self.source = found.source
        self.fit = "fashion-mnist"
        self.size = f"{len(found.train_images):,} + {len(found.test_images):,} images"
        self.train = found.train_images[:limit_train], found.train_labels[:limit_train]
        self.val = found.test_images[:limit_val], found.test_labels[:limit_val]
        self._count(len(self.train[0]), len(self.val[0]))

    def train_dataloader(
        self,
        epoch: int = 0,
        start: int = 0,
        dtype: str = "float32",
        channels: int = 1,
        group: Group = ALONE,
    ) -> Iterator[Batch]:
        batches = self._deal(*self.train, epoch=epoch, augment=self.augment, dtype=dtype, channels=channels)
        batches.group = group
        return read_ahead(batches, start)

    def val_dataloader(
        self, dtype: str = "float32", channels: int = 1, group: Group = ALONE
    ) -> Iterator[Batch]:
        batches = self._deal(*self.val, shuffle=False, dtype=dtype, channels=channels)
        return read_ahead(batches, min(group.rank, len(batches)), every=group.workers)

    def _deal(self, images: NDArray[np.uint8], labels: NDArray[np.uint8], **options: Any) -> ArrayBatches:
        return ArrayBatches(images, labels, self.batch_size, self.seed, size=self.resize, **options)


def sample() -> Dataset:
    """The first 1,000 training and 500 test images, which come with this package."""
    return _read(SAMPLE, SAMPLE_SHA256, "the shipped sample", "install resnet-tabs again")


def eight(images: Dataset, arch: Architecture, shape: Shape) -> Batch:
    """Eight training images whose classes the network knows, float64 (8, *shape), and their labels.

    What `compare` and `verify` show a network. `shape` is (C, H, W).
    """
    known = images.train_labels < arch.num_classes
    return next(
        batches(
            images.train_images[known],
            images.train_labels[known],
            batch_size=8,
            seed=0,
            size=(shape[1], shape[2]),
            channels=shape[0],
            dtype="float64",
        )
    )


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
                "or images in folders of their classes, or none to use those `resnet-tabs download` fetches"
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
                packed = response.read(MOST_BYTES)
                if response.length:  # there is, or was to be, more
                    raise http.client.IncompleteRead(packed, response.length)
        except (OSError, http.client.HTTPException) as error:
            raise BadInput(f"cannot download {url}: {getattr(error, 'reason', error)}; {remedy}") from None
        _unpack(packed, url, sha256, remedy)
        write_atomically(path, packed)
    return folder


def write_images(images: Dataset, folder: Path) -> None:
    """Write train/CLASS/NUMBER.png and val/CLASS/NUMBER.png, 28×28 greys, as `ImageFolder` takes them.

    Classes begin with their number and images are named by theirs, so that both keep their order.

    Raises:
        ValueError: if the folder is not new or empty, or cannot be written.
    """
    from PIL import Image

    if any(output_folder(folder).iterdir()):
        raise BadInput(f"{folder} is not empty; choose another folder")
    names = [f"{number}-{name.replace('/', '-')}" for number, name in enumerate(CLASSES)]
    parts = {
        "train": (images.train_images, images.train_labels),
        "val": (images.test_images, images.test_labels),
    }
    console = Console()
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        for part, (pixels, labels) in parts.items():
            for name in names:
                output_folder(folder / part / name)
            numbered = progress.track(
                range(len(labels)), description=escape(shown(f"writing {folder / part}"))
            )
            for number in numbered:
                path = folder / part / names[labels[number]] / f"{number:05}.png"
                try:
                    Image.fromarray(pixels[number]).save(path)
                except OSError as error:
                    raise cannot_write(path, error) from None


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


def has_files(folder: Path) -> bool:
    """Whether any of the four files is in this folder."""
    return len(_missing(folder)) < len(FULL_SHA256)


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
        content = read_file(path, MOST_BYTES)
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot read {path}: {getattr(error, 'strerror', error)}; {remedy}") from None
    idx = _unpack(content, path, sha256, remedy)
    # IDX: two zero bytes, the type (8 is uint8), the number of dimensions, each as uint32, the values.
    shape = np.frombuffer(idx, ">u4", count=idx[3], offset=4)
    return np.frombuffer(idx, np.uint8, offset=4 + shape.nbytes).reshape(shape)


def _unpack(content: bytes, origin: str | Path, sha256: str, remedy: str) -> bytes:
    """The IDX file in what was read from `origin`, a .gz or not, checked."""
    if str(origin).endswith(".gz"):
        try:
            with gzip.open(io.BytesIO(content)) as file:
                content = file.read(MOST_BYTES + 1)  # longer is another file, and may be endless
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise BadInput(f"{origin} is not a whole gzip file ({error}); {remedy}") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise BadInput(f"{origin} is not the Fashion-MNIST file it should be (wrong SHA-256); {remedy}")
    return content
