"""`compare` of every network of the zoo, in all backends.

zoo            at the command's own size and at an odd one; hours on two cores
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common.architecture import ZOO

SHAPES = ("1,96,96", "3,67,53")


def results(name: str, *options: str) -> dict[str, Any]:
    """What `compare` of a network writes, and its `minutes`.

    Raises:
        RuntimeError: with what it says, if it writes nothing.
    """
    start = time.monotonic()
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "common.cli", "compare", name, *options, "--out", folder]
        done = subprocess.run(command, capture_output=True, text=True)
        file = Path(folder) / "results.json"
        if not file.exists():
            raise RuntimeError(done.stderr.strip())
        return json.loads(file.read_text()) | {"minutes": (time.monotonic() - start) / 60}


def line(found: dict[str, Any]) -> str:
    """The worst deviation in float64 of each quantity, its bound, and the verdict."""
    figures = []
    for quantity, by_backend in found["deviations"].get("float64", {}).items():
        worst = "NaN" if None in by_backend.values() else f"{max(by_backend.values()):.1e}"
        figures.append(f"{quantity} {worst} of {found['bounds'].get(quantity, {}).get('float64')}")
    return f"{', '.join(figures)}; {found['minutes']:.1f} min; {found['verdict']}"


def zoo() -> None:
    """Each network at both sizes; exits with 1 unless all are proven the same."""
    all_proven = True
    for name in ZOO:
        for shape in SHAPES:
            try:
                found = results(name, "--input-shape", shape)
                said, proven = line(found), found["proven"]
            except RuntimeError as error:
                said, proven = str(error), False
            print(f"{name} {shape}: {said}", flush=True)
            all_proven &= proven
    sys.exit(0 if all_proven else 1)
