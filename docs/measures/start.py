"""The first page: how far the four are apart, and how far a port is that fell into two traps."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import source
from measures.shared import cost, test_images, trained, trap

from common.backend import BACKENDS

TRAPS = ("padding SAME in convolutions and", "batch norm's epsilon 1e-3")  # those of its TensorFlow tab


def measure() -> dict[str, Any]:
    """What `compare` finds, and what the two traps do to a trained network."""
    arch, weights, _ = trained("resnet18")
    return {"port": cost(arch, weights, *test_images(500), [trap(start) for start in TRAPS]), **compare()}


def compare() -> dict[str, Any]:
    """The main job's deviations in float64, against the oracle, and between the worst two."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "common.cli", "compare", "resnet18", "--out", folder]
        subprocess.run(command, cwd=source.ROOT, check=True, stdout=subprocess.DEVNULL)
        found = json.loads((Path(folder) / "results.json").read_text(encoding="utf-8"))
    order = [name for name in ("torch", "jax", "tf", "mxnet") if name in BACKENDS]
    rows = [
        [
            quantity,
            *(values[name] for name in order),
            found["worst_pairs"]["float64"][quantity]["deviation"],
            found["bounds"][quantity]["float64"],
        ]
        for quantity, values in found["deviations"]["float64"].items()
    ]
    labels = [BACKENDS[name].label for name in order]
    return {"deviations": {"columns": ["in float64", *labels, "worst pair", "bound"], "rows": rows}}
