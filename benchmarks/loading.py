"""How long ResNet-50 takes from nothing to its first logits: under the contract, and its framework's own way.

The framework's own way is the package's class, the framework's file format, its loader, and one call of
the network, compiled as the adapter compiles it. Importing the framework is left out of both. Each is
measured in a process of its own, after one throw-away network that warms the framework up.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from common import architecture, initial_weights, load_checkpoint, save_checkpoint
from common.backend import BACKENDS, available_backends, load_backend

ARCH = architecture("resnet50", in_channels=3, num_classes=1000)
IMAGES = np.random.default_rng(0).random((1, 3, 224, 224), np.float32)
ROUNDS = 3


def contract(backend: str, folder: Path) -> Callable[[], Any]:
    """`build`, `load_weights` of a checkpoint, `predict`."""
    path = folder / "ours.safetensors"
    weights = {name: array.astype(np.float32) for name, array in initial_weights(ARCH).items()}
    save_checkpoint(path, ARCH, weights)

    def load() -> Any:
        arch, weights = load_checkpoint(path)
        model = load_backend(backend).build(arch)
        model.load_weights(weights)
        return model.predict(IMAGES)

    return load


def torch(folder: Path) -> Callable[[], Any]:
    """`torch.load` and `load_state_dict`."""
    import torch

    from resnet_torch import ResNet

    path = folder / "own.pth"
    X = torch.from_numpy(IMAGES)
    net = ResNet(ARCH)
    net(X)
    torch.save(net.state_dict(), path)

    @torch.no_grad()
    def load() -> Any:
        net = ResNet(ARCH).eval()
        net(X)  # lazy layers need an image before they can load
        net.load_state_dict(torch.load(path, weights_only=True))
        return net(X)

    return load


def tf(folder: Path) -> Callable[[], Any]:
    """Keras' `load_weights`, and a call in `tf.function`."""
    from functools import partial

    tab = import_module("resnet_tf")
    import tensorflow as tf

    path = folder / "own.weights.h5"
    X = tf.constant(IMAGES.transpose(0, 2, 3, 1))
    net = tab.ResNet(ARCH)
    net(X)
    net.save_weights(path)

    def load() -> Any:
        net = tab.ResNet(ARCH)
        net(X)
        net.load_weights(path)
        return tf.function(partial(net, training=False))(X)

    return load


def jax(folder: Path) -> Callable[[], Any]:
    """Flax's `from_bytes` and a jitted `apply`."""
    import jax
    from flax import serialization

    from resnet_jax import ResNet

    path = folder / "own.msgpack"
    X = IMAGES.transpose(0, 2, 3, 1)
    variables = jax.jit(ResNet(ARCH).init)(jax.random.key(0), X)
    path.write_bytes(serialization.to_bytes(variables))

    def load() -> Any:
        net = ResNet(ARCH, training=False)
        shapes = jax.eval_shape(net.init, jax.random.key(0), X)
        variables = serialization.from_bytes(shapes, path.read_bytes())
        return np.asarray(jax.jit(net.apply)(variables, X))

    return load


def mxnet(folder: Path) -> Callable[[], Any]:
    """Gluon's `load_parameters` and a hybridised call."""
    tab = import_module("resnet_mxnet")
    from mxnet import np as mnp

    path = str(folder / "own.params")
    net = tab.ResNet(ARCH)
    net(mnp.array(IMAGES))
    net.save_parameters(path)

    def load() -> Any:
        net = tab.ResNet(ARCH)
        net.load_parameters(path)
        net.hybridize(static_alloc=True)
        return net(mnp.array(IMAGES)).asnumpy()

    return load


def measure(backend: str) -> None:
    """Both ways in turn; the median of the rounds after the first."""
    import_module(BACKENDS[backend].module)
    with tempfile.TemporaryDirectory() as name:
        ways = {
            "contract": contract(backend, Path(name)),
            "own": {"torch": torch, "tf": tf, "jax": jax, "mxnet": mxnet}[backend](Path(name)),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(ROUNDS + 1):
            for way, load in ways.items():
                start = time.perf_counter()
                load()
                seconds[way].append(time.perf_counter() - start)
    ours, own = (statistics.median(seconds[way][1:]) for way in ("contract", "own"))
    print(f"{backend}: {ours:.2f} s under the contract, {own:.2f} s its own way, ratio {ours / own:.2f}")


def loading() -> None:
    """Every backend in a process of its own."""
    for backend in available_backends():
        code = f"from benchmarks.loading import measure; measure({backend!r})"
        subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL)
