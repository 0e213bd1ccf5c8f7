"""What blocks and networks hold and cost, counted from their architecture."""

from __future__ import annotations

import math
from typing import Any

from common import summary
from common.architecture import Architecture, Block, architecture
from common.weights import is_statistic


def measure() -> dict[str, Any]:
    """Parameters and products of blocks, of the zoo's networks, and of grouped convolutions."""
    resnet = architecture("resnet18")
    return {
        "block": block(resnet.blocks()[0][0]),
        "block_1x1": block(resnet.blocks()[1][0]),
        "resnet18": network(resnet, 96),
        "zoo": {name: network(architecture(name, 3, 1000), 224) for name in ZOO},
        "bottleneck": bottleneck(256),
        "groups": groups(),
    }


ZOO = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d")


def block(of: Block) -> dict[str, Any]:
    """Trainable parameters of a block, and those of its shortcut; each layer has a bias for each channel."""
    sizes = {name: math.prod(shape) + shape[0] for name, shape in of.layers()}
    shortcut = sum(size for name, size in sizes.items() if int(name[-1]) > len(of.chain))
    return {"parameters": sum(sizes.values()), "shortcut": shortcut, "share": shortcut / sum(sizes.values())}


def network(arch: Architecture, size: int) -> dict[str, Any]:
    """Trainable parameters, products for an image of this height and width, and layers with weights."""
    found = summary.parts(arch, (1, arch.in_channels, size, size))
    shapes = {name: shape for name, shape in arch.parameter_shapes().items() if not is_statistic(name)}
    chains = sum(len(block.chain) for stage in arch.blocks() for block in stage)
    return {
        "parameters": sum(map(math.prod, shapes.values())),
        "macs": sum(part.macs for part in found),
        "depth": chains + 2,
        "blocks": sum(count for count, _ in arch.stages),
        "parts": {
            part.row.name: {
                "shape": " × ".join(map(str, part.row.output_shape[1:])),
                "parameters": part.row.parameters,
                "macs": part.macs,
            }
            for part in found
        },
        "largest": max(part.row.parameters for part in found) / sum(map(math.prod, shapes.values())),
    }


def bottleneck(channels: int) -> dict[str, Any]:
    """Weights of two 3×3 convolutions of so many channels, and of a bottleneck of a quarter of them."""
    narrow = channels // 4
    plain, through = 2 * 9 * channels**2, 2 * channels * narrow + 9 * narrow**2
    return {"two": plain, "bottleneck": through, "ratio": plain / through}


def groups() -> dict[str, Any]:
    """Weights of a 3×3 convolution of 128 channels, by its number of groups; and blocks of equal cost."""
    counts = [1, 2, 4, 8, 16, 32, 64, 128]
    weights = [9 * 128 * 128 // count for count in counts]
    blocks = {name: architecture(name).blocks()[0][1] for name in ("resnet50", "resnext50_32x4d")}
    return {
        "weights": {"x": [str(count) for count in counts], "series": {"weights": weights}},
        "one": weights[0],
        "32": weights[5],
        "blocks": {name: block(found) for name, found in blocks.items()},
    }
