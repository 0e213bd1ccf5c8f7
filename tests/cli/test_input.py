"""What train, evaluate and predict say of bad input, and do with a person's own. The oracle computes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common import Architecture, initial_weights, load_checkpoint, save_checkpoint
from common.cli.options import open_checkpoint
from common.data import CLASSES, sample
from common.data.preparation import Preparation
from common.training.runs import read_history
from common.weights import open_safetensors
from tests.cli.commands import SHORT, command, run_here, succeed, succeed_here, wait_for

pytestmark = pytest.mark.usefixtures("no_full_set")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network's checkpoint."""
    arch = Architecture(stages=((1, 8), (1, 16)), stem_channels=8)
    path = tmp_path_factory.mktemp("network") / "small.safetensors"
    how = {"preparation": Preparation((96, 96), 1, fit="fashion-mnist").to_json()}
    save_checkpoint(path, arch, initial_weights(arch), how)
    return path


def test_out_is_a_new_folder_by_default(small: str, tmp_path: Path) -> None:
    options = ["train", small, "--backend", "oracle", *SHORT, "--precision", "float64"]
    for number in (1, 2):
        assert f"runs/small-oracle-{number}" in succeed_here(*options, folder=tmp_path)
    assert len(list((tmp_path / "runs").iterdir())) == 2


@pytest.mark.deep
def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    slow = ["--resize", "96", "--batch-size", "24", "--epochs", "9", "--precision", "float64"]
    process = subprocess.Popen(
        command("train", "resnet18", "--backend", "oracle", *SHORT, *slow, "--out", tmp_path / "run"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(tmp_path / "run", 1, process)  # a step takes seconds
    process.send_signal(signal.SIGINT)
    assert process.stdout and any("once more stops at once" in line for line in process.stdout)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=300)
    assert (process.returncode, error) == (130, "resnet-tabs: stopped at once\n")
    assert [r["step"] for r in read_history(tmp_path / "run")] == [1]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, on the way there
def test_a_run_that_diverges_is_one_line_and_exit_code_1(tmp_path: Path, small: str) -> None:
    options = ["--backend", "oracle", *SHORT, "--precision", "float64", "--lr", "1e200"]
    done = run_here("train", small, *options, "--out", tmp_path / "run")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert "the loss of step" in done.stderr and "diverged" in done.stderr
    load_checkpoint(tmp_path / "run" / "last.safetensors")


# Bad input


of_a_stopped_run = pytest.mark.xdist_group("stopped")  # it is made once


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has a checkpoint and is not finished."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    options = [*SHORT, "--epochs", "2"]
    process = subprocess.Popen(
        command("train", "resnet18", "--backend", "oracle", *options, "--precision", "float64", "--out", out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(out.with_name("cache"))},
    )
    wait_for(out, 1, process)
    process.send_signal(signal.SIGTERM)
    process.wait()
    return out


@of_a_stopped_run
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["resnet81"], ["unknown architecture 'resnet81'", "resnet18"]),
        (["resnet18", "--backend", "tourch"], ["unknown backend 'tourch'", "did you mean torch?"]),
        (["resnet18", "--limit-train", "0"], ["limit_train must be 1 or more, not 0"]),
        (["resnet18", "--limit-val", "0"], ["limit_val must be 1 or more, not 0"]),
        (["resnet18", "--limit-train", "50"], ["batch_size 128 is larger than the 50 training images"]),
        (["resnet18", "--batch-size", "0"], ["batch_size must be 1 or more"]),
        (["resnet18", "--resize", "16"], ["16×16 are too small", "17×17"]),
        (["resnet18", "--resize", "-1"], ["resize must be"]),
        (["resnet18", "--epochs", "0"], ["epochs must be 1 or more"]),
        (["resnet18", "--lr", "0"], ["lr must be above 0"]),
        (["resnet18", "--lr", "nan"], ["lr must be above 0"]),
        (["resnet18", "--lr", "fast"], ["--lr", "number"]),
        (["resnet18", "--momentum", "-1"], ["momentum must be 0 or more"]),
        (["resnet18", "--schedule", "step"], ["unknown schedule 'step'", "cosine"]),
        (["resnet18", "--schedule", "cosine", "--warmup-epochs", "10"], ["warmup_epochs (10)"]),
        (["resnet18", "--augment", "flip,rotate"], ["unknown augmentation 'rotate'", "crop"]),
        (["resnet18", "--precision", "float16"], ["unknown precision 'float16'", "bfloat16"]),
        (["resnet18", "--device", "tpu"], ["unknown device 'tpu'"]),
        (["resnet18", "--seed", "-1"], ["seed must be 0 or more"]),
        (["resnet18", "--data", "{tmp}"], ["has no train-images-idx3-ubyte.gz"]),
        (["resnet18", "--nothing"], ["No such option", "--nothing"]),
        (["resnet18", "--resume"], ["--resume needs --out RUN"]),
        (["resnet18", "--resume", "--out", "{tmp}"], ["is not a run"]),
        (["resnet18", "--resume", "--out", "{tmp}/nowhere"], ["is not a run"]),
        (["resnet18", "--out", "{stopped}"], ["already holds a run", "--resume"]),
        (
            ["resnet18", "--resume", "--out", "{stopped}", "--lr", "0.3", "--batch-size", "4"],
            ["other settings", "lr is 0.3, not 0.01", "batch_size is 4, not 8"],
        ),
        (
            ["resnet18", "--resume", "--out", "{stopped}", "--backend", "torch"],
            ["backend is torch, not oracle"],
        ),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("resnet") else "",
)
def test_bad_input_to_train(stopped: Path, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    before = written(stopped)
    arguments = [argument.format(stopped=stopped, tmp=tmp_path) for argument in arguments]
    out = [] if {"--out", "--resume"} & set(arguments) else ["--out", tmp_path / "out"]
    backend = [] if "--backend" in arguments or "--resume" in arguments else ["--backend", "oracle"]
    refused(words, "train", *arguments, *backend, *out, folder=tmp_path)
    assert not (tmp_path / "out").exists()
    assert written(stopped) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", ""], ["--out", "it is empty; name a file or a folder"]),
        (["--out=", "--resume"], ["--out", "it is empty"]),
        (["--data", ""], ["--data", "it is empty"]),
        (["--weights", ""], ["--weights", "it is empty"]),
        (["--out", "file"], ["cannot write to the folder file: File exists"]),
        (["--out", "link"], ["cannot write to the folder link: File exists"]),
        (["--out", "file/run"], ["cannot write to the folder file/run: Not a directory"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") and len(value) < 3 else "",
)
def test_a_folder_that_cannot_be_a_runs_is_refused(
    tmp_path: Path, small: str, arguments: list[str], words: list[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    refused(words, "train", small, "--backend", "oracle", *SHORT, *arguments, folder=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "link"}


def written(folder: Path) -> dict[str, tuple[int, int, int]]:
    """By this one sees that a file was written, or renamed to, without reading it."""
    return {
        file.name: (s.st_ino, s.st_mtime_ns, s.st_size) for file in folder.iterdir() if (s := file.stat())
    }


def refused(words: list[str], *arguments: object, folder: Path) -> None:
    """The command says one line that has these words, and exits with 2."""
    done = run_here(*arguments, folder=folder)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr


@of_a_stopped_run
def test_resuming_needs_no_options_but_the_folder(stopped: Path, tmp_path: Path) -> None:
    settings = json.loads((stopped / "run.json").read_text())
    assert (settings["batch_size"], settings["lr"]) == (8, 0.01)  # not the defaults
    assert "epoch 2/2" in succeed_here(
        "train", "resnet18", "--out", shutil.copytree(stopped, tmp_path / "copy"), "--resume"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{tmp}/no.safetensors"], ["not found"]),
        (["{tmp}"], ["is not a run"]),
        (["{tmp}/text.txt"], ["not a complete safetensors file"]),
        (["{network}", "--resize", "3"], ["too small"]),
        (["{network}", "--limit-val", "0"], ["limit_val must be 1 or more"]),
        (["{network}", "--backend", "tourch"], ["unknown backend 'tourch'"]),
        (["{seven}"], ["Fashion-MNIST has 10 classes but the network tells 7"]),
    ],
)
def test_bad_input_to_evaluate(network: Path, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    (tmp_path / "text.txt").write_text("no checkpoint")
    seven = Architecture(stages=((1, 2),), num_classes=7, stem_channels=2)
    save_checkpoint(tmp_path / "seven.safetensors", seven, initial_weights(seven))
    names = {"network": network, "tmp": tmp_path, "seven": tmp_path / "seven.safetensors"}
    refused(words, "evaluate", *[argument.format(**names) for argument in arguments], folder=tmp_path)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (["no.png"], ["no.png not found"]),
        (["text.png"], ["text.png is not an image that can be read"]),
        (["truncated.png"], ["truncated.png is not an image that can be read"]),
        (["grey.png", "text.png"], ["text.png is not an image"]),
        (["drawing.gif"], ["drawing.gif is not an image that can be read (no JPEG, PNG, WebP, BMP or TIFF)"]),
        (["pipe.png"], ["pipe.png is not an image that can be read (cannot be opened: a pipe or a device)"]),
        (["huge.npy"], ["huge.npy is not an array"]),
        (["negative.npy"], ["negative.npy is not an array"]),
        (["brackets.npy"], ["brackets.npy is not an array"]),
        (["text.npy"], ["text.npy is not an array"]),
        (["pickle.npy"], ["pickle.npy is not an array"]),
        (["flat.npy"], ["flat.npy", "(N, C, H, W)"]),
        (["three.npy"], ["three.npy", "3 channels but the network takes 1"]),
        (["small.npy"], ["small.npy", "too small"]),
        (["nan.npy"], ["nan.npy has values that are NaN"]),
        (["words.npy"], ["words.npy must hold uint8 or floating point numbers"]),
    ],
    ids=lambda value: value[0],
)
def test_bad_input_to_predict(network: Path, tmp_path: Path, inputs: list[str], words: list[str]) -> None:
    pixels = np.arange(28 * 28, dtype=np.uint8).reshape(28, 28)
    Image.fromarray(pixels).save(tmp_path / "grey.png")
    Image.fromarray(pixels).save(tmp_path / "drawing.gif")
    whole = (tmp_path / "grey.png").read_bytes()
    (tmp_path / "truncated.png").write_bytes(whole[: len(whole) // 2])
    for name in ("text.png", "text.npy"):
        (tmp_path / name).write_text("neither image nor array")
    os.mkfifo(tmp_path / "pipe.png")
    for name, shape in (("huge", "(9000000000000,)"), ("negative", "(-1, 4)"), ("brackets", "(" * 9000)):
        header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}}}\n".encode()
        start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
        (tmp_path / f"{name}.npy").write_bytes(start + header + bytes(64))
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object))
    np.save(tmp_path / "flat.npy", np.zeros((28, 28)))
    np.save(tmp_path / "three.npy", np.zeros((1, 3, 28, 28)))
    np.save(tmp_path / "small.npy", np.zeros((1, 1, 4, 4)))
    np.save(tmp_path / "nan.npy", np.full((1, 1, 28, 28), np.nan))
    np.save(tmp_path / "words.npy", np.array(["a"]))
    arguments = ["predict", network, *[tmp_path / name for name in inputs], "--backend", "oracle"]
    refused(words, *arguments, "--out", tmp_path / "logits.npy", folder=tmp_path)
    assert not (tmp_path / "logits.npy").exists()


def test_predict_brings_images_to_the_networks_size(network: Path, tmp_path: Path) -> None:
    from common.data import resize
    from common.oracle import Model

    original = sample().test_images[0]
    large = Image.fromarray(original).resize((280, 280), Image.Resampling.NEAREST)
    Image.fromarray(original).save(tmp_path / "same.png")
    large.save(tmp_path / "large.png")
    files = [tmp_path / "same.png", tmp_path / "large.png"]
    out = tmp_path / "logits.npy"
    succeed_here("predict", network, *files, "--backend", "oracle", "--precision", "float64", "--out", out)
    found = np.load(out)
    arch, weights = load_checkpoint(network)
    model = Model(arch)
    model.load_weights(weights)
    expected = model.predict(resize(original[None], (96, 96))[:, None])
    np.testing.assert_allclose(found[:1], expected, rtol=1e-6)
    np.testing.assert_allclose(found[1:], expected, rtol=0.2, atol=0.05)  # smoothed, but the same boot


def test_a_checkpoint_is_read_once(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []

    def watched(path: Path) -> AbstractContextManager[Any]:
        opened.append(path)
        return open_safetensors(path)

    monkeypatch.setattr("common.weights.open_safetensors", watched)
    found = open_checkpoint(network, None)
    assert opened == [network] and found.preparation == Preparation((96, 96), 1, fit="fashion-mnist")
    assert (found.classes, found.is_said, found.val_share) == (CLASSES, True, None)


def test_predict_names_classes_by_number_where_they_are_not_fashion(tmp_path: Path) -> None:
    three = Architecture(stages=((1, 2),), in_channels=3, num_classes=3, stem_channels=2)
    save_checkpoint(tmp_path / "three.safetensors", three, initial_weights(three))
    colours = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "photo.jpg")
    shown = succeed("predict", tmp_path / "three.safetensors", tmp_path / "photo.jpg", "--backend", "oracle")
    assert set(re.findall(r"class \d", shown)) == {"class 0", "class 1", "class 2"}
    assert sum(map(float, re.findall(r"\d\.\d+", shown))) == pytest.approx(1, abs=1e-3)
