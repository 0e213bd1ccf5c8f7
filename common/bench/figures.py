"""The figures of a measurement: speeds, latencies, shares of the peak, ratios, and tables of them."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from common.backend import Backend
from common.bench.measure import PRODUCT, Bench, Cell, Contender, Measured
from common.pages import LABELS
from common.summary import parts
from common.timing import ROUNDS, Spread, busy

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
class Figures:
    """What readers want to know of a measurement, worked out."""

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
        workload = self.bench.workload
        return sum(part.macs for part in parts(workload.arch, (1, *workload.input_shape)))

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

    def share_of_quickest(self, cell: Cell) -> float | None:
        """Images/s over those of the quickest backend's network at the same; None if there is none."""
        same = (cell.mode, cell.batch_size, cell.contender.precision)
        speeds = [
            self.speed(other).median
            for other in self.bench.cells
            if not other.contender.reference
            and (other.mode, other.batch_size, other.contender.precision) == same
        ]
        return self.speed(cell).median / max(speeds) if speeds else None

    def ratios(self) -> dict[Cell, Ratio]:
        """Of each of our cells whose reference was measured too."""
        found = {}
        for cell, measured in self.bench.cells.items():
            other = dataclasses.replace(cell, contender=dataclasses.replace(cell.contender, reference=True))
            if not cell.contender.reference and other in self.bench.cells:
                pairs = zip(medians(measured), medians(self.bench.cells[other]), strict=True)
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
        for mode in self.bench.workload.modes:
            title = (
                f"Images/s in {WORDS[mode]}: median (slowest–quickest of {ROUNDS} rounds), "
                "share of the peak, share of the quickest backend"
            )
            yield self._by_batch(mode, title, mode, self._speed_text)
        if ratios := self.ratios():
            yield self._ratio_grid(ratios)
        if "infer" in self.bench.workload.modes:
            yield self._by_batch(
                "latency", "Milliseconds of an inference: p50 / p95", "infer", self._latency_text
            )
        yield self._first_grid()
        yield self._memory_grid("memory", "Peak memory of the process in MiB", "memory")
        if self.bench.workload.device == "gpu":
            yield self._memory_grid("device-memory", "Peak memory of the GPU in MiB", "device_memory")

    def _by_batch(self, name: str, title: str, mode: str, text: Any) -> Grid:
        rows = [[self.label(c), *self._row(c, mode, text)] for c in self.contenders]
        return Grid(name, title, ["", *self._batches()], rows)

    def _row(self, contender: Contender, mode: str, text: Any) -> list[str]:
        cells = [Cell(contender, mode, size) for size in self.bench.workload.batch_sizes]
        return [
            text(cell)
            if cell in self.bench.cells
            else ("failed" if str(cell) in self.bench.failures else "–")
            for cell in cells
        ]

    def _batches(self) -> list[str]:
        return [f"batch {size}" for size in self.bench.workload.batch_sizes]

    def _speed_text(self, cell: Cell) -> str:
        speed, of_peak, of_quickest = self.speed(cell), self.share(cell), self.share_of_quickest(cell)
        text = f"{number(speed.median)} ({number(speed.slowest)}–{number(speed.quickest)})"
        if of_peak is not None:
            text += f" {of_peak:.0%}"
        return text if of_quickest is None else f"{text} {of_quickest:.2f}"

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
            cells = [Cell(contender, mode, size) for size in self.bench.workload.batch_sizes]
            rows.append([what, *map(text, cells)])
        title = f"Images/s, ours over the reference: median (smallest–largest of {ROUNDS} rounds)"
        return Grid("ratios", title, ["", *self._batches()], rows)

    def first(self, contender: Contender) -> dict[str, float]:
        """Seconds to the first result, by what they went to; that of the smallest batch."""
        start, workload = self.bench.starts[contender], self.bench.workload
        found = {"import": start.imported, "build": start.built}
        for mode in workload.modes:
            if cell := self.bench.cells.get(Cell(contender, mode, workload.batch_sizes[0])):
                found[f"first {WORDS[mode]}"] = cell.first
        return found

    def _first_grid(self) -> Grid:
        kinds = ["import", "build", *(f"first {WORDS[mode]}" for mode in self.bench.workload.modes)]
        rows = []
        for contender in self.contenders:
            seconds = self.first(contender)
            rows.append(
                [self.label(contender), *[number(seconds[k]) if k in seconds else "–" for k in kinds]]
            )
        title = f"Seconds to the first result, batch {self.bench.workload.batch_sizes[0]}"
        return Grid("first", title, ["", *kinds], rows)

    def _memory_grid(self, name: str, title: str, attribute: str) -> Grid:
        def text(cell: Cell) -> str:
            used = getattr(self.bench.cells[cell], attribute)
            return "–" if used is None else f"{used / MEBI:,.0f}"

        rows = [
            [f"{self.label(contender)}, {WORDS[mode]}", *self._row(contender, mode, text)]
            for mode in self.bench.workload.modes
            for contender in self.contenders
        ]
        return Grid(name, title, ["", *self._batches()], rows)


def number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def medians(measured: Measured) -> list[float]:
    """Milliseconds: the median pass of each round."""
    return [statistics.median(passes) for passes in measured.rounds]
