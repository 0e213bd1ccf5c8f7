"""The weights a run starts from, where they are not drawn: somebody's checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from common.architecture import ZOO, Architecture, architecture
from common.errors import BadInput
from common.training.runs import Run, checkpoint_file, is_run
from common.weights import Weights, initial_weights, load_checkpoint, tensors_sha256


def pretrained(path: Path, arch: Architecture, seed: int) -> tuple[Weights, str, str]:
    """Weights for a network from a checkpoint or a run, their SHA-256, and in words what is new.

    Where the checkpoint tells another number of classes, the last layer is drawn from the seed.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the checkpoint is damaged, or of another network.
    """
    path = checkpoint_file(path)
    own, weights = load_checkpoint(path)
    if dataclasses.replace(own, num_classes=arch.num_classes) != arch:
        raise BadInput(
            f"{path} is of another network{_name(own)} ({_differences(own, arch)}); "
            "train that one, or give a checkpoint of this"
        )
    said = f"starting from {path}"
    if own.num_classes != arch.num_classes:
        drawn = initial_weights(arch, seed)
        weights |= {name: drawn[name] for name in ("last.weight", "last.bias")}
        said += f": {arch.num_classes} classes, not its {own.num_classes}, so the last layer is new"
    return weights, tensors_sha256(weights), said


def check_begun(folder: Path) -> None:
    """Raise `ValueError` unless the run in the folder has a checkpoint, and so needs the weights no more."""
    if not (is_run(folder) and Run.load(folder)[1]):
        raise BadInput(f"{folder} has no checkpoint yet; give the weights it starts from again")


def _name(arch: Architecture) -> str:
    """What the zoo calls it, if it does."""
    for name in ZOO:
        if architecture(name, in_channels=arch.in_channels, num_classes=arch.num_classes) == arch:
            return f", {name} of {arch.in_channels} channels"
    return ""


def _differences(own: Architecture, arch: Architecture) -> str:
    """What is not the same, in words; the number of classes may differ."""
    names = [field.name for field in dataclasses.fields(arch) if field.name != "num_classes"]
    return "; ".join(
        f"{name} is {getattr(own, name)}, not {getattr(arch, name)}"
        for name in names
        if getattr(own, name) != getattr(arch, name)
    )
