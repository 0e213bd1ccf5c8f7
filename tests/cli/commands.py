"""What the tests of the commands share: how to run one, and a run that is soon over."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import pytest

from common import cli
from common.training.runs import read_history

SHORT = [
    *("--epochs", "1", "--batch-size", "8", "--resize", "28", "--lr", "0.01", "--momentum", "0.9"),
    *("--limit-train", "24", "--limit-val", "16"),
]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "common.cli", *map(str, arguments)]


def run(*arguments: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=600, cwd=folder)


def run_here(*arguments: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The same in this process, which has its frameworks: where a process is no part of what is tested."""
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", ["resnet-tabs", *map(str, arguments)]),
        chdir(folder or Path.cwd()),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as stop,
    ):
        cli.main()
    return subprocess.CompletedProcess(arguments, stop.value.code or 0, out.getvalue(), err.getvalue())


def succeed(*arguments: object, folder: Path | None = None) -> str:
    return output_of(run(*arguments, folder=folder))


def succeed_here(*arguments: object, folder: Path | None = None) -> str:
    return output_of(run_here(*arguments, folder=folder))


def output_of(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def wait_for(history: Path, lines: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while len(read_history(history)) < lines:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
