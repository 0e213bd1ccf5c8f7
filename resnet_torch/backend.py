"""The contract under PyTorch: NumPy in, NumPy out."""

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from functools import cache
from threading import RLock
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import common.backend as contract
from common.architecture import Architecture
from common.errors import BadInput, MissingDevice
from common.gate import Figures, Found, check_optimizer, configured, taking
from common.processes.group import ALONE, Group
from common.recipe import Recipe
from common.weights import Weights, is_statistic
from resnet_torch.layers import use_full_float32
from resnet_torch.resnet import ResNet
from resnet_torch.training import (
    Classifier,
    autocast,
    count_correct,
    frozen_backbone,
    gradients_kept,
    loss_and_gradients,
    modes_kept,
    train_step,
    update_average,
)

# Trap: PyTorch counts the programs of all networks together, and gives up at the ninth.
COMPILED: dict[str, Any] = {"fullgraph": True, "isolate_recompiles": True, "recompile_limit": 64}
OWN_PROGRAMS = 4  # shapes with one each, which is quickest: batches and a last one, to train and to validate
PATIENCE = timedelta(seconds=60)  # with workers that have met, and now join
drawing = RLock()  # the random state is the process's: two that keep it at once would lose it


class Model(contract.Model):
    """A ResNet in PyTorch under the contract."""

    dtypes = ("float32", "float64", "bfloat16", "tf32")

    @torch.inference_mode(False)
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
            if not torch.cuda.is_available():
                raise MissingDevice("PyTorch sees no GPU; use device cpu, or install PyTorch with CUDA")
            use_full_float32(not self.tf32)
        if group.workers > 1:
            join(group, device)
        self._device = torch.device("cuda" if device == "gpu" else "cpu")
        self._type = getattr(torch, self.dtype)
        is_faster = device == "cpu" or self.bfloat16  # in memory, (N, H, W, C)
        self._layout = torch.channels_last if is_faster else torch.preserve_format
        self._net = (ResNet(arch) if net is None else self.network(net)).to(self._device, self._type)
        found, own = find(self._net), paths(arch)
        self._missing = [name for name in own if found[own[name]].shape is None]
        self._is_new = bool(self._missing)
        if self._is_new:  # one image gives the lazy layers their shapes; what they draw is not kept
            image = torch.zeros(1, arch.in_channels, 32, 32, dtype=self._type, device=self._device)
            drawn = torch.random.fork_rng([torch.cuda.current_device()] if device == "gpu" else [])
            with torch.no_grad(), drawing, drawn, modes_kept(self._net), taking(image.shape):
                self._net.eval()(image)
        if net is None:  # a user's keeps its layout
            self._net.to(memory_format=self._layout)  # type: ignore[call-overload]  # not in PyTorch's stubs
        places = {name: path.rpartition(".") for name, path in own.items()}
        self._places = {name: (self._net.get_submodule(m), kind) for name, (m, _, kind) in places.items()}
        self._parameters = {
            name: self._net.get_parameter(path) for name, path in own.items() if not is_statistic(name)
        }
        self._called = self._net if net is None else net  # as its user has compiled it
        self._stages = self._net.activations
        self._has_moved = False
        self._is_compiled = False
        self._shapes: set[torch.Size] = set()  # with a program of their own; all others share one

    @property
    def _tensors(self) -> dict[str, Tensor]:
        """Canonical name to tensor, wherever `net.to` may have moved it."""
        return {name: getattr(module, kind) for name, (module, kind) in self._places.items()}

    @staticmethod
    def network(net: Any) -> ResNet:
        net = getattr(net, "_orig_mod", net)  # of torch.compile
        if isinstance(net, (nn.DataParallel, DistributedDataParallel)):
            raise BadInput(
                f"give the network itself, net.module, not its {type(net).__name__}; "
                "Trainer(num_gpus=2) trains it on two GPUs"
            )
        return net

    def compile(self) -> None:
        compiler = torch._inductor.config.cpp.cxx[-1]
        if self.device == "cpu" and not shutil.which(compiler):
            raise BadInput(f"torch.compile needs a C++ compiler; install {compiler}, or do without compile")
        self._is_compiled = True
        self._net.compile(**COMPILED)
        self._stages = torch.compile(self._net.activations, **COMPILED)

    @torch.no_grad()
    def _load_weights(self, weights: Weights) -> None:
        tensors = self._tensors
        for name, array in weights.items():
            tensors[name].copy_(torch.from_numpy(array))

    def _weights(self) -> Weights:
        return {name: self._array(tensor) for name, tensor in self._tensors.items()}

    @torch.no_grad()
    def _predict(self, x: NDArray) -> NDArray:
        X = self._images_in(x)
        with modes_kept(self._called), autocast(X, self.bfloat16):
            return self._array(self._called.eval()(X))

    @torch.no_grad()
    def _activations(self, x: NDArray) -> dict[str, NDArray]:
        X = self._images_in(x)
        with modes_kept(self._net), autocast(X, self.bfloat16):
            self._net.eval()
            outputs = self._stages(X)
        return {name: self._array(output) for name, output in outputs.items()}

    @torch.no_grad()
    def _forward(self, x: NDArray, training: bool) -> dict[str, NDArray]:
        X = self._images_in(x)
        with modes_kept(self._net):
            outputs = {"forward": self._net.train(training)(X)}
            statistics = {name: t for name, t in self._tensors.items() if is_statistic(name)}
            outputs |= statistics if training else self._net.activations(X)
        return {name: self._array(output) for name, output in outputs.items()}

    def frozen(self) -> set[str]:
        return {name for name, parameter in self._parameters.items() if not parameter.requires_grad}

    def _check_optimizer(self, recipe: Recipe) -> None:
        configure = self._net.configure_optimizers
        if getattr(configure, "__func__", None) is not Classifier.configure_optimizers:
            names = {parameter: name for name, parameter in self._parameters.items()}
            found = _figures(configured(configure, recipe), names)
            check_optimizer(self.arch, recipe, self._net.lr, self.frozen(), found)

    def _loss_and_gradients(self, x: NDArray, y: NDArray) -> contract.Evaluation:
        with modes_kept(self._called), gradients_kept(self._net):
            loss, logits = loss_and_gradients(
                self._called, self._images_in(x), self._tensor(y).long(), bfloat16=self.bfloat16
            )
            gradients = {n: self._array(p.grad) for n, p in self._parameters.items() if p.grad is not None}
        running = {name: self._array(t) for name, t in self._tensors.items() if is_statistic(name)}
        return contract.Evaluation(loss.item(), self._array(logits), gradients, running)

    def _keep(self) -> Callable[[], bool]:
        buffers = list(self._net.buffers())
        before = [torch.empty_like(buffer) for buffer in buffers]
        torch._foreach_copy_(before, buffers)  # on a GPU in one go
        self._has_moved = False

        def undo() -> bool:
            if self._has_moved:
                return False
            torch._foreach_copy_(buffers, before)
            return True

        return undo

    def _new_optimizer(self, recipe: Recipe) -> None:
        # the network's own does the same
        self._optimizer = Classifier.configure_optimizers(self._net, recipe)
        self._optimizer.register_step_pre_hook(self._note_move)
        self._average = {name: t.detach().clone() for name, t in self._tensors.items() if recipe.ema}
        self._trained: Classifier = self._called
        if self.group.workers > 1:
            with frozen_backbone(self._net) if recipe.freeze else nullcontext():
                self._trained = Parallel(self._net)  # type: ignore[assignment]  # as good as one

    def _begin_step(
        self, x: NDArray, y: NDArray, lr: float, recipe: Recipe
    ) -> Callable[[], tuple[float, int]]:
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["lr_share"]
        X, Y = self._images_in(x), self._tensor(y).long()
        with modes_kept(self._called), gradients_kept(self._net):
            loss, logits = train_step(self._trained, self._optimizer, X, Y, recipe, self.bfloat16)
        if recipe.ema:
            update_average(list(self._average.values()), list(self._tensors.values()), recipe.ema)
        correct = count_correct(logits, Y)
        if self.group.workers > 1:
            distributed.all_reduce(loss)
            distributed.all_reduce(correct)
        return lambda: (loss.item() / self.group.workers, int(correct))

    def _note_move(self, *_: object) -> None:
        self._has_moved = True

    def _sum(self, values: NDArray) -> NDArray:
        total = self._tensor(values)
        distributed.all_reduce(total)
        return total.numpy(force=True)

    def _optimizer_state(self) -> Weights:
        trained = {parameter for group in self._optimizer.param_groups for parameter in group["params"]}
        states = {n: (self._optimizer.state[p], p) for n, p in self._parameters.items() if p in trained}
        # what is frozen has not moved
        return {n: self._array(s.get("momentum_buffer", torch.zeros_like(p))) for n, (s, p) in states.items()}

    def _load_optimizer_state(self, state: Weights) -> None:
        for name, array in state.items():
            self._optimizer.state[self._parameters[name]]["momentum_buffer"] = self._tensor(array)

    def _averaged_weights(self) -> Weights:
        return {name: self._array(tensor) for name, tensor in self._average.items()}

    def _load_averaged_weights(self, weights: Weights) -> None:
        for name, array in weights.items():
            self._average[name].copy_(torch.from_numpy(array))

    def _surroundings(self) -> AbstractContextManager:
        return torch.inference_mode(False)  # and with gradients, whatever a caller's thread has switched off

    def _images_in(self, x: NDArray) -> Tensor:
        """(N, C, H, W), in the network's layout."""
        X = self._tensor(x).to(memory_format=self._layout)
        if self._is_compiled and len(self._shapes) < OWN_PROGRAMS:
            self._shapes.add(X.shape)
        if X.shape in self._shapes:
            torch._dynamo.mark_static(X)
        return X

    def _tensor(self, array: NDArray) -> Tensor:
        tensor = torch.tensor(array, device="cpu")  # a copy: `from_numpy` shares memory
        if self.device == "gpu":
            tensor = tensor.pin_memory()  # a GPU fetches it while it still computes the step before
        return tensor.to(self._device, non_blocking=True)

    def _array(self, tensor: Tensor) -> NDArray:
        return tensor.detach().to("cpu", self._type).numpy()


class Parallel(DistributedDataParallel):
    """PyTorch's engine around a network, to be trained as the network itself."""

    def __init__(self, net: Classifier) -> None:
        super().__init__(net, forward_sync_buffers=False)  # batch norm keeps them the same
        self.net, self.loss = net.net, net.loss


@cache  # once a process
def join(group: Group, device: str) -> None:
    """Join the other workers, by NCCL with a GPU each, else by Gloo.

    Raises:
        ValueError: unless each worker of this host has a GPU of its own.
    """
    if device == "gpu":
        group.check_gpus(torch.cuda.device_count())
        torch.cuda.set_device(group.local_rank)
    host, _, port = group.addresses[0].rpartition(":")
    # A store of its own, for an address alone would be taken for torchrun's wherever that started us.
    store = distributed.TCPStore(host, int(port), group.workers, is_master=group.rank == 0, timeout=PATIENCE)
    distributed.init_process_group(
        "nccl" if device == "gpu" else "gloo", store=store, rank=group.rank, world_size=group.workers
    )


def find(net: ResNet) -> dict[str, Found]:
    """All parameters and buffers by PyTorch's names, but for batch norm's counters."""
    tensors = dict(net.named_parameters(remove_duplicate=False)) | dict(
        net.named_buffers(remove_duplicate=False)
    )
    return {
        name: _found(tensor) for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")
    }


def _found(tensor: Tensor) -> Found:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if nn.parameter.is_lazy(tensor):
        return Found(None, dtype, id(tensor))
    if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer) or tensor.is_meta:
        kind = "meta" if tensor.is_meta else type(tensor).__name__
        return Found(tuple(tensor.shape), f"{dtype} ({kind})", id(tensor))
    return Found(tuple(tensor.shape), dtype, tensor.data_ptr())


def may_differ(net: ResNet) -> bool:
    """Whether its function may be another than its architecture's: any layer may be replaced."""
    return True


def twin(net: ResNet, dtype: str, device: str) -> Model:
    """A model of the same architecture, of ours alone, to compare with."""
    return Model(net.arch, dtype, device)


def _figures(optimizer: Any, names: dict[nn.Parameter, str]) -> dict[str, Figures] | str:
    """How an optimizer moves each parameter, or in words what it is that SGD is not."""
    if type(optimizer) is not torch.optim.SGD:
        return type(optimizer).__name__
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return "SGD with hooks"
    figures = {}
    for group in optimizer.param_groups:
        if "initial_lr" in group:
            return "SGD with a schedule"
        for option in ("nesterov", "dampening", "maximize"):
            if group[option]:
                return f"SGD with {option}"
        for parameter in group["params"]:
            if parameter not in names:
                return "SGD of more than the network's parameters"
            figures[names[parameter]] = Figures(group["lr"], group["momentum"], group["weight_decay"])
    return figures


def paths(arch: Architecture) -> dict[str, str]:
    """Canonical name to PyTorch's: "b2.0.conv1.weight" → "net.b2.0.conv1.weight"."""
    return {name: "net." + name.replace("last.", "last.dense.") for name in arch.parameter_shapes()}
