"""The main job's judgement, with the oracle's own evidence standing in for the frameworks'."""

import copy
import dataclasses
import json
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.architecture import Architecture
from common.backend import BACKENDS
from common.deviation import CHUNK, deviation, distance, worst_gradient
from common.errors import BadInput
from common.horizon import LAYER_BOUNDS
from common.interop import prove
from common.pages import installed_version
from common.proof import verify, workers
from common.proof.candidate import Candidate
from common.proof.judge import (
    STEPS_BOUND,
    Comparison,
    Evidence,
    Job,
    Timing,
    first_outside,
    judge,
    quantities,
    worst_pair,
)
from common.proof.report import Report, results, show
from common.timing import Spread
from common.weights import initial_weights, is_statistic
from tests.proof.helpers import evidence_of

ARCH = Architecture(stages=((1, 4), (1, 6)), stem_channels=4)


@pytest.fixture(scope="module")
def job() -> Job:
    generator = np.random.default_rng(0)
    return Job(ARCH, initial_weights(ARCH), generator.random((2, 1, 32, 32)), np.array([3, 1]), steps=2)


@pytest.fixture(scope="module")
def oracle(job: Job) -> Evidence:
    return evidence_of(job)


def judged(job: Job, oracle: Evidence, **frameworks: Evidence) -> Comparison:
    found = Comparison(job)
    found.evidence["oracle", "float64"] = oracle
    for name, evidence in frameworks.items():
        found.evidence[name, "float64"] = evidence
    judge(found, list(frameworks), ["float64"])
    return found


def test_the_oracle_computes_on_the_cpu_whatever_the_device(job: Job, oracle: Evidence) -> None:
    found = evidence_of(dataclasses.replace(job, device="gpu"))
    assert deviation(found.logits, oracle.logits) == 0


def test_deviations_are_what_they_say() -> None:
    a, b = np.array([3.0, 4.0]), np.array([0.0, 4.0])
    assert deviation(a, b) == 3 / 4
    assert deviation(b, b) == 0
    assert deviation(a, np.zeros(2)) == np.inf
    assert np.isnan(deviation(a, np.array([np.nan, 1])))
    for size in (
        CHUNK - 1,
        CHUNK,
        CHUNK + 1,
        2 * CHUNK,
    ):  # the last number counts
        ones = np.ones(size)
        assert deviation(np.append(ones, 2), np.append(ones, 1)) == pytest.approx((size + 1) ** -0.5)
    assert distance({"x": a, "y": b}, {"x": b, "y": b}) == pytest.approx(3 / np.sqrt(32))
    assert worst_gradient({"x": a, "y": b}, {"x": b, "y": 10 * b}) == pytest.approx(36 / 40)


def test_equal_evidence_agrees(job: Job, oracle: Evidence) -> None:
    found = judged(job, oracle, torch=copy.deepcopy(oracle), jax=copy.deepcopy(oracle))
    assert found.agree
    assert found.deviations["float64"]["gradients"] == {"torch": 0.0, "jax": 0.0}
    assert set(found.worst_pairs["float64"]) == {quantity.name for quantity in quantities(job.steps)}


# The bounds


def scaled(arrays: dict[str, np.ndarray], by: float) -> dict[str, np.ndarray]:
    return {name: array * (1 + by) for name, array in arrays.items()}


def off(found: Evidence, quantity: str, by: float) -> Evidence:
    """The evidence with one quantity, or what it is part of, so far from what it was."""
    training = found.training
    if quantity == "logits":
        return replace(found, activations=found.activations | {"last": found.logits * (1 + by)})
    if quantity == "worst layer output":
        return replace(found, activations=found.activations | {"b1": found.activations["b1"] * (1 + by)})
    if quantity.startswith("weights"):
        return replace(found, trained=scaled(found.trained, by))
    changed: dict[str, dict[str, Any]] = {
        "training logits": {"logits": training.logits * (1 + by)},
        "training loss": {"loss": training.loss * (1 + by)},
        "gradients": {"gradients": scaled(training.gradients, by)},
        "worst gradient tensor": {"gradients": scaled(training.gradients, by)},
        "running statistics": {"running": scaled(training.running, by)},
    }
    return replace(found, training=replace(training, **changed[quantity]))


HEADLINE = [
    *(("logits", "float64", 1e-12), ("worst layer output", "float64", 1e-12)),
    *(("training logits", "float64", 1e-12), ("training loss", "float64", 1e-12)),
    *(("gradients", "float64", 1e-12), ("worst gradient tensor", "float64", 1e-12)),
    *(("running statistics", "float64", 1e-12), ("weights, 2 steps on", "float64", 1e-10)),
    *(("logits", "float32", 1e-5), ("worst layer output", "float32", 1e-5)),
    ("training loss", "float32", 1e-4),
]
LAYERS = {"float64": 1e-12, "float32": 1e-5}


def test_the_bounds_are_those_the_project_claims() -> None:
    compared = [(q, dtype) for q in quantities(2) for dtype in ("float64", "float32")]
    found = [(q.name, dtype, q.bounds[dtype]) for q, dtype in compared if dtype in q.bounds]
    assert sorted(found) == sorted(HEADLINE)
    assert (STEPS_BOUND, LAYER_BOUNDS) == (1e-10, LAYERS | {"float16": 5e-3, "bfloat16": 4e-2})


@pytest.mark.parametrize(("quantity", "dtype", "bound"), HEADLINE)
def test_half_a_bound_is_the_same_and_twice_a_bound_is_not(
    job: Job, oracle: Evidence, quantity: str, dtype: str, bound: float
) -> None:
    for times in (0.5, 2.0):
        found = Comparison(job)
        found.evidence["oracle", "float64"] = oracle
        found.evidence["jax", dtype] = off(oracle, quantity, times * bound)
        judge(found, ["jax"], [dtype])
        assert found.agree == (times < 1)
    (line,) = found.differences
    assert f"{quantity} {2 * bound:.1e} > {bound:.0e}" in line


@pytest.mark.parametrize("kind", ["weights", "running statistics"])
def test_workers_at_half_the_bound_are_one_and_at_twice_are_not(
    job: Job, oracle: Evidence, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for times in (0.5, 2.0):
        found = Comparison(job)
        found.evidence["jax", "float64"] = oracle
        many = {
            name: array * (1 + times * 1e-10) if is_statistic(name) == (kind != "weights") else array
            for name, array in oracle.trained.items()
        }
        monkeypatch.setattr(workers, "launch", lambda *arguments, many=many: many)
        workers.compare_workers(found, ["jax"], 2)
        assert found.agree == (times < 1)
    (line,) = found.differences
    assert f"{kind}, 2 steps on, 2 workers 2.0e-10 > 1e-10" in line


@pytest.mark.parametrize(("dtype", "bound"), (LAYERS | {"float16": 5e-3, "bfloat16": 4e-2}).items())
def test_a_recording_at_half_the_bound_agrees_and_at_twice_does_not(
    job: Job, oracle: Evidence, dtype: str, bound: float
) -> None:
    for times in (0.5, 2.0):
        layers = {"last": oracle.logits * (1 + times * bound)}
        recording = verify.Recording(layers, dtype, None, [])
        match = verify.against(verify.Expected.of(ARCH, job.weights, job.x), recording)
        assert match.agrees == (times < 1)


@pytest.mark.parametrize(("dtype", "bound"), LAYERS.items())
def test_a_converted_network_at_half_the_bound_is_proven_and_at_twice_is_not(
    job: Job, dtype: str, bound: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ours = np.eye(2)  # logits whose multiples every type holds
    monkeypatch.setattr(prove, "version", lambda package: "1")
    monkeypatch.setattr("common.oracle.Model.predict", lambda model, x: ours)

    def proven(theirs: np.ndarray) -> str:
        monkeypatch.setattr("common.backend.Backend.own_network", lambda *arguments: lambda x: theirs)
        return prove.prove("timm", ARCH, job.weights, tmp_path)

    assert "logits within" in proven((ours * (1 + bound / 2)).astype(dtype))
    with pytest.raises(BadInput, match="not proven: the logits are off by"):
        proven((ours * (1 + 2 * bound)).astype(dtype))


# What is said


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


@pytest.mark.parametrize("part", ["activations", "gradients", "running", "trained"])
@pytest.mark.parametrize("position", [0, 1, -1])
def test_nan_is_the_worst_there_is_wherever_it_stands(
    job: Job, oracle: Evidence, part: str, position: int
) -> None:
    broken = copy.deepcopy(oracle)
    tensors = getattr(broken if part in ("activations", "trained") else broken.training, part)
    tensor = list(tensors.values())[position]
    tensor.reshape(-1)[0] = np.nan
    found = judged(job, oracle, torch=copy.deepcopy(oracle), jax=broken)
    assert not found.agree
    shown = {name: by["jax"] for name, by in found.deviations["float64"].items() if np.isnan(by["jax"])}
    expected = {
        "activations": {"worst layer output"},
        "gradients": {"gradients", "worst gradient tensor"},
        "running": {"running statistics"},
        "trained": {"weights, 2 steps on"},
    }
    assert shown.keys() - {"logits"} == expected[part]
    for name in shown:
        assert found.worst_pairs["float64"][name][1] == "torch–jax"


def busy_report(found: Comparison, elsewhere: float | None) -> Report:
    found.elsewhere = elsewhere
    found.timings["torch"] = Timing(Spread(1, 1, 1), Spread(2, 2, 2))
    return report_of(found, "torch")


@pytest.mark.usefixtures("installed")
def test_timings_of_a_busy_machine_are_said_to_be_none(
    job: Job, oracle: Evidence, capsys: pytest.CaptureFixture[str]
) -> None:
    found = judged(job, oracle, torch=copy.deepcopy(oracle))
    for elsewhere in (None, 0.0, 0.05):
        show(busy_report(found, elsewhere))
        assert "busy" not in capsys.readouterr().out
    report = busy_report(found, 0.42)
    show(report)
    shown = " ".join(capsys.readouterr().out.split())
    assert "The machine was busy: other programs had 42% of its cores' time" in shown
    assert "1 (1–1)" in shown
    assert results(report)["busy_elsewhere"] == 0.42


def test_a_build_under_another_name_has_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """MXNet's GPU builds are distributions of other names that install the same package."""
    versions = {"mxnet-cu112": "1.9.1"}

    def version(name: str) -> str:
        if name not in versions:
            raise PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr("common.pages.version", version)
    monkeypatch.setattr("common.pages.packages_distributions", lambda: {"mxnet": ["mxnet-cu112"]})
    assert installed_version(BACKENDS["mxnet"]) == "1.9.1"
    assert installed_version(BACKENDS["torch"]) == "unknown version"


def test_a_spread_is_of_the_rounds() -> None:
    assert Spread.of([[4.0, 5.0, 60.0], [1.0, 2.0, 3.0], [7.0, 8.0, 9.0]]) == Spread(5.0, 2.0, 8.0)


def test_steps_are_taken_to_the_number_asked_for_whatever_is_timed(job: Job) -> None:
    """Timing takes steps of its own accord: fewer or more than the job's."""
    plain = evidence_of(job).trained
    for steps in (0, 1, 2, 7):
        candidate = Candidate.of("oracle", dataclasses.replace(job, steps=steps), "float64")
        candidate.look()
        candidate.warm_up()
        candidate.time_round()
        expected = evidence_of(dataclasses.replace(job, steps=steps)).trained
        trained, _ = candidate.finish()
        assert deviation(trained["last.weight"], expected["last.weight"]) == 0
    assert deviation(plain["last.weight"], job.weights["last.weight"]) > 0


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
    found.timings["torch"] = Timing(Spread(1, 1, 1), Spread(2, 1.5, 3))
    loaded = json.loads(json.dumps(results(report_of(found, "torch")), allow_nan=False))
    assert loaded["deviations"]["float64"]["logits"]["torch"] is None
    assert loaded["proven"] is False
    assert loaded["milliseconds"]["torch"] == {"forward": 1.0, "training_step": 2.0}
    assert loaded["milliseconds_of_rounds"]["torch"]["training_step"] == [1.5, 3.0]


def test_nan_is_the_worst_pair_and_the_first_layer_that_differs() -> None:
    assert worst_pair({"torch–jax": 1.0, "torch–tf": np.nan, "jax–tf": 2.0})[1] == "torch–tf"
    walk = [("b1", 0.0), ("b2", np.nan)]
    assert "b2, by nan (b1 just before" in first_outside("layer", walk, lambda name: 1e-12)
