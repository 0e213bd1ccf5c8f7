"""How far float64 defines what a network computes: its horizon.

Two right programs add the same numbers in different orders, and round differently: sums of n terms end some
√n units of rounding apart (Higham and Mary, "A new approach to probabilistic rounding error analysis", 2019),
and up to n where the terms are alike, as the pixels of a background are (Higham, "Accuracy and Stability of
Numerical Algorithms", 2002, chapter 4). Depth magnifies such a difference, and so does every step of
training. By how much is measured, not guessed: the oracle runs again from weights that are moved by √n units,
in training adding pixels one after the other, not in pairs (`common.proof.candidate.OneByOne`). How far the
two runs are apart is the horizon: an estimate of how far two correct programs may differ. Where it is above
`LOST`, nothing is claimed.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from common.architecture import Architecture, Shape
from common.weights import Weights

# Unit roundoffs.
UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
# Of the horizon, that a deviation may be. Of right frameworks it was 2 at most, in float32 0.3; after
# steps, which magnify one difference more than another, 4.3.
MULTIPLE, AFTER_STEPS = {"float64": 3, "float32": 1, "float16": 1, "bfloat16": 1}, 10
# How far apart outputs in evaluation may be at least. ResNet-50 in float16 is 1e-3 off, in bfloat16 9e-3.
LAYER_BOUNDS = {"float64": 1e-12, "float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2}
# What rounding carries further is not claimed. Of 16 bits it says too much, since sums are kept in more.
LOST = {"float64": 1e-8, "float32": 1e-2, "float16": 5e-3, "bfloat16": 4e-2}
NOISE = 64 * UNIT["float64"]  # of a whole, such as all gradients: a part that differs by less is rounding
SAMPLE = 256  # numbers of a tensor that are kept of every step
EARLY, FAR = 5, 2e-10  # steps from drawn weights, and a horizon after them that grows too fast for 20


def moved(weights: Weights, shape: Shape | None = None) -> Weights:
    """Each number moved by up to √n units of rounding, at random.

    n is the number of terms in the sums of its layer: of the convolution, or of the last layer. In training
    on images of this shape (N, C, H, W) it is at least the number of pixels of a channel after the first
    convolution, the terms of batch norm's longest sums.
    """
    pixels = 0
    if shape:
        images, _, height, width = shape
        pixels = images * math.ceil(height / 2) * math.ceil(width / 2)
    generator = np.random.default_rng(1)

    def by(name: str, array: NDArray) -> NDArray:
        units = math.sqrt(max(pixels, _terms(weights, name)))
        return 1 + units * UNIT["float64"] * generator.uniform(-1, 1, array.shape)

    return {name: array * by(name, array) for name, array in weights.items()}


def _terms(weights: Weights, name: str) -> int:
    """How many products the layer of a tensor adds up; batch norm's is the convolution before it."""
    layer = name.rpartition(".")[0].replace("bn", "conv")
    return weights[f"{layer}.weight"][0].size


def asleep(arch: Architecture, weights: Weights) -> Weights:
    """The weights with γ = 0 in the last batch norm of each block, whose branch wakes after the first step.

    Goyal et al., "Accurate, large minibatch SGD" (2017), section 5.1. Training from there, float64 can follow
    a deep network for many steps; from the weights as they are drawn only for a few.
    """
    last = {f"{block.name}.bn{len(block.chain)}.weight" for stage in arch.blocks() for block in stage}
    return {name: np.zeros_like(array) if name in last else array for name, array in weights.items()}


def sample(weights: Weights) -> Weights:
    """Some numbers of every tensor, evenly spread: at an odd distance, so not all of one channel or pixel."""
    return {name: array.ravel()[:: array.size // SAMPLE | 1].copy() for name, array in weights.items()}


def allowed(floor: float, horizon: float, dtype: str = "float64", after_steps: bool = False) -> float:
    """How far right programs may be apart, with this horizon in float64; never less than the floor."""
    multiple = AFTER_STEPS if after_steps else MULTIPLE[dtype]
    return max(floor, multiple * _in(dtype, horizon))


def of_sure(loss: float) -> float:
    """How far rounding carries a training loss, and with it all gradients, by itself.

    A loss near zero is log(1 + δ), and its gradient 1 − p: where all numbers are rounded as parts of 1, they
    are off by a unit of 1.
    """
    return UNIT["float64"] / loss if loss > 0 else math.inf


def is_claimed(horizon: float, dtype: str = "float64") -> bool:
    """Whether a quantity with this horizon in float64 is defined well enough to be compared in this type.

    NaN is, so that it stays a difference.
    """
    return not _in(dtype, horizon) > LOST[dtype]


def _in(dtype: str, horizon: float) -> float:
    return horizon * UNIT[dtype] / UNIT["float64"]
