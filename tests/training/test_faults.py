"""A fault at every write of a run: it goes on to the same bits, or says in one line what to do."""

from __future__ import annotations

import errno
import io
import os
import shutil
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from common import load_checkpoint
from common.errors import BadInput, Stopped
from common.files import write_atomically
from common.training import curves, loop
from common.training.runs import FILES, is_run, read_history
from tests.training.running import Once, assert_identical, settings, tiny_data, train, without_times

pytestmark = [pytest.mark.usefixtures("sample_only"), pytest.mark.deep]


SHORT = {"batch_size": 4, "limit_train": 4, "limit_val": 4}


class Killed(BaseException):
    """The process is gone: of what it would still ask of the system, nothing happens."""


class System:
    """What a run asks of the system, counted; the request of one number fails, a write after its half.

    Nothing is synced: `test_damage` has the power cuts.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.at, self.fault = 0, 0, ""
        for name in ("replace", "link", "unlink", "mkdir", "rmdir"):
            monkeypatch.setattr(os, name, self.asking(getattr(os, name)))
        monkeypatch.setattr(os, "fsync", self.asking(lambda descriptor: None))
        opened = io.open

        def opening(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            stream = opened(file, mode, *arguments, **options)
            return File(stream, self) if mode in ("xb", "ab", "a+b") else stream

        monkeypatch.setattr(io, "open", opening)

    def asking(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def ask(*arguments: Any, **options: Any) -> Any:
            self.ask()
            return function(*arguments, **options)

        return ask

    def ask(self, half: Callable[[], Any] = lambda: None) -> None:
        self.count += 1
        if self.count == self.at:
            half()
        if self.fault == "kill" and 0 < self.at <= self.count:
            raise Killed
        if self.count == self.at:
            number = (errno.EIO, errno.ENOSPC)[self.at % 2]
            raise OSError(number, os.strerror(number))

    def failing(self, fault: str, at: int, function: Callable[[], Any]) -> str:
        """What is said of the fault at this request of the function's; "" where it can do without."""
        self.count, self.at, self.fault = 0, at, fault
        try:
            function()
        except Killed:
            return "killed"
        except BadInput as error:
            assert error.exit_code == 1
            assert "Input/output error" in str(error) or "No space left on device" in str(error)
            return str(error)
        finally:
            self.at = 0
        return ""


class File:
    """An open file whose writes are requests."""

    def __init__(self, stream: Any, system: System) -> None:
        self.stream, self.system = stream, system

    def __enter__(self) -> File:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stream.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, data: Any) -> None:
        self.system.ask(half=lambda: self.stream.write(bytes(data)[: len(bytes(data)) // 2]))
        self.stream.write(data)

    def writelines(self, parts: Iterable[Any]) -> None:
        for part in parts:
            self.write(part)


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> System:
    def draw(folder: Path, histories: object) -> None:
        for name in ("curves.png", "curves.svg"):
            write_atomically(folder / name, name)

    monkeypatch.setattr(curves, "draw", draw)
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0)  # a checkpoint after every step
    return System(monkeypatch)


def check_faults(
    backend: str, system: System, fault: str, begun: Path | None, folder: Path, points: int = 0
) -> None:
    """Break a run, or the rest of one that has begun, at all its requests or at some; go on each time."""
    data = tiny_data(**SHORT)
    run = settings(backend, data, epochs=1, ema=0.5)

    def fresh(name: str) -> Path:
        return Path(shutil.copytree(begun, folder / name)) if begun else folder / name

    def go(out: Path) -> None:
        train(run, data, out, resume=is_run(out))

    whole = fresh("whole")
    system.count = 0
    go(whole)
    count = system.count
    history = without_times(read_history(whole))
    expected = {name: load_checkpoint(whole / f"{name}.safetensors")[1] for name in ("last", "best", "ema")}
    for at in range(1, count + 1, count // points if points else 1):
        out = fresh(f"run {at}")
        said = system.failing(fault, at, lambda: go(out))  # noqa: B023
        assert "\n" not in said
        if said and fault == "error":
            resumable = is_run(out)
            assert ("go on with: the command" in said) == resumable, said
            assert resumable or not out.exists()
        go(out)
        where = f"{fault} at request {at}"
        assert {path.name for path in out.iterdir()} == set(FILES), where
        assert without_times(read_history(out)) == history, where
        for name, weights in expected.items():
            assert_identical(load_checkpoint(out / f"{name}.safetensors")[1], weights)
        shutil.rmtree(out)


@pytest.mark.parametrize("fault", ["error", "kill"])
def test_a_fault_at_any_write_of_a_run_costs_nothing(tmp_path: Path, system: System, fault: str) -> None:
    check_faults("oracle", system, fault, None, tmp_path)


@pytest.mark.parametrize("fault", ["error", "kill"])
def test_a_fault_at_any_write_of_a_run_that_goes_on_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: System, fault: str
) -> None:
    data = tiny_data(**SHORT)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        Once(patch, 1, lambda _: signal.raise_signal(signal.SIGTERM))
        train(settings("oracle", data, epochs=1, ema=0.5), data, tmp_path / "begun")
    (tmp_path / "begun" / "last.safetensors").write_bytes(b"")
    (tmp_path / "begun" / ".last.safetensors.0123abcd").write_bytes(b"half")
    check_faults("oracle", system, fault, tmp_path / "begun", tmp_path)


def test_a_kill_at_some_writes_costs_nothing_in_any_backend(
    backend: str, tmp_path: Path, system: System
) -> None:
    check_faults(backend, system, "kill", None, tmp_path, points=3)
