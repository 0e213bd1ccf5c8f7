"""The same steps by several workers, held against those of one."""

from __future__ import annotations

from collections.abc import Mapping

from common import horizon
from common.backend import load_backend
from common.deviation import distance
from common.errors import BadInput
from common.processes.launcher import WorkerLost, launch
from common.processes.meeting import Seat, meeting
from common.proof.judge import STEPS_BOUND, Comparison, Job
from common.weights import Weights, is_statistic


def check_divides(workers: int, images: int) -> None:
    """Raise `ValueError` unless so many workers get equal shares of so many images."""
    fitting = [str(count) for count in range(2, images + 1) if images % count == 0]
    if str(workers) not in fitting:
        raise BadInput(f"--workers must divide the {images} images: {', '.join(fitting)}, not {workers}")


def compare_workers(found: Comparison, names: list[str], workers: int) -> None:
    """Train what gave evidence in float64 on so many workers, and note how far from one they end."""
    if not found.claimed:
        return
    for name in names:
        one = found.evidence.get((name, "float64"))
        if name == "oracle" or not one:
            continue
        try:
            many = launch(workers, _train, name, found.job, found.claimed, found.asleep)
        except WorkerLost as error:
            found.failures[name] = f"with {workers} workers: {error}"
            continue
        bound = workers_bound(found)
        single = one.after(found.claimed)
        if found.claimed < found.job.steps:
            many = horizon.sample(many)
        for kind, value in deviations(many, single).items():
            quantity = f"{kind}, {found.claimed} steps on, {workers} workers"
            found.workers.setdefault(quantity, {})[name] = value
            if not value <= bound:
                found.differences.append(f"{name}: {quantity} {value:.1e} > {bound:.0e}")


def workers_bound(found: Comparison) -> float:
    """How far several workers may end from one, in float64: as far as two backends."""
    far = found.horizon.get(f"weights, {found.claimed} steps on", 0.0)
    return horizon.allowed(STEPS_BOUND, far, after_steps=True)


def deviations(many: Weights, one: Weights) -> dict[str, float]:
    """How far the weights and the running statistics of several workers are from those of one."""

    def part(weights: Mapping, statistics: bool) -> Weights:
        return {name: array for name, array in weights.items() if is_statistic(name) == statistics}

    return {
        "weights": distance(part(many, False), part(one, False)),
        "running statistics": distance(part(many, True), part(one, True)),
    }


def _train(seat: Seat, name: str, job: Job, steps: int, asleep: bool) -> Weights:
    """The weights after so many steps, each worker with its share of the images."""
    with meeting(seat, {}) as group:
        model = load_backend(name).build(job.arch, "float64", job.device, job.compile, group)
        model.load_weights(job.start(asleep))
        for _ in range(steps):
            model.train_step(group.share(job.x), group.share(job.y), lr=job.lr)
        return {} if seat.rank else model.weights()
