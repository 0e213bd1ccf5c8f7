"""The published networks, converted: the same function in every backend, and what conversion costs."""

from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from common.architecture import ZOO, Architecture, architecture
from common.backend import load_backend
from common.interop.convert import Converted, from_family, to_family
from common.interop.families import FAMILIES
from common.interop.files import read_tensors, write_tensors
from common.summary import parts
from common.weights import initial_weights
from tests.helpers import ROUNDING, build, deviation, random_batch, worst_gradient
from tests.interop.families import (
    logits,
    named_as_theirs,
    randomised,
    state,
    timm,
    torchvision,
    training,
    transformers,
)
from tests.interop.sources import network
from tests.test_architecture import PUBLISHED

DEEP_ROUNDING = 1e-11  # logits of a hundred layers and more; gradients of fifty

TIMES_THE_FILE = 3  # the memory that the conversion of a ResNet-152 may take
MOST_SECONDS = 10  # 5 on a quiet machine

NETWORKS: dict[str, tuple[Callable[[], Any], str, float]] = {
    "torchvision resnet50": (lambda: torchvision().models.resnet50(), "resnet50", ROUNDING),
    "timm resnet34": (lambda: timm().create_model("resnet34"), "resnet34_v1", ROUNDING),
    "timm resnext50_32x4d": (lambda: timm().create_model("resnext50_32x4d"), "resnext50_32x4d", ROUNDING),
    "transformers resnet50": (lambda: transformers(num_labels=1000), "resnet50", ROUNDING),
    "torchvision resnet152": (lambda: torchvision().models.resnet152(), "resnet152", DEEP_ROUNDING),
    "torchvision resnext101_32x8d": (
        lambda: torchvision().models.resnext101_32x8d(),
        "resnext101_32x8d",
        DEEP_ROUNDING,
    ),
}
SIZES = [(224, 224), (97, 131)]


@dataclass(frozen=True)
class Case:
    """A converted network, images, and the logits that the source makes of them."""

    name: str
    converted: Converted
    batches: list[tuple[NDArray, NDArray]]


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in NETWORKS]
)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    make, _, _ = NETWORKS[request.param]
    model = randomised(make())
    converted = from_family(state(model))
    images = [random_batch(converted.arch, 1, *size)[0] for size in SIZES]
    yield Case(request.param, converted, [(x, logits(model, x)) for x in images])
    gc.collect()


def megabytes() -> float:
    """The most this process has held in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def check(case: Case, backend: str, device: str) -> None:
    _, name, bound = NETWORKS[case.name]
    arch = case.converted.arch
    assert arch == architecture(name, in_channels=3, num_classes=1000)
    start = time.perf_counter()
    model = build(backend, arch, device=device)
    model.load_weights(case.converted.tensors)
    found = [deviation(model.predict(x), expected) for x, expected in case.batches]
    seconds = time.perf_counter() - start
    print(
        f"{case.name} in {backend}: deviations {', '.join(f'{value:.1e}' for value in found)}; "
        f"{seconds:.1f} s; at most {megabytes():,.0f} MB so far"
    )
    assert max(found) <= bound


def test_logits_are_those_of_the_source(case: Case, backend: str, device: str) -> None:
    check(case, backend, device)


def test_the_oracle_agrees(case: Case) -> None:
    check(case, "oracle", "cpu")


def test_resnet50_trains_as_the_source_does(backend: str, device: str) -> None:
    model = randomised(torchvision().models.resnet50(num_classes=10))
    converted = from_family(state(model))
    x, y = random_batch(converted.arch, 4, 97, 131)
    expected = training(model, x, y)
    ours = build(backend, converted.arch, device=device)
    ours.load_weights(converted.tensors)
    evaluation = ours.loss_and_gradients(x, y)
    found = named_as_theirs(converted, evaluation.gradients)
    theirs = {name: expected.gradients[name] for name in found}
    assert len(theirs) == len(expected.gradients)
    deviations = (
        deviation(evaluation.logits, expected.logits),
        deviation(found, theirs),
        worst_gradient(found, theirs),
    )
    print(f"{backend}: logits, gradients and the worst tensor {', '.join(f'{d:.1e}' for d in deviations)}")
    assert max(deviations) <= DEEP_ROUNDING


@pytest.mark.parametrize(
    ("family", "name"), [("keras", "resnet101"), ("gluon", "resnet152"), ("flax-example", "resnet50")]
)
def test_a_deep_network_of_another_framework(
    tmp_path: Path, backends: list[str], device: str, family: str, name: str
) -> None:
    """Its own against ours in its framework and in PyTorch, both of which have other convolutions."""
    theirs = FAMILIES[family]
    if theirs.framework not in backends or "torch" not in backends:
        pytest.skip(f"{theirs.framework} and torch are not both under test")
    arch, weights = network(family, architecture(name, in_channels=3, num_classes=1000))
    path = tmp_path / f"theirs{theirs.suffixes[0]}"
    write_tensors(path, family, arch, to_family(arch, weights, family).tensors, {})
    own = load_backend(theirs.framework).own_network(family, arch, path)
    x, _ = random_batch(arch, 1, 97, 131)
    expected = own(x)
    for backend in (theirs.framework, "torch"):
        model = build(backend, arch, device=device)
        model.load_weights(weights)
        found = deviation(model.predict(x), expected)
        print(f"{family} {name} in {backend}: {found:.1e}")
        assert found <= (ROUNDING if name == "resnet50" else DEEP_ROUNDING)


@pytest.mark.parametrize("name", PUBLISHED)
def test_torchvision_documents_what_the_zoo_is_tested_for(name: str) -> None:
    meta = next(iter(torchvision().models.get_model_weights(name))).meta
    assert PUBLISHED[name] == (meta["num_params"], meta["_ops"])
    arch = Architecture(**ZOO[name], in_channels=3, num_classes=1000)
    assert round(sum(part.macs for part in parts(arch, (1, 3, 224, 224))) / 1e9, 3) == meta["_ops"]


CONVERT = """
import os, re, sys, time
from importlib import import_module
from pathlib import Path

def megabytes():  # the most held so far; unlike ru_maxrss, not what the parent held before
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

from common import cli, weights
from common.backend import BACKENDS
from common.interop import convert, files
import safetensors
if backend := os.environ["BACKEND"]:
    import_module(BACKENDS[backend].module.replace(".backend", ".files"))
before, start = megabytes(), time.perf_counter()
try:
    cli.main()
except SystemExit as stop:
    assert not stop.code, stop.code
print(time.perf_counter() - start, megabytes() - before)
"""


@pytest.mark.parametrize(
    ("family", "suffix", "reader"),
    [
        ("torchvision", ".safetensors", ""),
        ("torchvision", ".pth", "torch"),
        ("keras", ".h5", "tf"),
        ("flax-example", ".msgpack", "jax"),
        ("gluon", ".params", "mxnet"),
    ],
)
def test_conversion_is_small_and_quick(
    tmp_path: Path, backends: list[str], family: str, suffix: str, reader: str
) -> None:
    """Besides what Python and the framework take to start."""
    if reader not in ("", *backends):
        pytest.skip(f"{reader} is not under test")
    path, dest = tmp_path / f"model{suffix}", tmp_path / "ours.safetensors"
    arch = replace(architecture("resnet152", 3, 1000), **FAMILIES[family].axes(basic=False))
    kept = FAMILIES[family].names(arch)
    weights = {
        name: (array if name in kept else np.zeros_like(array)).astype(np.float32)
        for name, array in initial_weights(arch).items()
    }
    write_tensors(path, family, arch, to_family(arch, weights, family).tensors, {})
    steps = [(path, dest, []), (dest, tmp_path / f"back{suffix}", ["--to", family])]
    for source, written, options in steps:
        done = subprocess.run(
            [sys.executable, "-c", CONVERT, "convert", str(source), str(written), *options],
            capture_output=True,
            text=True,
            env={**os.environ, "BACKEND": reader},
        )
        assert done.returncode == 0, done.stderr
        seconds, memory = map(float, done.stdout.splitlines()[-1].split())
        size = source.stat().st_size / 2**20
        print(
            f"{family}: {source.name} → {written.name}: {seconds:.2f} s, {memory / size:.2f} times the file"
        )
        assert memory <= TIMES_THE_FILE * size
        assert seconds <= MOST_SECONDS
    back = tmp_path / f"back{suffix}"
    if suffix == ".safetensors":  # which says how images are prepared, too
        first, last = read_tensors(path)[0], read_tensors(back)[0]
        assert list(first) == list(last)
        assert all(last[name].tobytes() == array.tobytes() for name, array in first.items())
    else:
        assert path.read_bytes() == back.read_bytes()
