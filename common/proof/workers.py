"""Frameworks at work, each in a process of its own: imported once, quiet, and out of each other's way."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from multiprocessing import get_context
from queue import SimpleQueue
from typing import Any


class Worker:
    """A fresh process that runs functions one after another.

    What a framework prints there is kept from the terminal; what fails raises here. With `cores`, it and
    the thread pools of the framework keep to those: two frameworks that both want every core slow each
    other down many times over.
    """

    def __init__(self, cores: set[int] | None = None) -> None:
        context = get_context("spawn")
        self._process = ProcessPoolExecutor(1, context, initializer=_settle, initargs=(cores,))

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """The result of an importable function; arguments and result are pickled."""
        return self._process.submit(function, *args).result()

    def close(self) -> None:
        """End the process."""
        self._process.shutdown(wait=False, cancel_futures=True)


class Shares:
    """This process' cores, dealt into at most so many shares; each serves one worker at a time."""

    def __init__(self, most: int) -> None:
        self._free: SimpleQueue[set[int]] = SimpleQueue()
        for share in share_cores(most):
            self._free.put(share)
        self.count = self._free.qsize()

    @contextmanager
    def worker(self) -> Iterator[Worker]:
        """A worker with a share of its own, once one is free."""
        share = self._free.get()
        try:
            with closing(Worker(share)) as worker:
                yield worker
        finally:
            self._free.put(share)


def share_cores(most: int) -> list[set[int]]:
    """This process' cores, dealt into at most so many shares, so that as many workers can work at once."""
    if not hasattr(os, "sched_getaffinity"):  # macOS, Windows: no process can be told its cores
        return [set()]
    cores = sorted(os.sched_getaffinity(0))
    return [set(cores[i::most]) for i in range(min(most, len(cores)))]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep standard error, C++'s too, from the terminal for a while; what fails still raises."""
    sys.stderr.flush()
    before = os.dup(2)
    try:
        with tempfile.TemporaryFile() as sink:
            os.dup2(sink.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(before, 2)
        os.close(before)


def _settle(cores: set[int] | None) -> None:
    """Keep to the cores, and send output to a file nobody reads: frameworks greet at length."""
    if cores:
        os.sched_setaffinity(0, cores)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
