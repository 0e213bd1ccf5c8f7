"""Training runs: the same in every backend, the same again, and the same after being stopped."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from common import initial_weights, load_checkpoint, training
from common.architecture import Architecture
from common.backend import BACKENDS, load_backend
from common.data import FashionMNIST
from common.errors import BadInput, Stopped
from common.runs import Run, Settings, is_finished, read_history, read_settings
from common.weights import Weights
from tests.helpers import build, deviation, one_line

TRAJECTORY = 1e-9  # float64: losses of 50 steps, and logits after them

SMALL = Architecture(stages=((1, 8), (1, 16)), stem_channels=8)
TINY = Architecture(stages=((1, 4),), stem_channels=4)


@pytest.fixture(autouse=True)
def sample_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The shipped sample, whatever else is on the machine."""
    monkeypatch.delenv("RESNET_TABS_DATA", raising=False)
    monkeypatch.setattr("common.data.DEBIAN", tmp_path / "none")
    monkeypatch.setattr("common.data._cache", lambda: tmp_path / "none")


def settings(backend: str, data: FashionMNIST, arch: Architecture = TINY, **options: Any) -> Settings:
    defaults: dict[str, Any] = {
        "epochs": 2,
        "lr": 0.05,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "schedule": "cosine",
        "warmup_epochs": 0,
        "precision": "float32",
        "device": "cpu",
    }
    return Settings(
        backend=backend, architecture=arch.to_json(), **{**defaults, **data.settings(), **options}
    )


def tiny_data(**options: Any) -> FashionMNIST:
    """Five batches, the last one smaller."""
    return FashionMNIST(
        **{"batch_size": 8, "augment": ["flip", "crop"], "limit_train": 36, "limit_val": 20, **options}
    )


def train(
    run: Settings, data: FashionMNIST, folder: Path, resume: bool = False, tensorboard: bool = False
) -> tuple[Any, Run]:
    arch = Architecture.from_json(run.architecture)

    def new_model(name: str) -> Any:
        model = build(name, arch, run.precision, run.device)
        model.load_weights(initial_weights(arch, run.seed))
        return model

    return training.train(new_model, data, run, folder, resume, "the command", tensorboard)


def losses(history: list[dict[str, Any]]) -> list[float]:
    return [record["loss"] for record in history if record["event"] == "step"]


def without_times(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in record.items() if key not in ("seconds", "images_per_second")}
        for record in history
    ]


def assert_identical(a: Weights, b: Weights) -> None:
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert a[name].tobytes() == b[name].tobytes(), name


# The same run in every backend


@cache
def fifty_steps(backend: str, device: str, folder: Path) -> tuple[list[float], NDArray]:
    """The losses of 50 steps with everything switched on, and then the logits of 100 test images."""
    data = FashionMNIST(8, augment=["flip", "crop"], limit_train=200, limit_val=100)
    run = settings(backend, data, SMALL, precision="float64", warmup_epochs=1, device=device)
    model, found = train(run, data, folder / backend)
    x = np.concatenate([x for x, _ in data.val_dataloader("float64")])
    return losses(found.history), model.predict(x)


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def test_a_run_is_that_of_the_oracle(backend: str, device: str, module_folder: Path) -> None:
    expected_losses, expected_logits = fifty_steps("oracle", "cpu", module_folder)
    found_losses, found_logits = fifty_steps(backend, device, module_folder)
    assert len(found_losses) == 50
    assert expected_losses[-1] < expected_losses[0]
    np.testing.assert_allclose(found_losses, expected_losses, rtol=TRAJECTORY)
    assert deviation(found_logits, expected_logits) <= TRAJECTORY


def test_runs_of_two_backends_are_the_same(backends: list[str], device: str, module_folder: Path) -> None:
    found = [fifty_steps(backend, device, module_folder) for backend in ["oracle", *backends]]
    for a, b in [(a, b) for i, a in enumerate(found) for b in found[:i]]:
        np.testing.assert_allclose(a[0], b[0], rtol=TRAJECTORY)
        assert deviation(a[1], b[1]) <= TRAJECTORY


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


def test_a_run_again_is_the_same_to_the_bit(backend: str, device: str, tmp_path: Path) -> None:
    data = tiny_data()
    first, second = (train(settings(backend, data, device=device), data, tmp_path / name) for name in "ab")
    if device == "cpu":  # a GPU adds in an order of its own
        assert_identical(first[0].weights(), second[0].weights())
        assert without_times(first[1].history) == without_times(second[1].history)


def test_bfloat16_learns_as_float32_does(backend: str, device: str, tmp_path: Path) -> None:
    data = tiny_data(limit_train=200, limit_val=100)
    run = settings(backend, data, SMALL, precision="bfloat16", device=device, lr=0.01)
    if backend == "mxnet":
        with pytest.raises(BadInput) as error:
            train(run, data, tmp_path / "half")
        one_line(error, "no bfloat16 in this backend", "float32 or float64")
        return
    model, half = train(run, data, tmp_path / "half")
    _, single = train(replace(run, precision="float32"), data, tmp_path / "single")
    found, expected = losses(half.history), losses(single.history)
    assert found != expected  # it is another precision
    np.testing.assert_allclose(found, expected, atol=0.25)
    assert {array.dtype for array in model.weights().values()} == {np.dtype("float32")}
    assert model.predict(np.zeros((1, 1, 28, 28))).dtype == np.float32


# Stopped and gone on with


class Once:
    """Do something when a run has logged so many lines, once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lines: int, act: Callable[[Run], None]) -> None:
        log = Run.log

        def logging(run: Run, record: dict[str, Any]) -> None:
            log(run, record)
            if len(run.history) == lines and not self.done:
                self.done = True
                act(run)

        self.done = False
        monkeypatch.setattr(Run, "log", logging)


@pytest.mark.parametrize("lines", [3, 5, 6], ids=["in an epoch", "before validation", "after validation"])
def test_a_stopped_run_goes_on_to_the_same_bit(
    backend: str, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: int
) -> None:
    if device == "gpu":
        pytest.skip("a GPU adds in an order of its own")
    data = tiny_data()
    run = settings(backend, data)
    expected, whole = train(run, data, tmp_path / "whole")
    Once(monkeypatch, lines, lambda _: signal.raise_signal(signal.SIGINT))
    with pytest.raises(Stopped) as error:
        train(run, data, tmp_path / "stopped")
    one_line(error, f"stopped after step {min(lines, 5)}", "go on with: the command")
    assert error.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    found, resumed = train(run, data, tmp_path / "stopped", resume=True)
    assert_identical(found.weights(), expected.weights())
    assert without_times(resumed.history) == without_times(whole.history)
    assert without_times(read_history(tmp_path / "stopped")) == without_times(whole.history)
    for name in ("best", "last"):
        a, b = (load_checkpoint(tmp_path / kind / f"{name}.safetensors")[1] for kind in ("whole", "stopped"))
        assert_identical(a, b)


def test_without_momentum_too(
    backend: str, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tiny_data()
    run = settings(backend, data, device=device, momentum=0.0)
    expected, _ = train(run, data, tmp_path / "whole")
    Once(monkeypatch, 7, lambda _: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Stopped) as error:
        train(run, data, tmp_path / "stopped")
    assert error.value.exit_code == 143
    found, _ = train(run, data, tmp_path / "stopped", resume=True)
    if device == "cpu":
        assert_identical(found.weights(), expected.weights())


KILLABLE = """
import sys
from pathlib import Path
from common import initial_weights, load_backend, training
from common.architecture import Architecture
from common.data import FashionMNIST
from common.runs import is_run, read_settings

training.SAVE_SECONDS = 0  # a checkpoint after every step: a kill often hits one
folder = Path(sys.argv[1])
run = read_settings(folder / "settings")
arch = Architecture.from_json(run.architecture)
data = FashionMNIST(run.batch_size, run.resize, augment=run.augment, limit_train=run.limit_train,
                    limit_val=run.limit_val, directory=None)

def build(name):
    model = load_backend(name).build(arch)
    model.load_weights(initial_weights(arch))
    return model

training.train(build, data, run, folder / "run", is_run(folder / "run"), "")
"""

KILLS = {"torch": 10, "oracle": 10}
FEWER_KILLS = 2  # the others take seconds to start


def kill_at_random_moments(backend: str, folder: Path, kills: int) -> tuple[Weights, list[dict[str, Any]]]:
    """The weights and history of a run that was killed so often, and gone on with."""
    data = tiny_data(limit_train=80)
    run = settings(backend, data, epochs=2 * kills)
    Run.start(folder / "settings", run, "")
    moments = random.Random(0)
    environment = {**os.environ, "RESNET_TABS_DATA": "", "XDG_CACHE_HOME": str(folder)}
    for _ in range(kills):
        before = len(read_history(folder / "run"))
        process = subprocess.Popen(
            [sys.executable, "-c", KILLABLE, str(folder)], env=environment, stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 120
        while len(read_history(folder / "run")) < before + 2 and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        _, said = process.communicate()
        assert process.returncode in (-signal.SIGKILL, 0), said
        if process.returncode == 0:
            break
    if not is_finished(folder / "run"):
        subprocess.run([sys.executable, "-c", KILLABLE, str(folder)], env=environment, check=True)
    return load_checkpoint(folder / "run" / "last.safetensors")[1], read_history(folder / "run")


def test_a_killed_run_goes_on_to_the_same_bit(backend: str, tmp_path: Path) -> None:
    kills = KILLS.get(backend, FEWER_KILLS)
    weights, history = kill_at_random_moments(backend, tmp_path, kills)
    run = read_settings(tmp_path / "settings")
    data = tiny_data(limit_train=80)
    expected, whole = train(run, data, tmp_path / "whole")
    assert_identical(weights, expected.weights())
    assert without_times(history) == without_times(whole.history)


def test_a_second_signal_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(run: Run) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    Once(monkeypatch, 3, twice)
    data = tiny_data()
    with pytest.raises(KeyboardInterrupt):
        train(settings("oracle", data), data, tmp_path / "run")
    assert Run.resume(tmp_path / "run", settings("oracle", data), "")[1].position.step == 0


def test_a_run_in_another_thread_hears_no_signals_and_runs(tmp_path: Path) -> None:
    data = tiny_data()
    thread = threading.Thread(target=train, args=(settings("oracle", data), data, tmp_path / "run"))
    thread.start()
    thread.join()
    assert is_finished(tmp_path / "run")


# Checkpoints that are not what they were


def stopped_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, data: FashionMNIST, lines: int = 8
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
    _, checkpoint = Run.resume(tmp_path / "run", run, "")
    assert checkpoint and checkpoint.warning
    for _ in range(2):  # it has the last one's place now
        _, again = Run.resume(tmp_path / "run", run, "")
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
    Run.start(tmp_path / "run", run, "")
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


def test_a_finished_run_is_not_resumed_and_a_run_is_not_overwritten(tmp_path: Path) -> None:
    data = tiny_data()
    run = settings("oracle", data)
    train(run, data, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(BadInput) as error:
        train(run, data, tmp_path / "run", resume=True)
    one_line(error, "finished run of 2 epochs")
    with pytest.raises(BadInput) as error:
        train(run, data, tmp_path / "run")
    one_line(error, "already holds a run", "--resume")
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


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


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    backend: str, device: str, tmp_path: Path
) -> None:
    data = tiny_data()
    run = settings(backend, data, lr=1e30, schedule="constant", device=device)
    with pytest.raises(Stopped) as error:
        train(run, data, tmp_path / "run")
    one_line(error, "the loss of step", "diverged", "has the checkpoint of step 0", "lower lr")
    assert error.value.exit_code == 1
    _, weights = load_checkpoint(tmp_path / "run" / "last.safetensors")
    assert_identical(weights, {n: a.astype("float32") for n, a in initial_weights(TINY).items()})


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = stopped_run(tmp_path / "run", monkeypatch, tiny_data())
    found, checkpoint = Run.resume(tmp_path / "run", run, "")
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
    if disaster == "disk full":
        one_line(error, "No space left", "has the checkpoint of step 5", "go on with: the command")
        assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]
        found, _ = train(run, data, tmp_path / "run", resume=True)
        expected, _ = train(run, data, tmp_path / "whole")
        assert_identical(found.weights(), expected.weights())
    else:
        one_line(error, "cannot write", "has no checkpoint any more")


# What a run leaves behind


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


def test_a_checkpoint_of_one_backend_is_evaluated_by_another(backends: list[str], tmp_path: Path) -> None:
    data = tiny_data()
    trained, _ = train(settings(backends[0], data, precision="float64"), data, tmp_path / "run")
    expected = training.evaluate(trained, data.val_dataloader("float64"))
    arch, weights = load_checkpoint(tmp_path / "run" / "last.safetensors")
    for name in ["oracle", *backends]:
        model = build(name, arch)
        model.load_weights(weights)
        found = training.evaluate(model, data.val_dataloader("float64"))
        assert found.accuracy == expected.accuracy
        assert found.loss == pytest.approx(expected.loss, rel=1e-12)


# Settings


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


# The chapter's lines


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def tab(backend: str) -> Any:
    return __import__(BACKENDS[backend].module.split(".")[0])


def test_the_chapters_lines_train(backend: str, in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = tab(backend)
    data = package.FashionMNIST(batch_size=16, resize=(32, 32), limit_train=48, limit_val=20)
    model = package.ResNet(((1, 4), (1, 8)), lr=0.01)
    trainer = package.Trainer(max_epochs=2, num_gpus=1)
    trainer.fit(model, data)
    said = capsys.readouterr().out
    assert "GPU" in said or "on the gpu" in said
    assert "epoch 2/2" in said
    assert len(trainer.history) == 8
    (run,) = (in_folder / "runs").iterdir()
    assert run.name == f"resnet-{backend}-1"

    by_contract = build(backend, Architecture(((1, 4), (1, 8))), "float32")  # the same run, by hand
    expected = [
        by_contract.train_step(x, y, 0.01) for epoch in range(2) for x, y in data.train_dataloader(epoch)
    ]
    np.testing.assert_allclose(losses(trainer.history), expected, rtol=1e-5)

    trainer.fit(package.ResNet(((1, 4), (1, 8)), lr=0.01), data)  # another run, in a folder of its own
    assert {path.name for path in (in_folder / "runs").iterdir()} == {run.name, f"resnet-{backend}-2"}


def test_fit_goes_on_from_a_networks_own_weights(backend: str, in_folder: Path) -> None:
    if backend == "jax":
        pytest.skip("a Flax module holds no weights")
    package = tab(backend)
    data = package.FashionMNIST(batch_size=16, limit_train=16, limit_val=16)
    model = package.ResNet(((1, 4),), lr=1e-6)
    for name in "ab":
        trainer = package.Trainer(max_epochs=1, out=name)
        trainer.fit(model, data)
    (first,), (second,) = (losses(read_history(name)) for name in "ab")
    assert first == pytest.approx(second, rel=1e-3)
    weights = trainer.model.weights()
    assert not np.array_equal(weights["b1.bn.running_mean"], np.zeros(64))
    start = load_checkpoint("b/previous.safetensors")[1]
    assert_identical(start, load_checkpoint("a/last.safetensors")[1])


def test_a_trainer_resumes(backend: str, in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tab(backend)
    data = package.FashionMNIST(batch_size=16, limit_train=48, limit_val=16)
    Once(monkeypatch, 2, lambda _: signal.raise_signal(signal.SIGINT))
    with pytest.raises(Stopped) as error:
        package.Trainer(max_epochs=1, momentum=0.9, out="run").fit(package.ResNet(((1, 4),)), data)
    one_line(error, "Trainer(..., out='run', resume=True).fit(model, data)")
    package.Trainer(max_epochs=1, momentum=0.9, out="run", resume=True).fit(package.ResNet(((1, 4),)), data)
    package.Trainer(max_epochs=1, momentum=0.9, out="whole").fit(package.ResNet(((1, 4),)), data)
    assert_identical(*(load_checkpoint(f"{name}/last.safetensors")[1] for name in ("run", "whole")))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_epochs": 0}, "epochs must be 1 or more"),
        ({"max_epochs": 1, "num_gpus": 2}, "num_gpus must be 0 or 1"),
        ({"max_epochs": 1, "resume": True}, "resume=True needs out"),
        ({"max_epochs": 1, "out": "nowhere", "resume": True}, "is not a run"),
    ],
)
def test_a_trainer_that_makes_no_sense_is_refused(
    backends: list[str], in_folder: Path, options: dict[str, Any], words: str
) -> None:
    package = tab(backends[0])
    data = package.FashionMNIST(batch_size=16, limit_train=48, limit_val=16)
    with pytest.raises(ValueError) as error:
        package.Trainer(**options).fit(package.ResNet(((1, 4),)), data)
    one_line(error, words)
    assert not list(in_folder.iterdir())
