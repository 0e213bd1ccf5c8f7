"""Padding SAME: what it does to a trained network, and to images of each size."""

from __future__ import annotations

from typing import Any

from measures.shared import cost, layers, test_images, trained, trap

from common.deviation import deviation

BOTH = "padding SAME in convolutions and"
PARTS = {
    "convolutions and max-pool": BOTH,
    "convolutions alone": "padding SAME in convolutions (",
    "max-pool alone": "padding SAME in the max-pool",
}
SIZES = range(32, 66)


def measure() -> dict[str, Any]:
    """Costs to networks trained at 32 and at 33 pixels, and to the logits of the first by size."""
    even, odd = (
        cost(*trained("resnet18", size)[:2], *test_images(500, size), [trap(BOTH)]) for size in (32, 33)
    )
    parts = [even, *(cost_at_32(start) for start in list(PARTS.values())[1:])]
    summary = {
        "logits": f"{even['logits']:.0%}, at 33 pixels none",
        "accuracy": f"{even['right']:.0%} → {even['accuracy']:.0%}",
    }
    return {
        "both_32": even,
        "both_33": odd,
        "pool_32": parts[2],
        "layers": {
            "x": list(even["layers"]),
            "series": {
                name: list(found["layers"].values()) for name, found in zip(PARTS, parts, strict=True)
            },
        },
        "parts": {
            "columns": ["SAME in", "logits off by", "told right, by the port", "by the original"],
            "rows": [
                [name, found["logits"], found["accuracy"], found["right"]]
                for name, found in zip([*PARTS, "both, trained and tested at 33"], [*parts, odd], strict=True)
            ],
        },
        "by_size": {"x": list(SIZES), "series": {"logits": [off(size) for size in SIZES]}},
        "summary": {key: text.replace("%", "\N{NARROW NO-BREAK SPACE}%") for key, text in summary.items()},
    }


def cost_at_32(start: str) -> dict[str, Any]:
    """What the trap whose cause begins so does to the network trained at 32 pixels."""
    return cost(*trained("resnet18")[:2], *test_images(500), [trap(start)])


def off(size: int) -> float:
    """Deviation of its logits on images of this height and width."""
    arch, weights, _ = trained("resnet18")
    x, _ = test_images(8, size)
    right, wrong = (layers(arch, weights, x, traps)["last"] for traps in ([], [trap(BOTH)]))
    return float(deviation(wrong, right))
