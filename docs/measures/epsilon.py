"""Batch norm's epsilon: what another one does to a trained network, and to which of its layers."""

from __future__ import annotations

from typing import Any

import numpy as np
from measures.shared import accuracy, cost, layers, test_images, trained

from common.deviation import deviation
from common.proof.traps import Trap
from common.weights import Weights

SWEEP = (1e-6, 1e-4, 1e-2, 1e-1)  # beside those that frameworks have
SHRUNK = (0.3, 0.1, 0.03)  # what weights are multiplied by


def other(epsilon: float) -> Trap:
    """The network with this epsilon."""
    return Trap(f"epsilon {epsilon}", "epsilon", axes={"epsilon": epsilon})


def shrunk(weights: Weights, factor: float) -> Weights:
    """The same function, but for epsilon: smaller convolutions before the norms, their statistics alike."""
    powers = {"running_mean": 1, "running_var": 2}
    found = {}
    for name, array in weights.items():
        layer, kind = name.rsplit(".", 1)
        power = 1 if layer.endswith(("b1.conv", ".conv1", ".conv2")) else powers.get(kind, 0)
        found[name] = array * factor**power
    return found


def measure() -> dict[str, Any]:
    """Costs of Keras' default, of keras.applications' and of others, and the variances they are added to."""
    arch, weights, _ = trained("resnet18")
    x, labels = test_images(500)
    keras = cost(arch, weights, x, labels, [other(1e-3)])
    applications = cost(arch, weights, x, labels, [other(1.001e-5)])
    bottleneck = cost(*trained("bottleneck")[:2], x, labels, [other(1e-3)])
    right = layers(arch, weights, x, [])["last"]
    found = {1e-3: (keras["logits"], keras["accuracy"]), 1e-5: (0.0, keras["right"])}
    for epsilon in SWEEP:
        logits = layers(arch, weights, x, [other(epsilon)])["last"]
        found[epsilon] = float(deviation(logits, right)), accuracy(logits, labels)
    smaller = [["`1`", keras["logits"], keras["accuracy"]]]
    for factor in SHRUNK:
        small = shrunk(weights, factor)
        logits = layers(arch, small, x, [other(1e-3)])["last"]
        exact = layers(arch, small, x, [])["last"]
        smaller.append([f"`{factor}`", float(deviation(logits, exact)), accuracy(logits, labels)])
    variances = [array for name, array in weights.items() if name.endswith("running_var")]
    summary = {
        "logits": f"{keras['logits']:.1%}",
        "accuracy": f"{keras['right']:.1%} → {keras['accuracy']:.1%}",
    }
    return {
        "keras": keras,
        "applications": applications,
        "bottleneck": bottleneck,
        "layers": {
            "x": list(keras["layers"]),
            "series": {
                "ResNet-18": list(keras["layers"].values()),
                "with bottlenecks": list(bottleneck["layers"].values()),
            },
        },
        "sweep": {
            "columns": ["epsilon", "logits off by", "told right"],
            "rows": [[f"`{epsilon:.0e}`".replace("e-0", "e-"), *found[epsilon]] for epsilon in sorted(found)],
        },
        "variances": {
            "x": list(range(1, len(variances) + 1)),
            "series": {
                "median channel": [float(np.median(array)) for array in variances],
                "smallest channel": [float(array.min()) for array in variances],
            },
        },
        "median": float(np.median(np.concatenate(variances))),
        "smallest": float(min(array.min() for array in variances)),
        "shrunk": {"columns": ["weights times", "logits off by", "told right"], "rows": smaller},
        "summary": {key: text.replace("%", "\N{NARROW NO-BREAK SPACE}%") for key, text in summary.items()},
    }
