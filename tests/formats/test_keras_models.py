"""Keras' models as people save them: nested, sharded, tracked; and what their layers are not."""

from __future__ import annotations

import importlib
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common import Architecture
from common.errors import BadInput
from common.interop.convert import Converted, from_family
from common.interop.families import FAMILIES
from common.interop.files import as_loaded, describes_model, read_tensors
from common.interop.prove import prove
from tests.helpers import one_line

ARCH = Architecture(
    ((1, 16), (1, 32)),
    "resnext",
    groups=(4, 8),
    bot_mul=0.25,
    stem_channels=64,
    in_channels=3,
    num_classes=3,
    **FAMILIES["keras"].bottleneck,
)


@pytest.fixture(scope="module", autouse=True)
def keras(backends: list[str]) -> Any:
    if "tf" not in backends:
        pytest.skip("TensorFlow is not under test")
    import resnet_tf  # noqa: F401  (which says on what Keras runs)

    return importlib.import_module("keras")


def network() -> Any:
    """The ResNet of keras.applications, small, in float64, with random variables."""
    from resnet_tf.families import keras_resnet

    net, generator = keras_resnet(ARCH), np.random.default_rng(0)
    for variable in net.variables:
        variable.assign(generator.uniform(0.5, 1.5, variable.shape))
    return net


def backbone(net: Any, keras: Any) -> Any:
    """The same without its last layer, as a model of its own."""
    return keras.Model(net.input, net.layers[-2].output, name="resnet")


def read(path: Path, num_classes: int | None = None) -> Converted:
    tensors, halves = read_tensors(path)
    assert not halves
    return from_family(tensors, "keras", num_classes=num_classes)


def check_same(found: Converted, net: Any, head: Any = None) -> None:
    variables = {f"{layer.name}/{v.name}": v.numpy() for layer in net.layers for v in layer.variables}
    if head is not None:
        variables |= {f"predictions/{v.name}": v.numpy() for v in head.variables}
    assert found.source.keys() == variables.keys()
    for name, array in variables.items():
        np.testing.assert_array_equal(found.source[name], array.astype(found.source[name].dtype))


@pytest.mark.parametrize("name", ["model.h5", "model.keras", "model.weights.h5"])
def test_a_network_within_a_model_is_read(keras: Any, tmp_path: Path, name: str) -> None:
    net = network()
    head = keras.layers.Dense(5, dtype="float64", name="mine")
    layers = [keras.layers.RandomFlip(), backbone(net, keras), keras.layers.Dropout(0.5), head]
    model = keras.Sequential([keras.Input((64, 64, 3)), *layers])
    save = model.save_weights if "weights" in name else model.save
    save(tmp_path / name)
    found = read(tmp_path / name)
    assert found.said == ("the last layer is its mine",) and found.arch.num_classes == 5
    check_same(found, backbone(net, keras), head)


@pytest.mark.parametrize("name", ["model.h5", "model.keras", "model.weights.h5"])
def test_a_network_without_a_last_layer_is_given_one(keras: Any, tmp_path: Path, name: str) -> None:
    net = backbone(network(), keras)
    save = net.save_weights if "weights" in name else net.save
    save(tmp_path / name)
    with pytest.raises(BadInput) as error:
        read(tmp_path / name)
    one_line(error, "it has no last layer; give --num-classes")
    found = read(tmp_path / name, num_classes=7)
    assert found.arch.num_classes == 7 and "a new one of 7 classes is drawn" in found.said[0]


@pytest.mark.parametrize("how", ["Checkpoint", "SavedModel", "export"])
def test_what_tensorflow_tracks_is_found_by_its_layers(keras: Any, tmp_path: Path, how: str) -> None:
    import tensorflow as tf

    net = network()
    if how == "Checkpoint":
        tf.train.Checkpoint(model=net, step=tf.Variable(3)).write(str(tmp_path / "saved" / "at"))
        path = tmp_path / "saved" / "at"
    else:
        path = tmp_path / "saved"
        (net.export if how == "export" else lambda path: tf.saved_model.save(net, path))(str(path))
    check_same(read(path), net)


def test_weights_in_several_files_are_read_whole(keras: Any, tmp_path: Path) -> None:
    net = network()
    net.save_weights(tmp_path / "model.weights.json", max_shard_size=7.5e-5)
    assert len(list(tmp_path.glob("*.weights.h5"))) > 1
    check_same(read(tmp_path / "model.weights.json"), net)

    index = tmp_path / "model.weights.json"
    places = json.loads(index.read_text())
    for wrong in ("../x.weights.h5", "no.weights.h5", 3):
        places["weight_map"]["/layers/conv2d/vars"] = [wrong]
        index.write_text(json.dumps(places))
        with pytest.raises(BadInput) as error:
            read_tensors(index)
        one_line(error, str(index))


# Layers that a ResNet has not: the tensors do not show them.
STRANGE: dict[str, tuple[Callable[[Any, Any], list[Any]], str]] = {
    "prepared within": (
        lambda keras, net: [keras.layers.Rescaling(1 / 255, name="scale"), net],
        "its model has scale (Rescaling), which this network has not; save the ResNet alone",
    ),
    "normalised within": (
        lambda keras, net: [keras.layers.Normalization(mean=1.0, variance=2.0), net],
        "(Normalization)",
    ),
    "a Lambda": (
        lambda keras, net: [keras.layers.Lambda(lambda x: x * 2, name="twice"), net],
        "twice (Lambda)",
    ),
    "a scale behind": (lambda keras, net: [net, keras.layers.LayerNormalization(name="ln")], "(LayerNorm"),
}


@pytest.mark.deep
@pytest.mark.parametrize("suffix", [".h5", ".keras"])
@pytest.mark.parametrize("case", STRANGE)
def test_layers_that_tensors_do_not_show_are_refused_by_name(
    keras: Any, tmp_path: Path, case: str, suffix: str
) -> None:
    layers, words = STRANGE[case]
    model = keras.Sequential([keras.Input((64, 64, 3)), *layers(keras, network())])
    model.save(tmp_path / f"model{suffix}")
    with pytest.raises(BadInput) as error:
        read_tensors(tmp_path / f"model{suffix}")
    one_line(error, words)


@pytest.mark.deep
@pytest.mark.parametrize("suffix", [".h5", ".keras"])
@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("activation", "gelu", "with activation 'gelu'"),
        ("epsilon", 1e-3, "with epsilon 0.001"),
        ("dilation_rate", (2, 2), "with dilation_rate [2, 2]"),
        ("strides", (1, 1), "with strides [1, 1]"),
        ("pool_size", (2, 2), "with pool_size [2, 2]"),
    ],
)
def test_options_that_tensors_do_not_show_are_refused_by_name(
    keras: Any, tmp_path: Path, option: str, value: Any, words: str, suffix: str
) -> None:
    net = network()
    config = net.get_config()
    kind = {"epsilon": "BatchNormalization", "activation": "Activation", "dilation_rate": "Conv2D"}
    changed = next(
        layer["config"]
        for layer in reversed(config["layers"])
        if layer["class_name"] == kind.get(option, "MaxPooling2D")
    )
    changed[option] = value
    keras.Model.from_config(config).save(tmp_path / f"model{suffix}")
    with pytest.raises(BadInput) as error:
        read_tensors(tmp_path / f"model{suffix}")
    one_line(error, words)


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_probabilities_behind_are_no_other_network(keras: Any, tmp_path: Path, suffix: str) -> None:
    net = network()
    model = keras.Model(net.input, keras.layers.Softmax(dtype="float64")(net.output))
    model.save(tmp_path / f"model{suffix}")
    check_same(read(tmp_path / f"model{suffix}"), net)


# The proof is of the very model that a file describes


def check_proven(path: Path) -> None:
    found = read(path)
    assert describes_model(path, found)
    with as_loaded(path, found) as loaded:
        assert loaded == path and "e-1" in prove("keras", found.arch, found.tensors, loaded)


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
@pytest.mark.parametrize("form", ["plain", "nested", "softmax behind", "softmax within"])
def test_the_very_model_of_a_file_is_built_and_proven(
    keras: Any, tmp_path: Path, form: str, suffix: str
) -> None:
    net, layers = network(), keras.layers
    if form == "nested":
        images = keras.Input((64, 64, 3))
        features = backbone(net, keras)(layers.RandomFlip()(images), training=False)
        net = keras.Model(images, layers.Dense(4, "softmax", name="mine")(layers.Dropout(0.2)(features)))
    if form == "softmax behind":
        net = keras.Model(net.input, layers.Softmax(dtype="float64")(net.output))
    if form == "softmax within":
        net.layers[-1].activation = keras.activations.softmax
    net.save(tmp_path / f"model{suffix}")
    check_proven(tmp_path / f"model{suffix}")


def rewritten(net: Any, path: Path, change: Callable[[list[dict[str, Any]]], None]) -> Path:
    """The network's .keras file, its description changed."""
    net.save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    change(config["config"]["layers"])
    members["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_strides_elsewhere_are_another_network(keras: Any, tmp_path: Path) -> None:
    """The tensors are the same."""

    def move(layers: list[dict[str, Any]]) -> None:
        strides = {"1": [1, 1], "2": [2, 2]}  # not on the 1×1
        for layer in layers:
            if layer["name"] in ("conv3_block1_1_conv", "conv3_block1_2_conv"):
                layer["config"]["strides"] = strides[layer["name"][-6]]

    path = rewritten(network(), tmp_path / "model.keras", move)
    found = read(path)
    with pytest.raises(BadInput) as error, as_loaded(path, found) as loaded:
        prove("keras", found.arch, found.tensors, loaded)
    one_line(error, "not proven: the logits are off by")


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "filters": (lambda layer: layer["config"].update(filters=10**9), "other convolutions than its tensors"),
    "no filters": (lambda layer: layer["config"].pop("filters"), "cannot build and load its model"),
    "a wrong one": (lambda layer: layer["config"].update(padding="round"), "cannot build and load its model"),
    "another class": (
        lambda layer: layer["inbound_nodes"].append({"args": [{"class_name": "Lambda", "config": {}}]}),
        "is called with a 'Lambda'",
    ),
    "nothing": (lambda layer: layer["inbound_nodes"].clear(), "cannot build and load its model"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_description_is_one_line(keras: Any, tmp_path: Path, case: str) -> None:
    change, words = HOSTILE[case]
    path = rewritten(network(), tmp_path / "x.keras", lambda layers: change(layers[2]))
    found = read(path)
    with pytest.raises(BadInput) as error, as_loaded(path, found) as loaded:
        prove("keras", found.arch, found.tensors, loaded)
    one_line(error, words)


def test_what_a_description_names_besides_is_not_imported(keras: Any, tmp_path: Path) -> None:
    def name(layers: list[dict[str, Any]]) -> None:
        strange = {"module": "antigravity", "class_name": "x", "config": {}, "registered_name": None}
        layers[2] |= {"module": "antigravity", "registered_name": "x>y"}
        layers[2]["config"] |= {"kernel_initializer": strange, "kernel_regularizer": strange}

    check_proven(rewritten(network(), tmp_path / "x.keras", name))
    assert "antigravity" not in sys.modules
