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
from common.errors import BadInput
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
                raise BadInput("PyTorch sees no GPU; use device cpu, or install PyTorch with CUDA")
            use_full_float32(not self.tf32)
        if group.workers > 1:
            join(group, device)
        self._device = torch.device("cuda" if device == "gpu" else "cpu")
        self._type = getattr(torch, self.dtype)
        is_faster = device == "cpu" or self.bfloat16  # in memory, (N, H, W, C)
        self._layout = torch.channels_last if is_faster else torch.preserve_format
        self._net = (ResNet(arch) if net is None else self.network(net)).to(self._device, self._type)
        self._is_new = any(nn.parameter.is_lazy(parameter) for parameter in self._net.parameters())
        if self._is_new:  # one image gives the lazy layers their shapes; what they draw is not kept
            image = torch.zeros(1, arch.in_channels, 32, 32, dtype=self._type, device=self._device)
            gpus = [torch.cuda.current_device()] if device == "gpu" else []
            with torch.no_grad(), drawing, torch.random.fork_rng(gpus):
                self._net.eval()(image)
        self._net.to(memory_format=self._layout)  # type: ignore[call-overload]  # not in PyTorch's stubs
        state = self._net.state_dict()
        self._tensors = {name: state[_path(name)] for name in arch.parameter_shapes()}
        self._parameters = {
            name: self._net.get_parameter(_path(name)) for name in self._tensors if not is_statistic(name)
        }
        self._stages = self._net.activations
        self._has_moved = False
        self._called = self._net if net is None else net  # as its user has compiled it
        self._is_compiled = False
        self._shapes: set[torch.Size] = set()  # with a program of their own; all others share one

    @staticmethod
    def network(net: nn.Module) -> ResNet:
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
        for name, array in weights.items():
            self._tensors[name].copy_(torch.from_numpy(array))

    def _weights(self) -> Weights:
        return {name: self._array(tensor) for name, tensor in self._tensors.items()}

    @torch.no_grad()
    def _predict(self, x: NDArray) -> NDArray:
        X = self._images_in(x)
        with modes_kept(self._net), autocast(X, self.bfloat16):
            return self._array(self._called.eval()(X))

    @torch.no_grad()
    def _activations(self, x: NDArray) -> dict[str, NDArray]:
        X = self._images_in(x)
        with modes_kept(self._net), autocast(X, self.bfloat16):
            self._net.eval()
            outputs = self._stages(X)
        return {name: self._array(output) for name, output in outputs.items()}

    def _loss_and_gradients(self, x: NDArray, y: NDArray) -> contract.Evaluation:
        with modes_kept(self._net), gradients_kept(self._net):
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
        self._optimizer = self._net.configure_optimizers(recipe)
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
        states = {name: self._optimizer.state[p] for name, p in self._parameters.items()}
        velocities = {name: state.get("momentum_buffer") for name, state in states.items()}
        return {name: self._array(velocity) for name, velocity in velocities.items() if velocity is not None}

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


def _path(name: str) -> str:
    """Canonical name to PyTorch's: "b2.0.conv1.weight" → "net.b2.0.conv1.weight"."""
    return "net." + name.replace("last.", "last.dense.")
