"""Processes at work: what they say is kept, and told only of those that die."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import closing

import pytest

from common.processes.workers import Process, quiet
from common.timing import PROC_STAT, Elsewhere

PRELUDE = """
import os, sys
from common.processes.workers import quiet
with quiet("go on with: the command"):
    os.write(2, b"a greeting\\n" * 50 + b"terminate called: out of memory\\n")
"""


def end(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PRELUDE + code], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("death", ["os.abort()", "os._exit(3)", "os.kill(os.getpid(), 9)"])
def test_a_process_that_dies_without_raising_leaves_its_last_words(death: str) -> None:
    done = end(f"    {death}\n")
    assert done.returncode != 0
    assert done.stderr.splitlines() == [
        "resnet-tabs: the process died: a greeting | a greeting | terminate called: out of memory; "
        "go on with: the command"
    ]


def test_a_process_that_lives_keeps_quiet() -> None:
    done = end("print('after', file=sys.stderr)\n")
    assert (done.returncode, done.stderr) == (0, "after\n")


def test_what_raises_raises_and_nothing_else_is_said() -> None:
    done = end("    raise SystemExit(5)\n")
    assert (done.returncode, done.stderr) == (5, "")


def test_quiet_leaves_no_file(tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with quiet():
        assert len(os.listdir(tmp_path)) == 1
    assert os.listdir(tmp_path) == []


def die() -> None:
    os.write(2, b"LLVM ERROR: no such thing\n")
    os.abort()


def test_a_worker_that_dies_says_its_last_words() -> None:
    with closing(Process()) as process, pytest.raises(RuntimeError) as error:
        process.run(die)
    assert str(error.value) == "its process died: LLVM ERROR: no such thing"


def test_a_process_own_errors_are_raised_as_they_are() -> None:
    with closing(Process()) as process, pytest.raises(ZeroDivisionError):
        process.run(divmod, 1, 0)


def compute(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


@pytest.mark.skipif(not PROC_STAT.exists(), reason="this system does not tell what others compute")
def test_what_other_programs_compute_is_measured() -> None:
    with closing(Process()) as process:
        process.run(time.process_time)  # it has started
        with Elsewhere([process]) as before:
            process.run(compute, 0.5)
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            time.sleep(0.3)
            with Elsewhere([process]) as beside:
                process.run(compute, 0.5)
        finally:
            busy.kill()
            busy.wait()
    assert before.share is not None and beside.share is not None
    cores = len(os.sched_getaffinity(0))
    # The other takes a core where there is one to spare, else it shares the process's.
    assert beside.share > 0.3 / cores


def cores_of_threads() -> list[set[int]]:
    """What NumPy's threads may use, too, which it starts when it is imported: here, with this module."""
    return [os.sched_getaffinity(int(thread)) for thread in os.listdir("/proc/self/task")]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no process can be told its cores here")
def test_all_threads_of_a_process_keep_to_its_cores() -> None:
    core = {min(os.sched_getaffinity(0))}
    with closing(Process(core)) as process:
        assert all(cores == core for cores in process.run(cores_of_threads))
    assert os.sched_getaffinity(0) >= core
