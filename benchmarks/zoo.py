"""`compare` of every network of the zoo, in all backends.

zoo            at the command's own size and at an odd one; hours on two cores
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from common.architecture import ZOO

SHAPES = ("1,96,96", "3,67,53")


def compared(name: str, shape: str) -> str:
    """A line: the verdict, how far apart the backends are, and how far rounding carries the oracle."""
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
            return f"{name} {shape}: {done.stderr.strip()}"
        results = json.loads(file.read_text())
    figures = []
    for quantity in ("logits", "gradients", f"weights, {results['steps_claimed']} steps on"):
        found = results["deviations"]["float64"][quantity]
        far = max((value for value in found.values() if value is not None), default=0.0)
        figures.append(f"{quantity} {far:.1e} (rounding {results['horizon'][quantity]:.1e})")
    minutes = (time.monotonic() - start) / 60
    return f"{name} {shape}: {', '.join(figures)}; {minutes:.1f} min; {results['verdict']}"


def lines() -> Iterator[str]:
    """Of each network, both sizes."""
    for name in ZOO:
        for shape in SHAPES:
            yield compared(name, shape)


def zoo() -> None:
    """Exits with 1 unless every verdict is SAME."""
    wrong = 0
    for line in lines():
        print(line, flush=True)
        wrong += "; SAME: " not in line
    sys.exit(1 if wrong else 0)
