"""Which class was taken for which: a table by class, and a picture."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from common.files import write_atomically
from common.pages import Console
from common.reading import shown

MOST_NAMES = 40  # on an axis, that can still be read


def show(confusion: NDArray[np.int64], classes: Sequence[str]) -> None:
    """A table of the classes: how many images, how many found, and for which other most were taken.

    `confusion` is (classes, classes): how many images of each class (rows) were told to be of each (columns).
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("class", "images", "top-1", "most taken for"):
        table.add_column(heading, justify="right" if heading in ("images", "top-1") else "left")
    for number, (name, row) in enumerate(zip(classes, confusion, strict=True)):
        images, others = int(row.sum()), row.copy()
        others[number] = 0
        most = f"{classes[others.argmax()]} ({others.max():,})" if others.any() else ""
        table.add_row(name, f"{images:,}", f"{row[number] / images:.4f}" if images else "", most)
    Console(highlight=False, markup=False).print(table)


def draw(path: Path, confusion: NDArray[np.int64], classes: Sequence[str]) -> None:
    """Write a PNG: each class's images (rows) by the classes they were taken for, as shares.

    Raises:
        ValueError: if it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    side = 4 + 0.25 * min(len(classes), MOST_NAMES)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the class's images")
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")
    if len(classes) <= MOST_NAMES:
        numbers = range(len(classes))
        names = [shown(name, 40).replace("$", r"\$") for name in classes]
        axes.set_xticks(numbers, names, rotation=90)
        axes.set_yticks(numbers, names)
    picture = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # of letters that the font lacks
        figure.savefig(picture, format="png", dpi=120)
    write_atomically(path, picture.getvalue())
