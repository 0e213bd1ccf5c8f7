"""Workers that train one network together on this machine: a process each, the same function in all."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager, suppress
from multiprocessing import active_children, parent_process
from types import FrameType
from typing import Any

from common.errors import BadInput, Stopped
from common.processes.meeting import GRACE, Seat, free_address
from common.processes.workers import Process, share_cores

FINISHING = b"\nfinishing this step and saving; once more stops at once\n"


class WorkerLost(RuntimeError):
    """A worker died, or its framework failed: which, and its last words."""


def launch(workers: int, function: Callable[..., Any], *args: Any) -> Any:
    """What `function(seat, *args)` returns in worker 0, run in so many processes that share out the cores.

    Only worker 0 writes on the terminal. SIGINT, SIGTERM and SIGHUP go to all. When one fails, the rest are
    ended.

    Raises:
        WorkerLost: if one died, or its framework failed.
        BaseException: what one raises that has a line for people: `BadInput`, `Stopped`.
    """
    coordinator, cores = free_address("127.0.0.1"), share_cores(workers)
    with ExitStack() as stack:
        processes = [
            stack.enter_context(closing(Process(cores[rank % len(cores)], speaks=rank == 0)))
            for rank in range(workers)
        ]
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        pids = list(pool.map(lambda process: process.run(_begin), processes))
        children = {child.pid: child for child in active_children()}
        stack.callback(_kill, pids)
        stack.enter_context(_passing_on_signals(pids))
        futures = [
            pool.submit(process.run, function, Seat(coordinator, rank, workers, launched=True), *args)
            for rank, process in enumerate(processes)
        ]
        failed = [future for future in wait(futures, return_when=FIRST_EXCEPTION).done if future.exception()]
        if failed:
            wait(futures, timeout=GRACE)  # those that stop for the same reason
            first = futures.index(failed[0])
            _raise_ours(futures[0], futures[first])
            error, code = failed[0].exception(), children[pids[first]].exitcode
            why = f" was killed by signal {-code}" if code and code < 0 else ""
            said = " ".join(str(error).split()) or type(error).__name__  # frameworks say it in many lines
            raise WorkerLost(f"worker {first}{why}: {said}") from error
        return futures[0].result()


def _raise_ours(*futures: Future) -> None:
    """Raise the first error that has a line for people, if one has."""
    for future in futures:
        error = future.exception() if future.done() else None
        if isinstance(error, BadInput | Stopped):
            raise error


def _begin() -> int:
    """In a worker: end with the launcher, and let the terminal's signals come from it alone."""
    os.setsid()
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    return os.getpid()


def _end_with_launcher() -> None:
    launcher = parent_process()
    assert launcher
    launcher.join()
    os._exit(1)


def _kill(pids: Sequence[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # with what the worker started itself


def hangs_up() -> bool:
    """Whether the end of its terminal is to end this process: not under nohup, nor on Windows."""
    return hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN


@contextmanager
def _passing_on_signals(pids: Sequence[int]) -> Iterator[None]:
    """Hand SIGINT, SIGTERM and SIGHUP on to all workers, which finish their step and save.

    A second SIGINT or SIGTERM ends them.
    """
    if threading.current_thread() is not threading.main_thread():  # only that one may hear signals
        yield
        return

    def pass_on(number: int, frame: FrameType | None) -> None:
        for each in before:
            again = signal.default_int_handler if each in (signal.SIGINT, signal.SIGTERM) else signal.SIG_IGN
            signal.signal(each, again)
        with suppress(OSError):  # the terminal may be gone
            os.write(1, FINISHING)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hangs_up() else [])]
    before = {each: signal.signal(each, pass_on) for each in numbers}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
