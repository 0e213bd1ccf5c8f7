"""onnxruntime beside the four: for inference alone, and only where it is asked for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from common.bench import measure as measuring
from common.bench import onnx_reference
from common.bench.figures import Figures
from common.bench.measure import Bench, Cell, Contender, Measured, Start, Workload, measure
from common.bench.onnx_reference import ONNXRUNTIME, Reference
from common.bench.plots import plots
from common.weights import initial_weights
from tests.bench.helpers import ARCH, OURS, THEIRS, bench_of
from tests.cli.commands import run_here
from tests.helpers import SINGLE, build, deviation, random_batch

ONNX = Contender(ONNXRUNTIME.name, "float32", reference=True)


def test_it_is_our_network() -> None:
    oracle = build("oracle", ARCH)
    oracle.load_weights(initial_weights(ARCH))
    x, _ = random_batch(ARCH, 2, 33, 40)
    logits = Reference("small", ARCH, "float32", "cpu").predict(x.astype(np.float32))
    assert deviation(logits, oracle.predict(x)) <= SINGLE


def test_it_is_measured_at_inference_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "ROUNDS", 1)
    bench = measure(Workload("small", ARCH, (1, 32, 32), (1, 2)), [ONNX])
    assert bench.failures == {} and bench.products == {}
    assert list(bench.cells) == [Cell(ONNX, "infer", 1), Cell(ONNX, "infer", 2)]
    assert bench.starts[ONNX].label == "onnxruntime"


def test_it_comes_last_in_every_round() -> None:
    contenders = [OURS["torch"], THEIRS["torch"], ONNX]
    assert measuring._order(contenders, 0) == contenders
    assert measuring._order(contenders, 1) == [THEIRS["torch"], OURS["torch"], ONNX]


def test_it_is_shown_beside_the_others() -> None:
    bench = bench_of("torch")
    bench.starts[ONNX] = Start("onnxruntime", 0.0, 0.5)
    for size in bench.workload.batch_sizes:
        bench.cells[Cell(ONNX, "infer", size)] = Measured(0.5, 2**28, None, [[float(size)] * 3] * 5)
    figures = Figures(bench, [ONNXRUNTIME])
    rows = {grid.name: {row[0]: row[1:] for row in grid.rows} for grid in figures.grids()}
    assert rows["train"]["onnxruntime float32"] == ["–"] * 3
    share = figures.share_of_quickest(Cell(ONNX, "infer", 8))
    assert share == pytest.approx(2.0)
    assert all("onnxruntime" not in what for what in rows["ratios"])
    assert all("onnxruntime" in svg for _, svg in plots(figures))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Contender]:
    """The contenders that the command measures, which it need not wait for."""
    found: list[Contender] = []

    def measure(workload: Workload, contenders: list[Contender], tell: object) -> Bench:
        found.extend(contenders)
        return bench_of("torch")

    monkeypatch.setattr(measuring, "measure", measure)
    return found


@pytest.mark.parametrize(
    ("options", "is_there"),
    [
        (["--reference"], True),
        (["--reference", "--precision", "float64,float32"], True),
        (["--reference", "--precision", "float64"], False),
        (["--reference", "--mode", "train"], False),
        ([], False),
    ],
)
def test_it_is_there_where_it_is_asked_for(
    asked: list[Contender], backends: list[str], tmp_path: Path, options: list[str], is_there: bool
) -> None:
    done = run_here("bench", "resnet18", "--backends", backends[0], "--out", tmp_path, *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert asked.count(ONNX) == is_there and (not is_there or asked[-1] == ONNX)
    versions = json.loads((tmp_path / "bench.json").read_text())["versions"]
    assert ("onnxruntime" in versions) == is_there == ("onnxruntime" in done.stdout)


def test_where_it_is_missing_that_is_a_row(
    asked: list[Contender], backends: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_reference, "ONNXRUNTIME", replace(ONNXRUNTIME, packages=("no_such_package",)))
    done = run_here("bench", "resnet18", "--backends", backends[0], "--reference", "--out", tmp_path)
    assert done.returncode == 0 and ONNX not in asked
    assert "not installed; run: pip install" in done.stdout and "resnet-tabs[onnx]" in done.stdout
