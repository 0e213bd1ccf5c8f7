"""What rounding does to a deep network is no difference, and the smallest fault is one."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import faults
from benchmarks.faults import computed, judged
from common import data, oracle
from common.architecture import Architecture
from common.backend import BACKENDS
from common.deviation import deviation
from common.errors import BadInput
from common.horizon import LOST, UNIT, allowed, asleep, moved, sample
from common.interop import prove
from common.oracle import Array
from common.processes.workers import Process
from common.proof import verify
from common.proof.candidate import OneByOnePass
from common.proof.judge import Comparison, Evidence, Job, judge, way
from common.proof.report import Outcome, Report, show_match
from common.proof.traps import TRAPS
from common.weights import Weights, initial_weights, is_statistic

# As deep as ResNet-50, with a hundredth of its channels.
DEEP = Architecture(
    stages=((3, 16), (4, 24), (6, 32), (3, 48)), block="resnext", groups=4, bot_mul=0.5, stem_channels=8
)

STEPS = 10


@pytest.fixture(scope="module")
def job() -> Job:
    x, y = data.eight(data.sample(), DEEP, (1, 48, 48))
    return Job(DEEP, initial_weights(DEEP), x, y, steps=STEPS, drawn=True)


@pytest.fixture(scope="module")
def known(job: Job) -> Comparison:
    """The oracle's evidence, and that from moved weights."""
    return faults.known(job)


def test_weights_are_moved_by_what_a_sum_may_be_off(job: Job) -> None:
    units = (8 * 32 * 32) ** 0.5
    after = moved(job.weights, (8, 1, 64, 64))
    largest = max(np.abs(after[n] / w - 1).max() for n, w in job.weights.items() if (w != 0).all())
    assert 0.9 * units * UNIT["float64"] < largest < 1.1 * units * UNIT["float64"]
    assert all(np.array_equal(after[n], again) for n, again in moved(job.weights, (8, 1, 64, 64)).items())


def test_in_evaluation_weights_are_moved_by_what_their_layer_adds_up(job: Job) -> None:
    after = moved(job.weights)
    for layer, terms in (
        ("b1.conv", 49),
        ("b1.bn", 49),
        ("b3.1.conv2", 4 * 9),
        ("b3.1.bn1", 24),
        ("last", 48),
    ):
        name = f"{layer}.weight"
        largest = np.abs(after[name] / job.weights[name] - 1).max()
        assert 0.6 * terms**0.5 < largest / UNIT["float64"] < terms**0.5 + 2


def test_what_is_kept_of_a_step_is_of_many_channels_and_all_kernel_pixels() -> None:
    shape = (512, 256, 3, 3)
    (kept,) = sample({"kernel": np.arange(np.prod(shape)).reshape(shape)}).values()
    _, channels, rows, columns = np.unravel_index(kept, shape)
    assert len(kept) > 200 and len(np.unique(channels)) > 20
    assert len(np.unique(3 * rows + columns)) == 9


def test_statistics_do_not_hide_what_the_parameters_do(known: Comparison) -> None:
    """They move much further."""
    path = known.evidence["oracle", "float64"].path
    off = [{n: a * (1 if is_statistic(n) else 1 + 1e-9) for n, a in weights.items()} for weights in path]
    assert way(off, path, 1) > 1e-10 > way(path, path, 1)


def test_a_branch_that_is_asleep_adds_nothing(job: Job) -> None:
    weights = asleep(DEEP, job.weights)
    zero = [name for name, array in weights.items() if not np.array_equal(array, job.weights[name])]
    assert zero == [
        f"b{s}.{b}.bn3.weight"
        for s, depth in zip((2, 3, 4, 5), (3, 4, 6, 3), strict=True)
        for b in range(depth)
    ]
    assert not any(weights[name].any() for name in zero)


def test_the_second_run_adds_pixels_one_after_the_other(job: Job) -> None:
    one, other = (kind(DEEP, job.weights, training=True) for kind in (oracle.Pass, OneByOnePass))
    name = "b1.bn"
    x = np.random.default_rng(0).random((8, DEEP.stem_channels, 24, 25))
    means = [np.cumsum(channel)[-1] / channel.size for channel in x.swapaxes(0, 1).reshape(len(x[0]), -1)]
    (expected, _), (found, _) = (by.batch_norm(name, x) for by in (one, other))
    running = other.running[f"{name}.running_mean"]
    assert np.array_equal(running, (1 - DEEP.decay) * np.array(means))
    assert not np.array_equal(running, one.running[f"{name}.running_mean"])
    assert 0 < deviation(found, expected) < 1e-14


def test_what_is_allowed_is_never_less_than_the_bound() -> None:
    assert allowed(1e-12, 1e-15) == 1e-12
    assert allowed(1e-12, 1e-11) == pytest.approx(3e-11)
    assert allowed(1e-10, 1e-10, after_steps=True) == pytest.approx(1e-9)
    assert allowed(1e-12, 1e-7) == pytest.approx(3e-7)
    assert allowed(1e-4, 1e-12, "float32") == pytest.approx(1e-12 * 2**29)
    assert allowed(1e-4, 1e-14, "float32") == 1e-4


def test_another_order_of_sums_is_the_same_network(known: Comparison) -> None:
    found = judged(known, computed(known, faults.Fault("none", "", OneByOnePass)))
    assert found.differences == []
    assert found.claimed == STEPS


def test_steps_beyond_the_horizon_are_not_claimed(known: Comparison) -> None:
    """From the weights as they are drawn, where each step magnifies a rounding."""
    found = faults.known(replace(known.job, drawn=False))
    assert not found.asleep
    judge(found, [], ["float64"])
    assert found.claimed < STEPS
    assert found.step_horizon[found.claimed] > LOST["float64"]

    found.evidence["torch", "float64"] = found.evidence["oracle", "float64"]
    found.evidence["torch", "float32"] = replace(found.evidence["oracle", "float64"], path=[])
    judge(found, ["torch"], ["float64", "float32"])
    assert found.agree
    assert f"weights, {found.claimed} steps on" in found.deviations["float64"]
    right = found.evidence["torch", "float32"]
    found.evidence["torch", "float32"] = replace(right, training=replace(right.training, loss=0.0))
    judge(found, ["torch"], ["float32"])
    assert "trained weight" not in " ".join(found.differences)  # of another step than the oracle's
    found.differences = []
    shown = Report(found, [BACKENDS["torch"]], "deep", "a test").about_steps
    assert f"From step {found.claimed + 1} on one rounding decides, and nothing is claimed" in shown


def test_what_rounding_decides_is_not_claimed(known: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    assert known.moved
    training = known.moved.training
    far = replace(training, logits=training.logits * (1 + 1e-7))
    found = Comparison(known.job, moved=replace(known.moved, training=far))
    found.evidence |= known.evidence
    found.evidence["torch", "float64"] = known.evidence["oracle", "float64"]
    judge(found, ["torch"], ["float64"])
    assert "training logits" not in found.bounds["float64"]
    report = Report(found, [], "deep", "a test")
    shown = report.about_steps
    assert "Rounding decides training logits, training loss, of which nothing is claimed" in shown
    monkeypatch.setattr(Report, "compared", ["torch"])
    assert report.verdict.startswith("NOT PROVEN: rounding decides training logits, training loss")
    assert not report.proven


def compared(known: Comparison, dtype: str = "float64", **changed: Any) -> Comparison:
    """What is found of the oracle's own evidence with these changes, as if it were PyTorch's."""
    found = Comparison(known.job, moved=known.moved, asleep=known.asleep)
    found.evidence |= known.evidence
    found.evidence["torch", dtype] = replace(known.evidence["oracle", "float64"], **changed)
    judge(found, ["torch"], [dtype])
    return found


@pytest.mark.parametrize(("loss", "claimed"), [(1e-5, True), (1e-10, False)])
def test_a_loss_near_zero_is_known_to_a_unit_of_one(loss: float, claimed: bool) -> None:
    """So are its gradients. A trained network may be that sure; both runs of the oracle round it alike."""
    arch = Architecture(((1, 8), (1, 8)), stem_channels=8)
    x, y = data.eight(data.sample(), arch, (1, 32, 32))
    job = Job(arch, initial_weights(arch), x, y, steps=2)
    known = faults.known(job)
    assert known.moved
    sure = {}
    for name, evidence in (("right", known.evidence["oracle", "float64"]), ("moved", known.moved)):
        sure[name] = replace(evidence, training=replace(evidence.training, loss=loss))
    known.evidence["oracle", "float64"], known.moved = sure["right"], sure["moved"]
    training = sure["right"].training
    by = 1 + UNIT["float64"] / loss
    gradients = {name: gradient * by for name, gradient in training.gradients.items()}
    found = compared(known, training=replace(training, loss=loss * by, gradients=gradients))
    assert found.differences == []
    assert ("training loss" in found.unclaimed) == ("gradients" in found.unclaimed) == (not claimed)
    assert found.claimed == (2 if claimed else 0)
    report = Report(found, [BACKENDS["torch"]], "small", "a test")
    assert report.proven == claimed
    if not claimed:
        assert report.verdict.startswith("NOT PROVEN: rounding decides every step, training loss, gradients")


@pytest.mark.parametrize(("off", "agrees"), [(1e-17, True), (1e-9, False)])
@pytest.mark.parametrize("kind", ["gradients", "running"])
def test_a_tensor_that_is_zero_but_for_rounding_is_no_difference(
    known: Comparison, kind: str, off: float, agrees: bool
) -> None:
    """By chance both runs of the oracle may have the same number there."""
    assert known.moved
    name = {"gradients": "b1.conv.bias", "running": "b2.0.bn1.running_mean"}[kind]

    def with_value(evidence: Evidence, value: float) -> Evidence:
        tensors = getattr(evidence.training, kind)
        tensors = tensors | {name: np.full_like(tensors[name], value)}
        return replace(evidence, training=replace(evidence.training, **{kind: tensors}))

    zero = replace(known, moved=with_value(known.moved, 0.0))
    zero.evidence = {key: with_value(evidence, 0.0) for key, evidence in known.evidence.items()}
    found = compared(zero, training=with_value(zero.evidence["oracle", "float64"], off).training)
    assert found.agree == agrees
    assert agrees or f"differs: {name}, by inf" in found.differences[0]


def test_steps_are_claimed_as_far_as_all_weights_are_and_are_numbers(known: Comparison) -> None:
    assert known.moved
    claimed = 3
    for value in (1 + 1e-6, np.nan):
        path = [
            {n: a * (value if k > claimed and is_statistic(n) else 1) for n, a in weights.items()}
            for k, weights in enumerate(known.moved.path)
        ]
        found = compared(replace(known, moved=replace(known.moved, path=path)))
        assert found.claimed == claimed
        assert found.agree
        verdict = Report(found, [BACKENDS["torch"]], "deep", "a test").verdict
        assert verdict.endswith(f"to the last digits of float64, over {claimed} of {STEPS} steps")


def test_float32_has_a_bound_for_each_layer_and_none_for_what_must_be_a_number(known: Comparison) -> None:
    right = known.evidence["oracle", "float64"]
    found = compared(known, "float32")
    verdict = Report(found, [BACKENDS["torch"]], "deep", "a test").verdict
    assert verdict.endswith(
        "agree in float32, in all layers and in the training loss; gradients and steps take float64"
    )

    nan = {name: gradient * np.nan for name, gradient in right.training.gradients.items()}
    found = compared(known, "float32", training=replace(right.training, gradients=nan))
    assert "gradients nan" in found.differences[0]

    assert known.moved
    far = known.moved.activations | {"b5": known.moved.activations["b5"] * (1 + 1e-11)}
    uneven = replace(known, moved=replace(known.moved, activations=far))
    for layer, differs in (("b2", True), ("b5", False)):
        off = right.activations | {layer: right.activations[layer] * (1 + 1e-3)}
        found = compared(uneven, "float32", activations=off)
        assert bool(found.differences) == differs
        assert not differs or "First layer that differs: b2" in found.differences[0]


def test_small_logits_do_not_excuse_the_loss(known: Comparison) -> None:
    """Relative to themselves they may be far off, and the loss is not."""
    assert known.moved
    right = known.evidence["oracle", "float64"].training
    small = replace(right, logits=right.logits * 1e-6)
    moved = replace(known.moved.training, logits=small.logits * (1 + 1e-9), loss=right.loss)
    known = replace(known, moved=replace(known.moved, training=moved))
    known.evidence = {k: replace(e, training=small) for k, e in known.evidence.items()}
    found = compared(known, training=replace(small, loss=small.loss * (1 + 1e-9)))
    assert "training loss" in found.differences[0]


def test_nan_is_a_difference_where_the_oracle_has_it_too(known: Comparison) -> None:
    assert known.moved
    oracle = known.evidence["oracle", "float64"]
    nan = {"last": oracle.logits * np.nan}
    found = Comparison(known.job, moved=replace(known.moved, activations=known.moved.activations | nan))
    found.evidence["oracle", "float64"] = replace(oracle, activations=oracle.activations | nan)
    found.evidence["torch", "float64"] = found.evidence["oracle", "float64"]
    judge(found, ["torch"], ["float64"])
    assert not found.agree


@pytest.mark.parametrize(("far", "off"), [(0.0, 2e-12), (1e-7, 2e-12), (1e-7, 1e-6)])
def test_what_rounding_decides_is_neither_the_same_nor_different(
    known: Comparison,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    far: float,
    off: float,
) -> None:
    """In `verify`, of a recording too, and in `convert --prove`."""
    job, right = known.job, known.evidence["oracle", "float64"].activations

    def activations(name: str, arch: Architecture, weights: Weights, *rest: Any) -> dict[str, Array]:
        by = off if name == "torch" else far if weights is not job.weights else 0.0
        return {layer: output * (1 + by) for layer, output in right.items()}

    monkeypatch.setattr(verify, "activations", activations)
    monkeypatch.setattr(Process, "run", lambda process, function, *arguments: function(*arguments))
    expected = verify.Expected.of(DEEP, job.weights, job.x)
    outcome = Outcome(verify.verify(expected, ["torch"], "float64", "cpu"), [BACKENDS["torch"]])
    recording = verify.Recording(activations("torch", DEEP, job.weights), "float64", None, [])
    match = verify.against(expected, recording)
    show_match(match, "mine.npz")
    said = capsys.readouterr().out
    for text in (outcome.verdict, said):
        assert ("First layer that differs: b1" in text) == (off > 3 * far)
        assert ("NOT PROVEN: rounding decides b1, b2, b3, b4, b5, last, whatever computes it" in text) == (
            off < 3 * far
        )
    assert not outcome.proven
    assert not match.agrees

    ours, calls = np.eye(2), itertools.count()
    monkeypatch.setattr(prove, "version", lambda package: "1")
    monkeypatch.setattr(oracle.Model, "predict", lambda model, x: ours * (1 + far * (next(calls) % 2)))
    monkeypatch.setattr("common.backend.Backend.own_network", lambda *_: lambda x: ours * (1 + off))
    with pytest.raises(BadInput, match="which may be rounding" if off < 3 * far else "own network$"):
        prove.prove("timm", DEEP, job.weights, tmp_path)


# Faults


FAULTS = {fault.name: fault for fault in faults.small_faults(gradient="b4.2.conv2", single="b3.1.conv2")}


@pytest.mark.parametrize("name", FAULTS)
def test_a_small_fault_is_found_and_its_place_named(known: Comparison, name: str) -> None:
    fault = FAULTS[name]
    (line,) = judged(known, computed(known, fault)).differences
    assert fault.place in line


# Of each kind one; the rest take minutes: `nox -s benchmark -- faults`.
@pytest.mark.parametrize(
    "start", ["images rounded to float32", "batch norm's epsilon 1.001e-5", "ReLU before", "no batch norm on"]
)
def test_a_trap_is_found_and_its_place_named(known: Comparison, start: str) -> None:
    trap = next(trap for trap in TRAPS if trap.cause.startswith(start))
    case = faults.trapped(known, trap)
    assert case is not None
    evidence, place = case
    (line,) = judged(known, evidence).differences
    assert place in line


def test_a_trap_that_changes_nothing_is_none(known: Comparison) -> None:
    stride = next(trap for trap in TRAPS if trap.cause.startswith("stride in a bottleneck's 3×3"))
    assert faults.trapped(known, stride) is None


@pytest.mark.deep
def test_random_networks_agree_and_their_faults_are_found(
    backends: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(faults, "available_backends", lambda: [BACKENDS[backends[0]]])
    monkeypatch.setattr(faults, "RANDOM_NETWORKS", 6)  # each with another fault
    assert faults.in_random_networks() == 0
    assert "with a fault and another place named: 0\n" in capsys.readouterr().out
