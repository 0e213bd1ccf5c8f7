"""What a person gives to a command: image files, folders of them, or an array."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from common.architecture import Architecture
from common.data.decode import SUFFIXES
from common.data.folder import UNPRINTABLE, Images, aside, images_within, in_nfc
from common.errors import BadInput, MissingFile
from common.reading import brief


def find_files(paths: list[Path]) -> tuple[dict[Path, str], dict[str, str]]:
    """The files among these, and all image files in the folders among them, at any depth, sorted; and names.

    A file is named by its own name, one of a folder by its path from there. What is in the folders and is not
    taken is told besides, path → why.

    Raises:
        FileNotFoundError: if one is not there.
        ValueError: if a folder has none, or a name cannot be written.
    """
    files: dict[Path, str] = {}
    left_out: dict[str, str] = {}
    for path in paths:
        if path.is_dir():
            found, others = images_within(path)
            if not found:
                raise BadInput(
                    f"{path} has no images; give a folder of *{' *'.join(SUFFIXES)}{aside(others)}"
                )
            found.sort(key=lambda name: (Path(in_nfc(name)), name))
            files |= {path / name: name for name in found}
            left_out |= others
        elif os.path.lexists(path):  # what is no file, who reads it says
            files[path] = path.name
        else:
            raise MissingFile(f"{path} not found; give image files, or one .npy file")
    for file in files:
        if UNPRINTABLE.search(str(file)):
            raise BadInput(f"{file} is not UTF-8, or has control characters; rename it")
    return files, {path: why for path, why in left_out.items() if Path(path) not in files}


def without_classes(paths: Iterable[Path], left_out: Mapping[str, str]) -> Images:
    """Image files that are wherever they are, and of no class; all labels are 0."""
    names = [str(path) for path in paths]
    return Images(Path(), names, np.zeros(len(names), np.int32), (), left_out)


def read_array(path: Path) -> NDArray:
    """The array in a .npy file.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: if it is no such file, or holds Python objects, which are never unpickled.
    """
    if not path.is_file():
        raise MissingFile(f"{path} not found; give an array that numpy.save wrote")
    try:
        with path.open("rb") as file:
            return read_npy(file, path.stat().st_size)
    except Exception:  # of a dozen kinds: NumPy's, the tokeniser's
        raise BadInput(f"{path} is not an array that numpy.save wrote; give (N, C, H, W) numbers") from None


def read_npy(file: IO[bytes], size: int) -> NDArray:
    """The array of a .npy file of so many bytes, which the header is held against before NumPy believes it.

    Raises:
        Exception: of many kinds, if it is none, or holds Python objects, which are never unpickled.
    """
    headers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    shape, _, dtype = headers[npy.read_magic(file)](file)
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"its shape is {brief(shape)}")
    file.seek(0)
    return npy.read_array(file, allow_pickle=False)


def check_images(name: str, array: NDArray, arch: Architecture) -> None:
    """Raise `ValueError` unless these numbers are finite images (N, C, H, W) for the network."""
    try:
        arch.check_input(array.shape)
    except BadInput as error:
        raise BadInput(f"{name}: {error}") from None
    if not np.isfinite(array).all():
        raise BadInput(f"{name} has values that are NaN or infinite")


def images_in_array(path: Path, arch: Architecture) -> NDArray:
    """The images (N, C, H, W) in a .npy file, taken as they are; uint8 are divided by 255.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: if it holds anything else, or not images for this network.
    """
    array = read_array(path)
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise BadInput(f"{path} must hold uint8 or floating point numbers")
    check_images(str(path), array, arch)
    return array.astype(np.float32) / (255 if array.dtype == np.uint8 else 1)
