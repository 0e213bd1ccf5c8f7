"""A checkpoint written by one backend is read by every other: the same bits, the same predictions."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from common import load_checkpoint, save_checkpoint
from common.architecture import Architecture
from tests.helpers import ROUNDING, built, deviation, random_batch, random_weights

pytestmark = pytest.mark.xdist_group("pairs")  # each backend is compiled once

ARCH = Architecture(
    stages=((1, 8), (2, 12)), block="resnext", groups=(2, 3), bot_mul=0.5, in_channels=3, stem_channels=6
)


@cache
def trained(backend: str, device: str) -> tuple[dict[str, NDArray], NDArray]:
    """Weights and predictions after two steps; once a session for each backend."""
    x, y = random_batch(ARCH, 3, 33, 46)
    model = built(backend, ARCH, "float64", device)
    model.load_weights(random_weights(ARCH))
    for _ in range(2):
        model.train_step(x, y, lr=0.05)
    return model.weights(), model.predict(x)


def test_a_checkpoint_of_one_backend_loads_in_the_other(
    backend_pair: tuple[str, str], device: str, tmp_path: Path
) -> None:
    writer, reader = backend_pair
    weights, predictions = trained(writer, device)
    save_checkpoint(tmp_path / "run.safetensors", ARCH, weights)

    arch, loaded = load_checkpoint(tmp_path / "run.safetensors")
    assert arch == ARCH
    model = built(reader, arch, "float64", device)
    model.load_weights(loaded)
    for name, array in model.weights().items():
        np.testing.assert_array_equal(array, weights[name], err_msg=name)
    x, _ = random_batch(ARCH, 3, 33, 46)
    assert deviation(model.predict(x), predictions) <= ROUNDING


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.core_in("torch")), "float64"])
def test_a_model_goes_on_from_its_checkpoint(backend: str, device: str, tmp_path: Path, dtype: str) -> None:
    """What is saved is all there is: predictions are those before, bit for bit."""
    x, y = random_batch(ARCH, 3, 33, 46)
    model = built(backend, ARCH, dtype, device)
    model.load_weights(random_weights(ARCH))
    model.train_step(x, y, lr=0.05)
    predictions = model.predict(x)
    save_checkpoint(tmp_path / "run.safetensors", ARCH, model.weights())
    model.train_step(x, y, lr=0.05)
    assert deviation(model.predict(x), predictions) > ROUNDING
    _, loaded = load_checkpoint(tmp_path / "run.safetensors")
    assert {array.dtype for array in loaded.values()} == {np.dtype(dtype)}
    model.load_weights(loaded)
    np.testing.assert_array_equal(model.predict(x), predictions)
