"""What rounding does to a deep network is no difference, and the smallest fault is one."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common import oracle
from common.architecture import Architecture
from common.backend import BACKENDS
from common.data import eight, sample
from common.errors import BadInput
from common.horizon import LOST, UNIT, allowed, asleep, moved
from common.interop import prove
from common.oracle import Array
from common.processes.workers import Process
from common.proof import verify
from common.proof.compare import Candidate, Reference
from common.proof.judge import Comparison, Evidence, Job, judge
from common.proof.report import Report
from common.weights import Weights, initial_weights

# As deep as ResNet-50, with a hundredth of its channels.
DEEP = Architecture(
    stages=((3, 16), (4, 24), (6, 32), (3, 48)), block="resnext", groups=4, bot_mul=0.5, stem_channels=8
)

STEPS = 10


@pytest.fixture(scope="module")
def job() -> Job:
    x, y = eight(sample(), DEEP, (1, 48, 48))
    return Job(DEEP, initial_weights(DEEP), x, y, steps=STEPS, drawn=True)


@pytest.fixture(scope="module")
def known(job: Job) -> Comparison:
    """The oracle's evidence, and that from moved weights."""
    found, reference = Comparison(job), Reference(job)
    looks = reference.look()
    found.asleep = reference.choose_start()
    both = [
        Evidence.of(look, trained, path)
        for look, (trained, path) in zip(looks, reference.finish(), strict=True)
    ]
    found.evidence["oracle", "float64"], found.moved = both
    return found


def judged(known: Comparison, candidate: Candidate) -> Comparison:
    """What is found of a candidate in place of a framework."""
    look = candidate.look()
    candidate.start(known.asleep)
    trained, path = candidate.finish()
    found = Comparison(known.job, moved=known.moved, asleep=known.asleep)
    found.evidence |= known.evidence
    found.evidence["torch", "float64"] = Evidence.of(look, trained, path)
    judge(found, ["torch"], ["float64"])
    return found


class OneByOne(oracle.Pass):
    """A channel's pixels are added one after the other, as PyTorch and MXNet do."""

    def batch_norm(self, name: str, x: Array) -> tuple[Array, Callable]:
        n, _, h, w = x.shape

        def folded(x: Array) -> Array:  # one image, whose channels lie last: NumPy adds pixel by pixel
            return (
                np.ascontiguousarray(x.transpose(0, 2, 3, 1)).reshape(1, n * h, w, -1).transpose(0, 3, 1, 2)
            )

        def unfolded(y: Array) -> Array:
            return np.ascontiguousarray(y.transpose(0, 2, 3, 1).reshape(n, h, w, -1).transpose(0, 3, 1, 2))

        y, back = super().batch_norm(name, folded(x))

        def backward(dy: Array) -> Any:
            dx = back(folded(dy))
            return unfolded(dx)

        return unfolded(y), backward


@contextmanager
def computed_by(kind: type[oracle.Pass]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(oracle, "Pass", kind)
        yield


def test_weights_are_moved_by_what_a_sum_may_be_off(job: Job) -> None:
    units = (8 * 32 * 32) ** 0.5
    after = moved(job.weights, (8, 1, 64, 64))
    largest = max(np.abs(after[n] / w - 1).max() for n, w in job.weights.items() if (w != 0).all())
    assert 0.9 * units * UNIT["float64"] < largest < 1.1 * units * UNIT["float64"]
    assert all(np.array_equal(after[n], again) for n, again in moved(job.weights, (8, 1, 64, 64)).items())


def test_a_branch_that_is_asleep_adds_nothing(job: Job) -> None:
    weights = asleep(DEEP, job.weights)
    zero = [name for name, array in weights.items() if not np.array_equal(array, job.weights[name])]
    assert zero == [
        f"b{s}.{b}.bn3.weight"
        for s, depth in zip((2, 3, 4, 5), (3, 4, 6, 3), strict=True)
        for b in range(depth)
    ]
    assert not any(weights[name].any() for name in zero)


def test_what_is_allowed_is_never_less_than_the_bound() -> None:
    assert allowed(1e-12, 1e-15) == 1e-12
    assert allowed(1e-12, 1e-11) == 8e-11
    assert allowed(1e-12, 1e-7) == 1e-12  # what rounding decides excuses nothing
    assert allowed(1e-4, 1e-12, "float32") == pytest.approx(1e-12 * 2**29)
    assert allowed(1e-4, 1e-14, "float32") == 1e-4


def test_another_order_of_sums_is_the_same_network(known: Comparison) -> None:
    with computed_by(OneByOne):
        found = judged(known, Candidate("oracle", known.job, "float64"))
    assert found.differences == []
    assert found.claimed == STEPS


def test_steps_beyond_the_horizon_are_not_claimed(known: Comparison) -> None:
    """From the weights as they are drawn, where each step magnifies a rounding."""
    job = replace(known.job, drawn=False)
    reference = Reference(job)
    looks = reference.look()
    assert reference.choose_start() is False
    (trained, path), (other, others) = reference.finish()
    found = Comparison(job, moved=Evidence(**vars(looks[1]), trained=other, path=others))
    found.evidence["oracle", "float64"] = Evidence(**vars(looks[0]), trained=trained, path=path)
    judge(found, [], ["float64"])
    assert found.claimed < STEPS
    assert found.step_horizon[found.claimed] > LOST["float64"]

    found.evidence["torch", "float64"] = found.evidence["oracle", "float64"]
    found.evidence["torch", "float32"] = replace(found.evidence["oracle", "float64"], path=[])
    judge(found, ["torch"], ["float64", "float32"])
    assert found.agree
    assert f"weights, {found.claimed} steps on" in found.deviations["float64"]
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


def test_nan_is_a_difference_where_the_oracle_has_it_too(known: Comparison) -> None:
    assert known.moved
    oracle = known.evidence["oracle", "float64"]
    nan = {"last": oracle.logits * np.nan}
    found = Comparison(known.job, moved=replace(known.moved, activations=known.moved.activations | nan))
    found.evidence["oracle", "float64"] = replace(oracle, activations=oracle.activations | nan)
    found.evidence["torch", "float64"] = found.evidence["oracle", "float64"]
    judge(found, ["torch"], ["float64"])
    assert not found.agree


@pytest.mark.parametrize("far", [0.0, 1e-7])
def test_what_rounding_decides_is_held_to_the_bound_where_it_is_not_said(
    known: Comparison, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, far: float
) -> None:
    """In `verify` and in `convert --prove`, as if nothing had been measured."""
    job, right = known.job, known.evidence["oracle", "float64"].activations

    def activations(name: str, arch: Architecture, weights: Weights, *rest: Any) -> dict[str, Array]:
        by = 2e-12 if name == "torch" else far if weights is not job.weights else 0.0
        return {layer: output * (1 + by) for layer, output in right.items()}

    monkeypatch.setattr(verify, "activations", activations)
    monkeypatch.setattr(Process, "run", lambda process, function, *arguments: function(*arguments))
    found = verify.verify(DEEP, job.weights, job.x, right, ["torch"], "float64", "cpu")
    assert "First layer that differs: b1" in found.differences[0]
    assert set(found.bounds["float64"].values()) == {1e-12}

    ours, calls = np.eye(2), itertools.count()
    monkeypatch.setattr(prove, "version", lambda package: "1")
    monkeypatch.setattr(oracle.Model, "predict", lambda model, x: ours * (1 + far * (next(calls) % 2)))
    monkeypatch.setattr("common.backend.Backend.own_network", lambda *_: lambda x: ours * (1 + 2e-12))
    with pytest.raises(BadInput, match="not proven"):
        prove.prove("timm", DEEP, job.weights, tmp_path)


# Faults


class Fault(oracle.Pass):
    """The oracle's pass with one thing a little off."""

    def _collect(self, name: str, backward: Callable) -> Callable:
        def collecting(dy: Array) -> Array:
            dx, dweight, dbias = backward(dy)
            self.gradients[f"{name}.weight"], self.gradients[f"{name}.bias"] = self.off(name, dweight), dbias
            return dx

        return collecting

    def off(self, name: str, dweight: Array) -> Array:
        return dweight


class OneGradient(Fault):
    def off(self, name: str, dweight: Array) -> Array:
        return dweight * (1 + 1e-8) if name == "b4.2.conv2" else dweight


class Unbiased(Fault):
    def batch_norm(self, name: str, x: Array) -> tuple[Array, Callable]:
        y, back = super().batch_norm(name, x)
        if self.training:
            n = x.size // x.shape[1]
            before = self.arch.decay * self.weights[f"{name}.running_var"]
            self.running[f"{name}.running_var"] = before + (
                self.running[f"{name}.running_var"] - before
            ) * n / (n - 1)
        return y, back


class Single(Fault):
    def convolution(
        self, name: str, x: Array, stride: int = 1, padding: str = "symmetric"
    ) -> tuple[Array, Callable]:
        y, back = super().convolution(name, x, stride, padding)
        return (y.astype(np.float32).astype(np.float64) if name == "b3.1.conv2" else y), back


def with_axes(job: Job, **axes: float) -> Job:
    return replace(job, arch=replace(job.arch, **axes))


FAULTS: dict[str, tuple[type[oracle.Pass], Callable[[Job], Job], str]] = {
    "one gradient": (OneGradient, lambda job: job, "First gradient that differs: b4.2.conv2.weight"),
    "variance over n − 1": (Unbiased, lambda job: job, "First statistic that differs: b1.bn.running_var"),
    "one convolution in float32": (Single, lambda job: job, "First layer that differs: b3"),
    "epsilon": (Fault, partial(with_axes, epsilon=1.0001e-5), "First layer that differs: b1"),
    "decay": (
        Fault,
        partial(with_axes, decay=0.9 + 1e-6),
        "First statistic that differs: b1.bn.running_mean",
    ),
    "rate": (Fault, lambda job: replace(job, lr=job.lr * (1 + 1e-7)), "First step that differs: 1,"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_small_fault_is_found_and_its_place_named(known: Comparison, fault: str) -> None:
    kind, changed, place = FAULTS[fault]
    with computed_by(kind):
        found = judged(known, Candidate("oracle", changed(known.job), "float64"))
    (line,) = found.differences
    assert place in line
