"""Layouts: images, kernels, dense weights and features whose axes are in another order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from measures.shared import SIZE, accuracy, layers, test_images, trained, trap
from numpy.typing import NDArray

from common import Architecture
from common.data import full
from common.data import resize as resized
from common.deviation import deviation
from common.proof.traps import Trap
from common.weights import Weights

LUMA = np.array([0.299, 0.587, 0.114])  # the shares of red, green and blue in a grey (ITU-R BT.601)


def kernel_reshaped(name: str, array: NDArray) -> NDArray:
    """An HWIO kernel poured into OIHW."""
    return array.transpose(2, 3, 1, 0).reshape(array.shape) if array.ndim == 4 else array


def dense_reshaped(name: str, array: NDArray) -> NDArray:
    """A dense weight (in, out) poured into (out, in)."""
    return array.T.reshape(array.shape) if name == "last.weight" else array


TRAPS = {
    "images BGR": trap("images with channels in the order BGR"),
    "images reshaped, NHWC to NCHW": trap("NHWC images reshaped"),
    "images with height and width swapped": trap("images with height and width swapped"),
    "kernels `.T`, HWIO to OIWH": trap("kernels with height and width swapped"),
    "kernels reshaped, HWIO to OIHW": Trap("kernels reshaped", "kernels", weights=kernel_reshaped),
    "dense weight reshaped": Trap("dense weight reshaped", "dense", weights=dense_reshaped),
}
PLOTTED = {
    "images BGR": "images BGR",
    "images reshaped, NHWC to NCHW": "images reshaped",
    "kernels `.T`, HWIO to OIWH": "kernels .T",
}


def measure() -> dict[str, Any]:
    """What each does to a trained network that sees colours."""
    arch, weights = coloured()
    x, labels = test_images(500)
    x = tinted(x)
    right = layers(arch, weights, x, [])
    found = {name: layers(arch, weights, x, [one]) for name, one in TRAPS.items()}
    offs = {name: float(deviation(port["last"], right["last"])) for name, port in found.items()}
    told = {name: accuracy(port["last"], labels) for name, port in found.items()}
    both = [TRAPS["images with height and width swapped"], TRAPS["kernels `.T`, HWIO to OIWH"]]
    cancelled = layers(arch, weights, x[:8], both)["last"]
    flat = flattened()
    rows = [[name, offs[name], told[name]] for name in found]
    rows.append(["features flattened as HWC, not CHW", flat["logits"], flat["accuracy"]])
    correct = accuracy(right["last"], labels)
    summary = {
        "logits": f"{offs['images BGR']:.0%} (BGR) to {max(offs.values()):.0%}",
        "accuracy": f"{correct:.0%} → {told['images BGR']:.0%} (BGR) to {min(told.values()):.0%}",
    }
    return {
        "right": correct,
        "images": len(x),
        "costs": {"columns": ["in the port", "logits off by", "told right"], "rows": rows},
        "layers": {
            "x": arch.stage_names(),
            "series": {
                short: [float(deviation(found[name][part], right[part])) for part in right]
                for name, short in PLOTTED.items()
            },
        },
        "cancelled": float(deviation(cancelled, right["last"][:8])),
        "flat": flat,
        "summary": {key: text.replace("%", "\N{NARROW NO-BREAK SPACE}%") for key, text in summary.items()},
    }


def coloured() -> tuple[Architecture, Weights]:
    """The trained ResNet-18, which now takes colours and sees their luminance."""
    arch, weights, _ = trained("resnet18")
    stem = weights["b1.conv.weight"] * LUMA[:, None, None]
    return replace(arch, in_channels=3), {**weights, "b1.conv.weight": stem}


def tinted(x: NDArray) -> NDArray:
    """Grey images, each in a colour of its own that has the same luminance."""
    colours = np.random.default_rng(0).uniform(0.2, 1, (len(x), 3))
    return x * (colours / (colours @ LUMA)[:, None])[:, :, None, None]


def flattened() -> dict[str, float]:
    """A linear classifier on b4's flattened features, given them in the other order."""
    arch, weights, _ = trained("resnet18")
    images, (x, labels) = full(), test_images(500)
    known = resized(images.train_images[:1000], (SIZE, SIZE), "float64").reshape(-1, 1, SIZE, SIZE)
    features = layers(arch, weights, known, [])["b4"].reshape(len(known), -1)
    targets = np.eye(10)[images.train_labels[: len(known)]]
    # Least squares; the small weight on the diagonal makes the solution one
    dense = np.linalg.solve(features.T @ features + np.eye(features.shape[1]), features.T @ targets)
    seen = layers(arch, weights, x, [])["b4"]
    right, wrong = (array.reshape(len(x), -1) @ dense for array in (seen, seen.transpose(0, 2, 3, 1)))
    return {
        "logits": float(deviation(wrong, right)),
        "accuracy": accuracy(wrong, labels),
        "right": accuracy(right, labels),
        "pixels": seen.shape[2],
        "channels": seen.shape[1],
    }
