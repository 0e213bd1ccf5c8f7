"""Files that Keras and TensorFlow wrote, read without running what they hold; and files that they load."""

import json
import math
import re
import struct
import tempfile
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from io import BytesIO
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.core.protobuf.tensor_bundle_pb2 import BundleEntryProto, BundleHeaderProto

from common.errors import BadInput, MissingFile
from common.files import cannot_write, write_atomically

HDF5, ZIP, TABLE = (
    b"\x89HDF\r\n\x1a\n",
    b"PK\x03\x04",
    b"\x57\xfb\x80\x8b\x24\x75\x47\xdb",
)  # table: at its end
KNOWN = "give a .h5, .weights.h5 or .keras file, or the prefix of a TensorFlow checkpoint"
MOST_NODES = 20_000  # groups and tensors in a file; a ResNet-152 has 2,500
LONGEST_NAME = 1024
LARGEST_TEXT = 8 << 20  # bytes of what is read whole besides tensors

# What Keras keeps of a layer, in its order, by their number; ResNets have no other layers with variables.
VARIABLES = {
    1: ("kernel",),
    2: ("kernel", "bias"),
    4: ("gamma", "beta", "moving_mean", "moving_variance"),
}
# Convolutions of keras.applications' ResNets, to their blocks.
APPLICATIONS = {53: (3, 4, 6, 3), 104: (3, 4, 23, 3), 155: (3, 8, 36, 3)}
GROUPS = {"Conv2D": "conv2d", "BatchNormalization": "batch_normalization", "Dense": "dense"}

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
NO_WEIGHTS = re.compile(
    r"_CHECKPOINTABLE_OBJECT_GRAPH|(save_counter|optimizer|keras_api)/|.*/\.OPTIMIZER_SLOT/"
)


def read_tensors(path: Path) -> tuple[dict[str, NDArray], list[str]]:
    """Name to array of a file by Keras 2 or 3 (HDF5 or .keras) or of a TensorFlow checkpoint.

    Second come the names that were bfloat16, which are float32 here. Names are those of layer and variable,
    as "conv1_conv/kernel"; in models within models, the path to the variable in the file. A checkpoint is
    given as its prefix, its .index, or its folder. Nothing in the file is run, and nothing outside it read.

    Formats: https://keras.io/guides/serialization_and_saving, keras/src/legacy/saving/legacy_h5_format.py,
    and tensorflow/core/util/tensor_bundle.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, or holds more than plain tensors that Keras writes.
    """
    read, path = _reader(path)
    try:
        return read(path)
    except BadInput as error:
        raise BadInput(f"{path} is refused: {error}") from None
    except Exception as error:  # in a damaged file anything can go wrong
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInput(f"{path} is damaged: {reason}; take another copy") from None


def write_tensors(path: Path, tensors: Mapping[str, NDArray]) -> None:
    """Write name to array as a `.h5` that Keras 2 and 3 load, or as a TensorFlow checkpoint, which has no suffix.

    Keras' `load_weights` goes by order: that of `tensors`, but for the variables of a layer, which go
    together. Names of more than a layer and a variable are laid out as transformers' `from_pretrained` takes
    them in TensorFlow. Names in a checkpoint are attributes, as `tf.train.Checkpoint.restore` takes them;
    TensorFlow sorts them.

    Raises:
        ValueError: for another suffix or a name without a layer, or if the folder cannot be written.
    """
    if odd := [name for name in tensors if not _is_plain(name) or name.startswith("/") or "/" not in name]:
        raise BadInput(
            f"cannot write {path}: {odd[0]!r} does not name a layer's variable; name it layer/kernel"
        )
    if path.suffix == ".h5" and not path.name.endswith(".weights.h5"):
        write_atomically(path, [_hdf5(tensors)])
    elif path.suffix in ("", ".ckpt"):
        _write_checkpoint(path, tensors)
    else:
        raise BadInput(
            f"cannot write {path}: give a name in .h5, not .weights.h5, or a checkpoint's, without suffix"
        )


def _reader(path: Path) -> tuple[Callable[[Path], tuple[dict[str, NDArray], list[str]]], Path]:
    """What reads the file, by its content, and the file; of a checkpoint, the prefix."""
    if (path / "checkpoint").is_file():
        with (path / "checkpoint").open("rb") as file:
            latest = re.match(rb'model_checkpoint_path: "([^"\n]+)"', file.read(LONGEST_NAME))
        if latest is None:
            raise BadInput(f"{path}/checkpoint names no checkpoint; {KNOWN}")
        path = path / Path(latest[1].decode(errors="replace")).name  # in this folder, whatever path it names
    if path.suffix != ".index" and Path(f"{path}.index").is_file():
        return _read_checkpoint, path
    if not path.is_file():
        raise MissingFile(f"{path} not found; {KNOWN}")
    with path.open("rb") as file:
        start = file.read(8)
        file.seek(-min(8, path.stat().st_size), 2)
        end = file.read()
    if start == HDF5:
        return lambda path: _read_hdf5(path, path.stat().st_size), path
    if start.startswith(ZIP):
        return _read_keras, path
    if end == TABLE and path.suffix == ".index":
        return _read_checkpoint, path.with_suffix("")
    raise BadInput(f"{path} was not written by Keras or TensorFlow; {KNOWN}")


# HDF5


def _read_hdf5(
    file: Path | BytesIO, size: int, config: Callable[[], Any] = lambda: None
) -> tuple[dict[str, NDArray], list[str]]:
    """Of an HDF5 file of `size` bytes; `config()` describes the model, where somebody knows it."""
    with h5py.File(file) as root:
        nodes = _nodes(root)
        published = next((top for top in ("", "model_weights/") if _has(nodes.get(top), "layer_names")), None)
        datasets = _published(nodes, published) if published is not None else _by_layers(nodes, config)
        tensors, halves = {}, []
        for name, dataset in datasets:
            if name in tensors:
                raise BadInput(f"{name} is there twice; save the model again")
            tensors[name] = _array(name, dataset, size)
            if dataset.dtype.kind == "V":
                halves.append(name)
    return tensors, halves


def _nodes(root: h5py.File) -> dict[str, h5py.Group | h5py.Dataset]:
    """Path to group ("layers/", the root "") or dataset ("layers/conv2d/vars/0") of all that is in the file.

    Each is reached by one hard link: other links lead to other files, several make circles.
    """
    nodes: dict[str, Any] = {"": root}
    seen = {h5py.h5o.get_info(root.id).addr}
    todo = [""]
    while todo:
        path = todo.pop()
        group = nodes[path]
        if len(nodes) + len(group) > MOST_NODES:
            raise BadInput(
                f"it has more than {MOST_NODES} groups and tensors; give a file of a ResNet's weights"
            )
        for name in group:
            if not _is_plain(name) or "/" in name or len(path + name) > LONGEST_NAME:
                raise BadInput(f"{path + name[:50]!r} is no name of a tensor; save the model again")
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise BadInput(f"{path}{name} is a link to somewhere else; save the model again")
            node = group[name]
            address = h5py.h5o.get_info(node.id).addr
            if address in seen or not isinstance(node, h5py.Group | h5py.Dataset):
                raise BadInput(f"{path}{name} is no tensor of its own; save the model again")
            seen.add(address)
            if isinstance(node, h5py.Group):
                todo.append(f"{path}{name}/")
            nodes[f"{path}{name}/" if isinstance(node, h5py.Group) else f"{path}{name}"] = node
    return nodes


def _published(nodes: Mapping[str, Any], top: str) -> Iterator[tuple[str, h5py.Dataset]]:
    """Names and datasets of the layout of Keras 2 and of transformers: lists of layers and of their weights."""
    for layer in _texts(nodes[top], "layer_names"):
        for weight in _texts(nodes[f"{top}{layer}/"], "weight_names"):
            name = weight.removesuffix(":0")
            # A weight's name may have the model's before the layer's, or another layer's in its place.
            begin = f"/{name}".find(f"/{layer}/")
            yield (
                name[begin:] if begin >= 0 else f"{layer}/{name.split('/')[-1]}",
                nodes[f"{top}{layer}/{weight}"],
            )


def _by_layers(nodes: Mapping[str, Any], config: Callable[[], Any]) -> Iterator[tuple[str, h5py.Dataset]]:
    """Names and datasets of the layout of Keras 3: the variables of a layer are vars/0, vars/1, …"""
    layers = {path.removesuffix("/vars/"): node for path, node in nodes.items() if path.endswith("/vars/")}
    layers = {path: node for path, node in layers.items() if len(node) and not path.startswith("optimizer")}
    flat = all(re.fullmatch("layers/[^/]+", path) for path in layers)
    names: Mapping[str, str] = {}
    if flat and not any(_has(node, "name") for node in layers.values()):
        names = _counted(config() or _application(sum(path.startswith("layers/conv2d") for path in layers)))
    for path, node in layers.items():
        name = _texts(node, "name")[0] if flat and _has(node, "name") else names.get(path, path)
        for i, variable in enumerate(VARIABLES.get(len(node), map(str, range(len(node))))):
            yield f"{name}/{variable}", nodes[f"{path}/vars/{i}"]


def _counted(layers: Collection[tuple[str, str]]) -> dict[str, str]:
    """The group of a file that names no layers, to the layer: its class, counted. `layers`: class and name."""
    names: dict[str, str] = {}
    for kind, group in GROUPS.items():
        for i, name in enumerate(name for of_kind, name in layers if of_kind == kind):
            names[f"layers/{group}_{i}" if i else f"layers/{group}"] = name
    return names


def _application(convolutions: int) -> list[tuple[str, str]]:
    """Class and name of the layers of a ResNet of keras.applications, in its order; nothing for another model."""
    if convolutions not in APPLICATIONS:
        return []
    names = ["conv1_conv", "conv1_bn"]
    for k, depth in enumerate(APPLICATIONS[convolutions], start=2):
        for j in range(1, depth + 1):
            parts = "1_conv 1_bn 2_conv 2_bn " + ("0_conv 3_conv 0_bn 3_bn" if j == 1 else "3_conv 3_bn")
            names += [f"conv{k}_block{j}_{part}" for part in parts.split()]
    kinds = {"conv": "Conv2D", "bn": "BatchNormalization"}
    return [(kinds[name.split("_")[-1]], name) for name in names] + [("Dense", "predictions")]


def _has(node: h5py.Group | None, name: str) -> bool:
    return node is not None and (name in node.attrs or f"{name}0" in node.attrs)


def _texts(node: h5py.Group, name: str) -> list[str]:
    """An attribute of texts, which Keras cuts into name0, name1, … where it is long; or of one text."""
    pieces = (
        [name] if name in node.attrs else takewhile(node.attrs.__contains__, (f"{name}{i}" for i in count()))
    )
    texts: list[str] = []
    for piece in pieces:
        attribute = node.attrs.get_id(piece)
        if attribute.shape == (0,):  # of a layer without weights, and then not even of texts
            continue
        # A text of variable length lies elsewhere, and many may share it; Keras writes but one at a time.
        if attribute.shape is None or attribute.dtype.kind not in "SO":
            raise BadInput(f"{piece} is no list of names; save the model again")
        found = np.ravel(node.attrs[piece]).tolist()
        texts += [text if isinstance(text, str) else text.decode() for text in found]
    if odd := [text for text in texts if not _is_plain(text)]:
        raise BadInput(f"{odd[0][:50]!r} is no name of a tensor; save the model again")
    return texts


def _is_plain(name: str) -> bool:
    return name.isprintable() and 0 < len(name) <= LONGEST_NAME


def _array(name: str, dataset: h5py.Dataset, size: int) -> NDArray:
    """The values; of no more bytes than are there, in a file of `size` bytes."""
    properties = dataset.id.get_create_plist()
    layouts = (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT)
    if properties.get_external_count() or properties.get_layout() not in layouts:
        raise BadInput(
            f"{name} is compressed, in chunks or in another file; save it as Keras does, in one piece"
        )
    kind = dataset.dtype.newbyteorder("=")
    is_half = kind == "V2" and dataset.attrs.get("dtype") == "bfloat16"
    if not (is_half or (kind.kind in "fiu" and kind.itemsize <= 8)):
        raise BadInput(f"{name} is of {dataset.dtype}; save it as float32")
    length = math.prod(dataset.shape) * kind.itemsize if dataset.shape is not None else -1
    begin = dataset.id.get_offset() or 0
    if not dataset.id.get_storage_size() == length <= size - begin:
        raise BadInput(f"{name} is cut off: shape {dataset.shape} takes {length} bytes; take another copy")
    array = np.asarray(dataset[()])
    if is_half:  # the upper half of a float32
        return (array.view("<u2").astype(np.uint32) << 16).view(np.float32)
    return array.astype(kind)


def _hdf5(tensors: Mapping[str, NDArray]) -> memoryview:
    """The bytes of a file in the layout of `_published`."""
    model = "tf_res_net_for_image_classification/" if any(name.count("/") > 1 for name in tensors) else ""
    layers: dict[str, dict[str, NDArray]] = {}
    for name, array in tensors.items():
        layers.setdefault(name.split("/")[0], {})[f"{model}{name}:0"] = array
    content = BytesIO()
    with h5py.File(content, "w") as file:
        _write_texts(file, "layer_names", layers)
        file.attrs["backend"] = np.bytes_("tensorflow")
        file.attrs["keras_version"] = np.bytes_("2.15.0")
        for layer, weights in layers.items():
            group = file.create_group(layer)
            _write_texts(group, "weight_names", weights)
            for name, array in weights.items():
                group[name] = array
    return content.getbuffer()


def _write_texts(group: h5py.Group, name: str, texts: Collection[str]) -> None:
    """As an attribute, or as several in the way of Keras: HDF5 holds 64 KiB in one."""
    array = np.array([text.encode() for text in texts])
    pieces = math.ceil(array.nbytes / 64_000)
    for i, piece in enumerate(np.array_split(array, pieces)):
        group.attrs[name if pieces == 1 else f"{name}{i}"] = piece


# .keras


def _read_keras(path: Path) -> tuple[dict[str, NDArray], list[str]]:
    """Of a zip archive that has the weights in HDF5 and the model as JSON, which is read for names alone."""
    size = path.stat().st_size
    _check_directory(path, size)
    with zipfile.ZipFile(path) as archive:

        def member(name: str, most: int) -> bytes:
            (info,) = (info for info in archive.infolist() if info.filename == name)
            if info.file_size > most or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise BadInput(f"its {name} is packed too tightly; save the model again")
            return archive.read(info)

        def config() -> list[tuple[str, str]]:
            layers = json.loads(member("config.json", LARGEST_TEXT))["config"]["layers"]
            return [(str(layer["class_name"]), str(layer["config"]["name"])) for layer in layers]

        weights = member("model.weights.h5", max(8 * size, 64 << 20))  # weights hardly shrink; zeros may
        return _read_hdf5(BytesIO(weights), len(weights), config)


def _check_directory(path: Path, size: int) -> None:
    """Refuse a long list of members, which `zipfile` would read whole."""
    with path.open("rb") as file:
        file.seek(-min(size, 1 << 17), 2)
        end = file.read()
    record = end.rfind(b"PK\x05\x06")
    if record < 0 or len(end) < record + 22 or end.rfind(b"PK\x06\x07") >= record - 20:
        raise BadInput("it is no complete zip archive of less than 4 GiB; take another copy")
    if struct.unpack_from("<I", end, record + 12)[0] > 1 << 16:
        raise BadInput("it has too many members for a .keras file; save the model again")


# TensorFlow checkpoints


def _read_checkpoint(prefix: Path) -> tuple[dict[str, NDArray], list[str]]:
    """Of `prefix`.index and `prefix`.data-…; TensorFlow checks the sums, but trusts what is summed."""
    keys = _checked_keys(prefix)
    reader = tf.compat.v1.train.NewCheckpointReader(str(prefix))  # load_checkpoint would follow a folder
    tensors: dict[str, NDArray] = {}
    halves = []
    for key in keys:
        name = key.removesuffix(VALUE).replace("..", ".")  # TensorFlow doubles the dots of an attribute
        array = reader.get_tensor(key)
        if array.dtype == tf.bfloat16.as_numpy_dtype:
            halves.append(name)
            array = array.astype(np.float32)
        tensors[name] = array
    return tensors, halves


def _checked_keys(prefix: Path) -> list[str]:
    """The keys of the weights, once all that is said of tensors fits the files: TensorFlow ends on some of it."""
    index = Path(f"{prefix}.index")
    if index.stat().st_size > LARGEST_TEXT:
        raise BadInput(f"its index is larger than {LARGEST_TEXT >> 20} MiB; give one of a ResNet's weights")
    table: dict[bytes, bytes] = {}
    for key, value in _table(index.read_bytes()):
        if key in table or len(table) > MOST_NODES:
            raise BadInput("its index names too many tensors, or one twice; take another copy")
        table[key] = value
    shards = BundleHeaderProto.FromString(table.pop(b"", b"")).num_shards
    if not 0 < shards <= 1000:
        raise BadInput(f"it says it has {shards} data files; take another copy")
    data = [Path(f"{prefix}.data-{i:05}-of-{shards:05}") for i in range(shards)]
    if missing := [file for file in data if not file.is_file()]:
        raise BadInput(f"{missing[0].name} is missing; put it beside {index.name}")
    sizes = [file.stat().st_size for file in data]
    keys, total = [], 0
    for key, value in table.items():
        name, entry = key.decode(), BundleEntryProto.FromString(value)
        shape = [dim.size for dim in entry.shape.dim]
        sane = len(shape) <= 32 and min(shape, default=0) >= 0 and math.prod(n or 1 for n in shape) < 1 << 40
        inside = 0 <= entry.shard_id < shards and 0 <= entry.offset <= sizes[entry.shard_id] - entry.size
        if not (sane and inside and _is_plain(name)) or entry.slices or entry.shape.unknown_rank:
            raise BadInput(f"{name[:50]!r} does not fit its files; take another copy")
        if NO_WEIGHTS.match(name):
            continue
        dtype = tf.dtypes.as_dtype(entry.dtype)
        if not (dtype.is_floating or dtype.is_integer) or math.prod(shape) * dtype.size != entry.size:
            raise BadInput(f"{name} is no plain tensor of {dtype.name}; save it as float32")
        keys.append(name)
        total += entry.size
    if total > sum(sizes):
        raise BadInput("its tensors lie on top of each other; take another copy")
    return keys


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of LevelDB's sorted table: https://github.com/google/leveldb/blob/main/doc/table_format.md"""
    position = len(data) - 48  # the footer: where two blocks are, and the signature
    for _ in range(2):
        _, position = _varint(data, position)
    begin, position = _varint(data, position)
    size, _ = _varint(data, position)
    total = 0
    for _, handle in _block(data, begin, size):
        begin, position = _varint(handle, 0)
        size, _ = _varint(handle, position)
        total += size
        if total > len(data):
            raise BadInput("its index goes in circles; take another copy")
        yield from _block(data, begin, size)


def _block(data: bytes, begin: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a block; a key says how much it shares with the one before."""
    if data[begin + size] != 0:
        raise BadInput("its index is compressed; save it with TensorFlow")
    (restarts,) = struct.unpack_from("<I", data, begin + size - 4)
    position, end = begin, begin + size - 4 - 4 * restarts
    key = b""
    while position < end:
        shared, position = _varint(data, position)
        added, position = _varint(data, position)
        length, position = _varint(data, position)
        key = key[:shared] + data[position : position + added]
        if len(key) > LONGEST_NAME:
            raise BadInput(f"{key[:50]!r} is no name of a tensor; take another copy")
        yield key, data[position + added : position + added + length]
        position += added + length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """An integer of seven bits a byte, and where the next begins."""
    value = 0
    for shift in range(0, 64, 7):
        byte = data[position]
        value |= (byte & 127) << shift
        position += 1
        if byte < 128:
            return value, position
    raise BadInput("its index is damaged; take another copy")


def _write_checkpoint(prefix: Path, tensors: Mapping[str, NDArray]) -> None:
    """The index, which makes the checkpoint, comes last."""
    tree: dict[str, Any] = {}
    with tf.device("CPU:0"):
        for name, array in tensors.items():
            *parents, variable = name.split("/")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[variable] = tf.Variable(array)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{prefix.name}.", dir=prefix.parent) as folder:
            temporary = Path(folder, prefix.name)
            _trackable(tree).write(str(temporary))
            Path(f"{prefix}.index").unlink(missing_ok=True)
            for ending in (".data-00000-of-00001", ".index"):
                with Path(f"{temporary}{ending}").open("rb") as file:
                    write_atomically(Path(f"{prefix}{ending}"), iter(partial(file.read, 1 << 20), b""))
    except OSError as error:
        raise cannot_write(prefix, error) from None


def _trackable(node: Any) -> Any:
    """A tree of names as the objects and attributes that TensorFlow saves."""
    if isinstance(node, dict):
        return tf.train.Checkpoint(**{name: _trackable(child) for name, child in node.items()})
    return node
