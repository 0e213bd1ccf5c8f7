"""The contract under TensorFlow: NumPy in, NumPy out."""

import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common import global_state
from numpy.typing import NDArray

import common.backend as contract
from common.architecture import Architecture
from common.errors import BadInput, MissingDevice
from common.gate import Figures, Found, check_optimizer, configured, taking
from common.layout import from_channels_last, nchw, nhwc, to_channels_last
from common.processes.group import ALONE, Group
from common.recipe import PLAIN, Recipe, is_last
from common.weights import Weights, is_statistic
from resnet_tf.layers import SGD, precision, use_full_float32
from resnet_tf.resnet import ResNet
from resnet_tf.training import (
    Classifier,
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
    served: ClassVar = {"float32": "float32", "float64": "float64", "mixed_bfloat16": "bfloat16"}

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
                raise MissingDevice("TensorFlow sees no GPU; use device cpu, or install TensorFlow with CUDA")
            use_full_float32(not self.tf32)
        self._device = f"/{device.upper()}:0"
        self._strategy = join(group, device) if group.workers > 1 else None
        policy = "mixed_bfloat16" if self.bfloat16 else self.dtype
        with self._scope(), precision(policy), tf.device(self._device), unnoticed():
            self._net = ResNet(arch) if net is None else net
            own = {name: _variable(self._net, name) for name in arch.parameter_shapes()}
            self._missing = [name for name, variable in own.items() if variable is None]
            self._is_new = bool(self._missing)
            if self._missing:
                image = tf.zeros((1, 32, 32, arch.in_channels), self.dtype)
                with taking((1, arch.in_channels, 32, 32)):
                    self._net(image)  # it makes the variables
        self._variables = {name: _variable(self._net, name) for name in own}
        self._frozen = self.frozen()
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

    def _forward(self, x: NDArray, training: bool) -> dict[str, NDArray]:
        with tf.device(self._device):
            X = tf.convert_to_tensor(nhwc(x))
            outputs = {"forward": self._net(X, training=training)}
            if self._net.losses:
                raise BadInput("the network has losses of its own, which no step adds; use weight_decay")
            statistics = {name: v for name, v in self._variables.items() if is_statistic(name)}
            outputs |= statistics if training else self._net.activations(X)
        return {name: np.asarray(output) for name, output in outputs.items()}

    def frozen(self) -> set[str]:
        names = [name for name in self._variables if not is_statistic(name)]
        return {name for name in names if not (self._net.trainable and self._variables[name].trainable)}

    def _follow_frozen(self) -> None:
        """Trap: what TensorFlow has traced goes on training what was trained then."""
        frozen = self.frozen()
        if frozen != self._frozen:
            recipe, state = self._recipe, self.optimizer_state()
            self._frozen, self._optimizers = frozen, {}
            self._gradients_graph = self._shared(partial(loss_and_gradients, self._net))
            if recipe:
                self._set_optimizer(recipe, state)

    def _check_optimizer(self, recipe: Recipe) -> None:
        configure = self._net.configure_optimizers
        if getattr(configure, "__func__", None) is not Classifier.configure_optimizers:
            with precision(self._net.dtype_policy.name):
                found = _figures(configured(configure, recipe), self._variables)
            check_optimizer(self.arch, recipe, float(self._net.lr), self.frozen(), found)

    def _loss_and_gradients(self, x: NDArray, y: NDArray) -> contract.Evaluation:
        self._follow_frozen()
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
        self._follow_frozen()
        kind = recipe.kind("momentum", "weight_decay")  # compiled for any, or for none
        if kind not in self._optimizers:
            with self._scope(), tf.device(self._device):
                # the network's own does the same
                optimizer = Classifier.configure_optimizers(self._net, kind)
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
        self._follow_frozen()
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
        recipe = self._recipe or PLAIN
        velocities = {name: velocity.numpy() for name, velocity in self._velocities.items()}
        for name in self._frozen:  # what is frozen has not moved
            velocities[name] = np.zeros(self._variables[name].shape, self.dtype)
        return {n: from_channels_last(velocities[n]) for n in self._variables if recipe.trains(n)}

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
        """A compiled function that knows of the other workers, if there are any.

        Of every size one of its own: one for many would round otherwise, and a run that is resumed meets its
        batches in another order.
        """
        strategy = self._strategy
        if not strategy:
            return tf.function(function)
        return tf.function(lambda *arrays, **options: strategy.run(function, arrays, options))

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


@contextmanager
def unnoticed() -> Iterator[None]:
    """What is built within, Keras does not count in the names it gives, nor draws Python's seeds for."""
    names = global_state.get_global_attribute("object_name_uids")
    before, state = dict(names or {}), random.getstate()
    try:
        yield
    finally:
        random.setstate(state)
        names = global_state.get_global_attribute("object_name_uids")
        if names is not None:
            names.clear()
            names.update(before)


def find(net: ResNet) -> dict[str, Found]:
    """All parameters and statistics: those of the architecture by `paths`, others by Keras' path."""
    own = paths(net.arch)
    found, known = {}, set()
    for name, path in own.items():
        layer, attribute = _place(net, name)
        if layer is None:
            continue
        variable = _variable(net, name)
        known.add(id(variable))
        if variable is not None:
            shape = from_channels_last(np.broadcast_to(0, variable.shape)).shape
            found[path] = Found(shape, layer.dtype_policy.name, id(variable))
        elif not layer.built:
            found[path] = Found(None, layer.dtype_policy.name, (id(layer), attribute))
    others = {v.path: v for v in net.weights if id(v) not in known}
    return found | {path: Found(tuple(v.shape), v.dtype, id(v)) for path, v in others.items()}


def may_differ(net: ResNet) -> bool:
    """Whether its function may be another than its architecture's: any layer may be replaced."""
    return True


def twin(net: ResNet, dtype: str, device: str) -> Model:
    """A model of the same architecture, of ours alone, to compare with.

    Trap: in Keras a batch norm that is not to be trained evaluates in training, too.
    """
    model = Model(net.arch, dtype, device)
    for name in net.arch.parameter_shapes():
        _place(model._net, name)[0].trainable = _place(net, name)[0].trainable
    return model


def _figures(optimizer: Any, variables: dict[str, keras.Variable]) -> dict[str, Figures] | str:
    """How an optimizer moves each variable, or in words what it is that SGD is not."""
    kind = type(optimizer)
    if kind not in (SGD, keras.optimizers.SGD):
        return kind.__name__
    config = optimizer.get_config()
    if kind is not SGD and (config["momentum"] or config["weight_decay"]):
        return "Keras' own SGD with momentum or weight decay"
    if not isinstance(config["learning_rate"], float):
        return "SGD with a schedule"
    for option in ("nesterov", "clipnorm", "clipvalue", "global_clipnorm", "use_ema", "loss_scale_factor"):
        if config.get(option):
            return f"SGD with {option}"
    if config.get("gradient_accumulation_steps"):
        return "SGD with gradient_accumulation_steps"
    figures = {}
    for name, variable in variables.items():
        share = 1.0 if is_last(name) else config.get("lr_backbone", 1.0)
        decays = not (config.get("no_decay_norm") and len(variable.shape) == 1)
        decay = config["weight_decay"] if decays and optimizer._use_weight_decay(variable) else 0.0
        figures[name] = Figures(config["learning_rate"] * share, config["momentum"], decay or 0.0)
    return figures


def paths(arch: Architecture) -> dict[str, str]:
    """Canonical name to Keras': "b2.0.bn1.weight" → "b2.0.bn1.gamma"."""
    return {
        name: f"{name.rpartition('.')[0]}.{_attribute(name)}".replace("last.", "last.dense.")
        for name in arch.parameter_shapes()
    }


def _attribute(name: str) -> str:
    kind = name.rpartition(".")[2]
    is_norm = ".bn" in name
    return {
        "weight": "gamma" if is_norm else "kernel",
        "bias": "beta" if is_norm else "bias",
        "running_mean": "moving_mean",
        "running_var": "moving_variance",
    }[kind]


def _place(net: ResNet, name: str) -> tuple[Any, str]:
    """Canonical name to Keras': "b2.0.bn1.weight" → layer bn1 of block 0 of stage b2, and gamma.

    The layer is None where something was replaced.
    """
    stage, *inner, _ = name.replace("last.", "last.dense.").split(".")
    try:
        layer = net.net.get_layer(stage)
        for step in inner:
            if isinstance(layer, keras.Sequential):
                layer = layer.layers[int(step)] if step.isdecimal() else layer.get_layer(step)
            else:
                layer = getattr(layer, step)
    except (AttributeError, IndexError, ValueError):
        return None, ""
    return layer, _attribute(name)


def _variable(net: ResNet, name: str) -> Any:
    """Keras' variable; None in a network that has not been built, and where something was replaced."""
    layer, attribute = _place(net, name)
    found = getattr(layer, attribute, None)
    return found if isinstance(found, keras.Variable) else None
