"""A converted network held against the family's own, built and loaded by the family's own library."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.architecture import Architecture
from common.backend import load_backend
from common.deviation import deviation
from common.errors import BadInput, MissingBackend
from common.horizon import LAYER_BOUNDS, allowed, is_claimed, moved
from common.interop.families import FAMILIES
from common.weights import Weights

SIZES = ((65, 97), (64, 96))  # odd and even: padding shows at one of them


def prove(family: str, arch: Architecture, weights: Weights, path: Path) -> str:
    """How far our logits are from those of the family's own network with the tensors of a file: a sentence.

    Ours are computed by the oracle, theirs in float64, or in float32 if the family has no other; both from
    two random images at an odd and at an even size.

    Raises:
        ValueError: if the family's library is missing or builds no such network, or they disagree.
    """
    theirs = FAMILIES[family]
    try:
        own = load_backend(theirs.framework).own_network(family, arch, path)
        release = f"{theirs.package} {version(theirs.package)}"
    except ImportError as error:
        raise MissingBackend(
            f"--prove takes {theirs.package} ({error}); run: pip install {theirs.install or theirs.package}"
        ) from None
    off_by = held(arch, weights, own, f"{family}'s own network")
    return f"logits within {off_by}; {computed_by(release)}"


def held(arch: Architecture, weights: Weights, theirs: Callable[[NDArray], NDArray], whose: str) -> str:
    """How far the logits of another network, images (N, C, H, W) → (N, classes), are from the oracle's.

    Raises:
        ValueError: if it is further than rounding goes.
    """
    oracle = load_backend("oracle").build(arch)
    found, failed = [], []
    for height, width in SIZES:
        x = np.random.default_rng(0).random((2, arch.in_channels, height, width))
        oracle.load_weights(weights)
        ours, logits = oracle.predict(x), theirs(x)
        off = deviation(logits, ours)
        oracle.load_weights(moved(weights))
        far = deviation(oracle.predict(x), ours)
        floor = LAYER_BOUNDS[logits.dtype.name]
        bound = allowed(floor, far, logits.dtype.name)
        if not off <= bound:
            failed.append("")
        elif not (off <= floor or is_claimed(far, logits.dtype.name)):
            failed.append(", which may be rounding: it decides the logits of this network")
        found.append(f"{off:.1e} at {height}×{width}")
    off_by = " and ".join(found)
    if failed:
        error = BadInput(f"not proven: the logits are off by {off_by} from those of {whose}{failed[0]}")
        error.exit_code = 1
        raise error
    return f"{off_by} of {whose} in {logits.dtype}"


def computed_by(*releases: str) -> str:
    """These releases, NumPy's, Python's and the date."""
    python = ".".join(map(str, sys.version_info[:3]))
    return f"{', '.join(releases)}, NumPy {np.__version__}, Python {python}, {datetime.now(UTC):%Y-%m-%d}"
