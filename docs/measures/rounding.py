"""How far float64 defines what a network computes: sums, depth, steps, and a network that was trained."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from measures.shared import test_images, trained
from numpy.typing import NDArray

from benchmarks.faults import known
from common import architecture, initial_weights, oracle
from common.data import eight, sample
from common.horizon import FAR, LOST, UNIT, asleep
from common.proof.judge import Comparison, Job, measure_horizon

LENGTHS = tuple(2**power for power in range(8, 19, 2))
DRAWS = 25
NETWORKS = ("resnet18", "resnet34", "resnet50")


def units_off(terms: NDArray) -> dict[str, float]:
    """Units of rounding by which the sum of these terms, all of one sign, is off in two orders."""
    totals = {"one after the other": np.cumsum(terms)[-1], "NumPy's, in pairs": terms.sum()}
    exact = math.fsum(terms)
    return {name: abs(math.fsum([t, *-terms])) / exact / UNIT["float64"] for name, t in totals.items()}


def simulated(n: int) -> dict[str, float]:
    """Of sums of n numbers in [0, 1), nine tenths of them equal; the mean over some draws."""
    found = []
    for seed in range(DRAWS):
        generator = np.random.default_rng(seed)
        background, others = generator.random(), generator.random(n)
        found.append(units_off(np.where(generator.random(n) < 0.9, background, others)))
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


def in_network(job: Job) -> dict[str, float]:
    """Of the first variances of a network: sums of squared deviations of each channel; their median."""
    one_pass = oracle.Pass(job.arch, job.weights, training=True)
    y, _ = one_pass.convolution("b1.conv", job.x, 2, job.arch.stem_padding)
    channels = y.transpose(1, 0, 2, 3).reshape(y.shape[1], -1)
    found = [units_off((channel - channel.mean()) ** 2) for channel in channels]
    return {name: float(np.median([one[name] for one in found])) for name in found[0]}


def horizon(job: Job) -> Comparison:
    """Of everything in this job, its steps from the weights as they are."""
    found = known(replace(job, drawn=False))
    measure_horizon(found, found.evidence["oracle", "float64"])
    return found


def measure() -> dict[str, Any]:
    """Sums by length; horizons by network, and by step; what training makes of them."""
    sums = [simulated(n) for n in LENGTHS]
    rows, steps, claimed = [], {}, {}
    jobs = {}
    for name in NETWORKS:
        arch = architecture(name, in_channels=1)
        x, y = eight(sample(), arch, (1, 96, 96))
        jobs[name] = job = Job(arch, initial_weights(arch), x, y)
        label = name.replace("resnet", "ResNet-")
        drawn = horizon(job)
        rows.append([label, *(drawn.horizon[of] for of in ("logits", "training logits", "gradients"))])
        steps[f"{label}, as drawn"] = drawn.step_horizon
        claimed[name] = drawn.claimed
        if name == "resnet50":
            quiet = horizon(replace(job, weights=asleep(arch, job.weights)))
            steps[f"{label}, γ = 0"] = quiet.step_horizon
    arch, weights, _ = trained("resnet18")
    x, y = test_images(8)
    before, after = (horizon(Job(arch, w, x, y)) for w in (initial_weights(arch), weights))
    first = jobs["resnet18"]
    return {
        "sums": {
            "x": [f"{n:,}" for n in LENGTHS],
            "series": {name: [one[name] for one in sums] for name in sums[0]},
        },
        "channel": len(first.x) * (first.x.shape[2] // 2) ** 2,
        "in_network": list(in_network(first).values()),
        "horizons": {
            "columns": ["network", "logits in evaluation", "logits in training", "gradients"],
            "rows": rows,
        },
        "steps": {"x": list(range(1, first.steps + 1)), "series": steps},
        "claimed": claimed,
        "lost": LOST["float64"],
        "far": FAR,
        "training": {
            "before": before.horizon["gradients"],
            "after": after.horizon["gradients"],
            "steps": after.step_horizon[-1],
        },
    }
