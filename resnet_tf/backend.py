"""The contract under TensorFlow: NumPy in, NumPy out."""

from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import tensorflow as tf
from numpy.typing import NDArray

import common.backend as contract
from common.architecture import Architecture
from common.errors import BadInput
from common.layout import from_channels_last, nchw, nhwc, to_channels_last
from common.weights import Weights, is_statistic
from resnet_tf.layers import SGD, precision, use_full_float32
from resnet_tf.resnet import ResNet
from resnet_tf.training import apply_gradients, count_correct, loss_and_gradients


class Model(contract.Model):
    """A ResNet in TensorFlow under the contract.

    A `net` that has variables keeps them where they are, for TensorFlow moves none: on another device it
    computes with copies, made at each use. `keras.models.load_model` under `tf.device` makes them there.
    """

    dtypes = ("float32", "float64", "bfloat16")

    def __init__(self, arch: Architecture, dtype: str, device: str, net: ResNet | None = None) -> None:
        super().__init__(arch, dtype, device)
        if device == "gpu":
            if not tf.config.list_physical_devices("GPU"):
                raise BadInput("TensorFlow sees no GPU; use device cpu, or install TensorFlow with CUDA")
            use_full_float32()
        self._device = f"/{device.upper()}:0"
        self._is_new = net is None or not net.built
        policy = "mixed_bfloat16" if self.bfloat16 else dtype
        with precision(policy), tf.device(self._device):
            self._net = net or ResNet(arch)
            self._net(tf.zeros((1, 32, 32, arch.in_channels), self.dtype))  # one image makes the variables
        self._variables = {name: _variable(self._net, name) for name in arch.parameter_shapes()}
        order = {v.path: i for i, v in enumerate(self._net.trainable_variables)}  # that of the gradients
        self._trained = {name: order[v.path] for name, v in self._variables.items() if v.path in order}
        self._predict_graph = tf.function(partial(self._net, training=False))
        self._activations_graph = tf.function(self._net.activations)
        self._gradients_graph = tf.function(partial(loss_and_gradients, self._net))
        self._optimizers: dict[tuple[bool, bool], tuple[SGD, Callable[..., Any]]] = {}

    def _load_weights(self, weights: Weights) -> None:
        for name, array in weights.items():
            self._variables[name].assign(to_channels_last(array))

    def _weights(self) -> Weights:
        return {name: from_channels_last(variable.numpy()) for name, variable in self._variables.items()}

    def _predict(self, x: NDArray) -> NDArray:
        return self._run(self._predict_graph, nhwc(x)).numpy()

    def _activations(self, x: NDArray) -> dict[str, NDArray]:
        outputs = self._run(self._activations_graph, nhwc(x))
        return {name: nchw(output.numpy()) for name, output in outputs.items()}

    def _loss_and_gradients(self, x: NDArray, y: NDArray) -> contract.Evaluation:
        statistics = {name: v for name, v in self._variables.items() if is_statistic(name)}
        before = {name: variable.numpy() for name, variable in statistics.items()}
        loss, logits, gradients = self._run(self._gradients_graph, nhwc(x), y)
        running = {name: variable.numpy() for name, variable in statistics.items()}
        for name, variable in statistics.items():
            variable.assign(before[name])
        return contract.Evaluation(
            float(loss),
            logits.numpy(),
            {name: from_channels_last(gradients[i].numpy()) for name, i in self._trained.items()},
            running,
        )

    def _new_optimizer(self, momentum: float, weight_decay: float) -> None:
        kind = bool(momentum), bool(weight_decay)
        if kind not in self._optimizers:  # compiled for any momentum and weight decay, or for none
            with tf.device(self._device):
                optimizer = self._net.configure_optimizers(momentum, weight_decay)
                optimizer.build(self._net.trainable_variables)
            self._optimizers[kind] = optimizer, tf.function(partial(apply_gradients, self._net, optimizer))
        self._optimizer, self._update_graph = self._optimizers[kind]
        self._optimizer.restart(momentum, weight_decay)

    def _begin_step(self, x: NDArray, y: NDArray, lr: float) -> Callable[[], tuple[float, int]]:
        self._optimizer.learning_rate.assign(lr)
        loss, logits, gradients = self._run(self._gradients_graph, nhwc(x), y)
        self._run(self._update_graph, *gradients)
        correct = self._run(count_correct, logits, y)
        return lambda: (float(loss), int(correct))

    def _optimizer_state(self) -> Weights:
        return {name: from_channels_last(v.numpy()) for name, v in self._velocities().items()}

    def _load_optimizer_state(self, state: Weights) -> None:
        for name, variable in self._velocities().items():
            variable.assign(to_channels_last(state[name]))

    def _velocities(self) -> dict[str, keras.Variable]:
        return {name: self._optimizer.velocities[i] for name, i in self._trained.items()}

    def _run(self, graph: Callable[..., Any], *arrays: NDArray) -> Any:
        """Call a compiled function where the model is: TensorFlow prefers a GPU wherever there is one."""
        with tf.device(self._device):
            return graph(*[tf.convert_to_tensor(array) for array in arrays])


def _variable(net: ResNet, name: str) -> keras.Variable:
    """Canonical name to Keras': "b2.0.bn1.weight" → gamma of layer bn1 of block 0 of stage b2."""
    stage, *inner, kind = name.split(".")
    layer = net.net.get_layer(stage)
    if stage == "last":
        layer = layer.get_layer("dense")
    elif stage == "b1":
        layer = layer.get_layer(inner[0])
    else:
        layer = getattr(layer.layers[int(inner[0])], inner[1])
    is_norm = isinstance(layer, keras.layers.BatchNormalization)
    attribute = {
        "weight": "gamma" if is_norm else "kernel",
        "bias": "beta" if is_norm else "bias",
        "running_mean": "moving_mean",
        "running_var": "moving_variance",
    }[kind]
    return getattr(layer, attribute)
