"""What nox's sessions install: from where pip would, once, and PyTorch's build for the CPU."""

from __future__ import annotations

import importlib.util
import os
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
UV = ("UV_FIND_LINKS", "UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_STRATEGY", "UV_TORCH_BACKEND")


@cache
def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("noxfile", ROOT / "noxfile.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def noxfile(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The noxfile, on Linux, where nobody has told uv anything."""
    for name in UV:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    return load()


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """A folder that has PyTorch's build for the CPU, for Python 3.11."""
    (tmp_path / "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl").touch()
    return tmp_path


def test_in_a_session_pytorch_is_the_build_for_the_cpu(backends: list[str]) -> None:
    if "torch" not in backends or "NOX_CURRENT_SESSION" not in os.environ:
        pytest.skip("this is no session with PyTorch")
    import torch

    assert torch.version.cuda is None


@pytest.mark.parametrize("uv", [True, False])
def test_pytorch_comes_from_its_own_index_for_the_cpu(noxfile: ModuleType, uv: bool) -> None:
    told = {"extra-index-url": "https://one/simple\nhttps://two/simple"}
    found = noxfile.sources(told, "3.11.7", cpu_torch=True, uv=uv)
    if uv:
        assert found["UV_TORCH_BACKEND"] == "cpu"
    else:  # pip's own are kept
        assert found == {"PIP_EXTRA_INDEX_URL": f"https://one/simple https://two/simple {noxfile.CPU_BUILDS}"}


@pytest.mark.parametrize("uv", [True, False])
def test_a_folder_of_wheels_that_has_it_will_do(noxfile: ModuleType, wheels: Path, uv: bool) -> None:
    found = noxfile.sources({"find-links": str(wheels)}, "3.11.7", cpu_torch=True, uv=uv)
    assert found == ({"UV_FIND_LINKS": str(wheels)} if uv else {})


def test_a_wheel_for_another_python_will_not(noxfile: ModuleType, wheels: Path) -> None:
    found = noxfile.sources({"find-links": str(wheels)}, "3.12.1", cpu_torch=True, uv=True)
    assert found == {"UV_FIND_LINKS": str(wheels), "UV_TORCH_BACKEND": "cpu"}


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_elsewhere_pypis_is_for_the_cpu(
    noxfile: ModuleType, monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    assert noxfile.sources({}, "3.11.7", cpu_torch=True, uv=True) == {}
    assert noxfile.sources({}, "3.11.7", cpu_torch=True, uv=False) == {}


@pytest.mark.parametrize("uv", [True, False])
def test_who_does_not_ask_for_the_cpu_gets_what_is_there(noxfile: ModuleType, uv: bool) -> None:
    assert noxfile.sources({}, "3.11.7", cpu_torch=False, uv=uv) == {}


def test_uv_is_told_what_pip_is(noxfile: ModuleType, wheels: Path) -> None:
    told = {
        "find-links": f"{wheels} {wheels / 'none'}\nfile://{wheels} https://wheels",  # one is not there
        "index-url": "https://mirror/simple",
        "extra-index-url": "https://one/simple\nhttps://two/simple",
    }
    assert noxfile.sources(told, "3.11.7", cpu_torch=True, uv=True) == {
        "UV_FIND_LINKS": f"{wheels},{wheels},https://wheels",
        "UV_DEFAULT_INDEX": "https://mirror/simple",
        "UV_INDEX": "https://one/simple https://two/simple",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }


def test_what_uv_was_told_by_its_user_stays(
    noxfile: ModuleType, monkeypatch: pytest.MonkeyPatch, wheels: Path
) -> None:
    monkeypatch.setenv("UV_FIND_LINKS", "mine")
    monkeypatch.setenv("UV_TORCH_BACKEND", "auto")
    assert noxfile.sources({"find-links": str(wheels)}, "3.12.1", cpu_torch=True, uv=True) == {}


def test_what_pip_was_told_is_read_from_its_files_and_the_environment(
    noxfile: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("pip")
    (tmp_path / "pip.conf").write_text(
        "[global]\nfind-links = /of/the/file\nindex-url = https://mirror/simple\n"
        "[install]\nextra-index-url =\n    https://one/simple\n    https://two/simple\n"
    )
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("PIP_FIND_LINKS", "/of/the/environment")
    told = noxfile.told_pip()
    assert told["find-links"] == "/of/the/environment"
    assert told["index-url"] == "https://mirror/simple"
    assert told["extra-index-url"].split() == ["https://one/simple", "https://two/simple"]


class FakeSession:
    """A session that notes what it is to install."""

    name = "fake"

    def __init__(self, folder: Path, venv_backend: str) -> None:
        self.env_dir, self.venv_backend = folder, venv_backend
        self.env: dict[str, str | None] = {}
        self.installed: list[str] = []
        self.logged: list[str] = []

    def run_install(self, *command: str, **options: Any) -> None:
        self.installed.append(" ".join(command))

    def log(self, line: str) -> None:
        self.logged.append(line)


@pytest.fixture
def project(noxfile: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A project's folder, where the work is done, with an environment in it."""
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text("as it was")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(noxfile, "told_pip", dict)
    return tmp_path


def test_what_is_installed_is_not_installed_again(noxfile: ModuleType, project: Path) -> None:
    def installs(*extras: str) -> list[str]:
        session = FakeSession(project, "uv")
        with noxfile.Environment(session) as environment:
            environment.install(*extras)
        assert session.logged == ["fake took: installing 0 s"]
        return [command.split(" --constraint")[0] for command in session.installed]

    into = f"uv pip install --python {project}/bin/python"
    both = [f"{into} --editable .[jax,mxnet]", f"{into} --no-deps mxnet"]
    assert installs("jax", "mxnet") == both
    assert installs("jax", "mxnet") == []
    assert installs("jax") == [f"{into} --editable .[jax]"]
    assert installs("jax", "mxnet") == installs("jax") == []
    for name in ("constraints.txt", "pyproject.toml"):
        (project / name).write_text("otherwise")
        assert installs("jax", "mxnet") == both
        (project / name).write_text("as it was")  # meanwhile others were installed
        assert installs("jax", "mxnet") == both


def test_without_uv_pip_installs(noxfile: ModuleType, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noxfile, "UV", None)
    for backend in ("venv", "none"):
        session = FakeSession(project, backend)
        noxfile.Environment(session).pip(f"something for {backend}")
        (command,) = session.installed
        assert command.startswith(f"{project}/bin/python -m pip install ")


def test_what_fails_is_tried_again(
    noxfile: ModuleType, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = FakeSession(project, "uv")

    def fail(*command: str, **options: Any) -> None:
        raise OSError

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(session, "run_install", fail)
        noxfile.Environment(session).install("jax")
    noxfile.Environment(session).install("jax")
    assert len(session.installed) == 1
