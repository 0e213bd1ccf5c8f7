"""The frameworks beside PyTorch where some of them once fell far behind, which `bench` asks one at a time.

cells          grouped convolutions, small images and float64 in every backend, and the least that each is
               to have of PyTorch's images/s (some six minutes on two cores)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from common import architecture
from common.backend import available_backends
from common.bench.figures import WORDS, Figures, number
from common.bench.measure import MODES, Bench, Cell, Contender, Workload, measure


@dataclass(frozen=True)
class Question:
    """A network and what it is given; `bounds` are shares of PyTorch's images/s, in either mode."""

    name: str
    input_shape: tuple[int, int, int]
    batch_size: int
    bounds: dict[str, float]
    precision: str = "float32"


FEW_PIXELS = {"tf": 0.85, "jax": 0.65, "mxnet": 0.85}
QUESTIONS = (
    Question("resnext50_32x4d", (3, 96, 96), 16, {"tf": 0.75, "jax": 0.65, "mxnet": 0.6}),
    Question("resnet18", (1, 28, 28), 128, FEW_PIXELS),
    Question("resnet50", (3, 64, 64), 16, FEW_PIXELS),
    Question("resnet18", (1, 96, 96), 8, {"tf": 1.0, "jax": 1.0}, "float64"),
)


def lines(question: Question, bench: Bench) -> Iterator[str]:
    """What was measured of a question, what failed, and whether the machine was busy."""
    figures = Figures(bench, [])
    size = "×".join(map(str, (question.batch_size, *question.input_shape)))
    yield f"{question.name}, {size}, {question.precision}"
    for contender in figures.contenders:
        for mode in MODES:
            cell = Cell(contender, mode, question.batch_size)
            if cell not in bench.cells:
                continue
            beside = replace(cell, contender=Contender("torch", question.precision))
            speed = figures.speed(cell).median
            line = f"  {contender.backend} {WORDS[mode]}: {number(speed)} images/s"
            if cell != beside and beside in bench.cells:
                share = speed / figures.speed(beside).median
                line += f", {share:.2f} of PyTorch's"
                if bound := question.bounds.get(contender.backend):
                    line += f", at least {bound:.2f}{': MISSED' if share < bound else ''}"
            yield line
    for warning in filter(None, (*figures.failures, figures.busy)):
        yield f"  {warning}"


def cells() -> None:
    """Each question of every backend, in turns."""
    for question in QUESTIONS:
        arch = architecture(question.name, in_channels=question.input_shape[0])
        workload = Workload(question.name, arch, question.input_shape, (question.batch_size,))
        contenders = [Contender(backend, question.precision) for backend in available_backends()]
        print(*lines(question, measure(workload, contenders)), sep="\n", flush=True)
