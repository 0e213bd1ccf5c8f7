"""Figures that were measured: in a line of prose, as a plot, and what they were measured with.

    {measured}`padding:logits/64|.0%`        a figure; after the bar, Python's format
    {plot} padding:by_size                   lines, from {"x": [...], "series": {name: [...]}}
    {measured-table} start:deviations        from {"columns": [...], "rows": [[name, figure, ...]]}
    {measured-with} padding                  versions and machine

A figure that is missing, or was measured with other source than that of the day, is an error.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from html import escape
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from source import Stale, depend, look_up, read
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

INK = "#010203"  # becomes currentColor, so that the plot follows the page into the dark
COLOURS = ("#c1272d", "#0072b2", "#00805f", "#a35f00")  # readable on white and on black
MARKERS, DASHES = "osD^", ("-", "--", "-.", ":")
logger = logging.getLogger(__name__)


def text(value: Any, how: str) -> str:
    """A figure as a person reads it."""
    if not how:
        return str(value)
    shown = format(value, how)
    if shown.endswith("%"):
        shown = shown[:-1] + "\N{NARROW NO-BREAK SPACE}%"
    if "e" in shown and math.isfinite(value):
        mantissa, exponent = shown.split("e")
        shown = f"{mantissa}e{int(exponent)}" if float(mantissa) else "0"
    return shown.replace("-", "\N{MINUS SIGN}", 1) if shown.startswith("-") else shown


class Measured(SphinxRole):
    """A figure in a line of prose."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        address, _, how = self.text.partition("|")
        depend(self.env, address.partition(":")[0])
        try:
            shown = text(look_up(address), how)
        except (Stale, ValueError) as error:
            logger.error("%s", error, location=self.get_location(), type="measured")
            shown = "?"
        return [nodes.inline(self.rawtext, shown, classes=["measured"])], []


class OfFigures(SphinxDirective):
    """A directive whose argument is the address of its figures."""

    required_arguments = 1

    def figures(self) -> Any:
        """What was measured, on which the page depends."""
        depend(self.env, self.arguments[0].partition(":")[0])
        try:
            return look_up(self.arguments[0])
        except Stale as error:
            raise self.error(str(error)) from None


class Plot(OfFigures):
    """Lines or bars, as SVG with text, and the same as a table."""

    option_spec: ClassVar = {
        "title": directives.unchanged_required,
        "x": directives.unchanged_required,
        "y": directives.unchanged_required,
        "log": directives.flag,
        "bars": directives.flag,
        "format": directives.unchanged_required,
    }

    def run(self) -> list[nodes.Node]:
        found = self.figures()
        title, how = self.options["title"], self.options.get("format", ".3g")
        picture = draw(found, self.options)
        figure = (
            f'<figure class="plot"><div role="img" aria-label="{escape(title)}">{picture}</div>'
            f"<figcaption>{escape(title)}</figcaption>"
            f"<details><summary>The figures as a table</summary>{table(found, self.options, how)}</details>"
            "</figure>"
        )
        return [nodes.raw("", figure, format="html")]


def draw(found: dict[str, Any], options: dict[str, Any]) -> str:
    """The SVG of a plot."""
    import matplotlib
    from matplotlib.figure import Figure

    ink = dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK
    )
    style = {"svg.fonttype": "none", "svg.hashsalt": "resnet-tabs", "font.family": "sans-serif", **ink}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(6.4, 3), layout="constrained")
        axes = figure.subplots()
        series = found["series"]
        for i, (name, values) in enumerate(series.items()):
            if "bars" in options:
                width = 0.8 / len(series)
                at = [j - 0.4 + width * (i + 0.5) for j in range(len(values))]
                axes.bar(at, values, width, label=name, color=COLOURS[i % 4])
            else:
                marker = MARKERS[i % 4] if len(values) < 40 else None
                axes.plot(
                    found["x"], values, DASHES[i % 4], marker=marker, ms=4, label=name, color=COLOURS[i % 4]
                )
        if "bars" in options:
            axes.set_xticks(range(len(found["x"])), found["x"])
        if "log" in options:
            axes.set_yscale("log")
        axes.set_xlabel(options["x"])
        axes.set_ylabel(options["y"])
        axes.spines[["top", "right"]].set_visible(False)
        if len(series) > 1:
            axes.legend(frameon=False)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = re.sub(r"\s*\n\s*", "\n", svg[svg.index("<svg") :].replace(INK, "currentColor"))
    svg = re.sub(
        r"<metadata>.*?</metadata>|font-family: [^;]+; ", "", svg, flags=re.DOTALL
    )  # the page's font
    # Of a pixel one digit is enough; labels, between the tags, keep all of theirs.
    return re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\d\.\d)\d+", r"\1", tag[0]), svg)


def table(found: dict[str, Any], options: dict[str, Any], how: str) -> str:
    """What the plot shows, as a table; of a long line some twenty points."""
    step = max(1, len(found["x"]) // 20)
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in found["series"])
    rows = "".join(
        f'<tr><th scope="row">{escape(str(x))}</th>'
        + "".join(f"<td>{text(values[i], how)}</td>" for values in found["series"].values())
        + "</tr>"
        for i, x in enumerate(found["x"])
        if i % step == 0
    )
    return f'<table><tr><th scope="col">{escape(options["x"])}</th>{names}</tr>{rows}</table>'


class MeasuredTable(OfFigures):
    """A table of {"columns": [...], "rows": [[name, figure, ...]]}."""

    option_spec: ClassVar = {"format": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        lines = table_lines(self.figures(), self.options.get("format", ""))
        return self.parse_text_to_nodes("\n".join(lines))


def table_lines(found: dict[str, Any], how: str) -> list[str]:
    """Markdown of a table of figures."""
    rows = [[name, *(text(value, how) for value in values)] for name, *values in found["rows"]]
    return markdown_table(found["columns"], rows)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown."""
    return [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)]


class MeasuredWith(SphinxDirective):
    """What the figures of some sections were measured with."""

    required_arguments = 1
    optional_arguments = 9

    def run(self) -> list[nodes.Node]:
        for section in self.arguments:
            depend(self.env, section)
        try:
            found = [read(section) for section in self.arguments]
        except Stale as error:
            raise self.error(str(error)) from None
        lines = dict.fromkeys(f"Measured on {one['machine']}, with {one['versions']}." for one in found)
        return [nodes.paragraph("", " ".join(lines), classes=["measured-with"])]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register role and directives."""
    app.add_role("measured", Measured())
    app.add_directive("plot", Plot)
    app.add_directive("measured-table", MeasuredTable)
    app.add_directive("measured-with", MeasuredWith)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
