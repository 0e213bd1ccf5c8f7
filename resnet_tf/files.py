"""Files that Keras and TensorFlow wrote, read without running what they hold; and files that they load."""

import math
import re
import struct
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import chain, count, islice, takewhile
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.core.protobuf.tensor_bundle_pb2 import BundleEntryProto, BundleHeaderProto
from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

from common.errors import BadInput, MissingFile
from common.files import cannot_write, write_atomically
from common.reading import brief, fits, open_zip, parse_json, read_file, shown, some
from common.weights import from_bfloat16

# Layers that a ResNet has, or that do nothing in inference, and what of their options is served.
LAYERS: dict[str, dict[str, tuple[Any, ...]]] = {
    "Activation": {"activation": ("relu", "linear", "softmax")},
    "BatchNormalization": {"epsilon": (1.001e-5,), "center": (True,), "scale": (True,)},
    "Conv2D": {
        "activation": ("linear", None),
        "dilation_rate": ([1, 1], 1),
        "groups": (1,),
        "strides": ([1, 1], 1, [2, 2], 2),
    },
    "Dense": {"activation": ("linear", "softmax", None)},
    "MaxPooling2D": {"pool_size": ([3, 3], 3), "strides": ([2, 2], 2)},
    "ReLU": {"max_value": (None,), "negative_slope": (0, None), "threshold": (0, None)},
    **{kind: {} for kind in ("Add", "Flatten", "GlobalAveragePooling2D", "InputLayer")},
    "Softmax": {},
    "ZeroPadding2D": {"padding": tuple([[side, side]] * 2 for side in (1, 3))},
    **{kind: {} for kind in ("Dropout", "GaussianDropout", "GaussianNoise", "SpatialDropout2D")},
    **{f"Random{what}": {} for what in ("Brightness", "Contrast", "Flip", "Rotation", "Translation", "Zoom")},
}
MODELS = ("Functional", "Model", "Sequential")
INDEX = ".weights.json"  # of weights in several files
APPLICATION = "conv1_conv/kernel"  # of keras.applications' ResNets

HDF5, ZIP, TABLE = (
    b"\x89HDF\r\n\x1a\n",
    b"PK\x03\x04",
    b"\x57\xfb\x80\x8b\x24\x75\x47\xdb",
)  # table: at its end
KNOWN = "give a .h5, .weights.h5 or .keras file, or the prefix of a TensorFlow checkpoint"
MOST_NODES = 20_000  # groups and tensors in a file; a ResNet-152 has 2,500
LONGEST_NAME = 1024
MOST_PARTS = 1_000_000  # of an HDF5 file
LARGEST_TEXT = 8 << 20  # bytes of what is read whole besides tensors

# What Keras keeps of a layer, in its order, by their number; ResNets have no other layers with variables.
VARIABLES = {
    1: ("kernel",),
    2: ("kernel", "bias"),
    4: ("gamma", "beta", "moving_mean", "moving_variance"),
}
# Convolutions of keras.applications' ResNets, to their blocks.
APPLICATIONS = {53: (3, 4, 6, 3), 104: (3, 4, 23, 3), 155: (3, 8, 36, 3)}

# HDF5's message types, layouts, datatypes, and what a link in a symbol table is
DATASPACE, LINK_INFO, DATATYPE, LINK, EXTERNAL, LAYOUT, ATTRIBUTE = 0x1, 0x2, 0x3, 0x6, 0x7, 0x8, 0xC
CONTINUATION, SYMBOL_TABLE = 0x10, 0x11
COMPACT, CONTIGUOUS = 0, 1
INTEGER, FLOAT, STRING, OPAQUE, VARIABLE_LENGTH = 0, 1, 3, 5, 9
SOFT_LINK = 2
# Size to: first bit, bits, where the exponent is, its bits, where the mantissa is, its bits, bias.
IEEE = {
    2: (0, 16, 10, 5, 0, 10, 15),
    4: (0, 32, 23, 8, 0, 23, 127),
    8: (0, 64, 52, 11, 0, 52, 1023),
}
NEWER = "it is not laid out as Keras does, or has links; load it in Keras and save it again"

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
NUMBERS = (tf.float16, tf.bfloat16, tf.float32, tf.float64, tf.int32, tf.int64)
GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
# Keras' models, but not what is an attribute of something else: by number, whatever the layers are called.
NUMBERED = re.compile(r"(.*/)?_operations/|(variables|layer_with_weights-\d+)/")
NO_WEIGHTS = re.compile(rf"{GRAPH}|(save_counter|optimizer|keras_api)/|.*/\.OPTIMIZER_SLOT/")


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
    read, path = reader(path)
    try:
        tensors, halves = read(path)
    except BadInput as error:
        raise BadInput(f"{path} is refused: {error}") from None
    except Exception as error:  # in a damaged file anything can go wrong
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInput(f"{path} is damaged: {reason}; take another copy") from None
    if not tensors:
        raise BadInput(f"{path} holds no weights; {KNOWN}")
    return tensors, halves


def write_tensors(path: Path, tensors: Mapping[str, NDArray]) -> None:
    """Write name to array as a `.h5` for Keras 2 and 3 or, without a suffix, as a TensorFlow checkpoint.

    Keras' `load_weights` goes by order: that of `tensors`, but for the variables of a layer, which go
    together. Names of more than a layer and a variable are laid out as transformers' `from_pretrained` takes
    them in TensorFlow. Names in a checkpoint are attributes, as `tf.train.Checkpoint.restore` takes them;
    TensorFlow sorts them.

    Raises:
        ValueError: for another suffix, a name without a layer or not in ASCII, or if the folder cannot be
            written.
    """
    for name in tensors:
        parts = name.split("/")
        if not (_is_plain(name) and name.isascii() and len(parts) > 1) or {"", "."} & set(parts):
            raise BadInput(f"cannot write {path}: {name!r} does not name a layer's variable as layer/kernel")
    if path.suffix == ".h5" and not path.name.endswith(".weights.h5"):
        write_atomically(path, [_hdf5(tensors)])
    elif path.suffix in ("", ".ckpt"):
        _write_checkpoint(path, tensors)
    else:
        raise BadInput(
            f"cannot write {path}: give a name in .h5, not .weights.h5, or a checkpoint's, without suffix"
        )


def reader(path: Path) -> tuple[Callable[[Path], tuple[dict[str, NDArray], list[str]]], Path]:
    """What reads the file, by its content, and the file; of a checkpoint, the prefix."""
    if (path / "checkpoint").is_file():
        with (path / "checkpoint").open("rb") as file:
            latest = re.match(rb'model_checkpoint_path: "([^"\n]+)"', file.read(LONGEST_NAME))
        if latest is None:
            raise BadInput(f"{path}/checkpoint names no checkpoint; {KNOWN}")
        path = path / Path(latest[1].decode(errors="replace")).name  # in this folder, whatever path it names
    if (path / "saved_model.pb").is_file():  # a program, of which the variables are read
        path = path / "variables" / "variables"
    if path.suffix != ".index" and Path(f"{path}.index").is_file():
        return _read_checkpoint, path
    if not path.is_file():
        raise MissingFile(f"{path} not found; {KNOWN}")
    with path.open("rb") as file:
        start = file.read(8)
        file.seek(-min(8, path.stat().st_size), 2)
        end = file.read()
    if start == HDF5:
        return _read_h5, path
    if path.name.endswith(INDEX):
        return _read_shards, path
    if start.startswith(ZIP):
        return _read_keras, path
    if end == TABLE and path.suffix == ".index":
        return _read_checkpoint, path.with_suffix("")
    raise BadInput(f"{path} was not written by Keras or TensorFlow; {KNOWN}")


def read_model(path: Path) -> dict[str, Any] | None:
    """The model as Keras describes it in a .keras or .h5 file; None where there are only weights.

    Raises:
        ValueError: if the file is damaged, or the model has layers or options that no ResNet has.
    """
    model = None
    with path.open("rb") as file:
        start = file.read(len(HDF5))
    if start == HDF5:
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
            model = _described(_HDF5(data))
    elif start.startswith(ZIP):
        with open_zip(path, ratio=2) as archive:
            model = parse_json(_member(archive, "config.json"), dict)
    if model is not None:
        _check_model(model)
    return model


def _described(file: "_HDF5") -> dict[str, Any] | None:
    """The model in an HDF5 file of Keras 2's layout."""
    attributes = file.nodes[""].attributes
    return parse_json(file.text(attributes["model_config"]), dict) if "model_config" in attributes else None


def _is_plain(name: str) -> bool:
    return name.isprintable() and 0 < len(name) <= LONGEST_NAME


# HDF5 as Keras lays it out: which group and attribute has which variable


def _read_h5(path: Path) -> tuple[dict[str, NDArray], list[str]]:
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        return _read_hdf5(data)


def _read_shards(index: Path) -> tuple[dict[str, NDArray], list[str]]:
    """Of the files that Keras' index names; a layer's name may be in another file than its variables."""
    places = parse_json(read_file(index), dict)["weight_map"]
    if not fits(places, dict[str, list[str]]):
        raise BadInput("its weight_map is not of names and lists of files; take another copy")
    groups = [place.strip("/").removesuffix("/vars") for place in places]
    names = _counted(_application(groups))
    found: dict[str, dict[int, tuple[NDArray, bool]]] = {}
    for name in dict.fromkeys(chain.from_iterable(places.values())):
        if Path(name).name != name:
            raise BadInput(f"it names {brief(name)}, which is no file beside it; take another copy")
        with index.with_name(name).open("rb") as part, mmap(part.fileno(), 0, access=ACCESS_READ) as data:
            file = _HDF5(data)
            for path in file.nodes:
                if (at := re.fullmatch(r"(.+)/vars/(\d+)", path)) and at[1] in groups:
                    found.setdefault(at[1], {})[int(at[2])] = file.array(path)
                elif path.endswith("/vars/") and _has(file.nodes[path], "name"):
                    names[path.removesuffix("/vars/")] = "".join(_texts(file, path, "name"))
    tensors, halves = {}, []
    for group, values in found.items():
        for i, variable in enumerate(VARIABLES.get(len(values), map(str, range(len(values))))):
            name = f"{names.get(group, group)}/{variable}"
            tensors[name], is_half = values[i]
            halves += [name] if is_half else []
    return tensors, halves


def _read_hdf5(
    data: bytes | mmap, config: Callable[[], Any] = lambda: None
) -> tuple[dict[str, NDArray], list[str]]:
    """Of the bytes of an HDF5 file; `config()` is the model as Keras describes it, if that is known."""
    file = _HDF5(data)
    if "model_config" in file.nodes[""].attributes:
        config = partial(_described, file)
    top = "model_weights/" if "model_weights/" in file.nodes else ""
    published = _has(file.nodes[top], "layer_names")
    named = _published(file, top) if published else _by_layers(file, config)
    tensors: dict[str, NDArray] = {}
    halves = []
    for name, path in named:
        if name in tensors:
            raise BadInput(f"{name} is there twice; save the model again")
        tensors[name], is_half = file.array(path)
        if is_half:
            halves.append(name)
    if APPLICATION in tensors and (model := config()) is not None:
        _check_model(model)
    return tensors, halves


def _check_model(model: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless all layers of a model are those of a ResNet, or do nothing in inference."""

    def strange(layers: Iterable[Mapping[str, Any]]) -> Iterator[str]:
        for layer in layers:
            kind, config = layer["class_name"], layer["config"]
            if kind in MODELS:
                yield from strange(config["layers"])
            elif kind not in LAYERS:
                yield f"{shown(config['name'], 60)} ({shown(kind, 60)})"
            else:
                yield from (
                    f"{shown(config['name'], 60)} with {option} {brief(config[option])}"
                    for option, served in LAYERS[kind].items()
                    if option in config and config[option] not in served
                )

    if found := list(strange([model])):
        raise BadInput(f"its model has {some(found)}, which this network has not; save the ResNet alone")


def _published(file: "_HDF5", top: str) -> Iterator[tuple[str, str]]:
    """Names and paths in the layout of Keras 2 and transformers: lists of layers and of their weights."""
    for layer in _texts(file, top, "layer_names"):
        weights = _texts(file, f"{top}{layer}/", "weight_names")
        names = [weight.removesuffix(":0") for weight in weights]
        is_model = len({name.split("/")[-1] for name in names}) < len(names)
        for name, weight in zip(names, weights, strict=True):
            # A weight's name may have the model's before the layer's, or another layer's in its place.
            begin = f"/{name}".find(f"/{layer}/")
            if begin < 0 and is_model:  # one within the model, whose layers' names these are
                name = "/".join(name.split("/")[-2:])
            elif begin < 0:
                name = f"{layer}/{name.split('/')[-1]}"
            yield name[max(begin, 0) :], f"{top}{layer}/{weight}"


def _by_layers(file: "_HDF5", config: Callable[[], Any]) -> Iterator[tuple[str, str]]:
    """Names and paths in the layout of Keras 3: the variables of a layer are vars/0, vars/1, …"""
    variables = [path.split("/vars/") for path in file.nodes if re.search(r"/vars/\d+$", path)]
    layers = Counter(path for path, _ in variables if path.split("/")[0] != "optimizer")
    names = {}
    if all(re.fullmatch("layers/[^/]+(/layers/[^/]+)*", path) for path in layers):  # not a class's attributes
        names = {
            path: "".join(_texts(file, f"{path}/vars/", "name"))
            for path in layers
            if _has(file.nodes[f"{path}/vars/"], "name")
        }
        if not names:
            model = config()
            names = _counted(_application(layers) if model is None else _layers(model))
    for path, number in layers.items():
        for i, variable in enumerate(VARIABLES.get(number, map(str, range(number)))):
            yield f"{names.get(path, path)}/{variable}", f"{path}/vars/{i}"


class _Layer(NamedTuple):
    """Class and name of a layer, and the layers within it."""

    kind: str
    name: str
    within: tuple["_Layer", ...] = ()


def _layers(model: Mapping[str, Any]) -> tuple[_Layer, ...]:
    """Those of a model, as Keras describes it in JSON."""
    return tuple(
        _Layer(str(layer["class_name"]), str(layer["config"]["name"]), _layers(layer))
        for layer in model["config"].get("layers", ())
    )


def _counted(layers: Iterable[_Layer], at: str = "layers") -> dict[str, str]:
    """Group in a file that names no layers, its class, counted, to layer; in models within models, too."""
    names: dict[str, str] = {}
    counted: Counter[str] = Counter()
    for kind, name, within in layers:
        group = re.sub("([a-z])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", kind)).lower()
        path = f"{at}/{group}_{counted[group]}" if counted[group] else f"{at}/{group}"
        counted[group] += 1
        names[path] = name
        names |= _counted(within, f"{path}/layers")
    return names


def _application(groups: Collection[str]) -> list[_Layer]:
    """The layers of a ResNet of keras.applications, in its order; none of another model."""
    convolutions = sum(group.startswith("layers/conv2d") for group in groups)
    if convolutions not in APPLICATIONS:
        return []
    names = ["conv1_conv", "conv1_bn"]
    for k, depth in enumerate(APPLICATIONS[convolutions], start=2):
        for j in range(1, depth + 1):
            parts = "1_conv 1_bn 2_conv 2_bn " + ("0_conv 3_conv 0_bn 3_bn" if j == 1 else "3_conv 3_bn")
            names += [f"conv{k}_block{j}_{part}" for part in parts.split()]
    kinds = {"conv": "Conv2D", "bn": "BatchNormalization"}
    layers = [(kinds[name.split("_")[-1]], name) for name in names]
    return [_Layer(kind, name) for kind, name in [*layers, ("Dense", "predictions")]]


def _has(node: "_Node", name: str) -> bool:
    return name in node.attributes or f"{name}0" in node.attributes


def _texts(file: "_HDF5", path: str, name: str) -> list[str]:
    """An attribute of texts, which Keras cuts into name0, name1, … where it is long."""
    attributes = file.nodes[path].attributes
    pieces = takewhile(attributes.__contains__, (f"{name}{i}" for i in count()))
    found = [name] if name in attributes else pieces
    return [text for piece in found for text in file.texts(attributes[piece])]


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


# HDF5 itself


@dataclass(frozen=True)
class _Node:
    """A group or dataset: where its messages are, by type, and its attributes' type, shape and values."""

    messages: Mapping[int, int]
    attributes: Mapping[str, tuple[int, int, int]]


class _HDF5:
    """What h5py writes if not told otherwise, as by Keras: groups, attributes, datasets in one piece.

    The HDF5 library ends the process, or never ends, on some damaged files; so this reads them without.
    Format: https://docs.hdfgroup.org/hdf5/v1_14/_f_m_t3.html; Roman numerals below are its sections.

    Attributes:
        nodes: path to group ("layers/", the root "") or dataset ("layers/conv2d/vars/0"), by name.

    Raises:
        ValueError: or others, if it is damaged or of another layout.
    """

    def __init__(self, data: bytes | mmap) -> None:
        self._data = data
        self._parts_left = MOST_PARTS
        self._bytes_left = len(data)
        self._heaps: dict[int, dict[int, tuple[int, int]]] = {}
        version, offsets, lengths, base, root = self._unpack("<8xB4xBB9xQ32xQ", 0)  # II.A: superblock
        if (version, offsets, lengths, base) != (0, 8, 8, 0):
            raise BadInput(NEWER)
        self.nodes: dict[str, _Node] = {}
        todo = [("", root)]
        while todo:
            path, address = todo.pop()
            if len(path) > LONGEST_NAME or len(self.nodes) + len(todo) > MOST_NODES:
                raise BadInput("it holds more, or deeper, groups than a ResNet; save the weights alone")
            node = self._node(address)
            if SYMBOL_TABLE in node.messages:
                path += "/" if path else ""
                children = list(islice(self._children(node.messages[SYMBOL_TABLE]), MOST_NODES))
                todo += [(path + name, child) for name, child in reversed(children)]
            elif LAYOUT not in node.messages:
                raise BadInput(NEWER)
            self.nodes[path] = node

    def array(self, path: str) -> tuple[NDArray, bool]:
        """The values of a dataset, and whether they were bfloat16."""
        node = self.nodes[path]
        if LAYOUT not in node.messages:
            raise BadInput(f"{path} is no tensor; save the model again")
        layout = node.messages[LAYOUT]
        version, kind, length = self._unpack("<BBH", layout)
        begin = layout + 4
        if version != 3 or kind not in (COMPACT, CONTIGUOUS) or EXTERNAL in node.messages:
            raise BadInput(
                f"{path} is compressed, in chunks or in another file; save it as Keras does, in one piece"
            )
        if kind == CONTIGUOUS:
            begin, length = self._unpack("<2xQQ", layout)
        shape, dtype = self._shape(node.messages[DATASPACE]), self._dtype(node.messages[DATATYPE])
        if dtype is None or (dtype == "V2" and "dtype" not in node.attributes):  # as Keras marks bfloat16
            raise BadInput(f"{path} is not of plain numbers; save it as float32")
        if math.prod(shape) * dtype.itemsize != length or (length and begin + length > len(self._data)):
            raise BadInput(f"{path} is cut off: its shape is {shape}; take another copy")
        self._bytes_left -= length
        if self._bytes_left < 0:
            raise BadInput("its tensors lie on top of each other; save the model again")
        array = np.frombuffer(self._data[begin : begin + length], dtype).reshape(shape)
        if dtype.kind == "V":
            return from_bfloat16(array.view("<u2")), True
        return array.astype(dtype.newbyteorder("=")), False

    def texts(self, attribute: tuple[int, int, int]) -> list[str]:
        """The values of an attribute of texts."""
        datatype, dataspace, values = attribute
        number = math.prod(self._shape(dataspace))
        kind, size = self._unpack("<B3xI", datatype)
        if number > MOST_NODES or (number and kind & 15 not in (STRING, VARIABLE_LENGTH)):
            raise BadInput("a list of names is none; save the model again")
        texts = []
        for i in range(number):
            if kind & 15 == VARIABLE_LENGTH:
                size, heap, index = self._unpack("<IQI", values + 16 * i)
                begin = self._in_heap(heap, index, size)
            else:
                begin = values + size * i
            texts.append(self._text(begin, size))
        return texts

    def text(self, attribute: tuple[int, int, int]) -> str:
        """The value of an attribute of one text, which may be long."""
        datatype, _, values = attribute
        kind, size = self._unpack("<B3xI", datatype)
        if kind & 15 == VARIABLE_LENGTH:
            size, heap, index = self._unpack("<IQI", values)
            values = self._in_heap(heap, index, size)
        return bytes(self._data[values : values + min(size, LARGEST_TEXT)]).rstrip(b"\0").decode()

    def _unpack(self, form: str, position: int) -> tuple[Any, ...]:
        """The numbers at a position."""
        self._count_part()
        return struct.unpack_from(form, self._data, position)

    def _count_part(self) -> None:
        """Of all that is read: so no circle goes on for long."""
        self._parts_left -= 1
        if self._parts_left < 0:
            raise BadInput("it has more parts than a ResNet, or goes in circles; save the model again")

    def _text(self, begin: int, size: int) -> str:
        """A name of at most `size` bytes, or up to a zero."""
        self._count_part()
        text = self._data[begin : begin + min(size, LONGEST_NAME + 1)].split(b"\0")[0].decode()
        if not _is_plain(text):
            raise BadInput(f"{text[:50]!r} is no name of a tensor; save the model again")
        return text

    def _node(self, address: int) -> _Node:
        """IV.A.1.a: an object's header, of version 1."""
        version, length = self._unpack("<B7xI", address)
        if version != 1:
            raise BadInput(NEWER)
        messages: dict[int, int] = {}
        attributes = {}
        blocks = [(address + 16, length)]
        for begin, length in blocks:
            position = begin
            while position + 8 <= begin + length:
                kind, size, flags = self._unpack("<HHB3x", position)
                position += 8
                if kind == CONTINUATION:
                    blocks.append(self._unpack("<QQ", position))
                elif kind in (LINK_INFO, LINK) or (flags & 2 and kind in (DATATYPE, DATASPACE)):
                    raise BadInput(NEWER)
                elif kind == ATTRIBUTE:
                    name, parts = self._attribute(position)
                    attributes[name] = parts
                else:
                    messages[kind] = position
                position += size
        return _Node(messages, attributes)

    def _attribute(self, position: int) -> tuple[str, tuple[int, int, int]]:
        """IV.A.2.m: name, and where its type, its shape and its values are."""
        version, name, datatype, dataspace = self._unpack("<BxHHH", position)
        begin = position + (9 if version == 3 else 8)
        parts = [begin]
        for size in (name, datatype, dataspace):
            parts.append(parts[-1] + (-(-size // 8) * 8 if version == 1 else size))
        return self._text(begin, name), (parts[1], parts[2], parts[3])

    def _children(self, position: int) -> Iterator[tuple[str, int]]:
        """III.A.1, B to D: names and addresses in a group: a B-tree of symbol tables, and a heap of names."""
        tree, heap = self._unpack("<QQ", position)
        (names,) = self._unpack("<24xQ", heap)
        todo = [tree]
        while todo:
            position = todo.pop()
            signature, number = self._unpack("<4sxxH", position)
            if signature == b"TREE":
                todo += [self._unpack("<Q", position + 32 + 16 * i)[0] for i in reversed(range(number))]
            elif signature == b"SNOD":
                for i in range(number):
                    name, address, kind = self._unpack("<QQI", position + 8 + 40 * i)
                    text = self._text(names + name, LONGEST_NAME)
                    if kind == SOFT_LINK or "/" in text:
                        raise BadInput(f"{text} is a link to somewhere else; save the model again")
                    yield text, address
            else:
                raise BadInput("a group in it is damaged; take another copy")

    def _shape(self, position: int) -> tuple[int, ...]:
        """IV.A.2.b: dataspace."""
        version, rank = self._unpack("<BB", position)
        return self._unpack(f"<{rank}Q", position + (8 if version == 1 else 4))

    def _dtype(self, position: int) -> np.dtype | None:
        """IV.A.2.d: datatype. Floats must be IEEE's."""
        kind, bits, size = self._unpack("<BB2xI", position)
        order = "<>"[bits & 1]
        if kind & 15 == FLOAT and self._unpack("<HHBBBBI", position + 8) == IEEE.get(size):
            return np.dtype(f"{order}f{size}")
        if (
            kind & 15 == INTEGER
            and self._unpack("<HH", position + 8) == (0, 8 * size)
            and size in (1, 2, 4, 8)
        ):
            return np.dtype(f"{order}{'i' if bits & 8 else 'u'}{size}")
        if kind & 15 == OPAQUE and size == 2:
            return np.dtype("V2")
        return None

    def _in_heap(self, address: int, index: int, size: int) -> int:
        """III.E: where an object of a global heap is."""
        if address not in self._heaps:
            signature, length = self._unpack("<4s4xQ", address)
            if signature != b"GCOL":
                raise BadInput("a list of names is damaged; take another copy")
            position, objects = address + 16, {}
            while position + 16 <= address + length:
                number, used = self._unpack("<H6xQ", position)
                if number == 0:  # what is free
                    break
                objects[number] = position + 16, used
                position += 16 + -(-used // 8) * 8
            self._heaps[address] = objects
        begin, used = self._heaps[address][index]
        if used < size:
            raise BadInput("a list of names is damaged; take another copy")
        return begin


# .keras


def _read_keras(path: Path) -> tuple[dict[str, NDArray], list[str]]:
    """Of a zip archive that has the weights in HDF5 and the model as JSON, which is read for names alone."""
    with open_zip(path, ratio=2) as archive:  # weights hardly shrink

        def config() -> dict[str, Any]:
            return parse_json(_member(archive, "config.json"), dict)

        return _read_hdf5(_member(archive, "model.weights.h5"), config)


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    if name not in archive.namelist():
        raise BadInput(f"it has no {name}; save the model again")
    info = archive.getinfo(name)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
        raise BadInput(f"its {name} is encrypted or packed too tightly; save the model again")
    return archive.read(info)


# TensorFlow checkpoints


def _read_checkpoint(prefix: Path) -> tuple[dict[str, NDArray], list[str]]:
    """Of `prefix`.index and `prefix`.data-…; TensorFlow checks the sums, but trusts what is summed."""
    keys, graph = _checked_keys(prefix)
    reader = tf.compat.v1.train.NewCheckpointReader(str(prefix))  # load_checkpoint would follow a folder
    tensors: dict[str, NDArray] = {}
    halves = []
    layers = _named_layers(graph) if any(NUMBERED.match(key) for key in keys) else {}
    for key in keys:
        # TensorFlow doubles the dots of an attribute.
        name = layers.get(key) or key.removesuffix(VALUE).replace("..", ".")
        if layers and "/" not in name:  # of no layer: a counter
            continue
        array = reader.get_tensor(key)
        if array.dtype == tf.bfloat16.as_numpy_dtype:
            halves.append(name)
            array = array.astype(np.float32)
        if name in tensors and not np.array_equal(tensors[name], array):  # a SavedModel has some twice
            raise BadInput(f"{name} is there twice; save the model again")
        tensors[name] = array
    return tensors, halves


def _named_layers(graph: bytes) -> dict[str, str]:
    """Key to layer and variable, as TensorFlow keeps them in the graph of what was saved."""
    length, begin = _varint(graph, 0)
    nodes = TrackableObjectGraph.FromString(graph[begin + 4 : begin + 4 + length]).nodes  # 4: a sum
    full = {each.checkpoint_key: each.full_name for node in nodes for each in node.attributes}
    return {key: "/".join(name.split("/")[-2:]) for key, name in full.items() if _is_plain(name)}


def _checked_keys(prefix: Path) -> tuple[list[str], bytes]:
    """The keys of the weights, and the graph of what was saved.

    They are so if all that is said of tensors fits the files: some of it ends TensorFlow.
    """
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
    keys, graph, total = [], b"", 0
    for key, value in table.items():
        name, entry = key.decode(), BundleEntryProto.FromString(value)
        shape = [dim.size for dim in entry.shape.dim[:33]]
        sane = len(shape) <= 32 and min(shape, default=0) >= 0 and math.prod(n or 1 for n in shape) < 1 << 40
        inside = 0 <= entry.shard_id < shards and 0 <= entry.offset <= sizes[entry.shard_id] - entry.size
        if not (sane and inside and _is_plain(name)) or entry.slices or entry.shape.unknown_rank:
            raise BadInput(f"{name[:50]!r} does not fit its files; take another copy")
        if name == GRAPH and entry.size <= LARGEST_TEXT:
            with data[entry.shard_id].open("rb") as file:
                file.seek(entry.offset)
                graph = file.read(entry.size)
        if NO_WEIGHTS.match(name):
            continue
        dtype = tf.dtypes.as_dtype(entry.dtype)
        if dtype not in NUMBERS or math.prod(shape) * dtype.size != entry.size:
            raise BadInput(f"{name} is no plain tensor of {dtype.name}; save it as float32")
        keys.append(name)
        total += entry.size
    if total > sum(sizes):
        raise BadInput("its tensors lie on top of each other; take another copy")
    return keys, graph


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
