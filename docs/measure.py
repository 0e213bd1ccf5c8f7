"""Measure the figures of the pages: `nox -s measure`, or only some: `nox -s measure -- padding runs`.

Each module in `measures/` has one section: its `measure()` returns what `_data/SECTION.json` keeps, beside
the hash of the source, the versions and the machine. A section that is up to date is left as it is. It needs
the four frameworks and the full Fashion-MNIST.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS / "_ext"), str(DOCS.parent)]

import source  # noqa: E402
from measures.shared import machine, versions  # noqa: E402

from common.backend import BACKENDS  # noqa: E402
from common.files import write_atomically  # noqa: E402

SECTIONS = sorted(path.stem for path in (DOCS / "measures").glob("*.py") if path.stem != "shared")


def is_current(section: str) -> bool:
    """Whether a section was measured with this source."""
    try:
        return bool(source.read(section))
    except source.Stale:
        return False


def write(section: str, figures: dict[str, Any]) -> None:
    """Keep a section's figures."""
    found = {
        "source": source.digest(section),
        "versions": versions(),
        "machine": machine(),
        "figures": figures,
    }
    path = source.path(section)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def main(wanted: list[str]) -> None:
    """Measure these sections, or all, as far as they are not up to date."""
    for backend in BACKENDS.values():  # as the command tells the frameworks
        for name, value in backend.environment.items():
            os.environ.setdefault(name, value)
    for section in wanted or SECTIONS:
        if section not in SECTIONS:
            raise SystemExit(f"no section {section!r}; there are {', '.join(SECTIONS)}")
        module = import_module(f"measures.{section}")
        # Most have one part, themselves; the output of code has one for every page.
        for part in module.parts() if hasattr(module, "parts") else [section]:
            if is_current(part) and not getattr(module, "is_stale", lambda part: False)(part):
                print(f"{part} is up to date", flush=True)
                continue
            start = time.monotonic()
            write(part, module.measure(part) if hasattr(module, "parts") else module.measure())
            print(f"{part} took {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
