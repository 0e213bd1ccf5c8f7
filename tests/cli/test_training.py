"""The commands train, evaluate and predict in every backend, end to end."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common import load_checkpoint
from common.backend import BACKENDS
from common.data import CLASSES, sample
from common.training.runs import read_history
from common.weights import Weights
from tests.cli.commands import SHORT, command, run, run_here, succeed, succeed_here, wait_for

pytestmark = pytest.mark.usefixtures("no_full_set")


@pytest.mark.parametrize(
    "succeeds",
    [
        pytest.param(succeed_here, id="here"),
        pytest.param(succeed, id="in a process of its own", marks=pytest.mark.deep),
    ],
)
def test_train_evaluate_and_predict_end_to_end(
    backend: str, device: str, tmp_path: Path, small: str, succeeds: Callable[..., str]
) -> None:
    out = tmp_path / "run"
    # Here some frameworks compile the network of each command for seconds.
    arch = small if succeeds is succeed_here else "resnet18"
    said = succeeds("train", arch, "--backend", backend, *SHORT, "--device", device, "--out", out)
    assert "24 training and 16 validation images at 28×28" in said
    (line,) = re.findall(r"^epoch 1/1 .*$", said, re.MULTILINE)
    accuracy = read_history(out)[-1]["val_accuracy"]
    assert f"val accuracy {accuracy:.4f}" in line
    assert "\x1b" not in said and "\r" not in said  # no bar where no terminal is

    here = ["--backend", backend, "--device", device]
    shown = run_here("evaluate", out, *here, "--limit-val", "16", "--precision", "float64").stdout
    assert f"accuracy {accuracy:.4f}" in shown
    assert "16 images at 28×28" in shown
    loss = float(re.search(r"loss (\S+)", shown).group(1))
    assert loss == pytest.approx(read_history(out)[-1]["val_loss"], rel=1e-3)

    Image.fromarray(sample().test_images[0]).save(tmp_path / "boot.png")
    pixels = sample().test_images[:3, None] / 255
    np.save(tmp_path / "x.npy", pixels)
    last = out / "last.safetensors"
    how, line = run_here("predict", last, tmp_path / "boot.png", *here).stdout.splitlines()
    assert how == "images: brought to 28×28, as Fashion-MNIST's are, then to 28×28; in [0, 1]"
    name, *classes = re.fullmatch(r"(\S+): (.+) ([\d.]+), (.+) ([\d.]+), (.+) ([\d.]+)", line).groups()
    assert name == "boot.png"
    assert set(classes[::2]) < set(CLASSES)
    assert 1 >= float(classes[1]) >= float(classes[3]) >= float(classes[5]) >= 0
    logits = tmp_path / "logits.npy"
    succeeds("predict", last, tmp_path / "x.npy", *here, "--out", logits)
    found = np.load(logits)
    assert found.shape == (3, 10)
    assert CLASSES[found[0].argmax()] == classes[0]  # the same image, as a file


@pytest.mark.deep
def test_train_in_all_backends_ends_in_one_picture(backends: list[str], tmp_path: Path) -> None:
    if set(backends) != set(BACKENDS):
        pytest.skip("not all backends are under test")
    out = tmp_path / "all"
    options = [*SHORT, "--precision", "float64"]
    said = succeed("train", "resnet18", "--backend", "all", *options, "--out", out)
    for name in BACKENDS:
        assert re.search(rf"^ ?{name} .* \d:\d\d ?$", said, re.MULTILINE), said
    assert "loss of a step: at most" in said
    assert "0.00 points apart" in said
    losses = [[r["loss"] for r in read_history(out / name) if r["event"] == "step"] for name in BACKENDS]
    np.testing.assert_allclose(losses[1:], losses[:1] * 3, rtol=1e-9)
    svg = (out / "curves.svg").read_text()
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert all(f"{name}, validation" in svg for name in BACKENDS)
    again = run("train", "resnet18", "--out", out, "--resume")
    assert again.returncode == 0, again.stderr
    assert "loss of a step: at most" in again.stdout
    error = run("evaluate", out)
    assert error.returncode == 2
    assert "has four runs; name one of them" in error.stderr


@pytest.fixture(scope="module", params=["oracle", "a framework"])
def options(request: pytest.FixtureRequest, backends: list[str]) -> list[str]:
    """Of a run of eight steps, which the oracle has fewer images for."""
    own = ["--backend", backends[0], "--limit-train", "32"]
    if request.param == "oracle":
        own = ["--backend", "oracle", "--precision", "float64"]
        own += ["--batch-size", "4", "--limit-train", "16", "--limit-val", "4"]
    return ["train", "resnet18", *SHORT, "--epochs", "2", "--seed", "3", *own]


@pytest.fixture(scope="module")
def whole(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """What that run ends with, if nothing stops it."""
    out = tmp_path_factory.mktemp("whole") / "run"
    succeed(*options, "--out", out)  # in a process of its own: as many threads, so the same bits
    return load_checkpoint(out / "last.safetensors")[1]


@pytest.mark.deep
@pytest.mark.usefixtures("hangups")
@pytest.mark.xdist_group("signals")
@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, id="Ctrl-C"),
        pytest.param(signal.SIGTERM, id="SIGTERM"),
        pytest.param(signal.SIGHUP, id="a terminal that closes"),
    ],
)
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(
    options: list[str], whole: Weights, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "a run"  # a space, for the command it prints
    process = subprocess.Popen(
        command(*options, "--out", out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(out, 2, process)
    process.send_signal(number)
    said, error = process.communicate(timeout=300)
    assert process.returncode == 128 + number
    assert "once more stops at once" in said
    assert error.count("\n") == 1, error
    step, again = re.fullmatch(
        r"resnet-tabs: stopped after step (\d+); go on with: resnet-tabs (.+)\n", error
    ).groups()
    assert int(step) >= 2
    _, weights = load_checkpoint(out / "last.safetensors")
    assert not np.array_equal(weights["last.bias"], np.zeros(10))
    assert f"going on after step {step}" in succeed(*shlex.split(again))
    assert len([r for r in read_history(out) if r["event"] == "step"]) == 8
    for name, array in load_checkpoint(out / "last.safetensors")[1].items():
        assert array.tobytes() == whole[name].tobytes(), name


def test_a_missing_gpu_leaves_no_folder(backend: str, tmp_path: Path) -> None:
    arguments = ["train", "resnet18", "--backend", backend, *SHORT, "--out", tmp_path / "run"]
    done = run_here(*arguments, "--device", "gpu")
    if done.returncode == 0:
        pytest.skip("there is a GPU here")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "GPU" in done.stderr
    assert not (tmp_path / "run").exists()
