"""The layers, over images (N, H, W, C), and the places where frameworks disagree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_fifth.tensor import Tensor


class Module:
    """What holds tensors, itself or in its parts; a name is the way there: "b2.0.conv1.weight"."""

    def tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                yield prefix + name, value
            elif isinstance(value, Module):
                yield from value.tensors(f"{prefix}{name}.")


class Sequential(Module):
    """Layers in a row, by name."""

    def __init__(self, layers: dict[str, Any]) -> None:
        vars(self).update(layers)

    def __call__(self, X: Tensor, training: bool = False) -> Tensor:
        for layer in vars(self).values():
            X = layer(X, training)
        return X


class Layer(Module):
    """A layer with a weight and a bias. The contract gives it both, so it need not know their shapes."""

    def __init__(self) -> None:
        self.weight, self.bias = Tensor(0), Tensor(0)


def pads(X: Tensor, size: int, stride: int, padding: str) -> list[tuple[int, int]]:
    """Pixels above and below, left and right of the images.

    Trap: "symmetric" pads size // 2 on all sides. "same" pads as little as will do, the odd pixel below
    and on the right.
    """
    if padding == "symmetric":
        return [(size // 2, size // 2)] * 2
    needed = [max((-(-n // stride) - 1) * stride + size - n, 0) for n in X.data.shape[1:3]]
    return [(n // 2, n - n // 2) for n in needed]


class Conv2d(Layer):
    """A convolution in groups. Its weight is (k, k, C / groups, O), so its shape says how many there are."""

    def __init__(self, stride: int = 1, padding: str = "symmetric") -> None:
        super().__init__()
        self.stride, self.padding = stride, padding

    def __call__(self, X: Tensor, training: bool = False) -> Tensor:
        k, _, c, o = self.weight.data.shape
        groups = X.data.shape[-1] // c
        windows = X.windows(k, self.stride, pads(X, k, self.stride, self.padding))
        n, height, width, _, _ = windows.data.shape
        seen = windows.reshape(n * height * width, k * k, groups, c).transpose(2, 0, 1, 3)
        weight = self.weight.reshape(k * k * c, groups, o // groups).transpose(1, 0, 2)
        Y = seen.reshape(groups, n * height * width, k * k * c) @ weight  # for each group a matrix product
        return Y.transpose(1, 0, 2).reshape(n, height, width, o) + self.bias


class BatchNorm(Layer):
    """Batch norm over the channels; running statistics are tensors that no gradient reaches."""

    def __init__(self, epsilon: float, decay: float) -> None:
        super().__init__()
        self.running_mean, self.running_var = Tensor(0), Tensor(0)
        self.epsilon, self.decay = epsilon, decay

    def __call__(self, X: Tensor, training: bool = False) -> Tensor:
        if not training:
            return self.normalise(X - self.running_mean, self.running_var)
        mean = channel_mean(X)
        centred = X - mean  # Trap: E[x²] − E[x]² would lose the digits that both have
        var = channel_mean(centred * centred)
        self.update(self.running_mean, mean)
        self.update(self.running_var, var)  # Trap: the biased variance, not n / (n − 1) times it
        return self.normalise(centred, var)

    def normalise(self, centred: Tensor, var: Tensor) -> Tensor:
        return centred * (var + self.epsilon) ** -0.5 * self.weight + self.bias

    def update(self, running: Tensor, new: Tensor) -> None:
        """Trap: `decay` is what is kept of the old, which some call momentum and others 1 − momentum."""
        running.data = self.decay * running.data + (1 - self.decay) * new.data


def channel_mean(X: Tensor) -> Tensor:
    """(N, H, W, C) → (C,)."""
    return X.sum().sum().sum() * (1 / (X.data.size // X.data.shape[-1]))


class MaxPool2d(Module):
    """3×3 max-pool at stride 2; around the image is −∞, which is never the largest."""

    def __init__(self, padding: str) -> None:
        self.padding = padding

    def __call__(self, X: Tensor, training: bool = False) -> Tensor:
        return X.windows(3, 2, pads(X, 3, 2, self.padding), -np.inf).max(axis=3)


class Dense(Layer):
    """Global average pool, then the logits: (N, H, W, C) → (N, classes)."""

    def __call__(self, X: Tensor, training: bool = False) -> Tensor:
        _, height, width, _ = X.data.shape
        return X.transpose(1, 2, 0, 3).sum().sum() * (1 / (height * width)) @ self.weight + self.bias


def relu(X: Tensor, training: bool = False) -> Tensor:
    """max(X, 0)."""
    return X.relu()


def identity(X: Tensor, training: bool = False) -> Tensor:
    """A shortcut that has nothing to do."""
    return X


def softmax_cross_entropy(logits: Tensor, labels: NDArray, smoothing: float = 0.0) -> Tensor:
    """The mean loss. Trap: it takes logits, and the softmax is in here; a second one would flatten it."""
    n, classes = logits.data.shape
    targets = np.full((classes, n), smoothing / classes, logits.data.dtype)
    targets[labels, np.arange(n)] += 1 - smoothing
    columns = logits.transpose(1, 0)
    shifted = columns - Tensor(columns.data.max(0))  # so that no exponential overflows
    log_probabilities = shifted - shifted.exp().sum().log()
    return (log_probabilities * Tensor(targets)).sum().sum() * (-1 / n)
