"""Files of tensors: whose a file is, told by its content, and its tensors by name, in and out.

What only a framework can read is read by its package's `files.py`. Nothing that a file holds is ever run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.architecture import Architecture
from common.backend import BACKENDS, load_backend
from common.errors import BadInput, MissingBackend, MissingFile
from common.files import output_folder, write_atomically
from common.interop.families import FAMILIES, hugging_face_config
from common.reading import open_zip, some
from common.weights import NUMPY_TYPES, from_bfloat16, open_safetensors, read_header, write_safetensors

KNOWN = "a .safetensors, .pth, .pt, .bin, .h5, .keras, .msgpack or .params file, or a checkpoint's folder"
# What transformers calls its files, by the framework that wrote them.
HUGGING_FACE = {"torch": "model.safetensors", "jax": "flax_model.msgpack", "tf": "tf_model.h5"}


def read_tensors(path: Path) -> tuple[dict[str, NDArray], list[str]]:
    """Name to array of a file, and the names that were bfloat16, which come as float32.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, holds more than tensors or types NumPy lacks, or if what reads it is
            not installed.
    """
    if path.is_dir():
        path = next((path / name for name in HUGGING_FACE.values() if (path / name).is_file()), path)
    kind = _kind(path)
    if kind == "safetensors":
        return _read_safetensors(path)
    try:
        return load_backend(kind).read_tensors(path)
    except MissingBackend as error:
        label = BACKENDS[kind].label
        raise BadInput(f"{path} takes {label} to read, or save it as .safetensors: {error}") from None


def _kind(path: Path) -> str:
    """Whose file or folder it is: a backend's name, or "safetensors"."""
    if path.is_dir():
        return "tf" if (path / "checkpoint").is_file() else "jax"
    if path.with_name(f"{path.name}.index").is_file():
        return "tf"  # the prefix of a TensorFlow checkpoint
    if not path.is_file():
        raise MissingFile(f"{path} not found; give {KNOWN}")
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith(b"\x89HDF"):
        return "tf"
    if start.startswith(b"PK"):
        return "tf" if _is_keras(path) else "torch"
    if start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5"):  # a pickle, of protocol 2 to 5
        return "torch"
    if start[:8] == (0x112).to_bytes(8, "little"):
        return "mxnet"
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return "safetensors"
    if start[:1] in (b"\xde", b"\xdf") or b"\x81" <= start[:1] <= b"\x8f":  # a map in msgpack
        return "jax"
    suffixes = {suffix: name for name, backend in BACKENDS.items() for suffix in backend.suffixes}
    if path.suffix not in {".safetensors", *suffixes}:
        raise BadInput(f"{path} is of no known kind; give {KNOWN}")
    return suffixes.get(path.suffix, "safetensors")


def _is_keras(path: Path) -> bool:
    try:
        with open_zip(path, ratio=2) as archive:
            return "model.weights.h5" in archive.namelist()
    except (ValueError, OSError):
        return False


def write_tensors(
    path: Path, family: str, arch: Architecture, tensors: Mapping[str, NDArray], metadata: Mapping[str, str]
) -> None:
    """Write a network as the family's own loader takes it; `metadata` where the format has room for it.

    Raises:
        ValueError: if the family has no such kind of file, or it cannot be written.
    """
    theirs = FAMILIES[family]
    if path.suffix == "" and theirs.config is not None:
        path = output_folder(path) / HUGGING_FACE[theirs.framework]
        config = json.dumps(hugging_face_config(arch), indent=2) + "\n"
        write_atomically(path.with_name("config.json"), config)
    elif theirs.config and arch.stride_on != "3x3":
        raise BadInput(
            f"{path}: only a config.json can say where this network's strides are; give a folder as DEST"
        )
    if path.suffix == ".safetensors":
        write_safetensors(path, tensors, {"format": "pt", **metadata})
    else:
        load_backend(theirs.framework).write_tensors(path, tensors)


def check_suffix(path: Path, family: str) -> None:
    """Raise `ValueError` unless this is the name of a file, or a folder, that the family's loader takes."""
    suffixes = FAMILIES[family].suffixes
    if path.suffix not in suffixes:
        known = " or ".join(suffix or "nothing, for a folder" for suffix in suffixes)
        raise BadInput(f"{path} must end in {known}: that is what {family} loads")


def _read_safetensors(path: Path) -> tuple[dict[str, NDArray], list[str]]:
    with open_safetensors(path) as file:
        types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        tensors = {name: file.get_tensor(name) for name, kind in types.items() if kind in NUMPY_TYPES}
    halves = [name for name, kind in types.items() if kind == "BF16"]
    if foreign := [f"{name} ({types[name]})" for name in types if name not in tensors and name not in halves]:
        raise BadInput(f"{path} is not of float16, bfloat16, float32 or float64: {some(foreign)}")
    if halves:
        header, start = read_header(path)
        with path.open("rb") as binary:
            for name in halves:
                begin, end = header[name]["data_offsets"]
                binary.seek(start + begin)
                bits = np.frombuffer(binary.read(end - begin), "<u2")
                tensors[name] = from_bfloat16(bits).reshape(header[name]["shape"])
    return tensors, halves
