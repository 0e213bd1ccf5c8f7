"""Batch norm's epsilon: what another one does to a trained network, and to which of its layers."""

from __future__ import annotations

from typing import Any

import numpy as np
from measures.shared import accuracy, cost, layers, test_images, trained

from common.proof.compare import deviation
from common.proof.traps import Trap

SWEEP = (1e-6, 1e-4, 1e-2, 1e-1)  # beside those that frameworks have


def other(epsilon: float) -> Trap:
    """The network with this epsilon."""
    return Trap(f"epsilon {epsilon}", "epsilon", axes={"epsilon": epsilon})


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
        "below": float((np.concatenate(variances) < 1e-2).mean()),
        "summary": {key: text.replace("%", "\N{NARROW NO-BREAK SPACE}%") for key, text in summary.items()},
    }
