"""Weights by canonical name: drawn from a seed, checked strictly, kept in safetensors files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.architecture import Architecture, Shape
from common.errors import BadInput, MissingFile
from common.files import write_atomically
from common.reading import LARGEST, fits, parse_json, shown, some

Weights = dict[str, NDArray[np.floating]]

FLOATS = (np.float16, np.float32, np.float64)
# Of safetensors' names, those NumPy knows by itself; BF16 it knows only where a framework taught it.
NUMPY_TYPES = {"BOOL", "I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64", "F16", "F32", "F64"}
STATISTICS = ("running_mean", "running_var")
# Two sums in the metadata of our files, so that a damaged name of one leaves the other to tell.
SUMS = ("header_sha256", "tensors_sha256")


def from_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The numbers of these bits, which NumPy does not know: they are the upper half of a float32's."""
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def is_statistic(name: str) -> bool:
    """Whether a canonical name is a running statistic, which no gradient moves."""
    return name.endswith(STATISTICS)


def initial_weights(arch: Architecture, seed: int = 0) -> Weights:
    """Float64 weights: Glorot uniform, biases 0, batch norm 1 and 0; the same numbers everywhere.

    Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural
    networks" (2010), equation 16: uniform in ±sqrt(6 / (fan_in + fan_out)).
    """
    generator = np.random.default_rng(seed)
    weights: Weights = {}
    for name, shape in arch.parameter_shapes().items():
        if len(shape) > 1:
            receptive_field = int(np.prod(shape[2:]))
            limit = np.sqrt(6 / ((shape[0] + shape[1]) * receptive_field))
            weights[name] = generator.uniform(-limit, limit, shape)
        else:
            is_scale = name.endswith("running_var") or ("bn" in name and name.endswith("weight"))
            weights[name] = np.ones(shape) if is_scale else np.zeros(shape)
    return weights


def check_weights(arch: Architecture, weights: Mapping[str, NDArray]) -> Weights:
    """The weights as arrays in canonical order.

    Raises:
        ValueError: for names missing or extra, wrong shapes, wrong types, and NaN or infinity.
    """
    try:
        return check_tensors(arch.parameter_shapes(), weights)
    except BadInput as error:
        raise BadInput(f"the weights do not fit this architecture; {error}") from None


def other_names(expected: Collection[str], found: Collection[str]) -> list[str]:
    """What is missing of the names that are expected, and what is extra, each in a few words."""
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    return [f"{word}: {some(names)}" for word, names in (("missing", missing), ("extra", extra)) if names]


def check_tensors(shapes: Mapping[str, Shape], tensors: Mapping[str, NDArray]) -> Weights:
    """The tensors as arrays in the order of `shapes`.

    Raises:
        ValueError: for names missing or extra, wrong shapes, wrong types, and NaN or infinity.
    """
    problems = other_names(shapes, tensors)
    arrays = {name: np.asarray(tensors[name]) for name in shapes if name in tensors}
    wrong_shape = [
        f"{name} is {array.shape}, expected {shapes[name]}"
        for name, array in arrays.items()
        if array.shape != shapes[name]
    ]
    wrong_type = [f"{name} ({a.dtype})" for name, a in arrays.items() if a.dtype not in FLOATS]
    if wrong_shape:
        problems.append(f"wrong shape: {some(wrong_shape)}")
    if wrong_type:
        problems.append(f"not float16, float32 or float64: {some(wrong_type)}")
    elif not_finite := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        problems.append(f"NaN or infinite: {some(not_finite)}")

    if problems:
        raise BadInput("; ".join(problems))
    return arrays


def save_checkpoint(
    path: str | os.PathLike[str],
    arch: Architecture,
    weights: Mapping[str, NDArray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write weights, architecture and what else `metadata` says as a safetensors file, whole or not at all.

    Raises:
        ValueError: if the weights do not fit the architecture or the folder cannot be written.
    """
    own = {"architecture": arch.to_json()}
    write_with_sums(path, check_weights(arch, weights), {**(metadata or {}), **own})


def write_with_sums(
    path: str | os.PathLike[str], tensors: Mapping[str, NDArray], metadata: Mapping[str, str]
) -> None:
    """`write_safetensors`, with what `read_with_sums` needs to notice damage.

    Raises:
        ValueError: if the folder cannot be written.
    """
    said = {name: text for name, text in metadata.items() if name not in SUMS}
    said["tensors_sha256"] = tensors_sha256(tensors)
    write_safetensors(path, tensors, {**said, "header_sha256": _header_sha256(tensors, said)})


def tensors_sha256(tensors: Mapping[str, NDArray]) -> str:
    """SHA-256 of names and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(_little_endian(tensors[name]).view(np.uint8).data)
    return digest.hexdigest()


def _header_sha256(tensors: Mapping[str, NDArray], metadata: Mapping[str, str]) -> str:
    """SHA-256 of names, types and shapes, and of the rest of the metadata."""
    layout = {name: (array.dtype.name, array.shape) for name, array in tensors.items()}
    said = {name: text for name, text in metadata.items() if name != "header_sha256"}
    return hashlib.sha256(json.dumps([layout, said], sort_keys=True).encode()).hexdigest()


def _little_endian(array: NDArray) -> NDArray:
    """The array as it lies in a file."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


def write_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, NDArray], metadata: Mapping[str, str]
) -> None:
    """Write float tensors and metadata in the safetensors format, whole or not at all.

    The library would hold the file in memory twice over. Format: https://github.com/huggingface/safetensors

    Raises:
        ValueError: if the folder cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    arrays, end = [], 0
    for name, tensor in sorted(tensors.items(), key=lambda item: -item[1].itemsize):  # keeps all aligned
        array = _little_endian(tensor)
        begin, end = end, end + array.nbytes
        kind = f"F{8 * array.itemsize}"
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": (begin, end)}
        arrays.append(array)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    start = len(text).to_bytes(8, "little") + text
    write_atomically(path, [memoryview(start), *(array.data.cast("B") for array in arrays)])


def load_checkpoint(path: str | os.PathLike[str]) -> tuple[Architecture, Weights]:
    """The architecture and weights of a checkpoint, checked against each other.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a complete safetensors file of a network of ours, or is damaged.
    """
    arch, weights, _ = read_checkpoint(path)
    return arch, weights


def read_checkpoint(path: str | os.PathLike[str]) -> tuple[Architecture, Weights, dict[str, str]]:
    """`load_checkpoint` and `load_metadata` of a file that is read once; raises what they raise."""
    weights, metadata = read_with_sums(path)
    if "architecture" not in metadata:
        raise BadInput(
            f"checkpoint {path} names no architecture in its metadata; write it with save_checkpoint, "
            "or bring another library's with `resnet-tabs convert`"
        )
    try:
        arch = Architecture.from_json(metadata["architecture"])
        return arch, check_weights(arch, weights), metadata
    except BadInput as error:
        raise BadInput(f"checkpoint {path}: {error}") from None


def read_with_sums(path: str | os.PathLike[str]) -> tuple[Weights, dict[str, str]]:
    """The tensors and the metadata of a safetensors file, checked against its sums where it has them.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a complete safetensors file, or damaged.
    """
    path = Path(path)
    with open_safetensors(path) as file:
        metadata = file.metadata() or {}
        names = list(file.keys())
        foreign = {file.get_slice(name).get_dtype() for name in names} - NUMPY_TYPES
        tensors = {} if foreign else {name: file.get_tensor(name) for name in names}
    if foreign:
        raise BadInput(f"checkpoint {path} holds {', '.join(sorted(foreign))}; save it as float32")
    if any(name in metadata for name in SUMS) and (
        metadata.get("header_sha256") != _header_sha256(tensors, metadata)
        or metadata.get("tensors_sha256") != tensors_sha256(tensors)
    ):
        raise BadInput(
            f"checkpoint {path} is damaged or was changed (wrong SHA-256); "
            "take another copy, or write it with save_checkpoint"
        )
    return tensors, metadata


def load_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """What a checkpoint says of itself besides its tensors: "architecture", and what was given to save it.

    Its sums are not checked here but by `load_checkpoint`: they take reading all of it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a complete safetensors file.
    """
    with open_safetensors(Path(path)) as file:
        return file.metadata() or {}


@contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """A `safe_open` of NumPy arrays, whose errors are one line."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise MissingFile(f"checkpoint {path} not found; give the path of a .safetensors file")
    _check_is_safetensors(path)
    try:
        read_header(path)  # of which the library takes the last of a name that is there twice
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, OSError, ValueError, MemoryError) as error:
        reason = shown(str(error), 200)
        raise BadInput(f"checkpoint {path} is not a complete safetensors file: {reason}") from None


def _check_is_safetensors(path: Path) -> None:
    """Raise `ValueError` if a file is plainly of another kind, whatever it is called."""
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:] != b"{" and start.startswith((b"PK", b"\x80", b"\x89HDF")):
        raise BadInput(
            f"checkpoint {path} is no .safetensors of this project; bring it with "
            f"`resnet-tabs convert {path} ours.safetensors`"
        )


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, in which no name is twice, and where the tensors begin.

    Raises:
        OSError, ValueError: if it has none.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = parse_json(file.read(min(length, LARGEST + 1)), dict)
    if not fits(header.get("__metadata__", {}), dict[str, str]):
        raise ValueError("its metadata is not of texts")
    return header, 8 + length
