"""`predict` and `evaluate` show a network the same image as the same numbers, whatever file it is in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from common import Architecture, initial_weights, save_checkpoint
from common.data import CLASSES
from common.data.imagenet import classes
from common.data.preparation import Preparation
from common.oracle import Model
from tests.cli.commands import run_here, succeed_here
from tests.data.folders import FILES, make_folder, picture, write_file

pytestmark = pytest.mark.usefixtures("no_full_set")

# What each network's checkpoint says of its images; ImageNet's are converted, the folders' trained here.
NETWORKS: dict[str, tuple[int, tuple[str, ...], Preparation]] = {
    "imagenet": (3, classes(), Preparation((224, 224), 3, "imagenet")),
    "keras": (3, classes(), Preparation((224, 224), 3, "caffe", "whole", (256, 240), "lanczos")),
    "folder": (3, ("cat", "dog"), Preparation((32, 32), 3, "imagenet", "folder")),
    "grey folder": (1, ("cat", "dog"), Preparation((32, 32), 1, fit="folder")),
    "fashion": (1, CLASSES, Preparation((96, 96), 1, fit="fashion-mnist")),
    "fashion in colour": (3, CLASSES, Preparation((96, 96), 3, fit="fashion-mnist")),
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, tuple[str, ...]]:
    """A small network's checkpoint, and its classes."""
    channels, names, preparation = NETWORKS[request.param]
    says = {"classes": json.dumps(names), "preparation": preparation.to_json()}
    arch = Architecture(((1, 4),), in_channels=channels, num_classes=len(names), stem_channels=4)
    path = tmp_path / "network.safetensors"
    save_checkpoint(path, arch, initial_weights(arch, 3), says)
    return path, names


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[NDArray, NDArray]]:
    """The images that networks were shown, and the logits they gave, a batch each."""
    batches: list[tuple[NDArray, NDArray]] = []
    predict = Model.predict

    def watched(model: Model, x: NDArray) -> NDArray:
        logits = predict(model, x)
        batches.append((np.array(x), logits))
        return logits

    monkeypatch.setattr(Model, "predict", watched)
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")  # nothing is remembered
    return batches


def test_predict_sees_what_evaluate_sees(
    network: tuple[Path, tuple[str, ...]], seen: list[tuple[NDArray, NDArray]], tmp_path: Path
) -> None:
    path, names = network
    folder = tmp_path / "images"
    for name in names:
        (folder / name.replace("/", "-")).mkdir(parents=True)
    first = folder / names[0].replace("/", "-")
    files = [write_file(first, kind, 32) for kind in sorted(FILES)]
    for name in names[1:]:  # evaluate wants one of each class; the last in order, and not looked at
        (folder / name.replace("/", "-") / "z.png").symlink_to(first / "at the size.png")
    options = ["--backend", "oracle", "--resize", "32"]
    evaluated = run_here("evaluate", path, folder, *options, "--limit-val", str(len(FILES)))
    assert evaluated.returncode == 0, evaluated.stderr
    predicted = run_here("predict", path, *files, *options, "--out", tmp_path / "logits.npy")
    assert predicted.returncode == 0, predicted.stderr
    (x, logits), (other_x, other_logits) = seen
    assert x.shape[0] == len(FILES) and x.dtype == other_x.dtype
    for kind, one, other in zip(sorted(FILES), x, other_x, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=kind)
    np.testing.assert_array_equal(logits, other_logits)
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), logits)


BAD = ("cut.jpg", "depths.tif", "empty.png", "moving.jpg")


def spoiled(folder: Path) -> None:
    """Files that cannot be read, each for another reason."""
    picture(64, 64).save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:-200])
    (folder / "empty.png").touch()
    Image.new("F", (8, 8)).save(folder / "depths.tif")
    picture(64, 64).save(folder / "moving.jpg", "GIF")


def test_train_evaluate_and_predict_skip_the_same_files_and_see_the_same_pixels(
    seen: list[tuple[NDArray, NDArray]], small: str, tmp_path: Path
) -> None:
    root = make_folder(tmp_path / "animals", 4, 1, (32, 32))
    for kind in sorted(FILES):
        write_file(root / "val/cat", kind, 32)
    spoiled(root / "val/cat")
    options = ["--backend", "oracle", "--skip-bad", "--precision", "float64"]
    run = tmp_path / "run"
    train = ["--data", root, "--resize", "32", "--epochs", "1", "--batch-size", "8", "--out", run]
    said = [succeed_here("train", small, *train, *options)]
    in_training = np.concatenate([x for x, _ in seen])
    for command in ("evaluate", "predict"):
        seen.clear()
        said.append(succeed_here(command, run, root / "val", *options))
        shown = np.concatenate([x for x, _ in seen])
        if command == "predict":  # which has them in the order of their folders
            names = [line.split(": ")[0] for line in said[-1].splitlines()[2:]]
            shown = shown[sorted(range(len(names)), key=lambda i: Path(names[i]).name)]
        assert len(shown) == len(FILES) + 2
        np.testing.assert_array_equal(shown, in_training)
    for text in said:
        (line,) = [line for line in text.splitlines() if "leaving out" in line]
        paths = ", ".join(str(root / "val/cat" / name) for name in BAD[:3])
        assert line == f"leaving out 4 files: 4 that cannot be read ({paths} and 1 more)"
