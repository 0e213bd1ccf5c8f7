"""Workers that a launcher starts: each is ended with it, whatever it does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from common.processes.launcher import FINISHING

ROOT = Path(__file__).parents[2]

STUBBORN = """
import signal, time
from common.processes.launcher import launch

def wait(seat):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if seat.rank == 0:
        print("ready", flush=True)
    time.sleep(600)

if __name__ == "__main__":
    launch(2, wait)
"""

EARLY = """
import sys
import numpy as np
from common import load_backend
from common.architecture import Architecture
from common.processes.launcher import launch
from common.processes.meeting import meeting

def losses(seat, backend):
    images = np.random.default_rng(0).random((4, 1, 32, 32), "float32")
    with meeting(seat, {}) as group:
        model = load_backend(backend).build(Architecture(((1, 8), (1, 16))), group=group)
        if seat.rank == 1:
            model.predict(images)
        return model.train_step(group.share(images), group.share(np.arange(4)), lr=0.1)

if __name__ == "__main__":
    print(launch(2, losses, sys.argv[1]))
"""

SERVERLESS = """
from common import architecture, load_backend
from common.processes.launcher import WorkerLost, launch
from common.processes.meeting import meeting

def build(seat):
    import resnet_mxnet.backend
    resnet_mxnet.backend.SERVE = "raise SystemExit('no room for a server')"
    with meeting(seat, {}) as group:
        load_backend("mxnet").build(architecture("resnet18"), group=group)

if __name__ == "__main__":
    try:
        launch(2, build)
    except WorkerLost as error:
        print(error)
"""


def start(program: str, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """A program that launches workers; they import it, so it is a file."""
    path = folder / "program.py"
    path.write_text(program)
    return subprocess.Popen(
        [sys.executable, path, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_second_ctrl_c_ends_workers_that_do_not_stop(tmp_path: Path) -> None:
    launcher = start(STUBBORN, tmp_path)
    assert launcher.stdout
    assert launcher.stdout.readline() == "ready\n"
    everybody = psutil.Process(launcher.pid).children(recursive=True)
    launcher.send_signal(signal.SIGINT)
    assert [launcher.stdout.readline() for _ in range(2)] == FINISHING.decode().splitlines(keepends=True)
    launcher.send_signal(signal.SIGINT)
    _, said = launcher.communicate(timeout=120)
    assert launcher.returncode == -signal.SIGINT
    assert said.endswith("KeyboardInterrupt\n")  # of which the command makes a line
    assert not psutil.wait_procs(everybody, timeout=120)[1]


@pytest.mark.deep
def test_one_worker_may_evaluate_before_any_step(backend: str, tmp_path: Path) -> None:
    found, said = start(EARLY, tmp_path, backend).communicate(timeout=300)
    assert float(found) > 0, said


@pytest.mark.deep
def test_mxnets_server_that_ends_is_one_line(backends: list[str], tmp_path: Path) -> None:
    if "mxnet" not in backends:
        pytest.skip("MXNet alone has a server")
    found, said = start(SERVERLESS, tmp_path).communicate(timeout=300)
    assert found.startswith("worker 0: ") and found.count("\n") == 1, said
    assert "of MXNet's parameter server ended: no room for a server" in found
