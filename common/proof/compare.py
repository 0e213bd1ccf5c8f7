"""The main job: give several backends the same network and the same images, and decide if they agree.

The oracle is the reference. Every backend computes in a process of its own and sends back evidence: what
it put out, what its gradients were, and where some steps of training took it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from common.architecture import Architecture
from common.backend import Evaluation, load_backend
from common.deviation import deviation, distance, ratio, worst, worst_gradient
from common.errors import BadInput
from common.processes.workers import Process, Shares
from common.summary import Row
from common.timing import PAUSE, ROUNDS, Elsewhere, Spread, milliseconds
from common.weights import Weights

T = TypeVar("T")

LAYER_BOUNDS = {"float64": 1e-12, "float32": 1e-5}  # how far apart outputs in evaluation may be
AT_ONCE = 2  # backends at work at the same time, while nothing is timed
REPEATS = 3  # of each pass in a round; the first only wakes the threads


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
    compile: bool = False


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
    """That, and the weights after the job's steps."""

    trained: Weights


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
    """All that was found in a job.

    Attributes:
        workers: for each quantity, how far several workers of a backend end from one; none where not asked.
    """

    job: Job
    evidence: dict[tuple[str, str], Evidence] = field(default_factory=dict)
    timings: dict[str, Timing] = field(default_factory=dict)
    elsewhere: float | None = None  # share of the cores' time that other programs had during the timing
    workers: dict[str, dict[str, float]] = field(default_factory=dict)


def quantities(steps: int) -> list[Quantity]:
    """What is compared, in the order a reader asks for it."""
    exact = {"float64": 1e-12}
    return [
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
        Quantity(
            f"weights, {steps} steps on", {"float64": 1e-10}, lambda a, b: distance(a.trained, b.trained)
        ),
    ]


class Candidate:
    """One backend at a job in one dtype: first it shows what it computes, then it is trained.

    Args:
        name: of the backend.
        dtype: what it computes in.
    """

    def __init__(self, name: str, job: Job, dtype: str) -> None:
        self.job = job
        device = "cpu" if name == "oracle" else job.device
        self.model = load_backend(name).build(job.arch, dtype, device, job.compile)
        self.model.load_weights(job.weights)
        self.taken = 0  # steps
        self.trained: Weights = {}

    def look(self) -> Look:
        """What it puts out, and its gradients, before any step."""
        activations = self.model.activations(self.job.x)
        training = self.model.loss_and_gradients(self.job.x, self.job.y)
        return Look(self.model.summary(self.job.x.shape), activations, training)

    def step(self) -> float:
        """One more step of SGD; returns its milliseconds."""
        if self.taken == self.job.steps:
            self.trained = self.model.weights()
        self.taken += 1
        return milliseconds(lambda: self.model.train_step(self.job.x, self.job.y, lr=self.job.lr))

    def finish(self) -> Weights:
        """The weights after the job's number of steps, whether or not more have been taken."""
        while self.taken < self.job.steps:
            self.step()
        return self.trained or self.model.weights()

    def warm_up(self) -> None:
        """Run what `time_round` times until it is compiled."""
        self.model.predict(self.job.x)
        self.step()

    def time_round(self) -> tuple[list[float], list[float]]:
        """Milliseconds of some forward passes and some training steps. Nothing else should be computing."""
        time.sleep(PAUSE)
        forward = [milliseconds(lambda: self.model.predict(self.job.x)) for _ in range(REPEATS)]
        steps = [self.step() for _ in range(REPEATS)]
        return forward[1:], steps[1:]


_candidate: Candidate  # of this process


def enter(name: str, job: Job, dtype: str) -> None:
    """Build a backend in this process."""
    global _candidate
    _candidate = Candidate(name, job, dtype)


def ask(method: str) -> Any:
    """What a method of this process' candidate returns."""
    return getattr(_candidate, method)()


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
    looks: dict[tuple[str, str], Look] = {}
    shares = Shares(AT_ONCE)
    one_by_one = Lock()

    def see(name: str, dtype: str, process: Process) -> None:
        look = process.run(ask, "look")
        with one_by_one:
            looks[name, dtype] = look
            reference = looks.get(("oracle", "float64"))
            for key in looks if name == "oracle" else [(name, dtype)]:
                if reference and key[0] != "oracle":
                    progress(f"{' in '.join(key)}: {first_figures(looks[key], reference)}")

    def conclude(name: str, dtype: str, process: Process) -> None:
        trained = process.run(ask, "finish")
        found.evidence[name, dtype] = Evidence(**vars(looks[name, dtype]), trained=trained)

    def gather(name: str) -> None:
        with shares.process() as process:
            process.run(enter, name, job, "float64")
            see(name, "float64", process)
            conclude(name, "float64", process)

    def prepare(name: str) -> None:
        processes[name].run(enter, name, job, "float32")
        if "float32" in dtypes:
            see(name, "float32", processes[name])
        processes[name].run(ask, "warm_up")

    with ExitStack() as stack:
        # Those that time have all cores, and wait until nothing else computes.
        processes = {name: stack.enter_context(closing(Process())) for name in names}
        exact = ["oracle", *names] if "float64" in dtypes else ["oracle"]
        tasks: list[tuple[str, Callable[[str], None]]] = [(name, gather) for name in exact]
        tasks += [(name, prepare) for name in names]
        found.failures |= each(tasks, at_once=shares.count)
        found.timings, found.elsewhere, failures = time_in_turns(
            {name: processes[name] for name in names if name not in found.failures}
        )
        found.failures |= failures
        if found.timings:
            progress(f"timed in {ROUNDS} rounds")
        if "float32" in dtypes:
            rest = [(name, lambda name: conclude(name, "float32", processes[name])) for name in found.timings]
            found.failures |= each(rest, at_once=shares.count)
    judge(found, names, dtypes)
    return found


def first_figures(look: Look, reference: Look) -> str:
    """What can be told of a backend while it is still at work."""
    logits = deviation(look.logits, reference.logits)
    gradients = distance(look.training.gradients, reference.training.gradients)
    return f"logits {logits:.1e}, gradients {gradients:.1e} from the oracle's"


def time_in_turns(
    processes: Mapping[str, Process],
) -> tuple[dict[str, Timing], float | None, dict[str, str]]:
    """Time the backends in turns, so that what disturbs the machine for a while disturbs all.

    Returns the timings, the share of the cores' time that went elsewhere, and what failed.
    """
    rounds: dict[str, list[tuple[list[float], list[float]]]] = {name: [] for name in processes}
    failures: dict[str, str] = {}
    with Elsewhere(processes.values()) as elsewhere:
        for _ in range(ROUNDS):
            turn: list[tuple[str, Callable[[str], None]]] = [
                (name, lambda name: rounds[name].append(processes[name].run(ask, "time_round")))
                for name in processes
                if name not in failures
            ]
            failures |= each(turn, at_once=1)
    timings = {}
    for name in processes:
        if name not in failures:
            forward, step = zip(*rounds[name], strict=True)
            timings[name] = Timing(Spread.of(forward), Spread.of(step))
    return timings, elsewhere.share, failures


def each(tasks: list[tuple[str, Callable[[str], None]]], at_once: int) -> dict[str, str]:
    """Do the tasks, each for a backend. What a framework raises is a finding about it, and returned."""
    failures = {}
    with ThreadPoolExecutor(at_once) as pool:
        futures = {pool.submit(task, name): name for name, task in tasks}
        for future in as_completed(futures):
            error = future.exception()
            if isinstance(error, BadInput):
                pool.shutdown(cancel_futures=True)
                raise error
            if error:
                failures[futures[future]] = f"{type(error).__name__}: {str(error).strip() or 'no message'}"
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
    largest = worst(np.abs(gradient).max() for gradient in b.training.gradients.values())

    def gradients() -> Iterator[tuple[str, float]]:  # computed from the last layer to the first
        for name in reversed(b.training.gradients):
            difference = np.abs(a.training.gradients[name] - b.training.gradients[name]).max()
            yield name, ratio(difference, largest)

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
