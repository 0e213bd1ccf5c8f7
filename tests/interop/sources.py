"""Other frameworks' own networks, to load and save by their own libraries and to train for a pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.architecture import Architecture
from common.layout import nhwc

Tensors = dict[str, NDArray]


@dataclass(frozen=True)
class Source:
    """A network of a family.

    Attributes:
        suffix: of the files it loads and saves.
        load, save: by its own loader and writer.
        training: logits, gradients and running statistics after a pass over images and labels, by its names.
    """

    suffix: str
    load: Callable[[Path], None]
    save: Callable[[Path], None]
    training: Callable[[NDArray, NDArray], tuple[NDArray, Tensors, Tensors]]


def keras(arch: Architecture) -> Source:
    """The network of keras.applications."""
    from resnet_tf.families import keras_resnet

    net = keras_resnet(arch)

    def training(x: NDArray, y: NDArray) -> tuple[NDArray, Tensors, Tensors]:
        import keras
        import tensorflow as tf

        with tf.GradientTape() as tape:
            logits = net(nhwc(x), training=True)
            loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True))
        gradients = tape.gradient(loss, net.trainable_variables)
        return (
            logits.numpy(),
            {v.path: g.numpy() for v, g in zip(net.trainable_variables, gradients, strict=True)},
            {v.path: v.numpy() for v in net.non_trainable_variables if "moving" in v.path},
        )

    def save(path: Path) -> None:
        net.save_weights(path.with_suffix(".weights.h5"))

    return Source(".h5", net.load_weights, save, training)


def gluon(arch: Architecture) -> Source:
    """The network of Gluon's model zoo."""
    from resnet_mxnet.families import gluon_resnet

    net = gluon_resnet(arch)

    def training(x: NDArray, y: NDArray) -> tuple[NDArray, Tensors, Tensors]:
        import mxnet as mx
        from mxnet import autograd, gluon

        from resnet_mxnet.layers import exact_decay

        with exact_decay(net):  # MXNet's own is off by 1e-7
            with autograd.record():
                logits = net(mx.np.array(x, dtype="float64"))
                loss = gluon.loss.SoftmaxCrossEntropyLoss()(logits, mx.np.array(y, dtype="int32")).mean()
            loss.backward()
        parameters = net._collect_params_with_prefix()
        return (
            logits.asnumpy(),
            {name: p.grad().asnumpy() for name, p in parameters.items() if p.grad_req != "null"},
            {name: p.data().asnumpy() for name, p in parameters.items() if "running" in name},
        )

    def load(path: Path) -> None:
        net.load_parameters(str(path), cast_dtype=True, dtype_source="saved")
        net.cast("float64")

    return Source(".params", load, lambda path: net.save_parameters(str(path)), training)


def flax_example(arch: Architecture) -> Source:
    """The network of Flax's ImageNet example."""
    import jax
    import optax
    from flax import serialization
    from flax.traverse_util import flatten_dict

    from resnet_jax.families import ExampleResNet, variables_of

    net = ExampleResNet(arch)
    state = [variables_of(net, arch)]

    def training(x: NDArray, y: NDArray) -> tuple[NDArray, Tensors, Tensors]:
        def loss(params: Any) -> Any:
            variables = {**state[0], "params": params}
            Y_hat, updates = net.apply(variables, nhwc(x), train=True, mutable=["batch_stats"])
            loss = optax.softmax_cross_entropy_with_integer_labels(Y_hat, y).mean()
            return loss, (Y_hat, updates["batch_stats"])

        with jax.enable_x64(True):
            gradients, (Y_hat, running) = jax.jit(jax.grad(loss, has_aux=True))(state[0]["params"])
        by_name = [
            {name: np.asarray(leaf) for name, leaf in flatten_dict(tree, sep="/").items()}
            for tree in (gradients, running)
        ]
        return np.asarray(Y_hat), *by_name

    def load(path: Path) -> None:
        state[0] = serialization.from_bytes(state[0], path.read_bytes())

    def save(path: Path) -> None:
        path.write_bytes(serialization.to_bytes(state[0]))

    return Source(".msgpack", load, save, training)
