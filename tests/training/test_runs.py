"""Runs on disk: stopped, damaged, refused, and what they leave behind. The oracle computes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common import initial_weights, load_checkpoint, save_checkpoint, training
from common.backend import load_backend
from common.data import FashionMNIST
from common.errors import BadInput, Stopped, telling_how_to_resume
from common.files import cannot_write
from common.processes.group import Group
from common.training import curves, loop
from common.training.runs import FILES, Position, Run, held, is_finished, is_run, read_history, read_settings
from common.training.settings import Settings
from common.weights import Weights, read_checkpoint
from tests.helpers import deviation, one_line
from tests.training.running import (
    TINY,
    Once,
    assert_identical,
    losses,
    settings,
    tiny_data,
    train,
    without_times,
)

pytestmark = pytest.mark.usefixtures("sample_only")


def test_the_loop_is_that_of_steps_taken_by_hand(tmp_path: Path) -> None:
    data = tiny_data()
    run = settings("oracle", data, precision="float64", warmup_epochs=1, epochs=3)
    model, found = train(run, data, tmp_path / "run")
    by_hand = load_backend("oracle").build(TINY)
    by_hand.load_weights(initial_weights(TINY))
    expected = []
    for epoch in range(3):
        for i, (x, y) in enumerate(data.train_dataloader(epoch, dtype="float64")):
            step = 5 * epoch + i
            lr = 0.05 * (step + 1) / 5 if epoch == 0 else 0.025 * (1 + np.cos(np.pi * (step - 5) / 10))
            expected.append(by_hand.train_step(x, y, lr, 0.9, 1e-4))
    np.testing.assert_allclose(losses(found.history), expected, rtol=1e-14)
    assert deviation(model.weights(), by_hand.weights()) < 1e-14
    metrics = training.evaluate(by_hand, data.val_dataloader("float64"))
    x, y = (np.concatenate(arrays) for arrays in zip(*data.val_dataloader("float64"), strict=True))
    logits = by_hand.predict(x)
    assert metrics.accuracy == (logits.argmax(1) == y).mean()
    right = np.exp(logits)[np.arange(len(y)), y] / np.exp(logits).sum(1)
    assert metrics.loss == pytest.approx(-np.log(right).mean(), rel=1e-12)
    assert found.history[-1]["val_loss"] == pytest.approx(metrics.loss, rel=1e-12)


def test_a_second_signal_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(run: Run) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    Once(monkeypatch, 3, twice)
    data = tiny_data()
    with pytest.raises(KeyboardInterrupt):
        train(settings("oracle", data), data, tmp_path / "run")
    assert Run.resume(tmp_path / "run", settings("oracle", data))[1].position.step == 0


@pytest.mark.usefixtures("hangups")
def test_a_terminal_that_closes_is_a_signal_however_often_it_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(run: Run) -> None:
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)

    Once(monkeypatch, 3, twice)
    data = tiny_data()
    with pytest.raises(Stopped) as error:
        train(settings("oracle", data), data, tmp_path / "run")
    one_line(error, "stopped after step 4", "go on with: the command")
    assert error.value.exit_code == 128 + signal.SIGHUP


def test_under_nohup_a_terminal_may_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Once(monkeypatch, 3, lambda _: signal.raise_signal(signal.SIGHUP))
    data = tiny_data()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        train(settings("oracle", data), data, tmp_path / "run")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert is_finished(tmp_path / "run")


def test_a_run_in_another_thread_hears_no_signals_and_runs(tmp_path: Path) -> None:
    data = tiny_data()
    thread = threading.Thread(target=train, args=(settings("oracle", data), data, tmp_path / "run"))
    thread.start()
    thread.join()
    assert is_finished(tmp_path / "run")


def test_the_best_weights_are_the_first_of_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An equal accuracy later does not replace them."""
    data = tiny_data()
    accuracies = iter([0.25, 0.5, 0.5, 0.25, 0.75])
    evaluate, save_best, best = loop.evaluate, Run.save_best, []

    def evaluate_as_told(*arguments: Any) -> loop.Metrics:
        return replace(evaluate(*arguments), accuracy=next(accuracies))

    def saving(run: Run, weights: Weights, position: Position) -> None:
        best.append(position.epoch + 1)
        save_best(run, weights, position)

    monkeypatch.setattr(loop, "evaluate", evaluate_as_told)
    monkeypatch.setattr(Run, "save_best", saving)
    train(settings("oracle", data, epochs=5), data, tmp_path / "run")
    assert best == [1, 2, 5]


@pytest.mark.parametrize("workers", [2, 3])
def test_losses_of_several_workers_are_put_in_the_order_of_the_batches(workers: int) -> None:
    """Batches are dealt out in turns; added up in any other order they are not one worker's to the bit."""
    whole = [1.0, 2.0, 3.0, 4.0, 5.0]
    given = [np.zeros(0)] * workers
    meet = threading.Barrier(workers, timeout=60)

    class Worker:
        def __init__(self, rank: int) -> None:
            self.group = Group(rank, workers)

        def sum(self, values: Any) -> Any:
            given[self.group.rank] = np.asarray(values, float)
            meet.wait()
            total = np.sum(given, axis=0)
            meet.wait()
            return total

    def losses_found(rank: int) -> list[float]:
        return loop._in_turns(Worker(rank), whole[rank::workers])  # type: ignore[arg-type]

    with ThreadPoolExecutor(workers) as pool:
        assert list(pool.map(losses_found, range(workers))) == [whole] * workers


# Checkpoints that are not what they were


def stopped_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, data: FashionMNIST, lines: int = 7
) -> Settings:
    """A run of the oracle, stopped in its second epoch."""
    Once(monkeypatch, lines, lambda _: signal.raise_signal(signal.SIGINT))
    run = settings("oracle", data)
    with pytest.raises(Stopped):
        train(run, data, folder)
    return run


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "a flipped bit": lambda path: path.write_bytes(path.read_bytes()[:-9] + b"\1" + path.read_bytes()[-8:]),
    "gone": lambda path: path.unlink(),
    "another": lambda path: shutil.copyfile(str(path).replace("last", "previous"), path),
}


@pytest.mark.parametrize("file", ["last.safetensors", "last.optimizer.safetensors"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    file: str,
    damage: str,
) -> None:
    data = tiny_data()
    expected, whole = train(settings("oracle", data), data, tmp_path / "whole")
    run = stopped_run(tmp_path / "run", monkeypatch, data)
    DAMAGES[damage](tmp_path / "run" / file)
    capsys.readouterr()
    found, resumed = train(run, data, tmp_path / "run", resume=True)
    said = capsys.readouterr().out
    assert "going on from the one before it" in said
    assert "going on after step 5" in said
    assert_identical(found.weights(), expected.weights())
    assert without_times(resumed.history) == without_times(whole.history)


def test_the_good_checkpoint_outlives_a_second_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_data()
    run = stopped_run(tmp_path / "run", monkeypatch, data)
    DAMAGES["empty"](tmp_path / "run" / "last.safetensors")
    resumed, checkpoint = Run.resume(tmp_path / "run", run)
    assert checkpoint and checkpoint.warning
    resumed.go_on(checkpoint)
    for _ in range(2):  # it has the last one's place now
        _, again = Run.resume(tmp_path / "run", run)
        assert again and not again.warning
        assert again.position == checkpoint.position


def test_no_whole_checkpoint_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_data()
    run = stopped_run(tmp_path / "run", monkeypatch, data)
    for name in ("last", "previous"):
        DAMAGES["truncated"](tmp_path / "run" / f"{name}.safetensors")
    with pytest.raises(BadInput) as error:
        train(run, data, tmp_path / "run", resume=True)
    one_line(error, "no whole checkpoint", "last.safetensors", "previous.safetensors", "start a new run")


def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path: Path) -> None:
    data = tiny_data()
    run = settings("oracle", data)
    Run.start(tmp_path / "run", run)
    found, _ = train(run, data, tmp_path / "run", resume=True)
    expected, _ = train(run, data, tmp_path / "whole")
    assert_identical(found.weights(), expected.weights())


def test_a_line_that_was_being_written_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_data()
    run = stopped_run(tmp_path / "run", monkeypatch, data)
    with (tmp_path / "run" / "history.jsonl").open("a") as file:
        file.write('{"event": "step", "epo')
    _, whole = train(run, data, tmp_path / "whole")
    train(run, data, tmp_path / "run", resume=True)
    assert without_times(read_history(tmp_path / "run")) == without_times(whole.history)


# What cannot go on


def test_resuming_with_other_settings_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_data()
    run = stopped_run(tmp_path / "run", monkeypatch, data)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(BadInput) as error:
        train(replace(run, lr=0.1, schedule="constant"), data, tmp_path / "run", resume=True)
    one_line(error, "other settings", "lr is 0.1, not 0.05", "schedule is constant, not cosine")
    assert "momentum" not in str(error.value)
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_of_a_finished_run_the_curves_are_drawn_again_and_a_run_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr(curves, "draw", lambda *arguments: drawn.append(arguments))
    data = tiny_data()
    run = settings("oracle", data)
    model, found = train(run, data, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    again, _ = train(run, data, tmp_path / "run", resume=True)
    assert_identical(again.weights(), model.weights())
    assert drawn[-1] == (tmp_path / "run", {"oracle": found.history})
    assert len(drawn) == 3
    with pytest.raises(BadInput) as error:
        train(run, data, tmp_path / "run")
    one_line(error, "already holds a run", "--resume")
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_disk_that_is_full_when_curves_are_drawn_costs_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    def draw(folder: Path, histories: dict[str, list[dict[str, Any]]]) -> None:
        drawn.append(histories["oracle"][-1]["epoch"])
        if len(drawn) == epoch:
            raise cannot_write(folder / "curves.png", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    drawn: list[int] = []
    monkeypatch.setattr(curves, "draw", draw)
    data = tiny_data()
    run = settings("oracle", data)
    with pytest.raises(BadInput) as error:
        train(run, data, tmp_path / "run")
    assert error.value.exit_code == 1
    one_line(error, "curves.png: No space left", f"checkpoint of step {5 * epoch}", "go on with: the command")
    train(run, data, tmp_path / "run", resume=True)
    assert is_finished(tmp_path / "run")
    assert drawn == [*range(1, epoch + 1), 2]


def test_runs_of_all_backends_that_are_cut_short_go_on_and_are_shown_when_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def train_one(own: Settings, folder: Path, resume: bool) -> list[dict[str, Any]]:
        return train(own, data, folder, resume)[1].history

    data = tiny_data(limit_train=16)
    run = settings("all", data, epochs=1)
    with monkeypatch.context() as patch, pytest.raises(BadInput):
        Once(patch, 2, lambda _: patch.setattr(os, "replace", full))
        training.train_all(train_one, ["oracle"], data, run, tmp_path / "all", False)
    found = [training.train_all(train_one, ["oracle"], data, run, tmp_path / "all", True) for _ in range(2)]
    assert found[0] == found[1] and len(found[0]["oracle"]) == 3
    assert capsys.readouterr().out.count("loss of a step: at most") == 2


@pytest.mark.parametrize("write", range(1, 6))  # history, run.json, weights, state, and then a finer one
def test_a_disk_that_is_full_from_the_start_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    replace, written = os.replace, []

    def full(source: Path, target: Path) -> None:
        written.append(target)
        if len(written) >= write:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    data = tiny_data()
    run = settings("oracle", data)
    with monkeypatch.context() as patch, pytest.raises(BadInput) as error:
        patch.setattr(os, "replace", full)
        train(run, data, tmp_path / "run")
    assert error.value.exit_code == 1
    one_line(error, "No space left", "make room")
    resumable = write > 2
    assert ("go on with: the command" in str(error.value)) == resumable == is_run(tmp_path / "run")
    assert resumable or not (tmp_path / "run").exists()
    train(run, data, tmp_path / "run", resumable)
    assert is_finished(tmp_path / "run")


# Who may write in a folder


@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_in_use_is_left_to_who_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    refused: list[str] = []

    def another(run: Run) -> None:
        before = {path: path.read_bytes() for path in run.folder.iterdir()}
        with pytest.raises(BadInput) as error:
            train(run.settings, tiny_data(), run.folder, resume)
        one_line(error, f"{run.folder} is in use: process {os.getpid()} on ", "wait for its end")
        assert {path: path.read_bytes() for path in run.folder.iterdir()} == before
        refused.append(str(error.value))

    Once(monkeypatch, 3, another)
    data = tiny_data()
    train(settings("oracle", data), data, tmp_path / "run")
    assert refused and not (tmp_path / "run" / ".lock").exists()


def test_of_two_new_runs_in_one_folder_one_begins(tmp_path: Path) -> None:
    data = tiny_data()
    run = settings("oracle", data)

    def begin(_: int) -> str:
        try:
            train(run, data, tmp_path / "run")
        except BadInput as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(4) as pool:
        said = sorted(pool.map(begin, range(4)))
    assert said[0] == "" and all("is in use" in line or "already holds a run" in line for line in said[1:])
    assert [record["step"] for record in read_history(tmp_path / "run") if record["event"] == "step"] == list(
        range(1, 11)
    )


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = "import sys, time; from common.training.runs import held\n"
    code += "with held(sys.argv[1]): print(1, flush=True); time.sleep(99)"
    holder = subprocess.Popen([sys.executable, "-c", code, tmp_path / "run"], stdout=subprocess.PIPE)
    assert holder.stdout and holder.stdout.readline()
    with pytest.raises(BadInput) as error, held(tmp_path / "run"):
        pass
    one_line(error, f"process {holder.pid} on ")
    holder.kill()
    holder.communicate()
    assert (tmp_path / "run" / ".lock").exists()
    data = tiny_data()
    train(settings("oracle", data), data, tmp_path / "run")
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.parametrize("name", ["best.safetensors", "history.jsonl", "curves.png"])
def test_a_new_run_writes_over_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("mine")
    data = tiny_data()
    with pytest.raises(BadInput) as error:
        train(settings("oracle", data), data, tmp_path / "run")
    one_line(error, "is no run, but has", name, "choose another folder")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [name]


def test_a_new_run_may_have_files_of_its_user_beside_it(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "train.log").write_text("mine")
    data = tiny_data()
    train(settings("oracle", data), data, tmp_path / "run")
    assert (tmp_path / "run" / "train.log").read_text() == "mine"


def test_what_a_killed_write_left_is_removed_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tiny_data()
    run = stopped_run(tmp_path / "run", monkeypatch, data)
    left = [f".{name}.0123abcd" for name in FILES]
    others = [".notes.txt.0123abcd", ".last.safetensors.copy", ".last.safetensors.0123abcde", "mine.txt"]
    for name in (*left, *others):
        (tmp_path / "run" / name).write_text("half")
    train(run, data, tmp_path / "run", resume=True)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert not names & set(left) and set(others) < names


def test_a_start_that_was_killed_is_started_again(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in ("history.jsonl", ".run.json.0123abcd", ".lock"):
        (tmp_path / "run" / name).touch()
    data = tiny_data()
    train(settings("oracle", data), data, tmp_path / "run")
    assert is_finished(tmp_path / "run")


def test_what_is_not_a_run_is_not_resumed(tmp_path: Path) -> None:
    data = tiny_data()
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(FileNotFoundError) as error:
            train(settings("oracle", data), data, folder, resume=True)
        one_line(error, "is not a run")
    (tmp_path / "run.json").write_text('{"backend": "torch"}')
    with pytest.raises(BadInput) as error:
        train(settings("oracle", data), data, tmp_path, resume=True)
    one_line(error, "run.json is damaged")


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = stopped_run(tmp_path / "run", monkeypatch, tiny_data())
    found, checkpoint = Run.resume(tmp_path / "run", run)
    assert checkpoint
    position = replace(checkpoint.position, step=9)
    for save in (
        lambda weights: found.save(weights, {}, position),
        lambda weights: found.save_best(weights, position),
    ):
        with pytest.raises(Stopped) as error:
            save({**checkpoint.weights, "last.bias": np.full(10, np.inf)})
        one_line(error, "the weights are not finite after step 9", "has the checkpoint of step 7")


@pytest.mark.parametrize("disaster", ["disk full", "folder removed"])
def test_a_folder_that_cannot_be_written_any_more_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disaster: str
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def act(run: Run) -> None:
        if disaster == "disk full":
            patch.setattr("common.files.os.fsync", full)
        else:
            shutil.rmtree(run.folder)

    data = tiny_data()
    run = settings("oracle", data)
    with monkeypatch.context() as patch:
        Once(patch, 9, act)
        with pytest.raises(BadInput) as error:
            train(run, data, tmp_path / "run")
    assert error.value.exit_code == 1
    if disaster == "disk full":
        one_line(error, "No space left", "has the checkpoint of step 5", "go on with: the command")
        assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]
        found, _ = train(run, data, tmp_path / "run", resume=True)
        expected, _ = train(run, data, tmp_path / "whole")
        assert_identical(found.weights(), expected.weights())
    else:
        one_line(error, "cannot write", "has no checkpoint any more")


def test_a_disk_that_is_full_for_event_files_ends_the_run_as_any_file_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboardX.event_file_writer import EventsWriter

    def full(writer: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    data = tiny_data()
    run = settings("oracle", data)
    with monkeypatch.context() as patch, pytest.raises(BadInput) as error:
        Once(patch, 7, lambda _: patch.setattr(EventsWriter, "flush", full))
        train(run, data, tmp_path / "run", tensorboard=True)
    one_line(error, "tensorboard: No space left", "has the checkpoint of step 5", "go on with: the command")
    train(run, data, tmp_path / "run", resume=True, tensorboard=True)
    assert is_finished(tmp_path / "run")


# What a run leaves behind


@pytest.mark.usefixtures("drawn")
def test_a_run_leaves_history_checkpoints_and_curves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tiny_data()
    run = settings("oracle", data)
    model, found = train(run, data, tmp_path / "run", tensorboard=True)
    folder = tmp_path / "run"
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *("run.json", "history.jsonl", "curves.png", "curves.svg", "tensorboard"),
        *(f"{n}.{k}" for n in ("last", "previous") for k in ("safetensors", "optimizer.safetensors")),
        "best.safetensors",
    }
    assert read_settings(folder) == run
    arch, last = load_checkpoint(folder / "last.safetensors")
    assert arch == TINY
    assert_identical(last, model.weights())

    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert history == found.history
    steps = [record for record in history if record["event"] == "step"]
    epochs = [record for record in history if record["event"] == "epoch"]
    assert [record["step"] for record in steps] == list(range(1, 11))
    assert [record["epoch"] for record in steps] == [1] * 5 + [2] * 5
    assert [record["step"] for record in epochs] == [5, 10]
    assert set(steps[0]) == {"event", "epoch", "step", "lr", "loss", "accuracy"}
    assert set(epochs[0]) == {
        *("event", "epoch", "step", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy"),
        *("images_per_second", "seconds"),
    }
    counts = [8, 8, 8, 8, 4]
    assert epochs[0]["train_loss"] == pytest.approx(
        np.average([r["loss"] for r in steps[:5]], weights=counts)
    )
    assert epochs[1]["train_accuracy"] == pytest.approx(
        np.average([r["accuracy"] for r in steps[5:]], weights=counts)
    )

    best = max(epochs, key=lambda record: record["val_accuracy"])
    model.load_weights(load_checkpoint(folder / "best.safetensors")[1])
    assert training.evaluate(model, data.val_dataloader("float64")).accuracy == best["val_accuracy"]

    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder / "curves.svg").read_text()
    (events,) = (folder / "tensorboard").iterdir()
    assert b"epoch/val_accuracy" in events.read_bytes()

    lines = capsys.readouterr().out.splitlines()
    assert "36 training and 20 validation images at 28×28" in lines[0]
    assert [line.split("  ")[0] for line in lines[1:3]] == ["epoch 1/2", "epoch 2/2"]
    assert f"best val accuracy {best['val_accuracy']:.4f}" in lines[3]
    assert "val accuracy" in lines[1] and "images/s" in lines[1]


def test_the_history_is_there_as_it_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    Once(monkeypatch, 3, lambda run: seen.append(len(read_history(run.folder))))
    data = tiny_data()
    train(settings("oracle", data), data, tmp_path / "run")
    assert seen == [3]


# Settings


def test_a_class_whose_name_is_no_unicode_leaves_checkpoints_whole(tmp_path: Path) -> None:
    run = settings("oracle", tiny_data(), classes=("caf\udce9", "thé"))
    save_checkpoint(tmp_path / "x.safetensors", TINY, initial_weights(TINY), run.metadata())
    _, _, said = read_checkpoint(tmp_path / "x.safetensors")
    assert json.loads(said["classes"]) == ["caf\udce9", "thé"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 0}, "epochs must be 1 or more, not 0"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"lr": float("nan")}, "lr must be above 0"),
        ({"momentum": -0.1}, "momentum must be 0 or more"),
        ({"weight_decay": float("inf")}, "weight_decay must be 0 or more"),
        ({"warmup_epochs": -1}, "warmup_epochs must be 0 or more"),
        ({"warmup_epochs": 2}, "warmup_epochs (2) leaves the cosine none of 2 epochs"),
        ({"schedule": "step"}, "unknown schedule 'step'; give constant or cosine"),
    ],
)
def test_settings_that_make_no_run_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput) as error:
        settings("oracle", tiny_data(), **options)
    one_line(error, words)


@pytest.mark.parametrize("kind", [BadInput, Stopped])
def test_how_to_go_on_is_said_only_where_a_run_can_be_resumed(kind: type[BadInput | Stopped]) -> None:
    for resumable, line in ((True, "lost; go on with: the command"), (False, "lost")):
        error = kind("lost")
        error.resumable = resumable
        with pytest.raises(kind) as raised, telling_how_to_resume("the command"):
            raise error
        assert str(raised.value) == line


def test_the_learning_rate_rises_and_falls() -> None:
    run = settings("oracle", tiny_data(), epochs=4, warmup_epochs=1, lr=0.8)
    rates = [training.learning_rate(run, step, 10) for step in range(40)]
    assert rates[:11] == pytest.approx([0.08 * k for k in range(1, 11)] + [0.8])
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[25] == pytest.approx(0.4)
    assert 0 < rates[39] < 0.01
    constant = replace(run, schedule="constant")
    assert [training.learning_rate(constant, step, 10) for step in range(10, 40)] == [0.8] * 30


def test_a_network_that_cannot_tell_the_classes_is_refused(tmp_path: Path) -> None:
    data = tiny_data()
    few = replace(TINY, num_classes=7)
    with pytest.raises(BadInput) as error:
        train(settings("oracle", data, few), data, tmp_path / "run")
    one_line(error, "10 classes", "7")
    assert not (tmp_path / "run").exists()
