"""Training on a folder of images: Fashion-MNIST's own run where the pixels are the same; stopped; damaged."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from common import data, load_checkpoint
from common.data import DataModule, ImageFolder
from common.data.preparation import Preparation
from common.errors import BadInput
from common.training.runs import Run, read_history
from common.weights import load_metadata
from tests.data.folders import make_folder
from tests.training.running import TINY, Once, assert_identical, losses, settings, train, without_times

pytestmark = pytest.mark.usefixtures("sample_only")

COLOURED = dataclasses.replace(TINY, in_channels=3)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fashion") / "images"
    data.write_images(data.sample(), folder)
    return folder


@pytest.mark.core_in("torch")
def test_it_is_the_run_on_the_built_in_set(backend: str, device: str, written: Path, tmp_path: Path) -> None:
    limits = {"limit_train": 80, "limit_val": 20}
    sets: list[DataModule] = [
        data.FashionMNIST(8, **limits),
        ImageFolder(written, 8, (28, 28), normalize="none", **limits),
    ]
    runs = [
        train(settings(backend, each, COLOURED, precision="float64", device=device), each, tmp_path / str(i))
        for i, each in enumerate(sets)
    ]
    (built_in, one), (folder, other) = runs
    assert len(losses(one.history)) == 20
    if device == "cpu":
        assert losses(other.history) == losses(one.history)
        assert without_times(other.history) == without_times(one.history)
        assert_identical(folder.weights(), built_in.weights())


def augmented(root: Path) -> ImageFolder:
    return ImageFolder(root, 8, (28, 28), augment=("crop", "flip"))


KILLABLE = """
import dataclasses, os, signal, sys
from pathlib import Path
from common.training import loop
from common.training.runs import Run, read_settings
from tests.training.running import train
from tests.training.test_folder import augmented

log = Run.log

def killing(run, record):
    log(run, record)
    if record["step"] == 5:
        os.kill(os.getpid(), signal.SIGKILL)

Run.log = killing
loop.SAVE_SECONDS = 0  # a checkpoint after every step
folder = Path(sys.argv[1])
train(read_settings(folder / "settings"), augmented(folder / "animals"), folder / "killed")
"""


@pytest.mark.deep
def test_a_killed_run_goes_on_to_the_same_bit(backend: str, device: str, tmp_path: Path) -> None:
    images = augmented(make_folder(tmp_path / "animals", train=15))
    run = settings(backend, images, COLOURED, device=device)
    Run.start(tmp_path / "settings", run)
    done = subprocess.run([sys.executable, "-c", KILLABLE, tmp_path], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    found, resumed = train(run, augmented(tmp_path / "animals"), tmp_path / "killed", resume=True)
    expected, whole = train(run, images, tmp_path / "whole")
    assert len(losses(whole.history)) == 8
    if device == "cpu":
        assert_identical(found.weights(), expected.weights())
        assert without_times(resumed.history) == without_times(whole.history)


def test_checkpoints_say_what_they_were_trained_on(tmp_path: Path) -> None:
    images = augmented(make_folder(tmp_path / "animals"))
    train(settings("oracle", images, COLOURED, precision="float64"), images, tmp_path / "run")
    for name in ("best", "last"):
        says = load_metadata(tmp_path / "run" / f"{name}.safetensors")
        assert says["classes"] == '["cat", "dog"]'
        assert Preparation.from_json(says["preparation"], 3) == images._preparation(3).at((28, 28))


def test_another_folder_is_another_run(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "animals")
    images = augmented(root)
    train(settings("oracle", images, COLOURED, precision="float64"), images, tmp_path / "run")
    (root / "train/cat/cat000.jpg").unlink()
    fewer = augmented(root)
    with pytest.raises(BadInput, match="run of other settings: data is 23"):
        train(settings("oracle", fewer, COLOURED, precision="float64"), fewer, tmp_path / "run", resume=True)


def test_a_network_of_other_channels_leaves_no_run(tmp_path: Path) -> None:
    images = augmented(make_folder(tmp_path / "animals"))
    with pytest.raises(BadInput, match="give a network of 3, or normalize none"):
        train(settings("oracle", images, TINY, precision="float64"), images, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_bad_files_leave_no_run(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "animals")
    images = augmented(root)
    (root / "train/cat/cat000.jpg").write_bytes(b"")
    options: dict[str, Any] = {"precision": "float64"}
    with pytest.raises(BadInput, match="1 file that is no image"):
        train(settings("oracle", images, COLOURED, **options), images, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_file_lost_on_the_way_ends_the_run_and_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder(tmp_path / "animals")
    images = augmented(root)
    Once(monkeypatch, 2, lambda _: (root / "val/dog/dog003.jpg").unlink())
    with pytest.raises(BadInput, match=r"dog003\.jpg .* has the checkpoint of step 0; go on with"):
        train(settings("oracle", images, COLOURED, precision="float64"), images, tmp_path / "run")
    assert len(read_history(tmp_path / "run")) == 3
    load_checkpoint(tmp_path / "run" / "last.safetensors")
