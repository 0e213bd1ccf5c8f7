"""The contract: NumPy in, NumPy out, images (N, C, H, W), weights by canonical name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

import common.backend as contract
from common.architecture import Architecture
from common.errors import BadInput
from common.recipe import PLAIN, Recipe, is_last
from common.weights import Weights, is_statistic
from resnet_fifth.layers import softmax_cross_entropy
from resnet_fifth.resnet import resnet
from resnet_fifth.tensor import Tensor


class Model(contract.Model):
    """A ResNet of this framework under the contract."""

    def __init__(self, arch: Architecture, dtype: str, device: str) -> None:
        super().__init__(arch, dtype, device)
        if device == "gpu":
            raise BadInput("NumPy sees no GPU; use device cpu")
        self._net = resnet(arch)
        tensors = dict(self._net.tensors())
        self._tensors = {name: tensors[name] for name in arch.parameter_shapes()}

    def _load_weights(self, weights: Weights) -> None:
        for name, array in weights.items():
            self._tensors[name].data = own(array)

    def _weights(self) -> Weights:
        return canonical({name: tensor.data for name, tensor in self._tensors.items()})

    def _predict(self, x: NDArray) -> NDArray:
        return self._activations(x)["last"]

    def _activations(self, x: NDArray) -> dict[str, NDArray]:
        outputs = self._pass(x, training=False)
        return {name: images_out(output.data) for name, output in outputs.items()}

    def _pass(self, x: NDArray, training: bool, detach: str = "") -> dict[str, Tensor]:
        """Outputs of b1, b2, …, last; no gradient goes back through what `detach` freezes."""
        outputs, X = {}, Tensor(x.transpose(0, 2, 3, 1))
        for name, layer in vars(self._net).items():
            if detach and name == "last":
                X = Tensor(X.data)
            outputs[name] = X = layer(X, training)
        return outputs

    def _loss_and_gradients(self, x: NDArray, y: NDArray) -> contract.Evaluation:
        before = {name: tensor.data for name, tensor in self._tensors.items() if is_statistic(name)}
        loss, logits = self._training_pass(x, y, PLAIN)
        running = {name: np.array(self._tensors[name].data) for name in before}
        for name, array in before.items():
            self._tensors[name].data = array
        gradients = {name: t.grad for name, t in self._tensors.items() if not is_statistic(name)}
        return contract.Evaluation(float(loss.data), np.array(logits.data), canonical(gradients), running)

    def _training_pass(self, x: NDArray, y: NDArray, recipe: Recipe) -> tuple[Tensor, Tensor]:
        """Loss and logits; each parameter's gradient is left in its `grad`."""
        for tensor in self._tensors.values():
            tensor.grad = None
        logits = self._pass(x, not recipe.freeze, recipe.freeze)["last"]
        loss = softmax_cross_entropy(logits, y, recipe.label_smoothing)
        loss.backward()
        return loss, logits

    def _new_optimizer(self, recipe: Recipe) -> None:
        trained = [name for name in self._tensors if recipe.trains(name)]
        self._velocity = {name: np.zeros_like(self._tensors[name].data) for name in trained}
        self._average = {name: tensor.data for name, tensor in self._tensors.items()}

    def _begin_step(
        self, x: NDArray, y: NDArray, lr: float, recipe: Recipe
    ) -> Callable[[], tuple[float, int]]:
        loss, logits = self._training_pass(x, y, recipe)
        for name, velocity in self._velocity.items():
            weight, rate = self._tensors[name], lr if is_last(name) else lr * recipe.lr_backbone
            # Trap: weight decay is added to the gradient, and so goes through momentum and learning rate.
            decay = 0.0 if recipe.no_decay_norm and weight.data.ndim == 1 else recipe.weight_decay
            self._velocity[name] = recipe.momentum * velocity + weight.grad + decay * weight.data
            weight.data = weight.data - rate * self._velocity[name]
        for name, average in self._average.items() if recipe.ema else ():
            self._average[name] = recipe.ema * average + (1 - recipe.ema) * self._tensors[name].data
        correct = int((logits.data.argmax(1) == y).sum())
        return lambda: (float(loss.data), correct)

    def _optimizer_state(self) -> Weights:
        return canonical(self._velocity)

    def _load_optimizer_state(self, state: Weights) -> None:
        self._velocity = {name: own(array) for name, array in state.items()}

    def _averaged_weights(self) -> Weights:
        return canonical(self._average)

    def _load_averaged_weights(self, weights: Weights) -> None:
        self._average = {name: own(array) for name, array in weights.items()}


def own(array: NDArray) -> NDArray:
    """The contract's layout to ours: convolutions OIHW → HWIO, dense (out, in) → (in, out).

    Anew in memory, because a product may round otherwise where its arrays lie otherwise.
    """
    return np.ascontiguousarray(array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T)


def canonical(arrays: Mapping[str, NDArray]) -> Weights:
    """Ours to the contract's, as copies that the caller may write in."""
    return {
        name: np.array(array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T)
        for name, array in arrays.items()
    }


def images_out(array: NDArray) -> NDArray:
    """(N, H, W, C) → (N, C, H, W), and logits as they are."""
    return np.array(array.transpose(0, 3, 1, 2) if array.ndim == 4 else array)
