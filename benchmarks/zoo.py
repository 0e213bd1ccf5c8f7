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

from common.architecture import ZOO

SHAPES = ("1,96,96", "3,67,53")


def compared(name: str, shape: str) -> tuple[str, bool]:
    """A line with the figures and the verdict, and whether all were proven the same."""
    start = time.monotonic()
    with TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "common.cli",
            "compare",
            name,
            "--input-shape",
            shape,
            "--out",
            folder,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        file = Path(folder) / "results.json"
        if not file.exists():
            return f"{name} {shape}: {done.stderr.strip()}", False
        results = json.loads(file.read_text())
    figures = []
    for quantity, found in results["deviations"].get("float64", {}).items():
        worst = "NaN" if None in found.values() else f"{max(found.values()):.1e}"
        figures.append(f"{quantity} {worst} of {results['bounds'].get(quantity, {}).get('float64')}")
    minutes = (time.monotonic() - start) / 60
    line = f"{name} {shape}: {', '.join(figures)}; {minutes:.1f} min; {results['verdict']}"
    return line, results["proven"]


def zoo() -> None:
    """Each network at both sizes; exits with 1 unless all are proven the same."""
    all_proven = True
    for name in ZOO:
        for shape in SHAPES:
            line, proven = compared(name, shape)
            print(line, flush=True)
            all_proven &= proven
    sys.exit(0 if all_proven else 1)
