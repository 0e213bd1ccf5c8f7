"""What the sections share: trained networks, real images, and what they were measured on."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import Architecture, architecture, load_backend, load_checkpoint, training
from common.backend import BACKENDS
from common.bench.report import processor
from common.data import FashionMNIST, full
from common.data import resize as resized
from common.deviation import deviation
from common.pages import installed_version
from common.proof.traps import TRAPS, Trap, port
from common.recipe import Recipe
from common.training.runs import is_finished, is_run
from common.training.settings import Settings
from common.weights import Weights

SIZE = 32  # height and width the networks were trained on: even at every stride
BUILT = Path(__file__).parents[1] / "_build"
NETWORKS = {
    "resnet18": architecture("resnet18", in_channels=1, num_classes=10),
    # Bottlenecks as in ResNet-50, fewer and narrower: one group, a quarter of the channels within.
    "bottleneck": Architecture(
        stages=((2, 64), (2, 128), (2, 256), (2, 512)),
        block="resnext",
        groups=(16, 32, 64, 128),
        bot_mul=0.25,
        in_channels=1,
        num_classes=10,
    ),
}


def versions() -> str:
    """The frameworks' versions, in words."""
    named = [f"{backend.label} {installed_version(backend)}" for backend in BACKENDS.values()]
    return ", ".join([*named, f"NumPy {np.__version__} and Python {sys.version.split()[0]}"])


def machine() -> str:
    """The machine, in general terms."""
    name = re.sub(r"\(R\)|\(TM\)|\bProcessor\b|\b\d+-Core\b", "", processor())
    return f"{os.cpu_count()} cores of an {' '.join(name.split())}"


def settings(data: FashionMNIST, arch: Architecture, **changed: Any) -> Settings:
    """A run in PyTorch on these images: momentum, an epoch of warm-up, a cosine."""
    run: dict[str, Any] = {
        "backend": "torch",
        "architecture": arch.to_json(),
        "epochs": 2,
        "lr": 0.05,
        "recipe": Recipe(momentum=0.9),
        "schedule": "cosine",
        "warmup_epochs": 1,
        "precision": "float32",
        "device": "cpu",
    }
    return Settings(**run | changed | data.settings())


@cache
def trained(name: str, size: int = SIZE) -> tuple[Architecture, Weights, float]:
    """A network of two epochs on the full Fashion-MNIST, and its accuracy on the 10,000 test images.

    It is trained once, for minutes, on images of this height and width, and kept among the built files.
    """
    arch = NETWORKS[name]
    folder = BUILT / "trained" / f"{name}-{size}"
    full()  # says what to do where the images are not all there
    data = FashionMNIST(128, (size, size))
    if not (is_run(folder) and is_finished(folder)):
        shutil.rmtree(folder, ignore_errors=True)  # cut off half-way
        training.train(
            lambda backend: load_backend(backend).build(arch), data, settings(data, arch), folder, False
        )
    _, weights = load_checkpoint(folder / "last.safetensors")
    *_, last = (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return arch, weights, json.loads(last)["val_accuracy"]


@cache
def test_images(count: int, size: int = SIZE) -> tuple[NDArray, NDArray]:
    """The first so many test images (count, 1, size, size), float64 in [0, 1], and their labels."""
    images = full()
    pixels = resized(images.test_images[:count], (size, size), "float64")
    return pixels.reshape(count, 1, size, size), images.test_labels[:count].astype(np.int64)


def trap(start: str) -> Trap:
    """The known trap whose cause begins so."""
    return next(trap for trap in TRAPS if trap.cause.startswith(start))


def layers(arch: Architecture, weights: Weights, x: NDArray, traps: Sequence[Trap]) -> dict[str, NDArray]:
    """Outputs of b1, b2, …, last by the oracle that fell into these traps, a hundred images at a time."""
    parts = [list(port(arch, weights, x[i : i + 100], 0, traps)) for i in range(0, len(x), 100)]
    return {name: np.concatenate(outputs) for name, *outputs in zip(arch.stage_names(), *parts, strict=True)}


def accuracy(logits: NDArray, labels: NDArray) -> float:
    """The share told right."""
    return float((logits.argmax(1) == labels).mean())


def cost(
    arch: Architecture, weights: Weights, x: NDArray, labels: NDArray, traps: Sequence[Trap]
) -> dict[str, Any]:
    """What these traps do to each layer, to the logits and to the accuracy."""
    right, wrong = layers(arch, weights, x, []), layers(arch, weights, x, traps)
    deviations = {name: float(deviation(wrong[name], right[name])) for name in right}
    return {
        "layers": deviations,
        "logits": deviations["last"],
        "accuracy": accuracy(wrong["last"], labels),
        "right": accuracy(right["last"], labels),
        "images": len(x),
    }
