"""Other frameworks' networks: the same logits, gradients and statistics, and the same bits there and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from common.architecture import Architecture
from common.interop.families import FAMILIES
from tests.interop.sources import BASIC, BOTTLENECK, Source, check, flax, gluon, keras

# Family, how its network is made, and a network.
SOURCES: dict[str, tuple[str, Callable[[str, Architecture], Source], Architecture]] = {
    "keras": ("keras", keras, replace(BOTTLENECK, stem_channels=64)),
    "gluon basic": ("gluon", gluon, BASIC),
    "gluon bottleneck": ("gluon", gluon, BOTTLENECK),
    "flax-example basic": ("flax-example", flax, BASIC),
    "flax-example bottleneck": ("flax-example", flax, BOTTLENECK),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_family_computes_what_we_compute_and_comes_back_bit_for_bit(
    name: str, backends: list[str], device: str, tmp_path: Path
) -> None:
    family, make, arch = SOURCES[name]
    if FAMILIES[family].framework not in backends:
        pytest.skip(f"{FAMILIES[family].framework} is not under test")
    check(family, make, arch, backends, device, tmp_path)
