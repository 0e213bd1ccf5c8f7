"""Other frameworks' networks: the same logits, gradients and statistics, and the same bits there and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from common.architecture import Architecture
from common.errors import BadInput
from common.interop.configs import TRANSFORMERS, Said
from common.interop.convert import from_family, to_family
from common.interop.families import FAMILIES
from common.interop.prove import prove
from tests.helpers import one_line
from tests.interop.sources import BASIC, BOTTLENECK, Source, check, flax, gluon, keras, network

# Family, how its network is made, and a network.
FOLDER = Said(TRANSFORMERS, axes={"stride_on": "1x1"})  # what its config.json says
SOURCES: dict[str, tuple[str, Callable[[str, Architecture], Source], Architecture]] = {
    "keras": ("keras", keras, replace(BOTTLENECK, stem_channels=64)),
    "gluon basic": ("gluon", gluon, BASIC),
    "gluon bottleneck": ("gluon", gluon, BOTTLENECK),
    "flax-example basic": ("flax-example", flax, BASIC),
    "flax-example bottleneck": ("flax-example", flax, BOTTLENECK),
}


@pytest.mark.parametrize("everywhere", [False, pytest.param(True, marks=pytest.mark.deep)])
@pytest.mark.parametrize(
    "name",  # Flax compiles for seconds
    [pytest.param(name, marks=pytest.mark.deep) if "flax" in name else name for name in SOURCES],
)
def test_a_family_computes_what_we_compute_and_comes_back_bit_for_bit(
    name: str, everywhere: bool, backends: list[str], device: str, tmp_path: Path
) -> None:
    """In its own framework, or everywhere."""
    family, make, arch = SOURCES[name]
    own = FAMILIES[family].framework
    if own not in backends:
        pytest.skip(f"{own} is not under test")
    check(family, make, arch, backends if everywhere else [own], device, tmp_path)


@pytest.mark.parametrize("family", ["transformers-flax", "transformers-tf"])
def test_a_transformers_that_has_it_no_more_is_one_line(family: str, tmp_path: Path) -> None:
    """5 has PyTorch only; what tests 4.57 is `tests_families`."""
    arch, weights = network(family, BASIC)
    with pytest.raises(BadInput) as error:
        prove(family, arch, weights, tmp_path)
    one_line(error, "--prove takes transformers", 'run: pip install "transformers==4.57.1"')


@pytest.mark.parametrize("family", ["transformers-flax", "transformers-tf"])
def test_strides_that_only_transformers_in_pytorch_moves(family: str) -> None:
    """Its Flax and TensorFlow networks do not ask `downsample_in_bottleneck`."""
    arch, weights = network(family, BOTTLENECK)
    tensors = to_family(arch, weights, family).tensors
    assert from_family(tensors, said=FOLDER).arch.stride_on == "3x3"
    with pytest.raises(BadInput) as error:
        to_family(replace(arch, stride_on="1x1"), weights, family)
    one_line(error, f"{family} computes with stride_on 3x3")
