"""The width of a group or the number of groups: shapes, parameters, and weights that only seem to load."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from measures.shared import cost, layers, test_images, trained
from numpy.typing import NDArray

from common import Architecture, architecture, initial_weights
from common.architecture import Block
from common.deviation import deviation
from common.proof.traps import Trap
from common.weights import is_statistic

BLOCKS = {
    "`ResNeXtBlock(32, 16, 1)`": (32, 16, 1.0),
    "`ResNeXtBlock(256, 4, 0.5)`": (256, 4, 0.5),
    "`ResNeXtBlock(256, 16, 1)`": (256, 16, 1.0),
}


def measure() -> dict[str, Any]:
    """Blocks and a network with either meaning, and the costs of two ports that raise no error."""
    rows = []
    for name, (channels, groups, bot_mul) in BLOCKS.items():
        right = Block("b2.0", channels, channels, 1, groups, bot_mul)
        wrong = replace(right, groups=right.bot_channels // groups)
        rows.append([name, *(f"`{dict(block.layers())['conv2']}`" for block in (right, wrong))])
    resnext = architecture("resnext50_32x4d", in_channels=3, num_classes=1000)
    skipped, swapped = skipped_sizes(), swapped_axes()
    summary = {
        "logits": f"does not load; where it does, {skipped['logits']:.0%}",
        "accuracy": f"{skipped['right']:.0%} → {skipped['accuracy']:.0%}",
    }
    return {
        "shapes": {"columns": ["block", "`groups` is the width", "`groups` is the number"], "rows": rows},
        "parameters": {"width": parameters(resnext), "number": parameters(as_number(resnext))},
        "skipped": skipped,
        "layers": {"x": list(skipped["layers"]), "series": {"deviation": list(skipped["layers"].values())}},
        "swapped": swapped,
        "summary": {key: text.replace("%", "\N{NARROW NO-BREAK SPACE}%") for key, text in summary.items()},
    }


def as_number(arch: Architecture) -> Architecture:
    """The network of a port that takes the widths for numbers."""
    firsts = [stage[0] for stage in arch.blocks()]
    return replace(arch, groups=tuple(b.bot_channels // b.groups for b in firsts if b.groups))


def parameters(arch: Architecture) -> int:
    """How many a training changes."""
    return sum(math.prod(shape) for name, shape in arch.parameter_shapes().items() if not is_statistic(name))


def skipped_sizes() -> dict[str, Any]:
    """The trained bottlenecks in a port that loads what fits, and leaves the other tensors as they began."""
    arch, weights, _ = trained("bottleneck")
    began = initial_weights(as_number(arch))

    def what_fits(name: str, array: NDArray) -> NDArray:
        return array if array.shape == began[name].shape else began[name]

    return cost(arch, weights, *test_images(500), [Trap("sizes skipped", "groups", weights=what_fits)])


def swapped_axes() -> float:
    """Deviation of the logits where channels are dealt out to groups in turns, by weights as they began."""
    arch = Architecture(stages=((1, 256), (1, 256)), block="resnext", groups=16)
    turns = np.arange(256).reshape(16, 16).T.ravel()

    def in_turns(name: str, array: NDArray) -> NDArray:
        return array[turns] if ".conv1." in name or ".bn1." in name else array

    weights, (x, _) = initial_weights(arch), test_images(8)
    traps = [Trap("in turns", "groups", weights=in_turns)]
    right, wrong = (layers(arch, weights, x, some)["last"] for some in ([], traps))
    return float(deviation(wrong, right))
