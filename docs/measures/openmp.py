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

from common import load_backend
from common.architecture import Architecture
from common.backend import BACKENDS
from common.proof.compare import PAUSE, deviation, distance, milliseconds
from common.proof.workers import Worker
from common.weights import Weights

FRAMEWORKS = ("torch", "jax", "tf", "mxnet")
IMAGES = 16
REPEATS = 9
PASSES = 5  # in a row before a neighbour's turn, so that its threads have been at work
BUSY = 4.0  # seconds a process beside computes

_models: dict[str, Any] = {}  # of a worker process


def build(names: tuple[str, ...], arch: Architecture, weights: Weights) -> None:
    """In a worker process: the networks, warm."""
    x, _ = test_images(IMAGES)
    for name in names:
        model = _models[name] = load_backend(name).build(arch)
        model.load_weights(weights)
        model.predict(x)


def results(name: str) -> Any:
    """In a worker process: logits, and gradients, of the same images."""
    x, y = test_images(IMAGES)
    return _models[name].predict(x), _models[name].loss_and_gradients(x, y).gradients


def alone(name: str) -> list[float]:
    """In a worker process: milliseconds of a forward pass when no other thread is awake."""
    x, _ = test_images(IMAGES)
    found = []
    for _ in range(REPEATS):
        time.sleep(PAUSE)
        found.append(milliseconds(lambda: _models[name].predict(x)))
    return found


def after(name: str, before: str) -> list[float]:
    """In a worker process: milliseconds of a forward pass right after another framework's."""
    x, _ = test_images(IMAGES)
    found = []
    for _ in range(REPEATS):
        time.sleep(PAUSE)
        for _ in range(PASSES):
            _models[before].predict(x)
        found.append(milliseconds(lambda: _models[name].predict(x)))
    return found


def compute(seconds: float) -> None:
    """In a worker process: keep one core busy."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def digits(arch: Architecture, weights: Weights, cores: list[int]) -> dict[str, Any]:
    """How far apart one core and two are, and two passes on the same two."""
    found = {}
    for name in FRAMEWORKS:
        outputs = []
        for count in (1, 2):
            with closing(Worker(set(cores[:count]))) as worker:
                worker.run(build, (name,), arch, weights)
                outputs += [worker.run(results, name) for _ in range(count)]
        (one, one_gradients), (two, two_gradients), (again, again_gradients) = outputs
        found[name] = {
            "logits": float(deviation(one, two)),
            "gradients": distance(one_gradients, two_gradients),
            "again": max(float(deviation(again, two)), distance(again_gradients, two_gradients)),
            "changed": int((one.argmax(1) != two.argmax(1)).sum()),
        }
    return found


def neighbours(arch: Architecture, weights: Weights, policy: str) -> dict[str, dict[str, float]]:
    """Time of each framework after each other in one process, over its time alone."""
    with patch.dict(os.environ, {"OMP_WAIT_POLICY": policy} if policy else {}), closing(Worker()) as worker:
        worker.run(build, FRAMEWORKS, arch, weights)
        times = {name: median(worker.run(alone, name)) for name in FRAMEWORKS}
        return {
            before: {
                name: median(worker.run(after, name, before)) / times[name]
                for name in FRAMEWORKS
                if name != before
            }
            for before in FRAMEWORKS
        }


def beside(arch: Architecture, weights: Weights) -> dict[str, float]:
    """Time of each framework while one other process computes, over its time alone."""
    found = {}
    for name in FRAMEWORKS:
        with closing(Worker()) as worker, closing(Worker()) as other, ThreadPoolExecutor(1) as pool:
            worker.run(build, (name,), arch, weights)
            other.run(compute, 0.0)
            quiet = median(worker.run(alone, name))
            busy = pool.submit(other.run, compute, BUSY)
            found[name] = median(worker.run(alone, name)) / quiet
            busy.result()
    return found


def measure() -> dict[str, Any]:
    """Digits, neighbours in a process, and a process beside."""
    arch, weights, _ = trained("resnet18")
    cores = sorted(os.sched_getaffinity(0))[:2]
    labels = [BACKENDS[name].label for name in FRAMEWORKS]
    last = digits(arch, weights, cores)
    spinning, passive = neighbours(arch, weights, ""), neighbours(arch, weights, "passive")
    burdened = beside(arch, weights)
    return {
        "images": IMAGES,
        "pause": PAUSE,
        "digits": last,
        "spinning": spinning,
        "passive": passive,
        "beside": burdened,
        "by_threads": {
            "x": labels,
            "series": {
                "logits": [last[name]["logits"] for name in FRAMEWORKS],
                "gradients": [last[name]["gradients"] for name in FRAMEWORKS],
            },
        },
        "by_neighbour": {
            "x": labels,
            "series": {
                "right after PyTorch": [spinning["torch"].get(name, 1.0) for name in FRAMEWORKS],
                "right after MXNet": [spinning["mxnet"].get(name, 1.0) for name in FRAMEWORKS],
                "one busy process beside": [burdened[name] for name in FRAMEWORKS],
            },
        },
        "summary": {"logits": "last digits", "accuracy": "none"},
    }
