"""The command `evaluate`. A framework is imported only once all that needs none has been checked."""

from __future__ import annotations

from typing import Annotated

import typer

from common.backend import load_backend
from common.cli.options import (
    AnyBackend,
    Checkpoint,
    Compile,
    Data,
    Device,
    Precision,
    Resize,
    any_backend,
    check_device,
    check_precision,
    open_checkpoint,
)
from common.data import imagenet
from common.errors import BadInput
from common.proof.workers import quiet


def evaluate(
    checkpoint: Checkpoint,
    backend: AnyBackend = "any",
    batch_size: Annotated[int, typer.Option(help="Images at a time.")] = 128,
    resize: Resize = None,
    precision: Precision = "float32",
    limit_val: Annotated[int | None, typer.Option(help="Only the first N validation images.")] = None,
    device: Device = "cpu",
    compile: Compile = False,
    data: Data = None,
) -> None:
    """Loss and accuracy of a checkpoint on the validation images, in any backend, whoever trained it."""
    from common import training
    from common.data import FashionMNIST

    name = any_backend(backend)
    check_device(device)
    check_precision(precision)
    path, network, weights, size, dataset = open_checkpoint(checkpoint, resize)
    if dataset == imagenet.NAME:
        raise BadInput(f"{path} is of {dataset}, and evaluate has Fashion-MNIST only; try predict")
    images = FashionMNIST(resize=size, limit_val=limit_val, directory=data, batch_size=batch_size)
    training.check_fits(network, images)
    with quiet():  # frameworks have much to say
        model = load_backend(name).build(network, precision, device, compile)
        model.load_weights(weights)
        found = training.evaluate(model, images.val_dataloader(model.dtype, network.in_channels))
    typer.echo(
        f"{path}: loss {found.loss:.6f}  accuracy {found.accuracy:.4f}  "
        f"({found.images:,} images at {size[0]}×{size[1]} from {images.source}; "
        f"{name} on the {device}, {precision})"
    )
