"""The contract under MXNet: NumPy in, NumPy out."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as onp
from mxnet import autograd, np
from numpy.typing import NDArray

import common.backend as contract
from common.architecture import Architecture
from common.errors import BadInput, end_process
from common.processes.group import ALONE, Group
from common.recipe import Recipe
from common.weights import Weights, is_statistic
from resnet_mxnet.layers import Store
from resnet_mxnet.resnet import ResNet
from resnet_mxnet.training import count_correct, loss_and_gradients, train_step, update_average


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
            raise BadInput("MXNet sees no GPU; use device cpu, or install a build with CUDA: mxnet-cu112")
        if group.workers > 1:
            join(group, device)
        self._device = mx.gpu(group.local_rank) if device == "gpu" else mx.cpu()
        self._net = net or ResNet(arch)
        self._is_new = any(not parameter._data for parameter in self._net.collect_params().values())
        self._net.cast(dtype)
        parameters = self._net._collect_params_with_prefix()  # named as in the files Gluon writes
        self._parameters = {name: parameters[_path(name)] for name in arch.parameter_shapes()}
        if self._is_new:  # layers would find their shapes with a first image, and draw: tell them
            for name, shape in arch.parameter_shapes().items():
                self._parameters[name].shape = shape
                self._parameters[name].initialize(mx.init.Zero(), self._device, force_reinit=True)
        else:
            self._net.collect_params().reset_ctx(self._device)
        if Store.here:
            Store.here.open(self._parameters.values())
        self._trainer: Any = None  # Gluon's, once there is a recipe
        self._net.hybridize(static_alloc=True)

    def _load_weights(self, weights: Weights) -> None:
        for name, array in weights.items():
            self._parameters[name].set_data(self._array(array))

    def _weights(self) -> Weights:
        return {name: parameter.data().asnumpy() for name, parameter in self._parameters.items()}

    def _predict(self, x: NDArray) -> NDArray:
        return self._net(self._array(x)).asnumpy()

    def _activations(self, x: NDArray) -> dict[str, NDArray]:
        outputs = self._net.activations(self._array(x))
        return {name: output.asnumpy() for name, output in outputs.items()}

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
        self._trainer = self._net.configure_optimizers(recipe)
        self._average = {name: p.data().copy() for name, p in self._parameters.items() if recipe.ema}

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
        found = {name: states.get(indices.get(p.name)) for name, p in self._parameters.items()}
        return {name: state for name, state in found.items() if state is not None}

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


def _path(name: str) -> str:
    """Canonical name to Gluon's: "b2.0.bn1.weight" → "net.b2.0.bn1.gamma"."""
    layer, kind = name.rsplit(".", 1)
    if layer.rsplit(".", 1)[-1].startswith("bn"):
        kind = {"weight": "gamma", "bias": "beta"}.get(kind, kind)
    return f"net.{layer}.{kind}".replace("last.", "last.dense.")
