"""What is shown of a measurement: figures, bench.json, and bench.html in a real browser."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from common.backend import BACKENDS
from common.bench.figures import Figures, Ratio, number
from common.bench.measure import PRODUCT, Bench, Cell, Contender, Start, Workload
from common.bench.report import KIND, results, show, write
from common.timing import Spread
from tests.bench.helpers import ARCH, OURS, THEIRS, bench_of

if TYPE_CHECKING:
    from selenium import webdriver

INFER_8 = Cell(OURS["mxnet"], "infer", 8)


def report_of(bench: Bench) -> Figures:
    """As if every framework were installed, but for JAX."""
    chosen = [
        replace(backend, packages=("no_such_framework" if backend.name == "jax" else "numpy",))
        for backend in BACKENDS.values()
    ]
    return Figures(bench, chosen)


@pytest.fixture
def report() -> Figures:
    return report_of(bench_of("mxnet", "torch"))


def test_figures_are_what_they_say(report: Figures) -> None:
    """A pass of 8 images takes 16 ms, in the rounds 16, 17.6, 14.4, 16 and 16."""
    speed = report.speed(INFER_8)
    assert (speed.median, speed.quickest, speed.slowest) == pytest.approx((500, 8000 / 14.4, 8000 / 17.6))
    assert report.latency(INFER_8) == pytest.approx((16, 17.6))
    assert report.peak("float32") == (2 * PRODUCT**3 / 0.1, "mxnet")
    assert report.peak("float64") is None
    operations = 2 * report.macs * 500
    assert report.share(INFER_8) == pytest.approx(operations / (2 * PRODUCT**3 / 0.1))
    train = Cell(OURS["mxnet"], "train", 8)  # four times as long, for three times the work
    assert report.share(train) == pytest.approx(report.share(INFER_8) * 3 / 4)


def test_the_ratio_is_of_rounds_side_by_side(report: Figures) -> None:
    assert report.ratios()[INFER_8].median == pytest.approx(1 / 1.5)
    ours, theirs = report.bench.cells[INFER_8], Cell(THEIRS["mxnet"], "infer", 8)
    ours.rounds = [[10.0, 10.0, 99.0], [20.0], [40.0], [40.0], [40.0]]
    report.bench.cells[theirs].rounds = [[20.0], [20.0], [20.0], [40.0], [40.0]]
    assert report.ratios()[INFER_8] == Ratio(1.0, 0.5, 2.0)
    del report.bench.cells[theirs]
    assert INFER_8 not in report.ratios()


def test_the_share_of_the_quickest_is_that_of_our_networks(report: Figures) -> None:
    """MXNet makes 500 images/s, PyTorch 333, and their references half as many again."""
    shares = {cell: report.share_of_quickest(cell) for cell in report.bench.cells if cell.batch_size == 8}
    for mode in ("infer", "train"):
        assert shares[Cell(OURS["mxnet"], mode, 8)] == 1
        assert shares[Cell(OURS["torch"], mode, 8)] == pytest.approx(2 / 3)
        assert shares[Cell(THEIRS["mxnet"], mode, 8)] == pytest.approx(1.5)
        assert shares[Cell(THEIRS["torch"], mode, 8)] == pytest.approx(1)
    grid = next(grid for grid in report.grids() if grid.name == "infer")
    assert [row[2].split()[-1] for row in grid.rows] == ["1.00", "1.50", "0.67", "1.00"]


def test_each_mode_precision_and_batch_size_has_its_own_quickest(report: Figures) -> None:
    other_precisions(report.bench)
    assert report.share_of_quickest(Cell(Contender("torch", "bfloat16"), "train", 8)) == 1
    report.bench.cells[INFER_8].rounds = [[48.0]] * 5
    assert report.share_of_quickest(INFER_8) == pytest.approx(1 / 2)
    assert report.share_of_quickest(replace(INFER_8, batch_size=64)) == 1
    assert report.share_of_quickest(replace(INFER_8, mode="train")) == 1


def test_references_alone_have_no_quickest_to_be_held_against(report: Figures) -> None:
    report.bench.cells = {cell: m for cell, m in report.bench.cells.items() if cell.contender.reference}
    assert report.share_of_quickest(Cell(THEIRS["mxnet"], "infer", 8)) is None
    grid = next(report.grids())
    assert grid.rows[0][2].endswith("%")


def test_what_failed_is_no_figure_in_any_table(report: Figures) -> None:
    del report.bench.cells[INFER_8]
    report.bench.failures[str(INFER_8)] = "out of memory; give a smaller batch"
    del report.bench.cells[Cell(OURS["mxnet"], "infer", 64)]
    grids = {grid.name: grid for grid in report.grids()}
    for name in ("infer", "latency", "memory"):
        row = grids[name].rows[0]
        assert row[0].startswith("MXNet float32")
        assert row[2:] == ["failed", "–"]
        assert row[1] not in ("failed", "–")
    assert grids["first"].rows[0] == ["MXNet float32", "1.50", "0.50", "1.00", "4.00"]
    assert report.failures == ["mxnet float32 infer, batch 8: out of memory; give a smaller batch"]


def test_numbers_have_three_digits() -> None:
    assert [number(value) for value in (0.123, 1.234, 12.34, 123.4, 12345.6)] == [
        *("0.12", "1.23", "12.3", "123", "12,346")
    ]


def test_bench_json_has_every_figure(report: Figures, tmp_path: Path) -> None:
    found = write(report, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.html", "bench.json"]
    loaded = json.loads((tmp_path / "bench.json").read_text())
    assert loaded == found
    assert loaded["kind"] == KIND
    assert loaded["threads"] >= 1 and loaded["processor"]
    assert loaded["versions"]["torch"] and loaded["versions"]["jax"] is None
    assert len(loaded["cells"]) == 2 * 2 * 2 * 3
    cell = next(c for c in loaded["cells"] if c["batch_size"] == 8 and c["mode"] == "infer")
    assert cell == {
        "backend": "mxnet",
        "precision": "float32",
        "reference": False,
        "mode": "infer",
        "batch_size": 8,
        "images_per_second": 500.0,
        "slowest_round": 454.545,
        "quickest_round": 555.556,
        "milliseconds": {"p50": 16.0, "p95": 17.6},
        "milliseconds_of_rounds": [16.0, 17.6, 14.4, 16.0, 16.0],
        "passes": 15,
        "first_seconds": 1.0,
        "share_of_peak": round(report.share(INFER_8) or 0, 4),
        "share_of_quickest": 1.0,
        "peak_memory": 308 * 2**20,
        "peak_device_memory": None,
    }
    assert loaded["ratios"][0]["median"] == 0.667
    assert loaded["starts"][0]["seconds"]["first training"] == 4.0
    assert loaded["busy_elsewhere"] == 0.02


def test_a_busy_machine_is_said(report: Figures, capsys: pytest.CaptureFixture[str]) -> None:
    show(report)
    assert "busy" not in capsys.readouterr().out
    report.bench.elsewhere = 0.42
    show(report)
    assert "The machine was busy: other programs had 42%" in capsys.readouterr().out


def test_nothing_measured_is_shown_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(Workload("small", ARCH, (1, 32, 32), (1,)), failures={"jax float32": "no GPU"})
    report = report_of(bench)
    show(report)
    assert "jax float32: no GPU" in capsys.readouterr().out
    assert results(report)["cells"] == []
    write(report, tmp_path)
    assert "jax float32: no GPU" in (tmp_path / "bench.html").read_text(encoding="utf-8")


def one_contender(bench: Bench) -> None:
    bench.cells = {cell: m for cell, m in bench.cells.items() if cell.contender == OURS["torch"]}


def one_mode(bench: Bench) -> None:
    bench.workload = replace(bench.workload, modes=("train",))
    bench.cells = {cell: m for cell, m in bench.cells.items() if cell.mode == "train"}


def one_batch(bench: Bench) -> None:
    bench.workload = replace(bench.workload, batch_sizes=(8,))
    bench.cells = {cell: m for cell, m in bench.cells.items() if cell.batch_size == 8}


def no_training(bench: Bench) -> None:
    bench.cells = {cell: m for cell, m in bench.cells.items() if cell.mode == "infer"}


def no_memory(bench: Bench) -> None:
    for measured in bench.cells.values():
        measured.memory = None


def no_network_of_ours(bench: Bench) -> None:
    bench.cells = {cell: m for cell, m in bench.cells.items() if cell.contender.reference}


def no_peak(bench: Bench) -> None:
    bench.products.clear()


def a_gpu(bench: Bench) -> None:
    bench.workload = replace(bench.workload, device="gpu")
    for measured in bench.cells.values():
        measured.device_memory = 5 * 2**30


def other_precisions(bench: Bench) -> None:
    for precision in ("bfloat16", "float64"):
        contender = Contender("torch", precision)
        bench.starts[contender] = Start("PyTorch", 1.0, 1.0)
        bench.cells[Cell(contender, "train", 8)] = copy.deepcopy(bench.cells[INFER_8])


@pytest.mark.deep
@pytest.mark.parametrize(
    "change",
    [
        *(one_contender, one_mode, one_batch, no_training, no_memory, no_network_of_ours, no_peak, a_gpu),
        other_precisions,
    ],
)
def test_whatever_is_missing_the_rest_is_shown(
    report: Figures, change: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(report.bench)
    show(report)
    write(report, tmp_path)
    shown, page = capsys.readouterr().out, (tmp_path / "bench.html").read_text(encoding="utf-8")
    for grid in report.grids():
        assert grid.title in shown
        assert f'id="{grid.name}"' in page
        assert {len(row) for row in grid.rows} == {len(grid.headings)}
    assert ("5,120" in shown) == (change is a_gpu)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bench = bench_of("mxnet", "torch", "tf")
    bench.elsewhere = 0.4
    bench.failures["torch bfloat16"] = "no <such> thing"
    folder = tmp_path_factory.mktemp("bench")
    write(report_of(bench), folder)
    return folder / "bench.html"


def test_the_page_has_the_figures_and_plots(browser: webdriver.Chrome, page: Path) -> None:
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(page.as_uri())
    body = browser.find_element("tag name", "body").text
    assert "What small <net> costs" in body
    assert "MXNet's <own> float32" in browser.find_element("id", "infer").text
    assert "500 (455–556)" in browser.find_element("id", "infer").text
    assert "0.67 (0.67–0.67)" in browser.find_element("id", "ratios").text
    assert "torch bfloat16: no <such> thing" in browser.find_element("id", "failures").text
    assert "other programs had 40%" in browser.find_element("id", "busy").text
    assert "not installed; run: pip install" in browser.find_element("id", "backends").text
    plots = browser.find_elements("css selector", "figure svg")
    assert len(plots) == 4
    for plot in plots:
        assert plot.is_displayed() and plot.size["width"] > 300 and plot.size["height"] > 100
    assert browser.get_log("browser") == []
    requested = re.findall(r'"documentURL":"[^"]*".*?"url":"([^"]*)"', str(browser.get_log("performance")))
    assert set(requested) == {page.as_uri()}


def test_a_spread_is_of_the_rounds_not_of_the_passes(report: Figures) -> None:
    report.bench.cells[INFER_8].rounds = [[1.0, 8.0, 8.0], [16.0, 16.0, 99.0]]
    assert report.speed(INFER_8) == Spread(8000 / 12, 1000.0, 500.0)
