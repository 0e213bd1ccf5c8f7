"""What our speed is held against: TensorFlow's own matrix product and a functional Keras model."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import layers
from numpy.typing import NDArray

from common.architecture import Architecture, Block
from common.backend import array_type
from common.layout import nhwc
from resnet_tf.layers import precision, use_full_float32


class Reference:
    """The network as Keras users write it, trained by `train_on_batch`.

    As in `keras.applications`, padding is "same", convolutions have no bias and the shortcut has a batch
    norm; the stride of a bottleneck is on its 3×3 convolution, as in ours.

    Args:
        name: of the network.
        arch: its stages, channels and classes.
        dtype: "float32", "float64", "bfloat16" or "tf32".
        device: "cpu" or "gpu".
        compile: Keras always does.
    """

    label = "Keras functional"

    def __init__(self, name: str, arch: Architecture, dtype: str, device: str, compile: bool = True) -> None:
        if device == "gpu":
            use_full_float32(dtype != "tf32")
        self._device = f"/{device.upper()}:0"
        policy = "mixed_bfloat16" if dtype == "bfloat16" else array_type(dtype)
        with precision(policy), tf.device(self._device):
            images = keras.Input((None, None, arch.in_channels))
            X = convolve(images, arch.stem_channels, 7, strides=2)
            X = layers.MaxPooling2D(3, strides=2, padding="same")(layers.ReLU()(X))
            for block in (block for stage in arch.blocks() for block in stage):
                X = residual(X, block)
            logits = layers.Dense(arch.num_classes, dtype="float32" if dtype == "bfloat16" else None)(
                layers.GlobalAveragePooling2D()(X)
            )
            self._net = keras.Model(images, logits, name=name)
            self._settings: tuple[float, float] | None = None

    def train_step(self, x: NDArray, y: NDArray, lr: float, momentum: float = 0.0) -> float:
        """One step of SGD on images (N, C, H, W) and labels (N,); returns the loss before it."""
        with tf.device(self._device):
            if self._settings != (lr, momentum):
                self._settings = (lr, momentum)
                loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
                optimizer = keras.optimizers.SGD(lr, momentum)
                self._net.compile(optimizer, loss)
            return float(self._net.train_on_batch(nhwc(x), y))

    def predict(self, x: NDArray) -> NDArray:
        """Logits (N, classes) of images (N, C, H, W)."""
        with tf.device(self._device):
            return self._net.predict_on_batch(nhwc(x))


def convolve(X: Any, num_channels: int, kernel_size: int, strides: int = 1, groups: int = 1) -> Any:
    """A convolution without bias, and its batch norm."""
    conv = layers.Conv2D(
        num_channels, kernel_size, strides=strides, padding="same", groups=groups, use_bias=False
    )
    return layers.BatchNormalization()(conv(X))


def residual(X: Any, block: Block) -> Any:
    """A block of two 3×3 convolutions, or a bottleneck."""
    if block.groups is None:
        Y = layers.ReLU()(convolve(X, block.num_channels, 3, block.strides))
        Y = convolve(Y, block.num_channels, 3)
    else:
        Y = layers.ReLU()(convolve(X, block.bot_channels, 1))
        Y = layers.ReLU()(
            convolve(Y, block.bot_channels, 3, block.strides, block.bot_channels // block.groups)
        )
        Y = convolve(Y, block.num_channels, 1)
    if X.shape[-1] != block.num_channels or block.strides != 1:
        X = convolve(X, block.num_channels, 1, block.strides)
    return layers.ReLU()(layers.Add()([X, Y]))


def matrix_product(size: int, dtype: str, device: str) -> Callable[[], None]:
    """A function that multiplies two size × size matrices once, and waits for the result."""
    if device == "gpu":
        use_full_float32(dtype != "tf32")
    with tf.device(f"/{device.upper()}:0"):
        A = tf.ones((size, size), dtype.replace("tf32", "float32"))

        def multiply() -> None:
            tf.matmul(A, A)[0, 0].numpy()

    return multiply


def device_memory() -> int:
    """Bytes: the most that this process has used of the GPU."""
    return tf.config.experimental.get_memory_info("GPU:0")["peak"]
