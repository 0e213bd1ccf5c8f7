"""Checkpoints as people's training runs save them: read, or one line; and proven by the same tensors."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import functools
import json
import os
import pickle
import subprocess
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from common import Architecture, load_checkpoint
from common.errors import BadInput
from common.interop.configs import read_config
from common.interop.convert import from_family, to_family
from common.interop.families import FAMILIES
from common.interop.files import INDEX, read_tensors
from common.weights import Weights, initial_weights
from tests.helpers import one_line
from tests.interop.families import randomised, timm, torchvision
from tests.interop.test_convert import SOURCES, converted, metadata, model_of, refused

BASIC = "timm basic"


def tensors() -> dict[str, torch.Tensor]:
    """A state dict of timm, of a small network, in float32."""
    return {
        name: tensor.detach().clone().float() if tensor.is_floating_point() else tensor.clone()
        for name, tensor in model_of(BASIC).state_dict().items()
    }


def others() -> dict[str, torch.Tensor]:
    """Of the same network, other weights."""
    return {name: tensor + 1 for name, tensor in tensors().items()}


def ours(path: Path) -> Weights:
    return load_checkpoint(path)[1]


def expected(state: dict[str, torch.Tensor] | None = None) -> Weights:
    arrays = {name: tensor.numpy() for name, tensor in (state or tensors()).items()}
    return from_family(arrays, "timm").tensors


def check_same(found: Weights, wanted: Weights) -> None:
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert found[name].tobytes() == array.tobytes(), name


class Schedule(enum.Enum):
    COSINE = "cosine"


@dataclass
class Config:
    """What a training run of one's own keeps."""

    lr: float = 0.1
    schedule: Schedule = Schedule.COSINE


class Attributes(dict[str, Any]):
    """A dictionary, as EasyDict is one."""


class Steps(list[int]):
    """A list."""


# What is beside the weights.
BESIDE: dict[str, Callable[[], Any]] = {
    "an argparse.Namespace": lambda: argparse.Namespace(lr=0.1, layers=[1, 2]),
    "NumPy's scalars": lambda: [np.float64(0.7), np.int64(3), np.bool_(True)],
    "NumPy's arrays": lambda: np.arange(6.0).reshape(2, 3),
    "a path": lambda: Path("runs/1"),
    "a dataclass": Config,
    "a dictionary of one's own": lambda: Attributes(lr=0.1, inner=Attributes(steps=[1])),
    "a list of one's own": lambda: Steps([1, 2]),
    "a defaultdict": lambda: collections.defaultdict(list, {1: [2]}),
    "a deque": lambda: collections.deque([1, 2], maxlen=3),
    "a Counter": lambda: collections.Counter("aab"),
    "sets": lambda: {"a": {1, 2}, "b": frozenset({3})},
    "a date": lambda: datetime.datetime(2020, 1, 2),
    "bytes": lambda: [b"abc", bytearray(b"abc")],
    "types": lambda: [torch.float32, torch.Size([1, 2]), torch.device("cpu"), float],
    "an optimizer": lambda: _optimizer().state_dict(),
    "random states": lambda: (torch.get_rng_state(), np.random.default_rng(0).bit_generator.state),
}


def _optimizer() -> torch.optim.Optimizer:
    weight = torch.ones(4, 3, 3, 3, requires_grad=True)
    optimizer = torch.optim.Adam([weight])
    weight.sum().backward()
    optimizer.step()
    return optimizer


def taken(capsys: pytest.CaptureFixture[str], path: Path, dest: Path, under: str) -> str:
    """What is said of a checkpoint whose network is under these keys; it is proven, and every bit is kept."""
    said = converted(capsys, path, dest, "--from", "timm", "--prove")
    assert f"the weights are those under {under}\n" in said
    assert "Proven: logits within" in said
    check_same(ours(dest), expected())
    return said


@pytest.mark.parametrize("zipped", [True, pytest.param(False, marks=pytest.mark.deep)])
@pytest.mark.parametrize("case", BESIDE)
def test_what_is_beside_the_weights_is_no_obstacle(tmp_path: Path, case: str, zipped: bool) -> None:
    path = tmp_path / "model.pth"
    content = {"state_dict": tensors(), "epoch": 3, "beside": BESIDE[case]()}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    found, _ = read_tensors(path)
    network = from_family(found, "timm")
    assert network.said[0] == "the weights are those under state_dict"
    check_same(network.tensors, expected())


@pytest.mark.parametrize(
    "before", ["model.", "backbone.", "encoder_q.", "_orig_mod.", "module._orig_mod.", "a.b.c."]
)
def test_what_stands_before_all_names_is_taken_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], before: str
) -> None:
    path = tmp_path / "model.pth"
    torch.save({before + name: tensor for name, tensor in tensors().items()}, path)
    assert "left out" not in taken(capsys, path, tmp_path / "ours.safetensors", before[:-1])


@pytest.mark.parametrize(
    "key", ["state_dict", "model_state_dict", "net", "weights", "state_dict_ema", "module"]
)
def test_under_whatever_key_the_weights_are_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    path = tmp_path / "model.pth.tar"
    content = {key: {f"module.{name}": tensor for name, tensor in tensors().items()}, "epoch": 3}
    torch.save(content | {"optimizer": _optimizer().state_dict()}, path)
    said = taken(capsys, path, tmp_path / "ours.safetensors", f"{key}.module")
    assert "left out: optimizer.state.0.step, optimizer.state.0.exp_avg" in said


def test_an_average_of_the_weights_is_taken_if_it_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, dest = tmp_path / "model.pth", tmp_path / "ours.safetensors"
    torch.save({"state_dict": tensors(), "state_dict_ema": others()}, path)
    said = converted(capsys, path, dest, "--from", "timm")
    assert "the weights are those under state_dict\n" in said and "left out: state_dict_ema.conv1" in said
    check_same(ours(dest), expected())
    said = converted(capsys, path, dest, "--from", "timm", "--key", "state_dict_ema", "--force")
    assert "the weights are those under state_dict_ema\n" in said and "left out: state_dict.conv1" in said
    check_same(ours(dest), expected(others()))


def test_of_several_networks_one_is_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, dest = tmp_path / "model.pth", tmp_path / "ours.safetensors"
    student, teacher = (
        {f"{name}.{key}": tensor for key, tensor in state.items()}
        for name, state in (("module.student", tensors()), ("module.teacher", others()))
    )
    torch.save({"state_dict": student | teacher | {"module.queue": torch.ones(3, 4)}}, path)
    line = refused(capsys, path, dest)
    assert "it has several networks, state_dict.module.student., state_dict.module.teacher." in line
    assert "choose one with --key" in line
    said = converted(capsys, path, dest, "--from", "timm", "--key", "state_dict.module.teacher")
    assert "left out: state_dict.module.student.conv1.weight" in said
    check_same(ours(dest), expected(others()))
    line = refused(capsys, path, dest, "--key", "state_dict.module.teach", "--force")
    assert "under 'state_dict.module.teach' is no ResNet of torchvision" in line


@pytest.mark.parametrize("head", ["fc", "classifier", "head.0"])
def test_a_head_beside_the_network_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], head: str
) -> None:
    path, dest = tmp_path / "model.safetensors", tmp_path / "ours.safetensors"
    state = {
        name.replace("fc", head) if name.startswith("fc") else f"backbone.{name}": tensor
        for name, tensor in tensors().items()
    }
    save_file(state | {"projection.0.bias": torch.ones(3)}, path)
    said = converted(capsys, path, dest, "--from", "timm", "--prove")
    assert "left out: projection.0.bias\n" in said and (
        head == "fc" or f"the last layer is its {head}\n" in said
    )
    check_same(ours(dest), expected())


def test_of_two_heads_beside_the_network_none_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {f"backbone.{name}": tensor for name, tensor in headless().items()}
    heads = {f"head{i}.weight": torch.ones(i, 16) for i in (2, 3)}
    save_file(state | heads, tmp_path / "model.safetensors")
    line = refused(capsys, tmp_path / "model.safetensors", tmp_path / "ours.safetensors", "--from", "timm")
    assert "it has no last layer; give --num-classes" in line


@pytest.mark.parametrize("numbers", [(0, 1), (0, 2)])
def test_layers_before_the_network_are_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], numbers: tuple[int, int]
) -> None:
    """As of `nn.Sequential(nn.BatchNorm2d(3), net)`."""
    before, at = numbers
    state = {f"{at}.{name}": tensor for name, tensor in tensors().items()}
    save_file(state | {f"{before}.running_mean": torch.ones(3)}, tmp_path / "model.safetensors")
    line = refused(capsys, tmp_path / "model.safetensors", tmp_path / "ours.safetensors")
    assert f"in its network {before}.running_mean come before the ResNet" in line


def test_a_list_of_a_networks_layers_is_named_for_what_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = torch.nn.Sequential(*list(network_of_torchvision().children())[:-1])
    torch.save(net.state_dict(), tmp_path / "model.pth")
    line = refused(capsys, tmp_path / "model.pth", tmp_path / "ours.safetensors")
    assert "its layers have no known names, as in a list of layers; save the whole network" in line


def network_of_torchvision() -> Any:
    resnet = torchvision().models.resnet
    return resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=3)


# The last layer


def headless() -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors().items() if not name.startswith("fc.")}


@pytest.mark.parametrize("prove", [[], ["--prove"]])
def test_a_last_layer_that_is_not_there_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], prove: list[str]
) -> None:
    path, dest = tmp_path / "model.pth", tmp_path / "ours.safetensors"
    torch.save(headless(), path)
    line = refused(capsys, path, dest, "--from", "timm", *prove)
    assert "it has no last layer; give --num-classes, and a new one is drawn" in line
    said = converted(capsys, path, dest, "--from", "timm", "--num-classes", "9", *prove)
    assert "it has no last layer: a new one of 9 classes is drawn" in said
    arch, found = load_checkpoint(dest)
    assert arch.num_classes == 9
    drawn = initial_weights(arch)["last.weight"].astype(np.float32)
    np.testing.assert_array_equal(found["last.weight"], drawn)
    rest = {name: array for name, array in expected().items() if not name.startswith("last.")}
    check_same({name: found[name] for name in rest}, rest)


def test_a_last_layer_of_another_name_or_without_a_bias_is_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, path, dest = tensors(), tmp_path / "model.pth", tmp_path / "ours.safetensors"
    weight, bias = state["fc.weight"], state["fc.bias"]
    torch.save(headless() | {"fc.1.weight": weight, "fc.1.bias": bias}, path)
    said = converted(capsys, path, dest, "--from", "timm", "--prove")
    assert "the last layer is its fc.1\n" in said and "Proven" in said
    check_same(ours(dest), expected())

    torch.save(headless() | {"fc.weight": weight}, path)
    said = converted(capsys, path, dest, "--from", "timm", "--prove", "--force")
    assert "the last layer has no bias: here it has one of 0\n" in said and "Proven" in said
    check_same(ours(dest), expected() | {"last.bias": np.zeros(len(bias), np.float32)})

    torch.save(headless() | {"head.0.weight": torch.ones(8, 16), "head.2.weight": weight}, path)
    line = refused(capsys, path, dest, "--force")
    assert "it has several dense layers (head.0, head.2), and this network has one" in line


def test_what_thop_counts_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, dest = tmp_path / "model.pth", tmp_path / "ours.safetensors"
    torch.save(tensors() | {"total_ops": torch.zeros(1), "layer1.0.total_params": torch.zeros(1)}, path)
    said = converted(capsys, path, dest, "--from", "timm", "--prove")
    assert "left out: total_ops, layer1.0.total_params\n" in said and "Proven" in said


# Nothing is run


@pytest.mark.parametrize("what", ["TorchScript", "torch.export"])
@pytest.mark.filterwarnings("ignore")
def test_a_program_is_named_for_what_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    path, net, x = tmp_path / "model.pt", torch.nn.Conv2d(1, 1, 3), torch.rand(1, 1, 8, 8)
    if what == "TorchScript":
        torch.jit.trace(net, x).save(str(path))
    else:
        torch.export.save(torch.export.export(net, (x,)), path)
    line = refused(capsys, path, tmp_path / "ours.safetensors")
    assert f"is a program of {what}, which is not run; save model.state_dict()" in line


class Calls:
    """A pickle of this calls a function with arguments."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def save_pickle(content: bytes, path: Path) -> None:
    """A file as PyTorch's, in which this pickle stands."""
    torch.save({}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, content if name.endswith("data.pkl") else data)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (os.system, ("true",)),
        (eval, ("1",)),
        (getattr, (Path("x"), "name")),
        (functools.partial, (print,)),
        (subprocess.Popen, (["true"],)),
        (Path.unlink, (Path("x"),)),
        (pytest.main, ([],)),
        (torch.load, ("x",)),
    ],
)
def test_a_function_is_refused_or_never_called(
    tmp_path: Path, function: Any, arguments: tuple[Any, ...], protocol: int
) -> None:
    path = tmp_path / "model.pth"
    save_pickle(pickle.dumps({"x": Calls(function, *arguments)}, protocol), path)
    if function is torch.load or (function is subprocess.Popen and protocol < 3):  # of another name there
        assert read_tensors(path) == ({}, [])
        return
    with pytest.raises(BadInput) as error:
        read_tensors(path)
    one_line(error, str(path), "nothing in it was run")


def test_attributes_are_not_set(tmp_path: Path) -> None:
    """An opcode of pickles sets attributes of whatever it is given: here, of a class and of a function."""
    for module, name in (("torch", "Size"), ("torch._utils", "_rebuild_tensor_v2")):
        path = tmp_path / "model.pth"
        save_pickle(f"\x80\x02c{module}\n{name}\n}}X\x06\0\0\0markedK\x01sb.".encode("latin1"), path)
        with pytest.raises(BadInput):
            read_tensors(path)
    assert not hasattr(torch.Size, "marked") and not hasattr(torch._utils._rebuild_tensor_v2, "marked")


def test_keys_that_take_for_ever_to_hash_are_left_out(tmp_path: Path) -> None:
    key: Any = ()
    for _ in range(100):
        key = (key, key)
    path = tmp_path / "model.pth"
    save_pickle(b"\x80\x02}" + pickle.dumps(key, 2)[2:-1] + b"K\x01s.", path)
    start = time.monotonic()
    assert read_tensors(path) == ({}, [])
    assert time.monotonic() - start < 5


# Folders and several files


def save_shards(folder: Path, index: str, files: dict[str, dict[str, torch.Tensor]]) -> None:
    folder.mkdir()
    for name, state in files.items():
        save = save_file if name.endswith("safetensors") else torch.save
        save(state, folder / name)
    places = {key: name for name, state in files.items() for key in state}
    (folder / f"{index}{INDEX}").write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_of_several_files_is_read_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    state, (stem, suffix) = tensors(), kind.split(".")
    names = list(state)
    parts = {f"{stem}-{i + 1}-of-2.{suffix}": {n: state[n] for n in names[i::2]} for i in range(2)}
    save_shards(tmp_path / "folder", kind, parts)
    said = converted(capsys, tmp_path / "folder", tmp_path / "ours.safetensors", "--from", "timm", "--prove")
    assert "Proven" in said
    check_same(ours(tmp_path / "ours.safetensors"), expected())
    check_same(
        from_family(read_tensors(tmp_path / "folder" / f"{kind}{INDEX}")[0], "timm").tensors, expected()
    )

    (tmp_path / "folder" / next(iter(parts))).unlink()
    line = refused(capsys, tmp_path / "folder", tmp_path / "ours.safetensors", "--force")
    assert f"{next(iter(parts))} not found" in line


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("[]", "is no index of weights"),
        ('{"weight_map": {"a": 1}}', "its weight_map is not of names and files"),
        ('{"metadata": {}}', "is no index of weights"),
        ('{"weight_map": {"a": "../model.safetensors"}}', "names '../model.safetensors', which is no file"),
        ('{"weight_map": {"a": "model.safetensors.index.json"}}', "which is no file beside it"),
        ('{"weight_map": {"a": "one.safetensors"}}', "are not what it says; missing: a; extra: b"),
    ],
)
def test_an_index_that_is_wrong_is_one_line(tmp_path: Path, index: str, words: str) -> None:
    save_file({"b": torch.ones(2)}, tmp_path / "one.safetensors")
    (tmp_path / f"model.safetensors{INDEX}").write_text(index)
    with pytest.raises(BadInput) as error:
        read_tensors(tmp_path)
    one_line(error, words)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["checkpoint_1", "checkpoint_20"], "holds checkpoints of Flax (checkpoint_1, checkpoint_20); give"),
        (["_CHECKPOINT_METADATA", "params/x"], "is of an Orbax before 0.5"),
        (["README.md", "notes.txt"], "has no checkpoint that is known, but README.md, notes.txt; give a"),
        ([], "has no checkpoint that is known, but nothing; give a .safetensors"),
    ],
)
def test_a_folder_is_named_for_what_it_is(tmp_path: Path, names: list[str], words: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(BadInput) as error:
        read_tensors(tmp_path)
    one_line(error, words)


# What a config.json says


@pytest.mark.parametrize(
    ("model_args", "words"),
    [
        ({"act_layer": "gelu"}, "act_layer 'gelu'"),
        ({"global_pool": "max"}, "global_pool 'max'"),
        ({"output_stride": 8}, "output_stride 8"),
        ({"act_layer": "silu", "aa_layer": "blurpool"}, "act_layer 'silu', aa_layer 'blurpool'"),
        ({"checkpoint_path": "x.pth"}, "checkpoint_path 'x.pth'"),
        ({"pretrained": True}, "pretrained True"),
        ({"num_classes": 4, "in_chans": 2, "drop_rate": 0.1, "act_layer": "relu", "output_stride": 32}, ""),
    ],
)
def test_what_timm_was_told_is_served_or_refused_by_name(tmp_path: Path, model_args: Any, words: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"architecture": "resnet18", "model_args": model_args}))
    for place in (tmp_path, path):
        if words:
            with pytest.raises(BadInput) as error:
                read_config(place)
            one_line(error, str(path), words)
        else:
            assert read_config(place).model == {"model_name": "resnet18", **model_args}


@pytest.mark.deep
@pytest.mark.parametrize("folder", [False, True])
def test_what_a_config_says_is_what_is_proven(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: bool
) -> None:
    """Where timm can build the model itself, ours is held against that very model."""
    net = randomised(timm().create_model("resnet18", num_classes=5)).float()
    config = {"architecture": "resnet18", "num_classes": 5, "model_args": {"drop_rate": 0.1}}
    path, dest = tmp_path / "theirs" / "model.safetensors", tmp_path / "ours.safetensors"
    path.parent.mkdir()
    save_file(net.state_dict(), path)
    (path.parent / "config.json").write_text(json.dumps(config))
    source = path.parent if folder else path
    said = converted(capsys, source, dest, "--prove")
    assert "from timm\n" in said and "Proven: logits within" in said and "Taken for granted" not in said
    assert "assumed" not in metadata(dest)
    if folder:
        config["architecture"] = "resnet34"  # which it is not
        (path.parent / "config.json").write_text(json.dumps(config))
        line = refused(capsys, source, dest, "--prove", "--force")
        assert "timm cannot load" in line
        config["architecture"] = "resnet_unheard_of"
        (path.parent / "config.json").write_text(json.dumps(config))
        line = refused(capsys, source, dest, "--prove", "--force")
        assert "timm builds no 'resnet_unheard_of'" in line


def test_what_no_file_says_is_assumed_in_so_many_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, dest = tmp_path / "model.pth", tmp_path / "ours.safetensors"
    torch.save(tensors(), path)
    for options in ([], ["--prove"]):
        said = converted(capsys, path, dest, "--from", "timm", "--force", *options)
        assert "Taken for granted, because tensors do not show it: ReLU" in said
        assert metadata(dest)["assumed"].startswith("ReLU")
    assert SOURCES[BASIC][0] == "timm"


def test_what_is_in_a_file_many_times_is_walked_to_an_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deep: dict[str, Any] = {"weight": torch.ones(1)}
    for _ in range(7):
        deep = {str(i): deep for i in range(30)}
    torch.save(deep, tmp_path / "x.pth")
    begun = time.process_time()
    line = refused(capsys, tmp_path / "x.pth", tmp_path / "y.safetensors")
    assert "holds more than 131,072 names" in line and time.process_time() - begun < 10


@pytest.mark.parametrize("family", [name for name in FAMILIES if name.startswith("d2l")])
def test_a_block_that_is_called_as_a_network_is_no_network(family: str) -> None:
    arch = Architecture(((1, 8), (2, 16)), **FAMILIES[family].axes(True))
    there = to_family(arch, initial_weights(arch), family)
    assert from_family(there.tensors).family == family
