"""ImageNet networks: preprocessing as torchvision's, the classes, and `predict` with both."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from common import Architecture, initial_weights, save_checkpoint
from common.data.imagenet import NUM_CLASSES, classes
from common.data.preparation import Preparation
from common.oracle import Model
from tests.cli.commands import run_here, succeed_here
from tests.data.helpers import torchvisions_evaluation

SIZES = [(224, 224), (256, 256), (300, 400), (401, 299), (500, 333), (64, 91), (1000, 225)]


def picture(width: int, height: int, channels: int = 3) -> Image.Image:
    """Noise, smoothed, so that resizing has something to get wrong."""
    pixels = np.random.default_rng(width).integers(
        0, 256, (height // 4 + 1, width // 4 + 1, channels), np.uint8
    )
    return Image.fromarray(pixels.squeeze()).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", SIZES)
def test_preprocessing_is_torchvisions(backends: list[str], size: tuple[int, int]) -> None:
    theirs = torchvisions_evaluation(backends)
    image = picture(*size)
    np.testing.assert_allclose(preprocess(image), theirs(image).numpy(), rtol=0, atol=1e-6)


def preprocess(image: Image.Image, size: int = 224, dtype: str = "float32") -> NDArray:
    """(3, size, size)."""
    preparation = Preparation((size, size), 3, "imagenet")
    return preparation.floats(preparation.pixels(image)[None], dtype)[0]


def test_the_classes_are_a_thousand_and_in_torchvisions_order(backends: list[str]) -> None:
    assert len(classes()) == NUM_CLASSES == len(set(classes()))
    assert (classes()[0], classes()[207], classes()[999]) == ("tench", "golden retriever", "toilet tissue")
    if "torch" in backends:
        from tests.interop.families import torchvision

        weights = torchvision().models.ResNet50_Weights.DEFAULT
        assert list(classes()) == weights.meta["categories"]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network that says it is of ImageNet."""
    arch = Architecture(stages=((1, 4), (1, 8)), in_channels=3, num_classes=1000, stem_channels=4)
    path = tmp_path_factory.mktemp("imagenet") / "small.safetensors"
    how = Preparation((224, 224), 3, "imagenet").to_json()
    says = {"preparation": how, "classes": json.dumps(classes())}
    save_checkpoint(path, arch, initial_weights(arch), says)
    return path


def test_predict_prepares_images_and_names_the_top_five(network: Path, tmp_path: Path) -> None:
    image = picture(320, 240)
    image.save(tmp_path / "photo.png")
    image.convert("L").save(tmp_path / "grey.png")  # greyscale is taken as colour, as everyone does
    options = ["--backend", "oracle", "--precision", "float64"]
    shown = succeed_here("predict", network, tmp_path / "photo.png", tmp_path / "grey.png", *options)
    model = Model(Architecture(((1, 4), (1, 8)), in_channels=3, num_classes=1000, stem_channels=4))
    logits = model.predict(preprocess(image, dtype="float64")[None])[0]
    expected = [classes()[i] for i in logits.argsort()[::-1][:5]]
    said, *lines = shown.splitlines()
    assert said == (
        "images: the shorter side to 256 (bilinear), the centre of 224×224; RGB normalised as imagenet"
    )
    assert len(lines) == 2
    assert [
        re.sub(r" [\d.]+$", "", part) for part in lines[0].removeprefix("photo.png: ").split(", ")
    ] == expected
    smaller = tmp_path / "logits.npy"
    succeed_here("predict", network, tmp_path / "photo.png", *options, "--resize", "64", "--out", smaller)
    expected_logits = model.predict(preprocess(image, 64, "float64")[None])
    np.testing.assert_array_equal(np.load(smaller), expected_logits)


def test_evaluate_has_no_imagenet(network: Path) -> None:
    done = run_here("evaluate", network, "--backend", "oracle")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "was not trained on Fashion-MNIST; give a folder" in done.stderr


def test_importing_it_needs_no_pillow() -> None:
    code = "import sys, common.data.imagenet as i; i.classes(); sys.exit('PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
