"""The variance as E[x²] − E[x]²: its error by mean over deviation, and in a trained network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import keras
import numpy as np
import tensorflow as tf
import torch
from flax import linen as nn
from jax import numpy as jnp
from measures.shared import test_images, trained
from numpy.typing import NDArray

import resnet_mxnet  # noqa: F401  (MXNet is imported by way of it)
from common import load_backend, oracle
from common.architecture import Architecture
from common.deviation import deviation
from common.layout import nhwc
from common.weights import Weights
from resnet_jax.resnet import ResNet

RATIOS = (1, 3, 10, 30, 100, 300, 1000, 3000, 10000)  # mean over standard deviation
IMAGES = 64


def of_torch(x: NDArray) -> NDArray:
    layer = torch.nn.BatchNorm2d(x.shape[1], momentum=1.0)
    layer(torch.tensor(x))
    n = x.size // x.shape[1]
    return layer.running_var.numpy() * (n - 1) / n


def of_flax(x: NDArray, fast: bool) -> NDArray:
    layer = nn.BatchNorm(use_running_average=False, momentum=0.0, use_fast_variance=fast)
    X = jnp.asarray(nhwc(x))
    variables = layer.init(jax.random.key(0), X)
    _, new = jax.jit(partial(layer.apply, mutable=["batch_stats"]))(variables, X)
    return np.array(new["batch_stats"]["var"])


def of_keras(x: NDArray) -> NDArray:
    layer = keras.layers.BatchNormalization(momentum=0.0)
    tf.function(partial(layer, training=True))(tf.constant(nhwc(x)))
    return layer.moving_variance.numpy()


def of_mxnet(x: NDArray) -> NDArray:
    import mxnet as mx

    layer = mx.gluon.nn.BatchNorm(momentum=0.0)
    layer.initialize()
    with mx.autograd.record():
        loss = layer(mx.np.array(x)).sum()
    loss.backward()  # only then it notes what the statistics are
    return layer.running_var.data().asnumpy()


LAYERS: dict[str, Callable[[NDArray], NDArray]] = {
    "Flax, as it comes": partial(of_flax, fast=True),
    "PyTorch": of_torch,
    "Keras": of_keras,
    "Gluon": of_mxnet,
}


def fast(x: NDArray) -> NDArray:
    """E[x²] − E[x]² of each channel of (N, C, H, W), in the type of x; below 0 it is made 0, as in Flax."""
    return np.maximum(0, oracle.channel_mean(x * x) - oracle.channel_mean(x) ** 2)


def slow(x: NDArray) -> NDArray:
    """The mean of squared deviations."""
    return oracle.channel_mean((x - oracle.channel_mean(x)[:, None, None]) ** 2)


def error(found: NDArray, exact: NDArray) -> float:
    """The largest relative error of any channel."""
    return float(np.abs(found / exact - 1).max())


def by_ratio() -> dict[str, Any]:
    """The error of each framework's own layer, on normal numbers; of Flax with the cure, the largest."""
    normal = np.random.default_rng(0).normal(size=(16, 8, 16, 16))
    series: dict[str, list[float]] = {name: [] for name in LAYERS}
    cured = []
    for ratio in RATIOS:
        x = (normal + ratio).astype(np.float32)
        exact = slow(x.astype(np.float64))
        for name, layer in LAYERS.items():
            series[name].append(error(layer(x), exact))
        cured.append(error(of_flax(x, fast=False), exact))
    at = {str(ratio): series["Flax, as it comes"][i] for i, ratio in enumerate(RATIOS)}
    return {
        "plot": {"x": [f"{ratio:,}" for ratio in RATIOS], "series": series},
        "cured": max(cured),
        "at": at,
    }


class Inputs(oracle.Pass):
    """The training pass of the oracle; keeps what its batch norms were given."""

    def __init__(self, arch: Architecture, weights: Weights) -> None:
        super().__init__(arch, weights, training=True)
        self.given: dict[str, NDArray] = {}

    def batch_norm(self, name: str, x: NDArray) -> tuple[NDArray, Callable]:
        self.given[name] = x
        return super().batch_norm(name, x)


def in_network(arch: Architecture, weights: Weights, x: NDArray) -> dict[str, Any]:
    """Mean over deviation at every batch norm of the network, and both errors there in float32."""
    one = Inputs(arch, weights)
    one.network(x)
    ratios, errors, slows = [], [], []
    for given in one.given.values():
        var = slow(given)
        alive = var > 1e-12 * (given**2).mean()  # a channel of equal values has no variance to be wrong
        single = given[:, alive].astype(np.float32)
        exact = slow(single.astype(np.float64))
        ratios.append(float((np.abs(oracle.channel_mean(given)) / np.sqrt(var))[alive].max()))
        errors.append(error(fast(single), exact))
        slows.append(error(slow(single), exact))
    return {
        "ratio": max(ratios),
        "layer": list(one.given)[int(np.argmax(ratios))],
        "fast": max(errors),
        "slow": max(slows),
        "ratios": ratios,
        "errors": errors,
    }


def logits(arch: Architecture, weights: Weights, x: NDArray, is_fast: bool) -> NDArray:
    """Training logits in float32 by the Flax network, with its variance this way or that."""
    model = load_backend("jax").build(arch)
    model.load_weights(weights)

    def batch_norm(next_call: Callable, args: tuple, options: dict, context: Any) -> Any:
        if isinstance(context.module, nn.BatchNorm):
            object.__setattr__(context.module, "use_fast_variance", is_fast)  # else modules are frozen
        return next_call(*args, **options)

    with nn.intercept_methods(batch_norm):
        net = ResNet(arch, training=True)
        put_out, _ = jax.jit(partial(net.apply, mutable=["batch_stats"]))(
            model.variables, jnp.asarray(nhwc(x), jnp.float32)
        )
    return np.array(put_out)


def measure() -> dict[str, Any]:
    """Errors by ratio, in the trained network on images of three kinds, and what its logits lose."""
    arch, weights, _ = trained("resnet18")
    x, _ = test_images(IMAGES)
    x = x.astype(np.float32).astype(np.float64)
    kinds = {"unit": x, "bytes": 255 * x, "faint": (1000 + x).astype(np.float32).astype(np.float64)}
    found: dict[str, Any] = {}
    for name, images in kinds.items():
        found[name] = in_network(arch, weights, images)
        exact, _ = oracle.Pass(arch, weights, training=True).network(images)
        for is_fast in (True, False):
            put_out = logits(arch, weights, images, is_fast)
            found[name]["logits_fast" if is_fast else "logits"] = float(deviation(put_out, exact[-1]))
    layers = list(range(1, len(found["unit"]["errors"]) + 1))
    return {
        **found,
        "by_ratio": by_ratio(),
        "images": IMAGES,
        "by_layer": {
            "x": layers,
            "series": {
                "images in 0..1": found["unit"]["errors"],
                "images in 0..255": found["bytes"]["errors"],
                "images in 1000..1001": found["faint"]["errors"],
            },
        },
        "summary": {
            "logits": f"{found['unit']['logits_fast']:.0e}, more where means are large",
            "accuracy": "none",
        },
    }
