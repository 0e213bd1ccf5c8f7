"""Images as each library prepares them for its own networks; and what a converted checkpoint says of them."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from safetensors.torch import save_file

from common import Architecture, initial_weights, load_checkpoint, save_checkpoint
from common.data import CLASSES
from common.data.decode import decode
from common.data.imagenet import classes
from common.data.preparation import Preparation
from common.errors import BadInput
from common.interop.configs import PROCESSOR
from common.interop.families import FAMILIES
from common.interop.prepared import (
    DEFAULTS,
    PUBLISHED,
    by_default,
    of_published,
    of_timm,
    of_transformers,
)
from common.oracle import Model
from tests.cli.commands import succeed_here
from tests.data.folders import FILES, write_file
from tests.helpers import one_line
from tests.interop.families import randomised, timm, torchvision, transformers
from tests.interop.test_convert import converted, metadata

SIDES = (250, 331)
PIXEL = 1 / 255


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Image]:
    """Of every kind that there is, some smaller, some larger than what networks see, by our reader."""
    folder = tmp_path_factory.mktemp("photographs")
    kinds = [(kind, SIDES[i % 2]) for i, kind in enumerate(sorted(FILES))]
    return [decode(write_file(folder, kind, side), 3) for kind, side in kinds]


def ours(preparation: Preparation, image: Image) -> NDArray[np.floating]:
    """(C, H, W)."""
    return preparation.floats(preparation.pixels(image)[None], "float32")[0]


def test_torchvisions(photographs: list[Image]) -> None:
    models = torchvision().models
    for weights in (models.ResNet50_Weights.IMAGENET1K_V1, models.ResNeXt50_32X4D_Weights.IMAGENET1K_V1):
        theirs = weights.transforms()
        for image in photographs:
            np.testing.assert_allclose(
                ours(DEFAULTS["torchvision"], image), theirs(image).numpy(), rtol=0, atol=1e-6
            )


def test_torchvisions_published_files_are_known() -> None:
    models, known = torchvision().models, {}
    for name in dir(models):
        if re.fullmatch("(Wide_)?ResNe.*_Weights", name):
            for weights in getattr(models, name):
                digits = weights.url.removesuffix(".pth").rpartition("-")[2]
                (known[digits],) = weights.transforms().resize_size
                assert weights.transforms().crop_size == [224]
    assert known == PUBLISHED


def test_a_published_file_is_known_by_its_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.pth"
    path.write_bytes(b"weights")
    assert of_published(path) is None
    monkeypatch.setitem(PUBLISHED, hashlib.sha256(b"weights").hexdigest()[:8], 232)
    found = of_published(path)
    assert found and found.scaled == (232, 232) and found.size == (224, 224)


CFGS: dict[str, dict[str, Any]] = {
    "tv": {"input_size": [3, 224, 224], "crop_pct": 0.875, "interpolation": "bilinear"},
    "a1": {"input_size": [3, 224, 224], "crop_pct": 0.95, "interpolation": "bicubic", "crop_mode": "center"},
    "squashed": {"input_size": [3, 160, 160], "crop_pct": 0.9, "crop_mode": "squash"},
    "whole": {"input_size": [3, 288, 288], "crop_pct": 1.0, "mean": [0.5] * 3, "std": [0.5] * 3},
    "other figures": {"input_size": [3, 224, 224], "mean": [0.1, 0.2, 0.3], "std": [0.3, 0.2, 0.1]},
    "grey": {"input_size": [1, 64, 64], "mean": [0.2], "std": [0.4], "interpolation": "lanczos"},
    "nothing": {"tag": "none"},
    "nulls": {"input_size": None, "crop_pct": None, "mean": None, "std": None, "interpolation": None},
}


@pytest.mark.parametrize("cfg", CFGS)
def test_timms(photographs: list[Image], cfg: str) -> None:
    data = timm().data
    config = data.resolve_data_config({}, pretrained_cfg=CFGS[cfg])
    theirs = data.create_transform(**config, is_training=False)
    channels = config["input_size"][0]
    for image in photographs:
        shown = image if channels == 3 else image.convert("L")
        found = ours(of_timm(CFGS[cfg], channels), shown)
        np.testing.assert_allclose(found, theirs(shown).numpy(), rtol=0, atol=1e-6)


PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet": ("ConvNext", {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3}),
    "resnet, large": ("ConvNext", {"size": {"shortest_edge": 384}, "resample": 2}),
    "vit": ("ViT", {"size": {"height": 96, "width": 128}, "resample": 2}),
    "clip": (
        "CLIP",
        {"size": {"shortest_edge": 232}, "do_center_crop": True, "crop_size": {"height": 200, "width": 224}},
    ),
    "resnet, all of it": ("ConvNext", {"size": {"shortest_edge": 96}, "crop_pct": 1.0, "resample": 3}),
    "bit": (
        "Bit",
        {"size": {"shortest_edge": 200}, "do_center_crop": True, "crop_size": {"height": 200, "width": 200}},
    ),
    "deit": (
        "DeiT",
        {"size": {"height": 256, "width": 256}, "crop_size": {"height": 224, "width": 224}, "resample": 3},
    ),
    "plain": ("ViT", {"size": {"height": 64, "width": 64}, "resample": 0, "do_normalize": False}),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_transformers(photographs: list[Image], tmp_path: Path, name: str) -> None:
    torchvision()  # transformers imports it
    kind, options = PROCESSORS[name]
    figures = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    made = getattr(importlib.import_module("transformers"), f"{kind}ImageProcessor")(**figures, **options)
    made.save_pretrained(tmp_path)
    preparation = of_transformers(json.loads((tmp_path / PROCESSOR).read_text()), 3)
    one = PIXEL if preparation.normalize == "none" else PIXEL / 0.224
    for image in photographs:
        # Theirs resizes by PyTorch. After the first of two passes, both round to a uint8, and not always to
        # the same one; a bicubic second pass can make 2 of this 1, which happens once in 100,000 values.
        expected = made(image, return_tensors="np")["pixel_values"][0]
        off = np.abs(ours(preparation, image) - expected)
        assert off.max() <= 2.01 * one and (off > 1.01 * one).mean() < 1e-4


def test_keras(backends: list[str], photographs: list[Image]) -> None:
    """Its function is of colours alone."""
    if "tf" not in backends:
        pytest.skip("TensorFlow is not under test")
    import resnet_tf  # noqa: F401  (which says on what Keras runs)

    applications = importlib.import_module("keras").applications
    preparation = DEFAULTS["keras"]
    for image in photographs:
        x = preparation.pixels(image)[None].astype(np.float32)
        expected = applications.resnet.preprocess_input(x)[0].transpose(2, 0, 1)
        np.testing.assert_allclose(ours(preparation, image), expected, rtol=0, atol=1e-4)


def test_gluons(backends: list[str], photographs: list[Image]) -> None:
    """Its resampler is OpenCV's, which does not smooth what shrinks: held on what grows."""
    if "mxnet" not in backends:
        pytest.skip("MXNet is not under test")
    import resnet_mxnet  # noqa: F401  (first: it lends NumPy what MXNet needs)

    mx = importlib.import_module("mxnet")
    transforms = mx.gluon.data.vision.transforms
    usual = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    theirs = [
        *(transforms.Resize(256, keep_ratio=True), transforms.CenterCrop(224)),
        *(transforms.ToTensor(), transforms.Normalize(*usual)),
    ]
    small = [image for image in photographs if min(image.size) <= 256]
    assert len(small) > 5
    for image in small:
        x = mx.np.array(np.asarray(image), dtype="uint8")
        for transform in theirs:
            x = transform(x)
        np.testing.assert_allclose(
            ours(DEFAULTS["gluon"], image), x.asnumpy(), rtol=0, atol=1.01 * PIXEL / 0.224
        )


def test_greys_have_no_figures_and_others_no_preparation() -> None:
    for family in FAMILIES:
        arch = Architecture(((1, 4),), in_channels=1, num_classes=10 if "d2l" in family else 7)
        found = by_default(family, arch)
        assert found and found.normalize == "none" and found.channels == 1
        assert by_default(family, Architecture(((1, 4),), in_channels=5)) is None
    assert by_default("d2l-jax", Architecture(((1, 4),), in_channels=3)) is None  # no Fashion-MNIST


CLIP = {
    "image_processor_type": "CLIPImageProcessorFast",
    "size": {"shortest_edge": 224},
    "crop_size": 224,
    "do_center_crop": True,
}
WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "border": (of_timm, {"crop_mode": "border"}, "crop_mode is 'border'"),
    "interpolation": (of_timm, {"interpolation": "random"}, "interpolation is 'random'"),
    "share": (of_timm, {"crop_pct": "x"}, "crop_pct is 'x'"),
    "more than all": (of_timm, {"crop_pct": 2}, "crop_pct is 2"),
    "size": (of_timm, {"input_size": [3, 10**9, 10**9]}, "pixels or fewer"),
    "no size": (of_timm, {"input_size": 3}, "input_size is 3"),
    "mean": (of_timm, {"mean": "a", "std": [1]}, "mean or deviation is 'a'"),
    "deviation": (of_timm, {"mean": [0, 0, 0], "std": [0, 1, 1]}, "deviation above 0"),
    "kept": (of_transformers, {"do_resize": False}, "do_resize is False"),
    "integers": (of_transformers, {"do_rescale": False}, "do_rescale is False"),
    "halves": (of_transformers, {"rescale_factor": 1 / 127.5}, "rescale_factor is"),
    "another processor": (of_transformers, {"image_processor_type": "LevitImageProcessor"}, "is 'Levit'"),
    "none": (of_transformers, {}, "its processor is 'None'"),
    "not cut": (of_transformers, CLIP | {"do_center_crop": False}, "do_center_crop is False"),
    "true": (of_transformers, CLIP | {"size": True}, "size is True"),
    "text": (of_transformers, CLIP | {"size": "224"}, "size is '224'"),
    "longest": (of_transformers, CLIP | {"size": {"longest_edge": 4}}, "size is {'longest_edge': 4}"),
    "figures": (of_transformers, CLIP, "mean or deviation is None"),
    "resampler": (of_transformers, CLIP | {"do_normalize": False, "resample": 9}, "resample is 9"),
    "below": (of_transformers, CLIP | {"do_normalize": False, "resample": -1}, "resample is -1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_none_of_our_ways_is_one_line(case: str) -> None:
    read, said, words = WRONG[case]
    with pytest.raises(BadInput) as error:
        read(said, 3)
    one_line(error, words)


# What a checkpoint says


def network(num_classes: int = 10) -> Any:
    """Of torchvision; timm gives its layers the same names."""
    resnet = torchvision().models.resnet
    return randomised(resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=num_classes))


def logits(checkpoint: Path, x: NDArray) -> NDArray:
    arch, weights = load_checkpoint(checkpoint)
    model = Model(arch)
    model.load_weights(weights)
    return model.predict(x)


def test_a_network_of_ones_own_classes_is_shown_what_torchvision_would_show_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], photographs: list[Image]
) -> None:
    """Of 10 classes too, which are no clothes."""
    model = network()
    theirs = torchvision().models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    photographs[0].save(tmp_path / "photo.png")
    torch.save(model.state_dict(), tmp_path / "own.pth")
    path = tmp_path / "own.safetensors"
    said = converted(capsys, tmp_path / "own.pth", path)
    whose = "as torchvision's own weights take them"
    assert f"images, {whose}: the shorter side to 256 (bilinear), the centre of 224×224" in said
    assert f"images prepared {whose}" in metadata(path)["assumed"]
    options = ["--backend", "oracle", "--precision", "float64"]
    shown = succeed_here("predict", path, tmp_path / "photo.png", *options)
    assert "class 0" in shown and not any(name in shown for name in CLASSES)
    out = tmp_path / "logits.npy"
    succeed_here("predict", path, tmp_path / "photo.png", *options, "--out", out)
    expected = logits(path, theirs(photographs[0]).numpy()[None].astype(np.float64))
    np.testing.assert_allclose(np.load(out), expected, rtol=1e-5)


def test_what_timms_folder_says_travels_along(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = network()
    names = [f"n0000000{i}" for i in range(model.fc.out_features)]
    folder = tmp_path / "hub"
    folder.mkdir()
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        folder / "model.safetensors",
    )
    config: dict[str, Any] = {
        "architecture": "resnet18",
        "num_classes": len(names),
        "num_features": 512,
        "pretrained_cfg": CFGS["a1"] | {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        "label_names": names,
        "label_descriptions": {names[0]: "tench, Tinca tinca"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    said = converted(capsys, folder, tmp_path / "ours.safetensors")
    assert "the shorter side to 235 (bicubic), the centre of 224×224; RGB normalised as inception" in said
    says = metadata(tmp_path / "ours.safetensors")
    assert "assumed" not in says and json.loads(says["classes"]) == ["tench, Tinca tinca", *names[1:]]
    config["pretrained_cfg"]["crop_mode"] = "border"
    (folder / "config.json").write_text(json.dumps(config))
    said = converted(capsys, folder, tmp_path / "other.safetensors")
    assert (
        "how images are prepared is not kept, because it is none of our ways: crop_mode is 'border'" in said
    )
    assert "preparation" not in metadata(tmp_path / "other.safetensors")


def test_what_transformers_folder_says_travels_along(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torchvision()  # transformers imports it
    from transformers import ConvNextImageProcessor

    model = randomised(
        transformers(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    )
    labels = {i: f"kind {i}" for i in range(model.config.num_labels)}
    model.config.id2label, model.config.label2id = labels, {name: i for i, name in labels.items()}
    model.save_pretrained(tmp_path / "hub")
    ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.8).save_pretrained(tmp_path / "hub")
    capsys.readouterr()
    said = converted(capsys, tmp_path / "hub", tmp_path / "ours.safetensors")
    assert "images, as its folder says: the shorter side to 80 (bicubic), the centre of 64×64" in said
    says = metadata(tmp_path / "ours.safetensors")
    assert "assumed" not in says and json.loads(says["classes"]) == list(labels.values())


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"normalize": "imagenet", "interpolation": "bicubic"}, "Bit"),
        ({"normalize": "none", "scaled": (64, 64)}, "Bit"),
        ({"normalize": "0.1,0.2,0.3/0.3,0.2,0.1", "fit": "whole", "scaled": (64, 64)}, "ViT"),
        ({"fit": "whole", "scaled": (80, 80)}, ""),
        ({"normalize": "caffe"}, ""),
        ({"fit": "fashion-mnist"}, ""),
    ],
)
def test_transformers_is_told_what_it_can_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any], kind: str
) -> None:
    arch = Architecture(((1, 8), (1, 16)), in_channels=3, num_classes=3, stem_channels=8, shortcut_norm=True)
    made = Preparation((64, 64), 3, **{"half": "down", **options})
    says = {"preparation": made.to_json(), "classes": '["ä", "b", "c"]'}
    save_checkpoint(tmp_path / "ours.safetensors", arch, initial_weights(arch), says)
    converted(capsys, tmp_path / "ours.safetensors", tmp_path / "hub", "--to", "transformers")
    assert (tmp_path / "hub" / PROCESSOR).is_file() == bool(kind)
    converted(capsys, tmp_path / "hub", tmp_path / "back.safetensors")
    back = metadata(tmp_path / "back.safetensors")
    assert json.loads(back["classes"]) == ["ä", "b", "c"]
    if kind:
        torchvision()  # transformers imports it
        transformers = importlib.import_module("transformers")
        loaded = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hub")
        assert type(loaded).__name__.startswith(f"{kind}ImageProcessor")
        assert Preparation.from_json(back["preparation"], 3) == made


def test_imagenets_classes_are_named_and_taken_for_granted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(network(1000).state_dict(), tmp_path / "a.pth")
    said = converted(capsys, tmp_path / "a.pth", tmp_path / "b.safetensors")
    assert "classes named as ImageNet's" in said
    assert json.loads(metadata(tmp_path / "b.safetensors")["classes"]) == list(classes())
