"""What training costs beside the network itself, which `resnet-tabs bench` measures: the loop and the data.

    overhead      images/s of `train` against a bare loop of the framework, which knows no contract
    pipeline      images/s of the data alone against the fastest backend's training
    accuracy      two epochs of the full set at 28×28 in every backend (about half an hour on two cores)

What is compared takes turns in one process, warmed up, and the median of the rounds counts: timings on a
busy machine mean little otherwise.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

from common import architecture, cli, initial_weights, training
from common.backend import available_backends, load_backend
from common.data import Batch, FashionMNIST
from common.processes.workers import quiet
from common.recipe import Recipe
from common.training.settings import Settings

ARCH = architecture("resnet18")
BATCH_SIZE = 128
LR, MOMENTUM = 0.01, 0.9
RECIPE = Recipe(MOMENTUM)
ROUNDS, STEPS = 3, 6


def data(size: int, **options: Any) -> FashionMNIST:
    """So many batches of images of this size as a round takes steps."""
    images = STEPS * BATCH_SIZE
    return FashionMNIST(BATCH_SIZE, (size, size), limit_train=images, limit_val=BATCH_SIZE, **options)


def build(backend: str) -> Any:
    """ResNet-18 under the contract, with the weights of seed 0."""
    model = load_backend(backend).build(ARCH)
    model.load_weights(initial_weights(ARCH))
    return model


def torch(batches: Iterable[Batch]) -> Callable[[], None]:
    """An epoch as PyTorch's users write it, on batches that are ready."""
    import torch

    from resnet_torch import ResNet
    from resnet_torch.training import train_step

    ready = [(torch.from_numpy(x), torch.from_numpy(y).long()) for x, y in batches]
    net = ResNet(ARCH)
    net(ready[0][0])
    net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), LR, MOMENTUM)

    def epoch() -> None:
        for X, Y in ready:
            loss, _ = train_step(net, optimizer, X.contiguous(memory_format=torch.channels_last), Y)
            loss.item()

    return epoch


def tf(batches: Iterable[Batch]) -> Callable[[], None]:
    """An epoch of Keras' `fit`, on batches that are ready."""
    tab = import_module("resnet_tf")
    import keras
    import tensorflow as tf

    ready = [(tf.constant(x.transpose(0, 2, 3, 1)), tf.constant(y)) for x, y in batches]
    net = tab.ResNet(ARCH, LR)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(net.configure_optimizers(RECIPE), loss)

    def epoch() -> None:
        for X, Y in ready:
            net.train_on_batch(X, Y)

    return epoch


def jax(batches: Iterable[Batch]) -> Callable[[], None]:
    """An epoch as JAX's users write it, in one jitted step, on batches that are ready."""
    import jax
    import optax
    from jax import Array

    from resnet_jax import ResNet

    ready = [(jax.device_put(x.transpose(0, 2, 3, 1)), jax.device_put(y)) for x, y in batches]
    net, optimizer = ResNet(ARCH), optax.sgd(LR, MOMENTUM)
    variables = jax.jit(net.init)(jax.random.key(0), ready[0][0])
    state = [variables["params"], variables["batch_stats"], optimizer.init(variables["params"])]

    @partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(params: Any, batch_stats: Any, velocity: Any, X: Array, Y: Array) -> tuple:
        def loss(params: Any) -> tuple:
            Y_hat, updates = net.apply(
                {"params": params, "batch_stats": batch_stats}, X, mutable=["batch_stats"]
            )
            return net.loss(Y_hat, Y), updates["batch_stats"]

        (value, batch_stats), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, velocity = optimizer.update(gradients, velocity)
        return optax.apply_updates(params, updates), batch_stats, velocity, value

    def epoch() -> None:
        for X, Y in ready:
            *state[:], loss = step(*state, X, Y)
            float(loss)

    return epoch


def mxnet(batches: Iterable[Batch]) -> Callable[[], None]:
    """An epoch as Gluon's users write it, on batches that are ready."""
    tab = import_module("resnet_mxnet")
    from mxnet import np

    train_step = import_module("resnet_mxnet.training").train_step
    ready = [(np.array(x), np.array(y, dtype="int32")) for x, y in batches]
    net = tab.ResNet(ARCH, LR)
    net.hybridize(static_alloc=True)
    net(ready[0][0])
    trainer = net.configure_optimizers(RECIPE)

    def epoch() -> None:
        for X, Y in ready:
            loss, _ = train_step(net, trainer, X, Y)
            loss.item()

    return epoch


BARE = {"torch": torch, "tf": tf, "jax": jax, "mxnet": mxnet}


def rate(epoch: Callable[[], None]) -> float:
    """Images a second of an epoch."""
    start = time.perf_counter()
    epoch()
    return STEPS * BATCH_SIZE / (time.perf_counter() - start)


def train(backend: str, model: Any, images: FashionMNIST) -> float:
    """Images a second of an epoch of `train`: data, augmentation, history and progress included."""
    run = Settings(
        backend=backend,
        architecture=ARCH.to_json(),
        epochs=1,
        lr=LR,
        recipe=RECIPE,
        schedule="constant",
        warmup_epochs=0,
        precision="float32",
        device="cpu",
        **images.settings(),
    )
    with tempfile.TemporaryDirectory() as folder:
        _, found = training.train(lambda _: model, images, run, Path(folder) / "run", False)
    return found.history[-1]["images_per_second"]


def in_turns(**measured: Callable[[], float]) -> dict[str, float]:
    """The median of each over the rounds, after one that does not count."""
    rounds = [{name: measure() for name, measure in measured.items()} for _ in range(ROUNDS + 1)]
    return {name: median(found[name] for found in rounds[1:]) for name in measured}


def overhead(size: int = 28) -> None:
    """The contract and the loop around the step cost at most 2 %."""
    images = data(size, augment=["flip", "crop"])
    for backend in available_backends():
        with quiet():
            model, bare = build(backend), BARE[backend](images.train_dataloader())
            found = in_turns(
                bare=lambda: rate(bare),  # noqa: B023
                train=lambda: train(backend, model, images),  # noqa: B023
            )
        ratio = found["train"] / found["bare"]
        print(
            f"{backend}: {found['train']:.0f} images/s in train, {found['bare']:.0f} bare, ratio {ratio:.3f}"
        )


def pipeline(size: int = 96) -> None:
    """The data comes ten times as fast as the fastest backend learns from it."""
    images = data(size, augment=["flip", "crop"])
    rates = {}
    for backend in available_backends():
        with quiet():
            bare = BARE[backend](images.train_dataloader())
            rates[backend] = in_turns(bare=lambda: rate(bare))["bare"]  # noqa: B023
        print(f"{backend}: {rates[backend]:.0f} images/s of training at {size}×{size}")
    fastest = max(rates.values())
    for augment in ([], ["flip", "crop"]):
        full = FashionMNIST(BATCH_SIZE, (size, size), augment=augment)

        def epoch() -> float:
            start = time.perf_counter()
            return sum(len(y) for _, y in full.train_dataloader()) / (time.perf_counter() - start)  # noqa: B023

        found = in_turns(data=epoch)["data"]
        kind = " and ".join(augment) or "plain"
        print(f"data, {kind}: {found:.0f} images/s, {found / fastest:.0f} × the fastest")


def accuracy() -> None:
    """The run of the README, in every backend."""
    schedule = ["--epochs", "2", "--warmup-epochs", "1", "--schedule", "cosine"]
    options = ["--backend", "all", "--resize", "28", "--lr", "0.05", "--momentum", "0.9", *schedule]
    sys.argv = ["resnet-tabs", "train", "resnet18", *options]
    cli.main()
