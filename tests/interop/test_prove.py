"""A converted network held against its family's own: proven where it is, refused where it is not."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from common.architecture import Architecture
from common.errors import BadInput
from common.interop.configs import TRANSFORMERS, Said
from common.interop.convert import from_family, to_family
from common.interop.files import read_tensors, write_tensors
from common.interop.prove import prove
from tests.helpers import built, one_line
from tests.interop.families import state
from tests.interop.test_convert import (
    SOURCES,
    convert,
    converted,
    metadata,
    model_of,
    refused,
    without_counters,
)

FOLDER = Said(TRANSFORMERS, axes={"stride_on": "1x1"})  # what its config.json says
PROVEN = ["torchvision basic", "timm basic", "timm grouped", "transformers basic", "transformers bottleneck"]


@pytest.mark.parametrize("source", PROVEN)
def test_a_network_is_proven_there_and_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str
) -> None:
    family = SOURCES[source][0]
    path, ours, theirs = (tmp_path / f"{name}.safetensors" for name in ("model", "ours", "theirs"))
    save_file({name: torch.from_numpy(array) for name, array in state(model_of(source)).items()}, path)
    said = converted(capsys, path, ours, "--from", family, "--prove")
    assert "Proven: logits within" in said and "Taken for granted, because tensors do not show it" in said
    proof = metadata(ours)["proof"]
    assert f"of {family}'s own network in float64; {family} " in proof and f"NumPy {np.__version__}" in proof
    assert proof in said

    said = converted(capsys, ours, theirs, "--to", family, "--prove")
    assert f"of {family}'s own network in float64" in said
    with safe_open(theirs, framework="numpy") as file:
        assert f"of {family}'s own network" in file.metadata()["proof"]


@pytest.mark.parametrize("downsample_in_bottleneck", [False, True])
def test_a_folder_of_transformers_is_loaded_by_transformers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], downsample_in_bottleneck: bool
) -> None:
    arch = SOURCES["transformers bottleneck"][2]
    stride_on = "1x1" if downsample_in_bottleneck else "3x3"
    found = from_family(
        state(model_of("transformers bottleneck")),
        said=replace(FOLDER, axes={"stride_on": stride_on}),
    )
    assert found.arch == replace(arch, stride_on=stride_on)
    there = to_family(found.arch, found.tensors, "transformers")
    folder = tmp_path / "theirs"
    write_tensors(folder, "transformers", found.arch, there.tensors, {})
    assert "float64" in prove("transformers", found.arch, found.tensors, folder)

    with pytest.raises(SystemExit) as stop:
        convert(folder, tmp_path / "back.safetensors", "--prove")
    assert not stop.value.code
    assert "of transformers's own network" in capsys.readouterr().out  # on stderr transformers counts weights
    tensors, _ = read_tensors(tmp_path / "back.safetensors")
    for name, array in found.tensors.items():
        assert tensors[name].tobytes() == array.tobytes()


def test_strides_that_only_a_folder_can_tell_are_not_written_to_a_file(tmp_path: Path) -> None:
    found = from_family(state(model_of("transformers bottleneck")), said=FOLDER)
    with pytest.raises(BadInput) as error:
        write_tensors(tmp_path / "model.safetensors", "transformers", found.arch, found.tensors, {})
    one_line(error, "give a folder as DEST")
    assert not list(tmp_path.iterdir())


def test_a_network_that_computes_something_else_is_not_proven(tmp_path: Path) -> None:
    found = from_family(state(model_of("timm basic")), "timm")
    path = tmp_path / "model.pth"
    write_tensors(path, "timm", found.arch, to_family(found.arch, found.tensors, "timm").tensors, {})
    assert "timm's own network" in prove("timm", found.arch, found.tensors, path)
    for arch, weights in (
        (replace(found.arch, epsilon=1.001e-5), found.tensors),
        (found.arch, found.tensors | {"last.bias": found.tensors["last.bias"] + 1e-9}),
    ):
        with pytest.raises(BadInput) as error:
            prove("timm", arch, weights, path)
        one_line(error, "not proven: the logits are off by")


def test_a_network_of_nan_is_not_proven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = from_family(state(model_of("timm basic")), "timm")
    oracle = built("oracle", found.arch)
    oracle.load_weights(found.tensors)

    def logits(x: np.ndarray) -> np.ndarray:
        return oracle.predict(x) * (np.nan if x.shape[2] == 64 else 1)  # at the second size

    monkeypatch.setattr("common.backend.Backend.own_network", lambda *_: logits)
    with pytest.raises(BadInput) as error:
        prove("timm", found.arch, found.tensors, tmp_path)
    one_line(error, "not proven: the logits are off by 0.0e+00 at 65×97 and nan at 64×96")


def test_nothing_is_written_where_nothing_is_proven(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, dest = tmp_path / "model.pth", tmp_path / "ours.safetensors"
    torch.save({n: torch.from_numpy(a) for n, a in state(model_of("timm basic")).items()}, path)
    monkeypatch.setitem(sys.modules, "timm.models", None)
    line = refused(capsys, path, dest, "--from", "timm", "--prove")
    assert "--prove takes timm" in line and "pip install timm" in line
    monkeypatch.undo()
    line = refused(capsys, path, dest, "--prove")  # torchvision has the same names, and other widths
    assert "torchvision's class builds" in line
    assert not dest.exists()


def test_the_command_exits_with_1_where_the_proof_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, ours = tmp_path / "model.safetensors", tmp_path / "ours.safetensors"
    save_file({n: torch.from_numpy(a) for n, a in state(model_of("timm basic")).items()}, path)
    converted(capsys, path, ours, "--from", "timm")
    classes = SOURCES["timm basic"][2].num_classes
    monkeypatch.setattr(
        "common.backend.Backend.own_network", lambda *_: lambda x: np.zeros((len(x), classes))
    )
    for arguments in (
        (path, tmp_path / "proven.safetensors", "--from", "timm", "--prove"),
        (ours, tmp_path / "theirs.safetensors", "--to", "timm", "--prove"),
    ):
        with pytest.raises(SystemExit) as stop:
            convert(*arguments)
        assert stop.value.code == 1
        said = capsys.readouterr().err
        assert "not proven: the logits are off by" in said and said.count("\n") == 1


def test_what_a_class_does_not_load_is_one_line(tmp_path: Path) -> None:
    found = from_family(state(model_of("transformers basic")))
    path = tmp_path / "model.safetensors"
    tensors = without_counters(state(model_of("transformers basic")))
    write_tensors(path, "transformers", found.arch, tensors, {})
    other: Architecture = replace(found.arch, stages=((1, 8), (1, 12)))
    with pytest.raises(BadInput) as error:
        prove("transformers", other, found.tensors, path)
    one_line(error, "transformers cannot load")


# Whose a file is


@pytest.mark.parametrize("name", ["mlp.params", "weights.h5", "model.bin", "model"])
def test_content_tells_whose_a_file_is(tmp_path: Path, name: str) -> None:
    """The book calls its files mlp.params in three frameworks."""
    tensors = without_counters(state(model_of("timm basic")))
    for suffix in ("safetensors", "pth"):
        written = tmp_path / f"model.{suffix}"
        write_tensors(written, "timm", SOURCES["timm basic"][2], tensors, {})
        path = written.rename(tmp_path / name)
        found, _ = read_tensors(path)
        assert {name: array.tobytes() for name, array in found.items()} == {
            name: array.tobytes() for name, array in tensors.items()
        }


def test_a_file_of_no_known_kind_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x08\x12\x07pytorch" * 9)
    with pytest.raises(BadInput) as error:
        read_tensors(path)
    one_line(error, f"{path} is of no known kind", ".msgpack")
