"""What the tests of the measurement share: contenders that compute nothing, and figures nobody waited for."""

from __future__ import annotations

import os
from collections import Counter

from common.architecture import Architecture
from common.bench import measure
from common.bench.measure import Bench, Cell, Contender, Measured, Start, Workload
from common.errors import BadInput

ARCH = Architecture(stages=((1, 4), (1, 6)), stem_channels=4)
NAMES = {"mxnet": "MXNet", "torch": "PyTorch", "tf": "TensorFlow", "jax": "JAX"}
OURS = {name: Contender(name, "float32") for name in NAMES}
THEIRS = {name: Contender(name, "float32", reference=True) for name in NAMES}

RAISES, LACKS_MEMORY, DIES, DIES_LATER = 101, 102, 103, 104  # batch sizes at which a fake fails


class Fake:
    """A contender that takes as many milliseconds as images, in its reference twice as many."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self.rounds: Counter[int] = Counter()

    def warm_up(self, mode: str, batch_size: int) -> Measured:
        if batch_size == RAISES:
            raise RuntimeError("no such kernel\n  at line 1 of many")
        if batch_size == LACKS_MEMORY:
            raise MemoryError("Unable to allocate 9 TiB")
        if batch_size == DIES:
            die()
        return Measured(0.5, os.getpid(), None)

    def time_round(self, mode: str, batch_size: int) -> list[float]:
        self.rounds[batch_size] += 1
        if batch_size == DIES_LATER and self.rounds[batch_size] == 2:
            die()
        return [batch_size * (2.0 if self.contender.reference else 1.0)] * 2

    def time_product(self) -> float:
        if self.contender.backend == "jax":
            raise RuntimeError("no product")
        return {"torch": 20.0, "tf": 10.0}.get(self.contender.backend, 30.0)


def die() -> None:
    os.write(2, b"terminate called\n")
    os._exit(1)


def enter(contender: Contender, workload: Workload) -> Start:
    """In place of `measure.enter`, in a worker."""
    if contender.precision == "bfloat16":
        raise BadInput("no bfloat16 in this backend; give float32 or float64")
    measure._runner = Fake(contender)  # type: ignore[assignment]
    return Start("a reference" if contender.reference else NAMES[contender.backend], 1.5, 0.5)


def bench_of(*names: str, slower: float = 1.0) -> Bench:
    """A measurement of these backends, and of references one and a half times as quick."""
    workload = Workload("small <net>", ARCH, (1, 32, 32), (1, 8, 64))
    bench = Bench(workload, elsewhere=0.02)
    for i, name in enumerate(names):
        bench.products[name, "float32"] = 100.0 + i
        for contender in (OURS[name], THEIRS[name]):
            label = f"{NAMES[name]}'s <own>" if contender.reference else NAMES[name]
            bench.starts[contender] = Start(label, 1.5 + i, 0.5)
            for mode, cost in (("infer", 1), ("train", 4)):
                for size in workload.batch_sizes:
                    taken = slower * cost * (i + 2) * size / (1.5 if contender.reference else 1)
                    rounds = [[taken * share] * 3 for share in (1.0, 1.1, 0.9, 1.0, 1.0)]
                    memory = 2**20 * (300 + cost * size)
                    bench.cells[Cell(contender, mode, size)] = Measured(1.0 * cost, memory, None, rounds)
    return bench
