"""What the code on the pages prints: every `{run}` block, the blocks of a page one after another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import run
import source

# Runs the cells it reads, in one namespace, and writes what each printed.
CELLS = """
import contextlib, io, json, sys
cells, names, printed = json.load(open(sys.argv[1])), {"__name__": "__main__"}, []
for cell in cells:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(cell, "<page>", "exec"), names)
    printed.append(out.getvalue())
json.dump(printed, open(sys.argv[2], "w"))
"""


def parts() -> list[str]:
    """One for every page that has code."""
    return [run.section(page) for page in run.pages()]


def page(part: str) -> str:
    """The page a part is of."""
    return next(page for page in run.pages() if run.section(page) == part)


def is_stale(part: str) -> bool:
    """Whether the page has code now that was not run."""
    printed = source.read(part)["figures"]
    return any(b.key(name) not in printed for b in run.blocks(page(part)) for name in b.frameworks)


def measure(part: str) -> dict[str, Any]:
    """Key of the code to what it printed."""
    found = run.blocks(page(part))
    printed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for framework in dict.fromkeys(name for block in found for name in block.frameworks):
            cells = [b for b in found if b.kind == "python" or (b.kind == "four" and framework)]
            for block, text in zip(cells, outputs([b.of(framework) for b in cells], folder), strict=True):
                printed[block.key(framework)] = text
        for block in found:
            if block.kind == "sh":
                printed[block.key("")] = command(block.code, folder)
    return printed


def environment() -> dict[str, str]:
    """A terminal of this width, without colours, that finds the project and its command."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    width = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    return {**os.environ, **width, "PATH": path, "PYTHONPATH": str(source.ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}


def outputs(cells: list[str], folder: str) -> list[str]:
    """What each of these cells printed, run one after another in a new process."""
    if not cells:
        return []
    with tempfile.TemporaryDirectory() as between:
        given, taken = Path(between) / "cells.json", Path(between) / "printed.json"
        given.write_text(json.dumps(cells), encoding="utf-8")
        subprocess.run(
            [sys.executable, "-c", CELLS, str(given), str(taken)], cwd=folder, env=environment(), check=True
        )
        return json.loads(taken.read_text(encoding="utf-8"))


def command(line: str, folder: str) -> str:
    """What a command line prints, its errors too."""
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.stdout
