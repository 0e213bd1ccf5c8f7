"""An earlier measurement against this one: what became slower, beyond the spread of the rounds."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.bench.figures import Grid, number
from common.bench.measure import Cell, Contender, Workload
from common.bench.report import KIND, show_grid
from common.errors import BadInput, MissingFile
from common.pages import LABELS, console, show_verdict
from common.reading import read_json, shown
from common.timing import Spread, busy


@dataclass(frozen=True)
class Record:
    """What a bench.json says that another can be held against.

    Attributes:
        question: architecture, input shape, device and whether PyTorch compiled: what must be the same.
        machine: processor and threads, in words.
        versions: name to version.
        speeds: images/s of every cell.
        failures: a line for everything that could not be measured.
        elsewhere: share of the cores' time that other programs had.
    """

    question: dict[str, Any]
    machine: str
    versions: dict[str, str]
    speeds: dict[Cell, Spread]
    failures: list[str]
    elsewhere: float | None

    @classmethod
    def of(cls, results: dict[str, Any]) -> Record:
        """From what bench.json holds; `KeyError`, `TypeError` or `ValueError` if it is something else."""
        if results["kind"] != KIND:
            raise ValueError
        speeds = {}
        for cell in results["cells"]:
            figures = [float(cell[name]) for name in ("images_per_second", "quickest_round", "slowest_round")]
            if not all(0 < figure < math.inf for figure in figures):
                raise ValueError
            contender = Contender(cell["backend"], cell["precision"], cell["reference"])
            speeds[Cell(contender, cell["mode"], cell["batch_size"])] = Spread(*figures)
        elsewhere = results["busy_elsewhere"]
        return cls(
            {name: results[name] for name in ("architecture", "input_shape", "device", "compile")},
            f"{results['processor']}, {results['threads']} threads",
            {name: version for name, version in results["versions"].items() if version},
            speeds,
            [str(line) for line in results["failures"]],
            None if elsewhere is None else float(elsewhere),
        )


@dataclass
class Change:
    """What became of the cells that both have, images/s then and now; `broken` has those that fail now."""

    common: int
    broken: list[str] = field(default_factory=list)
    slower: dict[Cell, tuple[Spread, Spread]] = field(default_factory=dict)
    faster: dict[Cell, tuple[Spread, Spread]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether something was compared, and nothing is slower or fails."""
        return bool(self.common) and not self.slower and not self.broken


def read(path: Path, workload: Workload) -> Record:
    """An earlier bench.json of the same question.

    Raises:
        ValueError: if it is not there, is something else, or is of another question.
    """
    try:
        record = Record.of(read_json(path))
    except FileNotFoundError:
        raise MissingFile(f"{path} not found; give a bench.json that an earlier bench wrote") from None
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}; give a bench.json") from None
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        raise BadInput(f"{path} is not a bench.json; give one that an earlier bench wrote") from None
    for name, value in _question(workload).items():
        if record.question[name] != value:
            then = shown(json.dumps(record.question[name]), 200)
            raise BadInput(
                f"{path} is of another {name.replace('_', ' ')} ({then}); ask for the same as then"
            )
    return record


def _question(workload: Workload) -> dict[str, Any]:
    return {
        "architecture": json.loads(workload.arch.to_json()),
        "input_shape": list(workload.input_shape),
        "device": workload.device,
        "compile": workload.compile,
    }


def compare(then: Record, now: Record) -> Change:
    """Slower is a cell whose quickest round now is slower than its slowest round then; faster likewise."""
    common = [cell for cell in then.speeds if cell in now.speeds]
    change = Change(len(common))
    for cell in common:
        before, after = then.speeds[cell], now.speeds[cell]
        if after.quickest < before.slowest:
            change.slower[cell] = (before, after)
        elif after.slowest > before.quickest:
            change.faster[cell] = (before, after)
    for name in then.versions:
        if name in now.versions and now.versions[name] != then.versions[name]:
            change.notes.append(f"{LABELS.get(name, name)} {then.versions[name]} → {now.versions[name]}")
    if now.machine != then.machine:
        change.notes.append(f"Another machine: {then.machine} then, {now.machine} now")
    gone = [cell for cell in then.speeds if cell not in now.speeds]
    names = tuple(f"{what}: " for cell in gone for what in (cell, cell.contender))
    change.broken = [line for line in now.failures if line.startswith(names)]
    if gone or len(now.speeds) > len(common):
        new = len(now.speeds) - len(common)
        change.notes.append(f"Not compared: {len(gone)} measured only then, {new} measured only now")
    for when, elsewhere in (("then", then.elsewhere), ("now", now.elsewhere)):
        if busy(elsewhere):
            change.notes.append(f"The machine was busy {when}: this comparison is worth little")
    return change


def show(change: Change, name: str) -> None:
    """Print what became slower and what faster, and the verdict."""
    for what, cells in (("slower", change.slower), ("faster", change.faster)):
        if cells:
            rows = [
                [str(cell), _text(then), _text(now), f"{now.median / then.median:.2f}"]
                for cell, (then, now) in cells.items()
            ]
            title = f"What became {what} than in {name}, beyond the spread: images/s"
            show_grid(Grid(what, title, ["", "then", "now", "ratio"], rows))
    for note in change.notes:
        console().print(note, style="yellow", highlight=False, markup=False, soft_wrap=True)
    if not change.common:
        show_verdict(f"NOT COMPARED: nothing in {name} was measured again", good=False)
    elif change.broken:
        show_verdict(f"BROKEN since {name}: {' | '.join(change.broken)}", good=False)
    elif change.slower:
        show_verdict(
            f"SLOWER than in {name}: {len(change.slower)} of {change.common}, in images/s", good=False
        )
    else:
        show_verdict(f"NOT SLOWER than in {name}: none of {change.common}, in images/s", good=True)


def _text(speed: Spread) -> str:
    return f"{number(speed.median)} ({number(speed.slowest)}–{number(speed.quickest)})"
