"""The fifth framework: how many tests of the shared suite run over it, how long it is, how slow."""

from __future__ import annotations

import re
import sys
import time
from hashlib import sha256
from statistics import median
from typing import Any

import numpy as np
import source

from common import architecture, load_backend
from common.backend import BACKENDS
from common.proof.compare import deviation
from tests.docs.test_fifth import SUITE, pytest_over_the_fifth

FOLDER = source.DOCS / "fifth"
COUNT, PIXELS, ROUNDS = 8, 96, 3


def code() -> str:
    """A hash of the fifth framework, which is no package of the project."""
    files = sorted(FOLDER.rglob("*.py"))
    return sha256("".join(path.read_text(encoding="utf-8") for path in files).encode()).hexdigest()


def is_stale(part: str) -> bool:
    """Whether it is another now than when it was measured."""
    return source.read(part)["figures"]["code"] != code()


def lines() -> dict[str, int]:
    """Of each file, and of all."""
    files = sorted((FOLDER / "resnet_fifth").glob("*.py"))
    found = {path.stem: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    return {**found, "all": sum(found.values())}


def step(name: str) -> tuple[float, Any]:
    """Median seconds of a training step of ResNet-18 in float32, and the logits before."""
    generator = np.random.default_rng(0)
    x, y = generator.random((COUNT, 1, PIXELS, PIXELS), np.float32), np.arange(COUNT)
    model = load_backend(name).build(architecture("resnet18"))
    logits, seconds = model.predict(x), []
    model.train_step(x, y, lr=1e-3)
    for _ in range(ROUNDS):
        start = time.perf_counter()
        model.train_step(x, y, lr=1e-3)
        seconds.append(time.perf_counter() - start)
    return median(seconds), logits


def measure() -> dict[str, Any]:
    """Tests collected (that they pass, the tests see to), lines, and speed beside PyTorch."""
    sys.path.append(str(FOLDER))
    import resnet_fifth

    collected = re.search(
        r"(\d+)/\d+ tests collected \((\d+) deselected\)", pytest_over_the_fifth("--collect-only").stdout
    )
    assert collected
    (ours, found), (torch, expected) = step("fifth"), step("torch")
    del BACKENDS[resnet_fifth.FIFTH.name]  # which is none of the versions
    return {
        "code": code(),
        "files": len(SUITE),
        "tests": int(collected[1]),
        "left_out": int(collected[2]),
        "lines": lines(),
        "seconds": ours,
        "torch_seconds": torch,
        "times": ours / torch,
        "float32": float(deviation(found, expected)),
        "count": COUNT,
        "pixels": PIXELS,
    }
