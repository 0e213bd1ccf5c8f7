"""The command bench: what it says of bad input, and a short measurement of each backend under test."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from common.architecture import architecture
from common.backend import BACKENDS
from common.bench.figures import PASSES, Figures
from common.bench.report import results
from tests.bench.helpers import bench_of
from tests.cli.commands import command, run_here
from tests.helpers import hide


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["resnet81"], ["unknown architecture 'resnet81'", "resnet18"]),
        (["resnet18", "--backends", "tourch"], ["unknown backend 'tourch'", "did you mean torch?"]),
        (["resnet18", "--backends", "oracle"], ["the oracle is there for proof, not for speed", "torch"]),
        (["resnet18", "--mode", "eval"], ["unknown mode 'eval'", "train,infer"]),
        (["resnet18", "--mode", "train,"], ["unknown mode ''"]),
        (["resnet18", "--precision", "float32,float16"], ["unknown precision 'float16'", "bfloat16"]),
        (["resnet18", "--device", "tpu"], ["unknown device 'tpu'", "gpu"]),
        (["resnet18", "--batch-sizes", "0"], ["batch sizes", "from 1 up", "not '0'"]),
        (["resnet18", "--batch-sizes", "8,-1"], ["batch sizes", "not '8,-1'"]),
        (["resnet18", "--batch-sizes", "1.5"], ["batch sizes", "not '1.5'"]),
        (["resnet18", "--batch-sizes", ""], ["batch sizes", "not ''"]),
        (["resnet18", "--input-shape", "96x96"], ["malformed input shape '96x96'"]),
        (["resnet18", "--input-shape", "1,16,96"], ["too small", "17×17"]),
        (["resnet18", "--out", "{}/file/inside"], ["cannot write to the folder"]),
        (["resnet18", "--against", "{}/no.json"], ["no.json not found"]),
        (["resnet18", "--against", "{}/file"], ["file is not a bench.json"]),
    ],
    ids=" ".join,
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    (tmp_path / "file").touch()
    out = [] if "--out" in arguments else ["--out", str(tmp_path / "out")]
    done = run_here("bench", *[argument.format(tmp_path) for argument in arguments], *out)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_named_backend_that_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hide(monkeypatch, "jax")
    done = run_here("bench", "resnet18", "--backends", "jax", "--out", tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "'jax' is not installed; run: pip install" in done.stderr


def test_where_no_backend_is_installed_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in BACKENDS:
        hide(monkeypatch, name)
    done = run_here("bench", "resnet18", "--out", tmp_path)
    assert done.returncode == 1
    assert done.stdout.count("not installed; run:") == 4
    assert json.loads((tmp_path / "bench.json").read_text())["cells"] == []


SOON = 60  # seconds; at once, on a busy machine too, where a measurement of all is long over
TINY = ["resnet18", "--input-shape", "1,33,33"]


@pytest.mark.deep
def test_a_backend_is_measured(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: str
) -> None:
    monkeypatch.setattr("common.bench.measure.ROUNDS", 1)
    shape = ["--input-shape", "1,33,33", "--batch-sizes", "2,2"]
    done = run_here("bench", small, *shape, "--backends", backend, "--out", tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["failures"] == []
    assert [(cell["mode"], cell["batch_size"]) for cell in found["cells"]] == [("infer", 2), ("train", 2)]
    for cell in found["cells"]:
        assert 0 < cell["images_per_second"] == cell["quickest_round"] == cell["slowest_round"]
        operations = 2 * found["macs"] * PASSES[cell["mode"]] * cell["images_per_second"]
        share = operations / (1e9 * found["peaks"][0]["gflops"])
        assert cell["share_of_peak"] == pytest.approx(share, rel=0.01, abs=1e-4)
        assert cell["peak_memory"] is None or 2**26 < cell["peak_memory"] < 2**33
    (start,) = found["starts"]
    assert start["label"] == BACKENDS[backend].label
    assert list(start["seconds"]) == ["import", "build", "first inference", "first training"]
    assert all(seconds > 0 for seconds in start["seconds"].values())
    assert "GFLOP/s" in done.stdout
    assert (tmp_path / "bench.html").read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.deep
def test_the_frameworks_own_network_stands_beside(
    backends: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.bench.measure.ROUNDS", 1)
    options = ["--batch-sizes", "2", "--mode", "infer", "--reference", "--out", tmp_path]
    done = run_here("bench", *TINY, "--backends", backends[0], *options)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    found = json.loads((tmp_path / "bench.json").read_text())
    if "not installed" in done.stdout:
        (line,) = found["failures"]
        assert line.startswith(f"{backends[0]} reference float32: ")
    else:
        (ratio,) = found["ratios"]
        assert ratio["smallest"] == ratio["median"] == ratio["largest"] > 0
        assert "ours over the reference" in done.stdout


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What measures has these figures at once."""
    monkeypatch.setattr("common.bench.measure.measure", lambda workload, contenders, tell: bench_of("torch"))


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize(
    ("slower", "exit_code", "verdict"),
    [(0.5, 1, "SLOWER than"), (1.0, 0, "NOT SLOWER than"), (2, 0, "NOT SLOWER")],
)
def test_what_became_slower_decides_the_exit_code(
    tmp_path: Path, slower: float, exit_code: int, verdict: str
) -> None:
    """The earlier measurement was so much slower."""
    old = results(Figures(bench_of("torch", slower=slower), []))
    old |= {"input_shape": [1, 96, 96], "architecture": json.loads(architecture("resnet18").to_json())}
    (tmp_path / "old.json").write_text(json.dumps(old))
    done = run_here("bench", "resnet18", "--out", tmp_path, "--against", tmp_path / "old.json")
    assert (done.returncode, done.stderr) == (exit_code, "")
    assert done.stdout.splitlines()[-1].startswith(verdict)
    written = json.loads((tmp_path / "bench.json").read_text())
    assert written["cells"][0]["images_per_second"] == old["cells"][0]["images_per_second"] * slower


@pytest.mark.usefixtures("measured")
def test_the_earlier_measurement_is_not_written_over(tmp_path: Path) -> None:
    assert run_here("bench", "resnet18", "--out", tmp_path).returncode == 0
    found = json.loads((tmp_path / "bench.json").read_text())
    found |= {"input_shape": [1, 96, 96], "architecture": json.loads(architecture("resnet18").to_json())}
    (tmp_path / "bench.json").write_text(json.dumps(found))
    done = run_here("bench", "resnet18", "--out", tmp_path, "--against", tmp_path / "bench.json")
    assert done.returncode == 2
    assert "would be written over; give --out another folder" in done.stderr
    assert json.loads((tmp_path / "bench.json").read_text()) == found


def test_ctrl_c_ends_it_and_its_processes_at_once(backends: list[str], tmp_path: Path) -> None:
    process = subprocess.Popen(
        command("bench", "resnet18", "--backends", backends[0], "--out", tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and "Measuring resnet18" in process.stdout.readline()
    children: list[psutil.Process] = []
    while sum(child.cpu_times().user for child in children) < 1:  # until a framework is at work
        assert process.poll() is None
        time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=SOON)
    assert (process.returncode, error) == (130, "resnet-tabs: stopped at once\n")
    _, alive = psutil.wait_procs(children, timeout=SOON)
    assert not alive
