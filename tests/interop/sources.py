"""Other frameworks' own networks, built, loaded and saved by their own libraries, to hold ours against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.architecture import Architecture, Block
from common.layout import nhwc

Tensors = dict[str, NDArray]


@dataclass(frozen=True)
class Source:
    """A network of a family.

    Attributes:
        suffix: of the files it loads and saves.
        load, save: by its own loader and writer.
        logits: of images (N, C, H, W), with running statistics.
        training: logits, gradients and running statistics after a pass over images and labels, by its names.
    """

    suffix: str
    load: Callable[[Path], None]
    save: Callable[[Path], None]
    logits: Callable[[NDArray], NDArray]
    training: Callable[[NDArray, NDArray], tuple[NDArray, Tensors, Tensors]]


def keras_applications(arch: Architecture) -> Source:
    """`keras.applications`' ResNet, with stages of any width and depth."""
    layers = import_module("resnet_tf.layers")
    import keras
    import tensorflow as tf
    from keras.src.applications import resnet

    def stages(X: Any) -> Any:
        for k, (depth, channels) in enumerate(arch.stages):
            strides = 2 if k else 1
            X = resnet.stack_residual_blocks_v1(X, channels // 4, depth, strides, name=f"conv{k + 2}")
        return X

    with layers.precision("float64"):
        net = resnet.ResNet(
            stages,
            preact=False,
            use_bias=True,
            weights=None,
            input_shape=(None, None, arch.in_channels),
            classes=arch.num_classes,
            classifier_activation=None,
        )

    def training(x: NDArray, y: NDArray) -> tuple[NDArray, Tensors, Tensors]:
        with tf.GradientTape() as tape:
            logits = net(nhwc(x), training=True)
            loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True))
        gradients = tape.gradient(loss, net.trainable_variables)
        return (
            logits.numpy(),
            {v.path: g.numpy() for v, g in zip(net.trainable_variables, gradients, strict=True)},
            {v.path: v.numpy() for v in net.non_trainable_variables if "moving" in v.path},
        )

    return Source(
        ".h5",
        lambda path: net.load_weights(path),
        lambda path: net.save_weights(path.with_suffix(".weights.h5")),
        lambda x: np.asarray(net(nhwc(x), training=False)),
        training,
    )


def gluon_zoo(arch: Architecture) -> Source:
    """Gluon's `ResNetV1`, with stages of any width and depth."""
    import_module("resnet_mxnet")
    import mxnet as mx
    from mxnet import autograd, gluon
    from mxnet.gluon.model_zoo import vision

    block = vision.BasicBlockV1 if arch.block == "residual" else vision.BottleneckV1
    depths, channels = zip(*arch.stages, strict=True)
    net = vision.ResNetV1(block, list(depths), [arch.stem_channels, *channels], classes=arch.num_classes)
    net.initialize()
    net(mx.np.zeros((1, arch.in_channels, 32, 32)))
    net.cast("float64")

    def training(x: NDArray, y: NDArray) -> tuple[NDArray, Tensors, Tensors]:
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

    return Source(
        ".params",
        lambda path: net.load_parameters(str(path)),
        lambda path: net.save_parameters(str(path)),
        lambda x: net(mx.np.array(x, dtype="float64")).asnumpy(),
        training,
    )


def flax_example(arch: Architecture) -> Source:
    """The network of Flax's `examples/imagenet/models.py`, by its names."""
    from functools import partial

    import jax
    import optax
    from flax import linen as nn
    from flax import serialization
    from flax.traverse_util import flatten_dict

    class ResNetBlock(nn.Module):
        block: Block
        conv: Any
        norm: Any

        @nn.compact
        def __call__(self, X: Any) -> Any:
            filters, strides = self.block.num_channels, (self.block.strides,) * 2
            Y = nn.relu(self.norm()(self.conv(filters, (3, 3), strides)(X)))
            Y = self.norm(scale_init=nn.initializers.zeros_init())(self.conv(filters, (3, 3))(Y))
            if self.block.use_1x1conv:
                X = self.norm(name="norm_proj")(self.conv(filters, (1, 1), strides, name="conv_proj")(X))
            return nn.relu(X + Y)

    class BottleneckResNetBlock(ResNetBlock):
        @nn.compact
        def __call__(self, X: Any) -> Any:
            filters, strides = self.block.num_channels, (self.block.strides,) * 2
            Y = nn.relu(self.norm()(self.conv(filters // 4, (1, 1))(X)))
            Y = nn.relu(self.norm()(self.conv(filters // 4, (3, 3), strides)(Y)))
            Y = self.norm(scale_init=nn.initializers.zeros_init())(self.conv(filters, (1, 1))(Y))
            if self.block.use_1x1conv:
                X = self.norm(name="norm_proj")(self.conv(filters, (1, 1), strides, name="conv_proj")(X))
            return nn.relu(X + Y)

    class ResNet(nn.Module):
        @nn.compact
        def __call__(self, X: Any, train: bool) -> Any:
            conv = partial(nn.Conv, use_bias=False, dtype="float64")
            norm = partial(
                nn.BatchNorm,
                use_running_average=not train,
                momentum=0.9,
                epsilon=1e-5,
                dtype="float64",
                use_fast_variance=False,
            )
            X = conv(arch.stem_channels, (7, 7), (2, 2), padding=[(3, 3), (3, 3)], name="conv_init")(X)
            X = nn.max_pool(nn.relu(norm(name="bn_init")(X)), (3, 3), strides=(2, 2), padding="SAME")
            kind = ResNetBlock if arch.block == "residual" else BottleneckResNetBlock
            for block in (block for stage in arch.blocks() for block in stage):
                X = kind(block, conv, norm)(X)
            return nn.Dense(arch.num_classes, dtype="float64")(X.mean((1, 2)))

    net = ResNet()
    with jax.enable_x64(True):
        X = np.zeros((1, 32, 32, arch.in_channels))
        variables = jax.jit(partial(net.init, train=False))(jax.random.key(0), X)
        state = [jax.tree.map(lambda leaf: np.asarray(leaf, "float64"), variables)]

    def logits(x: NDArray) -> NDArray:
        with jax.enable_x64(True):
            return np.asarray(jax.jit(partial(net.apply, train=False))(state[0], nhwc(x)))

    def training(x: NDArray, y: NDArray) -> tuple[NDArray, Tensors, Tensors]:
        def loss(params: Any) -> Any:
            variables = {**state[0], "params": params}
            Y_hat, updates = net.apply(variables, nhwc(x), train=True, mutable=["batch_stats"])
            loss = optax.softmax_cross_entropy_with_integer_labels(Y_hat, y).mean()
            return loss, (Y_hat, updates["batch_stats"])

        with jax.enable_x64(True):
            gradients, (Y_hat, running) = jax.jit(jax.grad(loss, has_aux=True))(state[0]["params"])
        flat = [
            {name: np.asarray(leaf) for name, leaf in flatten_dict(tree, sep="/").items()}
            for tree in (gradients, running)
        ]
        return np.asarray(Y_hat), *flat

    def load(path: Path) -> None:
        state[0] = serialization.from_bytes(state[0], path.read_bytes())

    def save(path: Path) -> None:
        path.write_bytes(serialization.to_bytes(state[0]))

    return Source(".msgpack", load, save, logits, training)
