"""The command `evaluate`. A framework is imported only once all that needs none has been checked."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.backend import load_backend
from common.cli.options import (
    AnyBackend,
    Checkpoint,
    Compile,
    Data,
    Device,
    Loaders,
    Normalize,
    Opened,
    Precision,
    Resize,
    SkipBad,
    ValShare,
    any_backend,
    check_device,
    check_precision,
    open_checkpoint,
)
from common.data import CLASSES, imagenet
from common.errors import BadInput
from common.pages import say
from common.processes.workers import quiet
from common.reading import some

if TYPE_CHECKING:
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
    normalize: Normalize = None,
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
    from common.data.folder import THREADS, FileBatches
    from common.data.pipeline import check_whole, count_batches, read_ahead
    from common.training import confusion
    from common.training.progress import track

    name = any_backend(backend)
    check_device(device)
    check_precision(precision)
    opened = open_checkpoint(checkpoint, resize, normalize)
    path, arch, (height, width) = opened.path, opened.arch, opened.preparation.size
    check_whole("batch_size", batch_size, 1)
    if limit_val is not None:
        check_whole("limit_val", limit_val, 1)
    check_whole("loaders", loaders, 0)
    folder = _folder(context, folder, data)
    images = None
    if folder and is_image_folder(folder):
        images = _images(opened, folder, val_share, skip_bad).first(limit_val)
        source, count = str(folder), count_batches(len(images), batch_size)
    elif normalize is not None or (opened.is_said and opened.preparation.fit != "fashion-mnist"):
        raise BadInput(
            f"{path} was not trained on Fashion-MNIST; give a folder of images with --data, or try predict"
        )
    else:
        fashion = FashionMNIST(batch_size, (height, width), limit_val=limit_val, directory=folder)
        training.check_fits(arch, fashion)
        source, count = fashion.source, fashion.num_val_batches
    with quiet():  # frameworks have much to say
        model = load_backend(name).build(arch, precision, device, compile)
        model.load_weights(opened.weights)
        if images is None:
            dealt = fashion.val_dataloader(model.dtype, arch.in_channels)
        else:
            batches = FileBatches(images, batch_size, opened.preparation, model.dtype)
            dealt = read_ahead(batches, 0, THREADS, loaders)
        found = training.evaluate(model, track(dealt, "evaluating", count))
    if images is not None:
        say(opened.prepared())
    top5 = "" if images is None else f"  top-5 {found.top5:.4f}"
    say(
        f"{path}: loss {found.loss:.6f}  accuracy {found.accuracy:.4f}{top5}  "
        f"({found.images:,} images at {height}×{width} from {source}; {name} on the {device}, {precision})"
    )
    if images is not None:
        picture = out or path.parent / "confusion.png"
        confusion.show(found.confusion, images.classes)
        confusion.draw(picture, found.confusion, images.classes)
        say(f"which class was taken for which is in {picture}")


def _folder(context: typer.Context, folder: Path | None, data: Path | None) -> Path | None:
    """The folder that was named, as an argument or an option; one of the environment may be named as well."""
    given = context.get_parameter_source("data")
    if folder and given and given.name == "COMMANDLINE":
        raise BadInput("the folder of images is named twice; leave out --data")
    return folder or data


def _images(opened: Opened, folder: Path, val_share: float | None, skip_bad: bool) -> Images:
    """The images of a folder to evaluate a checkpoint on. Lines say what else would be a surprise."""
    from common.data.folder import check_readable, evaluation_images, leaving_out, without_bad

    opened.preparation.check()
    own = folder / "val" if (folder / "val").is_dir() else folder
    classes = opened.classes if opened.preparation.fit == "folder" else _named_so(opened, own)
    if val_share is None and own == folder:
        val_share = _share_of_training(opened, folder, skip_bad)
    images = evaluation_images(folder, classes, opened.arch.num_classes, val_share)
    if skip_bad:
        images = without_bad(images)
    else:
        check_readable(images)
    if images.left_out:
        say(leaving_out(images.left_out))
    return images


def _named_so(opened: Opened, folder: Path) -> tuple[str, ...]:
    """The network's classes as the folders are called; none, and a line, where its names are of a known set.

    Raises:
        ValueError: if the network has names of its own, and no folder is called so.
    """
    from common.data.folder import find_images, same_classes

    if same := same_classes(opened.classes, find_images(folder).classes):
        return tuple(same.get(name, name) for name in opened.classes)
    if opened.classes and opened.classes not in (CLASSES, imagenet.classes()):
        raise BadInput(
            f"{folder} has no class of those that {opened.path} knows, {some(opened.classes)}; "
            "call its folders so"
        )
    names = "calls its classes otherwise" if opened.classes else "does not name its classes"
    say(f"{opened.path} {names}: the folders of {folder}, sorted, are taken for them")
    return ()


def _share_of_training(opened: Opened, folder: Path, skip_bad: bool) -> float | None:
    """The share of a folder that a run on it was validated on; None, and a line, if it is not as it was."""
    from common.data import ImageFolder

    if opened.val_share is None:
        return None
    with suppress(BadInput):  # where it leaves nothing it is another folder
        if ImageFolder(folder, 1, val_share=opened.val_share, skip_bad=skip_bad).size == opened.data:
            return opened.val_share
    say(f"{folder} is not as it was in training: all its images, those trained on included")
    return None
