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
from functools import partial
from typing import Any, Self

import keras
import tensorflow as tf
from keras import layers, ops
from tensorflow import Tensor

from common.architecture import check_padding, parts_of_groups
from common.errors import BadInput

# Trap: TensorFlow takes the whole GPU at the start; another framework may need some of it.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")

serializable = keras.saving.register_keras_serializable("resnet_tf")


class Model(keras.Model):
    """A Keras model that is saved with the arguments of its constructor, and with what its layers are set to.

    A class derived from it is registered under the package that defines it.

    Trap: where a constructor needs an argument, Keras records none; where none, it records the defaults. Of
    the layers within it records neither names, nor which are frozen, nor their precision.
    """

    _state: tuple[str, ...] = ("name", "trainable")  # attributes that may change after the constructor

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        keras.saving.register_keras_serializable(cls.__module__.split(".")[0])(cls)

    def __new__(cls, *args: Any, **options: Any) -> Self:
        model = super().__new__(cls, *args, **options)
        _, *positional = inspect.signature(cls.__init__).bind_partial(model, *args).arguments.items()
        vars(model)["_arguments"] = dict(positional) | options
        return model

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make the variables of all layers, for inputs of this shape."""
        self.compute_output_shape(input_shape)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return self.compute_output_spec(keras.KerasTensor(input_shape, self.compute_dtype)).shape

    def compute_output_spec(self, *args: Any, **options: Any) -> keras.KerasTensor:
        # Trap: by default Keras takes the output for one of the type that is computed in.
        return keras.Operation.compute_output_spec(self, *args, **options)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, as they were given, and what is set now."""
        config = {name: getattr(self, name) for name in self._state}
        config["dtype"] = keras.dtype_policies.serialize(self.dtype_policy)
        config["sublayers"] = []
        for layer in sublayers(self):
            settings = {"name": layer.name, "trainable": layer.trainable}
            if layer.dtype_policy != self.dtype_policy:
                settings["dtype"] = keras.dtype_policies.serialize(layer.dtype_policy)
            config["sublayers"].append(settings)
        return self._arguments | config

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        arguments = dict(config)
        settings = arguments.pop("sublayers", [])
        bound = inspect.signature(cls.__init__).bind_partial(None)
        state = {name: arguments.pop(name) for name in (*cls._state, "dtype") if name in arguments}
        for name in bound.signature.parameters:
            if name in state or name in arguments:
                bound.arguments[name] = arguments.pop(name) if name in arguments else state[name]
        with policy(state.pop("dtype", None)):
            model = cls(*bound.args[1:], **bound.kwargs, **arguments)
        for name, value in state.items():
            setattr(model, name, value)
        for layer, setting in zip(sublayers(model), settings, strict=False):
            layer.name, layer.trainable = setting["name"], setting["trainable"]
            if "dtype" in setting:
                layer.dtype_policy = keras.dtype_policies.get(setting["dtype"])
        return model


def sublayers(layer: layers.Layer) -> Iterator[layers.Layer]:
    """All layers within one, each before those within it; without the input that a `Sequential` is given."""
    for inner in layer._flatten_layers(include_self=False, recursive=False):
        if not isinstance(inner, layers.InputLayer):
            yield inner
            yield from sublayers(inner)


@serializable
class Conv2D(layers.Conv2D):
    """Convolution over (N, H, W, C), whatever Keras is set to; `data_format` makes it one over (N, C, H, W).

    `padding` is "symmetric", kernel_size // 2 zeros on every side; Keras' "same"; or a number of zeros, or
    one for the height and one for the width.

    Trap: Keras' "same" at stride 2 on an even size pads 0 before and 1 after. At stride 1 it is these
    zeros, and saves a copy of the images.
    Keras draws from Glorot uniform and sets biases to 0, as the others are told to.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, int],
        padding: int | str | tuple[int, int] = 0,
        data_format: str = "channels_last",
        **options: Any,
    ) -> None:
        check_padding(padding, zeros=True)
        keras_padding = "same" if padding == "same" else "valid"
        super().__init__(filters, kernel_size, padding=keras_padding, data_format=data_format, **options)
        self.border = padding
        if padding == "symmetric":
            padding = tuple(size // 2 for size in self.kernel_size)
        # above and below, left and right
        self.zeros = layers.ZeroPadding2D(0 if padding == "same" else padding).padding
        reach = [rate * (size - 1) for rate, size in zip(self.dilation_rate, self.kernel_size, strict=True)]
        if self.strides == (1, 1) and self.zeros == tuple((n // 2, n - n // 2) for n in reach):
            self.padding, self.zeros = "same", ((0, 0), (0, 0))

    def convolution_op(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        """Trap: TensorFlow convolves (N, C, H, W) on GPUs alone."""
        if self.data_format == "channels_first":
            return tf.transpose(self._convolve(tf.transpose(inputs, (0, 2, 3, 1)), kernel), (0, 3, 1, 2))
        return self._convolve(inputs, kernel)

    def _convolve(self, X: Tensor, kernel: Tensor) -> Tensor:
        """Groups put together into parts of 32 channels or more, with zeros between them in the kernels.

        Trap: TensorFlow has no gradient of a grouped convolution on a CPU; Keras leaves it to XLA, whose
        takes 1,000 times as long as PyTorch's.
        """
        if any(map(sum, self.zeros)):
            X = tf.pad(X, [(0, 0), *self.zeros, (0, 0)])
        convolve = partial(
            ops.conv,
            strides=self.strides,
            padding=self.padding,
            data_format="channels_last",
            dilation_rate=self.dilation_rate,
        )
        if self.groups == 1 or not runs_on_cpu(X):
            return convolve(X, kernel)
        (height, width, narrow, features), groups = kernel.shape, self.groups
        parts = parts_of_groups(groups, groups * narrow)
        each = groups // parts
        kernels = tf.reshape(kernel, (height, width, narrow, parts, each, features // groups))
        kernels = tf.einsum("hwcpgf,Gg->phwGcgf", kernels, tf.eye(each, dtype=X.dtype))
        kernels = tf.reshape(kernels, (parts, height, width, each * narrow, features // parts))
        pairs = zip(tf.split(X, parts, -1), tf.unstack(kernels), strict=True)
        return tf.concat([convolve(X, kernel) for X, kernel in pairs], -1)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        padded = list(input_shape)
        begin = 2 if self.data_format == "channels_first" else 1
        for axis, zeros in enumerate(self.zeros, start=begin):
            padded[axis] = padded[axis] and padded[axis] + sum(zeros)
        return super().compute_output_shape(tuple(padded))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "padding": self.border}


def told(training: bool | None) -> dict[str, bool]:
    """Trap: passed on, None tells Keras' layers to evaluate, even in a model that trains."""
    return {} if training is None else {"training": training}


@serializable
@keras.saving.register_keras_serializable("resnet_tf", "BatchNormalizationOverWorkers")  # in older files
class BatchNormalization(layers.BatchNormalization):
    """Batch norm over the batch of all workers.

    Trap: Keras adds 1e-3 to the variance, and its running statistics keep 0.99 of the old value.

    Trap: by itself each worker normalises its share of the batch, and is another network. Keras'
    `synchronized=True` computes E[x²] − E[x]², which cancels where the mean is large.
    """

    def __init__(self, axis: int = -1, momentum: float = 0.9, epsilon: float = 1e-5, **options: Any) -> None:
        super().__init__(axis, momentum, epsilon, **options)

    def __call__(self, inputs: Tensor, training: bool | None = None, **options: Any) -> Tensor:
        return super().__call__(inputs, **told(training), **options)

    def _moments(self, inputs: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        worker = tf.distribute.get_replica_context()
        if not worker or worker.num_replicas_in_sync == 1:
            return super()._moments(inputs, mask)
        axes = self._reduction_axes
        mean = worker.all_reduce("MEAN", tf.reduce_mean(inputs, axes, keepdims=True))
        variance = worker.all_reduce("MEAN", tf.reduce_mean(tf.square(inputs - mean), axes))
        return tf.squeeze(mean, axes), variance

    def load_own_variables(self, store: Any) -> None:
        path = getattr(store, "_h5_entry_path", None)
        if path and not store.keys():  # in older files of several workers, which name it by its class
            stack, name, number = path.rpartition("batch_normalization")
            store = store.get(f"{stack}{name}_over_workers{number}")
        super().load_own_variables(store)


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

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        count, height, width, channels = input_shape
        return count, height and (height + 1) // 2, width and (width + 1) // 2, channels

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "padding": self.border}


@serializable
class SGD(keras.optimizers.Optimizer):
    """SGD whose velocity and weight decay mean what they mean in the other three.

    With gradient g, parameter w and velocity v: g += weight_decay · w;  v = momentum · v + g;  w −= lr · v.
    What `no_decay_norm` and `lr_backbone` are, `common.recipe` says.

    Trap: Keras' own keeps −lr · v, so that a new rate would act on old gradients too late; its weight decay
    acts beside the gradient, and without momentum; and its `ops.cast` rounds a Python float to float32,
    even in a float64 model.

    Raises:
        ValueError: in a step of several workers with clipping, which each would do to its own share, or with
            accumulated gradients.
    """

    def __init__(
        self,
        learning_rate: float,
        momentum: float = 0.0,
        weight_decay: float | None = None,
        no_decay_norm: bool = False,
        lr_backbone: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, **options)
        self.figures = {"momentum": momentum, "weight_decay": weight_decay or 0.0}
        self.no_decay_norm, self.lr_backbone = no_decay_norm, lr_backbone
        # Variables, as the learning rate is, so that another value is no other program; None costs nothing.
        dtype = keras.config.floatx()
        self.mu, self.l2 = (
            tf.Variable(figure, trainable=False, dtype=dtype) if figure else None
            for figure in self.figures.values()
        )

    @property
    def momentum(self) -> float:
        return self.figures["momentum"]

    @momentum.setter
    def momentum(self, momentum: float) -> None:
        self._set("momentum", self.mu, momentum)

    @property
    def weight_decay(self) -> float:
        return self.figures["weight_decay"]

    @weight_decay.setter
    def weight_decay(self, weight_decay: float | None) -> None:
        if weight_decay is not None:  # as Keras' constructor has it
            self._set("weight_decay", self.l2, weight_decay)

    def _set(self, name: str, variable: tf.Variable | None, value: float) -> None:
        if (variable is None) != (not value):
            raise BadInput(f"SGD was made with {name} {self.figures[name]}; make another for {value}")
        self.figures[name] = value
        if variable is not None:
            variable.assign(value)

    def build(self, variables: list[keras.Variable]) -> None:
        if not self.built:
            super().build(variables)
            has_velocity = self.mu is not None
            self.velocities = self.add_optimizer_variables(variables, "velocity") if has_velocity else []
            self.shares = [1.0 if "/last/" in v.path else self.lr_backbone for v in variables]  # of the rate

    def restart(self, momentum: float, weight_decay: float) -> None:
        """Begin anew from zero velocity; a figure that was above 0 may be another above 0."""
        self.momentum, self.weight_decay = momentum, weight_decay
        for velocity in self.velocities:
            velocity.assign(tf.zeros_like(velocity))

    def apply(self, grads: Sequence[Tensor], trainable_variables: Any = None) -> None:
        options = ("clipnorm", "clipvalue", "global_clipnorm", "gradient_accumulation_steps")
        given = [name for name in options if getattr(self, name)]
        if given and tf.distribute.get_strategy().num_replicas_in_sync > 1:
            raise BadInput(f"SGD with {given[0]} is for one worker; leave it out, or train on one device")
        super().apply(grads, trainable_variables)

    def _apply_weight_decay(self, variables: list[keras.Variable]) -> None:
        """It is in the gradient."""

    def update_step(self, gradient: Tensor, variable: tf.Variable, learning_rate: Tensor) -> None:
        rate = ops.cast(learning_rate, variable.dtype)
        if self.lr_backbone != 1:
            rate *= self.shares[self._get_variable_index(variable)]
        decays = not (self.no_decay_norm and len(variable.shape) == 1) and self._use_weight_decay(variable)
        if self.l2 is not None and decays:
            gradient = gradient + tf.cast(self.l2, variable.dtype) * variable
        if self.mu is not None:
            velocity = self.velocities[self._get_variable_index(variable)].value
            momentum = tf.cast(self.mu, variable.dtype)
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


@contextmanager
def policy(dtype: Any) -> Iterator[None]:
    """Within, this thread's new layers have this policy of Keras', or what stands for one."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(keras.dtype_policies.get(dtype))
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


one_precision = threading.RLock()


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Trap: Keras makes an optimizer's learning rate in one global type; set it for a while.

    It is the whole process's: of two threads that set it at once, one would leave the other's behind.
    """
    with one_precision, policy(name):
        floatx = keras.config.floatx()
        try:
            keras.config.set_floatx(keras.config.dtype_policy().variable_dtype)
            yield
        finally:
            keras.config.set_floatx(floatx)


def use_full_float32(full: bool = True) -> None:
    """Trap: on a GPU, TensorFlow rounds float32 products to TF32, ten bits of mantissa, by default.

    The contract calls this for a model on a GPU. Networks used directly need the same line.
    With `full` false it may.
    """
    tf.config.experimental.enable_tensor_float_32_execution(not full)
