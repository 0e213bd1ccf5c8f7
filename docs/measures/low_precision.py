"""Products in TF32 (simulated: there was no GPU) and in bfloat16: layers, logits, answers, gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from measures.shared import accuracy, test_images, trained
from numpy.typing import NDArray
from torch import nn

from common import load_backend
from common.architecture import Architecture
from common.deviation import deviation, distance
from common.weights import Weights

IMAGES = 1000
PART = 250  # images at a time
FEW = 64  # images of the layers and the gradients
DROPPED = 23 - 10  # bits of mantissa that float32 has and TF32 has not


def rounded(x: NDArray) -> NDArray:
    """float32 numbers to the nearest with ten bits of mantissa, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    half = (1 << (DROPPED - 1)) - 1
    up = bits + np.uint32(half) + ((bits >> DROPPED) & 1)
    return (up >> DROPPED << DROPPED).view(np.float32)


def cut(x: NDArray) -> NDArray:
    """float32 numbers without their last bits of mantissa."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return (bits >> DROPPED << DROPPED).view(np.float32)


def simulated(arch: Architecture, weights: Weights, shorten: Callable[[NDArray], NDArray]) -> Any:
    """PyTorch's network in float32, with both operands of every product shortened first."""
    net = load_backend("torch").load().ResNet(arch)

    def operand(layer: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (torch.from_numpy(shorten(args[0].numpy(force=True))),)

    model = load_backend("torch").wrap(net)
    model.load_weights({name: shorten(w) if w.ndim > 1 else w for name, w in weights.items()})
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_pre_hook(operand)
    return model


def answers(model: Any, x: NDArray) -> NDArray:
    """Logits of all images."""
    return np.concatenate([model.predict(x[i : i + PART]) for i in range(0, len(x), PART)])


def measure() -> dict[str, Any]:
    """Each precision against float64."""
    arch, weights, _ = trained("resnet18")
    x, y = test_images(IMAGES)
    x = x.astype(np.float32)

    def built(name: str, dtype: str) -> Any:
        model = load_backend(name).build(arch, dtype)
        model.load_weights(weights)
        return model

    exact = built("torch", "float64")
    right, right_layers = answers(exact, x), exact.activations(x[:FEW])
    gradients = exact.loss_and_gradients(x[:FEW], y[:FEW]).gradients

    def cost(model: Any) -> dict[str, Any]:
        logits = answers(model, x)
        return {
            "logits": float(deviation(logits, right)),
            "accuracy": accuracy(logits, y),
            "changed": int((logits.argmax(1) != right.argmax(1)).sum()),
        }

    models = {
        "float32": built("torch", "float32"),
        "tf32": simulated(arch, weights, rounded),
        "tf32_cut": simulated(arch, weights, cut),
        **{f"bfloat16_{name}": built(name, "bfloat16") for name in ("torch", "jax", "tf")},
    }
    found = {name: cost(model) for name, model in models.items()}
    shown = {"float32": "float32", "tf32": "TF32, simulated", "bfloat16_torch": "bfloat16"}
    layers = {}
    for name, label in shown.items():
        outputs = models[name].activations(x[:FEW])
        layers[label] = [float(deviation(outputs[layer], right_layers[layer])) for layer in right_layers]
    moved = {
        name: distance(models[name].loss_and_gradients(x[:FEW], y[:FEW]).gradients, gradients)
        for name in ("bfloat16_torch", "float32")
    }
    lost = max(abs(one["accuracy"] - accuracy(right, y)) for one in found.values())
    return {
        **found,
        "exact": accuracy(right, y),
        "images": IMAGES,
        "few": FEW,
        "gradients": {"bfloat16": moved["bfloat16_torch"], "float32": moved["float32"]},
        "layers": {"x": list(right_layers), "series": layers},
        "summary": {
            "logits": f"{100 * found['tf32']['logits']:.2f} % (TF32), "
            f"{100 * found['bfloat16_torch']['logits']:.1f} % (bfloat16)",
            "accuracy": f"{100 * lost:.1f} points",
        },
    }
