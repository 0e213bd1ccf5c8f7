"""The figures of bench.html, to look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from common import pages
from common.backend import BACKENDS
from common.bench.figures import MEBI, WORDS, Figures, number
from common.bench.measure import Cell, Contender
from common.bench.onnx_reference import ONNXRUNTIME

COLOURS = {name: f"C{i}" for i, name in enumerate([*BACKENDS, ONNXRUNTIME.name])}
MARKERS = {"float32": "o", "float64": "s", "bfloat16": "^", "tf32": "D"}
# A cell's value, the least and the most.
Value = Callable[[Cell], tuple[float, float, float]]


def plots(figures: Figures) -> list[tuple[str, str]]:
    """Caption and SVG of each plot."""
    cells = figures.bench.cells

    def speed(cell: Cell) -> tuple[float, float, float]:
        found = figures.speed(cell)
        return found.median, found.slowest, found.quickest

    def memory(cell: Cell) -> tuple[float, float, float]:
        used = (cells[cell].memory or 0) / MEBI
        return used, used, used

    caption = "Images/s by batch size, with the quickest and the slowest round"
    found = [(caption, _by_batch(figures, speed, "log"))]
    singles = [cell for cell in cells if cell.mode == "infer" and cell.batch_size == 1]
    if singles:
        found.append(
            ("Milliseconds of an inference on one image: p50, and p95 as a mark", _latency(figures, singles))
        )
    found.append(("Seconds to the first result, by what they went to", _first(figures)))
    if all(measured.memory for measured in cells.values()):
        found.append(
            ("Peak memory of the process in MiB by batch size", _by_batch(figures, memory, "linear"))
        )
    return [(caption, pages.svg(figure)) for caption, figure in found]


def _by_batch(figures: Figures, value: Value, scale: str) -> Any:
    """A line a contender over the batch sizes, which are logarithmic; modes side by side."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    workload, contenders = figures.bench.workload, figures.contenders
    figure = Figure(figsize=(7, 3.5 + 0.2 * ((len(contenders) + 1) // 2)), layout="constrained")
    row = figure.subplots(1, len(workload.modes), sharey=True, squeeze=False)[0]
    for axes, mode in zip(row, workload.modes, strict=True):
        axes.set_title(WORDS[mode], fontsize="medium")
        for contender in contenders:
            cells = [Cell(contender, mode, size) for size in workload.batch_sizes]
            cells = [cell for cell in cells if cell in figures.bench.cells]
            values = [value(cell) for cell in cells]
            axes.errorbar(
                [cell.batch_size for cell in cells],
                [value for value, _, _ in values],
                yerr=[
                    [value - least for value, least, _ in values],
                    [most - value for value, _, most in values],
                ],
                capsize=3,
                label=figures.label(contender),
                **_style(contender),
            )
        axes.set_xscale("log")
        axes.set_xticks(workload.batch_sizes, [str(size) for size in workload.batch_sizes])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("batch size")
        axes.grid(alpha=0.3)
    axes.set_yscale(scale)
    if scale == "log":
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    figure.legend(*row[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small")
    return figure


def _latency(figures: Figures, cells: list[Cell]) -> Any:
    """A bar a contender, and a mark."""
    figure, axes = _bars(len(cells))
    for row, cell in enumerate(cells):
        p50, p95 = figures.latency(cell)
        style = _style(cell.contender)
        axes.barh(row, p50, color=style["color"], alpha=0.5 if cell.contender.reference else 1)
        axes.plot([p95], [row], "|", color="black", markersize=16, markeredgewidth=2)
        axes.annotate(
            f" {number(p50)} / {number(p95)}",
            (max(p50, p95), row),
            va="center",
            xytext=(4, 0),
            textcoords="offset points",
            fontsize="small",
        )
    axes.set_yticks(range(len(cells)), [figures.label(cell.contender) for cell in cells])
    axes.set_xlabel("milliseconds")
    axes.margins(x=0.25)
    axes.set_xlim(left=0)
    return figure


def _first(figures: Figures) -> Any:
    """A bar a contender, of what came one after the other."""
    contenders = figures.contenders
    kinds = ["import", "build", *(f"first {WORDS[mode]}" for mode in figures.bench.workload.modes)]
    figure, axes = _bars(len(contenders))
    seconds = [figures.first(contender) for contender in contenders]
    before = [0.0] * len(contenders)
    for kind in kinds:
        widths = [found.get(kind, 0.0) for found in seconds]
        axes.barh(range(len(contenders)), widths, left=before, label=kind)
        before = [a + b for a, b in zip(before, widths, strict=True)]
    axes.set_yticks(range(len(contenders)), [figures.label(contender) for contender in contenders])
    axes.set_xlabel("seconds")
    figure.legend(loc="outside lower center", ncols=4, fontsize="small")
    return figure


def _bars(count: int) -> tuple[Any, Any]:
    """A figure for so many bars, the first on top."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1.5 + 0.45 * count), layout="constrained")
    axes = figure.subplots()
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    return figure, axes


def _style(contender: Contender) -> dict[str, Any]:
    """A backend's colour; a reference is dashed and hollow."""
    style = {"color": COLOURS[contender.backend], "marker": MARKERS[contender.precision]}
    return style | ({"linestyle": "--", "markerfacecolor": "white"} if contender.reference else {})
