"""Networks of more and more layers, with and without shortcuts, in short training runs."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from typing import Any

import numpy as np
import source
import torch
from torch.nn import functional as F

from common.data import full
from resnet_torch import Residual

BLOCKS = (1, 3, 6, 9)  # in each of three stages
STEPS, BATCH, RATE, MOMENTUM, LAST, SEEDS = 150, 64, 0.01, 0.9, 30, (0, 1)
CHANNELS, SIZE = 8, 14  # narrow, and small images: so many layers take their time


def measure() -> dict[str, Any]:
    """The mean training loss over the last steps, by the number of layers."""
    plain = runpy.run_path(str(source.DOCS / "exercises" / "plain.py"))
    kinds = {"with shortcuts": Residual, "without": plain["Plain"]}
    found = {
        name: [train(lambda: plain["network"](kind, count, CHANNELS)) for count in BLOCKS]  # noqa: B023
        for name, kind in kinds.items()
    }
    layers = [6 * count + 2 for count in BLOCKS]
    return {
        "steps": STEPS,
        "batch": BATCH,
        "last": LAST,
        "seeds": len(SEEDS),
        "size": SIZE,
        "deepest": layers[-1],
        "loss": {"x": layers, "series": found},
    }


def train(build: Callable[[], torch.nn.Module]) -> float:
    """The mean loss over the last steps of a run from each seed."""
    data, count = full(), STEPS * BATCH
    pixels = torch.from_numpy(np.array(data.train_images[:count], "float32") / 255)
    X = F.avg_pool2d(pixels.reshape(-1, 1, 28, 28), 28 // SIZE)
    Y = torch.from_numpy(np.array(data.train_labels[:count], "int64"))
    losses = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        net = build()
        net(X[:2])  # gives the lazy layers their shapes, and their weights
        optimizer = torch.optim.SGD(net.parameters(), RATE, MOMENTUM)
        for step, (x, y) in enumerate(zip(X.split(BATCH), Y.split(BATCH), strict=True)):
            loss = F.cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step >= STEPS - LAST:
                losses.append(float(loss.detach()))
    return float(np.mean(losses))
