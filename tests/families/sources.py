"""Networks of families whose libraries are old ones: transformers with Flax and TensorFlow, d2l's Keras 2."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.architecture import Architecture
from common.interop.files import read_tensors
from common.layout import nhwc
from tests.interop.sources import Source, Tensors, flax_training


def transformers_flax(family: str, arch: Architecture) -> Source:
    """Hugging Face's network in Flax."""
    from resnet_jax.families import transformers_resnet

    loaded: list[Any] = []

    def load(path: Path) -> None:
        loaded[:] = transformers_resnet(arch, path)

    def save(path: Path) -> Path:
        net, variables = loaded
        net.save_pretrained(path, params=variables)
        return path

    def training(x: NDArray, y: NDArray) -> tuple[NDArray, Tensors, Tensors]:
        net, variables = loaded

        def forward(variables: Any, X: Any) -> tuple[Any, Any]:
            output, updates = net.module.apply(variables, X, deterministic=False, mutable=["batch_stats"])
            return output.logits, updates

        return flax_training(forward, variables, x, y)

    return Source("", load, save, training)


def transformers_tf(family: str, arch: Architecture) -> Source:
    """Hugging Face's network in TensorFlow."""
    from resnet_tf.families import transformers_resnet

    loaded: list[Any] = []

    def load(path: Path) -> None:
        loaded[:] = [transformers_resnet(arch, path)]

    def save(path: Path) -> Path:
        loaded[0].save_pretrained(path)
        return path

    def training(x: NDArray, y: NDArray) -> tuple[NDArray, Tensors, Tensors]:
        return keras_2_training(loaded[0], save, lambda: loaded[0](x, training=True).logits, y)

    return Source("", load, save, training)


def d2l_tf(family: str, arch: Architecture) -> Source:
    """The network of the book's TensorFlow tab."""
    from resnet_tf.families import d2l_resnet

    net = d2l_resnet(arch)

    def save(path: Path) -> Path:
        net.save_weights(str(path))
        return path

    def training(x: NDArray, y: NDArray) -> tuple[NDArray, Tensors, Tensors]:
        return keras_2_training(net, save, lambda: net(nhwc(x), training=True), y)

    return Source("", net.load_weights, save, training)


def keras_2_training(
    net: Any, save: Callable[[Path], Path], forward: Callable[[], Any], y: NDArray
) -> tuple[NDArray, Tensors, Tensors]:
    """A source's `training`; the gradients' names are found by saving them in the variables' place."""
    import tensorflow as tf

    from resnet_tf.families import keras_2

    with keras_2() as tf_keras:
        for layer in net.submodules:
            if isinstance(layer, tf_keras.layers.BatchNormalization):
                layer.momentum = np.float64(layer.momentum)  # Keras 2 rounds a Python float to float32
        with tf.GradientTape() as tape:
            logits = forward()
            loss = tf_keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)
            loss = tf.reduce_mean(loss)
        gradients = tape.gradient(loss, net.trainable_variables)
        for variable, gradient in zip(net.trainable_variables, gradients, strict=True):
            variable.assign(gradient)
    with tempfile.TemporaryDirectory() as folder:
        tensors, _ = read_tensors(save(Path(folder, "gradients")))
    return logits.numpy(), tensors, tensors
