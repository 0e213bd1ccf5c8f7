"""What training costs, measured: the loop, the data, bfloat16, and what two epochs come to.

    overhead      images/s of `train` against a bare loop over the same step
    pipeline      images/s of the data alone against the fastest backend's training
    precision     images/s in bfloat16 against float32
    accuracy      two epochs of the full set at 28×28 in every backend (about half an hour on two cores)

What is compared takes turns in one process, warmed up, and the median of the rounds counts: timings on a
busy machine mean little otherwise.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

from common import architecture, cli, initial_weights, training
from common.backend import available_backends, load_backend
from common.data import Batch, FashionMNIST
from common.proof.workers import quiet
from common.training.runs import Settings

ARCH = architecture("resnet18")
BATCH_SIZE = 128
LR, MOMENTUM = 0.01, 0.9
ROUNDS, STEPS = 3, 6
HALVES = ("torch", "jax", "tf")  # backends that have bfloat16


def data(size: int, **options: Any) -> FashionMNIST:
    """So many batches of images of this size as a round takes steps."""
    images = STEPS * BATCH_SIZE
    return FashionMNIST(BATCH_SIZE, (size, size), limit_train=images, limit_val=BATCH_SIZE, **options)


def build(backend: str, precision: str = "float32") -> Any:
    """ResNet-18 with the weights of seed 0."""
    model = load_backend(backend).build(ARCH, precision)
    model.load_weights(initial_weights(ARCH))
    return model


def bare_loop(model: Any, batches: Iterable[Batch]) -> float:
    """Images a second of the step alone, on batches that are ready."""
    ready = list(batches)
    start = time.perf_counter()
    for x, y in ready:
        model.train_batch(x, y, LR, MOMENTUM)
    return sum(len(y) for _, y in ready) / (time.perf_counter() - start)


def train(backend: str, model: Any, images: FashionMNIST) -> float:
    """Images a second of an epoch of `train`: data, augmentation, history and progress included."""
    run = Settings(
        backend=backend,
        architecture=ARCH.to_json(),
        epochs=1,
        lr=LR,
        momentum=MOMENTUM,
        weight_decay=0.0,
        schedule="constant",
        warmup_epochs=0,
        precision="float32",
        device="cpu",
        **images.settings(),
    )
    with tempfile.TemporaryDirectory() as folder:
        _, found = training.train(lambda _: model, images, run, Path(folder) / "run", False, "")
    return found.history[-1]["images_per_second"]


def in_turns(**measured: Callable[[], float]) -> dict[str, float]:
    """The median of each over the rounds, after one that does not count."""
    rounds = [{name: measure() for name, measure in measured.items()} for _ in range(ROUNDS + 1)]
    return {name: median(found[name] for found in rounds[1:]) for name in measured}


def overhead(size: int = 28) -> None:
    """The loop around the step costs at most 2 %."""
    images = data(size, augment=["flip", "crop"])
    for backend in available_backends():
        with quiet():
            model = build(backend)
            found = in_turns(
                bare=lambda: bare_loop(model, images.train_dataloader()),  # noqa: B023
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
            model = build(backend)
            rates[backend] = in_turns(bare=lambda: bare_loop(model, images.train_dataloader()))["bare"]  # noqa: B023
        print(f"{backend}: {rates[backend]:.0f} images/s of training at {size}×{size}")
    fastest = max(rates.values())
    for augment in ([], ["flip", "crop"]):
        full = FashionMNIST(BATCH_SIZE, (size, size), augment=augment)

        def epoch() -> float:
            start = time.perf_counter()
            return sum(len(y) for _, y in full.train_dataloader()) / (time.perf_counter() - start)  # noqa: B023

        rate = in_turns(rate=epoch)["rate"]
        kind = " and ".join(augment) or "plain"
        print(f"data, {kind}: {rate:.0f} images/s, {rate / fastest:.0f} × the fastest")


def precision() -> None:
    """Training in bfloat16 against float32."""
    for size in (28, 96):
        images = data(size)
        for backend in HALVES:
            with quiet():
                models = {name: build(backend, name) for name in ("float32", "bfloat16")}
                found = in_turns(
                    **{
                        name: lambda model=model: bare_loop(model, images.train_dataloader())  # noqa: B023
                        for name, model in models.items()
                    }
                )
            print(
                f"{backend} at {size}×{size}: {found['bfloat16']:.0f} images/s in bfloat16, "
                f"{found['float32']:.0f} in float32, ratio {found['bfloat16'] / found['float32']:.2f}"
            )


def accuracy() -> None:
    """The run of the README, in every backend."""
    schedule = ["--epochs", "2", "--warmup-epochs", "1", "--schedule", "cosine"]
    options = ["--backend", "all", "--resize", "28", "--lr", "0.05", "--momentum", "0.9", *schedule]
    sys.argv = ["resnet-tabs", "train", "resnet18", *options]
    cli.main()
