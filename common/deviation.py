"""How far two tensors are apart, and two networks.

A deviation is ‖a − b‖₂ / ‖b‖₂; for the worst gradient tensor it is ‖a − b‖∞ over the largest gradient in the
network, because the bias of a convolution before batch norm has a gradient of exactly zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.weights import Weights

CHUNK = 1 << 13  # numbers at a time: they fit the cache, and wake no threads of BLAS


def distance(a: Mapping[str, NDArray], b: Mapping[str, NDArray]) -> float:
    """‖a − b‖₂ / ‖b‖₂ over all tensors together."""
    difference = sum(_square(part) for name in b for part in _differences(a[name], b[name]))
    return ratio(difference**0.5, norm(b))


def norm(tensors: Mapping[str, NDArray]) -> float:
    """‖b‖₂ over all tensors together."""
    return sum(_square(part) for tensor in tensors.values() for part in _chunks(tensor)) ** 0.5


def deviation(a: ArrayLike, b: ArrayLike) -> float:
    """‖a − b‖₂ / ‖b‖₂."""
    return distance({"": np.asarray(a)}, {"": np.asarray(b)})


def worst_gradient(a: Weights, b: Weights) -> float:
    """The largest ‖a − b‖∞ of one tensor, over the largest entry of all of b."""
    largest = worst(_largest(part) for tensor in b.values() for part in _chunks(tensor))
    difference = worst(_largest(part) for name in b for part in _differences(a[name], b[name]))
    return ratio(difference, largest)


def worst(values: Iterable[float]) -> float:
    """The largest; NaN is larger than all, which Python's `max` forgets."""
    return float(np.max(list(values)))


def ratio(difference: float, size: float) -> float:
    """Zero only for equal things: a difference from nothing is infinite, and NaN stays NaN."""
    if difference == 0:
        return 0.0
    return float(difference / size) if size else np.inf


def _chunks(tensor: NDArray) -> Iterator[NDArray]:
    flat = tensor.ravel()
    return (flat[start : start + CHUNK] for start in range(0, flat.size, CHUNK))


def _differences(a: NDArray, b: NDArray) -> Iterator[NDArray]:
    return map(np.subtract, _chunks(a), _chunks(b))


def _square(part: NDArray) -> float:
    part = part.astype(np.float64, copy=False)
    return float(part @ part)


def _largest(part: NDArray) -> float:
    return float(np.abs(part).max())
