"""What was measured, for a terminal (rich), for a browser (bench.html) and for programs (bench.json)."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from common import pages
from common.backend import Backend
from common.bench.measure import PRODUCT, Bench, Cell, Contender, Measured
from common.files import write_atomically
from common.pages import LABELS, console, installed_version, own_version, show_backends
from common.proof.compare import ROUNDS, Spread
from common.proof.workers import busy
from common.summary import parts

KIND = "resnet-tabs bench"  # by which bench.json is known
WORDS = {"infer": "inference", "train": "training"}
PASSES = {"infer": 1, "train": 3}  # what a step computes, in forward passes
MEBI = 2**20


@dataclass(frozen=True)
class Ratio:
    """Images/s, ours over the reference: the median of the rounds, the smallest and the largest."""

    median: float
    smallest: float
    largest: float


@dataclass(frozen=True)
class Grid:
    """A table of text, for the terminal and for the page; `name` is its id there."""

    name: str
    title: str
    headings: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Report:
    """A measurement, and what it was of."""

    bench: Bench
    chosen: list[Backend]

    @property
    def measured(self) -> bool:
        """Whether there is any figure at all."""
        return bool(self.bench.cells)

    @property
    def contenders(self) -> list[Contender]:
        """Those of which a cell was measured."""
        return list(dict.fromkeys(cell.contender for cell in self.bench.cells))

    @property
    def busy(self) -> str:
        """What is wrong with the timings; "" if nothing is."""
        return busy(self.bench.elsewhere) if self.measured else ""

    @property
    def failures(self) -> list[str]:
        """A line for everything that could not be measured."""
        return [f"{what}: {why}" for what, why in self.bench.failures.items()]

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of a forward pass on one image."""
        job = self.bench.job
        return sum(part.macs for part in parts(job.arch, (1, *job.input_shape)))

    def label(self, contender: Contender) -> str:
        """A contender's name for readers."""
        return f"{self.bench.starts[contender].label} {contender.precision}"

    def speed(self, cell: Cell) -> Spread:
        """Images/s: the median over all rounds, and the quickest and the slowest round."""
        taken = Spread.of(self.bench.cells[cell].rounds)
        return Spread(*[1000 * cell.batch_size / value for value in dataclasses.astuple(taken)])

    def latency(self, cell: Cell) -> tuple[float, float]:
        """Milliseconds that half of all passes, and 95 of 100, keep within."""
        p50, p95 = np.percentile(np.concatenate(self.bench.cells[cell].rounds), [50, 95])
        return float(p50), float(p95)

    def peak(self, precision: str) -> tuple[float, str] | None:
        """Operations a second of the quickest matrix product in this precision, and whose it was."""
        found = {name: taken for (name, kind), taken in self.bench.products.items() if kind == precision}
        if not found:
            return None
        name = min(found, key=lambda name: found[name])
        return 1000 * 2 * PRODUCT**3 / found[name], name

    def share(self, cell: Cell) -> float | None:
        """What the cell makes of the peak, 0 to 1; None if that is not known."""
        peak = self.peak(cell.contender.precision)
        operations = 2 * self.macs * PASSES[cell.mode]
        return operations * self.speed(cell).median / peak[0] if peak else None

    def ratios(self) -> dict[Cell, Ratio]:
        """Of each of our cells whose reference was measured too."""
        found = {}
        for cell, measured in self.bench.cells.items():
            other = dataclasses.replace(cell, contender=dataclasses.replace(cell.contender, reference=True))
            if not cell.contender.reference and other in self.bench.cells:
                pairs = zip(_medians(measured), _medians(self.bench.cells[other]), strict=True)
                rounds = [theirs / ours for ours, theirs in pairs]
                found[cell] = Ratio(statistics.median(rounds), min(rounds), max(rounds))
        return found

    def peaks(self) -> list[str]:
        """A line for each precision's peak."""
        lines = []
        for precision in dict.fromkeys(contender.precision for contender in self.contenders):
            if peak := self.peak(precision):
                lines.append(
                    f"The peak in {precision} is {peak[0] / 1e9:,.0f} GFLOP/s: "
                    f"{LABELS[peak[1]]}'s product of two {PRODUCT}×{PRODUCT} matrices"
                )
        return lines

    def grids(self) -> Iterator[Grid]:
        """The tables, in the order a reader asks for them."""
        for mode in self.bench.job.modes:
            title = (
                f"Images/s in {WORDS[mode]}: median (slowest–quickest of {ROUNDS} rounds), share of the peak"
            )
            yield self._by_batch(mode, title, mode, self._speed_text)
        if ratios := self.ratios():
            yield self._ratio_grid(ratios)
        if "infer" in self.bench.job.modes:
            yield self._by_batch(
                "latency", "Milliseconds of an inference: p50 / p95", "infer", self._latency_text
            )
        yield self._first_grid()
        yield self._memory_grid("memory", "Peak memory of the process in MiB", "memory")
        if self.bench.job.device == "gpu":
            yield self._memory_grid("device-memory", "Peak memory of the GPU in MiB", "device_memory")

    def _by_batch(self, name: str, title: str, mode: str, text: Any) -> Grid:
        rows = [[self.label(c), *self._row(c, mode, text)] for c in self.contenders]
        return Grid(name, title, ["", *self._batches()], rows)

    def _row(self, contender: Contender, mode: str, text: Any) -> list[str]:
        cells = [Cell(contender, mode, size) for size in self.bench.job.batch_sizes]
        return [
            text(cell)
            if cell in self.bench.cells
            else ("failed" if str(cell) in self.bench.failures else "–")
            for cell in cells
        ]

    def _batches(self) -> list[str]:
        return [f"batch {size}" for size in self.bench.job.batch_sizes]

    def _speed_text(self, cell: Cell) -> str:
        speed, share = self.speed(cell), self.share(cell)
        spread = f"{number(speed.median)} ({number(speed.slowest)}–{number(speed.quickest)})"
        return spread if share is None else f"{spread} {share:.0%}"

    def _latency_text(self, cell: Cell) -> str:
        return " / ".join(map(number, self.latency(cell)))

    def _ratio_grid(self, ratios: dict[Cell, Ratio]) -> Grid:
        def text(cell: Cell) -> str:
            ratio = ratios.get(cell)
            return f"{ratio.median:.2f} ({ratio.smallest:.2f}–{ratio.largest:.2f})" if ratio else "–"

        rows = []
        for contender, mode in dict.fromkeys((cell.contender, cell.mode) for cell in ratios):
            reference = self.bench.starts[dataclasses.replace(contender, reference=True)].label
            what = f"{self.label(contender)} over {reference}, {WORDS[mode]}"
            cells = [Cell(contender, mode, size) for size in self.bench.job.batch_sizes]
            rows.append([what, *map(text, cells)])
        title = f"Images/s, ours over the reference: median (smallest–largest of {ROUNDS} rounds)"
        return Grid("ratios", title, ["", *self._batches()], rows)

    def first(self, contender: Contender) -> dict[str, float]:
        """Seconds to the first result, by what they went to; that of the smallest batch."""
        start, job = self.bench.starts[contender], self.bench.job
        found = {"import": start.imported, "build": start.built}
        for mode in job.modes:
            if cell := self.bench.cells.get(Cell(contender, mode, job.batch_sizes[0])):
                found[f"first {WORDS[mode]}"] = cell.first
        return found

    def _first_grid(self) -> Grid:
        kinds = ["import", "build", *(f"first {WORDS[mode]}" for mode in self.bench.job.modes)]
        rows = []
        for contender in self.contenders:
            seconds = self.first(contender)
            rows.append(
                [self.label(contender), *[number(seconds[k]) if k in seconds else "–" for k in kinds]]
            )
        title = f"Seconds to the first result, batch {self.bench.job.batch_sizes[0]}"
        return Grid("first", title, ["", *kinds], rows)

    def _memory_grid(self, name: str, title: str, attribute: str) -> Grid:
        def text(cell: Cell) -> str:
            used = getattr(self.bench.cells[cell], attribute)
            return "–" if used is None else f"{used / MEBI:,.0f}"

        rows = [
            [f"{self.label(contender)}, {WORDS[mode]}", *self._row(contender, mode, text)]
            for mode in self.bench.job.modes
            for contender in self.contenders
        ]
        return Grid(name, title, ["", *self._batches()], rows)


def number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def show(report: Report) -> None:
    """Print the tables, and what could not be measured."""
    terminal = console()
    show_backends(report.chosen)
    if report.measured:
        for grid in report.grids():
            show_grid(grid)
        for line in report.peaks():
            terminal.print(line, highlight=False, markup=False, soft_wrap=True)
    for line in report.failures:
        terminal.print(line, style="bold red", highlight=False, markup=False, soft_wrap=True)
    if report.busy:
        terminal.print(report.busy, style="bold yellow", highlight=False, markup=False)


def show_grid(grid: Grid) -> None:
    """Print one table."""
    table = Table(box=box.SIMPLE)
    for i, heading in enumerate(grid.headings):
        table.add_column(heading, justify="right" if i else "left")
    for row in grid.rows:
        table.add_row(*map(escape, row))
    console().print(grid.title, style="italic", highlight=False, markup=False, soft_wrap=True)
    console().print(table)  # of which the title may be wider


def write(report: Report, folder: Path) -> dict[str, Any]:
    """Write bench.json and bench.html, each whole or not at all; returns what bench.json holds."""
    found = results(report)
    write_atomically(folder / "bench.json", json.dumps(found, indent=2, allow_nan=False) + "\n")
    write_atomically(folder / "bench.html", html(report, found))
    console().print(f"{folder / 'bench.html'} and {folder / 'bench.json'} written", soft_wrap=True)
    return found


def results(report: Report) -> dict[str, Any]:
    """All figures, as JSON can hold them. Memory is in bytes."""
    bench, job = report.bench, report.bench.job
    return {
        "kind": KIND,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "name": job.name,
        "architecture": json.loads(job.arch.to_json()),
        "input_shape": list(job.input_shape),
        "batch_sizes": list(job.batch_sizes),
        "modes": list(job.modes),
        "device": job.device,
        "compile": job.compile,
        "processor": processor(),
        "threads": threads(),
        "python": platform.python_version(),
        "versions": {
            "resnet-tabs": own_version(),
            **{b.name: installed_version(b) if b.installed else None for b in report.chosen},
        },
        "macs": report.macs,
        "peaks": [
            {"backend": backend, "precision": precision, "gflops": round(2 * PRODUCT**3 / taken / 1e6, 1)}
            for (backend, precision), taken in bench.products.items()
        ],
        "starts": [
            {
                **dataclasses.asdict(contender),
                "label": start.label,
                "seconds": _rounded(report.first(contender)),
            }
            for contender, start in bench.starts.items()
        ],
        "cells": [_cell(report, cell, measured) for cell, measured in bench.cells.items()],
        "ratios": [
            {**_key(cell), **_rounded(dataclasses.asdict(ratio))} for cell, ratio in report.ratios().items()
        ],
        "failures": report.failures,
        "busy_elsewhere": None if bench.elsewhere is None else round(bench.elsewhere, 3),
    }


def _key(cell: Cell) -> dict[str, Any]:
    return {**dataclasses.asdict(cell.contender), "mode": cell.mode, "batch_size": cell.batch_size}


def _cell(report: Report, cell: Cell, measured: Measured) -> dict[str, Any]:
    speed, (p50, p95) = report.speed(cell), report.latency(cell)
    share = report.share(cell)
    return {
        **_key(cell),
        "images_per_second": round(speed.median, 3),
        "slowest_round": round(speed.slowest, 3),
        "quickest_round": round(speed.quickest, 3),
        "milliseconds": {"p50": round(p50, 3), "p95": round(p95, 3)},
        "milliseconds_of_rounds": [round(median, 3) for median in _medians(measured)],
        "passes": sum(map(len, measured.rounds)),
        "first_seconds": round(measured.first, 3),
        "share_of_peak": None if share is None else round(share, 4),
        "peak_memory": measured.memory,
        "peak_device_memory": measured.device_memory,
    }


def _medians(measured: Measured) -> list[float]:
    return [statistics.median(passes) for passes in measured.rounds]


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in values.items()}


def processor() -> str:
    """The processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else ""
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return named[1].strip() if named else platform.processor() or platform.machine()


def threads() -> int:
    """How many cores this process, and with it a framework, may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def html(report: Report, found: dict[str, Any]) -> str:
    """The report as one file that needs nothing else."""
    from common.bench.plots import plots

    return pages.render(
        "bench/bench.html.jinja",
        report=report,
        job=report.bench.job,
        found=found,
        plots=plots(report) if report.measured else [],
    )
