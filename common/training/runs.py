"""A training run on disk: what it is, how it went, and where to go on.

    run.json             the settings
    history.jsonl        one line a step and one an epoch, as they happen
    last.safetensors     the weights of the last checkpoint, best.safetensors those that validated best
    last.optimizer.safetensors    what else it takes to go on: the optimizer's state and the position
    previous.…           the checkpoint before the last, should that be damaged
    curves.png, .svg     loss and accuracy

A batch depends only on the seed, the epoch and its number, so the position is all the random state there is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from common.architecture import Architecture
from common.errors import BadInput, MissingFile, Stopped
from common.files import output_folder, write_atomically
from common.weights import Weights, load_checkpoint, save_checkpoint

Record = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """All that decides how a run goes: equal settings are the same run, in every backend.

    Attributes:
        backend: who computes.
        architecture: the network, as `Architecture.to_json` writes it.
        lr: the highest learning rate; `schedule` "constant" keeps it, "cosine" takes it to 0.
        warmup_epochs: epochs over which the learning rate first rises from 0 to `lr`.
        augment: any of "flip" and "crop".
        precision: "float32", "float64" or "bfloat16".
        data: which images, in words; `limit_train` and `limit_val` take the first so many.
        resize: height and width the network sees.
    """

    backend: str
    architecture: str
    epochs: int
    batch_size: int
    resize: tuple[int, int]
    lr: float
    momentum: float
    weight_decay: float
    schedule: str
    warmup_epochs: int
    augment: tuple[str, ...]
    precision: str
    device: str
    seed: int
    limit_train: int | None
    limit_val: int | None
    data: str

    def __post_init__(self) -> None:
        for name in ("resize", "augment"):  # lists, from JSON
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, least in (("epochs", 1), ("momentum", 0), ("weight_decay", 0), ("warmup_epochs", 0)):
            if not least <= getattr(self, name) < np.inf:
                raise BadInput(f"{name} must be {least} or more, not {getattr(self, name)}")
        if not 0 < self.lr < np.inf:
            raise BadInput(f"lr must be above 0, not {self.lr}")
        if self.schedule not in ("constant", "cosine"):
            raise BadInput(f"unknown schedule {self.schedule!r}; give constant or cosine")
        if self.schedule == "cosine" and self.warmup_epochs >= self.epochs:
            raise BadInput(
                f"warmup_epochs ({self.warmup_epochs}) leaves the cosine none of {self.epochs} epochs"
            )

    def differences(self, other: Settings) -> list[str]:
        """One line for each setting that is not the same: "lr is 0.1, not 0.01"."""
        return [
            f"{field.name} is {getattr(self, field.name)}, not {getattr(other, field.name)}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != getattr(other, field.name)
        ]


@dataclass
class Position:
    """How far a run has come, and what it has seen of the epoch it is in."""

    epoch: int = 0  # epochs finished
    batch: int = 0  # batches of the next one finished
    step: int = 0
    images: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seconds: float = 0.0
    best_accuracy: float = -1.0

    def add(self, loss: float, correct: int, images: int, seconds: float) -> None:
        """Count a batch."""
        self.batch += 1
        self.step += 1
        self.images += images
        self.loss_sum += loss * images
        self.correct += correct
        self.seconds += seconds

    def next_epoch(self, val_accuracy: float) -> Position:
        """The start of the next epoch, after this one's validation."""
        return Position(self.epoch + 1, step=self.step, best_accuracy=max(self.best_accuracy, val_accuracy))


@dataclass(frozen=True)
class Checkpoint:
    """Where to go on: weights and optimizer state by name, and the position they are of."""

    weights: Weights
    state: Weights
    position: Position
    warning: str = ""  # why this is not the last one


class Run:
    """The folder of a run. `resume_with` is what a person types or calls to go on with it."""

    def __init__(self, folder: str | os.PathLike[str], settings: Settings, resume_with: str) -> None:
        self.folder = Path(folder)
        self.settings = settings
        self.arch = Architecture.from_json(settings.architecture)
        self.resume_with = resume_with
        self.history: list[Record] = []

    @classmethod
    def start(cls, folder: str | os.PathLike[str], settings: Settings, resume_with: str) -> Run:
        """A new run.

        Raises:
            ValueError: if the folder holds a run already, or cannot be written.
        """
        if is_run(folder):
            raise BadInput(f"{folder} already holds a run; go on with it (--resume) or choose another folder")
        run = cls(output_folder(folder), settings, resume_with)
        write_atomically(run.folder / "history.jsonl", "")
        write_atomically(run.folder / "run.json", json.dumps(dataclasses.asdict(settings), indent=2) + "\n")
        return run

    @classmethod
    def resume(
        cls, folder: str | os.PathLike[str], settings: Settings, resume_with: str
    ) -> tuple[Run, Checkpoint | None]:
        """A run that was stopped, and its last whole checkpoint, which the history is cut back to.

        There is no checkpoint when the run was killed before its first.

        Raises:
            FileNotFoundError: if the folder is not a run.
            ValueError: if the settings are not the run's, it is finished, or no checkpoint is whole.
        """
        cls.check_settings(folder, settings)
        run = cls(output_folder(folder), settings, resume_with)
        checkpoint = run._restore()
        position = checkpoint.position if checkpoint else Position()
        if checkpoint and checkpoint.warning:
            run._rename("previous", "last")  # or the next save would put the damaged one in its place
        if position.epoch >= settings.epochs:
            raise BadInput(f"{folder} is a finished run of {settings.epochs} epochs; choose another folder")
        run.history = [
            record
            for record in read_history(folder)
            if record["step"] <= position.step
            and (record["event"] == "step" or record["epoch"] <= position.epoch)
        ]
        lines = "".join(json.dumps(record) + "\n" for record in run.history)
        write_atomically(run.folder / "history.jsonl", lines)
        return run, checkpoint

    def discard(self) -> None:
        """Undo `start`, if the folder holds nothing else."""
        for name in ("run.json", "history.jsonl"):
            (self.folder / name).unlink()
        with suppress(OSError):
            self.folder.rmdir()

    @staticmethod
    def check_settings(folder: str | os.PathLike[str], settings: Settings) -> None:
        """Raise `ValueError`, saying which differ, unless the run in the folder began with these settings."""
        if differences := settings.differences(read_settings(folder)):
            raise BadInput(
                f"{folder} is a run of other settings: {'; '.join(differences)}; "
                "leave those out to go on with it, or choose another folder"
            )

    def log(self, record: Record) -> None:
        """Add a line to the history, where a reader finds it at once."""
        self.history.append(record)
        path = self.folder / "history.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise BadInput(f"cannot write {path}: {error.strerror}") from None

    def save(self, weights: Weights, state: Weights, position: Position) -> None:
        """Write a checkpoint. The one before stays whole until this one is.

        Raises:
            ValueError: if it cannot be written.
            Stopped: if a weight is not finite.
        """
        self._check_finite(weights, position)
        self._rename("last", "previous")
        save_checkpoint(self.folder / "last.safetensors", self.arch, weights)
        metadata = {
            "position": json.dumps(dataclasses.asdict(position)),
            "weights_sha256": _digest(weights),
            "state_sha256": _digest(state),
        }
        tensors = {name: np.asarray(array, order="C") for name, array in state.items()}
        write_atomically(self.folder / "last.optimizer.safetensors", save(tensors, metadata))

    def save_best(self, weights: Weights, position: Position) -> None:
        """Write the weights that validated best so far."""
        self._check_finite(weights, position)
        save_checkpoint(self.folder / "best.safetensors", self.arch, weights)

    def _check_finite(self, weights: Weights, position: Position) -> None:
        if not all(np.isfinite(array).all() for array in weights.values()):
            raise Stopped(f"the weights are not finite after step {position.step}; {self.kept()}")

    def kept(self) -> str:
        """What is left of a run that stopped, in words."""
        try:
            checkpoint = self._restore()
        except BadInput:
            checkpoint = None
        if not checkpoint:
            return f"{self.folder} has no checkpoint any more"
        return f"{self.folder} has the checkpoint of step {checkpoint.position.step}"

    def _rename(self, old: str, new: str) -> None:
        """Give a checkpoint a second name; a name that is taken changes hands in one step."""
        for kind in ("safetensors", "optimizer.safetensors"):
            source, target = self.folder / f"{old}.{kind}", self.folder / f"{new}.{kind}"
            temporary = self.folder / f".{new}.{kind}.new"
            try:
                if source.exists():
                    temporary.unlink(missing_ok=True)
                    os.link(source, temporary)
                    os.replace(temporary, target)
            except OSError as error:
                raise BadInput(f"cannot write {target}: {error.strerror}") from None

    def _restore(self) -> Checkpoint | None:
        """The newest checkpoint that is whole."""
        problems = []
        for name in ("last", "previous"):
            if not any(self.folder.glob(f"{name}.*safetensors")):
                continue
            try:
                found = self._read(name)
            except BadInput as error:
                problems.append(str(error))
                continue
            warning = f"{problems[0]}; going on from the one before it" if problems else ""
            return dataclasses.replace(found, warning=warning)
        if problems:
            raise BadInput(f"no whole checkpoint in {self.folder}: {'; '.join(problems)}; start a new run")
        return None

    def _read(self, name: str) -> Checkpoint:
        _, weights = load_checkpoint(self.folder / f"{name}.safetensors")
        path = self.folder / f"{name}.optimizer.safetensors"
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata()
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            position = Position(**json.loads(metadata["position"]))
            sums = (metadata["weights_sha256"], metadata["state_sha256"])
        except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
            raise BadInput(f"checkpoint {path} is damaged ({error})") from None
        if sums != (_digest(weights), _digest(state)):
            raise BadInput(f"checkpoint {self.folder / name}.safetensors is damaged (wrong SHA-256)")
        return Checkpoint(weights, state, position)


def is_run(folder: str | os.PathLike[str]) -> bool:
    """Whether a training run lies in this folder."""
    return (Path(folder) / "run.json").is_file()


def is_finished(folder: str | os.PathLike[str]) -> bool:
    """Whether the run in this folder has come to the end of its last epoch."""
    settings = read_settings(folder)
    checkpoint = Run(folder, settings, "")._restore()
    return checkpoint is not None and checkpoint.position.epoch >= settings.epochs


def new_folder(name: str) -> Path:
    """The first of runs/NAME-1, runs/NAME-2, … that is not there."""
    number = 1
    while Path("runs", f"{name}-{number}").exists():
        number += 1
    return Path("runs", f"{name}-{number}")


def read_settings(folder: str | os.PathLike[str]) -> Settings:
    """The settings of the run in this folder.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if its run.json is damaged.
    """
    path = Path(folder) / "run.json"
    if not path.is_file():
        raise MissingFile(f"{folder} is not a run (it has no run.json); give the folder of a training run")
    try:
        return Settings(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise BadInput(f"{path} is damaged ({error}); start a new run") from None


def read_history(folder: str | os.PathLike[str]) -> list[Record]:
    """The lines of a run's history; one that was being written when the run was killed is left out."""
    path = Path(folder) / "history.jsonl"
    records = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                break
    return records


def _digest(arrays: Mapping[str, NDArray]) -> str:
    """SHA-256 of names and values: what ties a checkpoint's two files together, and shows damage."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).view(np.uint8).data)
    return digest.hexdigest()
