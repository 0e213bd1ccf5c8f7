"""Frameworks at work, each in a process of its own: imported once, quiet, and out of each other's way."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path
from queue import SimpleQueue
from typing import Any

ALIVE = b"alive"  # what a process tells its watcher at the end


class Process:
    """A fresh process that runs functions one after another.

    What is printed there is kept from the terminal; if it `speaks`, only what Python does not print.
    What fails raises here, and of a process that died its last words. With `cores`, it and the thread pools
    of the framework keep to those: two frameworks that both want every core slow each other down many times
    over.
    """

    def __init__(self, cores: set[int] | None = None, speaks: bool = False) -> None:
        context = get_context("spawn")
        descriptor, name = tempfile.mkstemp(prefix="resnet-tabs-", suffix=".log")
        os.close(descriptor)
        self._log, self._cores = Path(name), cores
        self._process = ProcessPoolExecutor(1, context, initializer=_settle, initargs=(self._log, speaks))

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """The result of an importable function; arguments and result are pickled.

        Raises:
            RuntimeError: if the process died; else what the function raises.
        """
        try:
            with _keeping_to(self._cores):  # what starts here has these cores before it loads any library
                future = self._process.submit(function, *args)
            return future.result()
        except BrokenProcessPool:
            said = " | ".join(last_lines(self._log)) or "it said nothing"
            raise RuntimeError(f"its process died: {said}") from None

    def close(self) -> None:
        """End the process."""
        self._process.shutdown(wait=False, cancel_futures=True)
        with suppress(OSError):  # Windows keeps what is open
            self._log.unlink()


class Shares:
    """This process' cores, dealt into at most so many shares; each serves one process at a time."""

    def __init__(self, most: int) -> None:
        self._free: SimpleQueue[set[int]] = SimpleQueue()
        for share in share_cores(most):
            self._free.put(share)
        self.count = self._free.qsize()

    @contextmanager
    def process(self) -> Iterator[Process]:
        """A process with a share of its own, once one is free."""
        share = self._free.get()
        try:
            with closing(Process(share)) as process:
                yield process
        finally:
            self._free.put(share)


def share_cores(most: int) -> list[set[int]]:
    """This process' cores, dealt into at most so many shares, for as many processes at once."""
    if not hasattr(os, "sched_getaffinity"):  # macOS, Windows: no process can be told its cores
        return [set()]
    cores = sorted(os.sched_getaffinity(0))
    return [set(cores[i::most]) for i in range(min(most, len(cores)))]


@contextmanager
def quiet(remedy: str = "") -> Iterator[None]:
    """Keep standard error, C++'s too, from the terminal for a while; what fails still raises.

    Should the process die without raising, because C++ aborts or the system kills it, another prints the
    last lines that were kept, and `remedy`.
    """
    sys.stderr.flush()
    before = os.dup(2)
    descriptor, log = tempfile.mkstemp(prefix="resnet-tabs-", suffix=".log")
    watcher = subprocess.Popen(
        [sys.executable, "-I", __file__, log, remedy],
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is not for it
    )
    try:
        os.dup2(descriptor, 2)
        os.close(descriptor)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(before, 2)
        os.close(before)
        watcher.communicate(ALIVE)


def last_lines(log: Path, most: int = 3) -> list[str]:
    """The last lines of a log that say something; that of a process that is closed has none."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return ["".join(filter(str.isprintable, line)).strip() for line in lines if line.strip()][-most:]


def _watch(log: Path, remedy: str) -> None:
    """Wait for the process that has the other end of standard input, and report if it died."""
    if sys.stdin.buffer.read() != ALIVE:
        said = " | ".join(last_lines(log)) or "nothing was said"
        print(f"resnet-tabs: the process died: {said}{remedy and f'; {remedy}'}", file=sys.stderr)
    log.unlink()


@contextmanager
def _keeping_to(cores: set[int] | None) -> Iterator[None]:
    """Within, this thread, and a process that it starts, keep to these cores."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _settle(log: Path, speaks: bool) -> None:
    """Send output to a file: frameworks greet at length."""
    from common.processes.output import open_output  # not at the top: the watcher runs this file alone

    if speaks:  # Python goes on with the terminal; libraries in C++ write to 1
        sys.stdout = open_output(os.dup(1), sys.stdout.encoding, line_buffering=True)
    with log.open("r+b") as sink:
        for descriptor in (1, 2):
            os.dup2(sink.fileno(), descriptor)


if __name__ == "__main__":
    _watch(Path(sys.argv[1]), sys.argv[2])
