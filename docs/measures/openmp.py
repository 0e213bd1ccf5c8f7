"""Threads: what their number does to the last digits, and what threads that spin do to a neighbour's time."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from statistics import median
from typing import Any
from unittest.mock import patch

from measures.shared import test_images, trained
from numpy.typing import NDArray

from common import load_backend
from common.architecture import Architecture
from common.backend import BACKENDS
from common.deviation import deviation, distance
from common.processes.workers import Process
from common.timing import PAUSE, Elsewhere, milliseconds
from common.weights import Weights

FRAMEWORKS = ("torch", "jax", "tf", "mxnet")
IMAGES = 16
REPEATS = 7
PASSES = 5  # in a row before a neighbour's turn, so that its threads have been at work
BUSY = 4.0  # seconds a process beside computes

_models: dict[str, Any] = {}  # of a process of its own


def build(names: tuple[str, ...], arch: Architecture, weights: Weights) -> None:
    """In a process of its own: the networks, warm."""
    x, _ = test_images(IMAGES)
    for name in names:
        model = _models[name] = load_backend(name).build(arch)
        model.load_weights(weights)
        model.predict(x)


def results(name: str) -> tuple[NDArray, NDArray, Weights]:
    """In a process of its own: logits in evaluation, in training, and gradients, of the same images."""
    x, y = test_images(IMAGES)
    training = _models[name].loss_and_gradients(x, y)
    return _models[name].predict(x), training.logits, training.gradients


def spinning(name: str) -> float:
    """In a process of its own: milliseconds of a core that its threads use after a pass, doing nothing."""
    x, _ = test_images(IMAGES)
    found = []
    for _ in range(REPEATS):
        for _ in range(PASSES):
            _models[name].predict(x)
        start = time.process_time()
        time.sleep(PAUSE)
        found.append(1000 * (time.process_time() - start))
    return median(found)


def after(name: str, before: str) -> float:
    """In a process of its own: milliseconds of a pass right after another framework's, or its own."""
    x, _ = test_images(IMAGES)
    found = []
    for _ in range(REPEATS):
        time.sleep(PAUSE)
        for _ in range(PASSES):
            _models[before].predict(x)
        found.append(milliseconds(lambda: _models[name].predict(x)))
    return median(found)


def compute(seconds: float) -> None:
    """In a process of its own: keep one core busy."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def digits(one_core: Process, two_cores: Process) -> dict[str, Any]:
    """How far apart one core and two are, and two passes on the same two."""
    found = {}
    for name in FRAMEWORKS:
        one, two, again = (process.run(results, name) for process in (one_core, two_cores, two_cores))
        found[name] = {
            "logits": float(deviation(one[0], two[0])),
            "training": float(deviation(one[1], two[1])),
            "gradients": distance(one[2], two[2]),
            "again": distance(again[2], two[2]),
        }
    return found


def neighbours(process: Process) -> dict[str, dict[str, float]]:
    """Time of each framework right after each other in one process, over its time right after itself."""
    own = {name: process.run(after, name, name) for name in FRAMEWORKS}
    return {
        before: {name: process.run(after, name, before) / own[name] for name in FRAMEWORKS if name != before}
        for before in ("torch", "mxnet")
    }


def beside(process: Process) -> dict[str, float]:
    """Time of each framework while one other process computes, over its time alone."""
    found = {}
    with closing(Process()) as other, ThreadPoolExecutor(1) as pool:
        other.run(compute, 0.0)
        for name in FRAMEWORKS:
            alone = process.run(after, name, name)
            busy = pool.submit(other.run, compute, BUSY)
            found[name] = process.run(after, name, name) / alone
            busy.result()
    return found


def measure() -> dict[str, Any]:
    """Digits, neighbours in a process, and a process beside."""
    arch, weights, _ = trained("resnet18")
    cores = sorted(os.sched_getaffinity(0))[:2]
    labels = [BACKENDS[name].label for name in FRAMEWORKS]
    with closing(Process(set(cores[:1]))) as one, closing(Process(set(cores))) as two:
        for process in (one, two):
            process.run(build, FRAMEWORKS, arch, weights)
        last = digits(one, two)
        with Elsewhere([one, two]) as elsewhere:
            spins = {name: two.run(spinning, name) for name in FRAMEWORKS}
            after_others = neighbours(two)
        burdened = beside(two)
    with patch.dict(os.environ, OMP_WAIT_POLICY="passive"), closing(Process(set(cores))) as two:
        two.run(build, FRAMEWORKS, arch, weights)
        passive = {name: two.run(spinning, name) for name in FRAMEWORKS}
    return {
        "images": IMAGES,
        "pause": 1000 * PAUSE,
        "elsewhere": elsewhere.share or 0.0,
        "digits": last,
        "logits": max(one["logits"] for one in last.values()),
        "again": max(one["again"] for one in last.values()),
        "training": max(one["training"] for one in last.values()),
        "largest": max(one["gradients"] for one in last.values()),
        "spins": spins,
        "passive": passive,
        "after": after_others,
        "beside": burdened,
        "by_threads": {
            "x": labels,
            "series": {
                "training logits": [last[name]["training"] for name in FRAMEWORKS],
                "gradients": [last[name]["gradients"] for name in FRAMEWORKS],
            },
        },
        "by_spin": {
            "x": labels,
            "series": {
                "as they come": [spins[name] for name in FRAMEWORKS],
                "OMP_WAIT_POLICY=passive": [passive[name] for name in FRAMEWORKS],
            },
        },
        "by_neighbour": {
            "x": labels,
            "series": {
                "right after PyTorch": [after_others["torch"].get(name, 1.0) for name in FRAMEWORKS],
                "right after MXNet": [after_others["mxnet"].get(name, 1.0) for name in FRAMEWORKS],
                "one busy process beside": [burdened[name] for name in FRAMEWORKS],
            },
        },
        "summary": {"logits": "last digits, in training", "accuracy": "none"},
    }
