"""Where a bottleneck has its stride: what the other place does to trained weights, and to the work."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from measures.shared import cost, test_images, trained, trap

from common import Architecture, architecture

FIRST = "stride in a bottleneck's first convolution"


def measure() -> dict[str, Any]:
    """The cost to a network with bottlenecks, and the products a ResNet-50 takes with either place."""
    found = cost(*trained("bottleneck")[:2], *test_images(1000), [trap(FIRST)])
    resnet50 = architecture("resnet50", in_channels=3, num_classes=1000)
    work = {place: chain_products(replace(resnet50, stride_on=place), 224) for place in ("1x1", "3x3")}
    summary = {
        "logits": f"{found['logits']:.0%}",
        "accuracy": f"{found['right']:.0%} → {found['accuracy']:.0%}",
    }
    return {
        "first": found,
        "layers": {"x": list(found["layers"]), "series": {"deviation": list(found["layers"].values())}},
        "work": work,
        "more_work": work["3x3"] / work["1x1"] - 1,
        "summary": {key: text.replace("%", "\N{NARROW NO-BREAK SPACE}%") for key, text in summary.items()},
    }


def chain_products(arch: Architecture, size: int) -> int:
    """Multiplications of the chains' convolutions for one image, whose side the stem has divided by four."""
    size //= 4
    total = 0
    for block in (block for stage in arch.blocks() for block in stage):
        convolutions = [shape for name, shape in block.layers() if name.startswith("conv")]
        for (o, i, height, width), stride in zip(convolutions, block.chain, strict=False):
            size //= stride
            total += o * i * height * width * size * size
    return total
