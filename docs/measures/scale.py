"""What several workers cost: measured here and simulated, then simulated at scale."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from benchmarks.scale import Check, Link, Traffic, check, server, simulate
from common import architecture, initial_weights, load_backend
from common.architecture import ZOO
from common.backend import BACKENDS

FRAMEWORKS = ("torch", "jax", "tf", "mxnet")
MEMBERS = [name for name in ZOO if not name.endswith("_v1")]  # whose traffic is that of their namesakes
SHOWN = "resnet50"
WORKERS = (8, 32, 128, 512, 1024)
IMAGES, SIZE = 4, 224  # of a step that is timed
BATCH = 32  # of a worker
FASTER = 200  # times this machine, a processor that such networks are trained on
SLOW, FAST = Link(20e-6, 10e9 / 8), Link(5e-6, 200e9 / 8)  # Ethernet of 10 Gbit/s, a fabric of 200


def measure() -> dict[str, Any]:
    """The check on this machine; the traffic of each network; efficiency by workers."""
    checks = [check(backend, workers) for backend in FRAMEWORKS for workers in (2, 4)]
    seconds = {name: seconds_an_image(name) for name in MEMBERS}
    return {
        "check": {
            "columns": [
                "framework",
                "workers",
                "computing, ms",
                "sums, ms",
                "simulated, ms",
                "a message, ms",
                "MB/s",
            ],
            "rows": [row(found) for found in checks],
        },
        "worst": max(abs(found.error) for found in checks),
        "traffic": {
            "columns": ["network", "gradients, MB", "moments, kB", "sums", "step of an image, ms"],
            "rows": [traffic(name, seconds[name]) for name in MEMBERS],
        },
        "batch": BATCH,
        "faster": FASTER,
        "efficiency": {
            "columns": ["ResNet-50 on so many workers", *map(str, WORKERS)],
            "rows": [
                [what, *(efficient(seconds[SHOWN] * BATCH, workers) for workers in WORKERS)]
                for what, efficient in cases().items()
            ],
        },
    }


def row(found: Check) -> list[Any]:
    """A line of the check's table."""
    milliseconds = [1e3 * t for t in (found.computing, found.measured, found.simulated, found.link.latency)]
    return [BACKENDS[found.backend].label, found.workers, *milliseconds, found.link.bandwidth / 1e6]


def traffic(name: str, seconds: float) -> list[Any]:
    """A line of the networks' table; of a network of 1,000 classes on colour images."""
    moved = Traffic.of(architecture(name, in_channels=3, num_classes=1000))
    return [name, moved.gradients / 1e6, moved.sums * np.mean(moved.moments) / 1e3, moved.sums, 1e3 * seconds]


def cases() -> dict[str, Callable[[float, int], float]]:
    """In words, and the efficiency of so many workers whose step computes for so many seconds."""
    moved = Traffic.of(architecture(SHOWN, in_channels=3, num_classes=1000))

    def case(link: Link, faster: float = FASTER, **options: Any) -> Callable[[float, int], float]:
        def efficiency(seconds: float, workers: int) -> float:
            computing = seconds / faster
            return computing / simulate(moved, computing, workers, link, **options)

        return efficiency

    return {
        "this machine, 10 Gbit/s": case(SLOW, faster=1),
        "faster, 10 Gbit/s, nothing overlaps": case(SLOW, overlap=False),
        "faster, 10 Gbit/s": case(SLOW),
        "faster, 200 Gbit/s": case(FAST),
        "the same, each worker's own moments": case(FAST, synchronised=False),
        "the same, one parameter server": case(FAST, sum_up=server),
    }


def seconds_an_image(name: str) -> float:
    """Of a training step in PyTorch on all cores."""
    arch = architecture(name, in_channels=3, num_classes=1000)
    model = load_backend("torch").build(arch)
    model.load_weights(initial_weights(arch))
    x = np.random.default_rng(0).random((IMAGES, 3, SIZE, SIZE), np.float32)
    taken = []
    for _ in range(4):
        began = time.perf_counter()
        model.train_step(x, np.arange(IMAGES), lr=0.01)
        taken.append(time.perf_counter() - began)
    return median(taken[1:]) / IMAGES
