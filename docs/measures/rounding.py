"""How far float64 defines what a network computes: sums, depth, steps, and a network that was trained."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from measures.shared import test_images, trained

from benchmarks.faults import known
from common import architecture, initial_weights
from common.data import eight, sample
from common.horizon import LOST, UNIT, asleep
from common.proof.judge import Comparison, Job, measure_horizon

PIXELS = tuple(2**power for power in range(6, 21, 2))
CHANNEL = 18_432  # pixels of a channel after the first convolution, in eight images of 96×96
PICTURES = 25
NETWORKS = ("resnet18", "resnet34", "resnet50")


def units_off(n: int) -> dict[str, float]:
    """Units of rounding by which sums of n pixels are off, nine tenths of them background; the median."""
    found: dict[str, list[float]] = {"one after the other": [], "in pairs": []}
    for seed in range(PICTURES):
        generator = np.random.default_rng(seed)
        pixels = np.where(generator.random(n) < 0.9, generator.random(), generator.random(n))
        exact = math.fsum(pixels)
        for name, total in (("one after the other", np.cumsum(pixels)[-1]), ("in pairs", pixels.sum())):
            found[name].append(abs(total - exact) / exact / UNIT["float64"])
    return {name: float(np.median(units)) for name, units in found.items()}


def horizon(job: Job) -> Comparison:
    """Of everything in this job, its steps from the weights as they are."""
    found = known(replace(job, drawn=False))
    measure_horizon(found, found.evidence["oracle", "float64"])
    return found


def measure() -> dict[str, Any]:
    """Sums by length; horizons by network, and by step; what training makes of them."""
    sums = {n: units_off(n) for n in (*PIXELS, CHANNEL)}
    rows, steps, claimed = [], {}, {}
    for name in NETWORKS:
        arch = architecture(name, in_channels=1)
        x, y = eight(sample(), arch, (1, 96, 96))
        job = Job(arch, initial_weights(arch), x, y)
        label = name.replace("resnet", "ResNet-")
        drawn = horizon(job)
        quiet = horizon(replace(job, weights=asleep(arch, job.weights)))
        rows.append([label, drawn.horizon["logits"], drawn.horizon["gradients"]])
        steps[f"{label}, as drawn"] = drawn.step_horizon
        claimed[name] = drawn.claimed
        if name != "resnet18":
            steps[f"{label}, γ = 0"] = quiet.step_horizon
    arch, weights, _ = trained("resnet18")
    x, y = test_images(8)
    after = horizon(Job(arch, weights, x, y))
    return {
        "channel": CHANNEL,
        "sums": {
            "plot": {
                "x": [f"{n:,}" for n in PIXELS],
                "series": {name: [sums[n][name] for n in PIXELS] for name in sums[CHANNEL]},
            },
            "channel": list(sums[CHANNEL].values()),
        },
        "horizons": {"columns": ["network", "logits", "gradients"], "rows": rows},
        "steps": {"x": list(range(1, len(after.step_horizon) + 1)), "series": steps},
        "claimed": claimed,
        "lost": LOST["float64"],
        "trained": {"gradients": after.horizon["gradients"], "steps": after.step_horizon[-1]},
    }
