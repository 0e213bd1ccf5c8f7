"""Conversion: the same function in every backend, the same bits there and back, and bad input refused."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file
from safetensors.torch import save_file

from common import cli, load_checkpoint, save_checkpoint
from common.architecture import CONVENTIONS, Architecture, architecture
from common.errors import BadInput
from common.interop.convert import UNSEEN, from_family, to_family
from common.interop.families import FAMILIES
from common.interop.files import read_tensors
from common.weights import SUMS, Weights
from tests.helpers import (
    ROUNDING,
    built,
    deviation,
    hide,
    one_line,
    random_batch,
    random_weights,
    worst_gradient,
)
from tests.interop.families import (
    logits,
    named_as_theirs,
    randomised,
    state,
    timm,
    torchvision,
    training,
    transformers,
)

TRAINING = 1e-11  # training logits and gradients of a converted network


def bottleneck_50(**options: Any) -> Any:
    """torchvision's ResNet-50 with one block a stage."""
    resnet = torchvision().models.resnet
    return resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1], **options)


def timm_resnet(block: str, **options: Any) -> Any:
    resnet = timm().models.resnet
    return resnet.ResNet(getattr(resnet, block), **options)


# Family, model, and the architecture it should be seen as; small, but for one as wide as published.
SOURCES: dict[str, tuple[str, Callable[[], Any], Architecture]] = {
    "torchvision basic": (
        "torchvision",
        lambda: torchvision().models.resnet18(num_classes=7),
        architecture("resnet18_v1", in_channels=3, num_classes=7),
    ),
    "torchvision grouped": (
        "torchvision",
        lambda: bottleneck_50(groups=8, width_per_group=4, num_classes=5),
        Architecture(
            stages=((1, 256), (1, 512), (1, 1024), (1, 2048)),
            block="resnext",
            groups=(4, 8, 16, 32),
            bot_mul=0.125,
            in_channels=3,
            num_classes=5,
        ),
    ),
    "timm basic": (
        "timm",
        lambda: timm_resnet(
            "BasicBlock",
            layers=(1, 2, 1, 1),
            channels=(8, 8, 12, 16),
            in_chans=2,
            num_classes=4,
        ),
        Architecture(((1, 8), (2, 8), (1, 12), (1, 16)), in_channels=2, num_classes=4, shortcut_norm=True),
    ),
    "timm grouped": (
        "timm",
        lambda: timm_resnet(
            "Bottleneck",
            layers=(2, 1, 1, 2),
            channels=(4, 8, 12, 16),
            cardinality=2,
            base_width=32,
            in_chans=1,
        ),
        Architecture(
            ((2, 16), (1, 32), (1, 48), (2, 64)),
            block="resnext",
            groups=(2, 4, 6, 8),
            bot_mul=0.25,
            in_channels=1,
            num_classes=1000,
        ),
    ),
    "transformers basic": (
        "transformers",
        lambda: transformers(
            layer_type="basic", depths=[1, 2], hidden_sizes=[8, 12], embedding_size=4, num_labels=6
        ),
        Architecture(((1, 8), (2, 12)), in_channels=3, num_classes=6, stem_channels=4, shortcut_norm=True),
    ),
    "transformers bottleneck": (
        "transformers",
        lambda: transformers(
            depths=[1, 2, 1], hidden_sizes=[16, 24, 16], embedding_size=8, num_labels=3, num_channels=4
        ),
        Architecture(
            ((1, 16), (2, 24), (1, 16)),
            block="resnext",
            groups=(4, 6, 4),
            bot_mul=0.25,
            in_channels=4,
            num_classes=3,
            stem_channels=8,
        ),
    ),
}
sources = pytest.mark.parametrize("source", SOURCES)


@cache
def model_of(source: str) -> Any:
    """The source model, with random weights and statistics."""
    return randomised(SOURCES[source][1]())


# The same function


@sources
def test_the_architecture_is_read_off_the_tensors(source: str) -> None:
    family, _, arch = SOURCES[source]
    found = from_family(state(model_of(source)), family)
    assert found.arch == arch and found.family == family
    shapes = [(name, array.shape) for name, array in found.tensors.items()]
    assert shapes == list(arch.parameter_shapes().items())
    assert not found.inference_only and not found.rounded


@sources
def test_the_family_is_told_from_the_names(source: str) -> None:
    family = SOURCES[source][0]
    found = from_family(state(model_of(source)))
    assert found.family == ("transformers" if family == "transformers" else "torchvision")
    assert found.others == (() if family == "transformers" else ("timm",))


def test_where_two_families_fit_the_options_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, dest = tmp_path / "model.safetensors", tmp_path / "ours.safetensors"
    save_file(tensors_of("timm basic"), path)
    said = converted(capsys, path, dest)
    assert "from torchvision\nnamed as torchvision and timm name; --from timm says it is theirs\n" in said
    assert "name;" not in converted(capsys, path, dest, "--from", "timm", "--force")


# Their own libraries are PyTorch's. What is converted is an architecture of ours, and the same in all four by
# tests of its own: one source shows it.
in_torch = pytest.mark.core_in("torch")
SHOWN = "timm grouped"


@pytest.mark.parametrize(
    ("source", "height", "width"),
    [
        *(pytest.param(name, 97, 131, marks=[] if name == SHOWN else in_torch) for name in SOURCES),
        pytest.param("torchvision basic", 224, 224, marks=pytest.mark.deep),
    ],
)
def test_logits_are_those_of_the_source(
    backend: str, device: str, source: str, height: int, width: int
) -> None:
    source_model = model_of(source)
    found = from_family(state(source_model))
    x, _ = random_batch(found.arch, 2, height, width)
    expected = logits(source_model, x)
    for name in (backend, "oracle"):
        model = built(name, found.arch, "float64", device if name != "oracle" else "cpu")
        model.load_weights(found.tensors)
        assert deviation(model.predict(x), expected) <= ROUNDING


@in_torch
@pytest.mark.parametrize(
    "source", ["timm basic", "timm grouped", "transformers basic", "transformers bottleneck"]
)
def test_a_network_trains_as_the_source_does(backend: str, device: str, source: str) -> None:
    source_model = randomised(SOURCES[source][1]())
    found = from_family(state(source_model))
    x, y = random_batch(found.arch, 3, 65, 47)
    expected = training(source_model, x, y)
    model = built(backend, found.arch, "float64", device)
    model.load_weights(found.tensors)
    evaluation = model.loss_and_gradients(x, y)
    gradients = named_as_theirs(found, evaluation.gradients)
    theirs = {name: expected.gradients[name] for name in gradients}
    assert len(theirs) == len(expected.gradients)
    assert deviation(evaluation.logits, expected.logits) <= TRAINING
    assert deviation(evaluation.loss, expected.loss) <= TRAINING
    assert deviation(gradients, theirs) <= TRAINING
    assert worst_gradient(gradients, theirs) <= TRAINING


# There and back


def same_bits(a: dict[str, NDArray], b: dict[str, NDArray]) -> None:
    assert set(a) == set(b)
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert a[name].tobytes() == b[name].tobytes(), name


def without_counters(tensors: dict[str, NDArray]) -> dict[str, NDArray]:
    return {name: array for name, array in tensors.items() if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@sources
def test_the_way_back_is_exact(source: str, dtype: str) -> None:
    tensors = {name: array.astype(dtype) for name, array in without_counters(state(model_of(source))).items()}
    there = from_family(tensors)
    back = to_family(there.arch, there.tensors, there.family)
    assert back.inference_only == back.rounded == ""
    same_bits(back.tensors, tensors)


def trained(arch: Architecture) -> Weights:
    """Weights as training leaves them: no bias is 0, and variances are positive."""
    weights = random_weights(arch)
    return {name: abs(array) if name.endswith("running_var") else array for name, array in weights.items()}


@pytest.mark.parametrize("shortcut_norm", [True, False])
@pytest.mark.parametrize("source", ["torchvision basic", "transformers basic", "transformers bottleneck"])
def test_weights_trained_here_run_there(source: str, shortcut_norm: bool) -> None:
    """Biases move into running means, and the shortcuts of the chapter's `Residual` get an identity."""
    family, make, arch = SOURCES[source]
    arch = replace(arch, shortcut_norm=shortcut_norm and arch.block == "residual")
    lacks_norm = arch.block == "residual" and not shortcut_norm
    weights = trained(arch)
    found = to_family(arch, weights, family)
    assert found.rounded and bool(found.inference_only) == lacks_norm
    model = make().double()
    model.load_state_dict({name: torch.from_numpy(array) for name, array in found.tensors.items()})
    x, y = random_batch(arch, 2, 65, 50)
    oracle = built("oracle", arch)
    oracle.load_weights(weights)
    assert deviation(logits(model, x), oracle.predict(x)) <= ROUNDING
    if not lacks_norm:  # in training, too, running means included
        evaluation = oracle.loss_and_gradients(x, y)
        model.train()
        output = model(torch.from_numpy(x))
        assert deviation(getattr(output, "logits", output).detach().numpy(), evaluation.logits) <= TRAINING
        after = to_family(arch, weights | evaluation.running, family).tensors
        for name, array in state(model).items():
            if name.endswith("running_mean"):
                assert deviation(array, after[name]) <= TRAINING


@st.composite
def networks(draw: st.DrawFn) -> Architecture:
    """Anything that can be written down, with few channels."""
    block = draw(st.sampled_from(["residual", "resnext"]))
    options: dict[str, Any] = {"shortcut_norm": draw(st.booleans())}
    channels = draw(st.lists(st.integers(1, 12), min_size=1, max_size=6))
    if block == "resnext":
        bot_mul = draw(st.floats(0.05, 3.0) | st.sampled_from([0.25, 0.5, 1.0, 2.0]))
        channels = [max(count, int(0.51 / bot_mul) + 1) for count in channels]
        bottlenecks = [int(round(count * bot_mul)) for count in channels]
        groups = [
            draw(st.sampled_from([width for width in range(1, bot + 1) if bot % width == 0]))
            for bot in bottlenecks
        ]
        options = {"block": block, "bot_mul": bot_mul, "groups": tuple(groups)}
    return Architecture(
        tuple((draw(st.integers(1, 3)), count) for count in channels),
        in_channels=draw(st.integers(1, 5)),
        num_classes=draw(st.integers(1, 12)),
        stem_channels=draw(st.integers(1, 9)),
        **options,
    )


def as_computed_by(family: str, arch: Architecture) -> Architecture:
    """The network with the axes of the family."""
    axes = FAMILIES[family].axes(arch.block == "residual")
    return replace(arch, **{"shortcut_norm": False} | axes)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(
    arch=networks(),
    family=st.sampled_from(list(FAMILIES)),
    dtype=st.sampled_from(["float16", "float32", "float64"]),
)
def test_any_architecture_that_can_be_written_down_goes_there_and_back(
    arch: Architecture, family: str, dtype: str
) -> None:
    arch = as_computed_by(family, arch)
    weights = {name: array.astype(dtype) for name, array in trained(arch).items()}
    try:
        there = to_family(arch, weights, family)
    except BadInput as error:
        assert "bottlenecks" in str(error), error
        return
    assert not there.inference_only
    back = from_family(there.tensors, family)
    assert back.arch.parameter_shapes() == arch.parameter_shapes()
    assert back.arch.stages == arch.stages and back.arch.groups == arch.groups
    assert all(getattr(back.arch, name) == getattr(arch, name) for name in CONVENTIONS)
    kept = FAMILIES[family].names(arch)
    for name, array in back.tensors.items():  # a bias they lack is in the running mean after it
        if name not in kept:
            assert not array.any()
        elif not name.endswith("running_mean"):
            assert array.tobytes() == weights[name].tobytes(), name
    again = to_family(back.arch, back.tensors, family)
    same_bits(again.tensors, there.tensors)
    assert not again.rounded


# The command


def convert(*arguments: object) -> None:
    """Run the command in this process; `SystemExit` carries its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["resnet-tabs", "convert", *map(str, arguments)])
        cli.main()


def converted(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Standard output of the command, which succeeds."""
    with pytest.raises(SystemExit) as stop:
        convert(*arguments)
    done = capsys.readouterr()
    assert (stop.value.code or 0, done.err) == (0, "")
    return done.out


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The line the command ends with, and exit code 2."""
    with pytest.raises(SystemExit) as stop:
        convert(*arguments)
    done = capsys.readouterr()
    assert stop.value.code == 2 and done.out == ""
    assert done.err.count("\n") == 1, done.err
    return done.err


def metadata(path: Path) -> dict[str, str]:
    """What a file says of itself, its sums aside."""
    with safe_open(path, framework="numpy") as file:
        return {name: text for name, text in file.metadata().items() if name not in SUMS}


BOTTLENECK, BASIC = "transformers bottleneck", "transformers basic"


def tensors_of(source: str) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array).float() for name, array in state(model_of(source)).items()}


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "pt", "bin"])
def test_the_command_converts_every_kind_of_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    path, dest = tmp_path / f"model.{suffix}", tmp_path / "ours.safetensors"
    tensors = tensors_of(BOTTLENECK)
    if suffix == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    said = converted(capsys, path, dest)
    assert "ResNeXtBlock in stages of 1 × 16, 2 × 24, 1 × 16 channels, groups of width 4, 6, 4" in said
    assert "4 input channels, 3 classes; float32; from transformers" in said
    assert "bit for bit" in said and "INFERENCE" not in said
    arch, _ = load_checkpoint(dest)
    assert arch == SOURCES[BOTTLENECK][2]
    assert metadata(dest) == {"architecture": arch.to_json(), "source": "transformers", "assumed": UNSEEN}

    said = converted(capsys, dest, tmp_path / "back.safetensors", "--to", "transformers")
    assert "bit for bit" in said
    same_bits(
        load_file(tmp_path / "back.safetensors"),
        without_counters({name: tensor.numpy() for name, tensor in tensors.items()}),
    )
    assert metadata(tmp_path / "back.safetensors") == {"format": "pt"}
    assert len(list(tmp_path.iterdir())) == 3


def test_what_holds_for_inference_only_is_said_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    arch = replace(SOURCES[BASIC][2], shortcut_norm=False)
    save_checkpoint(ours, arch, trained(arch))
    said = converted(capsys, ours, theirs, "--to", "torchvision")
    assert "FOR INFERENCE ONLY: the shortcuts' batch norms are identities" in said
    assert "bit for bit" not in said
    assert metadata(theirs)["inference_only"].startswith("the shortcuts' batch norms are identities")


@pytest.mark.parametrize("axes", [{"epsilon": 1e-3}, {"padding": "same"}, {"decay": 0.99}])
def test_what_a_family_does_not_compute_is_refused_in_one_line(axes: dict[str, Any]) -> None:
    arch = replace(SOURCES[BASIC][2], **axes)
    with pytest.raises(BadInput) as error:
        to_family(arch, trained(arch), "torchvision")
    (name, value), *_ = axes.items()
    one_line(error, "torchvision computes with", f"and this network with {name} {value}")


def test_biases_that_move_are_said_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arch = SOURCES[BOTTLENECK][2]
    save_checkpoint(tmp_path / "ours.safetensors", arch, trained(arch))
    dest = tmp_path / "theirs.safetensors"
    said = converted(capsys, tmp_path / "ours.safetensors", dest, "--to", "torchvision")
    assert "subtracted from the running means" in said and "bit for bit" not in said
    assert "subtracted from the running means" in metadata(dest)["rounded"]


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_bfloat16_becomes_float32_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    tensors = {
        name: tensor.bfloat16() if "conv" in name else tensor
        for name, tensor in tensors_of(BOTTLENECK).items()
    }
    path = tmp_path / f"model.{suffix}"
    save_file(tensors, path) if suffix == "safetensors" else torch.save(tensors, path)
    said = converted(capsys, path, tmp_path / "ours.safetensors")
    assert "bfloat16 is now float32, which holds it exactly" in said and "; float32; from" in said
    _, weights = load_checkpoint(tmp_path / "ours.safetensors")
    name = "resnet.embedder.embedder.convolution.weight"
    np.testing.assert_array_equal(weights["b1.conv.weight"], tensors[name].float().numpy())


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_state_dict_in_the_checkpoint_of_a_training_run_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    tensors = {f"module.{name}": tensor for name, tensor in tensors_of(BOTTLENECK).items()}
    torch.save({key: tensors, "epoch": 3}, tmp_path / "model.pth")
    assert "from transformers" in converted(capsys, tmp_path / "model.pth", tmp_path / "ours.safetensors")


def test_force_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, dest = tmp_path / "model.safetensors", tmp_path / "ours.safetensors"
    save_file(tensors_of(BOTTLENECK), path)
    dest.write_text("something dear")
    assert f"{dest} exists; choose another name, or give --force" in refused(capsys, path, dest)
    assert dest.read_text() == "something dear"
    converted(capsys, path, dest, "--force")
    assert load_checkpoint(dest)[0] == SOURCES[BOTTLENECK][2]


# Bad input


class Code:
    """A pickle of this makes a file when it is loaded without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("how", ["inside torch.save", "a bare pickle", "beside the tensors"])
def test_a_pickle_that_holds_code_is_refused_and_never_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    path, trace = tmp_path / "model.pth", tmp_path / "trace"
    content: Any = Code(trace)
    if how == "a bare pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save({**tensors_of(BOTTLENECK), "x": content} if how != "inside torch.save" else content, path)
    line = refused(capsys, path, tmp_path / "ours.safetensors")
    assert f"{path} is refused, and nothing in it was run" in line and "system" in line
    assert [file.name for file in tmp_path.iterdir()] == ["model.pth"]
    if how == "inside torch.save":
        torch.load(path, weights_only=False)
        assert trace.exists(), "the pickle would have done nothing anyway"


Change = Callable[[dict[str, Any]], dict[str, Any]]


def without(name: str) -> Change:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def with_tensor(
    name: str, change: Callable[[torch.Tensor], Any]
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tensors: tensors | {name: change(tensors[name])}


FC, STEM = "classifier.1.weight", "resnet.embedder.embedder.convolution.weight"
DEEP = "resnet.encoder.stages.1.layers.1.layer.1.convolution.weight"

BAD_TENSORS: dict[str, tuple[Change, list[str]]] = {
    "VGG": (
        lambda _: {"features.0.weight": torch.zeros(3), "classifier.0.weight": torch.zeros(3)},
        ["it is no ResNet of torchvision, timm, transformers", "; it holds", "features.0.weight"],
    ),
    "ViT": (lambda _: {"cls_token": torch.zeros(3), "head.bias": torch.zeros(3)}, ["it holds cls_token"]),
    "a Gluon network by its symbols": (
        lambda _: {f"resnetv10_stage{i}_conv0_weight": torch.zeros(3, 3, 3, 3) for i in range(1, 5)},
        ["its names are those of Gluon's export; save it with net.save_parameters"],
    ),
    "no tensors": (lambda _: {}, ["it holds no tensors"]),
    "one missing": (without(DEEP), [f"missing: {DEEP}"]),
    "no classifier": (without(FC), ["it has no last layer; give --num-classes"]),
    "no blocks": (
        lambda tensors: {name: tensor for name, tensor in tensors.items() if "stages" not in name},
        ["missing: resnet.encoder.stages.0.layers.0.layer.0.convolution.weight"],
    ),
    "a stage missing": (
        lambda tensors: {name: tensor for name, tensor in tensors.items() if "stages.1" not in name},
        ["extra: resnet.encoder.stages.2.layers.0"],
    ),
    "one extra": (lambda tensors: tensors | {"se.fc1.weight": torch.zeros(3)}, ["extra: se.fc1.weight"]),
    "wrong shape": (with_tensor(DEEP, lambda t: t[:, :2]), [f"wrong shape: {DEEP} is (6, 2, 3, 3)"]),
    "a flat stem": (with_tensor(STEM, torch.flatten), [f"{STEM} is (1568,)", "expected 4 dimensions"]),
    "a small stem": (
        with_tensor(STEM, lambda t: t[..., 2:5, 2:5]),
        ["(8, 4, 3, 3), expected (8, 4, 7, 7)"],
    ),
    "not a number": (with_tensor(FC, lambda t: t * torch.nan), [f"NaN or infinite: {FC}"]),
    "integers": (with_tensor(FC, lambda t: t.to(torch.int8)), [f"float64: {FC} (int8)"]),
    "eight bits": (with_tensor(FC, lambda t: t.to(torch.float8_e4m3fn)), [FC, "8", "float64"]),
    "ours": (
        lambda _: {name: torch.from_numpy(w) for name, w in random_weights(SOURCES[BOTTLENECK][2]).items()},
        ["one of this project already; give --to"],
    ),
    "bottlenecks of no one share": (
        lambda tensors: {
            name: torch.cat([tensor, tensor], 1)[:, : tensor.shape[1] * 2]
            if name == "resnet.encoder.stages.0.layers.0.layer.2.convolution.weight"
            else tensor.repeat(2, *[1] * (tensor.dim() - 1))
            if "stages.0.layers.0.layer.1" in name and tensor.dim()
            else tensor
            for name, tensor in tensors.items()
        },
        ["bottlenecks of [8, 6, 4] channels in stages of [16, 24, 16]", "one bot_mul"],
    ),
}


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("case", BAD_TENSORS)
def test_a_checkpoint_of_something_else_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str, suffix: str
) -> None:
    change, words = BAD_TENSORS[case]
    tensors, path = change(tensors_of(BOTTLENECK)), tmp_path / f"model.{suffix}"
    if suffix == "safetensors":
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    else:
        torch.save(tensors, path)
    line = refused(capsys, path, tmp_path / "ours.safetensors")
    assert str(path) in line
    for word in words:
        assert word in line
    assert list(tmp_path.iterdir()) == [path]


def quantised(path: Path) -> None:
    torch.save({FC: torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8)}, path)


def member_twice(path: Path) -> None:
    torch.save({FC: torch.ones(3, 3)}, path)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr(archive.namelist()[0], b"")


def cut(path: Path) -> None:
    torch.save(tensors_of(BOTTLENECK), path)
    path.write_bytes(path.read_bytes()[:-4000])


BAD_PICKLES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda path: path.touch(), "not a complete PyTorch file"),
    "a web page": (
        lambda path: path.write_text("<html>404 not found</html>"),
        "is a web page, not the checkpoint",
    ),
    "a pointer": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n"),
        "is a pointer of Git LFS, not the checkpoint",
    ),
    "cut": (cut, "not a complete PyTorch file"),
    "a tensor": (lambda path: torch.save(torch.ones(3), path), "holds Tensor, not a state dict"),
    "a number": (lambda path: torch.save({"epoch": 3}, path), "it holds no tensors"),
    "a view of one number": (
        lambda path: torch.save({FC: torch.ones(1).expand(10**5, 10**5)}, path),
        "a view larger than the file",
    ),
    "a member twice": (member_twice, "is there twice"),
    "a tensor without a name": (lambda path: torch.save({3: torch.ones(3)}, path), "it holds 3"),
    "a whole model": (
        lambda path: torch.save(model_of(BASIC), path),
        "ResNetForImageClassification, not a state dict",
    ),
    "quantised": (quantised, f"{FC} (torch.qint8"),
    "sparse": (
        lambda path: torch.save({FC: torch.eye(3).to_sparse()}, path),
        "torch.sparse_coo",
    ),
}


@settings(max_examples=50, derandomize=True, deadline=None)
@given(data=st.data(), zipped=st.booleans())
def test_a_damaged_pickle_is_one_line_wherever_the_damage_is(data: st.DataObject, zipped: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pth"
        torch.save({FC: torch.ones(3, 4)}, path, _use_new_zipfile_serialization=zipped)
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 5))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content)
        try:
            read_tensors(path)
        except BadInput as error:
            assert str(path) in str(error) and "\n" not in str(error)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("case", BAD_PICKLES)
def test_a_bad_pickle_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    make, words = BAD_PICKLES[case]
    path = tmp_path / "model.pth"
    make(path)
    capsys.readouterr()
    line = refused(capsys, path, tmp_path / "ours.safetensors")
    assert str(path) in line and words in line
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--from", "caffe"], "unknown family 'caffe'; known: auto, torchvision, timm, transformers"),
        (["--from", "keras"], "it is not named as keras names; give --from transformers"),
        (["--from", "torchvision"], "it is not named as torchvision names; give --from transformers"),
        (["--to", "timm"], "names no architecture"),
        (["--from", "timm", "--to", "torchvision"], "give --from or --to, not both"),
        (["--arch", "resnet50"], "it is not resnet50 but ResNeXtBlock in stages of 1 × 16"),
        (["--arch", "resnet81"], "unknown architecture 'resnet81'"),
        (["--num-classes", "1000"], "it has 3 classes, not 1000"),
        (["--in-channels", "3"], "it has 4 input channels, not 3"),
    ],
    ids=" ".join,
)
def test_options_that_do_not_fit_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    path = tmp_path / "model.safetensors"
    save_file(tensors_of(BOTTLENECK), path)
    assert words in refused(capsys, path, tmp_path / "ours.safetensors", *options)
    assert list(tmp_path.iterdir()) == [path]


def test_options_that_fit_are_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(tensors_of("torchvision basic"), tmp_path / "model.safetensors")
    for name in ("resnet18", "resnet18_v1"):  # what the family and what the zoo calls it
        options = ["--from", "timm", "--arch", name, "--num-classes", "7", "--in-channels", "3", "--force"]
        said = converted(capsys, tmp_path / "model.safetensors", tmp_path / "ours.safetensors", *options)
        assert "resnet18_v1; 3 input channels, 7 classes; float32; from timm" in said


@pytest.mark.parametrize(
    ("source", "dest", "words"),
    [
        ("no.pth", "ours.safetensors", "no.pth not found"),
        ("no.safetensors", "ours.safetensors", "no.safetensors not found"),
        ("model.h5", "ours.safetensors", "give a .h5, .weights.h5 or .keras file"),
        ("model.onnx", "ours.safetensors", "of no known kind; give a .safetensors, .pth, .pt, .bin, .h5"),
        ("model.safetensors", "ours.pth", "must end in .safetensors"),
        ("model.safetensors", "no/ours.safetensors", "cannot write"),
        ("text.safetensors", "ours.safetensors", "not a complete safetensors file"),
    ],
)
def test_files_that_are_not_there_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, dest: str, words: str
) -> None:
    save_file(tensors_of(BOTTLENECK), tmp_path / "model.safetensors")
    (tmp_path / "model.h5").touch()
    (tmp_path / "model.onnx").touch()
    (tmp_path / "text.safetensors").write_text("not a checkpoint")
    before = sorted(tmp_path.iterdir())
    assert words in refused(capsys, tmp_path / source, tmp_path / dest)
    assert sorted(tmp_path.iterdir()) == before


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    """Files may grow to 20 KiB here: the write fails half-way, as on a disk that is full."""
    save_file(tensors_of(BOTTLENECK), tmp_path / "model.safetensors")
    command = [sys.executable, "-m", "common.cli", "convert", "model.safetensors", "ours.safetensors"]
    limited = ["bash", "-c", 'ulimit -f 20 && exec "$@"', "-", *command]
    done = subprocess.run(limited, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert "cannot write" in done.stderr and "choose another place" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "resnet", "hidden_act": "gelu"}, "config.json says hidden_act 'gelu'"),
        ({"model_type": "resnet", "downsample_in_first_stage": True}, "downsample_in_first_stage True"),
        ({"model_type": "resnet", "hidden_act": "relu", "downsample_in_bottleneck": False}, ""),
    ],
)
def test_what_tensors_do_not_show_is_read_in_the_config_beside_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: Any, words: str
) -> None:
    save_file(tensors_of(BOTTLENECK), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    arguments = (tmp_path / "model.safetensors", tmp_path / "ours.safetensors")
    if words:
        assert words in refused(capsys, *arguments)
    else:
        assert "beside it is not used" not in converted(capsys, *arguments)


# What lies beside a file and is of something else.
OTHERS: dict[str, tuple[Any, str]] = {
    "no object": ([1], "config.json beside it is not used: "),
    "a ViT's": ({"model_type": "vit", "hidden_act": "gelu"}, "its model_type is 'vit', not resnet"),
    "one's own": ({"model_args": "--lr 0.1"}, "its model_type is None, not resnet"),
    "timm's": ({"architecture": "resnet18", "num_features": 512}, "it is of timm, and the tensors are of"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_config_of_something_else_is_not_believed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    config, words = OTHERS[case]
    save_file(tensors_of(BOTTLENECK), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text('{"size": 32}')
    said = converted(capsys, tmp_path / "model.safetensors", tmp_path / "ours.safetensors")
    assert words in said and "images: arrays" in said  # of 4 channels
    assert "Taken for granted" in said and "classes" not in metadata(tmp_path / "ours.safetensors")


def test_a_network_transformers_does_not_have_is_refused() -> None:
    arch = SOURCES["timm grouped"][2]
    with pytest.raises(BadInput) as error:
        to_family(arch, random_weights(arch), "transformers")
    one_line(error, "transformers has bottlenecks of one group and a quarter of the channels only")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("caffe", "unknown family to convert to 'caffe'; known: torchvision, timm"),
        ("keras", "keras has bottlenecks only"),
        ("d2l-torch", "d2l-torch has no batch norm on the shortcuts, and this network has"),
    ],
)
def test_a_family_without_such_a_network_is_refused(name: str, words: str) -> None:
    arch = SOURCES[BASIC][2]
    with pytest.raises(BadInput) as error:
        to_family(arch, random_weights(arch), name)
    one_line(error, words)


def test_without_pytorch_a_pickle_says_what_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hide(monkeypatch, "torch")
    (tmp_path / "model.pth").touch()
    line = refused(capsys, tmp_path / "model.pth", tmp_path / "ours.safetensors")
    assert "model.pth takes PyTorch to read, or save it as .safetensors" in line
    assert "pip install" in line


def test_no_framework_is_imported_for_a_safetensors_file(tmp_path: Path) -> None:
    save_file(tensors_of(BOTTLENECK), tmp_path / "model.safetensors")
    script = (
        "import sys; from common import cli\n"
        f"sys.argv = ['resnet-tabs', 'convert', {str(tmp_path / 'model.safetensors')!r}, "
        f"{str(tmp_path / 'ours.safetensors')!r}]\n"
        "try: cli.main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "sys.exit(','.join({'torch', 'tensorflow', 'keras', 'jax', 'mxnet'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
