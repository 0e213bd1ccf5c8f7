"""The fifth framework: how many shared tests run over it, how long it is, how far from PyTorch."""

from __future__ import annotations

import re
import sys
from typing import Any

import numpy as np
import source
from fifth import FOLDER, code
from numpy.typing import NDArray

from common import architecture, load_backend
from common.backend import BACKENDS
from common.deviation import deviation
from tests.docs.test_fifth import SUITE, pytest_over_the_fifth

COUNT, PIXELS = 8, 96


def is_stale(part: str) -> bool:
    """Whether it is another now than when it was measured."""
    return source.read(part)["figures"]["code"] != code()


def lines() -> dict[str, int]:
    """Of each file, and of all."""
    files = sorted((FOLDER / "resnet_fifth").glob("*.py"))
    found = {path.stem: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    return {**found, "all": sum(found.values())}


def logits(name: str) -> NDArray:
    """Of ResNet-18 with the weights of seed 0, in float32."""
    x = np.random.default_rng(0).random((COUNT, 1, PIXELS, PIXELS), np.float32)
    return load_backend(name).build(architecture("resnet18")).predict(x)


def measure() -> dict[str, Any]:
    """Tests collected (that they pass, the tests see to), lines, and the deviation from PyTorch."""
    sys.path.append(str(FOLDER))
    import resnet_fifth

    collected = re.search(
        r"(\d+)/\d+ tests collected \((\d+) deselected\)", pytest_over_the_fifth("--collect-only").stdout
    )
    assert collected
    found, expected = logits("fifth"), logits("torch")
    del BACKENDS[resnet_fifth.FIFTH.name]  # which is none of the versions
    return {
        "code": code(),
        "files": len(SUITE),
        "tests": int(collected[1]),
        "left_out": int(collected[2]),
        "lines": lines(),
        "float32": float(deviation(found, expected)),
        "count": COUNT,
        "pixels": PIXELS,
    }
