"""Runs on disk after power cuts and flipped bits, and without links. The oracle computes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from common import initial_weights, load_checkpoint, training
from common.architecture import Architecture
from common.cli.options import open_checkpoint
from common.errors import BadInput, Stopped
from common.training import curves
from common.training.progress import show_runs
from common.training.runs import Checkpoint, Position, Record, Run, _fields_sha256, read_history
from common.training.settings import Settings
from common.weights import Weights, load_metadata, read_with_sums, tensors_sha256, write_with_sums
from tests.damage import flips
from tests.helpers import one_line
from tests.test_files import no_links
from tests.training.running import TINY, Once, assert_identical, settings, tiny_data, train, without_times

pytestmark = pytest.mark.usefixtures("sample_only")


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@cache
def trained(folder: Path) -> tuple[Weights, list[Record]]:
    """The weights and the history of the run that the others are part of: two epochs of five steps."""
    data = tiny_data()
    model, run = train(settings("oracle", data), data, folder / "whole")
    return model.weights(), without_times(run.history)


@pytest.fixture
def whole(module_folder: Path) -> tuple[Weights, list[Record]]:
    return trained(module_folder)


@pytest.fixture
def stopped(module_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that a signal ended after step 9, ten lines of history."""
    folder = module_folder / "stopped"
    if not folder.exists():
        data = tiny_data()
        with monkeypatch.context() as patch, pytest.raises(Stopped):
            Once(patch, 9, lambda _: signal.raise_signal(signal.SIGINT))
            train(settings("oracle", data), data, folder)
    return Path(shutil.copytree(folder, tmp_path / "run"))


def go_on(folder: Path) -> tuple[Weights, list[Record]]:
    data = tiny_data()
    model, run = train(settings("oracle", data), data, folder, resume=True)
    assert without_times(read_history(folder)) == without_times(run.history)
    return model.weights(), without_times(run.history)


# Power cuts


class Disk:
    """What of a folder is on disk for sure, whenever the power goes, and what may be.

    A file's content is there once the file is synced, a name once its folder is. `look` is called before
    every sync and rename with a folder as it may come out of a power cut or a kill at that moment.
    """

    def __init__(self, folder: Path, scratch: Path, look: Callable[[Path], None]) -> None:
        self.folder, self.scratch, self.look = folder, scratch, look
        self.names: dict[str, int] = {}
        self.renamed: list[tuple[str, int]] = []  # since the folder was synced
        self.contents: dict[int, bytes] = {}
        self.open: list[Any] = []  # no file's number is given to another meanwhile
        self.fsync, self.replace = os.fsync, os.replace

    def sync(self, descriptor: int) -> None:
        self.cut()
        self.fsync(descriptor)
        if os.path.samestat(os.fstat(descriptor), self.folder.stat()):
            self.names = {path.name: path.stat().st_ino for path in self.folder.iterdir()}
            self.renamed = []
        for path in self.folder.iterdir():
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                self.open.append(path.open("rb"))
                self.contents[path.stat().st_ino] = path.read_bytes()

    def rename(self, source: Path, target: Path) -> None:
        self.cut()
        self.renamed.append((target.name, source.stat().st_ino))
        self.replace(source, target)

    def cut(self) -> None:
        """A power cut: of the renames not synced some have happened, of the writes half. Or a kill."""
        if not self.folder.is_dir():
            return
        first = [self.renamed[:n] for n in range(len(self.renamed) + 1)]
        alone = [[rename] for rename in self.renamed]
        for renamed in first + alone:
            for torn in (False, True):
                self.show({n: self.content(i, torn) for n, i in {**self.names, **dict(renamed)}.items()})
        self.show({path.name: path.read_bytes() for path in self.folder.iterdir()})

    def content(self, number: int, torn: bool) -> bytes:
        synced = self.contents.get(number, b"")
        for path in self.folder.iterdir() if torn else []:
            if path.stat().st_ino == number and (unsynced := path.read_bytes()[len(synced) :]):
                return synced + unsynced[: len(unsynced) // 2] + bytes(20)
        return synced

    def show(self, files: dict[str, bytes]) -> None:
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir()
        for name, content in files.items():
            (self.scratch / name).write_bytes(content)
        self.look(self.scratch)


@pytest.mark.parametrize("links", [True, False])
def test_a_power_cut_at_any_moment_leaves_a_whole_checkpoint_and_its_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    saved: dict[int, tuple[Weights, Weights]] = {}
    promised = []  # what a save that is over says is on disk
    positions = set()
    save = Run.save

    def saving(run: Run, weights: Weights, state: Weights, position: Position) -> None:
        saved[position.step] = deepcopy((weights, state))
        save(run, weights, state, position)
        promised.append(position.step)

    def look(folder: Path) -> None:
        if not promised and not (folder / "run.json").exists():
            return
        run, checkpoint = Run.load(folder)
        if checkpoint is None:
            assert not promised
            return
        position = checkpoint.position
        positions.add((position.step, position.epoch))
        assert position.step >= promised[-1] if promised else position.step == 0
        assert "history" not in checkpoint.warning
        for event, last in (("step", position.step), ("epoch", position.epoch)):
            found = [record[event] for record in run.history if record["event"] == event]
            assert found == list(range(1, last + 1))
        for found, expected in zip((checkpoint.weights, checkpoint.state), saved[position.step], strict=True):
            assert_identical(found, {name: expected[name] for name in found})
        if position.best_accuracy >= 0:
            load_checkpoint(folder / "best.safetensors")

    disk = Disk(tmp_path / "run", tmp_path / "scratch", look)
    monkeypatch.setattr(Run, "save", saving)
    monkeypatch.setattr("common.training.loop.SAVE_SECONDS", 0)
    monkeypatch.setattr(os, "fsync", disk.sync)
    monkeypatch.setattr(os, "replace", disk.rename)
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    data = tiny_data(limit_train=16)
    train(settings("oracle", data), data, tmp_path / "run")
    disk.cut()
    assert positions == {(0, 0), (1, 0), (2, 0), (2, 1), (3, 1), (4, 1), (4, 2)}


def test_a_run_goes_on_to_the_same_bit_without_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple[Weights, list[Record]]
) -> None:
    monkeypatch.setattr(os, "link", no_links)
    data = tiny_data()
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        Once(patch, 9, lambda _: signal.raise_signal(signal.SIGINT))
        train(settings("oracle", data), data, tmp_path / "run")
    (tmp_path / "run" / "last.safetensors").write_bytes(b"")
    weights, history = go_on(tmp_path / "run")
    assert_identical(weights, whole[0])
    assert history == whole[1]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO])
def test_room_is_asked_for_only_where_it_is_lacking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    data = tiny_data()
    with monkeypatch.context() as patch:
        Once(patch, 9, lambda _: patch.setattr("os.replace", fail))
        with pytest.raises(BadInput) as error:
            train(settings("oracle", data), data, tmp_path / "run")
    one_line(error, os.strerror(number), "has the checkpoint of step 5", "go on with: the command")
    assert "make room" not in str(error.value)


# Flipped bits


def content(run: Run, checkpoint: Checkpoint | None) -> Any:
    """All that matters of a run that is gone on with."""
    assert checkpoint
    arrays = [tensors_sha256(arrays) for arrays in (checkpoint.weights, checkpoint.state)]
    return run.settings, run.history, checkpoint.position, arrays


def unnoticed(look: Callable[[], Any], expected: Any) -> bool:
    """Whether something else than was written is taken for good. What is noticed must be said in one line."""
    try:
        found, warning = look()
    except BadInput as error:
        found, warning = None, str(error)
    assert "\n" not in warning
    return not warning and found != expected


RUN_FILES = (
    *("run.json", "history.jsonl", "best.safetensors"),
    *(f"{n}.{k}" for n in ("last", "previous") for k in ("safetensors", "optimizer.safetensors")),
)


def test_no_flipped_bit_of_a_run_goes_unnoticed(stopped: Path) -> None:
    def resume() -> Any:
        run, checkpoint = Run.load(stopped)
        return content(run, checkpoint), checkpoint.warning if checkpoint else ""

    def evaluate() -> Any:
        opened = open_checkpoint(stopped, None)
        return (opened.arch, tensors_sha256(opened.weights), opened.preparation), ""

    looks = [(look, look()[0]) for look in (resume, evaluate)]
    assert {path.name for path in stopped.iterdir()} == set(RUN_FILES)
    for name in RUN_FILES:
        for where in flips(stopped / name, 45):
            assert not any(unnoticed(look, expected) for look, expected in looks), where


@pytest.mark.parametrize(
    ("file", "words"),
    [("run.json", "run.json is damaged"), ("history.jsonl", "is not what was written")],
)
def test_another_number_is_said(stopped: Path, file: str, words: str) -> None:
    path = stopped / file
    path.write_text(path.read_text().replace('"lr": 0.05', '"lr": 0.04'))
    try:
        _, checkpoint = Run.load(stopped)
        assert checkpoint and words in checkpoint.warning
    except BadInput as error:
        assert words in str(error) and "wrong SHA-256" in str(error)


# Histories with a gap


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (slice(7, 10), "has no line of step 7–9 ("),
        (slice(1, 9, 2), "has no line of step 2, 4, 7 and epoch 1 ("),
        (slice(5, 6), "has no line of epoch 1 ("),
        (slice(None), "has no line of step 1–9 and epoch 1 ("),
    ],
)
def test_a_gap_in_the_history_is_said_and_the_run_goes_on(
    tmp_path: Path,
    stopped: Path,
    whole: tuple[Weights, list[Record]],
    capsys: pytest.CaptureFixture[str],
    lines: slice,
    words: str,
) -> None:
    path = stopped / "history.jsonl"
    kept = path.read_text().splitlines(keepends=True)
    del kept[lines]
    path.write_text("".join(kept))
    weights, history = go_on(stopped)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "history.jsonl" in line)
    assert line.startswith(str(path)) and words in line
    assert_identical(weights, whole[0])
    rest = list(whole[1])
    del rest[slice(*lines.indices(10))]
    assert history == rest


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("kept", [slice(3, None), slice(0, 7, 3), slice(0)])
def test_histories_with_gaps_are_shown(
    tmp_path: Path, stopped: Path, capsys: pytest.CaptureFixture[str], kept: slice
) -> None:
    history = read_history(stopped)
    for histories in ({"a": history, "b": history[kept]}, {"a": history[kept], "b": history}):
        show_runs(histories)
        assert "loss of a step: at most 0.0e+00 apart" in capsys.readouterr().out
    curves.draw(tmp_path, histories)


def test_a_gap_in_a_finished_run_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tiny_data(limit_train=16)
    run = settings("all", data, epochs=1)

    def train_one(own: Settings, folder: Path, resume: bool) -> list[dict[str, Any]]:
        return train(own, data, folder, resume)[1].history

    training.train_all(train_one, ["oracle"], data, run, tmp_path, False)
    path = tmp_path / "oracle" / "history.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    capsys.readouterr()
    training.train_all(train_one, ["oracle"], data, run, tmp_path, True)
    assert f"{path} has no line of step 1 (" in capsys.readouterr().out


def test_a_damaged_line_is_left_out_and_said(stopped: Path) -> None:
    path = stopped / "history.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    for old, new in (('"step"', '"stup"'), ('"loss"', '"lass"'), ("{", "z"), ('"loss": ', '"loss": "')):
        path.write_text("".join([*lines[:2], lines[2].replace(old, new, 1), *lines[3:]]))
        _, checkpoint = Run.load(stopped)
        assert checkpoint and "has no line of step 3 (" in checkpoint.warning


def test_files_of_two_checkpoints_are_not_taken_for_one(stopped: Path) -> None:
    shutil.copy(stopped / "previous.optimizer.safetensors", stopped / "last.optimizer.safetensors")
    _, checkpoint = Run.load(stopped)
    assert checkpoint and checkpoint.name == "previous"
    assert "do not belong together; going on from the one before" in checkpoint.warning


POSITIONS = {
    "nothing": "",
    "a list": "[]",
    "null": "null",
    "text": '{"step": "3"}',
    "below 0": '{"step": -1}',
    "half a step": '{"step": 1.5}',
    "true": '{"step": true}',
    "another name": '{"steps": 3}',
    "a name twice": '{"step": 1, "step": 2}',
    "NaN": '{"seconds": NaN}',
    "infinity": '{"loss_sum": 1e999}',
    "thousands of digits": f'{{"step": {"9" * 5000}}}',
    "depth": "[" * 100_000,
}


@pytest.mark.parametrize("case", POSITIONS)
def test_a_position_that_is_none_is_one_line(tmp_path: Path, case: str) -> None:
    run = with_position(tmp_path / "run", POSITIONS[case])
    with pytest.raises(BadInput) as error:
        Run.load(run.folder)
    one_line(error, "last.optimizer.safetensors is damaged")


def test_a_position_far_away_costs_nothing(tmp_path: Path) -> None:
    run = with_position(tmp_path / "run", '{"step": 1000000000000, "epoch": 1000000000000}')
    _, checkpoint = Run.load(run.folder)
    assert checkpoint and "has no line of step 1–1000000000000" in checkpoint.warning


def with_position(folder: Path, text: str) -> Run:
    """A run whose checkpoint says this of its position."""
    run = Run.start(folder, settings("oracle", tiny_data()))
    weights = initial_weights(run.arch)
    run.save(weights, weights, Position())
    state = folder / "last.optimizer.safetensors"
    write_with_sums(state, weights, load_metadata(state) | {"position": text})
    return run


# Files that are lost, or another run's


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "lost",
    [
        ("*.optimizer.*", "previous.*"),
        ("*.optimizer.*", "previous.*", "history.jsonl"),
        ("*.optimizer.*", "previous.*", "best.*"),
        ("last.*", "previous.*"),
        ("last.*", "previous.*", "best.*", "history.jsonl"),
    ],
    ids=" ".join,
)
def test_a_run_without_its_checkpoints_is_not_begun_again(stopped: Path, lost: tuple[str, ...]) -> None:
    for path in [path for pattern in lost for path in stopped.glob(pattern)]:
        path.unlink(missing_ok=True)
    before = contents(stopped)
    with pytest.raises(BadInput) as error:
        go_on(stopped)
    one_line(error, f"no whole checkpoint in {stopped}", "start a new run")
    assert error.value.exit_code == 2
    assert contents(stopped) == before


def test_a_run_that_is_killed_twice_in_its_first_checkpoint_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple[Weights, list[Record]]
) -> None:
    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    data = tiny_data()
    for resume in (False, True, True):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("common.training.runs.write_with_sums", killed)
            train(settings("oracle", data), data, tmp_path / "run", resume)
    weights, history = go_on(tmp_path / "run")
    assert_identical(weights, whole[0])
    assert history == whole[1]


OTHERS: dict[str, dict[str, Any]] = {
    "epochs": {"epochs": 3},
    "seed": {"seed": 1},
    "lr": {"lr": 0.06},
    "data": {"limit_val": 16},
    "architecture": {"arch": Architecture(((1, 6),), stem_channels=4)},
    "conventions": {"arch": Architecture(((1, 4),), stem_channels=4, epsilon=1e-3)},
}


@pytest.fixture(params=OTHERS)
def other(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another run, stopped as late."""
    options = dict(OTHERS[request.param])
    arch = options.pop("arch", TINY)
    data = tiny_data(**{name: options.pop(name) for name in ("seed", "limit_val") if name in options})
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        Once(patch, 9, lambda _: signal.raise_signal(signal.SIGINT))
        train(settings("oracle", data, arch, **options), data, tmp_path / "other")
    return tmp_path / "other"


def test_another_runs_checkpoint_is_not_taken(
    stopped: Path, other: Path, whole: tuple[Weights, list[Record]], capsys: pytest.CaptureFixture[str]
) -> None:
    for path in other.glob("last.*"):
        shutil.copy(path, stopped)
    weights, history = go_on(stopped)
    said = capsys.readouterr().out
    assert f"{stopped / 'last.safetensors'} is of another run" in said
    assert "going on from the one before it" in said
    assert_identical(weights, whole[0])
    assert history == whole[1]


def test_if_both_checkpoints_are_another_runs_nothing_is_touched(stopped: Path, other: Path) -> None:
    for path in (*other.glob("last.*"), *other.glob("previous.*")):
        shutil.copy(path, stopped)
    before = contents(stopped)
    with pytest.raises(BadInput) as error:
        go_on(stopped)
    one_line(error, "last.safetensors is of another run", "previous.safetensors is of another run")
    assert contents(stopped) == before


def test_another_runs_best_weights_are_not_taken(
    stopped: Path, other: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(other / "best.safetensors", stopped)
    with pytest.raises(BadInput) as error:
        open_checkpoint(stopped, None)
    one_line(error, "best.safetensors is of another run")
    weights, _ = go_on(stopped)
    said = capsys.readouterr().out
    assert "best.safetensors is of another run" in said and "the next epoch's weights take that place" in said
    assert_identical(load_checkpoint(stopped / "best.safetensors")[1], weights)
    shutil.copy(other / "best.safetensors", stopped)
    go_on(stopped)  # finished
    said = capsys.readouterr().out
    assert "best.safetensors is of another run" in said and "next epoch" not in said


def test_another_runs_history_is_said(
    stopped: Path, other: Path, whole: tuple[Weights, list[Record]], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(other / "history.jsonl", stopped)
    weights, _ = go_on(stopped)
    assert "history.jsonl is not what was written" in capsys.readouterr().out
    assert_identical(weights, whole[0])


def test_settings_changed_by_hand_with_their_sum_are_not_those_of_the_checkpoints(stopped: Path) -> None:
    fields = json.loads((stopped / "run.json").read_text())
    del fields["sha256"]
    fields["lr"] = 0.04
    fields["sha256"] = _fields_sha256(fields)
    (stopped / "run.json").write_text(json.dumps(fields))
    data = tiny_data()
    with pytest.raises(BadInput) as error:
        train(settings("oracle", data, lr=0.04), data, stopped, resume=True)
    one_line(error, "is of another run than", "run.json")


def as_before(path: Path) -> None:
    """Let a file of a run be what releases wrote before its checkpoints said whose they are."""
    if path.name == "run.json":
        fields = json.loads(path.read_text())
        del fields["sha256"], fields["format"]
        path.write_text(json.dumps(fields | {"sha256": _fields_sha256(fields)}))
    elif path.suffix == ".safetensors":
        tensors, said = read_with_sums(path)
        del said["run_sha256"]
        write_with_sums(path, tensors, said)


def test_an_earlier_releases_run_goes_on(stopped: Path, whole: tuple[Weights, list[Record]]) -> None:
    for path in stopped.iterdir():
        as_before(path)
    _, checkpoint = Run.load(stopped)
    assert checkpoint and checkpoint.name == "last" and not checkpoint.warning
    weights, history = go_on(stopped)
    assert_identical(weights, whole[0])
    assert history == whole[1]
    open_checkpoint(stopped, None)


def test_a_checkpoint_that_does_not_say_whose_it_is_is_not_taken(stopped: Path) -> None:
    for name in ("last.safetensors", "previous.optimizer.safetensors"):
        as_before(stopped / name)
    with pytest.raises(BadInput) as error:
        go_on(stopped)
    one_line(error, "last.safetensors is of another run", "previous.optimizer.safetensors is of another run")
