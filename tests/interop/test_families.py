"""Other frameworks' networks: the same logits, gradients and statistics, and the same bits there and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.architecture import Architecture
from common.backend import load_backend
from common.interop.convert import from_family, to_family
from common.interop.families import FAMILIES
from common.interop.files import read_tensors, write_tensors
from common.weights import Weights
from tests.helpers import ROUNDING, built, deviation, random_batch, random_weights, worst, worst_gradient
from tests.interop.sources import Source, flax_example, gluon, keras

TRAINING = 1e-11

BASIC = Architecture(((1, 8), (2, 12)), in_channels=3, num_classes=5, stem_channels=8)
BOTTLENECK = Architecture(
    ((2, 16), (1, 32)), "resnext", in_channels=3, num_classes=5, stem_channels=8, groups=(4, 8), bot_mul=0.25
)
# Family, the backend of its framework, how its network is made, and a network.
SOURCES: dict[str, tuple[str, Callable[[Architecture], Source], Architecture]] = {
    "keras": ("keras", keras, replace(BOTTLENECK, stem_channels=64)),
    "gluon basic": ("gluon", gluon, BASIC),
    "gluon bottleneck": ("gluon", gluon, BOTTLENECK),
    "flax-example basic": ("flax-example", flax_example, BASIC),
    "flax-example bottleneck": ("flax-example", flax_example, BOTTLENECK),
}
SIZES = [(65, 97), (64, 96), (97, 131)]


def network(name: str) -> tuple[str, Source, Architecture, Weights]:
    """The family, its own network, and ours of the same architecture with weights that it can hold."""
    family, make, arch = SOURCES[name]
    arch = replace(arch, **FAMILIES[family].axes(arch.block == "residual"))
    kept = FAMILIES[family].names(arch)
    weights = {
        name: abs(array) + 0.1
        if name.endswith("running_var")
        else array
        if name in kept
        else np.zeros_like(array)
        for name, array in random_weights(arch).items()
    }
    return family, make(arch), arch, weights


@pytest.mark.parametrize("name", SOURCES)
def test_a_family_computes_what_we_compute_and_comes_back_bit_for_bit(
    name: str, backends: list[str], device: str, tmp_path: Path
) -> None:
    family, source, arch, weights = network(name)
    if FAMILIES[family].framework not in backends:
        pytest.skip(f"{FAMILIES[family].framework} is not under test")
    there = to_family(arch, weights, family)
    assert not there.rounded and not there.inference_only
    path = tmp_path / f"theirs{source.suffix}"
    write_tensors(path, family, arch, there.tensors, {})
    source.load(path)
    source.save(tmp_path / f"own{source.suffix}")
    saved = next(tmp_path.glob("own*"))

    tensors, halves = read_tensors(saved)
    back = from_family(tensors)
    assert (back.family, back.arch, halves) == (family, arch, [])
    assert list(back.tensors) == list(weights)
    for key, array in back.tensors.items():
        assert array.dtype == np.float64 and array.tobytes() == weights[key].tobytes(), key

    own = load_backend(FAMILIES[family].framework).own_network(family, arch, path)
    models = [built(backend, arch, device=device) for backend in backends]
    for model in models:
        model.load_weights(weights)
    for size in SIZES:
        x, _ = random_batch(arch, 2, *size)
        expected = own(x)
        for model in models:
            assert deviation(model.predict(x), expected) <= ROUNDING

    x, y = random_batch(arch, 3, 65, 47)
    logits, gradients, running = source.training(x, y)
    names, theirs = FAMILIES[family].names(arch), FAMILIES[family]
    for model in models:
        found = model.loss_and_gradients(x, y)
        ours = {key: array for key, array in found.gradients.items() if key in names}
        expected = {key: theirs.to_ours(gradients[names[key]]) for key in ours}
        assert deviation(found.logits, logits) <= TRAINING
        assert deviation(ours, expected) <= TRAINING
        assert worst_gradient(ours, expected) <= TRAINING
        assert worst(found.running, {key: running[names[key]] for key in found.running}) <= TRAINING
