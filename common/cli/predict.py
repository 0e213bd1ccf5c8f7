"""The command `predict`. A framework is imported only once all that needs none has been checked."""

from __future__ import annotations

import csv
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
    SkipBad,
    any_backend,
    check_device,
    check_precision,
    folder_of_images,
    open_checkpoint,
)
from common.data import imagenet
from common.errors import BadInput
from common.processes.workers import quiet


def predict(
    checkpoint: Checkpoint,
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE…|FOLDER|X.npy",
            help="Image files, folders of them, or one array (N, C, H, W) in [0, 1].",
        ),
    ],
    backend: AnyBackend = "any",
    resize: Resize = None,
    precision: Precision = "float32",
    device: Device = "cpu",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv|.npy", help="Write classes and probabilities here, or the logits (N, classes)."
        ),
    ] = None,
    skip_bad: SkipBad = False,
) -> None:
    """The likeliest classes of each image, with their probabilities: three, or five of ImageNet's.

    Image files are prepared as the validation images were; for a network of ImageNet that is the shorter
    side to 256, the centre of 224, and the usual mean and standard deviation.
    """
    from common.data import CLASSES
    from common.data.folder import leaving_out, why_bad
    from common.data.images import find_files, read_images
    from common.files import write_atomically
    from common.oracle import softmax
    from common.training.progress import track

    name = any_backend(backend)
    check_device(device)
    check_precision(precision)
    if out and out.suffix not in (".csv", ".npy"):
        raise BadInput(f"cannot write {out}; give a name that ends in .csv or .npy")
    path, network, weights, size, dataset = open_checkpoint(checkpoint, resize)
    classes, normalize = folder_of_images(path, network)
    if not classes:
        classes = tuple(f"class {i}" for i in range(network.num_classes))
        if dataset == imagenet.NAME:
            classes = imagenet.classes()
        elif network.num_classes == len(CLASSES):
            classes = CLASSES
    names = find_files(inputs)
    if skip_bad:
        skipped = [file for file in names if file.suffix != ".npy" and why_bad(file)]
        if skipped:
            typer.echo(leaving_out(map(str, skipped)))
        for file in skipped:
            del names[file]
        if not names:
            raise BadInput("no image is left that can be read; give others")
    files, shown, logits = list(names), [], []
    with quiet():  # frameworks have much to say
        model = load_backend(name).build(network, precision, device)
        model.load_weights(weights)
        starts = range(0, len(files), 128)
        for start in track(starts, "predicting", len(starts)):
            chosen = files[start : start + 128]
            own_names, x = read_images(chosen, network, size, dataset, normalize)
            shown += own_names if chosen[0].suffix == ".npy" else [names[file] for file in chosen]
            logits += [model.predict(x[i : i + 128]) for i in range(0, len(x), 128)]
    rows = softmax(np.concatenate(logits))
    if out and out.suffix == ".npy":
        packed = io.BytesIO()
        np.save(packed, np.concatenate(logits))
        write_atomically(out, packed.getvalue())
        typer.echo(f"logits {rows.shape} are in {out}")
    elif out:
        table = io.StringIO()
        writer = csv.writer(table)
        writer.writerow(["image", "class", "probability", *classes])
        for image, row in zip(shown, rows, strict=True):
            writer.writerow([image, classes[row.argmax()], row.max(), *row])
        write_atomically(out, table.getvalue())
        typer.echo(f"classes and probabilities of {len(shown):,} images are in {out}")
    else:
        for image, row in zip(shown, rows, strict=True):
            likeliest = row.argsort()[::-1][: 5 if dataset == imagenet.NAME else 3]
            typer.echo(f"{image}: {', '.join(f'{classes[i]} {row[i]:.4f}' for i in likeliest)}")
