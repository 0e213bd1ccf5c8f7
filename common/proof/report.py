"""What was found, for a terminal (rich), for a browser (report.html) and for programs (results.json)."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from common import pages
from common.backend import BACKENDS, Backend
from common.files import write_atomically
from common.pages import LABELS, console, installed_version, show_backends, show_verdict
from common.proof.judge import Comparison, Findings
from common.proof.verify import Match
from common.proof.workers import workers_bound
from common.summary import Row
from common.timing import ROUNDS, Spread, busy

ROOMS = ("layers", "blocks", "resnet", "training", "backend")


@dataclass(frozen=True)
class Outcome:
    """What was found of the backends asked for."""

    found: Findings
    chosen: list[Backend]

    @property
    def compared(self) -> list[str]:
        """Names of the backends that gave evidence in every dtype."""
        return [
            backend.name
            for backend in self.chosen
            if backend.installed and backend.name != "oracle" and backend.name not in self.found.failures
        ]

    @property
    def missing(self) -> list[Backend]:
        """Backends asked for that are not installed."""
        return [backend for backend in self.chosen if not backend.installed]

    @property
    def proven(self) -> bool:
        """Whether all that was asked for was compared, and agrees."""
        return bool(self.compared) and not self.missing and not self.found.unclaimed and self.found.agree

    def horizon_in(self, dtype: str) -> dict[str, float]:
        """How far rounding carries each quantity; nothing where that was not measured."""
        return self.found.horizon if dtype == "float64" else {}

    @property
    def verdict(self) -> str:
        """One line: do they agree?"""
        names = ", ".join(LABELS[name] for name in self.compared)
        if not self.found.agree:
            broken = [f"{name} failed: {line}" for name, line in self.found.failures.items()]
            return f"DIFFERENT: {' | '.join([*broken, *self.found.differences])}"
        if self.missing:
            absent = ", ".join(backend.name for backend in self.missing)
            agreed = f"; {names} and the oracle agree" if names else ""
            return (
                f"NOT PROVEN: {absent} not installed{agreed}. Install what is missing, or name with "
                "--backends those you want"
            )
        if not names:
            return "NOT PROVEN: the oracle was compared with nothing; name a framework with --backends"
        if self.found.unclaimed:
            return _undecided(self.found.unclaimed)
        return f"SAME: {names} and the oracle {self.claim}"

    @property
    def precision(self) -> str:
        """The finest type compared."""
        return "float64" if "float64" in self.found.deviations else "float32"

    @property
    def claim(self) -> str:
        """What has been found of those that agree."""
        return f"are one network, to the last digits of {self.precision}"


@dataclass(frozen=True)
class Report(Outcome):
    """A comparison, and what it was of."""

    found: Comparison
    arch: str
    source: str

    @property
    def rows(self) -> dict[str, list[Row]]:
        """The layer summary of the oracle and of each backend, in the order they are shown."""
        evidence = self.found.evidence
        by_name = {name: found.rows for (name, _), found in evidence.items()}
        return {name: by_name[name] for name in ("oracle", *self.compared) if name in by_name}

    @property
    def claim(self) -> str:
        """What has been found: in float32 gradients and steps have no bound."""
        claimed, steps = self.found.claimed, self.found.job.steps
        if self.precision == "float32":
            return (
                "agree in float32, in all layers and in the training loss; gradients and steps take float64"
            )
        return f"{super().claim}{f', over {claimed} of {steps} steps' if claimed < steps else ''}"

    @property
    def busy(self) -> str:
        """What is wrong with the timings; "" if nothing is."""
        return busy(self.found.elsewhere)

    @property
    def about_steps(self) -> str:
        """Where the steps start and how many are claimed, as a sentence; "" if there is nothing to say."""
        found, said = self.found, []
        if found.asleep:
            said.append("Steps start with γ = 0 in the last batch norm of each block")
        if found.unclaimed:
            said.append(f"Rounding decides {', '.join(found.unclaimed)}, of which nothing is claimed")
        if found.claimed < found.job.steps:
            said.append(f"From step {found.claimed + 1} on one rounding decides, and nothing is claimed")
        return ". ".join(said)


def progress(doing: str, what: str, x: NDArray, source: str) -> AbstractContextManager[Callable[[str], None]]:
    """Say what begins on which images, and then each thing done."""
    shape = "×".join(str(size) for size in x.shape[1:])
    return pages.progress(
        f"{doing} [bold]{escape(what)}[/] on {len(x)} images of {shape} from {escape(source)}"
    )


def show(report: Report) -> None:
    """Print the tables and the verdict."""
    terminal = console()
    show_backends(report.chosen)
    show_summary(report.rows)
    for dtype in report.found.deviations:
        terminal.print(_deviation_table(report, dtype))
    if report.about_steps:
        terminal.print(report.about_steps, highlight=False, markup=False)
    if report.found.workers:
        terminal.print(_workers_table(report))
    if report.found.timings:
        terminal.print(_timing_table(report))
        if report.busy:
            terminal.print(report.busy, style="bold yellow", highlight=False, markup=False)
    show_verdict(report.verdict, report.proven)


def show_outcome(outcome: Outcome) -> None:
    """Print how far the backends are from the oracle in each layer, and the verdict."""
    show_backends(outcome.chosen)
    for dtype in outcome.found.deviations:
        console().print(_deviation_table(outcome, dtype))
    show_verdict(outcome.verdict, outcome.proven)


def show_match(match: Match, name: str) -> None:
    """Print how far a recording is from the oracle in each layer, and the verdict."""
    table = Table(
        "against the oracle",
        title=f"Deviations of {escape(name)}, whose values are {match.precision}",
        box=box.SIMPLE,
        title_justify="left",
    )
    for heading in ("recorded as", "deviation", "with the cause", "bound"):
        table.add_column(heading)
    for line in match.lines:
        explained = "" if line.explained is None else f"{line.explained:.1e}"
        cells = _number(line.deviation, line.bound), explained, f"{line.bound:.0e}"
        table.add_row(line.layer, line.layout, *cells)
    console().print(table)
    if match.ignored:
        console().print(f"Not compared: {escape(', '.join(map(repr, match.ignored)))}", soft_wrap=True)
    if match.agrees:
        verdict = (
            f"SAME: the recording and the oracle are one network, to the last digits of {match.precision}"
        )
    elif match.difference:
        verdict = f"DIFFERENT: {match.difference}. {match.cause}"
    else:
        verdict = _undecided(match.undecided)
    show_verdict(verdict, match.agrees)


def show_summary(rows: Mapping[str, list[Row]]) -> None:
    """One row a stage, one column a backend, and whether all say the same."""
    if not rows:
        return
    table = Table("stage", "kind", title="Layers", box=box.SIMPLE, title_justify="left")
    for name in rows:
        table.add_column(LABELS[name], justify="right", no_wrap=True)
    table.add_column("same")
    for stage in zip(*rows.values(), strict=True):
        cells = [Text.assemble(row.shape_text, "\n", (f"{row.parameters:,}", "dim")) for row in stage]
        table.add_row(stage[0].name, stage[0].kind, *cells, _tick(len(set(stage)) == 1))
    totals = [sum(row.parameters for row in column) for column in rows.values()]
    table.add_row("", "parameters", *[f"{total:,}" for total in totals], _tick(len(set(totals)) == 1))
    console().print(table)


def _deviation_table(outcome: Outcome, dtype: str) -> Table:
    """One row a quantity; how far rounding carries it is known in float64."""
    far = outcome.horizon_in(dtype)
    table = Table(
        "against the oracle",
        *[LABELS[name] for name in outcome.compared],
        "worst pair",
        *(["rounding"] if far else []),
        "bound",
        title=f"Deviations in {dtype}",
        box=box.SIMPLE,
        title_justify="left",
    )
    for quantity, by_backend in outcome.found.deviations[dtype].items():
        bound = outcome.found.bounds[dtype].get(quantity)
        worst, pair = outcome.found.worst_pairs[dtype].get(quantity, (0.0, ""))
        cells = [_number(by_backend[name], bound) for name in outcome.compared]
        table.add_row(
            quantity,
            *cells,
            f"{_number(worst, bound)} {pair}" if pair else "",
            *([f"{far[quantity]:.1e}"] if far else []),
            f"{bound:.0e}" if bound else "shown only",
        )
    return table


def _workers_table(report: Report) -> Table:
    names = [name for name in report.compared if any(name in row for row in report.found.workers.values())]
    bound = workers_bound(report.found)
    table = Table(
        "against one worker",
        *[LABELS[name] for name in names],
        "bound",
        title="Deviations of several workers in float64",
        box=box.SIMPLE,
        title_justify="left",
    )
    for quantity, by_backend in report.found.workers.items():
        cells = [_number(by_backend[name], bound) for name in names]
        table.add_row(quantity, *cells, f"{bound:.0e}")
    return table


def _timing_table(report: Report) -> Table:
    images = len(report.found.job.x)
    table = Table(
        "float32",
        *[LABELS[name] for name in report.found.timings],
        title=f"Milliseconds, batch of {images}: median (quickest–slowest round of {ROUNDS})",
        box=box.SIMPLE,
        title_justify="left",
    )
    table.add_row("forward pass", *[_spread(timing.forward) for timing in report.found.timings.values()])
    table.add_row("training step", *[_spread(timing.step) for timing in report.found.timings.values()])
    return table


def _spread(milliseconds: Spread) -> str:
    return f"{milliseconds.median:.0f} ({milliseconds.quickest:.0f}–{milliseconds.slowest:.0f})"


def write(report: Report, folder: Path) -> None:
    """Write results.json and report.html, each whole or not at all."""
    write_atomically(folder / "results.json", json.dumps(results(report), indent=2, allow_nan=False) + "\n")
    write_atomically(folder / "report.html", html(report))
    console().print(f"{folder / 'report.html'} and {folder / 'results.json'} written", soft_wrap=True)


def results(report: Report) -> dict[str, Any]:
    """All figures, as JSON can hold them. A deviation that is not finite is null."""
    found = report.found

    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "verdict": report.verdict,
        "proven": report.proven,
        "architecture": json.loads(found.job.arch.to_json()),
        "name": report.arch,
        "data": report.source,
        "input_shape": list(found.job.x.shape),
        "steps": found.job.steps,
        "lr": found.job.lr,
        "device": found.job.device,
        "compile": found.job.compile,
        "versions": {b.name: installed_version(b) if b.installed else None for b in report.chosen},
        "summary": {name: [dataclasses.asdict(row) for row in rows] for name, rows in report.rows.items()},
        "bounds": {
            quantity: {dtype: of[quantity] for dtype, of in found.bounds.items() if quantity in of}
            for quantity in {name: None for table in found.deviations.values() for name in table}
        },
        "horizon": {quantity: finite(value) for quantity, value in found.horizon.items()},
        "steps_claimed": found.claimed,
        "steps_start_asleep": found.asleep,
        "deviations_of_steps": {name: list(map(finite, values)) for name, values in found.steps.items()},
        "horizon_of_steps": list(map(finite, found.step_horizon)),
        "deviations": {
            dtype: {
                quantity: {name: finite(value) for name, value in by_backend.items()}
                for quantity, by_backend in table.items()
            }
            for dtype, table in found.deviations.items()
        },
        "worst_pairs": {
            dtype: {
                quantity: {"pair": pair, "deviation": finite(value)} for quantity, (value, pair) in t.items()
            }
            for dtype, t in found.worst_pairs.items()
        },
        "workers": {
            quantity: {name: finite(value) for name, value in by_backend.items()}
            for quantity, by_backend in found.workers.items()
        },
        "milliseconds": {
            name: {"forward": round(timing.forward.median, 3), "training_step": round(timing.step.median, 3)}
            for name, timing in found.timings.items()
        },
        "milliseconds_of_rounds": {
            name: {"forward": _ends(timing.forward), "training_step": _ends(timing.step)}
            for name, timing in found.timings.items()
        },
        "busy_elsewhere": None if found.elsewhere is None else round(found.elsewhere, 3),
        "failures": found.failures,
        "differences": found.differences,
    }


def _ends(milliseconds: Spread) -> list[float]:
    return [round(milliseconds.quickest, 3), round(milliseconds.slowest, 3)]


def html(report: Report) -> str:
    """The report as one file that needs nothing else."""
    from pygments.formatters import HtmlFormatter

    return pages.render(
        "proof/report.html.jinja",
        report=report,
        found=report.found,
        workers_bound=workers_bound(report.found),
        scientific=lambda value: f"{value:.1e}",
        spread=_spread,
        versions={b.name: installed_version(b) for b in report.chosen if b.installed},
        columns=list(report.rows),
        layers=list(zip(*report.rows.values(), strict=True)),
        rooms=ROOMS,
        code={room: {name: _highlighted(name, room) for name in BACKENDS} for room in ROOMS},
        code_css=HtmlFormatter(style="default").get_style_defs(".code"),
        plots=_plots(report),
        python=platform.python_version(),
    )


def _highlighted(name: str, room: str) -> str:
    """A room of a package as HTML, from the installed source, which is there without its framework."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    package = BACKENDS[name].module.split(".")[0]
    source = (Path(__file__).parents[2] / package / f"{room}.py").read_text(encoding="utf-8")
    return highlight(source, PythonLexer(), HtmlFormatter(cssclass="code"))


def _plots(report: Report) -> list[tuple[str, str]]:
    """Caption and SVG: rounding through the layers and over the steps, and milliseconds."""
    from common.deviation import deviation

    found, plots = report.found, []
    stages = found.job.arch.stage_names()
    oracle = found.evidence.get(("oracle", "float64"))
    if report.compared and oracle:
        figure, axes = _figure()
        for dtype, style in (("float64", "-"), ("float32", "--")):
            for i, name in enumerate(report.compared):
                if evidence := found.evidence.get((name, dtype)):
                    values = [deviation(evidence.activations[s], oracle.activations[s]) for s in stages]
                    label = f"{name} {dtype}"
                    axes.semilogy(stages, _drawn(values), style, marker="o", color=f"C{i}", label=label)
        axes.set_ylabel("deviation from the oracle")
        axes.legend(fontsize="x-small", ncols=2)
        plots.append(("How far each layer's output is from the oracle's", pages.svg(figure)))
    if found.step_horizon:
        figure, axes = _figure()
        steps = range(1, found.job.steps + 1)
        for i, (name, values) in enumerate(found.steps.items()):
            axes.semilogy(steps, _drawn(values), marker=".", color=f"C{i}", label=name)
        axes.semilogy(steps, found.step_horizon, "k--", label="rounding")
        axes.set_xlabel("steps")
        axes.set_ylabel("deviation of the way from the start")
        axes.legend(fontsize="x-small", ncols=2)
        plots.append(("How far training leads from where it leads the oracle", pages.svg(figure)))
    if found.timings:
        figure, axes = _figure()
        names = list(found.timings)
        for kind, colour in (("forward", "C0"), ("step", "C1")):
            spreads: list[Spread] = [getattr(timing, kind) for timing in found.timings.values()]
            medians = [spread.median for spread in spreads]
            below = [spread.median - spread.quickest for spread in spreads]
            above = [spread.slowest - spread.median for spread in spreads]
            axes.barh([f"{name} {kind}" for name in names], medians, xerr=(below, above), color=colour)
        axes.invert_yaxis()
        axes.set_xlabel("milliseconds, float32: median, quickest and slowest round")
        plots.append(("Forward pass and training step", pages.svg(figure)))
    return plots


def _figure() -> tuple[Any, Any]:
    """A figure of the size of the report, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.4), layout="constrained")
    return figure, figure.subplots()


def _drawn(values: list[float]) -> list[float]:
    """Deviations on a logarithmic axis, which has no place for the same bits."""
    return [max(value, 1e-17) for value in values]


def _number(value: float, bound: float | None) -> str:
    text = f"{value:.1e}"
    return text if bound is None or value <= bound else f"[bold red]{text}[/]"


def _undecided(what: list[str]) -> str:
    return f"NOT PROVEN: rounding decides {', '.join(what)}, whatever computes it"


def _tick(good: bool) -> str:
    return "[green]yes[/]" if good else "[bold red]NO[/]"
