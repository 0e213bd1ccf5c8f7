"""Several workers: how far they end from one, and how long a step takes."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

from common import architecture, initial_weights, load_backend
from common.backend import BACKENDS
from common.data import FashionMNIST
from common.processes.launcher import launch
from common.processes.meeting import Seat, meeting
from common.proof.workers import deviations
from common.weights import Weights

FRAMEWORKS = ("torch", "jax", "tf", "mxnet")
ARCH = architecture("resnet18")
EXACT_BATCH, EXACT_IMAGES = 16, 75  # the last batch is of 11, which both workers compute whole
TIMED_STEPS, TIMED_BATCH = 12, 64
WARM = 3


def steps(
    seat: Seat, name: str, dtype: str, images: int, batch_size: int, size: int
) -> tuple[list[float], Weights]:
    """As one of the workers: seconds of each step through so many images, and the weights after them."""
    data = FashionMNIST(batch_size, (size, size), limit_train=images)
    with meeting(seat, {}) as group:
        model = load_backend(name).build(ARCH, dtype, group=group)
        model.load_weights(initial_weights(ARCH))
        seconds = []
        for x, y in data.train_dataloader(dtype=dtype, group=group):
            began = time.perf_counter()
            model.train_step(x, y, lr=0.01, momentum=0.9, weight_decay=1e-4)
            seconds.append(time.perf_counter() - began)
        return seconds, model.weights()


def apart(name: str) -> dict[str, float]:
    """How far two workers end from one, float64."""
    one, two = (
        launch(workers, steps, name, "float64", EXACT_IMAGES, EXACT_BATCH, 32)[1] for workers in (1, 2)
    )
    return deviations(two, one)


def milliseconds(name: str, workers: int) -> float:
    """Of a step of so many workers that share out the cores, float32."""
    images = (WARM + TIMED_STEPS) * TIMED_BATCH
    seconds, _ = launch(workers, steps, name, "float32", images, TIMED_BATCH, 32)
    return 1000 * median(seconds[WARM:])


def measure() -> dict[str, Any]:
    """Distances, and milliseconds of one worker with all cores against two with a share each."""
    by_workers = {name: [milliseconds(name, workers) for workers in (1, 2)] for name in FRAMEWORKS}
    return {
        "batch": TIMED_BATCH,
        "apart": {
            "columns": ["framework", "weights", "running statistics"],
            "rows": [[BACKENDS[name].label, *apart(name).values()] for name in FRAMEWORKS],
        },
        "speed": {
            "columns": ["framework", "one worker, ms", "two workers, ms", "two to one"],
            "rows": [[BACKENDS[n].label, one, two, two / one] for n, (one, two) in by_workers.items()],
        },
    }
