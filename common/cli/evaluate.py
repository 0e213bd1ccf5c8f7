"""The command `evaluate`. A framework is imported only once all that needs none has been checked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.architecture import Architecture
from common.backend import Model, load_backend
from common.cli.options import (
    AnyBackend,
    Checkpoint,
    Compile,
    Data,
    Device,
    Loaders,
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
from common.processes.workers import quiet
from common.weights import load_metadata

if TYPE_CHECKING:
    from common.data import Batch
    from common.data.folder import Images


def evaluate(
    context: typer.Context,
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
    loaders: Loaders = 0,
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
    from common.data.pipeline import check_whole, count_batches
    from common.training import confusion
    from common.training.progress import track

    name = any_backend(backend)
    check_device(device)
    check_precision(precision)
    path, network, weights, size, dataset = open_checkpoint(checkpoint, resize)
    check_whole("batch_size", batch_size, 1)
    if limit_val is not None:
        check_whole("limit_val", limit_val, 1)
    check_whole("loaders", loaders, 0)
    given = context.get_parameter_source("data")
    if folder and given and given.name == "COMMANDLINE":  # and not the environment
        raise BadInput("the folder of images is named twice; leave out --data")
    folder = folder or data
    images = None
    if folder and is_image_folder(folder):
        images = _images(path, folder, network, dataset, val_share, skip_bad).first(limit_val)
        source, count = str(folder), count_batches(len(images), batch_size)
    elif dataset == imagenet.NAME:
        raise BadInput(f"{path} is of {dataset}; give a folder of images with --data, or try predict")
    else:
        fashion = FashionMNIST(resize=size, limit_val=limit_val, directory=folder, batch_size=batch_size)
        training.check_fits(network, fashion)
        source, count = fashion.source, fashion.num_val_batches
    with quiet():  # frameworks have much to say
        model = load_backend(name).build(network, precision, device, compile)
        model.load_weights(weights)
        if images is None:
            dealt = fashion.val_dataloader(model.dtype, network.in_channels)
        else:
            _, normalize = folder_of_images(path, network)
            if dataset == imagenet.NAME:
                normalize = "imagenet"
            dealt = _batches(images, batch_size, size, normalize, model, loaders)
        found = training.evaluate(model, track(dealt, "evaluating", count))
    top5 = "" if images is None else f"  top-5 {found.top5:.4f}"
    typer.echo(
        f"{path}: loss {found.loss:.6f}  accuracy {found.accuracy:.4f}{top5}  "
        f"({found.images:,} images at {size[0]}×{size[1]} from {source}; "
        f"{name} on the {device}, {precision})"
    )
    if images is not None:
        picture = out or path.parent / "confusion.png"
        confusion.show(found.confusion, images.classes)
        confusion.draw(picture, found.confusion, images.classes)
        typer.echo(f"which class was taken for which is in {picture}")


def _images(
    path: Path, folder: Path, network: Architecture, dataset: str, val_share: float | None, skip_bad: bool
) -> Images:
    """The images of a folder to evaluate a checkpoint on. Lines say what else would be a surprise."""
    from common.data import CLASSES, ImageFolder
    from common.data.folder import (
        check_readable,
        evaluation_images,
        find_images,
        leaving_out,
        without_bad,
    )

    own = folder / "val" if (folder / "val").is_dir() else folder
    classes, _ = folder_of_images(path, network)
    if not classes:
        known = imagenet.classes() if dataset == imagenet.NAME else CLASSES
        known = tuple(name.replace("/", "-") for name in known)  # as a folder can be named
        if set(find_images(own).classes) == set(known):
            classes = known
        else:
            typer.echo(f"{path} does not name its classes: the folders of {own}, sorted, are taken for them")
    says = load_metadata(path)
    share = json.loads(says.get("val_share", "null"))
    if val_share is None and share is not None and own == folder:
        with suppress(BadInput):  # where it leaves nothing it is another folder
            if ImageFolder(folder, 1, val_share=share, skip_bad=skip_bad).size == says.get("data"):
                val_share = share
        if val_share is None:
            typer.echo(f"{folder} is not as it was in training: all its images, those trained on included")
    images = evaluation_images(folder, classes, network.num_classes, val_share)
    if skip_bad:
        images, skipped = without_bad(images)
        if skipped:
            typer.echo(leaving_out(skipped))
    check_readable(images)
    return images


def _batches(
    images: Images, batch_size: int, size: tuple[int, int], normalize: str, model: Model, loaders: int
) -> Iterator[Batch]:
    """The images as the network was trained on them: on a folder, on ImageNet, or on Fashion-MNIST."""
    from common.data.folder import THREADS, FileBatches
    from common.data.images import read_images
    from common.data.pipeline import read_ahead

    if normalize:
        batches = FileBatches(images, batch_size, size, normalize, model.dtype, model.arch.in_channels)
        yield from read_ahead(batches, 0, THREADS, loaders)
        return
    for start in range(0, len(images), batch_size):
        paths = [images.root / name for name in images.names[start : start + batch_size]]
        yield read_images(paths, model.arch, size)[1], images.labels[start : start + batch_size]
