"""The weights a run starts from, where they are not drawn: somebody's checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from common.architecture import ZOO, Architecture, architecture
from common.data.folder import same_classes
from common.errors import BadInput
from common.reading import parse_json, some
from common.training.runs import Run, checkpoint_file, is_run
from common.weights import Weights, initial_weights, read_checkpoint, tensors_sha256


def pretrained(path: Path, arch: Architecture, seed: int, classes: Sequence[str]) -> tuple[Weights, str, str]:
    """Weights for a network of these classes from a checkpoint, their SHA-256, and in words what is new.

    Where the checkpoint tells another number of classes, the last layer is drawn from the seed. Where it has
    names for as many, what it knows of a class stays with the class, and the others' rows are drawn.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the checkpoint is damaged, or of another network.
    """
    path = checkpoint_file(path)
    own, weights, says = read_checkpoint(path)
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
    elif rows := _rows(says, classes, own.num_classes):
        drawn = initial_weights(arch, seed)
        for name in ("last.weight", "last.bias"):
            new = drawn[name].astype(weights[name].dtype)
            moved = [new[i] if row is None else weights[name][row] for i, row in enumerate(rows)]
            weights[name] = np.stack(moved)
        said += f": the last layer's rows are in the order of {some(list(classes))}"
        said += f", and {rows.count(None)} are new" if None in rows else ""
    elif _rows(says, classes, own.num_classes) is None:
        said += ": it calls its classes otherwise, and they are taken in their order"
    return weights, tensors_sha256(weights), said


def _rows(says: Mapping[str, str], classes: Sequence[str], count: int) -> list[int | None] | None:
    """The row in the checkpoint's last layer of each class; empty if they are as here, None if none is."""
    try:
        names = parse_json(says.get("classes", "[]"), list[str])
    except ValueError:
        names = []
    if not len(names) == len(classes) == count:
        return []
    same = same_classes(classes, names)
    found = [names.index(same[name]) if name in same else None for name in classes]
    if all(each is None for each in found):
        return None
    return [] if found == list(range(count)) else found


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
