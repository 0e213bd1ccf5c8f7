"""The command `summary`."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from common.architecture import Architecture, Shape, architecture
from common.backend import load_backend
from common.cli.options import Arch, Backends, InputShape, choose_backends, parse_shape
from common.pages import console, show_backends
from common.summary import Part, Row, parts


def summary(
    arch: Arch,
    backends: Backends = None,
    input_shape: InputShape = "1,96,96",
    num_classes: Annotated[int, typer.Option(help="Number of classes.")] = 10,
    depth: Annotated[str, typer.Option(help="A row for each of the stages, or of the blocks.")] = "stages",
) -> None:
    """Show what each part puts out, holds and costs, and what the backends measure, one column each.

    Exits with 1 if the columns differ.
    """
    from common.processes.workers import Process
    from common.proof import report

    chosen = choose_backends(backends)
    shape = parse_shape(input_shape)
    network = architecture(arch, in_channels=shape[0], num_classes=num_classes)
    shown = parts(network, (1, *shape), depth)
    names = [backend.name for backend in chosen if backend.installed]
    rows = {}
    for name in names:
        if name == "oracle":
            rows[name] = summarise(name, network, (1, *shape))
        else:
            with closing(Process()) as process:
                rows[name] = process.run(summarise, name, network, (1, *shape))
    _show_parts(arch, shown)
    show_backends(chosen)
    report.show_summary(rows)
    raise typer.Exit(0 if names and all(row == rows[names[0]] for row in rows.values()) else 1)


def summarise(name: str, arch: Architecture, input_shape: Shape) -> list[Row]:
    """The layer summary of one backend; this is what a process of its own does."""
    return load_backend(name).build(arch).summary(input_shape)


def _show_parts(arch: str, shown: list[Part]) -> None:
    """A row for every stage or block of an architecture, and the totals."""
    table = Table(
        "part", "kind", "output shape", title=f"{arch}, for one image", box=box.SIMPLE, title_justify="left"
    )
    for heading in ("parameters", "multiply-accumulates"):
        table.add_column(heading, justify="right")
    for part in shown:
        row = part.row
        table.add_row(row.name, row.kind, row.shape_text, f"{row.parameters:,}", f"{part.macs:,}")
    parameters, macs = sum(part.row.parameters for part in shown), sum(part.macs for part in shown)
    table.add_row("", "all", "", f"{parameters:,}", f"{macs:,}")
    console().print(table)
