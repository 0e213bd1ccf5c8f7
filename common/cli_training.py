"""The commands `train`, `evaluate` and `predict`.

A framework is imported only once all that needs none has been checked.
"""

from __future__ import annotations

import dataclasses
import io
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from common import imagenet
from common.architecture import Architecture, architecture
from common.backend import BACKENDS, Model, load_backend
from common.errors import BadInput
from common.options import (
    AnyBackend,
    Arch,
    Data,
    Device,
    Precision,
    any_backend,
    check_device,
    check_precision,
)
from common.workers import quiet

if TYPE_CHECKING:
    from common.weights import Weights

app = typer.Typer()

Checkpoint = Annotated[
    Path, typer.Argument(metavar="CHECKPOINT", help="A .safetensors file, or the folder of a run: its best.")
]
Resize = Annotated[
    int | None,
    typer.Option(help="Height and width the network sees. Default: the run's; else 96, of ImageNet 224."),
]


@app.command()
def train(
    context: typer.Context,
    arch: Arch,
    backend: Annotated[
        str,
        typer.Option(metavar="NAME", help=f"{', '.join(BACKENDS)}, oracle, or all: the four in turn."),
    ] = "torch",
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 10,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 128,
    resize: Annotated[int, typer.Option(help="Height and width the network sees.")] = 96,
    lr: Annotated[float, typer.Option(help="Learning rate, at its highest.")] = 0.01,
    momentum: Annotated[float, typer.Option(help="Share of the velocity a step keeps.")] = 0.0,
    weight_decay: Annotated[float, typer.Option(help="Share of the weights added to the gradient.")] = 0.0,
    schedule: Annotated[str, typer.Option(help="constant, or cosine: from lr down to 0.")] = "constant",
    warmup_epochs: Annotated[int, typer.Option(help="Epochs in which lr rises from 0.")] = 0,
    augment: Annotated[str, typer.Option(metavar="NAMES", help="flip, crop, or flip,crop.")] = "",
    precision: Precision = "float32",
    limit_train: Annotated[int | None, typer.Option(help="Only the first N training images.")] = None,
    limit_val: Annotated[int | None, typer.Option(help="Only the first N validation images.")] = None,
    seed: Annotated[int, typer.Option(help="Decides initial weights, order and augmentation.")] = 0,
    device: Device = "cpu",
    data: Data = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Folder of the run. Default: a new runs/ARCH-BACKEND-N."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with RUN; options left out are those it began with.")
    ] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write event files, too.")] = False,
) -> None:
    """Train on Fashion-MNIST; keep checkpoints, history and curves in a folder.

    Ctrl-C finishes the step, saves and says how to go on. Exits with 0 when all epochs are done, 1 if the
    run diverged, 2 if the question makes no sense, 130 after Ctrl-C.
    """
    from common import training
    from common.data import FashionMNIST
    from common.runs import Settings, new_folder, read_settings
    from common.weights import initial_weights

    network = architecture(arch)
    options: dict[str, Any] = {
        "backend": backend,
        "architecture": network.to_json(),
        "epochs": epochs,
        "batch_size": batch_size,
        "resize": (resize, resize),
        "lr": lr,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "schedule": schedule,
        "warmup_epochs": warmup_epochs,
        "augment": tuple(name.strip() for name in augment.split(",")) if augment else (),
        "precision": precision,
        "device": device,
        "seed": seed,
        "limit_train": limit_train,
        "limit_val": limit_val,
    }
    if resume:
        if out is None:
            raise BadInput("--resume needs --out RUN, the folder of the run to go on with")
        began_with = dataclasses.asdict(read_settings(out))
        for name in options:
            source = context.get_parameter_source(name)
            if source and source.name == "DEFAULT":
                options[name] = began_with[name]
    names = list(BACKENDS) if options["backend"] == "all" else [options["backend"]]
    for name in names:
        load_backend(name)
    check_device(options["device"])
    check_precision(options["precision"])
    images = FashionMNIST(
        options["batch_size"],
        options["resize"],
        augment=options["augment"],
        limit_train=options["limit_train"],
        limit_val=options["limit_val"],
        seed=options["seed"],
        directory=data,
    )
    settings = Settings(**options, data=images.size)

    folder = out or new_folder(f"{arch}-{settings.backend}")
    again = f"resnet-tabs train {arch} --out {shlex.quote(str(folder))} --resume"
    if data:
        again += f" --data {shlex.quote(str(data))}"

    def build(name: str) -> Model:
        model = load_backend(name).build(network, settings.precision, settings.device)
        model.load_weights(initial_weights(network, settings.seed))
        return model

    with quiet():  # frameworks have much to say
        if settings.backend == "all":
            training.train_all(build, names, images, settings, folder, resume, again, tensorboard)
        else:
            training.train(build, images, settings, folder, resume, again, tensorboard)


@app.command()
def evaluate(
    checkpoint: Checkpoint,
    backend: AnyBackend = "any",
    batch_size: Annotated[int, typer.Option(help="Images at a time.")] = 128,
    resize: Resize = None,
    precision: Precision = "float32",
    limit_val: Annotated[int | None, typer.Option(help="Only the first N validation images.")] = None,
    device: Device = "cpu",
    data: Data = None,
) -> None:
    """Loss and accuracy of a checkpoint on the validation images, in any backend, whoever trained it."""
    from common import training
    from common.data import FashionMNIST

    name = any_backend(backend)
    check_device(device)
    check_precision(precision)
    path, network, weights, size, dataset = _open(checkpoint, resize)
    if dataset == imagenet.NAME:
        raise BadInput(f"{path} is of {dataset}, and evaluate has Fashion-MNIST only; try predict")
    images = FashionMNIST(resize=size, limit_val=limit_val, directory=data, batch_size=batch_size)
    training.check_fits(network, images)
    with quiet():  # frameworks have much to say
        model = load_backend(name).build(network, precision, device)
        model.load_weights(weights)
        found = training.evaluate(model, images.val_dataloader(model.dtype, network.in_channels))
    typer.echo(
        f"{path}: loss {found.loss:.6f}  accuracy {found.accuracy:.4f}  "
        f"({found.images:,} images at {size[0]}×{size[1]} from {images.source}; "
        f"{name} on the {device}, {precision})"
    )


@app.command()
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
    from common.files import write_atomically
    from common.images import read_images
    from common.oracle import softmax

    name = any_backend(backend)
    check_device(device)
    check_precision(precision)
    _, network, weights, size, dataset = _open(checkpoint, resize)
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


def _open(path: Path, resize: int | None) -> tuple[Path, Architecture, Weights, tuple[int, int], str]:
    """The checkpoint meant, its architecture and weights, and the size and data set of its images."""
    from common.runs import is_run, read_settings
    from common.weights import load_checkpoint, load_metadata

    if path.is_dir():
        settings = read_settings(path)
        if settings.backend == "all":
            raise BadInput(f"{path} has four runs; name one of them, such as {path / 'torch'}")
        path = path / "best.safetensors"
        if not path.is_file():
            raise BadInput(f"{path.parent} has no finished epoch yet; give {path.with_stem('last')}")
    network, weights = load_checkpoint(path)
    dataset = load_metadata(path).get("dataset", "")
    if dataset == imagenet.NAME and (network.in_channels, network.num_classes) != (3, imagenet.NUM_CLASSES):
        raise BadInput(f"{path} says it is of ImageNet, but has not its 3 channels and 1,000 classes")
    size = (imagenet.SIZE,) * 2 if dataset == imagenet.NAME else (96, 96)
    if resize is not None:
        size = (resize, resize)
    elif is_run(path.parent):
        size = read_settings(path.parent).resize
    network.check_input((1, network.in_channels, *size))
    return path, network, weights, size, dataset
