"""Files of tensors: whose a file is, told by its content, and its tensors by name, in and out.

What only a framework can read is read by its package's `files.py`. Nothing that a file holds is ever run.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.architecture import Architecture
from common.backend import BACKENDS, load_backend
from common.data.preparation import Preparation
from common.errors import BadInput, MissingBackend, MissingFile
from common.files import output_folder, write_atomically
from common.interop.configs import CONFIG, PROCESSOR
from common.interop.convert import Converted
from common.interop.families import FAMILIES, hugging_face_config
from common.interop.prepared import for_transformers
from common.reading import brief, fits, open_zip, read_json, some
from common.weights import (
    NUMPY_TYPES,
    from_bfloat16,
    open_safetensors,
    other_names,
    read_header,
    write_safetensors,
)

KNOWN = "a .safetensors, .pth, .pt, .bin, .h5, .keras, .msgpack or .params file, or a checkpoint's folder"
# What transformers calls its files, by the framework that wrote them.
HUGGING_FACE = {"torch": "model.safetensors", "jax": "flax_model.msgpack", "tf": "tf_model.h5"}
# What people have in place of a file that they did not download.
NO_FILES = {b"version h": "a pointer of Git LFS", b"<!doctype": "a web page", b"<html": "a web page"}
INDEX = ".index.json"  # of weights in several files
HUB = [  # the files of a folder of the hub, the first that is there
    "model.safetensors",
    f"model.safetensors{INDEX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX}",
    HUGGING_FACE["jax"],
    HUGGING_FACE["tf"],
]


def read_tensors(path: Path) -> tuple[dict[str, NDArray], list[str]]:
    """Name to array of a file, and the names that were bfloat16, which come as float32.

    It may be a folder of the hub, or the index of several files, too.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, holds more than tensors or types NumPy lacks, or if what reads it is
            not installed.
    """
    if path.is_dir():
        path = next((path / name for name in HUB if (path / name).is_file()), path)
    if path.name.endswith(INDEX) and path.is_file():
        return _read_shards(path)
    kind = _kind(path)
    if kind == "safetensors":
        return _read_safetensors(path)
    try:
        return load_backend(kind).read_tensors(path)
    except MissingBackend as error:
        label = BACKENDS[kind].label
        raise BadInput(f"{path} takes {label} to read, or save it as .safetensors: {error}") from None


def _read_shards(index: Path) -> tuple[dict[str, NDArray], list[str]]:
    """The tensors of all the files that an index names, which lie beside it."""
    try:
        places = read_json(index)["weight_map"]
        if not fits(places, dict[str, str]):
            raise ValueError("its weight_map is not of names and files")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{index} is no index of weights: {error}; take another copy") from None
    tensors: dict[str, NDArray] = {}
    halves: list[str] = []
    for name in dict.fromkeys(places.values()):
        if Path(name).name != name or name.endswith(INDEX):
            raise BadInput(f"{index} names {brief(name)}, which is no file beside it; take another copy")
        found, of_them = read_tensors(index.with_name(name))
        tensors |= found
        halves += of_them
    if problems := other_names(places, tensors):
        raise BadInput(f"the files of {index} are not what it says; {'; '.join(problems)}; take other copies")
    return tensors, halves


def _kind(path: Path) -> str:
    """Whose file or folder it is: a backend's name, or "safetensors"."""
    if path.is_dir():
        return _kind_of_folder(path)
    if path.with_name(f"{path.name}.index").is_file():
        return "tf"  # the prefix of a TensorFlow checkpoint
    if not path.is_file():
        raise MissingFile(f"{path} not found; give {KNOWN}")
    with path.open("rb") as file:
        start = file.read(9)
    for begins, what in NO_FILES.items():
        if start.lower().startswith(begins):
            raise BadInput(f"{path} is {what}, not the checkpoint; download the file itself")
    if start.startswith(b"\x89HDF"):
        return "tf"
    if start.startswith(b"PK"):
        return "tf" if _is_keras(path) else "torch"
    if start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5"):  # a pickle, of protocol 2 to 5
        return "torch"
    if start[:8] == (0x112).to_bytes(8, "little"):
        return "mxnet"
    if path.name.endswith(".weights.json"):  # Keras' index of several files
        return "tf"
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return "safetensors"
    if start[:1] in (b"\xde", b"\xdf") or b"\x81" <= start[:1] <= b"\x8f":  # a map in msgpack
        return "jax"
    suffixes = {suffix: name for name, backend in BACKENDS.items() for suffix in backend.suffixes}
    if path.suffix not in {".safetensors", *suffixes}:
        raise BadInput(f"{path} is of no known kind; give {KNOWN}")
    return suffixes.get(path.suffix, "safetensors")


def _kind_of_folder(path: Path) -> str:
    if (path / "checkpoint").is_file() or (path / "saved_model.pb").is_file():
        return "tf"
    if any(True for names in ("_METADATA", "*/_METADATA", "*/*/_METADATA") for _ in path.glob(names)):
        return "jax"
    names = sorted(entry.name for entry in path.iterdir())
    if several := [name for name in names if re.fullmatch(r"checkpoint_\d+", name)]:
        raise BadInput(f"{path} holds checkpoints of Flax ({some(several)}); give the path of one of them")
    if "_CHECKPOINT_METADATA" in names:
        raise BadInput(f"{path} is of an Orbax before 0.5, without _METADATA; save it with a newer one")
    raise BadInput(f"{path} has no checkpoint that is known, but {some(names) or 'nothing'}; give {KNOWN}")


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

    A folder of transformers gets the classes' names and how images are prepared, where transformers has it.

    Raises:
        ValueError: if the family has no such kind of file, or it cannot be written.
    """
    theirs = FAMILIES[family]
    if path.suffix == "" and theirs.config is not None:
        path = output_folder(path) / HUGGING_FACE[theirs.framework]
        classes = json.loads(metadata.get("classes", "[]"))
        config = json.dumps(hugging_face_config(arch, classes), indent=2) + "\n"
        write_atomically(path.with_name(CONFIG), config)
        if "preparation" in metadata:
            made = for_transformers(Preparation.from_json(metadata["preparation"], arch.in_channels))
            if made:
                write_atomically(path.with_name(PROCESSOR), json.dumps(made, indent=2) + "\n")
    elif theirs.config and arch.stride_on != "3x3":
        raise BadInput(
            f"{path}: only a config.json can say where this network's strides are; give a folder as DEST"
        )
    if path.suffix == ".safetensors":
        write_safetensors(path, tensors, {"format": "pt", **metadata})
    else:
        load_backend(theirs.framework).write_tensors(path, tensors)


def describes_model(path: Path, found: Converted) -> bool:
    """Whether the file describes the very model of these tensors, for its library to build."""
    is_whole = path.is_file() and found.family == "keras" and not found.has_new_head
    return is_whole and _kind(path) == "tf" and load_backend("tf").read_model(path) is not None


@contextmanager
def as_loaded(path: Path, found: Converted) -> Iterator[Path]:
    """What the family's own loader takes: the very file, or for a while one of the same tensors."""
    family = FAMILIES[found.family]
    if describes_model(path, found):
        yield path
        return
    if path.is_dir():
        takes = family.config is not None and (path / CONFIG).is_file()
    else:
        takes = path.suffix in family.suffixes
    if takes and not found.said:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="resnet-tabs-") as folder:
        written = Path(folder) / f"model{family.suffixes[0]}"
        write_tensors(written, found.family, found.arch, found.source, {})
        config = path / CONFIG if path.is_dir() else path.with_name(CONFIG)
        if config.is_file() and not written.is_dir():
            shutil.copyfile(config, written.with_name(CONFIG))
        yield written


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
