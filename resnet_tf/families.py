"""Other networks in Keras, built and loaded by their own libraries, for ours to be held against."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from keras.src.applications import resnet
from numpy.typing import NDArray

from common.architecture import Architecture
from common.errors import BadInput
from common.interop.families import hugging_face_config
from common.layout import nhwc
from common.reading import brief, shown
from resnet_tf.files import MODELS, read_model, reader
from resnet_tf.layers import precision


def keras_resnet(arch: Architecture) -> keras.Model:
    """The ResNet of keras.applications, in float64, for images of any size."""

    def stages(X: Any) -> Any:
        for k, (depth, channels) in enumerate(arch.stages):
            strides = 2 if k else 1
            X = resnet.stack_residual_blocks_v1(X, channels // 4, depth, strides, name=f"conv{k + 2}")
        return X

    with precision("float64"):
        images = keras.Input((None, None, arch.in_channels))
        net = resnet.ResNet(
            stages,
            preact=False,
            use_bias=True,
            include_top=False,  # with it, images have one size
            weights=None,
            input_tensor=images,
            pooling="avg",
        )
        logits = keras.layers.Dense(arch.num_classes, name="predictions")(net.output)
        return keras.Model(images, logits)


def keras_model(described: Mapping[str, Any], arch: Architecture) -> keras.Model:
    """The very model that a file describes, in float64, for images of any size, of logits.

    Of the description only layers of a ResNet, their plain options and how they are connected are taken;
    Keras would import what it names besides.

    Raises:
        ValueError: if it has other convolutions than the architecture.
    """
    found = sorted(_convolutions(described))
    if found != sorted(
        (shape[0], *shape[2:]) for shape in arch.parameter_shapes().values() if len(shape) == 4
    ):
        raise BadInput("its description has other convolutions than its tensors")
    with precision("float64"):
        return keras.saving.deserialize_keras_object(_plain(described, is_end=True))


def _convolutions(layer: Mapping[str, Any]) -> Iterator[tuple[int, int, int]]:
    """Filters, height and width of each."""
    if layer["class_name"] in MODELS:
        for each in layer["config"]["layers"]:
            yield from _convolutions(each)
    elif layer["class_name"] == "Conv2D":
        yield int(layer["config"]["filters"]), *map(int, layer["config"]["kernel_size"])


def _plain(layer: Mapping[str, Any], is_end: bool) -> dict[str, Any]:
    """A layer's description without what is not plain; softmax at the end is left out."""
    kind, config, module = layer["class_name"], layer["config"], "keras.layers"
    calls = _connections(layer.get("inbound_nodes", []))
    if kind in MODELS:
        end = config.get("output_layers", [config["layers"][-1]["config"]["name"]])
        while isinstance(end, list):  # [["predictions", 0, 0]], or without the outer list
            end = end[0]
        own = {name: config[name] for name in ("name", "input_layers", "output_layers") if name in config}
        kind = "Functional" if "output_layers" in config else "Sequential"
        layers = [_plain(each, is_end and each["config"]["name"] == end) for each in config["layers"]]
        config, module = own | {"layers": layers}, f"keras.src.models.{kind.lower()}"
    else:
        config = {name: value for name, value in config.items() if _is_plain(value)} | {"dtype": "float64"}
        for name in ("batch_shape", "batch_input_shape"):  # of images of one size
            if shape := config.get(name):
                config[name] = [None, *(None for _ in shape[1:-1]), shape[-1]]
        if is_end and kind == "Softmax":
            kind, config = "Activation", {"name": config["name"], "activation": "linear", "dtype": "float64"}
            calls = [call | {"kwargs": {}} if isinstance(call, dict) else call for call in calls]  # no mask
        elif is_end and config.get("activation") == "softmax":
            config["activation"] = "linear"
    return {
        "module": module,
        "class_name": kind,
        "config": config,
        "registered_name": None,
        "name": config["name"],
        "inbound_nodes": calls,
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _connections(node: Any) -> Any:
    """What a layer is called with: tensors of other layers, and plain values."""
    if isinstance(node, list):
        return [_connections(each) for each in node]
    if not isinstance(node, dict):
        return node
    if node.get("class_name", "__keras_tensor__") != "__keras_tensor__":
        raise BadInput(f"a layer of its model is called with a {brief(node['class_name'])}")
    return {name: _connections(value) for name, value in node.items()}


@contextmanager
def keras_2(dtype: str = "float64") -> Iterator[Any]:
    """Keras 2, whose layers are all made in one global type: this one for a while.

    Its name today is tf-keras. It is apart from Keras 3: neither sees what the other is set to.
    """
    import tf_keras

    before = tf_keras.backend.floatx()
    tf_keras.backend.set_floatx(dtype)
    try:
        yield tf_keras
    finally:
        tf_keras.backend.set_floatx(before)


def transformers_resnet(arch: Architecture, path: Path) -> Any:
    """Hugging Face's ResNet in Keras 2, in float64, loaded from a folder, or from a .h5 file alone.

    It makes a layer in every call, so it is called in `keras_2`, too.
    """
    with keras_2():
        from transformers import ResNetConfig, TFResNetForImageClassification

        config = None if path.is_dir() else ResNetConfig(**hugging_face_config(arch))
        return TFResNetForImageClassification.from_pretrained(path, config=config)


def d2l_resnet(arch: Architecture, dtype: str = "float64") -> Any:
    """The chapter's ResNet, of d2l's blocks ("Dive into Deep Learning", sections 8.6.3 and 8.6.5).

    The book was written for Keras 2, in which alone its files are TensorFlow checkpoints.
    """
    os.environ["TF_USE_LEGACY_KERAS"] = "1"  # before d2l takes its tf.keras
    from d2l import tensorflow as d2l

    kind = d2l.Residual if arch.block == "residual" else d2l.ResNeXtBlock
    with keras_2(dtype) as tf_keras:
        layers, sequential = tf_keras.layers, tf_keras.Sequential
        stem = [
            layers.Conv2D(arch.stem_channels, kernel_size=7, strides=2, padding="same"),
            layers.BatchNormalization(),
            layers.Activation("relu"),
            layers.MaxPool2D(pool_size=3, strides=2, padding="same"),
        ]
        stages = [sequential([kind(**block.chapter_options) for block in blocks]) for blocks in arch.blocks()]
        last = [layers.GlobalAvgPool2D(), layers.Dense(arch.num_classes)]
        model = d2l.Classifier()
        model.net = sequential([sequential(stem), *stages, sequential(last)])
        model.net.build((None, 64, 64, arch.in_channels))
    return model


NETWORKS: dict[str, Callable[[Architecture], Any]] = {"keras": keras_resnet, "d2l-tf": d2l_resnet}


def own_network(family: str, arch: Architecture, path: Path) -> Callable[[NDArray], NDArray]:
    """The family's own network with the weights of a file, in float64: images (N, C, H, W) → logits.

    Raises:
        ImportError: if its library is not installed.
    """
    if family == "transformers-tf":
        hugging_face = transformers_resnet(arch, path)

        def logits(x: NDArray) -> NDArray:
            with keras_2():
                return hugging_face(x).logits.numpy()

        return logits
    described = read_model(path) if family == "keras" else None
    if described is not None:
        net = _loaded(described, arch, path)
        return lambda x: net(nhwc(x), training=False).numpy()
    net = NETWORKS[family](arch)
    if family == "d2l-tf":
        _, prefix = reader(path)
        dtypes = tf.train.load_checkpoint(str(prefix)).get_variable_to_dtype_map()
        (dtype,) = {dtype.name for name, dtype in dtypes.items() if "/kernel/" in name}
        loaded = d2l_resnet(arch, dtype)  # a checkpoint loads in its own type only
        loaded.load_weights(prefix)
        net.set_weights(loaded.get_weights())
    else:
        net.load_weights(path)
    return lambda x: net(nhwc(x), training=False).numpy()


def _loaded(described: Mapping[str, Any], arch: Architecture, path: Path) -> keras.Model:
    """The model of a file of Keras, which describes it, with its weights."""
    try:
        model = keras_model(described, arch)
        model.load_weights(path)
    except Exception as error:  # in a description anything can be wrong
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadInput(f"Keras cannot build and load its model: {shown(reason, 200)}") from None
    return model
