"""Networks of more and more layers, with and without shortcuts, in short training runs."""

from __future__ import annotations

import runpy
from typing import Any

import numpy as np
import source
import torch
from torch.nn import functional as F

from common.data import full
from resnet_torch import Residual

BLOCKS = (1, 3, 6, 9)  # in each of three stages
STEPS, BATCH, RATE, MOMENTUM, LAST = 150, 64, 0.05, 0.9, 30


def measure() -> dict[str, Any]:
    """The mean training loss over the last steps, by the number of layers."""
    plain = runpy.run_path(str(source.DOCS / "exercises" / "plain.py"))
    kinds = {"with shortcuts": Residual, "without": plain["Plain"]}
    found = {name: [train(plain["network"](kind, count)) for count in BLOCKS] for name, kind in kinds.items()}
    layers = [6 * count + 2 for count in BLOCKS]
    return {
        "steps": STEPS,
        "batch": BATCH,
        "last": LAST,
        "deepest": layers[-1],
        "loss": {"x": layers, "series": found},
    }


def train(net: torch.nn.Module) -> float:
    """The mean loss over a run's last steps."""
    data = full()
    X = torch.from_numpy(np.array(data.train_images[: STEPS * BATCH], "float32") / 255).reshape(-1, 1, 28, 28)
    Y = torch.from_numpy(np.array(data.train_labels[: STEPS * BATCH], "int64"))
    torch.manual_seed(0)
    net(X[:2])  # gives the lazy layers their shapes, and their weights
    optimizer = torch.optim.SGD(net.parameters(), RATE, MOMENTUM)
    losses = []
    for x, y in zip(X.split(BATCH), Y.split(BATCH), strict=True):
        loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return float(np.mean(losses[-LAST:]))
