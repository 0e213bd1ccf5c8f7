"""Checkpoints of Flax networks: one msgpack file, or a folder that Orbax wrote."""

import io
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
import numpy as np
from numpy.typing import NDArray

from common.errors import BadInput, MissingFile
from common.files import write_atomically
from common.reading import read_json, shown, some
from common.weights import from_bfloat16

COLLECTIONS = ("params/", "batch_stats/")
TYPES = {"float16": "<f2", "float32": "<f4", "float64": "<f8", "bfloat16": "<u2"}

# Flax's msgpack extensions: an array, a scalar that is an array of no axes.
ARRAY, SCALAR = 1, 3
CHUNKED = "__msgpack_chunked_array__"

# Far above any network's, low enough that a file which is nothing but names fits in memory.
MOST_NAMES, MOST_SIBLINGS, DEEPEST = 1 << 16, 1 << 12, 64

MB = 1 << 20


def read_tensors(path: Path) -> tuple[dict[str, NDArray], list[str]]:
    """Name to array of a Flax checkpoint, and the names that were bfloat16, which come as float32.

    A name is the path of modules without its collection, as "bn_init/mean", in the file's order. Of a
    training state, `params` and `batch_stats` are kept; a tree without `params` is taken as being them.

    Flax's msgpack: https://flax.readthedocs.io/en/latest/api_reference/flax.serialization.html

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if it is damaged, holds other than float arrays, or is no checkpoint of Flax or Orbax.
    """
    if not path.exists():
        raise MissingFile(f"{path} not found; give a .msgpack file or the folder of an Orbax checkpoint")
    if path.is_dir():
        content = _orbax_as_msgpack(path)
        return _read_msgpack(path, io.BytesIO(content), len(content))
    if not path.is_file():
        raise BadInput(f"{path} is neither file nor folder; give a .msgpack file or an Orbax checkpoint")
    try:
        with path.open("rb") as file:
            return _read_msgpack(path, file, path.stat().st_size)
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror or error}; make it readable") from None


def _read_msgpack(path: Path, file: BinaryIO, size: int) -> tuple[dict[str, NDArray], list[str]]:
    """The arrays of what `flax.serialization.to_bytes` wrote; Flax's own reader knows no limits."""
    seen = 0

    def branch(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal seen
        seen += len(pairs)
        if seen > MOST_NAMES:
            raise BadInput(f"more than {MOST_NAMES} names")
        if any(not isinstance(name, str) for name, _ in pairs):
            raise BadInput("a name is not text")
        if len(found := dict(pairs)) < len(pairs):
            raise BadInput("a name is there twice")
        return found

    try:
        unpacker = msgpack.Unpacker(
            file,
            object_pairs_hook=branch,
            max_buffer_size=max(size, 1),  # no string and no array is longer than the file
            max_map_len=MOST_SIBLINGS,
            max_array_len=0,  # Flax writes lists as maps
        )
        tree = unpacker.unpack()
        if not isinstance(tree, dict):
            raise BadInput(f"it holds {type(tree).__name__}, no tree of names")
        if unpacker.tell() != size:
            raise BadInput(f"{size - unpacker.tell()} bytes follow its end")
        leaves: dict[str, Any] = {}
        for name, leaf in _leaves(tree):
            if name in leaves:
                raise BadInput(f"{shown(name, 100)} is there twice")
            leaves[name] = leaf
    except Exception as error:  # in a damaged file anything can go wrong
        reason = "it ends too soon" if isinstance(error, msgpack.OutOfData) else _line(error)
        raise BadInput(f"{path} is not a complete Flax file: {reason}; take another copy") from None

    kept = [place for place in leaves if place.startswith(COLLECTIONS)]
    arrays: dict[str, NDArray] = {}
    halves = []
    for place in kept or leaves:
        name = place.partition("/")[2] if kept else place
        if name in arrays:
            raise BadInput(f"{path} has {shown(name, 100)} in two collections; rename one")
        try:
            kind, arrays[name] = _array(leaves[place])
        except Exception as error:
            what = str(error) if isinstance(error, BadInput) else "which is damaged"
            raise BadInput(f"{path} holds {shown(name, 100)}, {what}; save the variables as floats") from None
        if kind == "bfloat16":
            halves.append(name)
    return arrays, halves


def _leaves(tree: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Names joined by "/", and what is there."""
    if len(above) > DEEPEST:
        raise BadInput(f"its names are nested more than {DEEPEST} deep")
    for name, value in tree.items():
        if isinstance(value, dict) and CHUNKED not in value:
            yield from _leaves(value, (*above, name))
        else:
            yield "/".join((*above, name)), value


def _array(leaf: Any) -> tuple[str, NDArray]:
    """The type's name and the values of an array, whole or in the chunks Flax makes of a large one."""
    if isinstance(leaf, dict):
        shape = tuple(leaf["shape"][str(i)] for i in range(len(leaf["shape"])))
        chunks = [_array(leaf["chunks"][str(i)]) for i in range(len(leaf["chunks"]))]
        (kind,) = {kind for kind, _ in chunks}
        return kind, _shaped(np.concatenate([chunk.ravel() for _, chunk in chunks]), shape)

    if not (isinstance(leaf, msgpack.ExtType) and leaf.code in (ARRAY, SCALAR)):
        raise BadInput("which is no array")
    shape, name, content = msgpack.unpackb(leaf.data, raw=True, max_array_len=64, max_map_len=0)
    kind = str(name, "ascii", "replace")
    if kind not in TYPES:
        raise BadInput(f"which is {shown(kind, 100)}, not float16, bfloat16, float32 or float64")
    values = np.frombuffer(content, TYPES[kind])
    if kind == "bfloat16":
        values = from_bfloat16(values)
    return kind, _shaped(values, shape).copy()


def _shaped(values: NDArray, shape: Any) -> NDArray:
    """The values in that shape, which must be theirs without a -1."""
    if any(type(length) is not int or length < 0 for length in shape) or math.prod(shape) != values.size:
        raise BadInput("whose shape is not that of its values")
    return values.reshape(shape)


def _line(error: Exception) -> str:
    """The first line of what went wrong, cut where a file made it long."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def write_tensors(path: Path, tensors: Mapping[str, NDArray]) -> None:
    """Write float arrays as the variables of a Flax network, whole or not at all.

    A name that ends in .msgpack is a file for `flax.serialization.from_bytes`; one without a suffix is a
    folder for `flax.training.checkpoints.restore_checkpoint`. `mean` and `var` go to `batch_stats`, the rest
    to `params`: names keep their order within each of the two and within a module, and Orbax sorts them.

    Raises:
        ValueError: for another suffix, a name that is also a module's, or a place that cannot be written.
    """
    tree: dict[str, Any] = {}
    for name, array in tensors.items():
        *modules, last = name.split("/")
        branch = tree
        for module in ("batch_stats" if last in ("mean", "var") else "params", *modules):
            branch = branch.setdefault(module, {})
            if not isinstance(branch, dict):
                raise BadInput(f"{name} cannot lie below {module}, which is an array; rename one")
        if last in branch:
            raise BadInput(f"{name} is an array and a module; rename one")
        branch[last] = array

    if path.suffix == ".msgpack":
        write_atomically(path, _msgpack(tree))
    elif path.suffix:
        raise BadInput(f"{path} is no name for a Flax checkpoint; end it in .msgpack, or give no suffix")
    else:
        _write_orbax(path, tree)


def _msgpack(tree: dict[str, Any]) -> Iterator[bytes]:
    """A tree as Flax packs it, piece by piece: it may be as large as the memory."""
    packer = msgpack.Packer(default=_packed)
    yield packer.pack_map_header(len(tree))
    for name, value in tree.items():
        yield packer.pack(name)
        if isinstance(value, dict):
            yield from _msgpack(value)
        else:
            yield packer.pack(value)


def _packed(array: NDArray) -> msgpack.ExtType:
    """An array as Flax packs it."""
    content = array.astype(array.dtype.newbyteorder("<")).tobytes()
    return msgpack.ExtType(ARRAY, msgpack.packb((array.shape, array.dtype.name, content)))


def _write_orbax(path: Path, tree: dict[str, Any]) -> None:
    import orbax.checkpoint as ocp

    try:
        ocp.PyTreeCheckpointer().save(path.absolute(), tree)  # to a temporary name, then renamed
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot write {path}: {_line(error)}; choose another place") from None


def _orbax_as_msgpack(path: Path) -> bytes:
    """The parameters and statistics of an Orbax checkpoint, as Flax's msgpack.

    What reads it, TensorStore, trusts it: damage can crash it or let it take all memory. So it reads in a
    process of its own, which has so much memory and time and no more.
    """
    try:
        folder, size = _orbax_folder(path)
    except (OSError, RecursionError) as error:
        raise BadInput(f"cannot read {path}: {_line(error)}; take another copy") from None
    try:
        reader = subprocess.run(
            [sys.executable, "-P", __file__, folder.resolve(), str(size)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=8 + size / (20 * MB),
        )
    except subprocess.TimeoutExpired:
        reason = "it takes too long"
    else:
        if reader.returncode == 0:
            return reader.stdout
        said = reader.stderr.decode(errors="replace").splitlines()
        reason = said[-1] if said and reader.returncode == 1 else "it takes too much memory, or is damaged"
    raise BadInput(f"{path} is not a complete Orbax checkpoint: {reason}; take another copy")


def _orbax_folder(path: Path) -> tuple[Path, int]:
    """Where the tree of an Orbax checkpoint lies, and the size of its files, of which none is elsewhere."""
    folder = next((place for place in (path, path / "default") if (place / "_METADATA").exists()), None)
    if folder is None:
        inside = [*path.glob("*/_METADATA"), *path.glob("*/default/_METADATA")]
        if several := sorted(shown(file.relative_to(path).parts[0], 100) for file in inside):
            raise BadInput(f"{path} holds checkpoints ({some(several)}); give the path of one of them")
        raise BadInput(f"{path} is no Orbax checkpoint, it has no _METADATA; save it with a newer Orbax")
    size = 0
    for entry in path.rglob("*"):
        if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
            raise BadInput(
                f"{path} is refused: {shown(entry.name, 100)} is a link or a device; copy the files"
            )
        size += entry.lstat().st_size
    return folder, size


def _print_orbax(folder: Path, size: int) -> None:
    """Write an Orbax checkpoint of `size` bytes to standard output, as one map of Flax's msgpack.

    Orbax keeps an array as "params.conv_init.kernel", in Zarr: as a folder, or in TensorStore's database.
    """
    import tensorstore as ts

    description = read_json(folder / "_METADATA")
    base = {"driver": "file", "path": f"{folder}/"}
    is_database = (folder / "manifest.ocdbt").exists()
    names = [
        [step["key"] for step in entry["key_metadata"]]
        for entry in description["tree_metadata"].values()
        if not entry["value_metadata"]["skip_deserialize"]  # what has no leaves
    ]
    arrays = []
    for path in [path for path in names if f"{path[0]}/" in COLLECTIONS] or names:
        spec = {
            "driver": "zarr3" if description.get("use_zarr3") else "zarr",
            "kvstore": {"driver": "ocdbt", "base": base} if is_database else base,
            "path": ".".join(path) + "/",
            # What is missing is zeros only where Orbax left zeros out.
            "fill_missing_data_reads": not description.get("store_array_data_equal_to_fill_value"),
        }
        arrays.append(("/".join(path), ts.open(spec, open=True, read=True).result()))
    announced = sum(math.prod(array.shape) * array.dtype.numpy_dtype.itemsize for _, array in arrays)
    if announced > 64 * MB + 16 * size:  # weights hardly compress
        raise BadInput(f"its arrays are to be of {announced} bytes, its files have {size}")

    packer = msgpack.Packer(default=_packed)
    sys.stdout.buffer.write(packer.pack_map_header(len(arrays)))
    for name, array in arrays:
        sys.stdout.buffer.write(packer.pack(name) + packer.pack(array.read().result()))


if __name__ == "__main__":
    folder, size = Path(sys.argv[1]), int(sys.argv[2])
    with suppress(ImportError, ValueError):  # Windows has no limits; where there is a tighter one, it holds
        import resource

        most = 512 * MB + 4 * size
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        _print_orbax(folder, size)
    except Exception as error:
        sys.exit(_line(error).partition(" [")[0])
