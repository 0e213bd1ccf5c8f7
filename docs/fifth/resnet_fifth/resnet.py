"""ResNet: a stem, stages of blocks, and a classifier (He et al. 2015, table 1)."""

from __future__ import annotations

from common.architecture import Architecture
from resnet_fifth.blocks import Residual, ResNeXtBlock
from resnet_fifth.layers import BatchNorm, Conv2d, Dense, MaxPool2d, Sequential, relu

BLOCKS = {"residual": Residual, "resnext": ResNeXtBlock}


def resnet(arch: Architecture) -> Sequential:
    """The network (N, H, W, C) → (N, classes). Its parts have the names that all packages share."""
    stem = {
        "conv": Conv2d(2, arch.stem_padding),
        "bn": BatchNorm(arch.epsilon, arch.decay),
        "relu": relu,
        "pool": MaxPool2d(arch.padding),
    }
    parts = {"b1": Sequential(stem)}
    for k, blocks in enumerate(arch.blocks(), start=2):
        parts[f"b{k}"] = Sequential({str(i): BLOCKS[arch.block](block) for i, block in enumerate(blocks)})
    return Sequential({**parts, "last": Dense()})
