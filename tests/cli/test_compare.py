"""The command: what it says, where, with which exit code, and how lightly it starts."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from common import Architecture, architecture, initial_weights, save_checkpoint
from common.architecture import ZOO
from common.backend import BACKENDS, available_backends
from common.data.fashion_mnist import SAMPLE
from tests.cli.commands import run, run_here
from tests.helpers import hide

SMALL = ["--input-shape", "3,33,47", "--precision", "float64", "--steps", "1"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of checkpoints, each bad in its own way."""
    folder = tmp_path_factory.mktemp("checkpoints")
    small = Architecture(stages=((1, 4),), stem_channels=4)
    save_checkpoint(folder / "other.safetensors", small, initial_weights(small))
    whole = (folder / "other.safetensors").read_bytes()
    (folder / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "text.safetensors").write_text("not a checkpoint")
    metadata = {"architecture": small.to_json()}
    weights = {name: np.ascontiguousarray(array) for name, array in initial_weights(small).items()}
    save_file(weights, folder / "unnamed.safetensors")
    save_file(weights | {"b9.weight": np.zeros(1)}, folder / "extra.safetensors", metadata)
    save_file({"last.bias": weights["last.bias"]}, folder / "missing.safetensors", metadata)
    save_file(weights | {"last.bias": np.zeros(3)}, folder / "shape.safetensors", metadata)
    save_file(weights | {"last.bias": np.full(10, np.nan)}, folder / "nan.safetensors", metadata)
    save_checkpoint(folder / "resnet18.safetensors", arch := architecture("resnet18"), initial_weights(arch))
    return folder


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compare", "resnet81"], ["unknown architecture 'resnet81'", "did you mean resnet18?"]),
        (
            ["summary", "resnet18", "--backends", "tourch"],
            ["unknown backend 'tourch'", "did you mean torch?"],
        ),
        (["summary", "resnet18", "--depth", "layers"], ["unknown depth 'layers'", "stages or blocks"]),
        (["summary", "resnet18", "--num-classes", "0"], ["num_classes must be a whole number from 1 up"]),
        (["compare", "resnet18", "--input-shape", "96x96"], ["malformed input shape '96x96'", "1,96,96"]),
        (["compare", "resnet18", "--input-shape", "0,96,96"], ["from 1 up"]),
        (["compare", "resnet18", "--input-shape", "1,16,96"], ["too small", "17×17"]),
        (["compare", "resnet18", "--precision", "float16"], ["unknown precision 'float16'", "float64"]),
        (["compare", "resnet18", "--dtype", "float16"], ["unknown precision 'float16'"]),  # as it was called
        (["compare", "resnet18", "--device", "tpu"], ["unknown device 'tpu'", "gpu"]),
        (["compare", "resnet18", "--steps", "-1"], ["--steps must be 0 or more"]),
        (["compare", "resnet18", "--steps", "0", "--workers", "2"], ["--workers compares steps", "--steps"]),
        (
            ["compare", "resnet18", "--data", "{}"],
            ["has no train-images-idx3-ubyte.gz", "resnet-tabs download"],
        ),
        (["compare", "resnet18", "--out", "{}/file/inside"], ["cannot write to the folder"]),
        (["compare", "resnet18", "--checkpoint", "{}/no.safetensors"], ["not found"]),
        (["compare", "resnet18", "--checkpoint", "{}/truncated.safetensors"], ["not a complete safetensors"]),
        (["compare", "resnet18", "--checkpoint", "{}/text.safetensors"], ["not a complete safetensors"]),
        (["compare", "resnet18", "--checkpoint", "{}/unnamed.safetensors"], ["names no architecture"]),
        (["compare", "resnet18", "--checkpoint", "{}/other.safetensors"], ["another architecture"]),
        (["compare", "resnet18", "--checkpoint", "{}/extra.safetensors"], ["extra: b9.weight"]),
        (["compare", "resnet18", "--checkpoint", "{}/missing.safetensors"], ["missing: b1.conv.weight"]),
        (
            ["compare", "resnet18", "--checkpoint", "{}/shape.safetensors"],
            ["last.bias is (3,), expected (10,)"],
        ),
        (["compare", "resnet18", "--checkpoint", "{}/nan.safetensors"], ["NaN or infinite: last.bias"]),
        (
            ["compare", "resnet18", "--checkpoint", "{}/resnet18.safetensors", "--input-shape", "3,96,96"],
            ["3 channels but the network takes 1"],
        ),
    ],
    ids=lambda value: " ".join(value) if value[0] in ("compare", "summary") else "",
)
def test_bad_input_is_one_line_and_exit_code_2(
    checkpoints: Path, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    (checkpoints / "file").touch()
    out = [] if "--out" in arguments or arguments[0] == "summary" else ["--out", str(tmp_path / "out")]
    done = run_here(*[argument.format(checkpoints) for argument in arguments], *out)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("damage", ["truncated", "altered"])
def test_a_damaged_dataset_is_one_line_and_exit_code_2(tmp_path: Path, damage: str) -> None:
    shutil.copytree(SAMPLE, tmp_path / "data")  # whole files, but not the full set's
    if damage == "truncated":
        path = tmp_path / "data" / "t10k-images-idx3-ubyte.gz"
        path.write_bytes(path.read_bytes()[:1000])
    done = run_here("compare", "resnet18", "--data", tmp_path / "data", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert "idx" in done.stderr


@pytest.mark.deep
def test_a_missing_gpu_is_one_line_and_exit_code_2(backends: list[str], tmp_path: Path) -> None:
    named = ["--backends", backends[0], "--device", "gpu"]
    done = run_here("compare", "resnet18", *named, *SMALL, "--out", tmp_path)
    if done.returncode == 0:
        pytest.skip("there is a GPU here")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert "GPU" in done.stderr


def test_a_named_backend_that_is_missing_is_one_line_with_the_install_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from common import cli

    hide(monkeypatch, "jax")
    monkeypatch.setattr(sys, "argv", ["resnet-tabs", "compare", "resnet18", "--backends", "jax"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "'jax' is not installed; run: pip install \"resnet-tabs[jax]\"" in line


@pytest.mark.deep  # the sessions of one framework run it too
def test_a_backend_that_is_missing_is_a_row_and_no_pass(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, backends: list[str]
) -> None:
    from common import cli

    for name in BACKENDS:
        if name != backends[0]:
            hide(monkeypatch, name)
    monkeypatch.setitem(ZOO, "two blocks", {"stages": ((1, 4), (1, 8))})
    out = ["--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["resnet-tabs", "compare", "two blocks", *SMALL, *out])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    shown = " ".join(capsys.readouterr().out.split())
    for name in BACKENDS:
        assert (f'pip install "resnet-tabs[{name}]"' in shown) == (name != backends[0])
    assert "NOT PROVEN" in shown
    assert json.loads((tmp_path / "results.json").read_text())["proven"] is False


@pytest.mark.parametrize(
    "two", [False, pytest.param(True, id="two in a process of its own", marks=pytest.mark.deep)]
)
def test_compare_proves_backends_the_same(backends: list[str], tmp_path: Path, small: str, two: bool) -> None:
    """Some of them; CI runs the command with all."""
    backends = backends[: 1 + two]
    compared = ["compare", "resnet18" if two else small, "--backends", ",".join(backends)]
    done = (run if two else run_here)(*compared, *SMALL, "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "\nSAME: " in done.stdout
    assert " in float64: " in done.stdout and " in float32: " not in done.stdout  # which was not asked for
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["proven"] is True
    assert results["input_shape"] == [8, 3, 33, 47]
    for by_backend in results["deviations"]["float64"].values():
        assert set(by_backend) == set(backends)
        assert max(by_backend.values()) < 1e-10
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "results.json"]


@pytest.mark.deep
@pytest.mark.xdist_group("deep networks")  # one at a time: each takes gigabytes
@pytest.mark.parametrize(("name", "shape"), [("resnet50", "1,67,53"), ("resnext50_32x4d", "3,64,64")])
def test_deep_networks_are_proven_the_same(
    backends: list[str], tmp_path: Path, name: str, shape: str
) -> None:
    """In two backends, which add in different orders, though rounding carries further than in ResNet-18."""
    two = [name for name in ("torch", "tf") if name in backends] or backends
    chosen = ["--backends", ",".join(two), "--precision", "float64", "--steps", "10"]
    options = ["--input-shape", shape, *chosen]
    done = run("compare", name, *options, "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["horizon"]["gradients"] > 1e-13
    assert (results["steps_start_asleep"], results["steps_claimed"]) == (True, 10)


def test_compare_starts_from_a_checkpoint(tmp_path: Path, small: str) -> None:
    file = tmp_path / "small.safetensors"
    save_checkpoint(file, arch := architecture(small), initial_weights(arch))
    options = ["--input-shape", "1,32,32", "--precision", "float64", "--steps", "0", "--out", tmp_path]
    done = run_here("compare", small, "--checkpoint", file, "--backends", "oracle", *options)
    assert done.returncode == 1, done.stderr  # nothing to compare the oracle with is no proof
    assert "NOT PROVEN" in done.stdout


@pytest.mark.deep
def test_summary_shows_every_backend_under_test(backends: list[str]) -> None:
    done = run_here("summary", "resnet18", "--backends", ",".join(["oracle", *backends]))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    total = re.search(r"parameters((?:\s+11,178,378)+)\s+yes", done.stdout)
    assert total is not None, done.stdout
    assert total.group(1).count("11,178,378") == len(backends) + 1


def test_summary_shows_blocks_with_what_they_cost() -> None:
    options = ["--depth", "blocks", "--input-shape", "3,64,64", "--num-classes", "1000"]
    done = run("summary", "resnet50", *options, "--backends", "oracle")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["b3.0", "ResNeXtBlock", "512×8×8", "380,672", "30,408,704"] in lines
    assert ["last", "classifier", "1000", "2,049,000", "2,048,000"] in lines
    assert len([line for line in lines if line[1:2] == ["ResNeXtBlock"]]) == 16


@pytest.mark.parametrize("arguments", [["--help"], ["summary", "resnet18", "--backends", "oracle"]])
def test_no_framework_is_imported_where_none_is_needed(arguments: list[str]) -> None:
    script = (
        "import sys; from common import cli\n"
        f"sys.argv = ['resnet-tabs', *{arguments!r}]\n"
        "try: cli.main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "names = {'torch', 'tensorflow', 'keras', 'jax', 'flax', 'mxnet', 'matplotlib'}\n"
        "sys.exit(','.join(names & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_available_backends_are_those_under_test_at_least(backends: list[str]) -> None:
    assert set(backends) <= set(available_backends())
