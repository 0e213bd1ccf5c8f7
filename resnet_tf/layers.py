"""Where Keras is told to agree with the other three. Every trap is named, with its reason."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from tensorflow import Tensor

# Trap: TensorFlow takes the whole GPU at the start; another framework may need some of it.
for gpu in tf.config.list_physical_devices("GPU"):
    tf.config.experimental.set_memory_growth(gpu, True)


@keras.saving.register_keras_serializable("resnet_tf")
class Conv2D(layers.Conv2D):
    """Convolution over (N, H, W, C) with `padding` zeros on every side.

    Trap: Keras' "same" at stride 2 on an even size pads 0 before and 1 after.
    Keras draws from Glorot uniform and sets biases to 0, as the others are told to.
    """

    def __init__(self, filters: int, kernel_size: int, padding: int = 0, **options) -> None:
        super().__init__(filters, kernel_size, padding="valid", **options)
        self.zeros = layers.ZeroPadding2D(padding)

    def call(self, X: Tensor) -> Tensor:
        return super().call(self.zeros(X))

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return super().compute_output_shape(self.zeros.compute_output_shape(input_shape))


# Trap: Keras adds 1e-3 to the variance, and its running statistics keep 0.99 of the old value.
BatchNormalization = partial(layers.BatchNormalization, momentum=0.9, epsilon=1e-5)


class MaxPool2D(layers.Layer):
    """3×3 max-pool at stride 2 with one pixel of −∞ on every side; "same" would pad one side only."""

    def call(self, X: Tensor) -> Tensor:
        return tf.nn.max_pool2d(X, 3, 2, padding=[[0, 0], [1, 1], [1, 1], [0, 0]])


class SGD(keras.optimizers.SGD):
    """SGD whose velocity and weight decay mean what they mean in the other three.

    Trap: Keras' own weight decay acts beside the gradient; here it is added to it, and so has momentum.
    Trap: Keras rounds a momentum that is a Python float to float32, even in a float64 model.
    """

    def __init__(self, learning_rate: float, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        super().__init__(learning_rate, momentum=np.float64(momentum))
        self.l2 = weight_decay

    def update_step(self, gradient: Tensor, variable: keras.Variable, learning_rate: Tensor) -> None:
        super().update_step(gradient + self.l2 * variable, variable, learning_rate)

    def change_learning_rate(self, lr: float) -> None:
        """Trap: Keras keeps −lr · velocity, so that a new rate would act on old gradients too late."""
        rate = np.asarray(lr, self.learning_rate.dtype)
        if rate != self.learning_rate.numpy():
            self._rescale(rate / self.learning_rate.numpy())
            self.learning_rate.assign(rate)

    @tf.function
    def _rescale(self, ratio: Tensor) -> None:
        for velocity in self.momentums:
            velocity.assign(velocity * ratio)


@contextmanager
def precision(dtype: str) -> Iterator[None]:
    """Trap: Keras makes variables, the learning rate among them, in one global type; set it for a while."""
    policy, floatx = keras.config.dtype_policy(), keras.config.floatx()
    keras.config.set_dtype_policy("mixed_bfloat16" if dtype == "bfloat16" else dtype)
    keras.config.set_floatx("float32" if dtype == "bfloat16" else dtype)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)
        keras.config.set_floatx(floatx)


def use_full_float32() -> None:
    """Trap: on a GPU, TensorFlow rounds float32 products to TF32, ten bits of mantissa, by default."""
    tf.config.experimental.enable_tensor_float_32_execution(False)
