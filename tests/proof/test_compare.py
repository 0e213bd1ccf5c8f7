"""The main job's judgement, with the oracle's own evidence standing in for the frameworks'."""

import copy
import dataclasses
import json
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest

from common.architecture import Architecture
from common.backend import BACKENDS
from common.deviation import deviation, distance, worst_gradient
from common.pages import installed_version
from common.proof.compare import Candidate, Comparison, Evidence, Job, Timing, judge, quantities
from common.proof.report import Report, results, show
from common.timing import Spread
from common.weights import initial_weights
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
        candidate = Candidate("oracle", dataclasses.replace(job, steps=steps), "float64")
        candidate.look()
        candidate.warm_up()
        candidate.time_round()
        expected = evidence_of(dataclasses.replace(job, steps=steps)).trained
        assert deviation(candidate.finish()["last.weight"], expected["last.weight"]) == 0
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
