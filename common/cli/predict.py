"""The command `predict`. A framework is imported only once all that needs none has been checked."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from common.backend import load_backend
from common.cli.options import (
    AnyBackend,
    Checkpoint,
    Device,
    Normalize,
    Opened,
    Precision,
    Resize,
    SkipBad,
    any_backend,
    check_device,
    check_precision,
    open_checkpoint,
)
from common.data import imagenet
from common.errors import BadInput
from common.files import write_atomically
from common.pages import say
from common.processes.workers import quiet
from common.reading import shown

BATCH_SIZE = 128


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
    normalize: Normalize = None,
    precision: Precision = "float32",
    device: Device = "cpu",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv|.npy",
            help="Write classes and probabilities here, or the logits (N, classes). In a .csv a name that "
            "begins with =, +, - or @ has ' before it, so that no spreadsheet computes it.",
        ),
    ] = None,
    skip_bad: SkipBad = False,
) -> None:
    """The likeliest classes of each image, with their probabilities: three, or five of a thousand and more.

    Image files are prepared as the network's own validation images were, which its checkpoint says; a line
    says how, and --resize and --normalize do otherwise.
    """
    from common.data.pipeline import count_batches
    from common.oracle import softmax
    from common.training.progress import track

    name = any_backend(backend)
    check_device(device)
    check_precision(precision)
    if out and out.suffix not in (".csv", ".npy"):
        raise BadInput(f"cannot write {out}; give a name that ends in .csv or .npy")
    opened = open_checkpoint(checkpoint, resize, normalize)
    names, deal, how = _inputs(inputs, opened, skip_bad)
    if how.startswith("array") and (resize, normalize) != (None, None):
        raise BadInput("an array is taken as it is; leave out --resize and --normalize")
    with quiet():  # frameworks have much to say
        model = load_backend(name).build(opened.arch, precision, device)
        model.load_weights(opened.weights)
        batches = track(deal(model.dtype), "predicting", count_batches(len(names), BATCH_SIZE))
        logits = np.concatenate([model.predict(x) for x in batches])
    if how:
        say(how)
    if out and out.suffix == ".npy":
        packed = io.BytesIO()
        np.save(packed, logits)
        write_atomically(out, packed.getvalue())
        say(f"logits {logits.shape} are in {out}")
        return
    classes = opened.classes or tuple(f"class {i}" for i in range(opened.arch.num_classes))
    if out:
        write_atomically(out, _table(names, classes, softmax(logits)))
        say(f"classes and probabilities of {len(names):,} images are in {out}")
        return
    most = 5 if len(classes) >= imagenet.NUM_CLASSES else 3
    for name, row in zip(names, softmax(logits), strict=True):
        likeliest = row.argsort()[::-1][:most]
        say(f"{name}: {', '.join(f'{classes[i]} {row[i]:.4f}' for i in likeliest)}")


def _inputs(
    given: list[Path], opened: Opened, skip_bad: bool
) -> tuple[list[str], Callable[[str], Iterator[NDArray]], str]:
    """The names of the images, what deals them out in batches (N, C, H, W), and how they are prepared.

    The batches are of the dtype that is asked for. An array is taken as it is.
    """
    from common.data.folder import FileBatches, leaving_out, without_bad
    from common.data.images import find_files, images_in_array, without_classes

    files, left_out = find_files(given)
    if [file.suffix for file in files] == [".npy"]:
        (path,) = files
        x = images_in_array(path, opened.arch)
        starts = range(0, len(x), BATCH_SIZE)
        names = [f"{path.name}[{i}]" for i in range(len(x))]
        return (
            names,
            lambda _: (x[i : i + BATCH_SIZE] for i in starts),
            f"array, taken as it is; {opened.prepared()}",
        )
    opened.preparation.check()
    images = without_classes(files, left_out)
    if skip_bad:
        images = without_bad(images)
    if images.left_out:
        say(leaving_out(images.left_out))

    def deal(dtype: str) -> Iterator[NDArray]:
        return (x for x, _ in FileBatches(images, BATCH_SIZE, opened.preparation, dtype))

    return [files[Path(name)] for name in images.names], deal, opened.prepared()


def _table(names: Sequence[str], classes: Sequence[str], probabilities: NDArray) -> str:
    """CSV: of each image its likeliest class, and the probabilities (N, classes)."""
    table = io.StringIO()
    writer = csv.writer(table)
    classes = [_cell(name) for name in classes]
    writer.writerow(["image", "class", "probability", *classes])
    for name, row in zip(names, probabilities, strict=True):
        writer.writerow([_cell(name), classes[row.argmax()], row.max(), *row])
    return table.getvalue()


def _cell(name: str) -> str:
    """A name as a line of CSV has it; with ' before what a spreadsheet would take for a formula."""
    return f"'{shown(name)}" if name.startswith(("=", "+", "-", "@")) else shown(name)
