"""The contract under MXNet: NumPy in, NumPy out."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, wraps
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as onp
from mxnet import autograd, gluon, np
from numpy.typing import NDArray

import common.backend as contract
from common.architecture import Architecture
from common.errors import MissingDevice, end_process
from common.gate import Figures, Found, check_optimizer, configured
from common.processes.group import ALONE, Group
from common.recipe import Recipe
from common.weights import Weights, is_statistic
from resnet_mxnet.layers import SGD, Store, TrainerOverWorkers, exact_decay
from resnet_mxnet.resnet import ResNet
from resnet_mxnet.training import (
    Classifier,
    count_correct,
    loss_and_gradients,
    train_step,
    update_average,
)


def compiled(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method within which the model's network is hybridised; afterwards it is as its user has it."""

    @wraps(method)
    def run(model: "Model", *arguments: Any) -> Any:
        with hybridised(model._net):
            return method(model, *arguments)

    return run


@contextmanager
def hybridised(net: ResNet) -> Iterator[None]:
    """The network and each of its stages run compiled; what Gluon's `hybridize` does not undo by itself."""
    blocks = [net, *net.net._children.values()]
    before = [(block, block._active, block._flags) for block in blocks]
    for block in blocks:
        block._active, block._flags = True, [("static_alloc", True)]
    try:
        yield
    finally:
        for block, active, flags in before:
            block._active, block._flags = active, flags


class Model(contract.Model):
    """A ResNet in MXNet under the contract."""

    @mx.util.use_np
    def __init__(
        self,
        arch: Architecture,
        dtype: str,
        device: str,
        net: ResNet | None = None,
        group: Group = ALONE,
    ) -> None:
        super().__init__(arch, dtype, device, group)
        if device == "gpu" and not mx.context.num_gpus():
            none = "MXNet sees no GPU; use device cpu, or install a build with CUDA: mxnet-cu112"
            raise MissingDevice(none)
        if group.workers > 1:
            join(group, device)
        self._device = mx.gpu(group.local_rank) if device == "gpu" else mx.cpu()
        self._net = ResNet(arch) if net is None else net
        if net is None:
            self._net.cast(dtype)
        parameters = self._net._collect_params_with_prefix()  # named as in the files Gluon writes
        self._parameters = {name: parameters[path] for name, path in paths(arch).items()}
        self._missing = [name for name, parameter in self._parameters.items() if not parameter._data]
        self._is_new = bool(self._missing)
        shapes = arch.parameter_shapes()
        for name, parameter in self._parameters.items():
            if not parameter._data:  # it would find its shape with a first image, and draw: tell it
                parameter.shape = shapes[name]
                parameter.initialize(mx.init.Zero(), self._device, force_reinit=True)
            elif parameter.list_ctx() != [self._device]:
                parameter.reset_ctx(self._device)
            if parameter.grad_req != "null":  # a copy of a network has gradients, but they are no one's
                autograd.mark_variables(parameter.list_data(), parameter.list_grad(), parameter.grad_req)
        if Store.here:
            Store.here.open(self._parameters.values())
        self._trainer: Any = None  # Gluon's, once there is a recipe
        for block in (self._net, *self._net.net._children.values()):
            block._clear_cached_op()  # it may be of parameters that were replaced

    def _load_weights(self, weights: Weights) -> None:
        for name, array in weights.items():
            self._parameters[name].set_data(self._array(array))

    def _weights(self) -> Weights:
        return {name: parameter.data().asnumpy() for name, parameter in self._parameters.items()}

    @compiled
    def _predict(self, x: NDArray) -> NDArray:
        return self._net(self._array(x)).asnumpy()

    @compiled
    def _activations(self, x: NDArray) -> dict[str, NDArray]:
        outputs = self._net.activations(self._array(x))
        return {name: output.asnumpy() for name, output in outputs.items()}

    def _forward(self, x: NDArray, training: bool) -> dict[str, NDArray]:
        X = self._array(x)
        X.attach_grad()
        with exact_decay(self._net) if training else nullcontext():
            with autograd.record(train_mode=training):
                outputs = {"forward": self._net(X)}
                total = outputs["forward"].sum()
            if training:  # only the way back moves the statistics
                autograd.grad(total, X)
        statistics = {name: p.data() for name, p in self._parameters.items() if is_statistic(name)}
        outputs |= statistics if training else self._net.activations(X)
        return {name: output.asnumpy() for name, output in outputs.items()}

    def frozen(self) -> set[str]:
        return {n for n, p in self._parameters.items() if p.grad_req == "null" and not is_statistic(n)}

    def _check_optimizer(self, recipe: Recipe) -> None:
        configure = self._net.configure_optimizers
        if getattr(configure, "__func__", None) is not Classifier.configure_optimizers:
            names = {parameter.name: name for name, parameter in self._parameters.items()}
            found = _figures(configured(configure, recipe), names)
            check_optimizer(self.arch, recipe, self._net.lr, self.frozen(), found)

    @compiled
    def _loss_and_gradients(self, x: NDArray, y: NDArray) -> contract.Evaluation:
        trained = {name: p for name, p in self._parameters.items() if p.grad_req != "null"}
        before = {name: parameter.grad().copy() for name, parameter in trained.items()}
        try:
            loss, logits = loss_and_gradients(self._net, self._array(x), self._array(y))
            gradients = {name: parameter.grad().asnumpy() for name, parameter in trained.items()}
        finally:
            for name, parameter in trained.items():
                parameter.grad()[:] = before[name]
        running = {name: p.data().asnumpy() for name, p in self._parameters.items() if is_statistic(name)}
        return contract.Evaluation(loss.item(), logits.asnumpy(), gradients, running)

    def _keep(self) -> Callable[[], bool]:
        statistics = [parameter for name, parameter in self._parameters.items() if is_statistic(name)]
        before = [parameter.data().copy() for parameter in statistics]
        updates = self._trainer and self._trainer.optimizer.num_update

        def undo() -> bool:
            if self._trainer and self._trainer.optimizer.num_update != updates:
                return False
            for parameter, old in zip(statistics, before, strict=True):
                parameter.set_data(old)
            return True

        return undo

    def _new_optimizer(self, recipe: Recipe) -> None:
        self._trainer = Classifier.configure_optimizers(self._net, recipe)  # the network's own does the same
        self._average = {name: p.data().copy() for name, p in self._parameters.items() if recipe.ema}

    @compiled
    def _begin_step(
        self, x: NDArray, y: NDArray, lr: float, recipe: Recipe
    ) -> Callable[[], tuple[float, int]]:
        self._trainer.set_learning_rate(lr)
        X, Y = self._array(x), self._array(y)
        loss, logits = train_step(self._net, self._trainer, X, Y, recipe)
        if recipe.ema:
            weights = [parameter.data() for parameter in self._parameters.values()]
            update_average(list(self._average.values()), weights, 1 - recipe.ema)
        correct = count_correct(logits, Y)
        if self.group.workers > 1:
            self._settle()
            both = self._sum(onp.array([loss.item(), int(correct)], "float64"))
            return lambda: (float(both[0]) / self.group.workers, int(both[1]))
        return lambda: (loss.item(), int(correct))

    def _settle(self) -> None:
        if self.device == "cpu":
            mx.nd.waitall()  # its engine and Python would take each other's cores: 5 % of a step

    def _sum(self, values: NDArray) -> NDArray:
        assert Store.here
        key = Store.here.slots(f"sum.{values.shape}", values.shape, "float64")
        return Store.here.sum(key, self._array(values)).asnumpy()

    def _optimizer_state(self) -> Weights:
        return {name: state.asnumpy() for name, state in self._velocities().items()}

    def _load_optimizer_state(self, state: Weights) -> None:
        updater = self._trainer._updaters[0]
        for name, array in state.items():
            index = self._trainer._param2idx[self._parameters[name].name]
            updater.states[index] = mx.nd.array(array, self._device, array.dtype)
            updater.states_synced[index] = True  # it lies where the parameter does

    def _averaged_weights(self) -> Weights:
        return {name: array.asnumpy() for name, array in self._average.items()}

    def _load_averaged_weights(self, weights: Weights) -> None:
        self._average = {name: self._array(array) for name, array in weights.items()}

    def _velocities(self) -> dict[str, mx.nd.NDArray]:
        states, indices = self._trainer._updaters[0].states, self._trainer._param2idx
        trained = {n: p for n, p in self._parameters.items() if p.name in indices and not is_statistic(n)}
        found = {name: states.get(indices[p.name]) for name, p in trained.items()}
        # what is frozen has not moved
        return {n: np.zeros_like(trained[n].data()) if s is None else s for n, s in found.items()}

    @contextmanager
    def _surroundings(self) -> Iterator[None]:
        """Trap: MXNet's NumPy is switched on in a thread of its own, and so is what autograd records."""
        with mx.util.np_shape(True), mx.util.np_array(True), autograd.pause():
            yield

    def _array(self, array: NDArray) -> np.ndarray:
        return np.array(array, dtype=array.dtype, ctx=self._device)


# What the scheduler and the server of the store run, until the worker that started them is gone.
SERVE = """
import os, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
import resnet_mxnet, mxnet.kvstore_server
"""


@cache  # once a process
def join(group: Group, device: str) -> None:
    """Join the other workers; the first starts the scheduler and the server between them.

    Raises:
        ValueError: unless each worker of this host has a GPU of its own.
    """
    if device == "gpu":
        group.check_gpus(mx.context.num_gpus())
    hosts, ports = zip(*(address.rpartition(":")[::2] for address in group.addresses), strict=True)
    told = {
        "DMLC_PS_ROOT_URI": hosts[0],
        "DMLC_PS_ROOT_PORT": ports[0],
        "DMLC_NODE_HOST": hosts[group.rank],
        "DMLC_NUM_WORKER": str(group.workers),
        "DMLC_NUM_SERVER": "1",
    }
    if group.rank == 0:
        path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
        # Trap: OpenMP's threads spin, and would take the worker's cores.
        told_servers = {**told, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        for role in ("scheduler", "server"):
            environment = {**os.environ, **told_servers, "DMLC_ROLE": role}
            threading.Thread(target=_serve, args=(role, environment), daemon=True).start()
    os.environ.update(told, DMLC_ROLE="worker")
    Store.here = Store(group.rank, group.workers)


def _serve(role: str, environment: dict[str, str]) -> None:
    """Run the scheduler or the server until the store ends it; without it all workers would wait for good."""
    command = [sys.executable, "-P", "-c", SERVE]  # -P: not what lies in the folder one is in
    pipe, quiet = subprocess.PIPE, subprocess.DEVNULL
    server = subprocess.Popen(command, env=environment, stdin=pipe, stdout=quiet, stderr=pipe, text=True)
    *_, said = ["it said nothing", *(server.stderr or ())]
    if server.wait():
        end_process(f"the {role} of MXNet's parameter server ended: {said.strip()}")


def find(net: ResNet) -> dict[str, Found]:
    """All parameters and statistics by Gluon's names, and by their own where a block does not name them."""
    parameters = net._collect_params_with_prefix()
    known = {id(parameter) for parameter in parameters.values()}
    others = {name: p for name, p in net.collect_params().items() if id(p) not in known}
    return {
        name: Found(
            p.shape and tuple(size if size > 0 else None for size in p.shape), onp.dtype(p.dtype).name, id(p)
        )
        for name, p in (parameters | others).items()
    }


def may_differ(net: ResNet) -> bool:
    """Whether its function may be another than its architecture's: any layer may be replaced."""
    return True


def twin(net: ResNet, dtype: str, device: str) -> Model:
    """A model of the same architecture, of ours alone, to compare with; Gluon does not count its names."""
    with mx.name.NameManager():
        return Model(net.arch, dtype, device)


def _figures(trainer: Any, names: dict[str, str]) -> dict[str, Figures] | str:
    """How a trainer moves each parameter, or in words what it is that SGD is not."""
    if type(trainer) not in (gluon.Trainer, TrainerOverWorkers):
        return f"a {type(trainer).__name__}, no trainer of Gluon's"
    optimizer = trainer._optimizer
    if type(optimizer) not in (SGD, mx.optimizer.SGD):
        return type(optimizer).__name__
    if optimizer.momentum and type(optimizer) is not SGD:
        return "MXNet's own SGD with momentum"
    if optimizer.lr_scheduler:
        return "SGD with a schedule"
    if optimizer.clip_gradient or optimizer.rescale_grad != 1:
        return "SGD of gradients clipped or scaled"
    figures = {}
    for name, index in trainer._param2idx.items():
        if name not in names:
            return "SGD of more than the network's parameters"
        rate, decay = optimizer._get_lr(index), optimizer._get_wd(index)
        figures[names[name]] = Figures(rate, optimizer.momentum, decay)
    return figures


def paths(arch: Architecture) -> dict[str, str]:
    """Canonical name to Gluon's: "b2.0.bn1.weight" → "net.b2.0.bn1.gamma"."""
    return {name: _path(name) for name in arch.parameter_shapes()}


def _path(name: str) -> str:
    """Canonical name to Gluon's: "b2.0.bn1.weight" → "net.b2.0.bn1.gamma"."""
    layer, kind = name.rsplit(".", 1)
    if layer.rsplit(".", 1)[-1].startswith("bn"):
        kind = {"weight": "gamma", "bias": "beta"}.get(kind, kind)
    return f"net.{layer}.{kind}".replace("last.", "last.dense.")
