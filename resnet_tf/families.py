"""Other networks in Keras, built and loaded by their own libraries, for ours to be held against."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
from keras.src.applications import resnet
from numpy.typing import NDArray

from common.architecture import Architecture
from common.layout import nhwc
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


NETWORKS: dict[str, Callable[[Architecture], keras.Model]] = {"keras": keras_resnet}


def own_network(family: str, arch: Architecture, path: Path) -> Callable[[NDArray], NDArray]:
    """The family's own network with the weights of a file, in float64: images (N, C, H, W) → logits.

    Raises:
        ImportError: if its library is not installed.
    """
    net = NETWORKS[family](arch)
    net.load_weights(path)
    return lambda x: net(nhwc(x), training=False).numpy()
