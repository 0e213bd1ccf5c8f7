"""Loss and accuracy over the epochs, as pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.files import write_atomically
from common.training.runs import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Four runs that are the same lie on each other: wide to thin, so that all can be seen.
WIDTHS = (7.0, 4.5, 2.5, 1.0, 0.5)


def draw(folder: Path, histories: Mapping[str, Sequence[Record]]) -> None:
    """Write curves.png and curves.svg: each run's loss and accuracy, in training and in validation.

    Raises:
        ValueError: if they cannot be written.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for i, (name, history) in enumerate(histories.items()):
            _lines(axes, quantity, name, history, f"C{i}", WIDTHS[i] if len(histories) > 1 else 1.5)
        if quantity == "loss":
            axes.set_yscale("log")
        axes.set_xlabel("epoch")
        axes.set_ylabel(quantity)
        axes.grid(alpha=0.3)
        axes.legend()
    for suffix in ("png", "svg"):
        picture = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": "resnet-tabs"}):  # the same run, the same file
            date = {"Date": None} if suffix == "svg" else {}
            figure.savefig(picture, format=suffix, dpi=120, metadata=date)
        write_atomically(folder / f"curves.{suffix}", picture.getvalue())


def _lines(
    axes: Axes, quantity: str, name: str, history: Sequence[Record], colour: str, width: float
) -> None:
    """Training as it went, thinned to a thousand points, and validation after each epoch."""
    steps = [record for record in history if record["event"] == "step"]
    epochs = [record for record in history if record["event"] == "epoch"]
    per_epoch = epochs[0]["step"] / epochs[0]["epoch"] if epochs else len(steps)
    window = max(1, len(steps) // 200)
    chunks = [steps[start : start + window] for start in range(0, len(steps), window)]
    axes.plot(
        [chunk[-1]["step"] / per_epoch for chunk in chunks],
        [sum(record[quantity] for record in chunk) / len(chunk) for chunk in chunks],
        color=colour,
        linewidth=width,
        alpha=0.6,
        label=f"{name}, training",
    )
    axes.plot(
        [record["epoch"] for record in epochs],
        [record[f"val_{quantity}"] for record in epochs],
        color=colour,
        linewidth=width,
        linestyle="--",
        marker="o",
        markersize=3 + width,
        label=f"{name}, validation",
    )
