"""What every report has: a terminal to print on, the frameworks' names and versions, a page and its plots."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import Any

from rich import box
from rich.console import Console as Terminal
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from common.backend import BACKENDS, ORACLE, Backend
from common.reading import shown

LABELS = {backend.name: backend.label for backend in (*BACKENDS.values(), ORACLE)}


class Console(Terminal):
    """A terminal that shows each text, a table's cells too, as `shown` does: much of it is of files."""

    def render_str(self, text: str, *arguments: Any, **options: Any) -> Text:
        return super().render_str(shown(text), *arguments, **options)

    def on_broken_pipe(self) -> None:
        """Rich would end the process."""

    def say(self, line: str) -> None:
        """A plain line; what cannot be written or encoded there ends nothing."""
        encoding = getattr(self.file, "encoding", None) or "utf-8"
        encoded = line.encode(encoding, "backslashreplace").decode(encoding)
        with suppress(OSError):
            self.print(encoded, emoji=False, highlight=False, markup=False, soft_wrap=True)


def say(line: str) -> None:
    """Print a line on standard output, as `shown` does."""
    print(shown(line), flush=True)


def console() -> Console:
    """The terminal; a log has no width, and is given what the widest table needs."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=120)


@contextmanager
def progress(begins: str) -> Iterator[Callable[[str], None]]:
    """Say what begins, and then each thing done with the time since; a spinner where there is a terminal."""
    terminal = console()
    terminal.print(begins, soft_wrap=True)
    start = time.perf_counter()
    with terminal.status("computing"):
        yield lambda line: terminal.print(
            f"{time.perf_counter() - start:7.1f} s  {line}", highlight=False, markup=False, soft_wrap=True
        )


def show_backends(chosen: list[Backend]) -> None:
    """A row for every backend: its version, or how to install it."""
    table = Table("backend", "version", title="Backends", box=box.SIMPLE, title_justify="left")
    for backend in chosen:
        if backend.installed:
            table.add_row(backend.label, installed_version(backend))
        else:
            table.add_row(backend.label, f"[bold red]not installed[/]; run: {escape(backend.install)}")
    console().print(table)


def show_verdict(line: str, good: bool) -> None:
    """Print the last line, in green or red."""
    console().print(
        line, style="bold green" if good else "bold red", highlight=False, markup=False, soft_wrap=True
    )


def installed_version(backend: Backend) -> str:
    """The version of a backend's framework, read without importing it."""
    package = backend.packages[0]
    try:
        return version(package)
    except PackageNotFoundError:  # a build under another name: mxnet-cu112, tensorflow-cpu
        named = packages_distributions().get(package)
        return version(named[0]) if named else "unknown version"


def own_version() -> str:
    """The version of this project."""
    try:
        return version("resnet-tabs")
    except PackageNotFoundError:  # run from a folder of its source
        return "unknown version"


def render(template: str, **values: Any) -> str:
    """A page as one file that needs nothing else, from a template in this package."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("common", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(template).render(labels=LABELS, **values)


def svg(figure: Any) -> str:
    """The figure as an SVG element, without the declarations of a file of its own."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]
