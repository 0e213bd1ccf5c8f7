"""The command `summary`."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from common.architecture import architecture
from common.cli.options import Arch, Backends, InputShape, choose_backends, parse_shape


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
    from common.pages import show_backends
    from common.proof import report
    from common.proof.compare import summarise
    from common.proof.workers import Worker
    from common.summary import parts

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
            with closing(Worker()) as worker:
                rows[name] = worker.run(summarise, name, network, (1, *shape))
    report.show_parts(arch, shown)
    show_backends(chosen)
    report.show_summary(rows)
    raise typer.Exit(0 if names and all(row == rows[names[0]] for row in rows.values()) else 1)
