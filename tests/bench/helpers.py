"""What the tests of the measurement share: one that nobody had to wait for."""

from __future__ import annotations

from common.architecture import Architecture
from common.bench.measure import Bench, Cell, Contender, Job, Measured, Start

ARCH = Architecture(stages=((1, 4), (1, 6)), stem_channels=4)
OURS = {name: Contender(name, "float32") for name in ("mxnet", "torch", "tf", "jax")}
THEIRS = {name: Contender(name, "float32", reference=True) for name in OURS}
LABELS = {"mxnet": "Gluon's <zoo>", "torch": "torchvision", "tf": "Keras functional", "jax": "Flax's example"}
NAMES = {"mxnet": "MXNet", "torch": "PyTorch", "tf": "TensorFlow", "jax": "JAX"}


def bench_of(*names: str, slower: float = 1.0) -> Bench:
    """These backends and their references, a reference one and a half times as quick, all so much slower."""
    job = Job("small <net>", ARCH, (1, 32, 32), (1, 8, 64))
    bench = Bench(job, elsewhere=0.02)
    for i, name in enumerate(names):
        bench.products[name, "float32"] = 100.0 + i
        for contender in (OURS[name], THEIRS[name]):
            label = LABELS[name] if contender.reference else NAMES[name]
            bench.starts[contender] = Start(label, 1.5 + i, 0.5)
            for mode, share in (("infer", 1), ("train", 4)):
                for size in job.batch_sizes:
                    ms = slower * share * (i + 2) * size**0.8 / (1.5 if contender.reference else 1)
                    rounds = [[ms * (1 + 0.01 * n + 0.002 * k) for k in range(4)] for n in range(5)]
                    memory = 2**20 * (300 + share * size)
                    bench.cells[Cell(contender, mode, size)] = Measured(share * 1.0, memory, None, rounds)
    return bench
