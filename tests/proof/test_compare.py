"""The main job's judgement, with the oracle's own evidence standing in for the frameworks'."""

import copy
import dataclasses
import json

import numpy as np
import pytest

from common.architecture import Architecture
from common.backend import BACKENDS
from common.proof.compare import (
    Comparison,
    Evidence,
    Job,
    Timing,
    collect,
    deviation,
    distance,
    judge,
    quantities,
    worst_gradient,
)
from common.proof.report import Report, results
from common.weights import initial_weights

ARCH = Architecture(stages=((1, 4), (1, 6)), stem_channels=4)


@pytest.fixture(scope="module")
def job() -> Job:
    generator = np.random.default_rng(0)
    return Job(ARCH, initial_weights(ARCH), generator.random((2, 1, 32, 32)), np.array([3, 1]), steps=2)


@pytest.fixture(scope="module")
def oracle(job: Job) -> Evidence:
    return collect("oracle", job, "float64")


def judged(job: Job, oracle: Evidence, **frameworks: Evidence) -> Comparison:
    found = Comparison(job)
    found.evidence["oracle", "float64"] = oracle
    for name, evidence in frameworks.items():
        found.evidence[name, "float64"] = evidence
    judge(found, list(frameworks), ["float64"])
    return found


def test_the_oracle_computes_on_the_cpu_whatever_the_device(job: Job, oracle: Evidence) -> None:
    found = collect("oracle", dataclasses.replace(job, device="gpu"), "float64")
    assert deviation(found.logits, oracle.logits) == 0


def test_deviations_are_what_they_say() -> None:
    a, b = np.array([3.0, 4.0]), np.array([0.0, 4.0])
    assert deviation(a, b) == 3 / 4
    assert deviation(b, b) == 0
    assert deviation(a, np.zeros(2)) == np.inf
    assert np.isnan(deviation(a, np.array([np.nan, 1])))
    assert distance({"x": a, "y": b}, {"x": b, "y": b}) == pytest.approx(3 / np.sqrt(32))
    assert worst_gradient({"x": a, "y": b}, {"x": b, "y": 10 * b}) == pytest.approx(36 / 40)


def test_equal_evidence_agrees(job: Job, oracle: Evidence) -> None:
    found = judged(job, oracle, torch=copy.deepcopy(oracle), jax=copy.deepcopy(oracle))
    assert found.agree
    assert found.deviations["float64"]["gradients"] == {"torch": 0.0, "jax": 0.0}
    assert set(found.worst_pairs["float64"]) == {quantity.name for quantity in quantities(job.steps)}


def test_the_first_layer_that_differs_is_named_with_the_one_before(job: Job, oracle: Evidence) -> None:
    broken = copy.deepcopy(oracle)
    broken.activations["b3"][0, 0, 0, 0] += 1e-3
    broken.activations["last"][0] += 1
    found = judged(job, oracle, torch=copy.deepcopy(oracle), tf=broken)
    assert not found.agree
    line = next(line for line in found.differences if line.startswith("tf "))
    assert "First layer that differs: b3" in line
    assert "(b2 just before: 0.0e+00)" in line
    assert any(line.startswith("torch–tf ") for line in found.differences)


@pytest.mark.parametrize(
    ("part", "name", "kind"),
    [
        ("running", "b2.0.bn2.running_var", "statistic"),
        ("gradients", "b2.0.conv1.weight", "gradient"),
        ("trained", "b3.0.conv3.weight", "trained weight"),
    ],
)
def test_a_difference_past_the_layers_is_named_too(
    job: Job, oracle: Evidence, part: str, name: str, kind: str
) -> None:
    broken = copy.deepcopy(oracle)
    tensors = broken.trained if part == "trained" else getattr(broken.training, part)
    tensors[name] = tensors[name] * (1 + 1e-6)
    found = judged(job, oracle, mxnet=broken)
    assert f"First {kind} that differs: {name}" in found.differences[0]


def test_nan_is_a_difference(job: Job, oracle: Evidence) -> None:
    broken = copy.deepcopy(oracle)
    broken.logits[0, 0] = np.nan
    assert not judged(job, oracle, jax=broken).agree


def test_another_summary_is_a_difference(job: Job, oracle: Evidence) -> None:
    broken = copy.deepcopy(oracle)
    broken.rows.pop()
    assert "layer summary" in judged(job, oracle, jax=broken).differences[0]


def report_of(found: Comparison, *names: str) -> Report:
    return Report(found, [BACKENDS[name] for name in names], "small", "a test")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make torch look installed and mxnet not, whatever this machine has."""
    package = {"torch": "numpy", "mxnet": "no_such_framework"}
    for name, module in package.items():
        entry = copy.copy(BACKENDS[name])
        object.__setattr__(entry, "packages", (module,))
        monkeypatch.setitem(BACKENDS, name, entry)


@pytest.mark.usefixtures("installed")
def test_the_verdict_says_same_only_when_all_were_compared(job: Job, oracle: Evidence) -> None:
    found = judged(job, oracle, torch=copy.deepcopy(oracle))
    assert report_of(found, "torch").proven
    assert report_of(found, "torch").verdict.startswith("SAME: PyTorch")

    incomplete = report_of(found, "torch", "mxnet")
    assert not incomplete.proven
    assert incomplete.verdict.startswith("NOT PROVEN: mxnet not installed")

    found.failures["torch"] = "RuntimeError: out of memory"
    assert not report_of(found, "torch").proven
    assert "out of memory" in report_of(found, "torch").verdict


@pytest.mark.usefixtures("installed")
def test_results_are_json_even_where_a_figure_is_not_a_number(job: Job, oracle: Evidence) -> None:
    broken = copy.deepcopy(oracle)
    broken.logits[0, 0] = np.nan
    found = judged(job, oracle, torch=broken)
    found.timings["torch"] = Timing(1.0, 2.0)
    loaded = json.loads(json.dumps(results(report_of(found, "torch")), allow_nan=False))
    assert loaded["deviations"]["float64"]["logits"]["torch"] is None
    assert loaded["proven"] is False
    assert loaded["milliseconds"]["torch"] == {"forward": 1.0, "training_step": 2.0}
