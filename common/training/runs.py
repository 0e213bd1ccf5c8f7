"""A training run on disk: what it is, how it went, and where to go on.

    run.json             the settings
    history.jsonl        one line a step and one an epoch, as they happen
    last.safetensors     the weights of the last checkpoint, best.safetensors those that validated best
    ema.safetensors      with `ema`, the averaged weights after the last epoch
    last.optimizer.safetensors    what else it takes to go on: the optimizer's state and the position
    previous.…           the checkpoint before the last, should that be damaged
    curves.png, .svg     loss and accuracy

Each but the pictures has a SHA-256 of what it says, run.json its own and the history the checkpoint's. A
checkpoint is whole once its optimizer file is in place; all it counts on is on disk before.
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
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from common.architecture import Architecture
from common.errors import BadInput, MissingFile, Stopped
from common.files import cannot_write, give_second_name, output_folder, write_atomically
from common.reading import check_fields, fits, parse_json, read_json, shown, some
from common.training.settings import Settings
from common.weights import (
    Weights,
    load_checkpoint,
    load_metadata,
    read_with_sums,
    save_checkpoint,
    write_with_sums,
)

Record = dict[str, Any]

# The numbers that a line of the history has, by its event.
NUMBERS = {
    "step": ("epoch", "step", "lr", "loss", "accuracy"),
    "epoch": (
        *("epoch", "step", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy"),
        *("images_per_second", "seconds"),
    ),
}


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

    @classmethod
    def from_json(cls, text: str) -> Position:
        """The position that a checkpoint says; `ValueError` or `TypeError` if it is none."""
        fields = parse_json(text, dict)
        check_fields(fields, cls)
        if min(value for name, value in fields.items() if name != "best_accuracy") < 0:
            raise ValueError("a number in its position is below 0")
        return cls(**fields)

    def next_epoch(self, val_accuracy: float) -> Position:
        """The start of the next epoch, after this one's validation."""
        return Position(self.epoch + 1, step=self.step, best_accuracy=max(self.best_accuracy, val_accuracy))


@dataclass(frozen=True)
class Checkpoint:
    """Where to go on: weights and optimizer state by name, and the position they are of."""

    weights: Weights
    state: Weights
    position: Position
    name: str  # "last", or "previous" where that is not whole
    history_sha256: str  # of the history up to here
    warning: str = ""  # what is not as it was written, in one line


class Run:
    """The folder of a run."""

    def __init__(self, folder: str | os.PathLike[str], settings: Settings) -> None:
        self.folder = Path(folder)
        self.settings = settings
        self.arch = Architecture.from_json(settings.architecture)
        self.history: list[Record] = []
        self._history_sha256 = hashlib.sha256()

    @classmethod
    def start(cls, folder: str | os.PathLike[str], settings: Settings) -> Run:
        """A new run.

        Raises:
            ValueError: if the folder holds a run already, or cannot be written.
        """
        if is_run(folder):
            raise BadInput(f"{folder} already holds a run; go on with it (--resume) or choose another folder")
        run = cls(output_folder(folder), settings)
        write_atomically(run.folder / "history.jsonl", "")
        fields = settings.to_fields()
        fields["sha256"] = _fields_sha256(fields)
        write_atomically(run.folder / "run.json", json.dumps(fields, indent=2) + "\n")
        return run

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> tuple[Run, Checkpoint | None]:
        """A run on disk and its last whole checkpoint, with the history up to there.

        There is no checkpoint when the run was killed before its first.

        Raises:
            FileNotFoundError: if the folder is not a run.
            ValueError: if its run.json is damaged, or no checkpoint is whole.
        """
        run = cls(folder, read_settings(folder))
        checkpoint = run._restore()
        if not checkpoint:
            return run, None
        position = checkpoint.position
        for record in read_history(folder):
            if record["step"] <= position.step and (
                record["event"] == "step" or record["epoch"] <= position.epoch
            ):
                run._add(record)
        problems = [text for text in (checkpoint.warning, run._history_problem(checkpoint)) if text]
        return run, dataclasses.replace(checkpoint, warning="; ".join(problems))

    @classmethod
    def resume(cls, folder: str | os.PathLike[str], settings: Settings) -> tuple[Run, Checkpoint | None]:
        """A run that was stopped, as `load` gives it, made ready to go on.

        Raises:
            FileNotFoundError: if the folder is not a run.
            ValueError: if the settings are not the run's, it is finished, or no checkpoint is whole.
        """
        cls.check_settings(folder, settings)
        run, checkpoint = cls.load(output_folder(folder))
        if checkpoint and checkpoint.name == "previous":
            run._rename("previous", "last")  # or the next save would put the damaged one in its place
        if checkpoint and checkpoint.position.epoch >= settings.epochs:
            raise BadInput(f"{folder} is a finished run of {settings.epochs} epochs; choose another folder")
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
        self._append(self._add(record))

    def _add(self, record: Record) -> bytes:
        """Count a record in; returns its line."""
        line = json.dumps(record).encode() + b"\n"
        self.history.append(record)
        self._history_sha256.update(line)
        return line

    def _append(self, lines: bytes, lasting: bool = False) -> None:
        """Write to the end of the history; `lasting` lets all of it outlast a power cut."""
        path = self.folder / "history.jsonl"
        try:
            with path.open("ab") as file:
                file.write(lines)
                file.flush()
                if lasting:
                    os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(path, error) from None

    def _history_problem(self, checkpoint: Checkpoint) -> str:
        """What is not as it was written in the history up to a checkpoint, in words."""
        whole = checkpoint.history_sha256 == self._history_sha256.hexdigest()
        gaps = []
        for event, last in (("step", checkpoint.position.step), ("epoch", checkpoint.position.epoch)):
            found = [record[event] for record in self.history if record["event"] == event]
            whole &= len(found) == last and found == list(range(1, len(found) + 1))
            if missing := _gaps(found, last):
                gaps.append(f"{event} {some(missing)}")
        if whole:
            return ""
        what = f"has no line of {' and '.join(gaps)}" if gaps else "is not what was written"
        return f"{self.folder / 'history.jsonl'} {what} (the training itself is whole)"

    def save(self, weights: Weights, state: Weights, position: Position) -> None:
        """Write a checkpoint. The one before stays whole until this one is.

        Raises:
            ValueError: if it cannot be written.
            Stopped: if a weight is not finite.
        """
        self._check_finite(weights, position)
        self._append(b"", lasting=True)
        self._rename("last", "previous")
        path = self.folder / "last.safetensors"
        save_checkpoint(path, self.arch, weights, self.settings.metadata())
        metadata = {
            "position": json.dumps(dataclasses.asdict(position)),
            "weights_sha256": load_metadata(path)["tensors_sha256"],
            "history_sha256": self._history_sha256.hexdigest(),
        }
        write_with_sums(self.folder / "last.optimizer.safetensors", state, metadata)

    def save_best(self, weights: Weights, position: Position) -> None:
        """Write the weights that validated best so far."""
        self._save_weights("best", weights, position)

    def save_average(self, weights: Weights, position: Position) -> None:
        """Write the averaged weights of a run that has them."""
        self._save_weights("ema", weights, position)

    def _save_weights(self, name: str, weights: Weights, position: Position) -> None:
        self._check_finite(weights, position)
        save_checkpoint(self.folder / f"{name}.safetensors", self.arch, weights, self.settings.metadata())

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
            source = self.folder / f"{old}.{kind}"
            if source.exists():
                give_second_name(source, self.folder / f"{new}.{kind}")

    def _restore(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; none where the first was never finished."""
        if not [*self.folder.glob("previous.*"), *self.folder.glob("last.optimizer.*")]:
            return None
        problems = []
        for name in ("last", "previous"):
            try:
                found = self._read(name)
            except BadInput as error:
                problems.append(str(error))
                continue
            warning = f"{problems[0]}; going on from the one before it" if problems else ""
            return dataclasses.replace(found, warning=warning)
        raise BadInput(f"no whole checkpoint in {self.folder}: {'; '.join(problems)}; start a new run")

    def _read(self, name: str) -> Checkpoint:
        weights_path = self.folder / f"{name}.safetensors"
        _, weights = load_checkpoint(weights_path)
        path = self.folder / f"{name}.optimizer.safetensors"
        state, metadata = read_with_sums(path)
        try:
            position = Position.from_json(metadata["position"])
            weights_sha256, history_sha256 = metadata["weights_sha256"], metadata["history_sha256"]
        except (ValueError, TypeError, KeyError) as error:
            raise BadInput(f"checkpoint {path} is damaged ({shown(str(error), 200)})") from None
        if weights_sha256 != load_metadata(weights_path).get("tensors_sha256"):
            raise BadInput(f"checkpoint {weights_path} and {path.name} do not belong together")
        return Checkpoint(weights, state, position, name, history_sha256)


class Follower(Run):
    """A run as a worker that is not the first has it: it reads, and leaves the writing to the first."""

    @classmethod
    def start(cls, folder: str | os.PathLike[str], settings: Settings) -> Follower:
        return cls(folder, settings)

    @classmethod
    def resume(cls, folder: str | os.PathLike[str], settings: Settings) -> tuple[Run, Checkpoint | None]:
        cls.check_settings(folder, settings)
        return cls.load(folder)

    def discard(self) -> None:
        pass

    def log(self, record: Record) -> None:
        self._add(record)

    def save(self, weights: Weights, state: Weights, position: Position) -> None:
        self._check_finite(weights, position)

    def _save_weights(self, name: str, weights: Weights, position: Position) -> None:
        self._check_finite(weights, position)


def is_run(folder: str | os.PathLike[str]) -> bool:
    """Whether a training run lies in this folder."""
    return (Path(folder) / "run.json").is_file()


def is_finished(folder: str | os.PathLike[str]) -> bool:
    """Whether the run in this folder has come to the end of its last epoch."""
    run, checkpoint = Run.load(folder)
    return checkpoint is not None and checkpoint.position.epoch >= run.settings.epochs


def checkpoint_file(path: Path) -> Path:
    """The checkpoint meant by a path: the file, or of a run's folder the weights that validated best.

    Raises:
        FileNotFoundError: if the folder is not a run.
        ValueError: if the run has no such weights.
    """
    if not path.is_dir():
        return path
    if read_settings(path).backend == "all":
        raise BadInput(f"{path} has four runs; name one of them, such as {path / 'torch'}")
    best = path / "best.safetensors"
    if not best.is_file():
        raise BadInput(f"{path} has no finished epoch yet; give {path / 'last.safetensors'}")
    return best


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
        fields = read_json(path)
        if fields.pop("sha256", None) != _fields_sha256(fields):
            raise ValueError("wrong SHA-256")
        return Settings.from_fields(fields)
    except (OSError, TypeError, ValueError) as error:
        raise BadInput(f"{path} is damaged ({error}); put it right or start a new run") from None


def read_history(folder: str | os.PathLike[str]) -> list[Record]:
    """The lines of a run's history; one that is damaged, or was being written at a kill, is left out."""
    path = Path(folder) / "history.jsonl"
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    return [record for line in lines if (record := _record(line))]


def _record(line: bytes) -> Record | None:
    """The record of a line of the history, if it is one."""
    try:
        record: Record = parse_json(line, dict[str, str | float], finite=False)  # a loss may be NaN
        whole = all(fits(record[name], float) for name in NUMBERS[record["event"]])
    except (ValueError, TypeError, KeyError):
        return None
    return record if whole else None


def _gaps(found: list[int], last: int) -> list[str]:
    """What is missing of the numbers from 1 to `last`: [1, 5, 7], 7 → ["2–4", "6"]."""
    ends = sorted({0, last + 1, *(number for number in found if 0 < number <= last)})
    gaps = [(before + 1, after - 1) for before, after in pairwise(ends) if after - before > 1]
    return [f"{first}–{final}" if first < final else f"{first}" for first, final in gaps]


def _fields_sha256(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
