"""What is compared, how far apart it may be, and what was found.

The oracle is the reference, and its evidence from moved weights shows what rounding allows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from common import horizon
from common.architecture import Architecture
from common.backend import Evaluation
from common.deviation import deviation, distance, norm, ratio, worst, worst_gradient
from common.horizon import LAYER_BOUNDS, LOST, NOISE, allowed, is_claimed
from common.summary import Row
from common.timing import Spread
from common.weights import Weights, is_statistic

T = TypeVar("T")
Walks = Iterator[tuple[str, Iterable[tuple[str, float]]]]
STEPS_BOUND = 1e-10  # float64, after some steps
AT_ONCE = 2  # backends at work at the same time, while nothing is timed


@dataclass(frozen=True)
class Job:
    """What every backend is given. `x` is (N, C, H, W) in [0, 1], `y` int (N,).

    Where the weights were `drawn`, steps may start from others, which float64 can follow further.
    """

    arch: Architecture
    weights: Weights
    x: NDArray
    y: NDArray
    steps: int = 20
    lr: float = 0.01
    device: str = "cpu"
    compile: bool = False
    drawn: bool = False

    def start(self, asleep: bool) -> Weights:
        """The weights that steps start from."""
        return horizon.asleep(self.arch, self.weights) if asleep else self.weights


@dataclass(frozen=True)
class Look:
    """What one backend computes in one dtype, before any step."""

    rows: list[Row]
    activations: dict[str, NDArray]
    training: Evaluation

    @property
    def logits(self) -> NDArray:
        """With running statistics: what the last layer puts out."""
        return self.activations["last"]


@dataclass(frozen=True)
class Evidence(Look):
    """A look, and the weights after the job's steps.

    Attributes:
        trained: the weights after all of them.
        path: some numbers of every tensor before the first step and after each; none in float32.
    """

    trained: Weights
    path: list[Weights] = field(default_factory=list)

    @classmethod
    def of(cls, look: Look, trained: Weights, path: list[Weights]) -> Evidence:
        """What a candidate showed before its steps, and what it finished with."""
        return cls(**vars(look), trained=trained, path=path)

    def after(self, steps: int) -> Weights:
        """The weights after so many steps, or some numbers of them where there are more steps."""
        return self.path[steps] if steps + 1 < len(self.path) else self.trained


@dataclass(frozen=True)
class Timing:
    """How long one backend takes in float32."""

    forward: Spread
    step: Spread


@dataclass(frozen=True)
class Quantity:
    """Something that must be the same everywhere: how far apart two backends are, and how far they may be.

    In float32 one ReLU within rounding of zero moves a gradient by 1 %: no bound, the figure is shown.
    Batch statistics in float32 lose a digit where thousands of background pixels are equal, and add up
    to 1e-5 in the training loss: bounded at ten times that.
    """

    name: str
    bounds: dict[str, float]
    deviation: Callable[[Evidence, Evidence], float]
    after_steps: bool = False


@dataclass(kw_only=True)
class Findings:
    """How far apart backends are. Deviations are by dtype, quantity and backend, against the oracle.

    So are bounds by dtype and quantity; what has none is shown only. What is `unclaimed` has none because
    rounding decides it in the finest type compared. `horizon` is how far it carries each, in float64.
    """

    deviations: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    bounds: dict[str, dict[str, float]] = field(default_factory=dict)
    unclaimed: list[str] = field(default_factory=list)
    worst_pairs: dict[str, dict[str, tuple[float, str]]] = field(default_factory=dict)
    horizon: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)

    @property
    def agree(self) -> bool:
        """Whether every backend computed, and all are within the bounds."""
        return not self.failures and not self.differences


@dataclass
class Comparison(Findings):
    """All that was found in a job.

    Attributes:
        moved: the oracle's evidence again, from moved weights; none where bounds alone shall decide.
        asleep: whether steps start with branches that are asleep.
        workers: for each quantity, how far several workers of a backend end from one; none where not asked.
        steps: after each step, how far each backend's change of the parameters is from the oracle's.
        step_horizon: how far rounding carries that, and all weights.
    """

    job: Job
    moved: Evidence | None = None
    asleep: bool = False
    steps: dict[str, list[float]] = field(default_factory=dict)
    step_horizon: list[float] = field(default_factory=list)

    evidence: dict[tuple[str, str], Evidence] = field(default_factory=dict)
    timings: dict[str, Timing] = field(default_factory=dict)
    elsewhere: float | None = None  # share of the cores' time that other programs had during the timing
    workers: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def claimed(self) -> int:
        """How many of the job's steps float64 can follow."""
        if not self.moved:
            return self.job.steps
        return sum(1 for _ in itertools.takewhile(lambda far: far <= LOST["float64"], self.step_horizon))


def quantities(steps: int) -> list[Quantity]:
    """What is compared, in the order a reader asks for it."""
    exact = {"float64": 1e-12}
    before = [
        Quantity("logits", LAYER_BOUNDS, lambda a, b: deviation(a.logits, b.logits)),
        Quantity(
            "worst layer output",
            LAYER_BOUNDS,
            lambda a, b: worst(deviation(a.activations[name], b.activations[name]) for name in b.activations),
        ),
        Quantity("training logits", exact, lambda a, b: deviation(a.training.logits, b.training.logits)),
        Quantity(
            "training loss",
            exact | {"float32": 1e-4},
            lambda a, b: deviation(a.training.loss, b.training.loss),
        ),
        Quantity("gradients", exact, lambda a, b: distance(a.training.gradients, b.training.gradients)),
        Quantity(
            "worst gradient tensor",
            exact,
            lambda a, b: worst_gradient(a.training.gradients, b.training.gradients),
        ),
        Quantity("running statistics", exact, lambda a, b: distance(a.training.running, b.training.running)),
    ]
    after = Quantity(
        f"weights, {steps} steps on",
        {"float64": STEPS_BOUND},
        lambda a, b: distance(a.after(steps), b.after(steps)),
        after_steps=True,
    )
    return [*before, after] if steps else before


def way(a: list[Weights], b: list[Weights], steps: int) -> float:
    """How far apart two paths are after so many steps, relative to how far the parameters have moved.

    Running statistics move much further, and would hide what the parameters do.
    """
    names = [name for name in b[steps] if not is_statistic(name)]
    return distance({n: a[steps][n] - a[0][n] for n in names}, {n: b[steps][n] - b[0][n] for n in names})


def judge(found: Comparison, names: list[str], dtypes: list[str]) -> None:
    """Fill in horizon, deviations, worst pairs, and a line for each backend that differs."""
    if "oracle" in found.failures:
        return
    reference = found.evidence["oracle", "float64"]
    names = [name for name in names if name not in found.failures]
    horizons = measure_horizon(found, reference)
    if found.job.steps and not found.claimed and "float64" in dtypes:
        found.unclaimed.append("every step")
    if not names:
        return
    for name in names:
        for dtype in dtypes:
            if found.evidence[name, dtype].rows != reference.rows:
                found.differences.append(f"{name}: its layer summary in {dtype} is not the oracle's")

    for dtype in dtypes:
        found.deviations[dtype], found.worst_pairs[dtype], found.bounds[dtype] = {}, {}, {}
        outside: dict[str, list[str]] = {}
        evidence = {name: found.evidence[name, dtype] for name in names}
        followed = dtype == "float64" or found.claimed == found.job.steps  # float32 keeps no path
        steps = found.claimed if followed else 0
        for quantity in quantities(steps):
            bound, far = math.inf, found.horizon.get(quantity.name, 0.0)  # what has no bound must be a number
            if dtype in quantity.bounds and is_claimed(far, dtype):
                bound = allowed(quantity.bounds[dtype], far, dtype, quantity.after_steps)
                found.bounds[dtype][quantity.name] = bound
            elif dtype in quantity.bounds:
                found.unclaimed += [quantity.name] if dtype == dtypes[0] else []
            against_oracle, between = deviations(quantity.deviation, evidence, reference)
            found.deviations[dtype][quantity.name] = against_oracle
            if between:
                found.worst_pairs[dtype][quantity.name] = worst_pair(between)
            for name, value in {**against_oracle, **between}.items():
                if not value <= bound:  # NaN is outside too
                    outside.setdefault(name, []).append(f"{quantity.name} {value:.1e} > {bound:.0e}")
        for name in evidence:
            if dtype == "float64":
                found.steps[name] = ways(evidence[name], reference)
            walked = walks(evidence[name], reference, steps)
            if dtype == "float32":
                walked = itertools.islice(walked, 1)  # the layers; the rest is shown only
            if line := first_difference(walked, horizons, dtype):
                outside.setdefault(name, []).append(line)
        found.differences += [f"{name} in {dtype}: {'; '.join(lines)}" for name, lines in outside.items()]


def measure_horizon(found: Comparison, reference: Evidence) -> dict[str, dict[str, float]]:
    """Fill in how far rounding carries each quantity and each step; returns the same of what is walked."""
    if not found.moved:
        return {}
    moved, loss = found.moved, reference.training.loss
    sure = horizon.of_sure(loss)
    all_weights = itertools.starmap(distance, zip(moved.path[1:], reference.path[1:], strict=True))
    found.step_horizon = [
        worst((*fars, sure)) for fars in zip(ways(moved, reference), all_weights, strict=True)
    ]
    found.horizon = {q.name: q.deviation(moved, reference) for q in quantities(found.claimed)}
    # By chance one number moves less than those it is made of.
    off = loss_off(moved.training.logits, reference.training.logits, found.job.y)
    for quantity, least in (
        ("training loss", worst((sure, ratio(off, abs(loss))))),
        ("gradients", sure),
        ("worst gradient tensor", sure),
    ):
        found.horizon[quantity] = worst((found.horizon[quantity], least))
    walked = {kind: dict(walk) for kind, walk in walks(moved, reference, found.claimed)}
    # So does a tensor of few numbers, less than all of its kind together.
    together = {"gradient": found.horizon["gradients"], "statistic": found.horizon["running statistics"]}
    if found.claimed:
        together["trained weight"] = found.step_horizon[found.claimed - 1]
    for kind, least in together.items():
        walked[kind] = {name: worst((far, least)) for name, far in walked[kind].items()}
    return walked


def loss_off(a: NDArray, b: NDArray, y: NDArray) -> float:
    """How far the cross-entropy of logits `a` may be from that of `b`, to first order, if no moves cancel."""
    exponentials = np.exp(b - b.max(1, keepdims=True))
    slope = exponentials / exponentials.sum(1, keepdims=True)
    slope[np.arange(len(y)), y] -= 1
    return float((np.abs(slope) * np.abs(a - b)).sum(1).mean())


def ways(a: Evidence, b: Evidence) -> list[float]:
    """How far apart their paths are after each step."""
    return [way(a.path, b.path, step) for step in range(1, len(b.path))]


def deviations(
    measure: Callable[[T, T], float], evidence: Mapping[str, T], reference: T
) -> tuple[dict[str, float], dict[str, float]]:
    """How far each backend is from the reference, and each pair, "torch–jax", from each other."""
    pairs = {f"{a}–{b}": (a, b) for a, b in itertools.combinations(evidence, 2)}
    sides = [(found, reference) for found in evidence.values()]
    sides += [(evidence[a], evidence[b]) for a, b in pairs.values()]
    with ThreadPoolExecutor(AT_ONCE) as pool:  # NumPy computes on several cores that way
        values = list(pool.map(measure, *zip(*sides, strict=True)))
    return dict(zip(evidence, values, strict=False)), dict(zip(pairs, values[len(evidence) :], strict=True))


def worst_pair(between: Mapping[str, float]) -> tuple[float, str]:
    """The largest deviation between two backends, and which two; NaN is the largest of all."""
    pair = max(between, key=lambda pair: np.nan_to_num(between[pair], nan=np.inf))
    return between[pair], pair


def first_outside(kind: str, walk: Iterable[tuple[str, float]], bound: Callable[[str], float]) -> str:
    """Which of these deviations, in the order of computation, is the first out of bounds; "" if none is."""
    before = "it is the first"
    for name, value in walk:
        if not value <= bound(name):
            return f"First {kind} that differs: {name}, by {value:.1e} ({before})"
        before = f"{name} just before: {value:.1e}"
    return ""


def first_difference(walks: Walks, far: Mapping[str, Mapping[str, float]], dtype: str) -> str:
    """Where two part ways: the first that is out of bounds, and the one before.

    Each may be as `far` off as rounding carries it; where that is too far, it is no evidence.
    """

    def bound(kind: str, name: str) -> float:
        here, after_steps = far.get(kind, {}).get(name, 0.0), kind in ("step", "trained weight")
        floor = STEPS_BOUND if after_steps else LAYER_BOUNDS[dtype]
        return allowed(floor, here, dtype, after_steps) if is_claimed(here, dtype) else math.inf

    lines = (first_outside(kind, walk, partial(bound, kind)) for kind, walk in walks)
    return next((line for line in lines if line), "")


def walks(a: Evidence, b: Evidence, steps: int) -> Walks:
    """How far `a` is from `b` in each layer, statistic, gradient and step, in the order of computation.

    Of a mean or a gradient that is zero but for rounding, nothing is left to compare.
    """
    yield "layer", ((n, deviation(a.activations[n], b.activations[n])) for n in b.activations)
    found, running = a.training.running, b.training.running
    yield "statistic", ((n, deviation_beyond(_spread(n, running), found[n], running[n])) for n in running)
    slopes, gradients = a.training.gradients, b.training.gradients
    whole = norm(gradients)
    backwards = reversed(gradients)  # computed from the last layer to the first
    yield "gradient", ((n, deviation_beyond(whole, slopes[n], gradients[n])) for n in backwards)
    yield "step", ((str(k), far) for k, far in enumerate(ways(a, b)[:steps], start=1)) if a.path else ()
    trained, expected = a.after(steps), b.after(steps)
    way = norm({n: b.path[steps][n] - b.path[0][n] for n in b.path[0]}) if b.path else 0.0
    yield "trained weight", ((n, deviation_beyond(way, trained[n], expected[n])) for n in expected if steps)


def deviation_beyond(whole: float, a: NDArray, b: NDArray) -> float:
    """The deviation of one tensor; 0 where it is but rounding of this whole, of which it is a part."""
    return 0.0 if norm({"": a - b}) <= NOISE * whole else deviation(a, b)


def _spread(name: str, running: Mapping[str, NDArray]) -> float:
    """What the zero of a running mean is measured by: its channels' standard deviations."""
    layer, _, kind = name.rpartition(".")
    return float(np.sqrt(np.abs(running[f"{layer}.running_var"]).sum())) if kind == "running_mean" else 0.0
