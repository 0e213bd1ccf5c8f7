"""A person's own images, as the network wants them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from common.architecture import Architecture
from common.data import imagenet
from common.data.pipeline import resize
from common.errors import BadInput, MissingFile

if TYPE_CHECKING:
    from PIL.Image import Image

DATASET_SIZE = (28, 28)  # of the images the network was trained on, before they were resized


def read_images(
    paths: list[Path], arch: Architecture, size: tuple[int, int], dataset: str = "", normalize: str = ""
) -> tuple[list[str], NDArray]:
    """Names, and images float32 (N, C, H, W), from image files or from one .npy file.

    An image file is brought to 28×28 first and then to `size`, as Fashion-MNIST's were in training, and
    lies in [0, 1]; for "imagenet" it is prepared as `imagenet.preprocess` says, and where `normalize` says
    how a folder's images were, as `ImageFolder` prepares them for validation. An array is (N, C, H, W),
    uint8 (which is divided by 255) or floating point, and is taken as it is.

    Raises:
        FileNotFoundError: if a file is not there.
        ValueError: if one is no image, or not one for this network.
    """
    for path in paths:
        if not path.is_file():
            raise MissingFile(f"{path} not found; give image files, or one .npy file")
    if len(paths) == 1 and paths[0].suffix == ".npy":
        x = _array(paths[0], arch)
        return [f"{paths[0].name}[{i}]" for i in range(len(x))], x
    if normalize:
        from common.data.folder import FileBatches, Images

        images = Images(Path(), [str(path) for path in paths], np.zeros(len(paths), np.int32), ())
        x, _ = FileBatches(images, len(paths), size, normalize, "float32", arch.in_channels)[0]
    elif dataset == imagenet.NAME:
        x = np.stack(
            [imagenet.preprocess(_image(path, arch.in_channels, grey=True), size[0]) for path in paths]
        )
    else:
        small = [_fashion(_image(path, arch.in_channels)) for path in paths]  # (C, 28, 28) each
        x = np.stack([resize(image, size) for image in small])
    arch.check_input(x.shape)
    return [path.name for path in paths], x


def find_files(paths: list[Path]) -> dict[Path, str]:
    """The files among these, and all image files in the folders among them, at any depth, sorted; and names.

    A file is named by its own name, one of a folder by its path from there.

    Raises:
        FileNotFoundError: if one is not there.
        ValueError: if a folder has none, or a name cannot be written.
    """
    from common.data.folder import SUFFIXES, UNPRINTABLE, printable

    files: dict[Path, str] = {}
    for path in paths:
        if path.is_dir():
            found = sorted(file for file in _walk(path) if file.suffix.lower() in SUFFIXES)
            if not found:
                raise BadInput(f"{path} has no images ({', '.join(SUFFIXES)})")
            files |= {file: str(file.relative_to(path)) for file in found}
        elif path.is_file():
            files[path] = path.name
        else:
            raise MissingFile(f"{path} not found; give image files, or one .npy file")
    for file in files:
        if UNPRINTABLE.search(str(file)):
            raise BadInput(f"{printable(str(file))} is not UTF-8, or has control characters; rename it")
    return files


def _walk(folder: Path) -> Iterator[Path]:
    """The files in a folder and in those in it, links followed but not in circles, hidden ones left out."""
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(place, name) for name in names if not name.startswith("."))


def read_array(path: Path) -> NDArray:
    """The array in a .npy file.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: if it is no such file, or holds Python objects, which are never unpickled.
    """
    if not path.is_file():
        raise MissingFile(f"{path} not found; give an array that numpy.save wrote")
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, BadZipFile):
        array = None
    if not isinstance(array, np.ndarray):
        raise BadInput(f"{path} is not an array that numpy.save wrote; give (N, C, H, W) numbers")
    return array


def check_images(name: str, array: NDArray, arch: Architecture) -> None:
    """Raise `ValueError` unless these numbers are finite images (N, C, H, W) for the network."""
    try:
        arch.check_input(array.shape)
    except BadInput as error:
        raise BadInput(f"{name}: {error}") from None
    if not np.isfinite(array).all():
        raise BadInput(f"{name} has values that are NaN or infinite")


def _array(path: Path, arch: Architecture) -> NDArray:
    array = read_array(path)
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise BadInput(f"{path} must hold uint8 or floating point numbers")
    check_images(str(path), array, arch)
    return array.astype(np.float32) / (255 if array.dtype == np.uint8 else 1)


def _image(path: Path, channels: int, grey: bool = False) -> Image:
    """The image in a file, of so many channels; with `grey` a greyscale one may stand for a coloured one."""
    from PIL import Image

    try:
        with Image.open(path) as opened:
            image = opened.copy()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadInput(f"{path} is not an image that can be read ({error}); give PNG or JPEG files") from None
    wanted = {1: "L", 3: "RGB"}.get(channels)
    bands = len(image.getbands())
    if image.mode not in ("1", "L", "RGB") or (bands != channels and not (grey and bands == 1)):
        raise BadInput(
            f"{path} has {bands} channels ({image.mode}) but the network takes {channels}; "
            f"convert it to {'greyscale' if channels == 1 else wanted or 'an array, X.npy'}"
        )
    return image.convert(wanted)


def _fashion(image: Image) -> NDArray[np.uint8]:
    """(C, 28, 28)."""
    from PIL.Image import Resampling

    if image.size != DATASET_SIZE:
        image = image.resize(DATASET_SIZE, Resampling.BILINEAR)  # which averages when it shrinks
    return np.asarray(image).reshape(*DATASET_SIZE, -1).transpose(2, 0, 1)
