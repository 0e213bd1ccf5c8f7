"""Other networks in Flax, built and loaded by their own libraries, for ours to be held against."""

import random
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import jax
import numpy as np
from flax import linen as nn
from flax import serialization
from jax import Array
from numpy.typing import NDArray

from common.architecture import Architecture, Block
from common.interop.families import hugging_face_config
from common.layout import nhwc


class ResNetBlock(nn.Module):
    """The basic block of Flax's ImageNet example."""

    block: Block
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, X: Array) -> Array:
        filters, strides = self.block.num_channels, (self.block.strides,) * 2
        Y = nn.relu(self.norm()(self.conv(filters, (3, 3), strides)(X)))
        Y = self.norm()(self.conv(filters, (3, 3))(Y))
        if self.block.use_1x1conv:
            X = self.norm(name="norm_proj")(self.conv(filters, (1, 1), strides, name="conv_proj")(X))
        return nn.relu(X + Y)


class BottleneckResNetBlock(ResNetBlock):
    """The bottleneck of Flax's ImageNet example."""

    @nn.compact
    def __call__(self, X: Array) -> Array:
        filters, strides = self.block.num_channels, (self.block.strides,) * 2
        Y = nn.relu(self.norm()(self.conv(filters // 4, (1, 1))(X)))
        Y = nn.relu(self.norm()(self.conv(filters // 4, (3, 3), strides)(Y)))
        Y = self.norm()(self.conv(filters, (1, 1))(Y))
        if self.block.use_1x1conv:
            X = self.norm(name="norm_proj")(self.conv(filters, (1, 1), strides, name="conv_proj")(X))
        return nn.relu(X + Y)


class ExampleResNet(nn.Module):
    """The network of Flax's ImageNet example (flax/examples/imagenet/models.py), by its names, in float64.

    It is no library that could be installed, so it is written out. The running variance is taken as ours
    is: the example's own way loses digits where the mean is large.
    """

    arch: Architecture

    @nn.compact
    def __call__(self, X: Array, train: bool) -> Array:
        conv = partial(nn.Conv, use_bias=False, dtype="float64")
        norm = partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            use_fast_variance=False,
            dtype="float64",
        )
        X = conv(self.arch.stem_channels, (7, 7), (2, 2), padding=[(3, 3), (3, 3)], name="conv_init")(X)
        X = nn.max_pool(nn.relu(norm(name="bn_init")(X)), (3, 3), strides=(2, 2), padding="SAME")
        kind = ResNetBlock if self.arch.block == "residual" else BottleneckResNetBlock
        for block in (block for stage in self.arch.blocks() for block in stage):
            X = kind(block, conv, norm)(X)
        return nn.Dense(self.arch.num_classes, dtype="float64")(X.mean((1, 2)))


@cache
def d2l() -> ModuleType:
    """The book's library for JAX, without what it imports for its data sets, which no block uses.

    While it is imported it draws a key, from randint(0, 1e6), which Python refuses from 3.12 on.

    Raises:
        ImportError: if it is not installed.
    """
    jax.random.PRNGKey(0)  # compiles it first: JAX's cache on disk would stumble over what stands in
    randint = random.randint
    absent = {"tensorflow", "tensorflow_datasets"} - sys.modules.keys()
    sys.modules.update({name: ModuleType(name) for name in absent})
    try:
        with patch("random.randint", lambda low, high: randint(low, int(high))):
            from d2l import jax as d2l
    finally:
        for name in absent:
            del sys.modules[name]
    return d2l


class Chapter(nn.Module):
    """The chapter's ResNet, of d2l's blocks ("Dive into Deep Learning", sections 8.6.3 and 8.6.5)."""

    arch: Architecture
    training: bool

    def setup(self) -> None:
        kind = d2l().Residual if self.arch.block == "residual" else d2l().ResNeXtBlock
        stem = [
            nn.Conv(self.arch.stem_channels, kernel_size=(7, 7), strides=(2, 2), padding="same"),
            nn.BatchNorm(not self.training),
            nn.relu,
            lambda X: nn.max_pool(X, window_shape=(3, 3), strides=(2, 2), padding="same"),
        ]
        stages = [
            [kind(**block.chapter_options, training=self.training) for block in blocks]
            for blocks in self.arch.blocks()
        ]
        last = [
            lambda X: nn.avg_pool(X, window_shape=X.shape[1:3]),
            lambda X: X.reshape((X.shape[0], -1)),
            nn.Dense(self.arch.num_classes),
        ]
        self.net = nn.Sequential([nn.Sequential(layers) for layers in (stem, *stages, last)])

    def __call__(self, X: Array) -> Array:
        return self.net(X)


class D2LResNet(nn.Module):
    """The same, told in the call whether it trains, as the other networks here are."""

    arch: Architecture

    @nn.compact
    def __call__(self, X: Array, train: bool) -> Array:
        chapter = Chapter(self.arch, train)
        nn.share_scope(self, chapter)
        return chapter(X)


def transformers_resnet(arch: Architecture, path: Path) -> tuple[Any, Any]:
    """Hugging Face's ResNet, and its variables of a folder, or of a .msgpack file alone, in float64.

    Its own call takes images in float32 only; its `module` takes any.
    """
    from transformers import FlaxResNetForImageClassification, ResNetConfig

    config = None if path.is_dir() else ResNetConfig(**hugging_face_config(arch))
    with jax.enable_x64(True):
        return FlaxResNetForImageClassification.from_pretrained(
            path, config=config, input_shape=(1, 64, 64, arch.in_channels), dtype="float64", _do_init=False
        )


NETWORKS: dict[str, Callable[[Architecture], nn.Module]] = {
    "flax-example": ExampleResNet,
    "d2l-jax": D2LResNet,
}


def variables_of(net: nn.Module, arch: Architecture) -> Any:
    """The trees of a network's parameters and statistics, in float64, for a file to fill."""
    X = np.zeros((1, 64, 64, arch.in_channels))
    shapes = jax.eval_shape(partial(net.init, train=False), jax.random.key(0), X)
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape), shapes)


def own_network(family: str, arch: Architecture, path: Path) -> Callable[[NDArray], NDArray]:
    """The family's own network with the variables of a file, in float64: images (N, C, H, W) → logits.

    Raises:
        ImportError: if its library is not installed.
    """
    if family == "transformers-flax":
        hugging_face, variables = transformers_resnet(arch, path)
        apply = jax.jit(lambda variables, X: hugging_face.module.apply(variables, X).logits)
    else:
        net = NETWORKS[family](arch)
        variables = serialization.from_bytes(variables_of(net, arch), path.read_bytes())
        apply = jax.jit(partial(net.apply, train=False))
    # Of a file in float32, too: Flax takes the root of a variance in the variance's own type.
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, "float64"), variables)

    def logits(x: NDArray) -> NDArray:
        with jax.enable_x64(True):
            return np.asarray(apply(variables, nhwc(x)))

    return logits
