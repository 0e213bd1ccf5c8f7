"""What each stage puts out, holds and costs: measured on a model, and worked out from the architecture."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from numpy.typing import NDArray

from common.architecture import Architecture, Shape
from common.errors import BadInput
from common.weights import is_statistic

KINDS = {"residual": "Residual", "resnext": "ResNeXtBlock"}


@dataclass(frozen=True)
class Row:
    """One stage: canonical name, kind, output shape (N, C, H, W) or (N, classes), trainable parameters."""

    name: str
    kind: str
    output_shape: Shape
    parameters: int

    @property
    def shape_text(self) -> str:
        """The output shape of one image, as "64×24×24"."""
        return "×".join(str(size) for size in self.output_shape[1:])


@dataclass(frozen=True)
class Part:
    """A stage or a block as the architecture has it: its row, and multiply-accumulates for one image."""

    row: Row
    macs: int


def summary_rows(
    arch: Architecture, activations: Mapping[str, NDArray], weights: Mapping[str, NDArray]
) -> list[Row]:
    """Rows from what a model computed and holds."""
    kinds = ["stem", *(f"{count} × {KINDS[arch.block]}" for count, _ in arch.stages), "classifier"]
    parameters = dict.fromkeys(activations, 0)
    for name, array in weights.items():
        if not is_statistic(name):
            parameters[name.split(".")[0]] += array.size
    return [
        Row(name, kind, activations[name].shape, parameters[name])
        for name, kind in zip(activations, kinds, strict=True)
    ]


def parts(arch: Architecture, input_shape: Shape, depth: str = "stages") -> list[Part]:
    """What the network is for images of this (N, C, H, W) shape, a part for each stage or each block.

    Multiply-accumulates are those of convolutions and the dense layer, for one image; batch norm,
    biases and pooling are left out, as torchvision leaves them out.

    Raises:
        ValueError: if the images do not fit the network, or `depth` is not "stages" or "blocks".
    """
    if depth not in ("stages", "blocks"):
        raise BadInput(f"unknown depth {depth!r}; give stages or blocks")
    arch.check_input(input_shape)
    parameters: Counter[str] = Counter()
    for name, shape in arch.parameter_shapes().items():
        if not is_statistic(name):
            parameters[name.rsplit(".", 2)[0]] += math.prod(shape)

    def part(name: str, kind: str, output_shape: Shape, macs: int) -> Part:
        return Part(Row(name, kind, (input_shape[0], *output_shape), parameters[name]), macs)

    height, width = _half(input_shape[2]), _half(input_shape[3])  # after the stem's convolution
    macs = arch.stem_channels * arch.in_channels * 7 * 7 * height * width
    height, width = _half(height), _half(width)  # after its pool
    found = [part("b1", "stem", (arch.stem_channels, height, width), macs)]
    for k, blocks in enumerate(arch.blocks(), start=2):
        stage = []
        for block in blocks:
            before = height * width
            if block.strides == 2:
                height, width = _half(height), _half(width)
            conv1 = before if block.chain[0] == 1 else height * width  # the others come after the stride
            macs = sum(
                math.prod(shape) * (conv1 if layer == "conv1" else height * width)
                for layer, shape in block.layers()
                if layer.startswith("conv")
            )
            shape = (block.num_channels, height, width)
            stage.append(part(block.name, KINDS[arch.block], shape, macs))
        found += stage if depth == "blocks" else [_together(f"b{k}", stage)]
    return [*found, part("last", "classifier", (arch.num_classes,), arch.num_classes * arch.stages[-1][1])]


def _half(pixels: int) -> int:
    """Height or width after a stride of 2, ⌈pixels / 2⌉."""
    return (pixels + 1) // 2


def _together(name: str, blocks: list[Part]) -> Part:
    """The stage that these blocks are."""
    row = blocks[-1].row
    kind, parameters = f"{len(blocks)} × {row.kind}", sum(block.row.parameters for block in blocks)
    return Part(Row(name, kind, row.output_shape, parameters), sum(block.macs for block in blocks))


def layer_line(name: str, shape: Shape) -> str:
    """A line of a package's `layer_summary`."""
    return f"{name:<5}output shape:\t{tuple(shape)}"
