"""What each stage puts out and holds, as rows any backend fills alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from numpy.typing import NDArray

from common.architecture import Architecture, Shape
from common.weights import is_statistic


@dataclass(frozen=True)
class Row:
    """One stage: canonical name, kind, output shape (N, C, H, W) or (N, classes), trainable parameters."""

    name: str
    kind: str
    output_shape: Shape
    parameters: int


def summary_rows(
    arch: Architecture, activations: Mapping[str, NDArray], weights: Mapping[str, NDArray]
) -> list[Row]:
    """Rows from what a model computed and holds."""
    block = {"residual": "Residual", "resnext": "ResNeXtBlock"}[arch.block]
    kinds = ["stem", *(f"{count} × {block}" for count, _ in arch.stages), "classifier"]
    parameters = dict.fromkeys(activations, 0)
    for name, array in weights.items():
        if not is_statistic(name):
            parameters[name.split(".")[0]] += array.size
    return [
        Row(name, kind, activations[name].shape, parameters[name])
        for name, kind in zip(activations, kinds, strict=True)
    ]


def layer_line(name: str, shape: Shape) -> str:
    """A line of a package's `layer_summary`."""
    return f"{name:<5}output shape:\t{tuple(shape)}"
