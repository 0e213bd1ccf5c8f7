"""The benchmark `cells`: what it asks for, and what it says of a measurement."""

from __future__ import annotations

import pytest

from benchmarks import cells
from common.bench.measure import Bench, Cell, Contender, Workload
from tests.bench.helpers import OURS, bench_of


def ours_of(*names: str) -> Bench:
    bench = bench_of(*names)
    bench.cells = {cell: m for cell, m in bench.cells.items() if not cell.contender.reference}
    return bench


def test_a_line_for_each_mode_and_framework_beside_pytorch() -> None:
    """MXNet's passes take two thirds of the time of PyTorch's, TensorFlow's four thirds."""
    question = cells.Question("small", (1, 32, 32), 8, {"mxnet": 1.5, "tf": 0.8})
    bench = ours_of("mxnet", "torch", "tf")
    del bench.cells[Cell(OURS["tf"], "train", 8)]
    bench.failures["tf float32 train, batch 8"] = "no such kernel"
    bench.elsewhere = 0.5
    *found, busy = cells.lines(question, bench)
    assert found == [
        "small, 8×1×32×32, float32",
        "  mxnet inference: 500 images/s, 1.50 of PyTorch's, at least 1.50",
        "  mxnet training: 125 images/s, 1.50 of PyTorch's, at least 1.50",
        "  torch inference: 333 images/s",
        "  torch training: 83.3 images/s",
        "  tf inference: 250 images/s, 0.75 of PyTorch's, at least 0.80: MISSED",
        "  tf float32 train, batch 8: no such kernel",
    ]
    assert "The machine was busy" in busy


def test_without_pytorch_there_are_speeds_alone() -> None:
    question = cells.Question("small", (1, 32, 32), 8, {"mxnet": 1.5})
    assert list(cells.lines(question, ours_of("mxnet")))[1] == "  mxnet inference: 500 images/s"


def test_every_question_is_asked_of_every_framework(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[Workload, list[Contender]]] = []

    def measure(workload: Workload, contenders: list[Contender]) -> Bench:
        asked.append((workload, contenders))
        return Bench(workload)

    monkeypatch.setattr(cells, "measure", measure)
    monkeypatch.setattr(cells, "available_backends", lambda: ["torch", "jax"])
    cells.cells()
    assert [(workload.name, workload.input_shape, workload.batch_sizes) for workload, _ in asked] == [
        ("resnext50_32x4d", (3, 96, 96), (16,)),
        ("resnet18", (1, 28, 28), (128,)),
        ("resnet50", (3, 64, 64), (16,)),
        ("resnet18", (1, 96, 96), (8,)),
    ]
    assert {workload.modes for workload, _ in asked} == {("infer", "train")}
    assert asked[-1][1] == [Contender("torch", "float64"), Contender("jax", "float64")]
    assert asked[0][1][1] == Contender("jax", "float32")
    assert capsys.readouterr().out.splitlines()[0] == "resnext50_32x4d, 16×3×96×96, float32"
