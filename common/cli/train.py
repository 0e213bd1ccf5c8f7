"""The command `train`. A framework is imported only once all that needs none has been checked."""

from __future__ import annotations

import dataclasses
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.architecture import CONVENTIONS, Architecture, architecture
from common.backend import BACKENDS, load_backend
from common.cli.options import (
    Arch,
    Compile,
    Data,
    Device,
    Loaders,
    Precision,
    SkipBad,
    ValShare,
    check_device,
    check_precision,
    said_preparation,
)
from common.data.colours import KNOWN
from common.errors import BadInput, telling_how_to_resume
from common.pages import say
from common.processes.workers import quiet

if TYPE_CHECKING:
    from common.data import DataModule
    from common.data.preparation import Preparation
    from common.processes.meeting import Seat
    from common.training.runs import Record
    from common.training.settings import Settings
    from common.weights import Weights

FILES = ("data", "weights")  # options that name files, of which settings say what is in them
SHARED = ("batch_size", "resize", "augment", "limit_train", "limit_val", "seed")  # by all data sets


def train(
    context: typer.Context,
    arch: Arch,
    backend: Annotated[
        str,
        typer.Option(metavar="NAME", help=f"{', '.join(BACKENDS)}, oracle, or all: the four in turn."),
    ] = "torch",
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 10,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 128,
    resize: Annotated[
        int | None,
        typer.Option(
            help="Height and width the network sees. Default: 96; of a folder's images as --weights had "
            "them, else 224."
        ),
    ] = None,
    lr: Annotated[float, typer.Option(help="Learning rate, at its highest.")] = 0.01,
    momentum: Annotated[float, typer.Option(help="Share of the velocity a step keeps.")] = 0.0,
    weight_decay: Annotated[float, typer.Option(help="Share of the weights added to the gradient.")] = 0.0,
    schedule: Annotated[str, typer.Option(help="constant, or cosine: from lr down to 0.")] = "constant",
    warmup_epochs: Annotated[int, typer.Option(help="Epochs in which lr rises from 0.")] = 0,
    label_smoothing: Annotated[float, typer.Option(help="Share of the label spread over all.")] = 0.0,
    no_decay_norm: Annotated[
        bool, typer.Option("--no-decay-norm", help="No weight decay on batch norm and biases.")
    ] = False,
    lr_backbone: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of lr for all but the classifier.")
    ] = 1.0,
    freeze: Annotated[
        str, typer.Option(metavar="backbone", help="Train the classifier alone; all else stays.")
    ] = "",
    ema: Annotated[
        float, typer.Option(metavar="DECAY", help="Average weights, a step keeping DECAY of the average.")
    ] = 0.0,
    augment: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="flip, crop, or flip,crop; a crop of a folder's images is resized.",
        ),
    ] = "",
    precision: Precision = "float32",
    limit_train: Annotated[int | None, typer.Option(help="Only the first N training images.")] = None,
    limit_val: Annotated[int | None, typer.Option(help="Only the first N validation images.")] = None,
    seed: Annotated[int, typer.Option(help="Decides initial weights, order and augmentation.")] = 0,
    device: Device = "cpu",
    compile: Compile = False,
    data: Data = None,
    val_share: ValShare = None,
    normalize: Annotated[
        str | None,
        typer.Option(
            metavar="HOW",
            help=f"What becomes of the colours of a folder's images: {KNOWN}. Default: as --weights had "
            "them, else imagenet.",
        ),
    ] = None,
    skip_bad: SkipBad = False,
    loaders: Loaders = 0,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="Start from these weights, converted or ours; a file, or a run's folder.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Folder of the run. Default: a new runs/ARCH-BACKEND-N."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with RUN; options left out are those it began with.")
    ] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write event files, too.")] = False,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes that share each batch, on this machine or with others. Default: 1."),
    ] = None,
    coordinator: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where worker 0 of several hosts listens.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="Which of the workers of several hosts this is, from 0.")
    ] = None,
) -> None:
    """Train on Fashion-MNIST or a folder of images; keep checkpoints, history and curves in a folder.

    With --workers each takes its share of every batch, and the run is that of one. Ctrl-C finishes the step,
    saves and says how to go on. Exits with 0 when all epochs are done, 1 if the run diverged, a worker was
    lost or the disk is full, 2 if the question makes no sense, 130 after Ctrl-C.
    """
    from common import training
    from common.data import is_image_folder
    from common.training.runs import new_folder, read_settings
    from common.training.settings import Settings
    from common.training.together import Plan, train_seated, train_together

    check_architecture(arch)
    seat = _seat(workers, coordinator, rank)
    if seat and out is None:
        raise BadInput("workers of several hosts need --out RUN, the same for all")
    if resume and out is None:
        raise BadInput("--resume needs --out RUN, the folder of the run to go on with")
    is_folder = data is not None and is_image_folder(data)
    if not is_folder and (normalize is not None or val_share is not None or skip_bad or loaders):
        raise BadInput(
            "--normalize, --val-share, --skip-bad and --loaders are for a folder of images; "
            "give one with --data"
        )
    begun = read_settings(out) if resume and out else None
    if begun and begun.fit == "folder" and not is_folder:
        raise BadInput(f"{out} was trained on a folder of images; give it again, with --data FOLDER")
    like = _prepared(weights) if weights and is_folder and not begun else None
    options = _options(context, is_folder, begun, like)
    names = list(BACKENDS) if options["backend"] == "all" else [options["backend"]]
    _check_backends(names, seat, workers or 1)
    check_device(options["device"])
    check_precision(options["precision"])

    images = _images(data, is_folder, options, loaders)
    network, start, sha256 = _network(arch, images, is_folder, begun, weights, options["seed"])
    said = {"architecture": network.to_json(), "weights": sha256}
    settings = Settings.from_fields(options | images.settings() | said)
    if like:
        unlike = f"; for these weights they were {like}" if like.fit == "whole" else ""
        say(f"images: {settings.preparation(network.in_channels)}{unlike}")
    folder = out or new_folder(f"{arch}-{settings.backend}")

    def train_one(settings: Settings, folder: Path, resume: bool) -> list[Record]:
        plan = Plan(images, settings, folder, resume, tensorboard, start)
        if seat:
            return train_seated(seat, plan)[1]
        if workers and workers > 1:
            return train_together(workers, plan)[1]
        return plan.train()[1].history

    again = _resume_command(context, arch, folder)
    with quiet(f"go on with: {again}"), telling_how_to_resume(again):  # frameworks have much to say
        if settings.backend == "all":
            training.train_all(train_one, names, images, settings, folder, resume)
        else:
            train_one(settings, folder, resume)


def check_architecture(name: str) -> None:
    """Raise `ValueError` unless there is a network of this name."""
    architecture(name)


def _prepared(weights: Path) -> Preparation | None:
    """How images were prepared for the network of a checkpoint, as far as image files can be, too."""
    from common.training.runs import checkpoint_file
    from common.weights import load_metadata

    path = checkpoint_file(weights)
    says = load_metadata(path)
    found = None
    if "architecture" in says:  # else it is no checkpoint of ours, which who reads its tensors says
        found = said_preparation(path, Architecture.from_json(says["architecture"]), says)
    return None if found is None or found.fit == "fashion-mnist" else found


def _options(
    context: typer.Context, is_folder: bool, begun: Settings | None, like: Preparation | None
) -> dict[str, Any]:
    """The settings among the options, by name; for those left out a resumed run's own, or as the weights'."""
    from common.training.settings import Settings

    given = context.params
    options = {name: given[name] for name in Settings.names() if name in given and name not in FILES}
    usual = like.size if like else (224, 224) if is_folder else (96, 96)
    options["resize"] = usual if given["resize"] is None else (given["resize"], given["resize"])
    options["scaled"] = like.at(options["resize"]).around if like else None
    options["interpolation"] = like.interpolation if like else "bilinear"
    options["augment"] = tuple(name.strip() for name in given["augment"].split(",") if given["augment"])
    usually = like.normalize if like else "imagenet" if is_folder else "none"
    options["normalize"] = usually if given["normalize"] is None else given["normalize"]
    if begun:
        began_with = begun.to_fields()
        for name in options:
            source = context.get_parameter_source(name)
            if source is None or source.name == "DEFAULT":
                options[name] = began_with[name]
    return options


def _check_backends(names: list[str], seat: Seat | None, workers: int) -> None:
    """Raise `ValueError` unless these backends are installed, and can train on so many workers."""
    from common.training.together import check_joins

    if seat and len(names) > 1:
        raise BadInput("workers of several hosts train in one backend; name it with --backend")
    for name in names:
        load_backend(name)
        if seat or workers > 1:
            check_joins(name)


def _images(data: Path | None, is_folder: bool, options: dict[str, Any], loaders: int) -> DataModule:
    """Fashion-MNIST or a folder of images, dealt out as the options say; says what is left out of it."""
    from common.data import FashionMNIST, ImageFolder
    from common.data.folder import leaving_out
    from common.data.pipeline import check_whole

    shared = {name: options[name] for name in SHARED}
    if not (data and is_folder):
        return FashionMNIST(directory=data, **shared)
    own = {name: options[name] for name in ("normalize", "scaled", "interpolation", "val_share", "skip_bad")}
    check_whole("loaders", loaders, 0)
    images = ImageFolder(data, num_workers=loaders, **shared, **own)
    if images.skipped:
        say(leaving_out(images.skipped))
    return images


def _network(
    arch: str, images: DataModule, is_folder: bool, begun: Settings | None, weights: Path | None, seed: int
) -> tuple[Architecture, Weights | None, str]:
    """The network for these images; the weights it starts from and their SHA-256, if they are not drawn.

    Weights that are given, and a run that is resumed, have their own channels and conventions.
    """
    from common.training.runs import checkpoint_file
    from common.training.starting import pretrained
    from common.weights import load_checkpoint

    network = architecture(arch, in_channels=3 if is_folder else 1, num_classes=len(images.classes))
    if weights:
        own, _ = load_checkpoint(checkpoint_file(weights))
    elif begun:
        own = Architecture.from_json(begun.architecture)
    else:
        return network, None, ""
    kept = {name: getattr(own, name) for name in ("in_channels", *CONVENTIONS)}
    network = dataclasses.replace(network, **kept)
    if not weights:
        return network, None, begun.weights if begun else ""
    start, sha256, said = pretrained(weights, network, seed, images.classes)
    say(said)
    return network, start, sha256


def _resume_command(context: typer.Context, arch: str, folder: Path) -> str:
    """What to type to resume the run in this folder."""
    command = f"resnet-tabs train {arch} --out {shlex.quote(str(folder))} --resume"
    for name in ("data", "weights", "workers", "coordinator", "rank"):
        if context.params[name] is not None:
            command += f" --{name} {shlex.quote(str(context.params[name]))}"
    return command + (" --tensorboard" if context.params["tensorboard"] else "")


def _seat(workers: int | None, coordinator: str | None, rank: int | None) -> Seat | None:
    """This process' place among the workers of several hosts, also as torchrun tells it; None if alone."""
    from common.processes.meeting import Seat

    if workers is not None and workers < 1:
        raise BadInput(f"--workers must be 1 or more, not {workers}")
    told = [os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE")]
    if coordinator is None and rank is None and workers is None and all(told):
        host, port, own, count = map(str, told)
        try:
            return Seat(f"{host}:{int(port) + 1}", int(own), int(count))  # its own store has the port itself
        except ValueError as error:
            raise BadInput(
                f"the environment is not torchrun's ({error}); unset RANK or start with torchrun"
            ) from None
    if (coordinator is None) != (rank is None) or (rank is not None and workers is None):
        raise BadInput("on several hosts give --coordinator HOST:PORT, --rank and --workers, all three")
    if coordinator is None or rank is None or workers is None:
        return None
    return Seat(coordinator, rank, workers)
