"""What several tests share: how far apart two results are, models, and weights where nothing is trivial."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from common.architecture import Architecture
from common.backend import BACKENDS, load_backend
from common.errors import BadInput
from common.weights import Weights, initial_weights

ROUNDING = 1e-12  # float64: activations, logits, loss, gradients, running statistics
TRAINED = 1e-10  # float64: weights after a run of SGD steps
SINGLE = 1e-5  # float32: logits in evaluation

CPUINFO = Path("/proc/cpuinfo")
HAS_AVX512 = not CPUINFO.exists() or "avx512" in CPUINFO.read_text()  # PyTorch's bfloat16 is oneDNN's

Arrays = Mapping[str, NDArray]


def deviation(a: ArrayLike | Arrays, b: ArrayLike | Arrays) -> float:
    """‖a − b‖₂ / ‖b‖₂, over all arrays together where there are several."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        assert list(a) == list(b)
        assert [a[name].shape for name in a] == [b[name].shape for name in b]
        a, b = (np.concatenate([array.ravel() for array in arrays.values()]) for arrays in (a, b))
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    difference = np.linalg.norm(a - b)
    return float(difference / np.linalg.norm(b)) if difference else 0.0  # nothing but zeros agree too


def worst(a: Arrays, b: Arrays) -> float:
    """The largest deviation of one array."""
    assert list(a) == list(b)
    return largest(deviation(a[name], b[name]) for name in a)


def worst_gradient(a: Arrays, b: Arrays) -> float:
    """The largest difference of one entry, relative to the largest gradient in the network."""
    assert list(a) == list(b)
    size = largest(np.abs(array).max() for array in b.values())
    return largest(np.abs(a[name] - b[name]).max() for name in a) / size


def largest(values: Iterable[float]) -> float:
    """NaN is larger than all, which Python's `max` forgets."""
    return float(np.max(list(values)))


def disagreements(a: Any, b: Any) -> dict[str, float]:
    """The deviations out of bounds, by name, between two of `run`."""
    (activations, evaluation), (activations_b, evaluation_b) = a, b
    found = {
        **{name: deviation(activations[name], activations_b[name]) for name in activations_b},
        "training logits": deviation(evaluation.logits, evaluation_b.logits),
        "loss": deviation(evaluation.loss, evaluation_b.loss),
        "gradients": deviation(evaluation.gradients, evaluation_b.gradients),
        "worst gradient": worst_gradient(evaluation.gradients, evaluation_b.gradients),
        "running statistics": worst(evaluation.running, evaluation_b.running),
    }
    return {name: value for name, value in found.items() if not value <= ROUNDING}


def run(model: Any, x: NDArray, y: NDArray) -> Any:
    """The outputs of every stage in evaluation, and a training pass."""
    return model.activations(x), model.loss_and_gradients(x, y)


def build(backend: str, arch: Architecture, dtype: str = "float64", device: str = "cpu") -> Any:
    """A model; the test is skipped, visibly, if it is for a GPU and this backend has none."""
    try:
        return load_backend(backend).build(arch, dtype, device)
    except BadInput as error:
        if device == "gpu" and "sees no GPU" in str(error):
            pytest.skip(str(error))
        raise


def default_dtype(backend: str) -> str:
    """The type this framework gives an array that names none."""
    if backend == "torch":
        import torch

        return str(torch.ones(1).dtype).removeprefix("torch.")
    if backend == "tf":
        import keras

        assert keras.config.dtype_policy().name == keras.config.floatx()
        return keras.Variable([1.0]).dtype
    if backend == "jax":
        import jax

        return str(jax.numpy.ones(1).dtype)
    assert backend == "mxnet"
    import mxnet

    return str(np.dtype(mxnet.np.ones(1).dtype))


@contextmanager
def optimised(backend: str) -> Iterator[None]:
    """JAX compiles as a user's does: a large network, which otherwise takes ten times as long to compute."""
    if backend != "jax":
        yield
        return
    import jax

    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, False)
    try:
        yield
    finally:
        jax.config.update(name, before)


built = cache(build)  # for tests that set the weights they need: some frameworks compile for seconds


def random_weights(arch: Architecture, seed: int = 0) -> Weights:
    """Initial weights, with no bias or mean left at 0 and no scale or variance at 1."""
    generator = np.random.default_rng([seed, 1])
    return {
        name: array + generator.uniform(-0.5, 0.5, array.shape) if array.ndim == 1 else array
        for name, array in initial_weights(arch, seed).items()
    }


def random_batch(
    arch: Architecture, count: int, height: int, width: int, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Images in [0, 1] and labels."""
    generator = np.random.default_rng([seed, 2])
    images = generator.random((count, arch.in_channels, height, width))
    return images, generator.integers(arch.num_classes, size=count)


def hide(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Make a backend look as if its framework were not installed."""
    monkeypatch.setitem(BACKENDS, name, replace(BACKENDS[name], packages=("no_such_framework",)))


def one_line(error: pytest.ExceptionInfo[BaseException], *words: str) -> None:
    """The message is one line and has these words."""
    message = str(error.value)
    assert message and "\n" not in message
    for word in words:
        assert word in message
