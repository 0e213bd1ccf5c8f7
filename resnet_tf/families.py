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
    """The ResNet of keras.applications, in float64."""

    def stages(X: Any) -> Any:
        for k, (depth, channels) in enumerate(arch.stages):
            strides = 2 if k else 1
            X = resnet.stack_residual_blocks_v1(X, channels // 4, depth, strides, name=f"conv{k + 2}")
        return X

    with precision("float64"):
        return resnet.ResNet(
            stages,
            preact=False,
            use_bias=True,
            weights=None,
            input_shape=(None, None, arch.in_channels),
            classes=arch.num_classes,
            classifier_activation=None,
        )


NETWORKS: dict[str, Callable[[Architecture], keras.Model]] = {"keras": keras_resnet}


def own_network(family: str, arch: Architecture, path: Path) -> Callable[[NDArray], NDArray]:
    """The family's own network with the weights of a file, in float64: images (N, C, H, W) → logits.

    Raises:
        ImportError: if its library is not installed.
    """
    net = NETWORKS[family](arch)
    net.load_weights(path)
    return lambda x: net(nhwc(x), training=False).numpy()
