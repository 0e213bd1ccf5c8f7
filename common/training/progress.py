"""What a person sees of a run: a bar on a terminal, and a line an epoch that reads well in a log file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from rich import box
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from common.pages import Console
from common.training.runs import Position, Record
from common.training.settings import Settings

T = TypeVar("T")


def track(items: Iterable[T], what: str, count: int) -> Iterator[T]:
    """The items, with a bar on a terminal that says how far they are."""
    console = Console()
    with Bar(console=console, disable=not console.is_terminal, transient=True) as bar:
        yield from bar.track(items, count, description=what)


def show_runs(histories: Mapping[str, Sequence[Record]]) -> None:
    """A table of runs that are over, one row each."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("backend", "loss", "accuracy", "val loss", "val accuracy", "best", "images/s", "time"):
        table.add_column(heading, justify="left" if heading == "backend" else "right")
    best = {}
    for name, history in histories.items():
        epochs = [record for record in history if record["event"] == "epoch"]
        if not epochs:  # a history that lost its lines
            table.add_row(name, *["–"] * 7)
            continue
        last = epochs[-1]
        best[name] = max(record["val_accuracy"] for record in epochs)
        seconds = sum(record["seconds"] for record in epochs)
        images = sum(record["images_per_second"] * record["seconds"] for record in epochs)
        table.add_row(
            name,
            f"{last['train_loss']:.4f}",
            f"{last['train_accuracy']:.4f}",
            f"{last['val_loss']:.4f}",
            f"{last['val_accuracy']:.4f}",
            f"{best[name]:.4f}",
            f"{images / seconds:,.0f}",
            _clock(seconds),
        )
    losses = [{r["step"]: r["loss"] for r in h if r["event"] == "step"} for h in histories.values()]
    shared = set.intersection(*map(set, losses))  # all steps, but for histories that lost lines
    apart = max((abs(a[n] - losses[0][n]) / abs(losses[0][n]) for a in losses for n in shared), default=0.0)
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"loss of a step: at most {apart:.1e} apart in {len(shared):,} steps; best validation accuracy: "
        f"{100 * (max(best.values(), default=0) - min(best.values(), default=0)):.2f} points apart",
        soft_wrap=True,
    )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02}"


class Progress:
    """Shows a run on standard output, between entering and leaving it; nothing if `quiet`."""

    def __init__(self, settings: Settings, num_batches: int, quiet: bool = False) -> None:
        self.epochs, self.num_batches = settings.epochs, num_batches
        self.console = Console(highlight=False, quiet=quiet)
        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
            refresh_per_second=4,
            speed_estimate_period=300,
            transient=True,
        )
        self.task = self.bar.add_task("", total=self.epochs * num_batches, figures="")

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.bar.stop()

    def say(self, line: str) -> None:
        """A line of its own."""
        self.console.say(line)

    def step(self, position: Position) -> None:
        """After a training step."""
        self.bar.update(
            self.task,
            completed=position.step,
            description=f"epoch {position.epoch + 1}/{self.epochs}",
            figures=f"loss {position.loss_sum / position.images:.4f}  "
            f"accuracy {position.correct / position.images:.4f}  "
            f"{position.images / position.seconds:,.0f} images/s",
        )

    def validating(self, batches: Iterable[T], num_batches: int) -> Iterator[T]:
        """The batches of a validation, with a bar of their own."""
        task = self.bar.add_task("validation", total=num_batches, figures="")
        try:
            for batch in batches:
                yield batch
                self.bar.advance(task)
        finally:
            self.bar.remove_task(task)

    def epoch(self, record: Record) -> None:
        """After an epoch's validation."""
        width = len(str(self.epochs))
        averaged = ""
        if "ema_val_loss" in record:
            loss, accuracy = record["ema_val_loss"], record["ema_val_accuracy"]
            averaged = f"ema val loss {loss:.4f}  ema val accuracy {accuracy:.4f}  "
        self.say(
            f"epoch {record['epoch']:{width}}/{self.epochs}  "
            f"loss {record['train_loss']:.4f}  accuracy {record['train_accuracy']:.4f}  "
            f"val loss {record['val_loss']:.4f}  val accuracy {record['val_accuracy']:.4f}  {averaged}"
            f"lr {record['lr']:.3g}  {record['images_per_second']:,.0f} images/s  {_clock(record['seconds'])}"
        )
