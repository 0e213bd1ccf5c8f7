"""The main job: give several backends the same network and the same images, and decide if they agree.

The oracle is the reference. Every backend computes in a process of its own and sends back evidence: what
it put out, what its gradients were, and where some steps of training took it. A deviation is
‖a − b‖₂ / ‖b‖₂; for the worst gradient tensor it is ‖a − b‖∞ over the largest gradient in the network,
because the bias of a convolution before batch norm has a gradient of exactly zero.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import combinations
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.architecture import Architecture
from common.backend import Evaluation, Model, load_backend
from common.errors import BadInput
from common.proof.workers import Shares, Worker
from common.summary import Row
from common.weights import Weights

T = TypeVar("T")

LAYER_BOUNDS = {"float64": 1e-12, "float32": 1e-5}  # how far apart outputs in evaluation may be
AT_ONCE = 2  # backends at work at the same time, while nothing is timed
WARM_UP, REPEATS = 3, 10  # passes before and during timing


@dataclass(frozen=True)
class Job:
    """What every backend is given. `x` is (N, C, H, W) in [0, 1], `y` int (N,)."""

    arch: Architecture
    weights: Weights
    x: NDArray
    y: NDArray
    steps: int = 20
    lr: float = 0.01
    device: str = "cpu"


@dataclass(frozen=True)
class Evidence:
    """What one backend made of a job in one dtype."""

    rows: list[Row]
    activations: dict[str, NDArray]
    training: Evaluation
    trained: Weights

    @property
    def logits(self) -> NDArray:
        """With running statistics: what the last layer puts out."""
        return self.activations["last"]


@dataclass(frozen=True)
class Timing:
    """Median milliseconds in float32."""

    forward: float
    step: float


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


@dataclass(kw_only=True)
class Findings:
    """How far apart backends are. Deviations are by dtype, quantity and backend, against the oracle."""

    deviations: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    worst_pairs: dict[str, dict[str, tuple[float, str]]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)

    @property
    def agree(self) -> bool:
        """Whether every backend computed, and all are within the bounds."""
        return not self.failures and not self.differences


@dataclass
class Comparison(Findings):
    """All that was found in a job."""

    job: Job
    evidence: dict[tuple[str, str], Evidence] = field(default_factory=dict)
    timings: dict[str, Timing] = field(default_factory=dict)


def distance(a: Mapping[str, NDArray], b: Mapping[str, NDArray]) -> float:
    """‖a − b‖₂ / ‖b‖₂ over all tensors together."""
    difference = sum(_square(a[name] - b[name]) for name in b)
    return _ratio(difference**0.5, sum(_square(tensor) for tensor in b.values()) ** 0.5)


def deviation(a: ArrayLike, b: ArrayLike) -> float:
    """‖a − b‖₂ / ‖b‖₂."""
    return distance({"": np.asarray(a)}, {"": np.asarray(b)})


def worst_gradient(a: Weights, b: Weights) -> float:
    """The largest ‖a − b‖∞ of one tensor, over the largest entry of all of b."""
    largest = max(np.abs(tensor).max() for tensor in b.values())
    return _ratio(max(np.abs(a[name] - b[name]).max() for name in b), largest)


def _square(tensor: NDArray) -> float:
    flat = tensor.astype(np.float64, copy=False).ravel()
    return float(flat @ flat)


def _ratio(difference: float, size: float) -> float:
    """Zero only for equal things: a difference from nothing is infinite, and NaN stays NaN."""
    if difference == 0:
        return 0.0
    return float(difference / size) if size else np.inf


def quantities(steps: int) -> list[Quantity]:
    """What is compared, in the order a reader asks for it."""
    exact = {"float64": 1e-12}
    return [
        Quantity("logits", LAYER_BOUNDS, lambda a, b: deviation(a.logits, b.logits)),
        Quantity(
            "worst layer output",
            LAYER_BOUNDS,
            lambda a, b: max(deviation(a.activations[name], b.activations[name]) for name in b.activations),
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
        Quantity(
            f"weights, {steps} steps on", {"float64": 1e-10}, lambda a, b: distance(a.trained, b.trained)
        ),
    ]


def collect(name: str, job: Job, dtype: str) -> Evidence:
    """Run the job in one backend. This is what a worker process does."""
    model = load_backend(name).build(job.arch, dtype, "cpu" if name == "oracle" else job.device)
    model.load_weights(job.weights)
    activations = model.activations(job.x)
    training = model.loss_and_gradients(job.x, job.y)
    rows = model.summary(job.x.shape)
    for _ in range(job.steps):
        model.train_step(job.x, job.y, lr=job.lr)
    return Evidence(rows, activations, training, model.weights())


_models: dict[str, Model] = {}  # of this worker process, warmed up and waiting to be timed


def warm_up(name: str, job: Job) -> None:
    """Build the model that `measure` times, and run what it times until it is compiled and settled."""
    _models[name] = load_backend(name).build(job.arch, "float32", job.device)
    for _ in range(WARM_UP):
        _models[name].predict(job.x)
        _models[name].train_step(job.x, job.y, lr=job.lr)


def measure(name: str, job: Job) -> Timing:
    """Time one backend in float32. Nothing else should be computing."""
    model = _models[name]
    return Timing(
        forward=_milliseconds(lambda: model.predict(job.x)),
        step=_milliseconds(lambda: model.train_step(job.x, job.y, lr=job.lr)),
    )


def _milliseconds(function: Callable[[], object]) -> float:
    durations = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        durations.append(1000 * (time.perf_counter() - start))
    return statistics.median(durations)


def summarise(name: str, arch: Architecture, input_shape: tuple[int, ...]) -> list[Row]:
    """The layer summary of one backend."""
    return load_backend(name).build(arch).summary(input_shape)


def compare(
    job: Job,
    names: list[str],
    dtypes: list[str],
    progress: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Run the job in the oracle and in every named backend, each in a process of its own, and decide.

    Args:
        job: the network, its weights and the images.
        names: backends to compare; the oracle is always run.
        dtypes: "float64", "float32" or both.
        progress: is told, in a line, whenever something has been done.
    """
    found = Comparison(job)
    names = [name for name in names if name != "oracle"]
    shares = Shares(AT_ONCE)

    def gather(name: str) -> None:
        with shares.worker() as worker:
            for dtype in ["float64"] if name == "oracle" else dtypes:
                start = time.perf_counter()
                found.evidence[name, dtype] = worker.run(collect, name, job, dtype)
                progress(f"{name}: {dtype} done in {time.perf_counter() - start:.1f} s")

    def clock(name: str) -> None:
        found.timings[name] = workers[name].run(measure, name, job)
        progress(f"{name}: timed")

    with ExitStack() as stack:
        # Those that time have all cores, and wait until nothing else computes.
        workers = {name: stack.enter_context(closing(Worker())) for name in names}
        tasks: list[tuple[str, Callable[[str], None]]] = [(name, gather) for name in ("oracle", *names)]
        tasks += [(name, lambda name: workers[name].run(warm_up, name, job)) for name in names]
        found.failures |= each(tasks, at_once=shares.count)
        found.failures |= each([(name, clock) for name in names if name not in found.failures], at_once=1)
    judge(found, names, dtypes)
    return found


def each(tasks: list[tuple[str, Callable[[str], None]]], at_once: int) -> dict[str, str]:
    """Do the tasks, each for a backend. What a framework raises is a finding about it, and returned."""
    failures = {}
    with ThreadPoolExecutor(at_once) as pool:
        futures = [(name, pool.submit(task, name)) for name, task in tasks]
    for name, future in futures:
        error = future.exception()
        if isinstance(error, BadInput):
            raise error
        if error:
            failures[name] = f"{type(error).__name__}: {str(error).strip() or 'no message'}"
    return failures


def judge(found: Comparison, names: list[str], dtypes: list[str]) -> None:
    """Fill in deviations, worst pairs, and a line for each backend that differs."""
    if "oracle" in found.failures:
        return
    reference = found.evidence["oracle", "float64"]
    names = [name for name in names if name not in found.failures]
    if not names:
        return
    for name in names:
        for dtype in dtypes:
            if found.evidence[name, dtype].rows != reference.rows:
                found.differences.append(f"{name}: its layer summary in {dtype} is not the oracle's")

    for dtype in dtypes:
        found.deviations[dtype], found.worst_pairs[dtype] = {}, {}
        outside: dict[str, list[str]] = {}
        for quantity in quantities(found.job.steps):
            bound = quantity.bounds.get(dtype)
            evidence = {name: found.evidence[name, dtype] for name in names}
            against_oracle, between = deviations(quantity.deviation, evidence, reference)
            found.deviations[dtype][quantity.name] = against_oracle
            if between:
                found.worst_pairs[dtype][quantity.name] = worst_pair(between)
            for name, value in {**against_oracle, **between}.items():
                if bound and not value <= bound:  # NaN is outside too
                    outside.setdefault(name, []).append(f"{quantity.name} {value:.1e} > {bound:.0e}")
        for name, lines in outside.items():
            where = first_difference(found.evidence[name, dtype], reference, dtype) if name in names else ""
            found.differences.append(f"{name} in {dtype}: {'; '.join(lines)}{where}")


def deviations(
    measure: Callable[[T, T], float], evidence: Mapping[str, T], reference: T
) -> tuple[dict[str, float], dict[str, float]]:
    """How far each backend is from the reference, and each pair, "torch–jax", from each other."""
    pairs = {f"{a}–{b}": (a, b) for a, b in combinations(evidence, 2)}
    sides = [(found, reference) for found in evidence.values()]
    sides += [(evidence[a], evidence[b]) for a, b in pairs.values()]
    with ThreadPoolExecutor(AT_ONCE) as pool:  # NumPy computes on several cores that way
        values = list(pool.map(measure, *zip(*sides, strict=True)))
    return dict(zip(evidence, values, strict=False)), dict(zip(pairs, values[len(evidence) :], strict=True))


def worst_pair(between: Mapping[str, float]) -> tuple[float, str]:
    """The largest deviation between two backends, and which two; NaN is the largest of all."""
    worst = max(between, key=lambda pair: np.nan_to_num(between[pair], nan=np.inf))
    return between[worst], worst


def first_outside(kind: str, walk: Iterable[tuple[str, float]], bound: float) -> str:
    """Which of these deviations, in the order of computation, is the first out of bounds; "" if none is."""
    before = "it is the first"
    for name, value in walk:
        if not value <= bound:
            return f"First {kind} that differs: {name}, by {value:.1e} ({before})"
        before = f"{name} just before: {value:.1e}"
    return ""


def first_difference(a: Evidence, b: Evidence, dtype: str) -> str:
    """Where `a` parts ways with `b`: the first layer, in the order of computation, and the one before."""
    largest = max(np.abs(gradient).max() for gradient in b.training.gradients.values())

    def gradients() -> Iterator[tuple[str, float]]:  # computed from the last layer to the first
        for name in reversed(b.training.gradients):
            difference = np.abs(a.training.gradients[name] - b.training.gradients[name]).max()
            yield name, _ratio(difference, largest)

    walks: list[tuple[str, Iterator[tuple[str, float]]]] = [
        ("layer", ((n, deviation(a.activations[n], b.activations[n])) for n in b.activations)),
        (
            "statistic",
            ((n, deviation(a.training.running[n], b.training.running[n])) for n in b.training.running),
        ),
        ("gradient", gradients()),
        ("trained weight", ((n, deviation(a.trained[n], b.trained[n])) for n in b.trained)),
    ]
    for kind, walk in walks:
        if line := first_outside(kind, walk, LAYER_BOUNDS[dtype]):
            return f". {line}"
    return ""
