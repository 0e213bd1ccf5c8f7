"""Other people's own networks, to load and save by their own libraries and to train for a pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.architecture import Architecture
from common.backend import load_backend
from common.interop.convert import from_family, to_family
from common.interop.families import FAMILIES
from common.interop.files import read_tensors, write_tensors
from common.interop.prove import prove
from common.layout import nhwc
from common.weights import Weights
from tests.helpers import ROUNDING, built, deviation, random_batch, random_weights, worst, worst_gradient

TRAINING = 1e-11
SIZES = [(65, 97), (64, 96), (97, 131)]

BASIC = Architecture(((1, 8), (2, 12)), in_channels=3, num_classes=5, stem_channels=8)
BOTTLENECK = Architecture(
    ((2, 16), (1, 32)), "resnext", in_channels=3, num_classes=5, stem_channels=8, groups=(4, 8), bot_mul=0.25
)

Tensors = dict[str, NDArray]


@dataclass(frozen=True)
class Source:
    """A network of a family.

    Attributes:
        suffix: of the files it loads; empty for a folder, or the beginning of several files' names.
        load, save: by its own loader and writer, to and from a file of this name; or another, which
            `save` returns.
        training: logits, gradients and running statistics after a pass over images and labels, by its names.
    """

    suffix: str
    load: Callable[[Path], None]
    save: Callable[[Path], Path]
    training: Callable[[NDArray, NDArray], tuple[NDArray, Tensors, Tensors]]


def keras(family: str, arch: Architecture) -> Source:
    """A network in Keras."""
    from resnet_tf.families import NETWORKS

    net = NETWORKS[family](arch)

    def training(x: NDArray, y: NDArray) -> tuple[NDArray, Tensors, Tensors]:
        import keras
        import tensorflow as tf

        with tf.GradientTape() as tape:
            logits = net(nhwc(x), training=True)
            loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True))
        gradients = tape.gradient(loss, net.trainable_variables)
        return (
            logits.numpy(),
            {v.path: g.numpy() for v, g in zip(net.trainable_variables, gradients, strict=True)},
            {v.path: v.numpy() for v in net.non_trainable_variables if "moving" in v.path},
        )

    def save(path: Path) -> Path:
        path = path.with_suffix(".weights.h5")
        net.save_weights(path)
        return path

    return Source(".h5", net.load_weights, save, training)


def gluon(family: str, arch: Architecture) -> Source:
    """A network in Gluon."""
    from resnet_mxnet.families import NETWORKS

    net = NETWORKS[family](arch)

    def training(x: NDArray, y: NDArray) -> tuple[NDArray, Tensors, Tensors]:
        import mxnet as mx
        from mxnet import autograd, gluon

        from resnet_mxnet.layers import exact_decay

        with exact_decay(net):  # MXNet's own is off by 1e-7
            with autograd.record():
                logits = net(mx.np.array(x, dtype="float64"))
                loss = gluon.loss.SoftmaxCrossEntropyLoss()(logits, mx.np.array(y, dtype="int32")).mean()
            loss.backward()
        parameters = net._collect_params_with_prefix()
        return (
            logits.asnumpy(),
            {name: p.grad().asnumpy() for name, p in parameters.items() if p.grad_req != "null"},
            {name: p.data().asnumpy() for name, p in parameters.items() if "running" in name},
        )

    def load(path: Path) -> None:
        net.load_parameters(str(path), cast_dtype=True, dtype_source="saved")
        net.cast("float64")

    def save(path: Path) -> Path:
        net.save_parameters(str(path))
        return path

    return Source(".params", load, save, training)


def torch(family: str, arch: Architecture) -> Source:
    """A network in PyTorch; its running variances become ours, which are without n/(n − 1)."""
    import torch
    from torch import nn

    from resnet_torch.families import NETWORKS

    net = NETWORKS[family](arch).double()

    @torch.no_grad()
    def biased(norm: nn.BatchNorm2d, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        X, axes = inputs[0], (0, 2, 3)
        excess = X.var(axes, correction=1) - X.var(axes, correction=0)
        norm.running_var = norm.running_var - norm.momentum * excess  # not in place: it is yet to be derived

    def training(x: NDArray, y: NDArray) -> tuple[NDArray, Tensors, Tensors]:
        for norm in (module for module in net.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.register_forward_hook(biased)
        logits = net.train()(torch.from_numpy(x))
        nn.functional.cross_entropy(logits, torch.from_numpy(y)).backward()
        return (
            logits.detach().numpy(),
            {name: parameter.grad.numpy() for name, parameter in net.named_parameters()},
            {name: buffer.numpy() for name, buffer in net.named_buffers() if "running" in name},
        )

    def load(path: Path) -> None:
        net.load_state_dict(torch.load(path, weights_only=True))

    def save(path: Path) -> Path:
        torch.save(net.state_dict(), path)
        return path

    return Source(".pth", load, save, training)


def flax_training(
    forward: Callable[[Any, Any], tuple[Any, Any]], variables: Any, x: NDArray, y: NDArray
) -> tuple[NDArray, Tensors, Tensors]:
    """A source's `training`; `forward` gives logits and updates of variables and images."""
    import jax
    import optax
    from flax.traverse_util import flatten_dict

    def loss(params: Any) -> Any:
        Y_hat, updates = forward({**variables, "params": params}, nhwc(x))
        loss = optax.softmax_cross_entropy_with_integer_labels(Y_hat, y).mean()
        return loss, (Y_hat, updates["batch_stats"])

    with jax.enable_x64(True):
        gradients, (Y_hat, running) = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    by_name = [
        {name: np.asarray(leaf) for name, leaf in flatten_dict(tree, sep="/").items()}
        for tree in (gradients, running)
    ]
    return np.asarray(Y_hat), *by_name


def flax(family: str, arch: Architecture) -> Source:
    """A network in Flax."""
    from flax import serialization

    from resnet_jax.families import NETWORKS, variables_of

    net = NETWORKS[family](arch)
    state = [variables_of(net, arch)]

    def training(x: NDArray, y: NDArray) -> tuple[NDArray, Tensors, Tensors]:
        forward = partial(net.apply, train=True, mutable=["batch_stats"])
        return flax_training(forward, state[0], x, y)

    def load(path: Path) -> None:
        state[0] = serialization.from_bytes(state[0], path.read_bytes())

    def save(path: Path) -> Path:
        path.write_bytes(serialization.to_bytes(state[0]))
        return path

    return Source(".msgpack", load, save, training)


def network(family: str, arch: Architecture) -> tuple[Architecture, Weights]:
    """The architecture as the family's networks have it, with random weights that these can hold."""
    arch = replace(arch, **FAMILIES[family].axes(arch.block == "residual"))
    kept = FAMILIES[family].names(arch)
    weights = {
        name: abs(array) + 0.1
        if name.endswith("running_var")
        else array
        if name in kept
        else np.zeros_like(array)
        for name, array in random_weights(arch).items()
    }
    return arch, weights


def check(
    family: str,
    make: Callable[[str, Architecture], Source],
    arch: Architecture,
    backends: list[str],
    device: str,
    folder: Path,
) -> None:
    """Hold a family's own network of this architecture against ours, in both directions, and in training."""
    arch, weights = network(family, arch)
    source = make(family, arch)

    there = to_family(arch, weights, family)
    assert not there.rounded and not there.inference_only
    path = folder / f"theirs{source.suffix}"
    write_tensors(path, family, arch, there.tensors, {})
    source.load(path)
    saved = source.save(folder / f"own{source.suffix}")

    tensors, halves = read_tensors(saved)
    back = from_family(tensors)
    assert (back.family, back.arch, halves) == (family, arch, [])
    assert list(back.tensors) == list(weights)
    for key, array in back.tensors.items():
        assert array.dtype == np.float64 and array.tobytes() == weights[key].tobytes(), key

    own = load_backend(FAMILIES[family].framework).own_network(family, arch, path)
    models = [built(backend, arch, device=device) for backend in backends]
    for model in models:
        model.load_weights(weights)
    for size in SIZES:
        x, _ = random_batch(arch, 2, *size)
        expected = own(x)
        assert expected.dtype == np.float64
        for model in models:
            assert deviation(model.predict(x), expected) <= ROUNDING

    single = folder / f"float32{source.suffix}"  # most published files are
    write_tensors(single, family, arch, {key: array.astype("f4") for key, array in there.tensors.items()}, {})
    prove(family, arch, {key: array.astype("f4") for key, array in weights.items()}, single)

    x, y = random_batch(arch, 3, 65, 47)
    logits, gradients, running = source.training(x, y)
    names, theirs = FAMILIES[family].names(arch), FAMILIES[family]
    for model in models:
        found = model.loss_and_gradients(x, y)
        ours = {key: array for key, array in found.gradients.items() if key in names}
        expected = {key: theirs.to_ours(gradients[names[key]]) for key in ours}
        assert deviation(found.logits, logits) <= TRAINING
        assert deviation(ours, expected) <= TRAINING
        assert worst_gradient(ours, expected) <= TRAINING
        assert worst(found.running, {key: running[names[key]] for key in found.running}) <= TRAINING
