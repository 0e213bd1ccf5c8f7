"""What MXNet keeps in float32 in a float64 network: the decay of batch norm, the figures of its SGD."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import numpy as np
from measures.shared import cost, test_images, trained, trap

import resnet_mxnet.training
from common import load_backend
from common.deviation import deviation, distance
from common.weights import is_statistic

IMAGES = 8
STEPS = 10
RECIPE = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}


def measure() -> dict[str, Any]:
    """Weights after each step against the oracle's: with both cures, and without one or the other."""
    import mxnet as mx

    arch, weights, _ = trained("resnet18")
    x, y = test_images(IMAGES)
    more, labels = test_images(100)
    small = cost(arch, weights, more, labels, [trap("batch norm's epsilon 1.001e-5")])

    def train(name: str) -> tuple[Any, list[dict[str, Any]]]:
        model = load_backend(name).build(arch, "float64")
        model.load_weights(weights)
        states = []
        for _ in range(STEPS):
            model.train_step(x, y, **RECIPE)
            states.append(model.weights())
        return model, states

    def split(state: dict[str, Any], statistics: bool) -> dict[str, Any]:
        return {name: array for name, array in state.items() if is_statistic(name) == statistics}

    _, right = train("oracle")
    ours, states = train("mxnet")
    with patch.object(resnet_mxnet.training, "exact_decay", lambda net: nullcontext()):
        decay, decayed = train("mxnet")
    with patch.object(resnet_mxnet.training, "SGD", mx.optimizer.SGD):
        sgd, stepped = train("mxnet")
    runs = {"ours": (ours, states), "decay": (decay, decayed), "sgd": (sgd, stepped)}
    exact = ours.predict(more)
    found: dict[str, Any] = {}
    for name, (model, run) in runs.items():
        logits = model.predict(more)
        found[name] = {
            "statistics": distance(split(run[-1], True), split(right[-1], True)),
            "first": distance(split(run[0], True), split(right[0], True)),
            "weights": distance(split(run[-1], False), split(right[-1], False)),
            "logits": float(deviation(logits, exact)),
            "changed": int((logits.argmax(1) != exact.argmax(1)).sum()),
        }
    series = {"both cured": states, "Gluon's own decay": decayed, "MXNet's own SGD": stepped}

    kept = float(np.float32(0.9))
    return {
        **found,
        "steps": STEPS,
        "images": IMAGES,
        "kept": f"{kept:.10f}",
        "taken": f"{1 - kept:.10f}",
        "relative": abs((1 - kept) / 0.1 - 1),
        "epsilon": small["logits"],
        "by_step": {
            "x": list(range(1, STEPS + 1)),
            "series": {
                name: [distance(a, b) for a, b in zip(run, right, strict=True)]
                for name, run in series.items()
            },
        },
        "summary": {"logits": f"{found['decay']['logits']:.0e}", "accuracy": "none"},
    }
