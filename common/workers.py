"""Frameworks at work, each in a process of its own: imported once, quiet, and out of each other's way."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any


class Worker:
    """A fresh process that runs functions one after another.

    What a framework prints there is kept from the terminal; what fails raises here.
    """

    def __init__(self) -> None:
        self._process = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_be_quiet)

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Run an importable function with picklable arguments; the future has its result."""
        return self._process.submit(function, *args)

    def close(self) -> None:
        """End the process, dropping what has not started."""
        self._process.shutdown(wait=False, cancel_futures=True)


def _be_quiet() -> None:
    """Send standard output and error to a file nobody reads: frameworks greet at length."""
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
