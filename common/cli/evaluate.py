"""The command `evaluate`. A framework is imported only once all that needs none has been checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from common.backend import load_backend
from common.cli.options import (
    AnyBackend,
    Checkpoint,
    Compile,
    Data,
    Device,
    NumWorkers,
    Precision,
    Resize,
    SkipBad,
    ValShare,
    any_backend,
    check_device,
    check_precision,
    folder_of_images,
    open_checkpoint,
)
from common.data import imagenet
from common.errors import BadInput
from common.proof.workers import quiet


def evaluate(
    checkpoint: Checkpoint,
    folder: Annotated[
        Path | None, typer.Argument(metavar="[FOLDER]", help="Folder of images; --data names one as well.")
    ] = None,
    backend: AnyBackend = "any",
    batch_size: Annotated[int, typer.Option(help="Images at a time.")] = 128,
    resize: Resize = None,
    precision: Precision = "float32",
    limit_val: Annotated[int | None, typer.Option(help="Only the first N validation images.")] = None,
    device: Device = "cpu",
    compile: Compile = False,
    data: Data = None,
    val_share: ValShare = None,
    skip_bad: SkipBad = False,
    num_workers: NumWorkers = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png",
            help="Of a folder: the picture of which class was taken for which. "
            "Default: confusion.png beside the checkpoint.",
        ),
    ] = None,
) -> None:
    """Loss and accuracy of a checkpoint on the validation images, in any backend, whoever trained it.

    Of a folder of images those in val, where it has one, else all; of a run on this very folder, those it was
    validated on. With the top five, a table by class, and a picture of which class was taken for which.
    """
    from common import training
    from common.data import FashionMNIST, is_image_folder
    from common.data.folder import (
        THREADS,
        FileBatches,
        check_readable,
        evaluation_images,
        leaving_out,
        without_bad,
    )
    from common.data.pipeline import read_ahead
    from common.training import confusion
    from common.training.progress import track

    name = any_backend(backend)
    check_device(device)
    check_precision(precision)
    path, network, weights, size, dataset = open_checkpoint(checkpoint, resize)
    folder = folder or data
    if folder and is_image_folder(folder):
        classes, normalize = folder_of_images(path, network)
        normalize = normalize or ("imagenet" if dataset == imagenet.NAME else "none")
        images = evaluation_images(
            folder, classes, network.num_classes, val_share or _own_share(path, folder)
        )
        if skip_bad:
            images, skipped = without_bad(images)
            if skipped:
                typer.echo(leaving_out(skipped))
        check_readable(images)
        images = images.first(limit_val)
        batches = FileBatches(images, batch_size, size, normalize, "float32", network.in_channels)
        source, count = str(folder), len(batches)
    elif dataset == imagenet.NAME:
        raise BadInput(f"{path} is of {dataset}; give a folder of images with --data, or try predict")
    else:
        images = None
        fashion = FashionMNIST(resize=size, limit_val=limit_val, directory=folder, batch_size=batch_size)
        training.check_fits(network, fashion)
        source, count = fashion.source, fashion.num_val_batches
    with quiet():  # frameworks have much to say
        model = load_backend(name).build(network, precision, device, compile)
        model.load_weights(weights)
        if images:
            dealt = read_ahead(batches, 0, THREADS, num_workers)
        else:
            dealt = fashion.val_dataloader(model.dtype, network.in_channels)
        found = training.evaluate(model, track(dealt, "evaluating", count))
    top5 = f"  top-5 {found.top5:.4f}" if images else ""
    typer.echo(
        f"{path}: loss {found.loss:.6f}  accuracy {found.accuracy:.4f}{top5}  "
        f"({found.images:,} images at {size[0]}×{size[1]} from {source}; "
        f"{name} on the {device}, {precision})"
    )
    if images:
        picture = out or path.parent / "confusion.png"
        confusion.show(found.confusion, images.classes)
        confusion.draw(picture, found.confusion, images.classes)
        typer.echo(f"which class was taken for which is in {picture}")


def _own_share(path: Path, folder: Path) -> float | None:
    """The share that a checkpoint's run was validated on, if it was a share of this folder."""
    from common.data import ImageFolder
    from common.training.runs import is_run, read_settings

    if not is_run(path.parent):
        return None
    began = read_settings(path.parent)
    if began.val_share is None or (folder / "val").is_dir():
        return None
    own = ImageFolder(folder, 1, val_share=began.val_share, skip_bad=began.skip_bad)
    return began.val_share if own.size == began.data else None
