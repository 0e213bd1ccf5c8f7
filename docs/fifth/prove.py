"""A quick proof that the fifth framework is the same network: it takes a second, and every build runs it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))

import resnet_fifth  # noqa: F401  (it enters itself in the registry)

from common import Architecture, initial_weights, load_backend
from common.deviation import deviation

ROUNDING, TRAINED = 1e-12, 1e-10  # float64: of one pass; of weights after some steps
NETWORKS = {
    "residual": Architecture(((1, 4), (2, 6)), in_channels=2, stem_channels=4, shortcut_norm=True),
    "resnext": Architecture(
        ((1, 4), (2, 8)),
        block="resnext",
        groups=2,
        bot_mul=0.5,
        stem_channels=3,
        padding="same",
        stem_padding="same",
        stride_on="1x1",
        epsilon=1e-3,
        decay=0.99,
    ),
}
RECIPES: tuple[dict[str, Any], ...] = (
    {},
    {"momentum": 0.9, "weight_decay": 1e-2, "no_decay_norm": True, "label_smoothing": 0.1, "ema": 0.5},
    {"freeze": "backbone"},
    {"lr_backbone": 0.1},
)
STEPS = 5  # with each recipe, one after another


def weights(arch: Architecture) -> dict[str, NDArray]:
    """Initial weights, with no bias or mean left at 0 and no scale or variance at 1."""
    generator = np.random.default_rng(1)
    return {
        name: array + generator.uniform(-0.5, 0.5, array.shape) if array.ndim == 1 else array
        for name, array in initial_weights(arch).items()
    }


def together(arrays: dict[str, NDArray]) -> NDArray:
    """All of them in one row, in the order of their names."""
    return np.concatenate([arrays[name].ravel() for name in sorted(arrays)])


def run(name: str, arch: Architecture) -> dict[str, NDArray]:
    """What a backend computes from the same weights and images."""
    generator = np.random.default_rng(2)
    x, y = generator.random((3, arch.in_channels, 34, 47)), generator.integers(arch.num_classes, size=3)
    model = load_backend(name).build(arch, "float64")
    model.load_weights(weights(arch))
    found = {"weights there and back": together(model.weights()), "layers": together(model.activations(x))}
    pass_ = model.loss_and_gradients(x, y)
    found |= {"loss": np.array([pass_.loss]), "gradients": together(pass_.gradients)}
    found |= {"running statistics": together(pass_.running)}
    for recipe in RECIPES:
        for _ in range(STEPS):
            model.train_step(x, y, lr=0.01, **recipe)
    return {**found, f"weights after {STEPS * len(RECIPES)} steps": together(model.weights())}


def deviations() -> list[tuple[str, float, float]]:
    """What was compared, how far the fifth is from the oracle, and the bound."""
    found = []
    for kind, arch in NETWORKS.items():
        ours, oracle = run("fifth", arch), run("oracle", arch)
        for what in oracle:
            bound = TRAINED if "after" in what else ROUNDING
            found.append((f"{kind}: {what}", float(deviation(ours[what], oracle[what])), bound))
    return found


def main() -> None:
    """Show them."""
    for what, off, bound in deviations():
        print(f"{what:36} {off:.1e}   bound {bound:.0e}")


if __name__ == "__main__":
    main()
