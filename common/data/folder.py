"""A folder of images: found, checked, and dealt out in the same batches to every backend."""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_path
from rich.console import Console
from rich.progress import Progress

from common.data.decode import FORMATS, SUFFIXES, UNOPENED, decode, why_bad
from common.data.fashion_mnist import has_files
from common.data.imagenet import random_flip, random_resized_crop
from common.data.module import DataModule
from common.data.pipeline import Batch, Batches, check_whole, read_ahead
from common.data.preparation import Preparation
from common.errors import BadInput, MissingFile
from common.files import write_atomically
from common.processes.group import ALONE, Group
from common.reading import read_json, shown, some

THREADS = min(os.cpu_count() or 1, 8)  # that decode; Pillow lets them run side by side
PARTS = re.compile("(train|val|valid|test)(ing|idation)?", re.IGNORECASE)  # of a data set, and no classes
VAL_SHARE = 0.1  # of the images, where no folder says which are for validation

# Why a file is left out that nobody opened; of others it is what was wrong with them.
HIDDEN = "hidden"
OTHERWISE = f"not {' '.join(SUFFIXES)}"
NO_CLASS = "in no class's folder"
BESIDE = "beside train and val"
ABOVE = "linked to a folder above"
NOT_TAKEN = (HIDDEN, OTHERWISE, NO_CLASS, BESIDE, ABOVE)
SYSTEMS = (".ds_store", "thumbs.db", "desktop.ini")  # what file managers write, in lower case


@dataclass(frozen=True, eq=False)
class Images:
    """Image files by their names under `root`, CLASS/NAME, and the number of each one's class, int32 (N,).

    They are in the order of NAME, so that files named after their place in a data set are in its order. The
    order and `classes` are of names in NFC, whichever form the files' own have.

    `left_out` says of each path that was found with them and is not among them, why.
    """

    root: Path
    names: list[str]
    labels: NDArray[np.int32]
    classes: tuple[str, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def take(self, chosen: Sequence[bool] | NDArray[np.bool_]) -> Images:
        """Those that are chosen (N,)."""
        names = [name for name, is_chosen in zip(self.names, chosen, strict=True) if is_chosen]
        return replace(self, names=names, labels=self.labels[np.asarray(chosen, bool)])

    def besides(self, left_out: Mapping[str, str]) -> Images:
        """The same, with these left out as well."""
        return replace(self, left_out={**self.left_out, **left_out})

    def first(self, limit: int | None) -> Images:
        """The first so many, or all."""
        return replace(self, names=self.names[:limit], labels=self.labels[:limit])


class ImageFolder(DataModule):
    """A folder of images in batches, got ready in the background by Grain, the same for every backend.

    The folder has train/CLASS/IMAGE and val/CLASS/IMAGE, or CLASS/IMAGE, of which a share is for validation:
    which, a hash of each image's name says, so that it is the same every time. Images are .jpg, .jpeg, .png,
    .webp, .bmp, .tif and .tiff, in folders within a class's, too. Classes are the folders' names, sorted,
    in NFC: on macOS they are the same.

    Every other file there is in `skipped`, path → why it is left out: it is hidden or called otherwise, lies
    in no class's folder or beside train and val, or cannot be read. Only what file managers write is not
    named: .DS_Store, Thumbs.db, desktop.ini. A link that is not followed stands for what it leads to.

    A batch is x, float (N, channels, *resize), and y, int32 (N,); `channels` is 3, or 1 for greys. Training
    images are shuffled and, with `augment`, changed as torchvision's reference for ImageNet does: "crop" is a
    random part, resized; "flip" turns left to right with probability 1/2. What happens to an image depends
    only on seed, epoch and the image's name. Without "crop", and in validation, they are prepared as
    `Preparation` says of a folder's.

    Args:
        root: the folder.
        normalize: what becomes of colours: "imagenet" takes off ImageNet's mean and deviation, "none" leaves
            x in [0, 1]; `common.data.colours` knows others.
        scaled, interpolation: as in `Preparation`, for weights that were trained so.
        val_share: of the images, for validation, where there are no folders train and val; 0.1 unless told.
        skip_bad: read every image now, and leave out those that cannot be.
        num_workers: processes that prepare batches; with 0, threads of this one do.
        limit_train, limit_val: only the first so many images, in the order of their names.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds no images in classes, or for anything that would make a wrong batch or none.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        batch_size: int = 64,
        resize: tuple[int, int] = (224, 224),
        *,
        augment: Sequence[str] = (),
        normalize: str = "imagenet",
        scaled: tuple[int, int] | None = None,
        interpolation: str = "bilinear",
        val_share: float | None = None,
        skip_bad: bool = False,
        num_workers: int = 0,
        limit_train: int | None = None,
        limit_val: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, resize, augment, limit_train, limit_val, seed)
        self.fit, self.normalize, self.scaled, self.interpolation = "folder", normalize, scaled, interpolation
        self._preparation(3)
        check_whole("num_workers", num_workers, 0)
        self.skip_bad, self.num_workers = skip_bad, num_workers
        self.root = Path(root)
        train, val, self.val_share = find_split(self.root, val_share)
        if skip_bad:
            train, val = without_bad(train), without_bad(val)
        self.skipped = {**train.left_out, **val.left_out}
        self.classes = train.classes
        self.source = str(root)
        self.size = (
            f"{len(train):,} + {len(val):,} images of {len(self.classes)} classes, {_digest(train, val)}"
        )
        self.train, self.val = train.first(limit_train), val.first(limit_val)
        self._count(len(self.train), len(self.val))

    def check_channels(self, channels: int) -> None:
        self._preparation(channels).check()

    def check_apart(self, folder: Path) -> None:
        if folder.resolve().is_relative_to(self.root.resolve()):
            raise BadInput(
                f"{folder} is inside the folder of images {self.root}, and would be taken for a class; "
                "choose a folder outside"
            )

    def check(self) -> None:
        if not self.skip_bad:
            check_readable(self.train)
            check_readable(self.val)

    def train_dataloader(
        self,
        epoch: int = 0,
        start: int = 0,
        dtype: str = "float32",
        channels: int = 3,
        group: Group = ALONE,
    ) -> Iterator[Batch]:
        check_whole("epoch", epoch, 0)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.train))
        batches = FileBatches(self.train, self.batch_size, self._preparation(channels), dtype)
        batches.shuffle(order, self.augment, self.seed, epoch)
        batches.group = group
        return read_ahead(batches, start, THREADS, self.num_workers)

    def val_dataloader(
        self, dtype: str = "float32", channels: int = 3, group: Group = ALONE
    ) -> Iterator[Batch]:
        batches = FileBatches(self.val, self.batch_size, self._preparation(channels), dtype)
        start = min(group.rank, len(batches))
        return read_ahead(batches, start, THREADS, self.num_workers, every=group.workers)

    def settings(self) -> dict[str, Any]:
        return super().settings() | {
            "classes": self.classes,
            "val_share": self.val_share,
            "skip_bad": self.skip_bad,
        }

    def _preparation(self, channels: int) -> Preparation:
        return Preparation(self.resize, channels, self.normalize, self.fit, self.scaled, self.interpolation)


class FileBatches(Batches):
    """Images in batches, made when they are asked for; in their order and nothing drawn until shuffled.

    Raises:
        ValueError: at once, for anything that would make a wrong batch; for a file that is no image, when
            its batch is made.
    """

    def __init__(
        self, images: Images, batch_size: int, preparation: Preparation, dtype: str = "float32"
    ) -> None:
        if dtype not in ("float32", "float64"):
            raise BadInput(f"unknown dtype {dtype!r}; give float32 or float64")
        check_whole("batch_size", batch_size, 1)
        preparation.check()
        self.images, self.batch_size, self.preparation, self.dtype = images, batch_size, preparation, dtype
        self.order = np.arange(len(images))
        self.augment: tuple[str, ...] = ()

    def shuffle(self, order: NDArray[np.intp], augment: tuple[str, ...], seed: int, epoch: int) -> None:
        """Take the images in this order, augmented with draws that depend on seed, epoch and image alone."""
        self.order, self.augment, self.seed, self.epoch = order, augment, seed, epoch

    def make(self, chosen: NDArray[np.intp]) -> Batch:
        images = np.stack([self._pixels(self.images.names[i]) for i in chosen])  # (N, H, W, C)
        return self.preparation.floats(images, self.dtype), self.images.labels[chosen]

    def _pixels(self, name: str) -> NDArray[np.uint8]:
        """(H, W, C)."""
        image = decode(self.images.root / name, self.preparation.channels)
        if not self.augment:
            return self.preparation.pixels(image)
        cropping, flipping = np.random.default_rng([self.seed, self.epoch, _hash(name)]).spawn(2)
        if "crop" in self.augment:
            how = self.preparation
            pixels = random_resized_crop(image, how.size, how.resampling, cropping)
        else:
            pixels = self.preparation.pixels(image)
        return random_flip(pixels, flipping) if "flip" in self.augment else pixels


def is_image_folder(folder: Path) -> bool:
    """Whether there are folders in this one, and no files of Fashion-MNIST."""
    return folder.is_dir() and bool(_folders(folder)) and not has_files(folder)


def find_split(root: Path, val_share: float | None) -> tuple[Images, Images, float | None]:
    """A folder's training and validation images, and the share that parted them where no folders do.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it does not hold images in two classes or more, or the share leaves none on one side.
    """
    if not root.is_dir():
        raise MissingFile(
            f"{root} is not a folder; give one of images, train/CLASS/*.jpg and val/CLASS/*.jpg"
        )
    train, val = root / "train", root / "val"
    if train.is_dir() or val.is_dir():
        for folder in (train, val):
            if not folder.is_dir():
                raise BadInput(
                    f"{root} has no folder {folder.name}; add it, or give CLASS/*.jpg without both"
                )
        if val_share is not None:
            raise BadInput(f"{root} has its own folder val; leave out the share for validation")
        found = find_images(train)
        _check_several(found)
        return found.besides(_beside_parts(root)), find_images(val, found.classes), None
    share = VAL_SHARE if val_share is None else val_share
    found = find_images(root)
    parts = [name for name in found.classes if PARTS.fullmatch(name)]
    if len(parts) == len(found.classes):
        raise BadInput(
            f"{root} has {some(parts)} for classes, which are no classes; call the folders train and val"
        )
    _check_several(found)
    is_val = _in_share(found, share)
    return found.take(~is_val), found.take(is_val), share


def evaluation_images(
    root: Path, known: Sequence[str], num_classes: int, val_share: float | None = None
) -> Images:
    """The images of a folder to evaluate a network on: those in val, else the share's, else all there are.

    Args:
        known: the network's classes; where it has no names for them, they are the folder's, sorted.

    Raises:
        ValueError: if there are none, or their classes are not the network's.
    """
    folder = root / "val" if (root / "val").is_dir() else root
    if val_share is not None and folder != root:
        raise BadInput(f"{root} has its own folder val; leave out the share for validation")
    found = find_images(folder, known or None)
    if not known and len(found.classes) != num_classes:
        raise BadInput(f"{folder} has {len(found.classes)} classes but the network tells {num_classes}")
    if folder != root:
        found = found.besides(_beside_parts(root))
    return found if val_share is None else found.take(_in_share(found, val_share))


def find_images(root: Path, known: Sequence[str] | None = None) -> Images:
    """The images CLASS/NAME of a folder; nothing is decoded.

    Args:
        known: the classes, in their order; the folder may lack some of them, but have no other.

    Raises:
        ValueError: if there are none, a class is empty or unknown, a name is not UTF-8, or a folder cannot
            be read or is a link to nothing.
    """
    folders = _folders(root)
    _check_names(root, folders)
    left_out = _beside(root, folders, NO_CLASS)
    in_empty: dict[str, str] = {}
    found: dict[str, list[str]] = {}
    for folder in folders:
        images, others = images_within(root / folder)
        found.setdefault(in_nfc(folder), []).extend(f"{folder}/{image}" for image in images)
        left_out |= others
        if not images:
            in_empty |= others
    classes = tuple(sorted(found) if known is None else known)
    numbers = {in_nfc(name): number for number, name in enumerate(classes)}
    if known is None and (empty := [name for name in classes if not found[name]]):
        raise BadInput(
            f"{root} has classes without images: {some(empty)}; remove them, or add images{aside(in_empty)}"
        )
    if strange := sorted(found.keys() - numbers):
        raise BadInput(f"{root} has classes that are not among those trained: {some(strange)}")
    if not any(found.values()):
        raise BadInput(
            f"{root} has no images; give a folder of CLASS/*{' *'.join(SUFFIXES)}{aside(left_out)}"
        )
    files = sorted(
        (in_nfc(name.partition("/")[2]), kind, name) for kind, names in found.items() for name in names
    )
    names = [name for _, _, name in files]
    _check_names(root, names)
    labels = np.array([numbers[kind] for _, kind, _ in files], np.int32)
    return Images(root, names, labels, classes, left_out)


def check_readable(images: Images) -> None:
    """Raise `ValueError`, with the first names and how many, unless every image can be read."""
    if bad := find_bad(images):
        first = "; ".join(f"{name} ({why})" for name, why in list(bad.items())[:10])
        more = f" and {len(bad) - 10:,} more" if len(bad) > 10 else ""
        raise BadInput(
            f"{images.root} has {_files(len(bad))} that can be read: {first}{more}; "
            "replace them, or skip bad ones"
        )


def without_bad(images: Images) -> Images:
    """Those images that can be read; the others are left out.

    Raises:
        ValueError: if none can.
    """
    bad = find_bad(images)
    if len(bad) == len(images):
        paths = [str(images.root / name) for name in bad]
        raise BadInput(f"nothing is left besides {_files(len(bad))}: {some(paths)}; give others")
    good = images.take([name not in bad for name in images.names])
    return good.besides({str(images.root / name): why for name, why in bad.items()})


def leaving_out(files: Mapping[str, str]) -> str:
    """The line that says which files are left out, path → why: how many of each kind, and the first few."""
    kinds: dict[str, list[str]] = {}
    for path, why in files.items():
        kinds.setdefault(why if why in NOT_TAKEN else "that cannot be read", []).append(path)
    each = "; ".join(f"{len(paths):,} {kind} ({some(paths)})" for kind, paths in kinds.items())
    return f"leaving out {len(files):,} file{'s' * (len(files) > 1)}: {each}"


def aside(left_out: Mapping[str, str]) -> str:
    """That line in brackets, for the end of another; empty where nothing is left out."""
    return f" ({leaving_out(left_out)})" if left_out else ""


def _files(count: int) -> str:
    return "1 file that is no image" if count == 1 else f"{count:,} files that are no images"


def find_bad(images: Images) -> dict[str, str]:
    """Name → why, of each file that is no image that can be read. All are decoded, and shown as they are.

    What was found is remembered until a file changes, in the user's cache.
    """
    import PIL

    stamp = _stamp(images, f"{PIL.__version__} {FORMATS}")
    remembered = user_cache_path("resnet-tabs") / "checked" / f"{stamp}.json"
    with suppress(OSError, ValueError):
        return read_json(remembered, dict[str, str])
    bad: dict[str, str] = {}
    console = Console()
    progress = Progress(console=console, disable=not console.is_terminal, transient=True)
    with progress, ThreadPoolExecutor(THREADS) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of what it can read all the same
        task = progress.add_task("reading images", total=len(images))
        for start in range(0, len(images), 256):  # a future each for millions would fill the memory
            names = images.names[start : start + 256]
            for name, why in zip(names, pool.map(lambda n: why_bad(images.root / n), names), strict=True):
                if why:
                    bad[name] = why
            progress.update(task, advance=len(names))
    if any(why.startswith((UNOPENED, "MemoryError")) for why in bad.values()):
        return bad  # which may be another time
    with suppress(OSError, BadInput):  # without a cache it is read again next time
        remembered.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(remembered, json.dumps(bad))
    return bad


def _folders(root: Path) -> list[str]:
    """The names of the folders in a folder, of none that are hidden."""
    try:
        with os.scandir(root) as found:
            entries = [entry for entry in found if not entry.name.startswith(".")]
    except OSError as error:
        raise _cannot_read(error) from None
    lost = sorted(entry.name for entry in entries if entry.is_symlink() and not os.path.exists(entry))
    if lost:
        raise BadInput(f"{root} has links that lead nowhere: {some(lost)}; mend or remove them")
    return [entry.name for entry in entries if entry.is_dir()]


def images_within(folder: Path) -> tuple[list[str], dict[str, str]]:
    """The paths, from a folder, of the images in it and in the folders in it; and what is left out, and why.

    Links are followed, but not in circles. What is called as an image is, or is a link to nothing, is one of
    them, so that whoever reads it is told what it is.
    """

    def refuse(error: OSError) -> None:
        raise _cannot_read(error) from None

    parents = (*Path(os.path.abspath(folder)).parents, *Path(os.path.realpath(folder)).parents)
    above = {os.path.realpath(parent) for parent in parents}
    found: list[str] = []
    left_out: dict[str, str] = {}
    seen = set()
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(place)
        if real in above:
            left_out[place] = ABOVE
        if real in above or real in seen:
            folders.clear()
            continue
        seen.add(real)
        inner = os.path.relpath(place, folder)
        further = set(folders)
        for name in sorted((*files, *folders), key=in_nfc):
            path = os.path.join(place, name)
            if name.startswith("."):
                left_out |= dict.fromkeys(_files_in(path), HIDDEN)
            elif name.lower().endswith(SUFFIXES) or _is_lost(path):
                found.append(os.path.normpath(os.path.join(inner, name)))
            elif name not in further:
                left_out |= dict.fromkeys(_files_in(path), OTHERWISE)
        # in an order of their own, as of two links to one folder the first is followed
        folders[:] = sorted((name for name in folders if not name.startswith(".")), key=in_nfc)
    return found, left_out


def _is_lost(path: str) -> bool:
    return os.path.islink(path) and not os.path.exists(path)


def _beside_parts(root: Path) -> dict[str, str]:
    return _beside(root, ("train", "val"), BESIDE)


def _beside(root: Path, taken: Collection[str], why: str) -> dict[str, str]:
    """The files in a folder that are not in those folders of it that are taken, and why they are left out."""
    try:
        names = sorted(name for name in os.listdir(root) if name not in taken)
    except OSError as error:
        raise _cannot_read(error) from None
    return {
        path: HIDDEN if name.startswith(".") else why
        for name in names
        for path in _files_in(str(root / name))
    }


def _files_in(path: str) -> list[str]:
    """The files in a folder at any depth, or this one, but for what systems write; links are not followed.

    A link to a folder, and a folder that cannot be read, are as a file.
    """
    if os.path.islink(path) or not os.path.isdir(path):
        return [] if os.path.basename(path).lower() in SYSTEMS else [path]
    found: list[str] = []
    for place, folders, files in os.walk(path, onerror=lambda error: found.append(error.filename)):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        names = sorted(name for name in (*files, *links) if name.lower() not in SYSTEMS)
        found.extend(os.path.join(place, name) for name in names)
        folders.sort()
    return found


def _cannot_read(error: OSError) -> BadInput:
    return BadInput(f"cannot read the folder {error.filename}: {error.strerror}")


def same_classes(names: Sequence[str], others: Sequence[str]) -> dict[str, str]:
    """Which of the other names each name means: as a folder can be called; else the one of another case."""
    found: dict[str, str] = {}
    for alike in (str, str.casefold):
        taken = set(found.values())
        left = _once([name for name in names if name not in found], alike)
        known = _once([other for other in others if other not in taken], alike)
        found |= {name: known[key] for key, name in left.items() if key in known}
    return found


def _once(names: list[str], alike: Callable[[str], str]) -> dict[str, str]:
    """What names have in common with others that are alike → the name, where there is but one."""
    keys = [alike(in_nfc(name.replace("/", "-"))) for name in names]
    count = Counter(keys)
    return {key: name for key, name in zip(keys, names, strict=True) if count[key] == 1}


def in_nfc(name: str) -> str:
    """A name as it is compared: macOS gives "é" as two characters, others as it was written."""
    return unicodedata.normalize("NFC", name)


def _check_several(found: Images) -> None:
    """Raise `ValueError` unless there are classes to tell apart."""
    if len(found.classes) == 1:
        raise BadInput(
            f"{found.root} has one class only, {shown(found.classes[0], 200)}, and none to tell it from; "
            "give the folder that holds the classes' folders"
        )


# Control characters, and the half characters that stand for what is not UTF-8.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


def _check_names(root: Path, names: list[str]) -> None:
    if strange := [name for name in names if UNPRINTABLE.search(name)]:
        raise BadInput(
            f"{root} has names that are not UTF-8, or have control characters: {some(strange)}; rename them"
        )


def _in_share(images: Images, share: float) -> NDArray[np.bool_]:
    """Which are for validation (N,): of each that depends on its name alone."""
    if not 0 < share < 1:
        raise BadInput(f"the share for validation must be above 0 and below 1, not {share}")
    chosen = np.array([_hash(name) / 2**64 < share for name in images.names])
    if chosen.all() or not chosen.any():
        which = "training" if chosen.all() else "validation"
        raise BadInput(f"a share of {share} leaves none of {len(images):,} images for {which}; give another")
    return chosen


def _hash(name: str) -> int:
    """64 bits, the same in either form of the name."""
    return int.from_bytes(hashlib.blake2b(in_nfc(name).encode(), digest_size=8).digest())


def _digest(*parts: Images) -> str:
    """Sixteen hexadecimal digits of which images there are."""
    digest = hashlib.sha256()
    for images in parts:
        digest.update(json.dumps([images.classes, [in_nfc(name) for name in images.names]]).encode())
    return digest.hexdigest()[:16]


def _stamp(images: Images, version: str) -> str:
    """What changes when a file does: of all names, sizes and times; and of who reads them."""
    digest = hashlib.sha256(version.encode() + os.fsencode(images.root.resolve()))
    for name in images.names:
        try:
            found = os.stat(images.root / name)
            digest.update(f"{name}\n{found.st_size}\n{found.st_mtime_ns}\n".encode())
        except OSError:
            digest.update(f"{name}\n".encode())
    return digest.hexdigest()
