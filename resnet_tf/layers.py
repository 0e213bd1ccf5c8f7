"""Where Keras is told to agree with the other three. Every trap is named, with its reason.

On a GPU, the blocks and networks used without the contract compute float32 as TensorFlow does by default,
in TF32; call `use_full_float32()` first where they shall agree with the others.
"""

import inspect
import math
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import keras
import tensorflow as tf
from keras import layers, ops
from tensorflow import Tensor

from common.architecture import check_padding, parts_of_groups

# Trap: TensorFlow takes the whole GPU at the start; another framework may need some of it.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")

serializable = keras.saving.register_keras_serializable("resnet_tf")


class Model(keras.Model):
    """A Keras model that is saved with the arguments of its constructor, and with its precision.

    A class derived from it is registered under the package that defines it.

    Trap: where a constructor needs an argument, Keras records none; where none, it records the defaults.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        keras.saving.register_keras_serializable(cls.__module__.split(".")[0])(cls)

    def __new__(cls, *args: Any, **options: Any) -> Self:
        model = super().__new__(cls, *args, **options)
        _, *names = inspect.signature(cls.__init__).parameters
        vars(model)["_arguments"] = dict(zip(names, args, strict=False)) | options
        return model

    def get_config(self) -> dict[str, Any]:
        return {**self._arguments, "dtype": self.dtype_policy.name}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        arguments = dict(config)
        with precision(arguments.pop("dtype")):
            return cls(**arguments)


@serializable
class Conv2D(layers.Conv2D):
    """Convolution over (N, H, W, C).

    `padding` is "symmetric", kernel_size // 2 zeros on every side; Keras' "same"; or a number of zeros.

    Trap: Keras' "same" at stride 2 on an even size pads 0 before and 1 after. At stride 1 it is these
    zeros, and saves a copy of the images.
    Keras draws from Glorot uniform and sets biases to 0, as the others are told to.
    """

    def __init__(self, filters: int, kernel_size: int, padding: int | str = 0, **options) -> None:
        check_padding(padding, zeros=True)
        super().__init__(filters, kernel_size, padding="same" if padding == "same" else "valid", **options)
        self.border = padding
        if padding == "symmetric":
            padding = self.kernel_size[0] // 2
        reach = [rate * (size - 1) for rate, size in zip(self.dilation_rate, self.kernel_size, strict=True)]
        if self.strides == (1, 1) and reach == [2 * padding, 2 * padding]:
            self.padding = "same"
        self.zeros = layers.Identity(dtype=self.dtype_policy)
        if padding and self.padding == "valid":
            self.zeros = layers.ZeroPadding2D(padding, dtype=self.dtype_policy)

    def call(self, X: Tensor) -> Tensor:
        return super().call(self.zeros(X))

    def convolution_op(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        """Groups put together into parts of 32 channels or more, with zeros between them in the kernels.

        Trap: TensorFlow has no gradient of a grouped convolution on a CPU; Keras leaves it to XLA, whose
        takes 1,000 times as long as PyTorch's.
        """
        convolve = super().convolution_op
        if self.groups == 1 or not runs_on_cpu(inputs):
            return convolve(inputs, kernel)
        (height, width, narrow, features), groups = kernel.shape, self.groups
        parts = parts_of_groups(groups, groups * narrow)
        each = groups // parts
        kernels = tf.reshape(kernel, (height, width, narrow, parts, each, features // groups))
        kernels = tf.einsum("hwcpgf,Gg->phwGcgf", kernels, tf.eye(each, dtype=inputs.dtype))
        kernels = tf.reshape(kernels, (parts, height, width, each * narrow, features // parts))
        pairs = zip(tf.split(inputs, parts, -1), tf.unstack(kernels), strict=True)
        return tf.concat([convolve(X, kernel) for X, kernel in pairs], -1)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return super().compute_output_shape(self.zeros.compute_output_shape(input_shape))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "padding": self.border}


@serializable
class BatchNormalizationOverWorkers(layers.BatchNormalization):
    """Batch norm over the batch of all workers.

    Trap: by itself each worker normalises its share of the batch, and is another network. Keras'
    `synchronized=True` computes E[x²] − E[x]², which cancels where the mean is large.
    """

    def _moments(self, inputs: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        worker = tf.distribute.get_replica_context()
        axes = self._reduction_axes
        mean = worker.all_reduce("MEAN", tf.reduce_mean(inputs, axes, keepdims=True))
        variance = worker.all_reduce("MEAN", tf.reduce_mean(tf.square(inputs - mean), axes))
        return tf.squeeze(mean, axes), variance


def BatchNormalization(**options: Any) -> layers.BatchNormalization:
    """Trap: Keras adds 1e-3 to the variance, and its running statistics keep 0.99 of the old value."""
    several = tf.distribute.get_strategy().num_replicas_in_sync > 1
    kind = BatchNormalizationOverWorkers if several else layers.BatchNormalization
    return kind(**{"momentum": 0.9, "epsilon": 1e-5, **options})


@serializable
class MaxPool2D(layers.Layer):
    """3×3 max-pool at stride 2 over (N, H, W, C); `padding`, of −∞, is "symmetric" or "same".

    Trap: XLA, in which Keras' `fit` compiles on a GPU, refuses a pool that pads by itself.
    """

    def __init__(self, padding: str = "symmetric", **options: Any) -> None:
        check_padding(padding)
        super().__init__(**options)
        self.border = padding

    def call(self, X: Tensor) -> Tensor:
        height, width = tf.unstack(tf.shape(X)[1:3])
        # "same" pads nothing above an even height, left of an even width
        top, left = (height % 2, width % 2) if self.border == "same" else (1, 1)
        X = tf.pad(X, [[0, 0], [top, 1], [left, 1], [0, 0]], constant_values=-math.inf)
        return tf.nn.max_pool2d(X, 3, 2, "VALID")

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "padding": self.border}


@serializable
class SGD(keras.optimizers.Optimizer):
    """SGD whose velocity and weight decay mean what they mean in the other three.

    With gradient g, parameter w and velocity v: g += weight_decay · w;  v = momentum · v + g;  w −= lr · v.
    What `no_decay_norm` and `lr_backbone` are, `common.recipe` says.

    Trap: Keras' own keeps −lr · v, so that a new rate would act on old gradients too late; its weight decay
    acts beside the gradient, and without momentum; and its `ops.cast` rounds a Python float to float32,
    even in a float64 model. Of several workers it adds the gradients up, where the loss is a mean.
    """

    def __init__(
        self,
        learning_rate: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        no_decay_norm: bool = False,
        lr_backbone: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, **options)
        self.figures = {"momentum": momentum, "weight_decay": weight_decay}
        self.no_decay_norm, self.lr_backbone = no_decay_norm, lr_backbone
        # Variables, as the learning rate is, so that another value is no other program; None costs nothing.
        dtype = keras.config.floatx()
        self.momentum = tf.Variable(momentum, trainable=False, dtype=dtype) if momentum else None
        self.l2 = tf.Variable(weight_decay, trainable=False, dtype=dtype) if weight_decay else None

    def build(self, variables: list[keras.Variable]) -> None:
        if not self.built:
            super().build(variables)
            has_velocity = self.momentum is not None
            self.velocities = self.add_optimizer_variables(variables, "velocity") if has_velocity else []
            self.shares = [1.0 if "/last/" in v.path else self.lr_backbone for v in variables]  # of the rate

    def apply(self, grads: Sequence[Tensor], trainable_variables: Any = None) -> None:
        workers = tf.distribute.get_strategy().num_replicas_in_sync
        if workers > 1:
            grads = [gradient / workers for gradient in grads]
        super().apply(grads, trainable_variables)

    def restart(self, momentum: float, weight_decay: float) -> None:
        """Begin anew from zero velocity; a figure that was above 0 may be another above 0."""
        self.figures = {"momentum": momentum, "weight_decay": weight_decay}
        if self.momentum is not None:
            self.momentum.assign(momentum)
        if self.l2 is not None:
            self.l2.assign(weight_decay)
        for velocity in self.velocities:
            velocity.assign(tf.zeros_like(velocity))

    def update_step(self, gradient: Tensor, variable: tf.Variable, learning_rate: Tensor) -> None:
        rate = ops.cast(learning_rate, variable.dtype)
        if self.lr_backbone != 1:
            rate *= self.shares[self._get_variable_index(variable)]
        if self.l2 is not None and not (self.no_decay_norm and len(variable.shape) == 1):
            gradient = gradient + tf.cast(self.l2, variable.dtype) * variable
        if self.momentum is not None:
            velocity = self.velocities[self._get_variable_index(variable)].value
            momentum = tf.cast(self.momentum, variable.dtype)
            tf.raw_ops.ResourceApplyMomentum(
                var=variable.handle, accum=velocity.handle, lr=rate, grad=gradient, momentum=momentum
            )
        else:
            tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=rate, delta=gradient)

    def get_config(self) -> dict[str, Any]:
        shares = {"no_decay_norm": self.no_decay_norm, "lr_backbone": self.lr_backbone}
        return {**super().get_config(), **self.figures, **shares}


def runs_on_cpu(X: Tensor) -> bool:
    """Whether TensorFlow is to compute here what it computes of X: in a graph as well as around it."""
    with tf.init_scope():
        around = tf.constant(0.0).device
    return "CPU" in (tf.identity(X).device or around)


one_precision = threading.RLock()


@contextmanager
def precision(policy: str) -> Iterator[None]:
    """Trap: Keras makes variables, the learning rate among them, in one global type; set it for a while.

    It is the whole process's: of two threads that set it at once, one would leave the other's behind.
    """
    with one_precision:
        before, floatx = keras.config.dtype_policy(), keras.config.floatx()
        try:
            keras.config.set_dtype_policy(policy)
            keras.config.set_floatx(keras.config.dtype_policy().variable_dtype)
            yield
        finally:
            keras.config.set_dtype_policy(before)
            keras.config.set_floatx(floatx)


def use_full_float32(full: bool = True) -> None:
    """Trap: on a GPU, TensorFlow rounds float32 products to TF32, ten bits of mantissa, by default.

    The contract calls this for a model on a GPU. Networks used directly need the same line.
    With `full` false it may.
    """
    tf.config.experimental.enable_tensor_float_32_execution(not full)
