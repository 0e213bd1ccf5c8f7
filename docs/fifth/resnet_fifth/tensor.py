"""The framework: arrays that know what they were computed from, and so find their gradients."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

Back = Callable[[NDArray], NDArray]  # the gradient of an output → that of an input
numbers = count()


class Tensor:
    """An array, the tensors it was computed from, and for each of these the way its gradient goes back."""

    def __init__(self, data: Any, *parents: tuple[Tensor, Back]) -> None:
        self.data = data
        self.parents = parents
        self.grad: Any = None
        self.number = next(numbers)

    def backward(self) -> None:
        """Give every tensor that this number was computed from its gradient.

        A tensor is younger than those it was computed from. The youngest first: then a gradient is whole,
        from all the ways that lead to a tensor, before it goes on.
        """
        self.grad = np.ones_like(self.data)
        waiting = {self.number: self}
        while waiting:
            tensor = waiting.pop(max(waiting))
            for parent, back in tensor.parents:
                gradient = back(tensor.grad)
                parent.grad = gradient if parent.grad is None else parent.grad + gradient
                waiting[parent.number] = parent

    def __add__(self, other: Tensor | float) -> Tensor:
        other = other if isinstance(other, Tensor) else Tensor(other)
        a, b = self.data, other.data
        return Tensor(a + b, (self, lambda dy: shaped(dy, a)), (other, lambda dy: shaped(dy, b)))

    def __mul__(self, other: Tensor | float) -> Tensor:
        other = other if isinstance(other, Tensor) else Tensor(other)
        a, b = self.data, other.data
        return Tensor(a * b, (self, lambda dy: shaped(dy * b, a)), (other, lambda dy: shaped(dy * a, b)))

    def __sub__(self, other: Tensor) -> Tensor:
        return self + other * -1

    def __pow__(self, power: float) -> Tensor:
        return Tensor(self.data**power, (self, lambda dy: dy * power * self.data ** (power - 1)))

    def __matmul__(self, other: Tensor) -> Tensor:
        a, b = self.data, other.data
        back = (lambda dy: dy @ b.swapaxes(-1, -2)), (lambda dy: a.swapaxes(-1, -2) @ dy)
        return Tensor(a @ b, (self, back[0]), (other, back[1]))

    def exp(self) -> Tensor:
        y = np.exp(self.data)
        return Tensor(y, (self, lambda dy: dy * y))

    def log(self) -> Tensor:
        return Tensor(np.log(self.data), (self, lambda dy: dy / self.data))

    def relu(self) -> Tensor:
        return Tensor(np.maximum(self.data, 0), (self, lambda dy: dy * (self.data > 0)))

    def sum(self) -> Tensor:
        """Over the first axis."""
        return Tensor(self.data.sum(0), (self, lambda dy: np.broadcast_to(dy, self.data.shape)))

    def max(self, axis: int) -> Tensor:
        """Over an axis; the first of equals gets the gradient."""
        largest = np.expand_dims(self.data.argmax(axis), axis)

        def back(dy: NDArray) -> NDArray:
            dx = np.zeros_like(self.data)
            np.put_along_axis(dx, largest, np.expand_dims(dy, axis), axis)
            return dx

        return Tensor(np.take_along_axis(self.data, largest, axis).squeeze(axis), (self, back))

    def reshape(self, *shape: int) -> Tensor:
        return Tensor(self.data.reshape(shape), (self, lambda dy: dy.reshape(self.data.shape)))

    def transpose(self, *axes: int) -> Tensor:
        return Tensor(self.data.transpose(axes), (self, lambda dy: dy.transpose(np.argsort(axes))))

    def windows(self, size: int, stride: int, around: list[tuple[int, int]], value: float = 0.0) -> Tensor:
        """(N, H, W, C) → (N, H', W', size², C): what a window sees at each of its places, row by row.

        `around` are the pixels of this value above and below, left and right.
        """
        padded = np.pad(self.data, ((0, 0), *around, (0, 0)), constant_values=value)
        ends = [pixels - size + 1 for pixels in padded.shape[1:3]]
        views = [
            np.s_[:, i : i + ends[0] : stride, j : j + ends[1] : stride]
            for i in range(size)
            for j in range(size)
        ]

        def back(dy: NDArray) -> NDArray:
            dpadded = np.zeros_like(padded)
            for k, view in enumerate(views):
                dpadded[view] += dy[:, :, :, k]
            (top, _), (left, _) = around
            _, height, width, _ = self.data.shape
            return dpadded[:, top : top + height, left : left + width]

        return Tensor(np.stack([padded[view] for view in views], axis=3), (self, back))


def shaped(dy: NDArray, like: Any) -> NDArray:
    """What was repeated along leading axes collects the gradients of all its copies.

    One axis after another: long sums of equal numbers, added in one go, pile up their rounding errors.
    """
    while dy.ndim > np.ndim(like):
        dy = dy.sum(0)
    return dy
