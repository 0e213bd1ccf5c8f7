"""Keras' and TensorFlow's files: theirs are read, ours loaded by them, hostile ones refused."""

from __future__ import annotations

import importlib
import io
import json
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common import Architecture
from common.errors import BadInput
from tests.helpers import one_line

Arrays = dict[str, NDArray]
ARCH = Architecture(((1, 4), (1, 8)), "residual", stem_channels=4, num_classes=3)
DATA = ".data-00000-of-00001"


@pytest.fixture(scope="module", autouse=True)
def keras(backends: list[str]) -> Any:
    if "tf" not in backends:
        pytest.skip("TensorFlow is not under test")
    import resnet_tf  # noqa: F401  (which says on what Keras runs)

    return importlib.import_module("keras")


def read(path: Path) -> Arrays:
    from resnet_tf.files import read_tensors

    tensors, halves = read_tensors(path)
    assert not halves
    return tensors


def write(path: Path, tensors: Arrays) -> None:
    from resnet_tf.files import write_tensors

    write_tensors(path, tensors)


def same(a: Arrays, b: Arrays) -> None:
    assert a.keys() == b.keys()
    for name, array in a.items():
        assert array.dtype == b[name].dtype and array.shape == b[name].shape, name
        assert array.tobytes() == b[name].tobytes(), name


def randomise(model: Any) -> Arrays:
    """Give a model random variables; these, by layer and variable."""
    generator = np.random.default_rng(0)
    for variable in model.variables:
        variable.assign(generator.random(variable.shape))
    return {f"{layer.name}/{v.name}": v.numpy() for layer in model.layers for v in layer.variables}


def small(keras: Any) -> Any:
    """A model of each layer that ResNets have, its layers named unlike their classes."""
    image = keras.Input((8, 8, 3))
    x = image
    for i in range(12):  # so that names of numbers sort unlike numbers
        x = keras.layers.Conv2D(2, 1, name=f"c{i}")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Flatten()(x)
    return keras.Model(image, keras.layers.Dense(3, name="last")(x))


def published(keras: Any, model: Any, path: Path) -> None:
    from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

    with h5py.File(path, "w") as file:
        save_weights_to_hdf5_group(file, model)


def without_names(content: bytes) -> bytes:
    """A .weights.h5 of Keras 3 as Keras 2 has it, whose layers tell no names."""
    buffer = io.BytesIO(content)
    with h5py.File(buffer, "r+") as file:
        for layer in file["layers"].values():
            del layer["vars"].attrs["name"]
    return buffer.getvalue()


# Files of Keras and TensorFlow, read


@pytest.mark.parametrize("name", ["x.weights.h5", "x.keras", "x.h5", "published.h5", "no_suffix"])
def test_a_file_of_keras_is_read(keras: Any, tmp_path: Path, name: str) -> None:
    model = small(keras)
    expected = randomise(model)
    path = tmp_path / name
    if name == "published.h5":
        published(keras, model, path)
    elif name == "x.weights.h5":
        model.save_weights(path)
    else:
        model.save(tmp_path / "x.keras" if name == "no_suffix" else path)
        if name == "no_suffix":
            (tmp_path / "x.keras").rename(path)
    same(read(path), expected)


@pytest.mark.deep
def test_a_half_trained_model_is_read_without_its_optimizer(keras: Any, tmp_path: Path) -> None:
    model = small(keras)
    model.compile("adam", "mse", metrics=["mae"])
    model.fit(np.ones((2, 8, 8, 3)), np.ones((2, 3)), verbose=0)
    expected = randomise(model)
    for name in ("x.weights.h5", "x.keras", "x.h5"):
        model.save_weights(tmp_path / name) if ".w" in name else model.save(tmp_path / name)
        with_optimizer = zipfile.is_zipfile(tmp_path / name) or "optimizer" in str(
            list(h5py.File(tmp_path / name))
        )
        assert with_optimizer, "this file shows nothing"
        same(read(tmp_path / name), expected)


def test_layers_without_names_are_those_of_the_config(keras: Any, tmp_path: Path) -> None:
    model = small(keras)
    expected = randomise(model)
    model.save(tmp_path / "x.keras")
    with zipfile.ZipFile(tmp_path / "x.keras") as old, zipfile.ZipFile(tmp_path / "y.keras", "w") as new:
        new.writestr("config.json", old.read("config.json"))
        new.writestr("model.weights.h5", without_names(old.read("model.weights.h5")))
    same(read(tmp_path / "y.keras"), expected)


def test_layers_of_keras_applications_are_known_without_names(keras: Any, tmp_path: Path) -> None:
    model = keras.applications.ResNet50(weights=None, input_shape=(32, 32, 3), classes=2)
    expected = {f"{layer.name}/{v.name}": v.numpy() for layer in model.layers for v in layer.variables}
    path = tmp_path / "x.weights.h5"
    model.save_weights(path)
    path.write_bytes(without_names(path.read_bytes()))
    same(read(path), expected)


def test_our_own_network_is_read_by_its_paths(tmp_path: Path) -> None:
    from resnet_tf import ResNet

    net = ResNet(ARCH)
    net(np.zeros((1, 32, 32, 1)))
    randomise(net)
    net.save_weights(tmp_path / "x.weights.h5")
    tensors = read(tmp_path / "x.weights.h5")
    stage = "layers/sequential/layers/sequential_2/layers/residual"
    block = net.net.get_layer("b3").layers[0]
    np.testing.assert_array_equal(tensors[f"{stage}/conv3/kernel"], block.conv3.kernel.numpy())
    np.testing.assert_array_equal(tensors[f"{stage}/bn2/moving_variance"], block.bn2.moving_variance.numpy())
    assert len(tensors) == len(net.variables)
    assert {array.tobytes() for array in tensors.values()} == {v.numpy().tobytes() for v in net.variables}


def test_bfloat16_comes_as_float32(keras: Any, tmp_path: Path) -> None:
    import tensorflow as tf

    from resnet_tf.files import read_tensors

    values = tf.constant([[1.5, -3.0], [2.0**-30, 1e30]], tf.bfloat16)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, dtype="bfloat16", name="last")])
    model.layers[0].kernel.assign(values)
    model.save_weights(tmp_path / "x.weights.h5")
    tf.train.Checkpoint(last=tf.train.Checkpoint(kernel=tf.Variable(values))).write(str(tmp_path / "x"))
    for path, count in ((tmp_path / "x.weights.h5", 2), (tmp_path / "x", 1)):
        tensors, halves = read_tensors(path)
        assert len(halves) == count and "last/kernel" in halves
        assert tensors["last/kernel"].dtype == np.float32
        np.testing.assert_array_equal(tensors["last/kernel"], tf.cast(values, tf.float32))


def module(tensors: Arrays) -> Any:
    """Objects with attributes of these names, as d2l's networks have; their variables are 0."""
    import tensorflow as tf

    root = tf.Module()
    for name, array in tensors.items():
        *parents, last = name.split("/")
        node = root
        for parent in parents:
            if not hasattr(node, parent):
                setattr(node, parent, tf.Module())
            node = getattr(node, parent)
        setattr(node, last, tf.Variable(np.zeros_like(array)))
    return root


def variable(root: Any, name: str) -> Any:
    for part in name.split("/"):
        root = getattr(root, part)
    return root


D2L: Arrays = {
    "net/layer_with_weights-0/layer_with_weights-0/bias": np.arange(3.0, dtype="f2"),
    "net/layer_with_weights-0/layer_with_weights-0/kernel": np.random.default_rng(0).random((2, 3)),
    "net/layer_with_weights-1/layer_with_weights-0/bn1/gamma": np.full((), np.pi, "f4"),
    "net/v1.5/empty": np.zeros((0, 2), "f4"),
}


@pytest.mark.parametrize("how", ["prefix", "index", "folder", "moved folder"])
def test_a_checkpoint_of_tensorflow_is_read(tmp_path: Path, how: str) -> None:
    import tensorflow as tf

    root = module(D2L)
    optimizer = tf.Module()
    optimizer.iterations = tf.Variable(7)
    for name, array in D2L.items():
        variable(root, name).assign(array)
    prefix = tf.train.Checkpoint(net=root.net, optimizer=optimizer).save(str(tmp_path / "ckpt"))
    assert prefix == str(tmp_path / "ckpt-1")
    if how == "moved folder":
        (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/tmp/elsewhere/ckpt-1"\n')
    path = {"prefix": Path(prefix), "index": Path(f"{prefix}.index")}.get(how, tmp_path)
    same(read(path), D2L)


# Files of ours, loaded by Keras and TensorFlow, and read again


def test_keras_loads_what_we_write(keras: Any, tmp_path: Path) -> None:
    model, other = small(keras), small(keras)
    expected = randomise(model)
    write(tmp_path / "x.h5", expected)
    other.load_weights(tmp_path / "x.h5")
    same({f"{layer.name}/{v.name}": v.numpy() for layer in other.layers for v in layer.variables}, expected)


def test_tensorflow_restores_what_we_write(tmp_path: Path) -> None:
    import tensorflow as tf

    write(tmp_path / "d2l", D2L)
    write(tmp_path / "d2l", {name: array + 1 for name, array in D2L.items()})  # in place of another
    for load, checked in (("read", "assert_consumed"), ("restore", "expect_partial")):  # no save_counter
        root = module(D2L)
        status = getattr(tf.train.Checkpoint(net=root.net), load)(str(tmp_path / "d2l"))
        getattr(status, checked)()
        for name, array in D2L.items():
            np.testing.assert_array_equal(variable(root, name).numpy(), array + 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"d2l{DATA}", "d2l.index"]


def transformers_names(stages: int) -> list[str]:
    """Names of a ResNet of transformers in TensorFlow; so many that HDF5 takes them in pieces only."""
    names = ["resnet/embedder/embedder/convolution/kernel"]
    for j in range(stages):
        for i in range(3):
            layer = f"resnet/encoder/stages.{j // 40}/layers.{j % 40}/layer.{i}"
            names += [f"{layer}/convolution/kernel", f"{layer}/normalization/gamma"]
            names += [f"{layer}/normalization/{v}" for v in ("beta", "moving_mean", "moving_variance")]
    return [*names, "classifier.1/kernel", "classifier.1/bias"]


def test_transformers_layout(tmp_path: Path) -> None:
    """As its `load_tf_weights_from_h5` (4.57) reads it: a group a top layer, names without the model's."""
    tensors = {name: np.float32([i]) for i, name in enumerate(transformers_names(80))}
    write(tmp_path / "tf_model.h5", tensors)
    found = {}
    with h5py.File(tmp_path / "tf_model.h5") as file:
        assert list(file.attrs["layer_names"]) == [b"resnet", b"classifier.1"]
        assert "weight_names" not in file["resnet"].attrs
        for layer in ("resnet", "classifier.1"):
            attributes = file[layer].attrs
            pieces = [
                key for key in ("weight_names", *(f"weight_names{i}" for i in range(9))) if key in attributes
            ]
            for weight in (w.decode() for key in pieces for w in attributes[key]):
                found["/".join(weight.split("/")[1:])] = np.asarray(file[layer][weight])
    same(found, {f"{name}:0": array for name, array in tensors.items()})
    assert list(read(tmp_path / "tf_model.h5")) == list(tensors)
    same(read(tmp_path / "tf_model.h5"), tensors)


SHAPES = st.lists(st.integers(0, 3), max_size=4).map(tuple)


@settings(max_examples=25, derandomize=True, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(["f2", "f4", "f8"]), nested=st.booleans())
def test_the_same_bits_there_and_back(data: st.DataObject, dtype: str, nested: bool) -> None:
    part = st.text("ab0.-_ :", min_size=1, max_size=3).filter(lambda text: text.strip(". "))
    names = data.draw(st.lists(st.tuples(part, part), min_size=1, max_size=4, unique=True))
    generator = np.random.default_rng(data.draw(st.integers(0, 99)))
    tensors: Arrays = {}
    for layer in dict.fromkeys(layer for layer, _ in names):
        for _, variable in (name for name in names if name[0] == layer):
            shape = data.draw(SHAPES)
            bits = generator.bytes(int(np.prod(shape)) * int(dtype[1]))  # NaNs of all kinds among them
            name = f"top/{layer}/{variable}" if nested else f"{layer}/{variable}"
            tensors[name] = np.frombuffer(bits, dtype).reshape(shape)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, "x.h5"), tensors)
        assert list(read(Path(folder, "x.h5"))) == list(tensors)
        same(read(Path(folder, "x.h5")), tensors)


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("x.weights.h5", "a/kernel", "give a name in .h5"),
        ("x.keras", "a/kernel", "give a name in .h5"),
        ("x.h5", "kernel", "does not name a layer's variable"),
        ("x.h5", "a//kernel", "does not name a layer's variable"),
        ("x.h5", "a/ker\nnel", "does not name a layer's variable"),
        ("x.h5", "a/kérnel", "does not name a layer's variable"),
        ("missing/x.h5", "a/kernel", "cannot write"),
        ("missing/x", "a/kernel", "cannot write"),
    ],
)
def test_what_cannot_be_written_is_one_line(tmp_path: Path, name: str, tensor: str, words: str) -> None:
    with pytest.raises(BadInput) as error:
        write(tmp_path / name, {tensor: np.zeros(2)})
    one_line(error, str(tmp_path / name), words)
    assert not list(tmp_path.iterdir())


# Hostile files


def layers(file: h5py.File, **options: Any) -> h5py.Group:
    """A file of one layer as Keras 3 has it; the group of its variables."""
    group = file.create_group("layers/dense/vars")
    group.attrs["name"] = "last"
    group.create_dataset("0", data=np.ones((3, 4), "f4"), **options)
    return group


def chunked_bomb(file: h5py.File) -> None:
    layers(file).create_dataset("1", (10**6, 10**6), "f4", chunks=(1000, 1000), compression="gzip")


def external(file: h5py.File) -> None:
    layers(file).create_dataset("1", (4,), "f4", external=[("/etc/passwd", 0, 16)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("/etc/other.h5", "x", (4,))
    layers(file).create_virtual_dataset("1", layout)


def soft_link(file: h5py.File) -> None:
    layers(file)["1"] = h5py.SoftLink("/layers/dense/vars/0")


def external_link(file: h5py.File) -> None:
    layers(file)["1"] = h5py.ExternalLink("/etc/other.h5", "/x")


def circle(file: h5py.File) -> None:
    layers(file)
    file["layers/again"] = file["layers"]
    file["layers/dense/again"] = file["layers"]


def deep(file: h5py.File) -> None:
    group = file.create_group("layers")
    for _ in range(10_000):
        group = group.create_group("a")


def many_names_of_one_tensor(file: h5py.File) -> None:
    tensor = file.create_dataset("x", data=np.ones(10_000, "f4"))
    file.attrs["layer_names"] = [b"a"]
    file.create_group("a").attrs["weight_names"] = [f"a/{i}".encode() for i in range(1000)]
    for i in range(1000):
        file["a"][f"a/{i}"] = tensor


def never_written(file: h5py.File) -> None:
    layers(file).create_dataset("1", (10**6, 10**6), "f4")


def of_names(file: h5py.File, layer_names: Any, weight_names: Any) -> None:
    file.attrs["layer_names"] = layer_names
    file.create_group("a/a")["kernel:0"] = np.ones(3)
    file["a"].attrs["weight_names"] = weight_names


def add(value: Any, **options: Any) -> Callable[[h5py.File], None]:
    return lambda file: layers(file).create_dataset("1", data=value, **options) and None


HDF5: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "chunks that announce 10^12 elements": (chunked_bomb, "in one piece"),
    "10^12 elements that nobody wrote": (never_written, "cut off"),
    "external data": (external, "in another file"),
    "virtual": (virtual, "in another file"),
    "soft link": (soft_link, "link"),
    "external link": (external_link, "links"),
    "groups in a circle": (circle, "deeper"),
    "groups 10,000 deep": (deep, "deeper"),
    "one tensor a thousand times": (many_names_of_one_tensor, "on top of each other"),
    "compressed": (add(np.ones(999), compression="gzip"), "compressed"),
    "objects": (add(["a", "b"], dtype=h5py.string_dtype()), "not of plain numbers"),
    "references": (add(np.array([None] * 2, dtype=h5py.ref_dtype)), "not of plain numbers"),
    "complex": (add(np.ones(2, "c8")), "not of plain numbers"),
    "a float of another kind": (add(np.ones(2, np.longdouble)), "not of plain numbers"),
    "opaque": (add(np.zeros(2, "V2")), "not of plain numbers"),
    "no text": (lambda file: of_names(file, [b"a"], [b"a/\xff:0"]), "utf-8"),
    "a line break in a name": (lambda file: of_names(file, [b"a"], [b"a/x\ny:0"]), "no name"),
    "a name twice": (lambda file: of_names(file, [b"a", b"a"], [b"a/kernel:0"]), "twice"),
    "a name that is not there": (lambda file: of_names(file, [b"a"], [b"a/bias:0"]), "a/bias"),
    "names that are numbers": (lambda file: of_names(file, np.ones(3), [b"a/kernel:0"]), "a list of names"),
    "a long name": (lambda file: of_names(file, [b"a"], [b"a/" + b"x" * 5000]), "no name"),
    "nothing of Keras": (lambda file: file.create_dataset("x", data=np.ones(3)) and None, "no weights"),
}


def refused(path: Path, *words: str) -> None:
    """Within 10 seconds of its own, in one line that names the file."""
    start = time.process_time()
    with pytest.raises(BadInput) as error:
        read(path)
    one_line(error, str(path), *words)
    assert len(str(error.value)) < len(str(path)) + 250
    assert time.process_time() - start < 10


@pytest.mark.parametrize("case", HDF5)
def test_a_hostile_hdf5_file_is_refused(tmp_path: Path, case: str) -> None:
    make, words = HDF5[case]
    path = tmp_path / "x.weights.h5"
    with h5py.File(path, "w") as file:
        make(file)
    refused(path, words)


def test_a_new_layout_of_hdf5_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w", libver="latest") as file:
        layers(file)
    refused(tmp_path / "x.h5", "not laid out as Keras does")


def small_h5(path: Path) -> Path:
    write(path, {f"l{i}/{v}": np.ones((3, 4), "f4") for i in range(3) for v in ("kernel", "bias")})
    return path


def with_lists(path: Path) -> Path:
    """Of names of variable length, on whose damage the HDF5 library may crash."""
    with h5py.File(path, "w") as file:
        of_names(file, [b"a"], [b"a/kernel:0"])
    return path


def test_a_tree_in_a_circle_ends(tmp_path: Path) -> None:
    path = small_h5(tmp_path / "x.h5")
    content = bytearray(path.read_bytes())
    tree = content.index(b"TREE")
    content[tree + 6 : tree + 8] = struct.pack("<H", 2)
    content[tree + 32 : tree + 40] = content[tree + 48 : tree + 56] = struct.pack("<Q", tree)
    path.write_bytes(content)
    refused(path, "circles")


@pytest.mark.parametrize("make", [small_h5, with_lists])
def test_a_file_that_ends_early_is_refused(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path / "x.h5")
    content = path.read_bytes()
    used = len(content.rstrip(b"\0"))
    for length in [*range(1, used, 97), used - 1]:
        path.write_bytes(content[:length])
        refused(path)


def read_or_refused(path: Path, changed: Path, data: st.DataObject) -> None:
    """With a few bytes of `changed` other than they were; more often such that were not zero."""
    content = bytearray(changed.read_bytes())
    used = [i for i, byte in enumerate(content) if byte]
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.sampled_from(used) | st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    changed.write_bytes(content)
    try:
        read(path)
    except BadInput as error:
        assert str(path) in str(error) and "\n" not in str(error)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(data=st.data(), make=st.sampled_from([small_h5, with_lists]))
def test_a_damaged_hdf5_file_is_read_or_refused(data: st.DataObject, make: Callable[[Path], Path]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = make(Path(folder, "x.h5"))
        read_or_refused(path, path, data)


def archive(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members.items():
            file.writestr(name, content)


def nameless(**members: bytes) -> dict[str, bytes]:
    """A .keras file's members, whose config is asked for names."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        del layers(file).attrs["name"]
    return {"model.weights.h5": buffer.getvalue(), "config.json": b"{}"} | {
        name.replace("_", "."): content for name, content in members.items()
    }


ZIPS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a bomb": (lambda path: archive(path, {"model.weights.h5": bytes(1 << 27)}), "too tightly"),
    "of another packing": (lambda path: archive(path, nameless(), zipfile.ZIP_LZMA), "too tightly"),
    "without weights": (lambda path: archive(path, {"config.json": b"{}"}), "has no model.weights.h5"),
    "weights that are none": (lambda path: archive(path, {"model.weights.h5": b"no"}), "damaged"),
    "a config without layers": (lambda path: archive(path, nameless()), "config"),
    "a config of brackets": (lambda path: archive(path, nameless(config_json=b"[" * 10**6)), "nested"),
    "a large config": (
        lambda path: archive(path, nameless(config_json=b" " * (9 << 20))),
        "larger than 4 MiB",
    ),
    "many members": (
        lambda path: archive(path, {f"a{i}": b"" for i in range(25_000)} | nameless()),
        "too many members",
    ),
}


@pytest.mark.parametrize("case", ZIPS)
def test_a_hostile_keras_file_is_refused(tmp_path: Path, case: str) -> None:
    make, words = ZIPS[case]
    make(tmp_path / "x.keras")
    refused(tmp_path / "x.keras", words)


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.keras"
    archive(path, nameless())
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    refused(path, "encrypted")


def test_a_member_twice_is_refused(tmp_path: Path) -> None:
    archive(tmp_path / "x.keras", nameless())
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(tmp_path / "x.keras", "a") as file:
        file.writestr("model.weights.h5", b"another")
    refused(tmp_path / "x.keras", "'model.weights.h5' is there twice")


@settings(max_examples=100, derandomize=True, deadline=None)
@given(data=st.data())
def test_a_damaged_keras_file_is_read_or_refused(data: st.DataObject) -> None:
    config = {"config": {"layers": [{"class_name": "Dense", "config": {"name": "last"}}]}}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.keras")
        archive(path, nameless(config_json=json.dumps(config).encode()))
        assert list(read(path)) == ["last/kernel"]
        read_or_refused(path, path, data)


# Hostile checkpoints


def crc32c(data: bytes) -> int:
    """As LevelDB masks it: https://github.com/google/leveldb/blob/main/util/crc32c.h"""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def block(entries: list[tuple[bytes, bytes]]) -> bytes:
    """A block of LevelDB's sorted tables with its sum, of entries that share nothing."""
    parts = [varint(0) + varint(len(key)) + varint(len(value)) + key + value for key, value in entries]
    content = b"".join(parts) + struct.pack("<II", 0, 1) + b"\0"
    return content + struct.pack("<I", crc32c(content))


def table(blocks: bytes, handles: list[tuple[int, int]]) -> bytes:
    """A sorted table of these blocks; where each begins and how long it is without its sum."""
    meta = block([])
    where = block([(b"~%03d" % i, varint(begin) + varint(size)) for i, (begin, size) in enumerate(handles)])
    footer = varint(len(blocks)) + varint(len(meta) - 5)
    footer += varint(len(blocks) + len(meta)) + varint(len(where) - 5)
    return blocks + meta + where + footer.ljust(40, b"\0") + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"


def header(shards: int = 1) -> tuple[bytes, bytes]:
    from tensorflow.core.protobuf.tensor_bundle_pb2 import BundleHeaderProto

    return b"", BundleHeaderProto(num_shards=shards, version={"producer": 1}).SerializeToString()


def index(entries: dict[str, Any], shards: int = 1) -> bytes:
    """A checkpoint's index, sums and all."""
    first = block([header(shards), *((name.encode(), e.SerializeToString()) for name, e in entries.items())])
    return table(first, [(0, len(first) - 5)])


def block_in_block() -> bytes:
    """A short way to say much: what is a value of one block is itself a block."""
    inner = block([(b"b", bytes(5000))])
    outer = block([header(), (b"a", inner)])
    return table(outer, [(0, len(outer) - 5), (outer.index(inner), len(inner) - 5)])


def entry(*shape: int, dtype: int = 1, size: int = 16, crc: int = 0, **fields: Any) -> Any:
    from tensorflow.core.protobuf.tensor_bundle_pb2 import BundleEntryProto

    dims = {"dim": [{"size": n} for n in shape]}
    return BundleEntryProto(dtype=dtype, shape=dims, size=size, crc32c=crc, **fields)


def checkpoint(folder: Path, content: bytes) -> Path:
    (folder / "x.index").write_bytes(content)
    (folder / f"x{DATA}").write_bytes(bytes(64))
    return folder / "x"


def test_an_index_made_here_is_read(tmp_path: Path) -> None:
    """Or the next test would show nothing."""
    prefix = checkpoint(tmp_path, index({"a": entry(4, crc=crc32c(bytes(16)))}))
    same(read(prefix), {"a": np.zeros(4, "f4")})


INDICES: dict[str, tuple[Callable[[], bytes], str]] = {
    "a negative size": (lambda: index({"a": entry(-4)}), "does not fit"),
    "10^12 elements": (lambda: index({"a": entry(10**6, 10**6, size=4 * 10**12)}), "does not fit"),
    "an overflow": (lambda: index({"a": entry(1 << 62, 4, size=0)}), "does not fit"),
    "an overflow hidden by 0": (lambda: index({"a": entry(0, 1 << 62, 1 << 62, size=0)}), "does not fit"),
    "300 dimensions": (lambda: index({"a": entry(*[1] * 300, size=4)}), "does not fit"),
    "another size than its shape": (lambda: index({"a": entry(3)}), "no plain tensor"),
    "a place beyond the end": (lambda: index({"a": entry(4, offset=60)}), "does not fit"),
    "a place before the start": (lambda: index({"a": entry(4, offset=-4)}), "does not fit"),
    "another shard": (lambda: index({"a": entry(4, shard_id=7)}), "does not fit"),
    "a slice": (lambda: index({"a": entry(4, slices=[{"extent": [{}]}])}), "does not fit"),
    "strings": (lambda: index({"a": entry(1, dtype=7)}), "no plain tensor of string"),
    "no type": (lambda: index({"a": entry(4, dtype=99)}), "damaged"),
    "tensors on top of each other": (
        lambda: index({f"{i}": entry(16, size=64) for i in range(9)}),
        "on top of each other",
    ),
    "a million data files": (lambda: index({"a": entry(4)}, shards=10**6), "1000000 data files"),
    "a missing data file": (lambda: index({"a": entry(4)}, shards=2), "is missing"),
    "a block in a block": (block_in_block, "circles"),
    "a block twice": (lambda: table(b := block([header()]), [(0, len(b) - 5)] * 2), "twice"),
    "a name twice": (lambda: index({"a": entry(4), "b": entry(4)}).replace(b"b\x08", b"a\x08"), "twice"),
    "a name that is no text": (lambda: index({"a": entry(4)}).replace(b"a\x08", b"\xff\x08"), "utf-8"),
    "an odd name": (lambda: index({"a\nb": entry(4)}), "does not fit"),
    "a long name": (lambda: index({"a" * 5000: entry(4)}), "no name"),
    "nothing": (lambda: index({}), "no weights"),
    "no index": (lambda: b"no index", "not written by"),
    "an empty index": (lambda: b"", "not written by"),
}


@pytest.mark.parametrize("case", INDICES)
def test_a_hostile_checkpoint_is_refused(tmp_path: Path, case: str) -> None:
    make, words = INDICES[case]
    prefix = checkpoint(tmp_path, make())
    path = Path(f"{prefix}.index")
    start = time.process_time()
    with pytest.raises(BadInput) as error:
        read(path)
    one_line(error, str(prefix), words)
    assert time.process_time() - start < 10


@settings(max_examples=100, derandomize=True, deadline=None)
@given(data=st.data(), ending=st.sampled_from([".index", DATA]))
def test_a_damaged_checkpoint_is_read_or_refused(data: st.DataObject, ending: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, "x"), D2L)
        read_or_refused(Path(folder, "x"), Path(folder, f"x{ending}"), data)


def test_a_checkpoint_whose_data_is_damaged_is_refused(tmp_path: Path) -> None:
    prefix = checkpoint(tmp_path, index({"a": entry(4, crc=1)}))
    refused(prefix, "Checksum does not match")


# Memory


LIMITED = """
import resource, sys
from pathlib import Path
from resnet_tf.files import read_tensors
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
for path in sys.argv[1:]:
    try:
        read_tensors(Path(path))
        print(path, "was read")
    except ValueError as error:
        pass
print("MiB", peak() - before)
"""


@pytest.mark.deep
def test_bombs_take_little_memory(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "chunks.h5", "w") as file:
        chunked_bomb(file)
    with h5py.File(tmp_path / "unwritten.h5", "w") as file:
        never_written(file)
    archive(tmp_path / "zip.keras", {"model.weights.h5": bytes(1 << 28)})
    prefix = checkpoint(tmp_path, index({"a": entry(10**6, 10**6, size=4 * 10**12)}))
    tree = tmp_path / "tree.h5"
    test_a_tree_in_a_circle_ends(tmp_path)
    (tmp_path / "x.h5").rename(tree)
    paths = [str(path) for path in (*sorted(tmp_path.glob("*.h5")), tmp_path / "zip.keras", prefix)]
    run = subprocess.run([sys.executable, "-c", LIMITED, *paths], capture_output=True, text=True, check=True)
    word, mebibytes = run.stdout.split()
    assert word == "MiB" and float(mebibytes) < 200, run.stdout
