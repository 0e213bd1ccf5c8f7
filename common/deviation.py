"""How far two tensors are apart, and two networks.

A deviation is ‖a − b‖₂ / ‖b‖₂; for the worst gradient tensor it is ‖a − b‖∞ over the largest gradient in the
network, because the bias of a convolution before batch norm has a gradient of exactly zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.weights import Weights


def distance(a: Mapping[str, NDArray], b: Mapping[str, NDArray]) -> float:
    """‖a − b‖₂ / ‖b‖₂ over all tensors together."""
    difference = sum(_square(a[name] - b[name]) for name in b)
    return ratio(difference**0.5, sum(_square(tensor) for tensor in b.values()) ** 0.5)


def deviation(a: ArrayLike, b: ArrayLike) -> float:
    """‖a − b‖₂ / ‖b‖₂."""
    return distance({"": np.asarray(a)}, {"": np.asarray(b)})


def worst_gradient(a: Weights, b: Weights) -> float:
    """The largest ‖a − b‖∞ of one tensor, over the largest entry of all of b."""
    largest = worst(np.abs(tensor).max() for tensor in b.values())
    return ratio(worst(np.abs(a[name] - b[name]).max() for name in b), largest)


def worst(values: Iterable[float]) -> float:
    """The largest; NaN is larger than all, which Python's `max` forgets."""
    return float(np.max(list(values)))


def _square(tensor: NDArray) -> float:
    flat = tensor.astype(np.float64, copy=False).ravel()
    return float(flat @ flat)


def ratio(difference: float, size: float) -> float:
    """Zero only for equal things: a difference from nothing is infinite, and NaN stays NaN."""
    if difference == 0:
        return 0.0
    return float(difference / size) if size else np.inf
