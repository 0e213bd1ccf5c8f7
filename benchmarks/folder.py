"""A person's own images: how fast they are got ready, and what somebody's weights are worth.

photographs    images/s of one core, JPEGs of 400×300 cropped at random to 224×224 and flipped
finetune       five classes of Fashion-MNIST, as PNG files, from weights trained on the other five and from
               scratch, in every backend (some ten minutes on two cores)
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from common import cli, data
from common.backend import available_backends
from common.data.folder import FileBatches, ImageFolder
from common.data.preparation import Preparation
from common.training.runs import read_history

TRAIN = ["train", "resnet18", "--resize", "64", "--batch-size", "64", "--lr", "0.01", "--momentum", "0.9"]
EPOCHS = 2


def photographs(count: int = 512) -> None:
    """The pipeline makes at least 250 images a second on one core."""
    with tempfile.TemporaryDirectory() as name:
        draws = np.random.default_rng(0)
        for part, number in (("train", count), ("val", 1)):
            folder = Path(name, part, "noise")
            folder.mkdir(parents=True)
            for i in range(number):
                pixels = draws.integers(0, 256, (30, 40, 3), np.uint8)
                large = Image.fromarray(pixels).resize((400, 300), Image.Resampling.BICUBIC)
                large.save(folder / f"{i:04}.jpg", quality=90)
        images = ImageFolder(name, augment=("crop", "flip"))
        preparation = Preparation(images.resize, 3, images.normalize, images.fit)
        batches = FileBatches(images.train, images.batch_size, preparation)
        batches.shuffle(np.arange(count), images.augment, 0, 0)
        batches[0]
        start = time.process_time()
        for number in range(len(batches)):
            batches[number]
        print(f"photographs: {count / (time.process_time() - start):.0f} images/s of one core")


def finetune() -> None:
    """Weights of other classes are better than none, in every backend alike."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        data.write_images(data.full(), place / "all")
        for part in ("train", "val"):
            for folder in (place / "all" / part).iterdir():
                half = place / ("first" if folder.name < "5" else "second") / part
                half.mkdir(parents=True, exist_ok=True)
                (half / folder.name).symlink_to(folder)
        train(place / "first", place / "pretrained", "torch", ["--limit-train", "6000"])
        for backend in available_backends():
            for kind, options in (
                ("from scratch", []),
                ("fine-tuned", ["--weights", place / "pretrained"]),
                ("classifier alone", ["--weights", place / "pretrained", "--freeze", "backbone"]),
            ):
                out = place / f"{backend} {kind}"
                accuracy = train(place / "second", out, backend, ["--limit-train", "1000", *options])
                print(f"{backend}, {kind}: {accuracy:.4f}", flush=True)


def train(images: Path, out: Path, backend: str, options: list[str | Path]) -> float:
    """The validation accuracy after the last epoch of a run of the command."""
    arguments = [*TRAIN, "--data", images, "--backend", backend, "--epochs", EPOCHS, "--limit-val", 2000]
    sys.argv = ["resnet-tabs", *map(str, [*arguments, *options, "--out", out])]
    try:
        cli.main()
    except SystemExit as end:
        if end.code:
            raise
    return float(read_history(out)[-1]["val_accuracy"])
