"""The networks of d2l 1.0.3 and GluonCV, which only this session installs, held as tests/interop does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from common.architecture import Architecture
from tests.interop.sources import BASIC, BOTTLENECK, Source, check, flax, gluon, torch

# GluonCV's class has four stages of its own widths.
V1B_BASIC = replace(BASIC, stages=((1, 64), (2, 128), (1, 256), (1, 512)), stem_channels=64)
V1B_BOTTLENECK = replace(
    BOTTLENECK,
    stages=((1, 256), (2, 512), (1, 1024), (1, 2048)),
    stem_channels=64,
    groups=(64, 128, 256, 512),
)
GROUPED = replace(BOTTLENECK, bot_mul=0.5)

# Family, how its network is made, and a network.
SOURCES: dict[str, tuple[str, Callable[[str, Architecture], Source], Architecture]] = {
    "d2l-torch Residual": ("d2l-torch", torch, BASIC),
    "d2l-torch ResNeXtBlock": ("d2l-torch", torch, GROUPED),
    "d2l-mxnet Residual": ("d2l-mxnet", gluon, BASIC),
    "d2l-mxnet ResNeXtBlock": ("d2l-mxnet", gluon, GROUPED),
    "d2l-jax Residual": ("d2l-jax", flax, BASIC),
    "d2l-jax ResNeXtBlock": ("d2l-jax", flax, GROUPED),
    "gluoncv basic": ("gluoncv", gluon, V1B_BASIC),
    "gluoncv bottleneck": ("gluoncv", gluon, V1B_BOTTLENECK),
}


# Networks of the same blocks go to one worker: where they are the same in ours, too, it compiles them once.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.xdist_group(name.split()[1])) for name in SOURCES]
)
def test_a_family_computes_what_we_compute_and_comes_back_bit_for_bit(
    name: str, backends: list[str], device: str, tmp_path: Path
) -> None:
    family, make, arch = SOURCES[name]
    check(family, make, arch, backends, device, tmp_path)
