"""One backend at a job, step by step; and the reference, which is the oracle twice."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from common import horizon, oracle
from common.backend import Model, load_backend
from common.oracle import Array
from common.proof.judge import Job, Look, way
from common.timing import PAUSE, milliseconds
from common.weights import Weights

REPEATS = 3  # of each pass in a round; the first only wakes the threads


class Candidate:
    """One backend at a job in one dtype: first it shows what it computes, then it is trained.

    Args:
        model: of the job's architecture.
        dtype: what it computes in.
    """

    def __init__(self, model: Model, job: Job, dtype: str) -> None:
        self.model, self.job, self.dtype = model, job, dtype
        model.load_weights(job.weights)
        self.taken = 0  # steps
        self.trained: Weights = {}
        self.path: list[Weights] = []

    @classmethod
    def of(cls, name: str, job: Job, dtype: str) -> Candidate:
        """The backend of this name."""
        device = "cpu" if name == "oracle" else job.device
        return cls(load_backend(name).build(job.arch, dtype, device, job.compile), job, dtype)

    def look(self) -> Look:
        """What it puts out, and its gradients, before any step."""
        activations = self.model.activations(self.job.x)
        training = self.model.loss_and_gradients(self.job.x, self.job.y)
        return Look(self.model.summary(self.job.x.shape), activations, training)

    def start(self, asleep: bool) -> None:
        """Go where the steps start."""
        self.model.load_weights(self.job.start(asleep))
        self.taken, self.path = 0, []
        self._note()

    def step(self) -> float:
        """One more step of SGD; returns its milliseconds."""
        if self.taken == self.job.steps:
            self.trained = self.model.weights()
        self.taken += 1
        took = milliseconds(lambda: self.model.train_step(self.job.x, self.job.y, lr=self.job.lr))
        self._note()
        return took

    def _note(self) -> None:
        if self.dtype == "float64":
            self.path.append(horizon.sample(self.model.weights()))

    def finish(self) -> tuple[Weights, list[Weights]]:
        """The weights after the job's number of steps, whether or not more have been taken, and the path."""
        while self.taken < self.job.steps:
            self.step()
        return self.trained or self.model.weights(), self.path

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


class OneByOnePass(oracle.Pass):
    """The oracle's pass, in which a channel's pixels are added one after the other.

    NumPy adds blocks in pairs. Both are right, and round differently.
    """

    def batch_norm(self, name: str, x: Array) -> tuple[Array, Callable]:
        y, backward = super().batch_norm(name, _in_rows(x))
        return _in_images(y, x.shape), lambda dy: _in_images(backward(_in_rows(dy)), x.shape)

    def _collect(self, name: str, backward: Callable) -> Callable:
        collecting = super()._collect(name, backward)

        def collecting_one_by_one(dy: Array) -> Array:
            dx = collecting(dy)
            if dy.ndim == 4:  # a bias is added to every pixel
                self.gradients[f"{name}.bias"] = _in_rows(dy).sum((0, 2, 3))
            return dx

        return collecting_one_by_one


def _in_rows(x: Array) -> Array:
    """(N, C, H, W) → (1, C, N·H, W), a pixel's channels side by side in memory: NumPy adds whole pixels."""
    n, c, height, width = x.shape
    pixels = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    return pixels.reshape(1, n * height, width, c).transpose(0, 3, 1, 2)


def _in_images(rows: Array, shape: tuple[int, ...]) -> Array:
    """(1, C, N·H, W) → (N, C, H, W)."""
    n, c, height, width = shape
    images = rows.transpose(0, 2, 3, 1).reshape(n, height, width, c).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(images)


class OneByOne(oracle.Model):
    """The oracle, adding one by one."""

    new_pass = OneByOnePass


class Reference:
    """The oracle at a job, and again from moved weights, adding one by one: two candidates, step by step."""

    def __init__(self, job: Job) -> None:
        self.job = job
        moved = replace(job, weights=horizon.moved(job.weights, job.x.shape))
        self.candidates = [
            Candidate.of("oracle", job, "float64"),
            Candidate(OneByOne(job.arch), moved, "float64"),
        ]

    def look(self) -> list[Look]:
        """Of both. In evaluation, where no pixels are added up, weights are moved less."""
        (right, other), job = self.candidates, self.job
        other.model.load_weights(horizon.moved(job.weights))
        activations = other.model.activations(job.x)
        other.model.load_weights(other.job.weights)
        training = other.model.loss_and_gradients(job.x, job.y)
        look = right.look()
        return [look, replace(look, activations=activations, training=training)]

    def choose_start(self) -> bool:
        """Start where float64 can follow; returns whether branches are asleep there."""
        self._start(False)
        if not self.job.drawn:
            return False
        early = min(horizon.EARLY, self.job.steps)
        for _ in range(early):
            self._step()
        one, other = (candidate.path for candidate in self.candidates)
        far = bool(early) and not way(other, one, early) <= horizon.FAR
        if far:
            self._start(True)
        return far

    def finish(self) -> list[tuple[Weights, list[Weights]]]:
        """Of both."""
        while self.candidates[0].taken < self.job.steps:
            self._step()
        return [candidate.finish() for candidate in self.candidates]

    def _start(self, asleep: bool) -> None:
        for candidate in self.candidates:
            candidate.start(asleep)

    def _step(self) -> None:
        for candidate in self.candidates:
            candidate.step()
