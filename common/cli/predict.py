"""The command `predict`. A framework is imported only once all that needs none has been checked."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from common.backend import load_backend
from common.cli.options import (
    AnyBackend,
    Checkpoint,
    Device,
    Precision,
    Resize,
    any_backend,
    check_device,
    check_precision,
    open_checkpoint,
)
from common.data import imagenet
from common.proof.workers import quiet


def predict(
    checkpoint: Checkpoint,
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE…|X.npy", help="Image files, or one array (N, C, H, W) in [0, 1]."),
    ],
    backend: AnyBackend = "any",
    resize: Resize = None,
    precision: Precision = "float32",
    device: Device = "cpu",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.npy", help="Write the logits (N, classes) here instead.")
    ] = None,
) -> None:
    """The likeliest classes of each image, with their probabilities: three, or five of ImageNet's.

    Image files are prepared as the training images were; for a network of ImageNet that is the shorter
    side to 256, the centre of 224, and the usual mean and standard deviation.
    """
    from common.data import CLASSES
    from common.data.images import read_images
    from common.files import write_atomically
    from common.oracle import softmax

    name = any_backend(backend)
    check_device(device)
    check_precision(precision)
    _, network, weights, size, dataset = open_checkpoint(checkpoint, resize)
    names, x = read_images(inputs, network, size, dataset)
    with quiet():  # frameworks have much to say
        model = load_backend(name).build(network, precision, device)
        model.load_weights(weights)
        logits = np.concatenate([model.predict(x[i : i + 128]) for i in range(0, len(x), 128)])
    if out:
        packed = io.BytesIO()
        np.save(packed, logits)
        write_atomically(out, packed.getvalue())
        typer.echo(f"logits {logits.shape} are in {out}")
        return
    classes = tuple(f"class {i}" for i in range(network.num_classes))
    if dataset == imagenet.NAME:
        classes = imagenet.classes()
    elif network.num_classes == len(CLASSES):
        classes = CLASSES
    for image, row in zip(names, softmax(logits), strict=True):
        likeliest = row.argsort()[::-1][: 5 if dataset == imagenet.NAME else 3]
        typer.echo(f"{image}: {', '.join(f'{classes[i]} {row[i]:.4f}' for i in likeliest)}")
