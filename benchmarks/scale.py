"""What training on several workers costs, by simulation, and whether that is so on this machine.

    scale         overheads of 2 and 4 workers here, measured and simulated, in every framework

A step is computation between sums over the workers: two for every batch norm forwards, two backwards, and the
gradients. What a sum costs is that of its messages, which a `Link` describes by latency and bandwidth. Both
are found with two networks, and must then foretell a third.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil, log2
from statistics import median

import numpy as np

from common import Architecture, architecture, initial_weights, load_backend
from common.backend import BACKENDS
from common.processes.group import ALONE
from common.processes.launcher import launch
from common.processes.meeting import Seat, meeting
from common.weights import is_statistic

FLOAT = 4  # bytes of a float32
BUCKET = 25 << 20  # bytes of gradients that travel together, as in DistributedDataParallel
FORWARD = 1 / 3  # of a step's time; a backward pass computes twice as much
SUMS = 2  # of a batch norm in either direction: of mean and of variance


@dataclass(frozen=True)
class Link:
    """Between two workers: latency in seconds a message, bandwidth in bytes/s each way."""

    latency: float
    bandwidth: float


@dataclass(frozen=True)
class Traffic:
    """What a step sums over the workers: bytes of gradients, and of one sum of each batch norm, in order."""

    gradients: int
    moments: tuple[int, ...]

    @classmethod
    def of(cls, arch: Architecture) -> Traffic:
        """That of a network in float32."""
        shapes = arch.parameter_shapes()
        sizes = {name: FLOAT * int(np.prod(shape)) for name, shape in shapes.items()}
        gradients = sum(size for name, size in sizes.items() if not is_statistic(name))
        return cls(gradients, tuple(size for name, size in sizes.items() if name.endswith("running_mean")))

    @property
    def sums(self) -> int:
        """How many sums of moments a step takes."""
        return 2 * SUMS * len(self.moments)


Sum = Callable[[float, int, Link], float]


def ring(size: float, workers: int, link: Link) -> float:
    """Seconds of a sum in a ring: each worker sends its part around twice (Patarasu and Yuan 2009)."""
    return 2 * (workers - 1) * (link.latency + size / workers / link.bandwidth)


def tree(size: float, workers: int, link: Link) -> float:
    """Seconds of a sum up a binary tree and down again: fewer messages, each whole."""
    return 2 * ceil(log2(workers)) * (link.latency + size / link.bandwidth)


def ring_or_tree(size: float, workers: int, link: Link) -> float:
    """Seconds of the quicker one, as NCCL chooses."""
    return min(ring(size, workers, link), tree(size, workers, link))


def server(size: float, workers: int, link: Link) -> float:
    """Seconds of a sum in one parameter server, through whose link all comes and goes (Li et al. 2014)."""
    return 2 * (link.latency + workers * size / link.bandwidth)


def simulate(
    traffic: Traffic,
    seconds: float,
    workers: int,
    link: Link,
    sum_up: Sum = ring_or_tree,
    overlap: bool = True,
    synchronised: bool = True,
) -> float:
    """Seconds of a step that computes for so many seconds.

    Args:
        overlap: whether gradients travel while others are still computed; the link takes one sum at a time.
        synchronised: whether batch norm sums its moments over the workers.
    """
    layers = traffic.moments
    moment = [sum_up(size, workers, link) if synchronised else 0.0 for size in layers]
    now = link_is_free = 0.0
    for cost in moment:
        now += seconds * FORWARD / len(layers) + SUMS * cost
    waiting = 0.0
    for i, cost in enumerate(reversed(moment), 1):
        now += seconds * (1 - FORWARD) / len(layers)
        now = max(now, link_is_free) + SUMS * cost if synchronised else now
        waiting += traffic.gradients / len(layers)
        if (overlap and waiting >= BUCKET) or i == len(layers):
            link_is_free = max(now, link_is_free) + sum_up(waiting, workers, link)
            waiting = 0.0
    return max(now, link_is_free)


# Here: two networks to find the link, one to foretell.

MANY_SUMS = Architecture(stages=((2, 16),) * 4, stem_channels=16, in_channels=1, num_classes=10)
MANY_BYTES = Architecture(stages=((1, 128),), in_channels=1, num_classes=80_000)
FORETOLD = architecture("resnet18")
NETWORKS = {"many sums": MANY_SUMS, "many bytes": MANY_BYTES, "resnet18": FORETOLD}
BATCH, SIZE = 32, 32
WARM, STEPS = 3, 9


def steps(seat: Seat, backend: str, together: bool) -> dict[str, float]:
    """As one of the workers: seconds of a step of each network, together or each of them for itself."""
    generator = np.random.default_rng(0)
    found = {}
    with meeting(seat, {}) as group:
        rows = BATCH // seat.workers
        x = generator.random((rows, 1, SIZE, SIZE), np.float32)
        y = generator.integers(10, size=rows)
        for name, arch in NETWORKS.items():
            model = load_backend(backend).build(arch, group=group if together else ALONE)
            model.load_weights(initial_weights(arch))
            seconds = []
            for _ in range(WARM + STEPS):
                began = time.perf_counter()
                model.train_step(x, y, lr=0.01, momentum=0.9)
                seconds.append(time.perf_counter() - began)
            found[name] = median(seconds[WARM:])
    return found


def find_link(computing: dict[str, float], together: dict[str, float], workers: int, sum_up: Sum) -> Link:
    """The link with which the simulation gives what two networks took."""
    names = ("many sums", "many bytes")
    rows, overheads = [], []
    for name in names:
        traffic = Traffic.of(NETWORKS[name])
        zero = partial(simulate, traffic, 0.0, workers, sum_up=sum_up, overlap=False)
        a_second, a_byte = zero(Link(1.0, float("inf"))), zero(Link(0.0, 1.0))
        rows.append([a_second, a_byte])
        overheads.append(together[name] - computing[name])
    latency, seconds_a_byte = np.linalg.solve(rows, overheads)
    return Link(float(latency), 1 / float(seconds_a_byte))


@dataclass(frozen=True)
class Check:
    """What the sums of so many workers cost in a step of ResNet-18, in seconds."""

    backend: str
    workers: int
    computing: float
    measured: float
    simulated: float
    link: Link

    @property
    def error(self) -> float:
        """Of the simulation, as a share of what was measured."""
        return self.simulated / self.measured - 1


def check(backend: str, workers: int) -> Check:
    """Measure so many workers on this machine, and foretell what they cost.

    They share out the cores and are in each other's way in both runs, so that the difference is what the sums
    cost. There is no core left to send while others compute: nothing overlaps.
    """
    computing, together = (launch(workers, steps, backend, how) for how in (False, True))
    sum_up = server if backend == "mxnet" else ring
    link = find_link(computing, together, workers, sum_up)
    name = "resnet18"
    step = simulate(Traffic.of(FORETOLD), computing[name], workers, link, sum_up, overlap=False)
    return Check(
        backend,
        workers,
        computing[name],
        together[name] - computing[name],
        step - computing[name],
        link,
    )


def scale() -> None:
    """Measured and simulated overheads, a line each."""
    for backend in BACKENDS:
        for workers in (2, 4):
            found = check(backend, workers)
            line = (
                f"{backend:6} {workers} workers: computing {1e3 * found.computing:.0f} ms, "
                f"sums {1e3 * found.measured:.0f} ms, simulated {1e3 * found.simulated:.0f} ms "
                f"({found.error:+.0%}); a message {1e6 * found.link.latency:.0f} µs, "
                f"{found.link.bandwidth / 1e6:.0f} MB/s"
            )
            print(line, flush=True)
