"""What networks cost: each contender in a process of its own, in turns over several rounds.

A contender is a backend's network in one precision, or the framework's own network of that name, the
reference; or ours in onnxruntime, a reference for inference alone. A cell is a contender at training or
inference with one batch size.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import active_children
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from common.architecture import Architecture
from common.backend import array_type, load_backend
from common.bench.onnx_reference import ONNXRUNTIME
from common.errors import BadInput
from common.processes.workers import Process
from common.timing import PAUSE, ROUNDS, Elsewhere, milliseconds
from common.weights import initial_weights

MODES = ("infer", "train")
SECONDS = 0.5  # that the passes of a cell take in a round, at least
FEWEST, MOST = 2, 50  # passes of a cell that count in a round
RATE, MOMENTUM = 0.01, 0.9
PRODUCT = 2048  # rows and columns of the matrices whose product tells the machine's peak
PRODUCTS = 3  # of them in a round; the quickest counts
OUT_OF_MEMORY = re.compile(r"out of memory|allocate|RESOURCE_EXHAUSTED|bad_alloc|\bOOM\b", re.IGNORECASE)
LONGEST = 200  # characters of what a framework says when it fails

PROCESS = Path("/proc/self")


@dataclass(frozen=True)
class Workload:
    """What every contender is given.

    Attributes:
        name: of the network.
        input_shape: (C, H, W) of an image.
        batch_sizes: ascending.
        modes: of `MODES`, in that order.
        compile: whether PyTorch compiles.
    """

    name: str
    arch: Architecture
    input_shape: tuple[int, int, int]
    batch_sizes: tuple[int, ...]
    modes: tuple[str, ...] = MODES
    device: str = "cpu"
    compile: bool = False


@dataclass(frozen=True)
class Contender:
    """A backend's network in one precision, or its framework's own."""

    backend: str
    precision: str
    reference: bool = False

    @property
    def modes(self) -> tuple[str, ...]:
        """What it does of `MODES`."""
        return ("infer",) if self.backend == ONNXRUNTIME.name else MODES

    def __str__(self) -> str:
        return f"{self.backend}{' reference' if self.reference else ''} {self.precision}"


@dataclass(frozen=True)
class Cell:
    """A contender at "infer" or "train" with this many images at a time."""

    contender: Contender
    mode: str
    batch_size: int

    def __str__(self) -> str:
        return f"{self.contender} {self.mode}, batch {self.batch_size}"


@dataclass(frozen=True)
class Start:
    """How a contender came to be: its name in words, and seconds of importing and of building."""

    label: str
    imported: float
    built: float


@dataclass
class Measured:
    """What was measured of a cell.

    Attributes:
        first: seconds of the first pass, in which frameworks trace and compile.
        memory: bytes, the process' peak in a later pass; None where the system does not tell.
        device_memory: bytes of the GPU so far; None on a CPU.
        rounds: milliseconds of every pass of every round.
    """

    first: float
    memory: int | None
    device_memory: int | None
    rounds: list[list[float]] = field(default_factory=list)


@dataclass
class Bench:
    """All that was measured.

    Attributes:
        starts: of the contenders that came to be.
        cells: those that were measured in every round.
        products: backend and precision to milliseconds of its quickest matrix product.
        failures: contender or cell, in words, to what was the matter.
        elsewhere: share of the cores' time that other programs had during the rounds.
    """

    workload: Workload
    starts: dict[Contender, Start] = field(default_factory=dict)
    cells: dict[Cell, Measured] = field(default_factory=dict)
    products: dict[tuple[str, str], float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    elsewhere: float | None = None


class Runner:
    """A contender at work, in a process of its own.

    Raises:
        ValueError: if the framework has no such precision, device or network.
    """

    def __init__(self, contender: Contender, workload: Workload) -> None:
        self.workload, self.precision = workload, contender.precision
        is_onnx = contender.backend == ONNXRUNTIME.name
        self.backend = backend = ONNXRUNTIME if is_onnx else load_backend(contender.backend)
        os.environ.update(backend.uncached)  # a program from a cache compiles in no time
        weights = initial_weights(workload.arch)
        began = time.perf_counter()
        if contender.reference:
            speed = backend.speed()
            imported = time.perf_counter()
            self.model = speed.Reference(
                workload.name, workload.arch, contender.precision, workload.device, workload.compile
            )
        else:
            backend.load()
            imported = time.perf_counter()
            self.model = backend.build(
                workload.arch, contender.precision, workload.device, compile=workload.compile
            )
            self.model.load_weights(weights)
        built = time.perf_counter()
        label = self.model.label if contender.reference else backend.label
        self.start = Start(label, imported - began, built - imported)
        self._multiply: Callable[[], None] | None = None

    def warm_up(self, mode: str, batch_size: int) -> Measured:
        """Two passes: the first for its time, the second for its memory."""
        run = self._pass(mode, batch_size)
        first = milliseconds(run) / 1000
        forget_peak()
        run()
        gpu = self.backend.speed().device_memory() if self.workload.device == "gpu" else None
        return Measured(first, peak_memory(), gpu)

    def time_round(self, mode: str, batch_size: int) -> list[float]:
        """Milliseconds of each pass. Nothing else should be computing."""
        run = self._pass(mode, batch_size)
        run()  # wakes the threads
        passes: list[float] = []
        while len(passes) < FEWEST or (sum(passes) < 1000 * SECONDS and len(passes) < MOST):
            passes.append(milliseconds(run))
        return passes

    def time_product(self) -> float:
        """Milliseconds of the framework's own product of two square matrices."""
        if self._multiply is None:
            self._multiply = self.backend.speed().matrix_product(
                PRODUCT, self.precision, self.workload.device
            )
            self._multiply()
        return min(milliseconds(self._multiply) for _ in range(PRODUCTS))

    def _pass(self, mode: str, batch_size: int) -> Callable[[], object]:
        """A function that sees one batch, the same each time."""
        generator = np.random.default_rng(0)
        dtype = np.dtype(array_type(self.precision))
        x = generator.random((batch_size, *self.workload.input_shape), dtype)
        y = generator.integers(self.workload.arch.num_classes, size=batch_size, dtype=np.int32)
        if mode == "infer":
            return lambda: self.model.predict(x)
        return lambda: self.model.train_step(x, y, lr=RATE, momentum=MOMENTUM)


def forget_peak() -> None:
    """Let `peak_memory` be that from now on, where the system can (Linux)."""
    with suppress(OSError):
        (PROCESS / "clear_refs").write_text("5")


def peak_memory() -> int | None:
    """Bytes: the most that this process has held since `forget_peak`; elsewhere than on Linux, ever.

    None where the system does not tell (Windows).
    """
    with suppress(OSError):
        if held := re.search(r"VmHWM:\s+(\d+) kB", (PROCESS / "status").read_text()):
            return 1024 * int(held[1])
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


_runner: Runner  # of this process


def enter(contender: Contender, workload: Workload) -> Start:
    """Build a contender in this process."""
    global _runner
    with suppress(OSError):  # should memory run out, Linux is to end this process and no other
        (PROCESS / "oom_score_adj").write_text("1000")
    _runner = Runner(contender, workload)
    return _runner.start


def ask(method: str, *args: Any) -> Any:
    """What a method of this process' runner returns."""
    return getattr(_runner, method)(*args)


class Contest:
    """The contenders' processes. What fails is a finding, and its contender goes on in a new process."""

    def __init__(self, workload: Workload) -> None:
        self.bench = Bench(workload)
        self.cells: dict[Contender, list[Cell]] = {}  # what is left to measure
        self.processes: dict[Contender, Process] = {}

    def enter(self, contender: Contender) -> bool:
        """Start a contender in a new process; whether it came to be."""
        self.processes[contender] = process = Process()
        try:
            start = process.run(enter, contender, self.bench.workload)
        except Exception as error:
            self.bench.failures[str(contender)] = said_of(error)
            self._leave(contender)
            return False
        self.bench.starts.setdefault(contender, start)
        return True

    def warm_up(self, contender: Contender) -> None:
        """Let every cell run until it is compiled, smallest batches first."""
        workload = self.bench.workload
        self.cells[contender] = [
            Cell(contender, mode, size)
            for mode in workload.modes
            if mode in contender.modes
            for size in workload.batch_sizes
        ]
        for cell in list(self.cells[contender]):
            if contender in self.processes:
                measured = self._attempt(cell, "warm_up")
                if measured:
                    self.bench.cells[cell] = measured

    def time_round(self, contender: Contender) -> None:
        """The contender's turn: all of its cells, and its framework's matrix product."""
        time.sleep(PAUSE)
        for cell in list(self.cells[contender]):
            if contender in self.processes:
                passes = self._attempt(cell, "time_round")
                if passes:
                    self.bench.cells[cell].rounds.append(passes)
        if contender in self.processes and not contender.reference:
            self._multiply(contender)

    def close(self) -> None:
        """End the processes."""
        for process in self.processes.values():
            process.close()

    def _attempt(self, cell: Cell, method: str) -> Any:
        """What the contender's method returns for a cell; None if it fails."""
        try:
            return self.processes[cell.contender].run(ask, method, cell.mode, cell.batch_size)
        except Exception as error:
            self.bench.failures[str(cell)] = said_of(error)
            self.bench.cells.pop(cell, None)
            self.cells[cell.contender].remove(cell)
            self._renew(cell.contender)
            return None

    def _multiply(self, contender: Contender) -> None:
        key, what = (contender.backend, contender.precision), f"{contender}, matrix product"
        if what in self.bench.failures:
            return
        try:
            taken = self.processes[contender].run(ask, "time_product")
        except Exception as error:
            self.bench.failures[what] = said_of(error)
            self._renew(contender)
        else:
            self.bench.products[key] = min(taken, self.bench.products.get(key, taken))

    def _renew(self, contender: Contender) -> None:
        """A process in which something failed may be dead, or full."""
        self.processes[contender].close()
        if self.cells[contender]:
            self.enter(contender)
        else:
            self._leave(contender)

    def _leave(self, contender: Contender) -> None:
        self.processes.pop(contender).close()
        for cell in self.cells.get(contender, []):
            self.bench.cells.pop(cell, None)


def measure(
    workload: Workload,
    contenders: Sequence[Contender],
    progress: Callable[[str], None] = lambda line: None,
) -> Bench:
    """Start the contenders one after another, then time them in turns.

    Args:
        workload: the network, batch sizes and modes.
        contenders: a reference comes right after the network it is held against, onnxruntime after all.
        progress: is told, in a line, whenever something has been done.
    """
    contest = Contest(workload)
    bench = contest.bench
    try:
        for contender in contenders:
            if contest.enter(contender):
                contest.warm_up(contender)
            progress(_first_figures(bench, contender))
        shares = []
        for number in range(ROUNDS):
            with Elsewhere(contest.processes.values()) as elsewhere:
                for contender in _order(contenders, number):
                    if contender in contest.processes:
                        contest.time_round(contender)
            shares.append(elsewhere.share)
            if contest.processes:
                progress(f"round {number + 1} of {ROUNDS} done")
        told = [share for share in shares if share is not None]
        bench.elsewhere = fmean(told) if told else None
    except KeyboardInterrupt:
        for process in active_children():  # else they finish what they are at
            process.terminate()
        raise
    finally:
        contest.close()
    return bench


def said_of(error: Exception) -> str:
    """What a framework said when it failed, in one line, and what to do if memory ran out."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[0] if lines else "no message"
    said = said if len(said) <= LONGEST else f"{said[:LONGEST]}…"
    if isinstance(error, BadInput):
        return said
    if isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error)):
        return f"out of memory ({said}); give a smaller batch"
    if str(error).startswith("its process died"):
        return f"{said}; if memory ran out, give a smaller batch"
    return f"{type(error).__name__}: {said}"


def _first_figures(bench: Bench, contender: Contender) -> str:
    """What can be told of a contender before the rounds."""
    if not (start := bench.starts.get(contender)):
        return f"{contender}: {bench.failures[str(contender)]}"
    figures = [f"imported in {start.imported:.2f} s", f"built in {start.built:.2f} s"]
    smallest = bench.workload.batch_sizes[0]
    for mode in bench.workload.modes:
        if measured := bench.cells.get(Cell(contender, mode, smallest)):
            figures.append(f"first {mode} {measured.first:.2f} s")
    failed = sum(what.startswith(f"{contender} ") for what in bench.failures)
    return f"{contender}: {', '.join(figures)}{f'; {failed} failed' if failed else ''}"


def _order(contenders: Sequence[Contender], number: int) -> list[Contender]:
    """Turns of a round: a network and its reference side by side, now one first, now the other."""
    order = list(contenders)
    if number % 2:
        for i, contender in enumerate(contenders):
            if contender.reference and contenders[i - 1].backend == contender.backend:
                order[i - 1], order[i] = order[i], order[i - 1]
    return order
