"""The ONNX file: the network of the checkpoint, by ONNX's reference evaluator and by onnxruntime."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from benchmarks.faults import random_network
from common import onnx_graph, save_checkpoint
from common.architecture import ZOO, Architecture, architecture
from common.errors import BadInput
from common.interop.onnx_file import in_float64, prove_onnx, to_onnx, write_onnx
from common.onnx_graph import EPSILON_ADDED, OPSETS, in_float32, onnx_model, with_epsilon
from common.weights import Weights
from tests.helpers import ROUNDING, SINGLE, build, built, deviation, one_line, random_batch, random_weights
from tests.interop.test_convert import convert, converted, refused

SMALL = Architecture(((1, 6), (2, 8)), in_channels=2, num_classes=3, stem_channels=4)
IN_CORE = ("resnet18", "resnext50_32x4d", "resnet50_v1")


def drawn(seed: int) -> tuple[Architecture, tuple[int, int]]:
    """A random network of up to 60 layers, on every axis, and an image's height and width."""
    generator = np.random.default_rng(seed)
    arch, (_, height, width) = random_network(generator)
    own: dict[str, Any] = {"stem_padding": str(generator.choice(["symmetric", "same"]))}
    if arch.block == "residual":
        own["shortcut_norm"] = bool(generator.integers(2))
    else:
        own["stride_on"] = str(generator.choice(["3x3", "1x1"]))
    return replace(arch, **own), (height, width)


def evaluate(model: Any, x: NDArray) -> NDArray:
    return ReferenceEvaluator(model).run(None, {"images": x})[0]


def infer(model: Any, x: NDArray) -> NDArray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"images": x.astype(np.float32)})[0]


def held(arch: Architecture, *sizes: tuple[int, int]) -> None:
    """Both programs against the oracle, at sizes that are odd and even."""
    weights = random_weights(arch)
    oracle = build("oracle", arch)
    oracle.load_weights(weights)
    model = onnx_model(arch, in_float32(arch, weights), {})
    onnx.checker.check_model(model, full_check=True)
    for height, width in sizes:
        x, _ = random_batch(arch, 2, height, width)
        right = oracle.predict(x)
        assert deviation(infer(model, x), right) <= SINGLE
        twin = in_float64(onnx.ModelProto.FromString(model.SerializeToString()), with_epsilon(arch, weights))
        assert deviation(evaluate(twin, x), right) <= ROUNDING


# The same function


@pytest.mark.parametrize("seed", range(20))
def test_random_networks_are_the_oracles(seed: int) -> None:
    arch, (height, width) = drawn(seed)
    held(arch, (height, width), (height + 1, width + 1))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in IN_CORE else pytest.mark.deep) for name in ZOO]
)
def test_the_zoo_is_the_oracles(name: str) -> None:
    held(architecture(name, in_channels=3, num_classes=7), (65, 97), (64, 96))


@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset_computes_the_same(opset: int) -> None:
    arch = replace(SMALL, padding="same", stem_padding="same", shortcut_norm=True)
    weights = random_weights(arch)
    model = onnx_model(arch, in_float32(arch, weights), {}, opset)
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == opset
    oracle = built("oracle", arch)
    oracle.load_weights(weights)
    x, _ = random_batch(arch, 2, 33, 40)
    assert deviation(infer(model, x), oracle.predict(x)) <= SINGLE
    assert (
        deviation(evaluate(in_float64(model, with_epsilon(arch, weights)), x), oracle.predict(x)) <= ROUNDING
    )


def test_the_stages_put_out_what_activations_says() -> None:
    arch, (height, width) = drawn(0)
    weights = random_weights(arch)
    oracle = build("oracle", arch)
    oracle.load_weights(weights)
    model = in_float64(onnx_model(arch, in_float32(arch, weights), {}), with_epsilon(arch, weights))
    stages = arch.stage_names()[:-1]
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.DOUBLE, None) for name in stages
    )
    x, _ = random_batch(arch, 2, height, width)
    found = dict(zip(["last", *stages], ReferenceEvaluator(model).run(None, {"images": x}), strict=True))
    for name, right in oracle.activations(x).items():
        assert deviation(found[name], right) <= ROUNDING


def test_epsilon_as_onnx_keeps_it_would_be_off() -> None:
    """Its attribute is a float32."""
    arch = replace(SMALL, epsilon=1e-3)
    weights = {
        name: array * 1e-3 if name.endswith("running_var") else array
        for name, array in random_weights(arch).items()
    }
    oracle = built("oracle", arch)
    oracle.load_weights(weights)
    x, _ = random_batch(arch, 2, 33, 40)
    model = in_float64(onnx_model(arch, in_float32(arch, weights), {}), with_epsilon(arch, weights))
    assert deviation(evaluate(model, x), oracle.predict(x)) <= ROUNDING
    as_attribute = in_float64(model, weights)
    for node in as_attribute.graph.node:
        for attribute in node.attribute:
            if attribute.name == "epsilon":
                assert attribute.f == 0
                attribute.f = arch.epsilon
    assert 100 * ROUNDING < deviation(evaluate(as_attribute, x), oracle.predict(x)) < 1e-6


# The file


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "small.onnx"
    write_onnx(path, to_onnx(SMALL, random_weights(SMALL)), {"classes": '["a", "b", "ć"]'})
    return path


def test_names_are_kept(written: Path) -> None:
    graph = onnx.load(written).graph
    assert {each.name: tuple(each.dims) for each in graph.initializer} == SMALL.parameter_shapes()
    names = [node.name for node in graph.node]
    assert names == [node.output[0] for node in graph.node] and len(set(names)) == len(names)
    assert [name for name in names if name in SMALL.stage_names()] == SMALL.stage_names()
    layers = {name.rpartition(".")[0] for name in SMALL.parameter_shapes()}
    assert layers <= set(names)
    assert "b3.0" in names and "b3.1" not in names  # where the stage ends


def test_a_variance_says_that_it_holds_epsilon(written: Path) -> None:
    weights = random_weights(SMALL)
    for each in onnx.load(written).graph.initializer:
        array = onnx.numpy_helper.to_array(each)
        assert array.dtype == np.float32
        if each.name.endswith("running_var"):
            np.testing.assert_array_equal(array, (weights[each.name] + 1e-5).astype(np.float32))
            assert each.doc_string == "The running variance, with 1e-05 added."
        else:
            np.testing.assert_array_equal(array, weights[each.name].astype(np.float32))
            assert not each.doc_string


def test_a_float16_checkpoint_is_held_exactly_and_order_in_memory_is_nothing() -> None:
    weights: Weights = {n: np.asfortranarray(a, np.float16) for n, a in random_weights(SMALL).items()}
    found = to_onnx(SMALL, weights)
    assert found.rounded == EPSILON_ADDED
    for each in onnx_model(SMALL, found.tensors, {}).graph.initializer:
        if not each.name.endswith("running_var"):
            np.testing.assert_array_equal(onnx.numpy_helper.to_array(each), weights[each.name])


def test_the_model_says_what_it_is(written: Path) -> None:
    model = onnx.load(written)
    said = {each.key: each.value for each in model.metadata_props}
    assert Architecture.from_json(said.pop("architecture")) == SMALL
    assert said == {"classes": '["a", "b", "ć"]'}
    assert model.opset_import[0].version == 17 and model.ir_version == 8


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("size", [(33, 40), (64, 47)])
def test_n_h_and_w_are_open(written: Path, count: int, size: tuple[int, int]) -> None:
    session = onnxruntime.InferenceSession(written, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["N", 2, "H", "W"]
    assert session.get_outputs()[0].shape == ["N", 3]
    x, _ = random_batch(SMALL, count, *size)
    oracle = built("oracle", SMALL)
    oracle.load_weights(random_weights(SMALL))
    (logits,) = session.run(["last"], {"images": x.astype(np.float32)})
    assert deviation(logits, oracle.predict(x)) <= SINGLE


# The command


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    path = tmp_path / "ours.safetensors"
    weights = {name: array.astype(np.float32) for name, array in random_weights(SMALL).items()}
    save_checkpoint(path, SMALL, weights, {"classes": '["a", "b", "c"]', "proof": "of the checkpoint"})
    return path


def props(path: Path) -> dict[str, str]:
    return {each.key: each.value for each in onnx.load(path).metadata_props}


def test_the_command_writes_and_proves(ours: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dest = ours.with_suffix(".onnx")
    said = converted(capsys, ours, dest, "--to", "onnx", "--opset", "13")
    assert "float32; to onnx" in said and "N, H and W are open" in said and "epsilon added" in said
    assert "Proven" not in said
    assert props(dest) == {
        "architecture": SMALL.to_json(),
        "classes": '["a", "b", "c"]',
        "rounded": EPSILON_ADDED,
    }
    assert onnx.load(dest).opset_import[0].version == 13

    said = converted(capsys, ours, dest, "--to", "onnx", "--prove", "--force")
    proof = props(dest)["proof"]
    assert f"Proven: {proof}" in said
    assert (
        "of ONNX's reference evaluator in float64, and " in proof
        and "of onnxruntime in float32; onnx " in proof
    )


def test_float64_becomes_float32_and_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, dest = tmp_path / "ours.safetensors", tmp_path / "ours.onnx"
    save_checkpoint(source, SMALL, random_weights(SMALL))
    said = converted(capsys, source, dest, "--to", "onnx", "--prove")
    assert "epsilon added, and float64 becomes float32" in said and "Proven: " in said


@pytest.mark.parametrize(
    ("dest", "options", "words"),
    [
        ("net.pb", ["--to", "onnx"], "must end in .onnx"),
        ("net.onnx", ["--to", "onnx", "--opset", "12"], "--opset must be from 13 to 28, not 12"),
        ("net.onnx", ["--to", "onnx", "--opset", "29"], "--opset must be from 13 to 28, not 29"),
        ("net.pth", ["--to", "torchvision", "--opset", "17"], "--opset is for --to onnx; leave it out"),
        ("net.safetensors", ["--opset", "17"], "--opset is for --to onnx; leave it out"),
        ("net.onnx", ["--to", "onnx", "--arch", "resnet18"], "it is not resnet18 but"),
        ("net.onnx", ["--to", "onxx"], "did you mean onnx?"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    ours: Path, capsys: pytest.CaptureFixture[str], dest: str, options: list[str], words: str
) -> None:
    assert words in refused(capsys, ours, ours.with_name(dest), *options)
    assert not ours.with_name(dest).exists()


@pytest.mark.parametrize(("package", "options"), [("onnx", []), ("onnxruntime", ["--prove"])])
def test_a_package_that_is_missing_is_one_line(
    ours: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    options: list[str],
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    dest = ours.with_suffix(".onnx")
    said = refused(capsys, ours, dest, "--to", "onnx", *options)
    assert f"import of {package} halted" in said and 'pip install "resnet-tabs[onnx]"' in said
    assert not dest.exists()


def test_without_onnxruntime_it_is_written(
    ours: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    converted(capsys, ours, ours.with_suffix(".onnx"), "--to", "onnx")


def change_epsilon(model: Any) -> None:
    node = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
    next(each for each in node.attribute if each.name == "epsilon").f = 1e-3


def change_weight(model: Any) -> None:
    (bias,) = (each for each in model.graph.initializer if each.name == "last.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.ones(3, np.float32), "last.bias"))


@pytest.mark.parametrize(
    ("change", "whose"), [(change_epsilon, "ONNX's reference evaluator"), (change_weight, "onnxruntime")]
)
def test_another_network_is_not_proven(written: Path, change: Callable[[Any], None], whose: str) -> None:
    """The file is held: its graph by one, its numbers by the other."""
    model = onnx.load(written)
    change(model)
    path = written.with_name("other.onnx")
    onnx.save(model, path)
    with pytest.raises(BadInput) as error:
        prove_onnx(path, SMALL, random_weights(SMALL))
    one_line(error, "not proven: the logits are off by", f"from those of {whose}")
    assert error.value.exit_code == 1


def test_numbers_beyond_float32_are_one_line() -> None:
    weights = random_weights(SMALL)
    weights["last.bias"] = np.array([1.0, 2.0, 1e39])
    with pytest.raises(BadInput) as error:
        to_onnx(SMALL, weights)
    one_line(error, "beyond float32", "last.bias")


def test_what_no_file_can_hold_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_graph, "MOST", 1000)
    with pytest.raises(BadInput) as error:
        to_onnx(SMALL, random_weights(SMALL))
    one_line(error, "an ONNX file holds", "the tensors are")


def test_a_folder_that_is_not_there_is_one_line(ours: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dest = ours.with_name("none") / "net.onnx"
    assert "cannot write" in refused(capsys, ours, dest, "--to", "onnx")


def test_a_refused_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        convert(tmp_path / "none.safetensors", tmp_path / "net.onnx", "--to", "onnx")
    assert stop.value.code == 2
