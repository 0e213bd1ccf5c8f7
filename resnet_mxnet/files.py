"""Files that Gluon, GluonCV and Module wrote, read and written without MXNet.

MXNet's own reader allocates whatever a file announces. This one holds every length against the file first.

A file is a list of arrays, then a list of their names, all little-endian, with nothing between:

    uint64  0x112, 0, number of arrays
    array   uint32 magic, int32 storage type, int32 ndim, int64 × ndim shape,
            int32 × 2 device, int32 data type, the values in row-major order
    uint64  number of names
    name    uint64 length, the bytes in UTF-8

Source: NDArray::Save, Load and LegacyLoad in
https://github.com/apache/mxnet/blob/v1.9.x/src/ndarray/ndarray.cc
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import BadInput, MissingFile
from common.files import write_atomically
from common.weights import from_bfloat16

LIST_MAGIC = 0x112
# An array saved without NumPy semantics is V2, with them V3. V1 has no storage type, and what MXNet
# wrote before that no magic: it starts with ndim, and its shape is uint32.
V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
DENSE = 0
CPU = (1, 0)
PREFIXES = ("arg:", "aux:")  # of `export` and Module: parameters and running statistics
TYPES = dict(enumerate(map(np.dtype, ("<f4", "<f8", "<f2", "u1", "<i4", "i1", "<i8", "?"))))
BFLOAT16 = 12

# No network comes near these; they keep what a small file can cost in memory small.
MOST_ARRAYS, MOST_DIMENSIONS, LONGEST_NAME = 100_000, 32, 1_000


def read_tensors(path: Path) -> tuple[dict[str, NDArray], list[str]]:
    """Name to array of a `.params` file, and the names that were bfloat16, which come as float32.

    The names are Gluon's ("features.0.weight"); the prefixes of `export` and Module are dropped.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no such file, is damaged, or holds what is no dense array with a name.
    """
    if not path.is_file():
        raise MissingFile(f"{path} not found; give the path of a .params file")
    try:
        with path.open("rb") as file:
            return _read_list(file, os.fstat(file.fileno()).st_size)
    except BadInput as error:
        raise BadInput(f"{path} is refused as an MXNet file: {error}") from None
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}; make it readable") from None


def write_tensors(path: Path, tensors: Mapping[str, NDArray]) -> None:
    """Write what `mx.nd.save` would, which Gluon loads with and without NumPy semantics.

    Without them MXNet has no array of shape ().

    Raises:
        ValueError: for arrays or names that MXNet cannot load, or a folder that cannot be written.
    """
    write_atomically(path, _pieces(tensors))


def _read_list(file: BufferedReader, size: int) -> tuple[dict[str, NDArray], list[str]]:
    magic, _, count = _take(file, "QQQ")
    if magic != LIST_MAGIC:
        raise BadInput("it is something else; give a file of net.save_parameters")
    if count > MOST_ARRAYS:
        raise BadInput(f"it announces {count} arrays; take another copy")
    values = []
    for i in range(count):
        try:
            values.append(_read_array(file, size))
        except BadInput as error:
            raise BadInput(f"array {i + 1} of {count}: {error}") from None

    (names,) = _take(file, "Q")
    if names != count:
        raise BadInput(f"it has {names} names for {count} arrays; save it with net.save_parameters")
    arrays: dict[str, NDArray] = {}
    halves = []
    for array, is_half in values:
        name = _read_name(file)
        if name in arrays:
            raise BadInput(f"it holds {name} twice; save it with net.save_parameters")
        arrays[name] = array
        if is_half:
            halves.append(name)
    if file.read(1):
        raise BadInput("it goes on after its end; take another copy")
    return arrays, halves


def _read_array(file: BufferedReader, size: int) -> tuple[NDArray, bool]:
    """The next array of a file of `size` bytes, and whether it was bfloat16."""
    (magic,) = _take(file, "I")
    if magic in (V2, V3) and _take(file, "i") != (DENSE,):
        raise BadInput("it is not dense; save array.tostype('default')")
    ndim, dim = (*_take(file, "i"), "q") if magic in (V1, V2, V3) else (magic, "I")
    if ndim > MOST_DIMENSIONS:
        raise BadInput("it is damaged or of an unknown version of MXNet; take another copy")
    # Without NumPy semantics no dimensions mean no array; with them it is −1 dimensions.
    if ndim < (0 if magic == V3 else 1):
        raise BadInput("it has no values; initialise the network before you save it")
    shape = _take(file, ndim * dim)
    _, _, flag = _take(file, "iii")
    dtype = np.dtype("<u2") if flag == BFLOAT16 else TYPES.get(flag)
    if dtype is None:
        raise BadInput(f"its type {flag} is unknown; save it as float32")
    if min(shape, default=0) < 0:
        raise BadInput("it has a negative dimension; take another copy")
    if math.prod(shape) * dtype.itemsize > size - file.tell():
        raise BadInput("it ends too soon; take another copy")
    try:
        array = np.empty(shape, dtype)
    except (MemoryError, ValueError):  # a ValueError where one dimension is 0 and another 2⁶²
        raise BadInput("its shape does not fit into memory; take another copy") from None
    file.readinto(array.data)  # were the file cut meanwhile, there would be no names
    return (from_bfloat16(array), True) if flag == BFLOAT16 else (array, False)


def _read_name(file: BufferedReader) -> str:
    (length,) = _take(file, "Q")
    if length > LONGEST_NAME:
        raise BadInput(f"it has a name of {length} bytes; take another copy")
    (text,) = _take(file, f"{length}s")
    try:
        name = text.decode()
    except UnicodeDecodeError:
        raise BadInput("it has a name that is no text; take another copy") from None
    if not name.isprintable():
        raise BadInput(f"it has the name {name!r}; take another copy")
    return name[4:] if name.startswith(PREFIXES) else name


def _take(file: BufferedReader, kinds: str) -> tuple[Any, ...]:
    """The next fields, of `struct`'s kinds."""
    fields = struct.Struct(f"<{kinds}")
    content = file.read(fields.size)
    if len(content) < fields.size:
        raise BadInput("it ends too soon; take another copy")
    return fields.unpack(content)


def _pieces(tensors: Mapping[str, NDArray]) -> Iterator[bytes]:
    """The file, one array after the other."""
    flags = {dtype: flag for flag, dtype in TYPES.items()}
    yield struct.pack("<QQQ", LIST_MAGIC, 0, len(tensors))
    for name, tensor in tensors.items():
        array = np.asarray(tensor, tensor.dtype.newbyteorder("<"))
        if array.dtype not in flags or not 1 <= array.ndim <= MOST_DIMENSIONS:
            what = f"{name} is {array.dtype} of shape {array.shape}"
            raise BadInput(f"{what}, which MXNet does not load; give float32 of a dimension or more")
        flag = flags[array.dtype]
        yield struct.pack(f"<Iii{array.ndim}q3i", V2, DENSE, array.ndim, *array.shape, *CPU, flag)
        yield array.tobytes()
    yield struct.pack("<Q", len(tensors))
    for name in tensors:
        if not name.isprintable() or name.startswith(PREFIXES):
            raise BadInput(f"{name!r} is no name of a parameter; give one as Gluon's, features.0.weight")
        text = name.encode()
        yield struct.pack(f"<Q{len(text)}s", len(text), text)
