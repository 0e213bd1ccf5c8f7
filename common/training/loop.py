"""The loop around the steps, once for all four: epochs, validation, checkpoints, history."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.architecture import Architecture
from common.backend import Model
from common.data import Batch, DataModule, FashionMNIST
from common.errors import BadInput, Stopped
from common.oracle import softmax_cross_entropy
from common.pages import Console
from common.processes.group import ALONE, Group
from common.processes.launcher import FINISHING, hangs_up
from common.training import curves
from common.training.events import Events, check_tensorboard
from common.training.progress import Progress, show_runs
from common.training.runs import (
    Checkpoint,
    Follower,
    Position,
    Record,
    Run,
    held,
    is_finished,
    is_run,
    kept,
    read_settings,
)
from common.training.schedules import learning_rate
from common.training.settings import Settings
from common.weights import tensors_sha256

SAVE_SECONDS = 60.0  # between checkpoints within an epoch


@dataclass(frozen=True)
class Metrics:
    """Mean softmax cross-entropy, and the share of images whose class was found.

    Attributes:
        top5: the share of images whose class was among the five likeliest.
        confusion: how many images of each class (rows) were told to be of each (columns).
    """

    loss: float
    accuracy: float
    images: int
    top5: float
    confusion: NDArray[np.int64] = field(compare=False, repr=False)


def evaluate(model: Model, batches: Iterable[Batch]) -> Metrics:
    """Loss and accuracy with running statistics; of a group, each worker brings the batches dealt to it."""
    losses, among_five = [], 0
    confusion = np.zeros((model.arch.num_classes,) * 2, np.int64)
    for x, y in batches:
        logits = model.predict(x).astype(np.float64)
        losses.append(softmax_cross_entropy(logits, y)[0] * len(y))
        among_five += int((np.argsort(-logits, 1)[:, :5] == y[:, None]).sum())
        np.add.at(confusion, (y, logits.argmax(1)), 1)
    loss = sum(_in_turns(model, losses))
    confusion, among_five = model.sum(confusion).astype(np.int64), int(model.sum(among_five))
    images, correct = int(confusion.sum()), int(np.trace(confusion))
    return Metrics(loss / images, correct / images, images, among_five / images, confusion)


def _in_turns(model: Model, losses: list[float]) -> list[float]:
    """The losses of all batches in their order, so that their sum is that of one worker to the bit."""
    dealt = np.zeros(int(model.sum(len(losses))))
    dealt[model.group.rank :: model.group.workers] = losses
    return model.sum(dealt).tolist()


def check_fits(arch: Architecture, data: DataModule) -> None:
    """Raise `ValueError` unless the network can take the images and tell their classes."""
    arch.check_input((1, arch.in_channels, *data.resize))
    data.check_channels(arch.in_channels)
    if arch.num_classes < len(data.classes):
        what = "Fashion-MNIST" if isinstance(data, FashionMNIST) else data.source
        raise BadInput(f"{what} has {len(data.classes)} classes but the network tells {arch.num_classes}")


def train(
    build: Callable[[str], Model],
    data: DataModule,
    settings: Settings,
    folder: str | os.PathLike[str],
    resume: bool,
    tensorboard: bool = False,
    group: Group = ALONE,
) -> tuple[Model, Run]:
    """Train a model in a new run, or go on with one, to the end of its last epoch.

    A first SIGINT, SIGTERM or SIGHUP ends the run after the step it is in, with a checkpoint; a second SIGINT
    or SIGTERM at once. Of a finished run only the curves are drawn again. No other process can train in the
    folder meanwhile.

    Args:
        build: makes the model of a backend, once all that needs no framework has been checked.
        tensorboard: write event files, too.
        group: the workers of the run, each of which calls this; `build` makes a model of the same group. The
            first writes, all must see the folder to go on.

    Raises:
        Stopped: on a signal to any worker, and when the loss or a weight is not finite.
        ValueError: if the folder or the settings will not do, or the folder cannot be written any more;
            the last checkpoint stays as it was.
    """
    if tensorboard:
        check_tensorboard()
    check_fits(Architecture.from_json(settings.architecture), data)
    data.check()
    _check_folder(folder, data, resume)
    checkpoint = None
    kind = Follower if group.rank else Run
    with nullcontext() if group.rank else held(folder):
        if resume:
            run, checkpoint = kind.resume(folder, settings)
        else:
            run = kind.start(folder, settings)
        try:
            model = build(settings.backend)
        except BadInput:
            if not resume:
                run.discard()
            raise
        training = _Training(model, data, run, checkpoint, tensorboard)
        try:
            training.go()
        except BadInput as error:
            is_there = is_run(run.folder)
            cut_short = BadInput(f"{error}; {kept(run.folder)}{'' if is_there else '; start a new run'}")
            cut_short.exit_code, cut_short.resumable = 1, is_there
            raise cut_short from None
        return model, run


def _check_folder(folder: str | os.PathLike[str], data: DataModule, resume: bool) -> None:
    """Raise `ValueError`, before anything is written, unless a run can be there."""
    if resume:
        read_settings(folder)
    else:
        data.check_apart(Path(folder))


def train_all(
    train_one: Callable[[Settings, Path, bool], list[Record]],
    names: Sequence[str],
    data: DataModule,
    settings: Settings,
    folder: str | os.PathLike[str],
    resume: bool,
) -> dict[str, list[Record]]:
    """The same run in one backend after another, each in a folder of its name; then all in one picture.

    Returns the history of each. Arguments and errors are those of `train`.

    Args:
        train_one: trains a run with its own settings in a folder, new or going on; returns its history.
    """
    folder = Path(folder)
    data.check()
    _check_folder(folder, data, resume)
    with held(folder):
        if resume:
            Run.check_settings(folder, settings)
        else:
            whole = Run.start(folder, settings)
        histories: dict[str, list[Record]] = {}
        for name in names:
            own = dataclasses.replace(settings, backend=name)
            going_on = resume and is_run(folder / name)
            if going_on and is_finished(folder / name):
                histories[name] = _finished(folder / name)
                continue
            try:
                histories[name] = train_one(own, folder / name, going_on)
            except BadInput:
                if not (resume or histories or is_run(folder / name)):
                    whole.discard()
                raise
        try:
            curves.draw(folder, histories)
        except BadInput as error:
            error.exit_code, error.resumable = 1, True
            raise
    show_runs(histories)
    return histories


def _finished(folder: Path) -> list[Record]:
    """The history of a run that is finished, whose curves are drawn again."""
    run, checkpoint = Run.load(folder)
    if checkpoint and checkpoint.warning:
        Console().say(checkpoint.warning)
    with held(folder):
        curves.draw(folder, {run.settings.backend: run.history})
    return run.history


@dataclass(frozen=True)
class Step:
    """A training step that has begun: `found` waits for its loss and how many images were told right."""

    found: Callable[[], tuple[float, int]]
    lr: float
    images: int


class _Training:
    """A run that is going on."""

    def __init__(
        self, model: Model, data: DataModule, run: Run, checkpoint: Checkpoint | None, tensorboard: bool
    ) -> None:
        self.model, self.data, self.run, self.settings = model, data, run, run.settings
        self.position = Position()
        self.group = model.group
        self.dealt = {"group": self.group} if self.group.workers > 1 else {}  # one needs no loader that deals
        self.show = Progress(self.settings, data.num_train_batches, quiet=self.group.rank > 0)
        self.signals: list[int] = []  # that came to this worker
        self.stopped = 0  # the signal that stops all
        workers = f"{self.group.workers} workers, " if self.group.workers > 1 else ""
        self.show.say(
            f"{self.settings.backend} on the {self.settings.device}, {workers}{self.settings.precision}: "
            f"{data.num_train:,} training and {data.num_val:,} validation images at "
            f"{data.resize[0]}×{data.resize[1]} from {data.source}; writing to {run.folder}"
        )
        if self.group.copies(data.batch_size) > 1:
            self.show.say(
                f"{data.batch_size} images a step do not divide by {self.group.workers}: every worker "
                "computes all of them; choose a batch size that divides"
            )
        if checkpoint:
            if checkpoint.warning:
                self.show.say(checkpoint.warning)
            self.position = checkpoint.position
            model.load_weights(checkpoint.weights)
            if self.position.step:
                model.load_optimizer_state(checkpoint.state, self.settings.recipe)
        self.check_same()
        self.checkpoint = checkpoint
        self.tensorboard = tensorboard and not self.group.rank
        self.events: Events | None = None
        self.saved_at = time.perf_counter()

    def go(self) -> None:
        """Train from the position to the end."""
        self.begin()
        with _signals(self.signals), self.show:
            while self.position.epoch < self.settings.epochs:
                self.train_epoch()
                self.validate()
        self.show.say(
            f"best val accuracy {self.position.best_accuracy:.4f}; "
            f"{self.run.folder} has the weights (best.safetensors) and curves.png"
        )

    def begin(self) -> None:
        """The first writes: of a new run a checkpoint, of a finished one the curves."""
        if self.checkpoint:
            self.run.go_on(self.checkpoint)
        else:
            self.save()
        if self.tensorboard:
            self.events = Events(self.run.folder / "tensorboard", self.position.step + 1)
        if self.position.epoch >= self.settings.epochs:
            self.show.say(f"finished after step {self.position.step}; its curves are drawn again")
            self.draw()
        elif self.checkpoint:
            self.show.say(f"going on after step {self.position.step}")

    def check_same(self) -> None:
        """Raise `Stopped` unless all workers begin from the same weights, state and position."""
        if self.group.workers == 1:
            return
        what = self.model.weights() | {f"state.{n}": a for n, a in self.model.optimizer_state().items()}
        digest = int(tensors_sha256(what)[:8], 16) + self.position.step
        if self.model.sum(digest) != digest * self.group.workers:
            raise Stopped(
                "the workers have different checkpoints; copy the run's folder from worker 0 to all"
            )

    def train_epoch(self) -> None:
        """The rest of the epoch's training batches."""
        position, channels = self.position, self.run.arch.in_channels
        batches = self.data.train_dataloader(
            position.epoch, position.batch, self.model.dtype, channels, **self.dealt
        )
        self.tick = time.perf_counter()
        begun = None  # looked at once the next step is on its way, so that no device waits
        for number, (x, y) in enumerate(batches, position.step):
            lr = learning_rate(self.settings, number, self.data.num_train_batches)
            found = self.model.begin_step(x, y, lr, self.settings.recipe)
            before, begun = begun, Step(found, lr, self.whole(number, len(y)))
            if before:
                self.finish(before)
            if self.poll_signals() or time.perf_counter() - self.saved_at > SAVE_SECONDS:
                self.finish(begun)
                begun = None
                self.save()
                self.tick = self.saved_at
                self.stop_if_asked()
        if begun:
            self.finish(begun)

    def whole(self, step: int, images: int) -> int:
        """How many images the batch of a step has, of which this worker has so many."""
        if self.group.workers == 1:
            return images
        first = step % self.data.num_train_batches * self.data.batch_size
        return min(self.data.batch_size, self.data.num_train - first)

    def finish(self, step: Step) -> None:
        """Wait for a step, and note how it went."""
        position = self.position
        loss, correct = step.found()
        correct //= self.group.copies(step.images)
        if not math.isfinite(loss):
            raise Stopped(
                f"the loss of step {position.step + 1} is {loss}: the run has diverged; "
                f"{kept(self.run.folder)}; start another with a lower lr"
            )
        tock = time.perf_counter()
        position.add(loss, correct, step.images, tock - self.tick)
        self.tick = tock
        self.log(
            event="step", epoch=position.epoch + 1, lr=step.lr, loss=loss, accuracy=correct / step.images
        )
        self.show.step(position)

    def validate(self) -> None:
        """The end of an epoch: validation, the best weights, a checkpoint, curves."""
        position, averaged = self.position, {}
        try:
            found = self.evaluate()
            if self.settings.recipe.ema:
                with self.model.averaged():
                    average = self.evaluate()
                averaged = {"ema_val_loss": average.loss, "ema_val_accuracy": average.accuracy}
        except Stopped:
            self.save()  # here, where the model has its own weights again
            raise
        if found.accuracy > position.best_accuracy:
            self.run.save_best(self.model.weights(), position)
        if averaged:
            self.run.save_average(self.model.averaged_weights(), position)
        self.log(
            event="epoch",
            epoch=position.epoch + 1,
            lr=learning_rate(self.settings, position.step - 1, self.data.num_train_batches),
            train_loss=position.loss_sum / position.images,
            train_accuracy=position.correct / position.images,
            val_loss=found.loss,
            val_accuracy=found.accuracy,
            **averaged,
            images_per_second=position.images / position.seconds,
            seconds=position.seconds,
        )
        self.position = position.next_epoch(found.accuracy)
        self.save()
        self.show.epoch(self.run.history[-1])
        self.draw()
        self.poll_signals()
        self.stop_if_asked()

    def draw(self) -> None:
        """The curves of the history."""
        if not self.group.rank:
            curves.draw(self.run.folder, {self.settings.backend: self.run.history})

    def poll_signals(self) -> bool:
        """Note in `stopped` which signal has come to any worker, if one has; returns whether.

        All workers call this after the same step, and get the same answer.
        """
        number = self.signals[0] if self.signals else 0
        numbers, workers = self.model.sum([number, bool(number)])
        self.stopped = int(numbers / workers) if workers else 0
        return self.stopped > 0

    def log(self, **record: Any) -> None:
        """A line of history, and the same numbers for TensorBoard."""
        record["step"] = self.position.step
        self.run.log(record)
        if self.events:
            numbers = {name: value for name, value in record.items() if isinstance(value, float)}
            self.events.scalars(
                record["step"], {f"{record['event']}/{name}": value for name, value in numbers.items()}
            )

    def save(self) -> None:
        """Write a checkpoint."""
        self.run.save(self.model.weights(), self.model.optimizer_state(), self.position)
        self.saved_at = time.perf_counter()

    def evaluate(self) -> Metrics:
        """Loss and accuracy on the validation images, unless a signal comes."""
        batches = self.data.val_dataloader(self.model.dtype, self.run.arch.in_channels, **self.dealt)
        count = -(-self.data.num_val_batches // self.group.workers)
        return evaluate(self.model, self.show.validating(self.until_stopped(batches), count))

    def until_stopped(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, unless a signal comes; several workers, who have different batches, finish them."""
        for batch in batches:
            if self.group.workers == 1 and self.poll_signals():
                self.stop_if_asked()
            yield batch

    def stop_if_asked(self) -> None:
        """Raise `Stopped` after a signal, unless the run is complete."""
        if self.stopped and self.position.epoch < self.settings.epochs:
            stopped_at = f"stopped after step {self.position.step}"
            raise Stopped(stopped_at, exit_code=128 + self.stopped, resumable=True)


@contextmanager
def _signals(stopped: list[int]) -> Iterator[None]:
    """Note the first SIGINT, SIGTERM or SIGHUP in `stopped`; let a second of the first two act at once."""
    if threading.current_thread() is not threading.main_thread():  # only that one may hear signals
        yield
        return
    at_once: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    if hangs_up():
        at_once[signal.SIGHUP] = signal.SIG_IGN  # a terminal that closes may send it twice

    def note(number: int, frame: FrameType | None) -> None:
        stopped.append(number)
        for each, handler in at_once.items():
            signal.signal(each, handler)
        with suppress(OSError):  # the terminal may be gone
            os.write(1, FINISHING)

    before = {each: signal.signal(each, note) for each in at_once}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
