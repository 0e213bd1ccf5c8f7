"""Several workers: the run of one, whatever their number; and what becomes of it when one dies."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import psutil
import pytest

from common import initial_weights, load_checkpoint, training
from common.backend import BACKENDS
from common.errors import BadInput
from common.proof import judge
from common.proof import workers as proving
from common.training.runs import Record, read_history
from common.training.together import Plan, train_together
from common.weights import Weights, is_statistic
from tests.cli.commands import run, wait_for
from tests.helpers import deviation, one_line
from tests.proof.helpers import evidence_of
from tests.training.running import SMALL, TINY, assert_identical, losses, settings, tiny_data, without_times

EXACT = 1e-12  # float64: weights, running statistics, losses
SOON = 120  # seconds within which all ends, on a busy machine too

Found = tuple[Weights, list[Record]]


def plan(backend: str, folder: Path, resume: bool = False) -> Plan:
    """Four epochs of five batches, the last of three images, which no number of workers divides."""
    data = tiny_data(limit_train=35)
    run = settings(backend, data, SMALL, epochs=4, precision="float64")
    return Plan(data, run, folder, resume)


@cache
def alone(backend: str, folder: Path) -> Found:
    model, run = plan(backend, folder / backend).train()
    return model.weights(), run.history


@cache
def two(backend: str, folder: Path) -> Found:
    return train_together(2, plan(backend, folder / f"{backend}-2"))


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def assert_same_run(found: Found, expected: Found) -> None:
    (weights, history), (expected_weights, expected_history) = found, expected
    statistics = [name for name in weights if is_statistic(name)]
    assert deviation(weights, expected_weights) <= EXACT
    assert deviation(*({n: w[n] for n in statistics} for w in (weights, expected_weights))) <= EXACT
    assert deviation(losses(history), losses(expected_history)) <= EXACT
    assert len(history) == len(expected_history) == 24
    for record, other in zip(history, expected_history, strict=True):
        for name in ("accuracy", "train_accuracy", "val_accuracy"):
            assert record.get(name) == other.get(name)
        for name in ("train_loss", "val_loss"):
            assert record.get(name, 0) == pytest.approx(other.get(name, 0), rel=EXACT)


@pytest.mark.core_in("torch")
def test_two_workers_are_one(backend: str, module_folder: Path) -> None:
    found = two(backend, module_folder)
    assert_same_run(found, alone(backend, module_folder))
    assert_same_run(found, alone("oracle", module_folder))
    assert_identical(found[0], load_checkpoint(module_folder / f"{backend}-2" / "last.safetensors")[1])


@pytest.mark.deep
def test_four_workers_are_one(backend: str, module_folder: Path, tmp_path: Path) -> None:
    found = train_together(4, plan(backend, tmp_path / "run"))
    assert_same_run(found, alone(backend, module_folder))
    assert_same_run(found, alone("oracle", module_folder))


LAUNCHED = """
import sys
from pathlib import Path
from common.errors import Stopped, telling_how_to_resume
from common.training.together import train_together
from tests.scale.test_together import plan

if __name__ == "__main__":
    try:
        with telling_how_to_resume("the command"):
            train_together(2, plan(sys.argv[1], Path(sys.argv[2]), resume=len(sys.argv) > 3))
    except Stopped as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
"""


def launched(backend: str, folder: Path, *resume: str) -> subprocess.Popen[str]:
    """The same run in a launcher of its own."""
    program = folder.parent / "launched.py"
    program.write_text(LAUNCHED)
    return subprocess.Popen(
        [sys.executable, program, backend, folder, *resume],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def workers_of(launcher: subprocess.Popen[str]) -> list[psutil.Process]:
    children = psutil.Process(launcher.pid).children()
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


@pytest.mark.deep
def test_a_worker_that_is_killed_ends_all_and_the_run_goes_on_to_the_same_bit(
    backend: str, module_folder: Path, tmp_path: Path
) -> None:
    """Which also shows that two workers again are the same to the bit: those before and after the kill."""
    launcher = launched(backend, tmp_path / "run")
    wait_for(tmp_path / "run", 8, launcher)
    workers = workers_of(launcher)
    assert len(workers) == 2
    everybody = psutil.Process(launcher.pid).children(recursive=True)
    workers[1].kill()
    killed_at = time.monotonic()
    _, said = launcher.communicate(timeout=SOON)
    _, alive = psutil.wait_procs(everybody, timeout=SOON - (time.monotonic() - killed_at))
    assert not alive
    assert launcher.returncode == 1
    assert said.count("\n") == 1
    assert re.match("worker [01] was killed by signal 9: ", said)
    assert "has the checkpoint of step" in said and "go on with: the command" in said

    going_on = launched(backend, tmp_path / "run", "resume")
    assert going_on.wait(timeout=300) == 0, going_on.communicate()
    found = load_checkpoint(tmp_path / "run" / "last.safetensors")[1], read_history(tmp_path / "run")
    expected = two(backend, module_folder)
    assert_identical(found[0], expected[0])
    assert without_times(found[1]) == without_times(expected[1])


@pytest.mark.deep
def test_a_signal_to_one_worker_stops_all_after_the_same_step(
    backends: list[str], module_folder: Path, tmp_path: Path
) -> None:
    backend = backends[0]
    launcher = launched(backend, tmp_path / "run")
    wait_for(tmp_path / "run", 8, launcher)
    workers_of(launcher)[1].send_signal(signal.SIGTERM)
    _, said = launcher.communicate(timeout=SOON)
    assert launcher.returncode == 128 + signal.SIGTERM
    steps = [record for record in read_history(tmp_path / "run") if record["event"] == "step"]
    assert said == f"stopped after step {len(steps)}; go on with: the command\n"

    model, one = plan(backend, tmp_path / "run", resume=True).train()  # the number of workers may change
    assert_same_run((model.weights(), one.history), alone(backend, module_folder))


@pytest.mark.deep
@pytest.mark.usefixtures("hangups")
def test_workers_have_their_folder_alone_and_stop_when_their_terminal_closes(
    backends: list[str], tmp_path: Path
) -> None:
    launcher = launched(backends[0], tmp_path / "run")
    wait_for(tmp_path / "run", 8, launcher)
    with pytest.raises(BadInput) as error:
        plan("oracle", tmp_path / "run").train()
    one_line(error, "is in use: process")
    launcher.send_signal(signal.SIGHUP)
    _, said = launcher.communicate(timeout=SOON)
    assert launcher.returncode == 128 + signal.SIGHUP
    assert re.fullmatch(r"stopped after step \d+; go on with: the command\n", said)
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.deep
def test_a_trainer_of_two_gpus_is_two_workers(
    backends: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shown on the CPU: what there is of GPUs decides only whether."""
    monkeypatch.setattr(training.Trainer, "_workers", lambda trainer, model: trainer.num_gpus)
    package = __import__(BACKENDS[backends[0]].module.split(".")[0])
    data = tiny_data(augment=())
    found = []
    for workers in (1, 2):
        trainer = package.Trainer(max_epochs=2, num_gpus=workers, out=tmp_path / str(workers))
        trainer.fit(package.ResNet(((1, 4), (1, 8)), lr=0.01), data)
        found.append((trainer.model.weights(), losses(trainer.history)))
    assert deviation(found[1][0], found[0][0]) <= 1e-4
    assert deviation(found[1][1], found[0][1]) <= 1e-5


@pytest.mark.deep
def test_a_network_is_proven_the_same_on_two_workers(backends: list[str], tmp_path: Path) -> None:
    small = ["--input-shape", "1,32,32", "--precision", "float64", "--steps", "2", "--out", tmp_path]
    done = run("compare", "resnet18", "--backends", backends[0], *small, "--workers", 2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "weights, 2 steps on, 2 workers" in " ".join(done.stdout.split())
    workers = json.loads((tmp_path / "results.json").read_text())["workers"]
    assert set(workers) == {f"{what}, 2 steps on, 2 workers" for what in ("weights", "running statistics")}
    for by_backend in workers.values():
        assert by_backend[backends[0]] <= EXACT
    assert 'id="workers"' in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("wrong", [1.0, np.nan])
def test_workers_that_differ_are_a_difference(monkeypatch: pytest.MonkeyPatch, wrong: float) -> None:
    generator = np.random.default_rng(0)
    weights = initial_weights(TINY)
    work = judge.Job(TINY, weights, generator.random((2, 1, 32, 32)), np.array([3, 1]), steps=2)
    found = judge.Comparison(work)
    found.evidence["torch", "float64"] = evidence_of(work)
    other = found.evidence["torch", "float64"].trained | {"b1.bn.running_mean": np.full(4, wrong)}
    monkeypatch.setattr(proving, "launch", lambda *arguments: other)
    proving.compare_workers(found, ["oracle", "torch"], 2)
    assert found.workers["weights, 2 steps on, 2 workers"] == {"torch": 0.0}
    (line,) = found.differences
    assert line.startswith("torch: running statistics, 2 steps on, 2 workers")
    assert not found.agree
