"""What was measured, for a terminal (rich), for a browser (bench.html) and for programs (bench.json)."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from common import pages
from common.bench.figures import Figures, Grid, medians
from common.bench.measure import PRODUCT, Cell, Measured
from common.bench.plots import plots
from common.files import write_atomically
from common.pages import console, installed_version, own_version, show_backends

KIND = "resnet-tabs bench"  # by which bench.json is known


def show(figures: Figures) -> None:
    """Print the tables, and what could not be measured."""
    terminal = console()
    show_backends(figures.chosen)
    if figures.measured:
        for grid in figures.grids():
            show_grid(grid)
        for line in figures.peaks():
            terminal.print(line, highlight=False, markup=False, soft_wrap=True)
    for line in figures.failures:
        terminal.print(line, style="bold red", highlight=False, markup=False, soft_wrap=True)
    if figures.busy:
        terminal.print(figures.busy, style="bold yellow", highlight=False, markup=False)


def show_grid(grid: Grid) -> None:
    """Print one table."""
    table = Table(box=box.SIMPLE)
    for i, heading in enumerate(grid.headings):
        table.add_column(heading, justify="right" if i else "left")
    for row in grid.rows:
        table.add_row(*map(escape, row))
    console().print(grid.title, style="italic", highlight=False, markup=False, soft_wrap=True)
    console().print(table)  # of which the title may be wider


def write(figures: Figures, folder: Path) -> dict[str, Any]:
    """Write bench.json and bench.html, each whole or not at all; returns what bench.json holds."""
    found = results(figures)
    write_atomically(folder / "bench.json", json.dumps(found, indent=2, allow_nan=False) + "\n")
    write_atomically(folder / "bench.html", html(figures, found))
    console().print(f"{folder / 'bench.html'} and {folder / 'bench.json'} written", soft_wrap=True)
    return found


def results(figures: Figures) -> dict[str, Any]:
    """All figures, as JSON can hold them. Memory is in bytes."""
    bench, workload = figures.bench, figures.bench.workload
    return {
        "kind": KIND,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "name": workload.name,
        "architecture": json.loads(workload.arch.to_json()),
        "input_shape": list(workload.input_shape),
        "batch_sizes": list(workload.batch_sizes),
        "modes": list(workload.modes),
        "device": workload.device,
        "compile": workload.compile,
        "processor": processor(),
        "threads": threads(),
        "python": platform.python_version(),
        "versions": {
            "resnet-tabs": own_version(),
            **{b.name: installed_version(b) if b.installed else None for b in figures.chosen},
        },
        "macs": figures.macs,
        "peaks": [
            {"backend": backend, "precision": precision, "gflops": round(2 * PRODUCT**3 / taken / 1e6, 1)}
            for (backend, precision), taken in bench.products.items()
        ],
        "starts": [
            {
                **dataclasses.asdict(contender),
                "label": start.label,
                "seconds": _rounded(figures.first(contender)),
            }
            for contender, start in bench.starts.items()
        ],
        "cells": [_cell(figures, cell, measured) for cell, measured in bench.cells.items()],
        "ratios": [
            {**_key(cell), **_rounded(dataclasses.asdict(ratio))} for cell, ratio in figures.ratios().items()
        ],
        "failures": figures.failures,
        "busy_elsewhere": None if bench.elsewhere is None else round(bench.elsewhere, 3),
    }


def _key(cell: Cell) -> dict[str, Any]:
    return {**dataclasses.asdict(cell.contender), "mode": cell.mode, "batch_size": cell.batch_size}


def _cell(figures: Figures, cell: Cell, measured: Measured) -> dict[str, Any]:
    speed, (p50, p95) = figures.speed(cell), figures.latency(cell)
    of_peak, of_quickest = figures.share(cell), figures.share_of_quickest(cell)
    return {
        **_key(cell),
        "images_per_second": round(speed.median, 3),
        "slowest_round": round(speed.slowest, 3),
        "quickest_round": round(speed.quickest, 3),
        "milliseconds": {"p50": round(p50, 3), "p95": round(p95, 3)},
        "milliseconds_of_rounds": [round(median, 3) for median in medians(measured)],
        "passes": sum(map(len, measured.rounds)),
        "first_seconds": round(measured.first, 3),
        "share_of_peak": None if of_peak is None else round(of_peak, 4),
        "share_of_quickest": None if of_quickest is None else round(of_quickest, 4),
        "peak_memory": measured.memory,
        "peak_device_memory": measured.device_memory,
    }


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


def html(figures: Figures, found: dict[str, Any]) -> str:
    """The report as one file that needs nothing else."""
    return pages.render(
        "bench/bench.html.jinja",
        figures=figures,
        workload=figures.bench.workload,
        found=found,
        plots=plots(figures) if figures.measured else [],
    )
