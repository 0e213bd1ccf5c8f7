"""The contract under PyTorch: NumPy in, NumPy out."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import common.backend as contract
from common.architecture import Architecture
from common.errors import BadInput
from common.weights import Weights, is_statistic
from resnet_torch.layers import use_full_float32
from resnet_torch.resnet import ResNet
from resnet_torch.training import loss_and_gradients, train_step


class Model(contract.Model):
    """A ResNet in PyTorch under the contract."""

    dtypes = ("float32", "float64", "bfloat16")

    def __init__(self, arch: Architecture, dtype: str, device: str, net: ResNet | None = None) -> None:
        super().__init__(arch, dtype, device)
        if device == "gpu":
            if not torch.cuda.is_available():
                raise BadInput("PyTorch sees no GPU; use device cpu, or install PyTorch with CUDA")
            use_full_float32()
        self._device = torch.device("cuda" if device == "gpu" else "cpu")
        self._net = (net or ResNet(arch)).to(self._device, getattr(torch, self.dtype))
        self._net.bfloat16 = self.bfloat16
        self._is_new = any(nn.parameter.is_lazy(parameter) for parameter in self._net.parameters())
        with torch.no_grad():  # one image gives the lazy layers their shapes
            self._net.eval()(self._tensor(np.zeros((1, arch.in_channels, 32, 32), self.dtype)))
        state = self._net.state_dict()
        self._tensors = {name: state[_path(name)] for name in arch.parameter_shapes()}
        self._parameters = {
            name: self._net.get_parameter(_path(name)) for name in self._tensors if not is_statistic(name)
        }

    @torch.no_grad()
    def _load_weights(self, weights: Weights) -> None:
        for name, array in weights.items():
            self._tensors[name].copy_(torch.from_numpy(array))

    def _weights(self) -> Weights:
        return {name: _numpy(tensor) for name, tensor in self._tensors.items()}

    @torch.no_grad()
    def _predict(self, x: NDArray) -> NDArray:
        return _numpy(self._net.eval()(self._tensor(x)))

    @torch.no_grad()
    def _activations(self, x: NDArray) -> dict[str, NDArray]:
        outputs = self._net.eval().activations(self._tensor(x))
        return {name: _numpy(output) for name, output in outputs.items()}

    def _loss_and_gradients(self, x: NDArray, y: NDArray) -> contract.Evaluation:
        statistics = {name: t for name, t in self._tensors.items() if is_statistic(name)}
        before = {name: tensor.clone() for name, tensor in statistics.items()}
        loss, logits = loss_and_gradients(self._net, self._tensor(x), self._tensor(y).long())
        running = {name: _numpy(tensor).copy() for name, tensor in statistics.items()}
        for name, tensor in statistics.items():
            tensor.copy_(before[name])
        gradients = {name: _numpy(p.grad).copy() for name, p in self._parameters.items()}
        return contract.Evaluation(loss.item(), _numpy(logits), gradients, running)

    def _new_optimizer(self, momentum: float, weight_decay: float) -> None:
        self._optimizer = self._net.configure_optimizers(momentum, weight_decay)

    def _train_step(self, x: NDArray, y: NDArray, lr: float) -> tuple[float, NDArray]:
        self._optimizer.param_groups[0]["lr"] = lr
        loss, logits = train_step(self._net, self._optimizer, self._tensor(x), self._tensor(y).long())
        return loss.item(), _numpy(logits)

    def _optimizer_state(self) -> Weights:
        states = {name: self._optimizer.state[p] for name, p in self._parameters.items()}
        velocities = {name: state.get("momentum_buffer") for name, state in states.items()}
        return {name: _numpy(velocity) for name, velocity in velocities.items() if velocity is not None}

    def _load_optimizer_state(self, state: Weights) -> None:
        for name, array in state.items():
            self._optimizer.state[self._parameters[name]]["momentum_buffer"] = self._tensor(array)

    def _tensor(self, array: NDArray) -> Tensor:
        return torch.from_numpy(array).to(self._device)


def _path(name: str) -> str:
    """Canonical name to PyTorch's: "b2.0.conv1.weight" → "net.b2.0.conv1.weight"."""
    return "net." + name.replace("last.", "last.dense.")


def _numpy(tensor: Tensor) -> NDArray:
    return tensor.detach().cpu().numpy()
