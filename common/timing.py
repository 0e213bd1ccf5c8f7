"""Timings one can trust: many passes in several rounds, their spread, and whether the machine was busy."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

PROC_STAT = Path("/proc/stat")
ROUNDS = 5  # in which what is compared is timed in turns
PAUSE = 0.25  # seconds before a turn: OpenMP threads of the one before may spin for 0.2
BUSY = 0.1  # share of the cores' time that may go to other programs before timings are doubted


def milliseconds(function: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - start)


@dataclass(frozen=True)
class Spread:
    """Milliseconds: the median over all rounds, and the medians of the quickest and the slowest round."""

    median: float
    quickest: float
    slowest: float

    @classmethod
    def of(cls, rounds: Sequence[Sequence[float]]) -> Spread:
        """Of the milliseconds of every pass of every round."""
        medians = [statistics.median(passes) for passes in rounds]
        return cls(statistics.median(itertools.chain(*rounds)), min(medians), max(medians))


class Running(Protocol):
    """A process that runs functions, such as a `Process`."""

    def run(self, function: Callable[..., Any], *args: Any) -> Any: ...


class Elsewhere:
    """Measures, between entering and leaving, how much of this process' cores went to other programs.

    Attributes:
        share: of the cores' time, 0 to 1, what neither those processes nor this one used; None where the
            system does not tell, or one of them died meanwhile.
    """

    share: float | None = None

    def __init__(self, processes: Iterable[Running]) -> None:
        self._processes = list(processes)

    def __enter__(self) -> Elsewhere:
        self._before = self._readings()
        return self

    def __exit__(self, *exception: object) -> None:
        after = self._readings() if exception[0] is None else ()
        if self._before and after:
            clock, used, own = (b - a for a, b in zip(self._before, after, strict=True))
            self.share = max(0.0, used - own) / (clock * len(os.sched_getaffinity(0)))

    def _readings(self) -> tuple[float, float, float] | tuple[()]:
        """Seconds: of the clock, of the cores' work for anybody, and for those processes and this one."""
        if not PROC_STAT.exists():  # macOS, Windows
            return ()
        cores = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        used = 0
        for line in PROC_STAT.read_text().splitlines():
            name, *jiffies = line.split()
            if name in cores:
                user, nice, system, _idle, _iowait, *others = map(int, jiffies[:8])
                used += user + nice + system + sum(others)
        try:
            own = time.process_time() + sum(process.run(time.process_time) for process in self._processes)
        except RuntimeError:  # what a process used that has died, nobody knows
            return ()
        return time.perf_counter(), used / os.sysconf("SC_CLK_TCK"), own


def busy(elsewhere: float | None) -> str:
    """What is wrong with timings while other programs had this share of the cores' time; "" if nothing is."""
    if elsewhere is None or elsewhere <= BUSY:
        return ""
    return (
        f"The machine was busy: other programs had {elsewhere:.0%} of its cores' time, "
        "so these timings are no measure; run it again with nothing beside"
    )
