"""The trap explorer: every set of six traps at two sizes, each layer's deviation and the accuracy."""

from __future__ import annotations

import itertools
from typing import Any

from measures.shared import accuracy, layers, test_images, trained, trap

from common.deviation import deviation

IMAGES = 200
SIZES = (32, 33)
TRAPS = {  # what the page calls it: how its cause begins
    "padding SAME in the convolutions": "padding SAME in convolutions (",
    "padding SAME in the max-pool": "padding SAME in the max-pool",
    "epsilon 1e-3 in batch norm": "batch norm's epsilon 1e-3",
    "batch statistics in evaluation": "batch statistics in batch norm (",
    "images in 0..255": "images in 0..255",
    "kernels flipped": "kernels flipped",
}


def measure() -> dict[str, Any]:
    """Under "SIZE:110000", a 1 for each trap that is on: deviations of b1 to last, and the accuracy."""
    runs = {}
    for size in SIZES:
        arch, weights, _ = trained("resnet18", size)
        x, labels = test_images(IMAGES, size)
        right = layers(arch, weights, x, [])
        for chosen in itertools.product((0, 1), repeat=len(TRAPS)):
            fallen = [trap(start) for start, on in zip(TRAPS.values(), chosen, strict=True) if on]
            wrong = layers(arch, weights, x, fallen)
            off = [float(f"{deviation(wrong[name], right[name]):.3g}") for name in right]
            runs[f"{size}:{''.join(map(str, chosen))}"] = {
                "layers": off,
                "accuracy": round(accuracy(wrong["last"], labels), 4),
            }
    return {
        "count": len(runs),
        "layers": list(right),
        "traps": list(TRAPS),
        "sizes": list(SIZES),
        "images": IMAGES,
        "runs": runs,
    }
