"""The ReLU's kink in float32: how far gradients are from float64's, and that flipped ReLUs are the cause."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
from measures.shared import test_images, trained
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

import resnet_torch.blocks
from common import load_backend
from common.architecture import Architecture
from common.backend import BACKENDS, Evaluation
from common.deviation import distance
from resnet_torch.layers import MaxPool2d

IMAGES = 16  # in a batch
BATCHES = 8
SIZES = (32, 96)


class Kinks:
    """Stands in for the ReLUs and the max-pool of PyTorch's network: notes which way each went.

    Attributes:
        inputs: what each was given, in the order of computation.
        sides: which way it went: where a ReLU is open, which pixel a window of the max-pool takes.
        given: ways to go instead.
    """

    def __init__(self, given: list[Tensor] | None = None) -> None:
        self.inputs: list[Tensor] = []
        self.sides: list[Tensor] = []
        self.given = given

    def side(self, X: Tensor, own: Tensor) -> Tensor:
        """The way to go."""
        self.inputs.append(X.detach())
        self.sides.append(own)
        return self.given[len(self.sides) - 1] if self.given else own

    def relu(self, X: Tensor) -> Tensor:
        return X * self.side(X, X > 0)

    def max_pool(self, X: Tensor) -> Tensor:
        Y, own = F.max_pool2d(X, 3, 2, 1, return_indices=True)
        return X.flatten(2).gather(2, self.side(X, own).flatten(2)).view_as(Y)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Within, PyTorch's layers are these."""
        with (
            patch.object(resnet_torch.blocks, "relu", self.relu),
            patch.object(nn.ReLU, "forward", lambda layer, X: self.relu(X)),
            patch.object(MaxPool2d, "forward", lambda layer, X: self.max_pool(X)),
        ):
            yield


def names(arch: Architecture) -> list[str]:
    """What the kinks are called, in the order of computation."""
    found = ["the stem's ReLU", "the max-pool"]
    for block in (block for stage in arch.blocks() for block in stage):
        found += [f"the ReLU after {block.name}.bn{i}" for i in range(1, len(block.chain))]
        found.append(f"the ReLU after the addition in {block.name}")
    return found


def compute(
    model: Any, x: NDArray, y: NDArray, given: list[Tensor] | None = None
) -> tuple[Kinks, Evaluation]:
    """A training pass with these ways to go, or its own."""
    kinks = Kinks(given)
    with kinks.installed():
        return kinks, model.loss_and_gradients(x, y)


def batches(size: int) -> list[tuple[NDArray, NDArray]]:
    """Test images that float32 holds exactly, so that both types are given the same, and their labels."""
    x, y = test_images(IMAGES * BATCHES, size)
    x = x.astype(np.float32).astype(np.float64)
    return list(zip(np.split(x, BATCHES), np.split(y, BATCHES), strict=True))


def one_flip(where: str, exact: Kinks, rounded: Kinks, i: int) -> dict[str, Any]:
    """The first flip of kink number i: which ReLU of which image, and what it was given in both types."""
    at = tuple((exact.sides[i] != rounded.sides[i]).nonzero()[0].tolist())
    image, channel, row, column = at
    return {
        "layer": where,
        "unit": f"channel {channel}, row {row}, column {column} of image {image}",
        "float64": float(exact.inputs[i][at]),
        "float32": float(rounded.inputs[i][at]),
    }


def flips_at(size: int, models: dict[str, Any], arch: Architecture) -> dict[str, Any]:
    """Flips and deviations of float32, with its own ways to go and with those of float64."""
    own, kept, flips, stages, example = [], [], [], dict.fromkeys(arch.stage_names()[:-1], 0), {}
    for x, y in batches(size):
        exact, right = compute(models["float64"], x, y)
        rounded, wrong = compute(models["float32"], x, y)
        _, mended = compute(models["float32"], x, y, exact.sides)
        counts = [int((a != b).sum()) for a, b in zip(exact.sides, rounded.sides, strict=True)]
        for name, count in zip(names(arch), counts, strict=True):
            stages[name.split()[-1].split(".")[0] if "after" in name else "b1"] += count
        own.append(distance(wrong.gradients, right.gradients))
        kept.append(distance(mended.gradients, right.gradients))
        flips.append(sum(counts))
        # The one to show: a single ReLU that flipped in a batch, if there is such a batch.
        relus = [i for i, name in enumerate(names(arch)) if counts[i] and "ReLU" in name]
        if relus and sum(counts) < example.get("flips", np.inf):
            example = {"flips": sum(counts), "deviation": own[-1], "mended": kept[-1]}
            example |= one_flip(names(arch)[relus[0]], exact, rounded, relus[0])
    return {
        "kinks": sum(side.numel() for side in exact.sides),
        "flips": sum(flips),
        "flipped_batches": sum(count > 0 for count in flips),
        "own": own,
        "kept": kept,
        "median": median(own),
        "worst": max(own),
        "worst_kept": max(kept),
        "stages": stages,
        "example": example,
    }


def measure() -> dict[str, Any]:
    """Flips at both sizes in PyTorch, and the float32 gradients of every framework."""
    arch, weights, _ = trained("resnet18")
    models = {dtype: load_backend("torch").build(arch, dtype) for dtype in ("float64", "float32")}
    for model in models.values():
        model.load_weights(weights)
    small, large = (flips_at(size, models, arch) for size in SIZES)

    given = batches(SIZES[0])
    exact = [models["float64"].loss_and_gradients(x, y) for x, y in given]
    frameworks, logits = {}, 0.0
    for name in ("torch", "jax", "tf", "mxnet"):
        model = load_backend(name).build(arch)
        model.load_weights(weights)
        found = [model.loss_and_gradients(x, y) for x, y in given]
        pairs = list(zip(found, exact, strict=True))
        frameworks[BACKENDS[name].label] = [distance(a.gradients, b.gradients) for a, b in pairs]
        logits = max(logits, *(distance({"": a.logits}, {"": b.logits}) for a, b in pairs))
    numbers = list(range(1, BATCHES + 1))
    return {
        "images": IMAGES,
        "batches": BATCHES,
        "small": small,
        "large": large,
        "cause": {
            "x": numbers,
            "series": {
                "96 pixels": large["own"],
                "96 pixels, ReLUs as in float64": large["kept"],
                "32 pixels": small["own"],
                "32 pixels, ReLUs as in float64": small["kept"],
            },
        },
        "by_stage": {"x": list(large["stages"]), "series": {"flips": list(large["stages"].values())}},
        "frameworks": {"x": numbers, "series": frameworks},
        "training_logits": logits,
        "summary": {"logits": "last digits", "accuracy": "none"},
    }
