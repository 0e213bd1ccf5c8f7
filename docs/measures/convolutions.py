"""Single layers that a framework computes correctly and slowly on a CPU, beside ours and PyTorch's."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.processes.workers import Process
from common.timing import PAUSE, Elsewhere

REPEATS = 60
PATIENCE = 1.5  # seconds; what takes longer is repeated once


@dataclass(frozen=True)
class Layer:
    """A convolution with as many zeros around the images as keep their size at stride 1."""

    images: int
    size: int
    channels: int
    features: int
    kernel: int
    stride: int = 1
    groups: int = 1
    dtype: str = "float32"

    def arrays(self) -> tuple[NDArray, NDArray, NDArray]:
        """Images (N, H, W, C), a kernel (height, width, C / groups, features), a gradient of the output."""
        rows = -(-self.size // self.stride)
        shapes = (
            (self.images, self.size, self.size, self.channels),
            (self.kernel, self.kernel, self.channels // self.groups, self.features),
            (self.images, rows, rows, self.features),
        )
        rng = np.random.default_rng(0)
        x, kernel, gradient = (rng.standard_normal(shape).astype(self.dtype) for shape in shapes)
        return x, kernel, gradient


LAYERS = {
    "grouped": Layer(16, 24, 128, 128, 3, groups=32),
    "one": Layer(128, 1, 512, 512, 3),
    "four": Layer(128, 2, 512, 512, 3),
    "narrow": Layer(16, 24, 64, 256, 1),
    "strided": Layer(8, 24, 64, 128, 3, stride=2, dtype="float64"),
}
NAMES = {
    "grouped": "3×3, 32 groups of 4 channels, 24×24 pixels",
    "one": "3×3, 512 channels, 1×1 pixel",
    "four": "3×3, 512 channels, 2×2 pixels",
    "narrow": "1×1, 64 → 256 channels, 24×24 pixels",
    "strided": "3×3 at stride 2 in float64, 64 → 128 channels, 24×24 pixels",
}
LABELS = {"jax": "JAX", "tf": "TensorFlow", "mxnet": "MXNet, with batch norm"}
WAYS = {"own": "the framework's own", "ours": "ours", "torch": "PyTorch"}
BOTH = (True, False)  # ours, and the framework's own


def fastest(run: Callable[[], object]) -> float:
    """Milliseconds: the least of several runs, after one that may compile."""
    run()
    time.sleep(PAUSE)
    taken: list[float] = []
    while len(taken) < 2 or (len(taken) < REPEATS and sum(taken) < PATIENCE):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return 1000 * min(taken)


def timed(forward: Callable[[], object], training: Callable[[], object]) -> dict[str, float]:
    """Both passes of a layer; training is the forward pass and both gradients."""
    return {"forward": fastest(forward), "training": fastest(training)}


def in_jax(layer: Layer, ours: bool) -> dict[str, float]:
    """In a process of its own: XLA's convolution, or ours."""
    import jax
    from jax import lax

    from resnet_jax.layers import convolve

    jax.config.update("jax_enable_x64", True)
    zeros = [(layer.kernel // 2, layer.kernel // 2)] * 2
    dimensions = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))

    def forward(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return (convolve if ours else lax.conv_general_dilated)(
            x,
            kernel,
            (layer.stride, layer.stride),
            zeros,
            dimension_numbers=dimensions,
            feature_group_count=layer.groups,
            precision=None,
        )

    def training(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> Any:
        y, back = jax.vjp(forward, x, kernel)
        return y, back(gradient)

    x, kernel, gradient = map(jax.numpy.asarray, layer.arrays())
    once, both = jax.jit(forward), jax.jit(training)
    return timed(
        lambda: jax.block_until_ready(once(x, kernel)),
        lambda: jax.block_until_ready(both(x, kernel, gradient)),
    )


def in_tf(layer: Layer, ours: bool) -> dict[str, float]:
    """In a process of its own: Keras' layer, or ours."""
    import keras
    import tensorflow as tf

    from resnet_tf.layers import Conv2D

    kind = Conv2D if ours else keras.layers.Conv2D
    net = kind(layer.features, layer.kernel, padding="same", groups=layer.groups, use_bias=False)
    x, kernel, gradient = map(tf.constant, layer.arrays())
    net.build(x.shape)
    net.kernel.assign(kernel)
    once = tf.function(net)

    @tf.function
    def training() -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = net(x)
        return y, tape.gradient(y, [x, net.kernel], gradient)

    return timed(lambda: once(x).numpy(), lambda: [array.numpy() for array in tf.nest.flatten(training())])


def in_mxnet(layer: Layer, ours: bool, norm: bool) -> dict[str, float]:
    """In a process of its own: Gluon's layer or ours, alone or with batch norm after it."""
    from resnet_mxnet.layers import BatchNorm, Conv2D  # before MXNet, whose traps it avoids

    import mxnet as mx  # isort: skip
    from mxnet.gluon import nn  # isort: skip

    kind = Conv2D if ours else nn.Conv2D
    net = nn.HybridSequential()
    net.add(
        kind(
            layer.features,
            layer.kernel,
            padding=layer.kernel // 2,
            groups=layer.groups,
            in_channels=layer.channels,
            use_bias=False,
        )
    )
    if norm:
        net.add(BatchNorm(in_channels=layer.features))
    net.initialize()
    net.cast(layer.dtype)
    net.hybridize(static_alloc=True)
    x, _, gradient = (mx.np.array(np.moveaxis(array, -1, 1), dtype="float32") for array in layer.arrays())
    x.attach_grad()

    def forward() -> None:
        net(x)
        mx.npx.waitall()

    def training() -> None:
        with mx.autograd.record():
            y = net(x)
        y.backward(gradient)
        mx.npx.waitall()

    return timed(forward, training)


def in_torch(layer: Layer, norm: bool) -> dict[str, float]:
    """In a process of its own: PyTorch's layer, alone or with batch norm after it."""
    import torch

    dtype = getattr(torch, layer.dtype)
    parts: list[torch.nn.Module] = [
        torch.nn.Conv2d(
            layer.channels,
            layer.features,
            layer.kernel,
            layer.stride,
            layer.kernel // 2,
            groups=layer.groups,
            bias=False,
        )
    ]
    if norm:
        parts.append(torch.nn.BatchNorm2d(layer.features))
    net = torch.nn.Sequential(*parts).to(dtype=dtype, memory_format=torch.channels_last)
    x, _, gradient = (torch.from_numpy(array).permute(0, 3, 1, 2) for array in layer.arrays())
    x.requires_grad_()

    def forward() -> None:
        net.eval()
        with torch.no_grad():
            net(x)

    def training() -> None:
        net.train()
        net.zero_grad()
        x.grad = None
        net(x).backward(gradient)

    return timed(forward, training)


def in_torch_all(process: Process) -> dict[str, dict[str, float]]:
    """Every layer in PyTorch: before the others and after them, since some program may be beside."""
    found = {name: process.run(in_torch, layer, False) for name, layer in LAYERS.items()}
    return {**found, "normed": process.run(in_torch, LAYERS["grouped"], True)}


def measure() -> dict[str, Any]:
    """Each layer by the framework's own means, by ours, and in PyTorch."""
    grouped = LAYERS["grouped"]
    with (
        closing(Process()) as torch,
        closing(Process()) as jax,
        closing(Process()) as tf,
        closing(Process()) as mxnet,
        Elsewhere([torch, jax, tf, mxnet]) as elsewhere,
    ):
        before = in_torch_all(torch)
        in_groups = {
            "jax": [jax.run(in_jax, grouped, ours) for ours in BOTH],
            "tf": [tf.run(in_tf, grouped, ours) for ours in BOTH],
            "mxnet": [mxnet.run(in_mxnet, grouped, ours, True) for ours in BOTH],
        }
        alone = mxnet.run(in_mxnet, grouped, False, False)
        in_xla = {
            name: [jax.run(in_jax, layer, ours) for ours in BOTH]
            for name, layer in LAYERS.items()
            if name != "grouped"
        }
        after = in_torch_all(torch)
    theirs = {name: {key: min(one[key], after[name][key]) for key in one} for name, one in before.items()}
    groups = {
        name: cell(*two, theirs["normed" if name == "mxnet" else "grouped"])
        for name, two in in_groups.items()
    }
    xla = {name: cell(*two, theirs[name]) for name, two in in_xla.items()}
    other = {f"JAX: {NAMES[name]}": one for name, one in xla.items()}
    every = {f"{label}: {NAMES['grouped']}": groups[name] for name, label in LABELS.items()} | other
    worst = max(one["gain"] for one in (*groups.values(), *xla.values()))
    return {
        "elsewhere": elsewhere.share or 0.0,
        "groups": groups,
        "alone": alone,
        "xla": xla,
        "forward": table(every, "forward"),
        "training": table(other, "training"),
        "by_framework": {
            "x": list(LABELS.values()),
            "series": {
                label: [groups[name]["training"][key] for name in LABELS] for key, label in WAYS.items()
            },
        },
        "summary": {"logits": "none", "accuracy": f"none; up to {worst:,.0f} times slower"},
    }


def cell(ours: dict[str, float], own: dict[str, float], torch: dict[str, float]) -> dict[str, Any]:
    """One layer, three ways, and how many times PyTorch's and our time the framework's own is."""
    found = {key: {"own": own[key], "ours": ours[key], "torch": torch[key]} for key in own}
    return {
        **found,
        "slower": own["training"] / torch["training"],
        "gain": own["training"] / ours["training"],
    }


def table(cells: dict[str, dict[str, Any]], key: str) -> dict[str, Any]:
    """This pass of these layers, all three ways."""
    rows = [[name, *(one[key][way] for way in WAYS)] for name, one in cells.items()]
    return {"columns": ["layer", *WAYS.values()], "rows": rows}
