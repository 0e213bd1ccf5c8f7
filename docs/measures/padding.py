"""Padding SAME: what it does to a trained network, and to images of each size."""

from __future__ import annotations

from typing import Any

from measures.shared import cost, layers, test_images, trained, trap

from common.proof.compare import deviation

SAME = {
    "both": "padding SAME in convolutions and",
    "convolutions": "padding SAME in convolutions (",
    "pool": "padding SAME in the max-pool",
}
SIZES = range(32, 66)


def measure() -> dict[str, Any]:
    """Costs to networks trained at 32 and at 33 pixels, and to the logits of the first by size."""
    costs = {
        f"{kind}_{size}": cost(*trained("resnet18", size)[:2], *test_images(500, size), [trap(start)])
        for kind, start in SAME.items()
        for size in (32, 33)
    }
    arch, weights, _ = trained("resnet18")
    off = []
    for size in SIZES:
        x, _ = test_images(8, size)
        right, wrong = (layers(arch, weights, x, traps)["last"] for traps in ([], [trap(SAME["both"])]))
        off.append(float(deviation(wrong, right)))
    return {**costs, "by_size": {"x": list(SIZES), "series": {"logits": off}}}
