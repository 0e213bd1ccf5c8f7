"""What the exercises' blocks hold, and what their variants cost in a short training run."""

from __future__ import annotations

import math
import runpy
from typing import Any

import source
import torch
from measures.depth import CHANNELS, train
from torch import nn

from common import architecture
from common.weights import is_statistic
from resnet_torch import Residual

BLOCKS = 3  # in each of three stages
INTO = 192  # channels into GoogLeNet's first Inception block, and 256 out of it


def measure() -> dict[str, Any]:
    """Parameters of the blocks; the loss of networks of residual and of pre-activation blocks."""
    found = {
        name: runpy.run_path(str(source.DOCS / "exercises" / f"{name}.py"))
        for name in ("inception", "preactivation", "plain")
    }
    inception = found["inception"]["Inception"](64, (96, 128), (16, 32), 32)
    network = found["plain"]["network"]
    return {
        "inception": parameters(inception, INTO),
        "residual": parameters(Residual(256, use_1x1conv=True), INTO),
        "loss": {
            "after": train(lambda: network(Residual, BLOCKS, CHANNELS)),
            "before": train(lambda: network(found["preactivation"]["PreActivation"], BLOCKS, CHANNELS)),
        },
        "zoo": {name: count(name) for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")},
    }


def parameters(block: nn.Module, channels: int) -> int:
    """Trainable parameters of a block for images of so many channels."""
    block(torch.zeros(2, channels, 8, 8))
    return sum(parameter.numel() for parameter in block.parameters())


def count(name: str) -> int:
    """Trainable parameters of a published network for Fashion-MNIST."""
    shapes = architecture(name, in_channels=1, num_classes=10).parameter_shapes()
    return sum(math.prod(shape) for key, shape in shapes.items() if not is_statistic(key))
