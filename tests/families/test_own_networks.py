"""Families whose libraries are old ones, held by their own networks and their own files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from common.architecture import Architecture
from common.interop.convert import to_family
from common.interop.files import write_tensors
from common.interop.prove import prove
from tests.families.sources import d2l_tf, transformers_flax, transformers_tf
from tests.interop.sources import BASIC, BOTTLENECK, Source, check, network

MAKE: dict[str, Callable[[str, Architecture], Source]] = {
    "transformers-flax": transformers_flax,
    "transformers-tf": transformers_tf,
    "d2l-tf": d2l_tf,
}
FILES = {"transformers-flax": "flax_model.msgpack", "transformers-tf": "tf_model.h5"}


@pytest.mark.parametrize("family", MAKE)
@pytest.mark.parametrize("arch", [BASIC, BOTTLENECK], ids=["basic", "bottleneck"])
def test_a_family_computes_what_we_compute_and_comes_back_bit_for_bit(
    family: str, arch: Architecture, backends: list[str], device: str, tmp_path: Path
) -> None:
    check(family, MAKE[family], arch, backends, device, tmp_path)


@pytest.mark.parametrize("family", FILES)
def test_transformers_file_is_proven_without_its_folder(family: str, tmp_path: Path) -> None:
    arch, weights = network(family, BASIC)
    path = tmp_path / FILES[family]
    write_tensors(path, family, arch, to_family(arch, weights, family).tensors, {})
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert "in float64; transformers 4.57.1" in prove(family, arch, weights, path)


@pytest.mark.parametrize("family", FILES)
def test_transformers_does_not_ask_its_config_where_the_strides_are(family: str, tmp_path: Path) -> None:
    arch, weights = network(family, BOTTLENECK)
    write_tensors(tmp_path / "folder", family, arch, to_family(arch, weights, family).tensors, {})
    config = tmp_path / "folder" / "config.json"
    said = json.loads(config.read_text())
    config.write_text(json.dumps({**said, "downsample_in_bottleneck": True}))
    assert "logits within" in prove(family, arch, weights, tmp_path / "folder")
