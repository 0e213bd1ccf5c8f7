"""The contract under TensorFlow: NumPy in, NumPy out."""

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

import common.backend as contract
from common.architecture import Architecture
from common.errors import BadInput
from common.layout import from_channels_last, nchw, nhwc, to_channels_last
from common.processes.group import ALONE, Group
from common.recipe import Recipe
from common.weights import Weights, is_statistic
from resnet_tf.layers import SGD, precision, use_full_float32
from resnet_tf.resnet import ResNet
from resnet_tf.training import (
    apply_gradients,
    count_correct,
    loss_and_gradients,
    trained_variables,
    update_average,
)


class Model(contract.Model):
    """A ResNet in TensorFlow under the contract.

    A `net` that has variables keeps them where they are, for TensorFlow moves none: on another device it
    computes with copies, made at each use. `keras.models.load_model` under `tf.device` makes them there.
    """

    dtypes = ("float32", "float64", "bfloat16", "tf32")

    def __init__(
        self,
        arch: Architecture,
        dtype: str,
        device: str,
        net: ResNet | None = None,
        group: Group = ALONE,
    ) -> None:
        super().__init__(arch, dtype, device, group)
        if device == "gpu":
            if not tf.config.list_physical_devices("GPU"):
                raise BadInput("TensorFlow sees no GPU; use device cpu, or install TensorFlow with CUDA")
            use_full_float32(not self.tf32)
        self._device = f"/{device.upper()}:0"
        self._is_new = net is None or not net.built
        self._strategy = join(group, device) if group.workers > 1 else None
        policy = "mixed_bfloat16" if self.bfloat16 else self.dtype
        with self._scope(), precision(policy), tf.device(self._device):
            self._net = net or ResNet(arch)
            self._net(tf.zeros((1, 32, 32, arch.in_channels), self.dtype))  # one image makes the variables
        self._variables = {name: _variable(self._net, name) for name in arch.parameter_shapes()}
        self._predict_graph = tf.function(partial(self._net, training=False), reduce_retracing=True)
        self._activations_graph = tf.function(self._net.activations, reduce_retracing=True)
        self._statistics = [variable for name, variable in self._variables.items() if is_statistic(name)]
        self._statistics_graph = tf.function(lambda: [tf.identity(v.value) for v in self._statistics])
        self._gradients_graph = self._shared(partial(loss_and_gradients, self._net))
        self._total_graph = self._shared(total)
        self._optimizers: dict[Recipe, tuple[SGD, Callable[..., Any]]] = {}
        self._average: dict[str, tf.Variable] = {}
        self._has_moved = False

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
        loss, logits, gradients = self._run(self._gradients_graph, nhwc(x), y)
        return contract.Evaluation(
            float(loss),
            logits.numpy(),
            {name: from_channels_last(gradients[i].numpy()) for name, i in self._order().items()},
            {name: variable.numpy() for name, variable in self._variables.items() if is_statistic(name)},
        )

    def _keep(self) -> Callable[[], bool]:
        if self._strategy:
            return super()._keep()  # the other workers' steps go on
        before = self._run(self._statistics_graph)
        self._has_moved = False

        def undo() -> bool:
            if self._has_moved:
                return False
            for variable, old in zip(self._statistics, before, strict=True):
                variable.assign(old)
            return True

        return undo

    def _new_optimizer(self, recipe: Recipe) -> None:
        kind = recipe.kind("momentum", "weight_decay")  # compiled for any, or for none
        if kind not in self._optimizers:
            with self._scope(), tf.device(self._device):
                optimizer = self._net.configure_optimizers(kind)
                optimizer.build(trained_variables(self._net, recipe.freeze))
            update = self._shared(partial(apply_gradients, self._net, optimizer, recipe.freeze))
            self._optimizers[kind] = optimizer, update
        self._optimizer, self._update_graph = self._optimizers[kind]
        self._optimizer.restart(recipe.momentum, recipe.weight_decay)
        self._velocities = {}
        if recipe.momentum:
            order = self._order(recipe.freeze)
            self._velocities = {name: self._optimizer.velocities[i] for name, i in order.items()}
        if recipe.ema:
            self._start_average()

    def _start_average(self) -> None:
        """The average is made where the weights are, once, and starts as they are."""
        if not self._average:
            weights = [variable.value for variable in self._variables.values()]
            with tf.device(self._device):
                averages = [tf.Variable(weight, trainable=False) for weight in weights]
            self._average = dict(zip(self._variables, averages, strict=True))
            self._average_graph = tf.function(partial(update_average, averages, weights))
        for name, average in self._average.items():
            average.assign(self._variables[name].value)

    def _begin_step(
        self, x: NDArray, y: NDArray, lr: float, recipe: Recipe
    ) -> Callable[[], tuple[float, int]]:
        self._optimizer.learning_rate.assign(lr)
        options = {"label_smoothing": recipe.label_smoothing, "freeze": recipe.freeze}
        loss, logits, gradients = self._run(self._gradients_graph, nhwc(x), y, **options)
        self._has_moved = True
        self._run(self._update_graph, *gradients)
        if recipe.ema:
            self._run(self._average_graph, np.asarray(1 - recipe.ema, self.dtype))
        correct = self._run(count_correct, logits, y)
        if self.group.workers > 1:
            both: Any = [loss, tf.cast(correct, loss.dtype)]  # one sum is quicker than two
            loss, correct = self._run(self._total_graph, both)
            loss /= self.group.workers
        return lambda: (float(loss), int(correct))

    def _sum(self, values: NDArray) -> NDArray:
        return self._run(self._total_graph, values).numpy()

    def _optimizer_state(self) -> Weights:
        return {name: from_channels_last(v.numpy()) for name, v in self._velocities.items()}

    def _load_optimizer_state(self, state: Weights) -> None:
        for name, variable in self._velocities.items():
            variable.assign(to_channels_last(state[name]))

    def _averaged_weights(self) -> Weights:
        return {name: from_channels_last(v.numpy()) for name, v in self._average.items()}

    def _load_averaged_weights(self, weights: Weights) -> None:
        for name, variable in self._average.items():
            variable.assign(to_channels_last(weights[name]))

    def _order(self, freeze: str = "") -> dict[str, int]:
        """Canonical name to place among the trained variables: that of gradients and velocities."""
        order = {v.path: i for i, v in enumerate(trained_variables(self._net, freeze))}
        return {name: order[v.path] for name, v in self._variables.items() if v.path in order}

    def _scope(self) -> AbstractContextManager:
        """Where variables are made, so that all workers' start as the first's."""
        return self._strategy.scope() if self._strategy else nullcontext()

    def _shared(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A compiled function that knows of the other workers, if there are any."""
        strategy = self._strategy
        if not strategy:
            return tf.function(function, reduce_retracing=True)
        return tf.function(
            lambda *arrays, **options: strategy.run(function, arrays, options), reduce_retracing=True
        )

    def _run(self, graph: Callable[..., Any], *arrays: NDArray, **options: Any) -> Any:
        """Call a compiled function where the model is: TensorFlow prefers a GPU wherever there is one."""
        with tf.device(self._device):
            return graph(*[tf.convert_to_tensor(array) for array in arrays], **options)


def total(values: tf.Tensor) -> tf.Tensor:
    """The sum over the workers."""
    here = tf.identity(values)  # what comes from outside is on no device
    return tf.distribute.get_replica_context().all_reduce("SUM", here)


@cache  # once a process
def join(group: Group, device: str) -> tf.distribute.Strategy:
    """Join the other workers; before any operation of TensorFlow's.

    Raises:
        ValueError: unless each worker of this host has a GPU of its own.
    """
    kinds = tf.distribute.experimental.CommunicationImplementation
    kind, gpus, own = kinds.RING, tf.config.list_physical_devices("GPU"), []
    if device == "gpu":
        group.check_gpus(len(gpus))
        kind, own = kinds.NCCL, [gpus[group.local_rank]]
    tf.config.set_visible_devices(own, "GPU")  # the strategy takes all it sees
    cluster = {"worker": group.addresses}
    os.environ["TF_CONFIG"] = json.dumps(
        {"cluster": cluster, "task": {"type": "worker", "index": group.rank}}
    )
    return tf.distribute.MultiWorkerMirroredStrategy(
        communication_options=tf.distribute.experimental.CommunicationOptions(implementation=kind)
    )


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
