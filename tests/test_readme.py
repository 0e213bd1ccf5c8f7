"""The README is true: its code runs, and its commands and options exist."""

import io
import re
import subprocess
import sys
from contextlib import chdir, redirect_stdout
from pathlib import Path

import pytest

from common import architecture, initial_weights, save_checkpoint
from common.backend import BACKENDS
from tests.cli import commands
from tests.data.folders import make_folder
from tests.helpers import optimised

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str, word: str) -> list[str]:
    """The README's code blocks in a language that mention a word."""
    return [code for code in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if word in code]


def run_here(code: str, folder: Path) -> str:
    """What code prints in this process, which has its frameworks."""
    said = io.StringIO()
    with chdir(folder), redirect_stdout(said):
        exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    return said.getvalue()


def run(code: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


in_torch = pytest.mark.core_in("torch")


@in_torch
def test_the_contract_by_example_runs_in_every_backend(backend: str, tmp_path: Path) -> None:
    (code,) = blocks("python", "load_backend")
    with optimised(backend):
        run_here(code.replace('load_backend("torch")', f'load_backend("{backend}")'), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run.safetensors"]


def test_the_chapters_lines_run(backends: list[str], tmp_path: Path) -> None:
    if "torch" not in backends:
        pytest.skip("the example is written for PyTorch, which is not under test")
    (code,) = blocks("python", "import Residual")
    assert "torch.Size([4, 6, 3, 3])" in run(code, tmp_path)


@in_torch
def test_its_last_lines_train(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (code,) = blocks("python", "FashionMNIST(")
    for long, short in (
        ("resnet_torch", BACKENDS[backend].module.split(".")[0]),
        ("batch_size=128, resize=(96, 96)", "batch_size=16, resize=(28, 28), limit_train=32, limit_val=16"),
        ("max_epochs=10", "max_epochs=1"),
    ):
        assert long in code
        code = code.replace(long, short)
    assert "epoch 1/1" in run_here(code, tmp_path)
    assert (tmp_path / "runs" / f"resnet18-{backend}-1" / "best.safetensors").is_file()


@in_torch
def test_it_trains_on_a_folder_of_images(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_folder(tmp_path / "FOLDER")
    arch = architecture("resnet18", in_channels=3, num_classes=1000)
    save_checkpoint(tmp_path / "imagenet.safetensors", arch, initial_weights(arch))
    (code,) = blocks("python", "ImageFolder(")
    for long, short in (
        ("resnet_torch", BACKENDS[backend].module.split(".")[0]),
        ("resnet50", "resnet18"),
        ("batch_size=64, resize=(224, 224)", "batch_size=8, resize=(32, 32)"),
        ("max_epochs=10", "max_epochs=1"),
    ):
        assert long in code
        code = code.replace(long, short)
    assert "epoch 1/1" in run_here(code, tmp_path)


def test_the_architecture_by_hand_is_one(tmp_path: Path) -> None:
    (code,) = blocks("python", 'block="resnext"')
    run_here(code, tmp_path)


@pytest.mark.parametrize(
    "line",
    [line for code in blocks("sh", "resnet-tabs ") for line in code.replace("\\\n", " ").splitlines()],
)
def test_commands_and_their_options_exist(line: str) -> None:
    _, command, *arguments = line.split()
    shown = commands.run_here(command, "--help")
    assert shown.returncode == 0
    for option in (argument for argument in arguments if argument.startswith("--")):
        assert option in shown.stdout


def test_the_sessions_named_exist() -> None:
    noxfile = (Path(__file__).parents[1] / "noxfile.py").read_text(encoding="utf-8")
    sessions = set(re.findall(r"nox -s (\w+)", README))
    assert sessions >= {"compare", "tests", "tests_deep"}
    for session in sessions:
        assert f"def {session}(" in noxfile
