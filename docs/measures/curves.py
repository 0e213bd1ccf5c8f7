"""One training run in the four frameworks: an epoch of ResNet-18 on 12,800 images."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measures.shared import NETWORKS, settings

from common import initial_weights, load_backend, training
from common.backend import BACKENDS
from common.data import FashionMNIST

ORDER = ("torch", "jax", "tf", "mxnet")
IMAGES, VALIDATION, BATCH, SMOOTH = 12_800, 2_000, 128, 5


def measure() -> dict[str, Any]:
    """Losses by step, means of five, and the accuracy after the epoch; and the first steps in float64."""
    arch = NETWORKS["resnet18"]
    data = FashionMNIST(BATCH, (28, 28), limit_train=IMAGES, limit_val=VALIDATION)
    losses, accuracy = {}, {}
    for name in ORDER:
        options = {"backend": name, "epochs": 1, "warmup_epochs": 0}
        with tempfile.TemporaryDirectory() as folder:
            _, run = training.train(
                lambda backend: load_backend(backend).build(arch),
                data,
                settings(data, arch, **options),
                Path(folder) / "run",
                False,
            )
        label = BACKENDS[name].label
        steps = [record["loss"] for record in run.history if record["event"] == "step"]
        losses[label] = np.reshape(steps, (-1, SMOOTH)).mean(1).tolist()
        accuracy[name] = run.history[-1]["val_accuracy"]
    x = list(range(SMOOTH, IMAGES // BATCH + 1, SMOOTH))
    return {
        "images": IMAGES,
        "validation": VALIDATION,
        "batch": BATCH,
        "steps": IMAGES // BATCH,
        "loss": {"x": x, "series": losses},
        "accuracy": accuracy,
        "spread": max(accuracy.values()) - min(accuracy.values()),
        "exact": exact(data),
    }


def exact(data: FashionMNIST, steps: int = 5) -> dict[str, Any]:
    """The losses of the first steps in float64, digit by digit, and how far they are apart at most."""
    arch = NETWORKS["resnet18"]
    found = {}
    for name in ORDER:
        model = load_backend(name).build(arch, dtype="float64")
        model.load_weights(initial_weights(arch))
        batches = zip(range(steps), data.train_dataloader(dtype="float64"), strict=False)
        found[name] = [model.train_step(x[:32], y[:32], lr=0.01, momentum=0.9) for _, (x, y) in batches]
    values = np.array(list(found.values()))
    rows = [[str(i + 1), *(float(v[i]) for v in found.values())] for i in range(steps)]
    apart = float(np.ptp(values, 0).max())
    return {"columns": ["step", *(BACKENDS[name].label for name in ORDER)], "rows": rows, "apart": apart}
