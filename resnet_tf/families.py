"""Other networks in Keras, built and loaded by their own libraries, for ours to be held against."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from keras.src.applications import resnet
from numpy.typing import NDArray

from common.architecture import Architecture
from common.interop.families import hugging_face_config
from common.layout import nhwc
from resnet_tf.files import reader
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
