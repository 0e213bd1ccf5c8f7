"""A training run on disk: what it is, how it went, and where to go on.

    run.json             the settings
    history.jsonl        one line a step and one an epoch, as they happen
    last.safetensors     the weights of the last checkpoint, best.safetensors those that validated best
    ema.safetensors      with `ema`, the averaged weights after the last epoch
    last.optimizer.safetensors    what else it takes to go on: the optimizer's state and the position
    previous.…           the checkpoint before the last, should that be damaged
    curves.png, .svg     loss and accuracy
    .lock                while a process trains here: which

Each but the pictures has a SHA-256 of what it says, run.json its own and the history the checkpoint's. All
weights and states have that of run.json, too, which says whose they are. A checkpoint is whole once its
optimizer file is in place; all it counts on is on disk before.
A batch depends only on the seed, the epoch and its number, so the position is all the random state there is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from common.architecture import Architecture
from common.errors import BadInput, MissingFile, Stopped
from common.files import (
    cannot_write,
    give_second_name,
    locked,
    output_folder,
    remove_leftovers,
    write_atomically,
)
from common.reading import check_fields, fits, parse_json, read_json, shown, some
from common.training.settings import Settings
from common.weights import (
    Weights,
    load_metadata,
    read_checkpoint,
    read_with_sums,
    save_checkpoint,
    write_with_sums,
)

Record = dict[str, Any]

# In run.json. From 2 on, every checkpoint of a run says whose it is.
FORMAT = 2
FILES = (
    *("run.json", "history.jsonl", "curves.png", "curves.svg", "best.safetensors", "ema.safetensors"),
    *(f"{name}.{kind}" for name in ("last", "previous") for kind in ("safetensors", "optimizer.safetensors")),
)
# What is there only once the first checkpoint has been whole.
LATER = set(FILES) - {"run.json", "history.jsonl", "last.safetensors", "previous.safetensors"}

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
        self.fields = {"format": FORMAT} | settings.to_fields()  # of run.json
        self.arch = Architecture.from_json(settings.architecture)
        self.history: list[Record] = []
        self._history_sha256 = hashlib.sha256()

    @classmethod
    def start(cls, folder: str | os.PathLike[str], settings: Settings) -> Run:
        """A new run.

        Raises:
            ValueError: if the folder holds a run already, or files of the names of one, or cannot be written.
        """
        if is_run(folder):
            raise BadInput(f"{folder} already holds a run; go on with it (--resume) or choose another folder")
        run = cls(output_folder(folder), settings)
        if taken := [name for name in FILES if _is_taken(run.folder / name)]:
            raise BadInput(f"{folder} is no run, but has {some(taken)}; choose another folder")
        try:
            write_atomically(run.folder / "history.jsonl", "")
            said = run.fields | {"sha256": run.sha256}
            write_atomically(run.folder / "run.json", json.dumps(said, indent=2) + "\n")
        except BadInput:
            run.discard()
            raise
        return run

    @property
    def sha256(self) -> str:
        """Of run.json: whose the checkpoints are."""
        return _fields_sha256(self.fields)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Run:
        """A run on disk, without its history. Raises what `read_settings` does."""
        settings, fields = _read_run(folder)
        run = cls(folder, settings)
        run.fields = fields  # as they were written, perhaps by an earlier release
        return run

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> tuple[Run, Checkpoint | None]:
        """A run on disk and its last whole checkpoint, with the history up to there.

        There is no checkpoint when the run was killed before its first.

        Raises:
            FileNotFoundError: if the folder is not a run.
            ValueError: if its run.json is damaged, or no checkpoint is whole.
        """
        run = cls.open(folder)
        checkpoint = run._restore()
        if not checkpoint:
            return run, None
        position = checkpoint.position
        for record in read_history(folder):
            if record["step"] <= position.step and (
                record["event"] == "step" or record["epoch"] <= position.epoch
            ):
                run._add(record)
        lost = run._other_weights_problems(position)
        problems = [checkpoint.warning, run._history_problem(checkpoint), *lost.values()]
        if lost and position.epoch < run.settings.epochs:
            problems.append("the next epoch's weights take that place")
            best_accuracy = -1.0 if "best" in lost else position.best_accuracy
            position = dataclasses.replace(position, best_accuracy=best_accuracy)
        warning = "; ".join(filter(None, problems))
        return run, dataclasses.replace(checkpoint, position=position, warning=warning)

    @classmethod
    def resume(cls, folder: str | os.PathLike[str], settings: Settings) -> tuple[Run, Checkpoint | None]:
        """A run that was stopped, or is finished, as `load` gives it. Nothing is written before `go_on`.

        Raises:
            FileNotFoundError: if the folder is not a run.
            ValueError: if the settings are not the run's, or no checkpoint is whole.
        """
        cls.check_settings(folder, settings)
        return cls.load(folder)

    def go_on(self, checkpoint: Checkpoint) -> None:
        """Let the folder be what it was at a checkpoint, once all of that has been taken.

        Raises:
            ValueError: if it cannot be written.
        """
        if checkpoint.name == "previous":
            self._rename("previous", "last")  # or the next save would put the damaged one in its place
        lines = "".join(json.dumps(record) + "\n" for record in self.history)
        write_atomically(self.folder / "history.jsonl", lines)

    def discard(self) -> None:
        """Undo `start`."""
        for name in ("run.json", "history.jsonl"):
            with suppress(OSError):
                (self.folder / name).unlink()

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
        if (self.folder / "last.optimizer.safetensors").exists():  # else the first was never whole
            self._rename("last", "previous")
        path = self.folder / "last.safetensors"
        save_checkpoint(path, self.arch, weights, self._metadata())
        metadata = {
            "position": json.dumps(dataclasses.asdict(position)),
            "weights_sha256": load_metadata(path)["tensors_sha256"],
            "history_sha256": self._history_sha256.hexdigest(),
            "run_sha256": self.sha256,
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
        save_checkpoint(self.folder / f"{name}.safetensors", self.arch, weights, self._metadata())

    def _metadata(self) -> dict[str, str]:
        return self.settings.metadata() | {"run_sha256": self.sha256}

    def _check_finite(self, weights: Weights, position: Position) -> None:
        if not all(np.isfinite(array).all() for array in weights.values()):
            raise Stopped(f"the weights are not finite after step {position.step}; {kept(self.folder)}")

    def _rename(self, old: str, new: str) -> None:
        """Give a checkpoint a second name; a name that is taken changes hands in one step."""
        for kind in ("safetensors", "optimizer.safetensors"):
            source = self.folder / f"{old}.{kind}"
            if source.exists():
                give_second_name(source, self.folder / f"{new}.{kind}")

    def _restore(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; none where the first was never finished.

        That is so where nothing is there of what comes after the first, and the history is there and empty.
        """
        history = self.folder / "history.jsonl"
        later = [path for path in self.folder.iterdir() if path.name in LATER] if self.folder.is_dir() else []
        if not later and history.is_file() and not history.stat().st_size:
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
        weights, said = self._read_weights(name)
        path = self.folder / f"{name}.optimizer.safetensors"
        state, metadata = read_with_sums(path)
        self.check_own(path, metadata)
        try:
            position = Position.from_json(metadata["position"])
            weights_sha256, history_sha256 = metadata["weights_sha256"], metadata["history_sha256"]
        except (ValueError, TypeError, KeyError) as error:
            raise BadInput(f"checkpoint {path} is damaged ({shown(str(error), 200)})") from None
        if weights_sha256 != said.get("tensors_sha256"):
            raise BadInput(f"checkpoint {weights_path} and {path.name} do not belong together")
        return Checkpoint(weights, state, position, name, history_sha256)

    def _read_weights(self, name: str) -> tuple[Weights, dict[str, str]]:
        """Weights of this run, and what their file says."""
        path = self.folder / f"{name}.safetensors"
        arch, weights, said = read_checkpoint(path)
        self.check_own(path, said)
        if arch != self.arch:
            raise BadInput(f"checkpoint {path} is of another network, {arch.to_json()}")
        return weights, said

    def check_own(self, path: Path, said: Mapping[str, str]) -> None:
        """Raise `ValueError` unless a file's metadata say that it is of this run; an old run's need not."""
        owner = said.get("run_sha256", "" if "format" in self.fields else self.sha256)
        if owner != self.sha256:
            raise BadInput(f"checkpoint {path} is of another run than {self.folder / 'run.json'}")

    def _other_weights_problems(self, position: Position) -> dict[str, str]:
        """What is wrong with the best and the averaged weights that there are at a position, in words."""
        problems = {}
        for name in ("best", *(["ema"] if self.settings.recipe.ema else [])):
            try:
                if position.best_accuracy >= 0:  # an epoch is over
                    self._read_weights(name)
            except BadInput as error:
                problems[name] = str(error)
        return problems


class Follower(Run):
    """A run as a worker that is not the first has it: it reads, and leaves the writing to the first."""

    @classmethod
    def start(cls, folder: str | os.PathLike[str], settings: Settings) -> Follower:
        return cls(folder, settings)

    def go_on(self, checkpoint: Checkpoint) -> None:
        pass

    def discard(self) -> None:
        pass

    def log(self, record: Record) -> None:
        self._add(record)

    def save(self, weights: Weights, state: Weights, position: Position) -> None:
        self._check_finite(weights, position)

    def _save_weights(self, name: str, weights: Weights, position: Position) -> None:
        self._check_finite(weights, position)


@contextmanager
def held(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keep a run's folder from other processes, and rid it of what a killed one was writing.

    A folder that is not there is made, and removed again if nothing comes to lie in it.

    Raises:
        ValueError: if another process trains there, or the folder cannot be written.
    """
    folder = Path(folder)
    is_new = not folder.exists()
    try:
        output_folder(folder)
        with locked(folder / ".lock") as other:
            if other:
                raise BadInput(
                    f"{folder} is in use: {other} trains there; wait for its end, or choose another folder"
                )
            remove_leftovers(folder, FILES)
            yield
    finally:
        if is_new:
            with suppress(OSError):
                folder.rmdir()


def kept(folder: str | os.PathLike[str]) -> str:
    """What is left of a run that stopped, in words."""
    try:
        _, checkpoint = Run.load(folder)
    except BadInput:
        return f"{folder} has no checkpoint any more"
    if not checkpoint:
        return f"{folder} has no checkpoint yet"
    return f"{folder} has the checkpoint of step {checkpoint.position.step}"


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
        ValueError: if the run has no such weights of its own.
    """
    if not path.is_dir():
        return path
    run = Run.open(path)
    if run.settings.backend == "all":
        raise BadInput(f"{path} has four runs; name one of them, such as {path / 'torch'}")
    best = path / "best.safetensors"
    if not best.is_file():
        raise BadInput(f"{path} has no finished epoch yet; give {path / 'last.safetensors'}")
    run.check_own(best, load_metadata(best))
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
    return _read_run(folder)[0]


def _read_run(folder: str | os.PathLike[str]) -> tuple[Settings, dict[str, Any]]:
    """The settings in this folder's run.json, and all that it says besides its SHA-256."""
    path = Path(folder) / "run.json"
    if not path.is_file():
        raise MissingFile(f"{folder} is not a run (it has no run.json); give the folder of a training run")
    try:
        fields = read_json(path)
        if fields.pop("sha256", None) != _fields_sha256(fields):
            raise ValueError("wrong SHA-256")
        said = {name: value for name, value in fields.items() if name != "format"}
        if "fit" not in said:  # a run of before checkpoints said how images are prepared
            said["fit"] = "folder" if said.get("classes") else "fashion-mnist"
        return Settings.from_fields(said), fields
    except (OSError, TypeError, ValueError) as error:
        raise BadInput(f"{path} is damaged ({error}); put it right or start a new run") from None


def _is_taken(path: Path) -> bool:
    """Whether a new run would write over this; a start that was killed leaves an empty history."""
    return path.exists() and not (path.name == "history.jsonl" and not path.stat().st_size)


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
