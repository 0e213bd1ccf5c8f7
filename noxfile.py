"""The project's commands: `nox -s compare`, `nox -s tests`, and the sessions CI runs."""

import os
import shutil
import subprocess
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["tests"]

PYTHON = "3.11"
FRAMEWORKS = ("torch", "tf", "jax", "mxnet")
# What a framework has a part in; the rest of the suite is the same whatever is installed.
CONTRACT_TESTS = [f"tests/test_{part}.py" for part in ("backends", "checkpoints", "packages")]
COMMAND_TESTS = ["tests/cli", "tests/test_readme.py", "tests/training/test_loop.py"]
CONSTRAINTS = ("--constraint", "constraints.txt")

# XLA compiles each network for seconds, and the tests of every Python compile the same ones.
JAX_CACHE = {
    "JAX_COMPILATION_CACHE_DIR": str(Path(__file__).with_name(".nox") / "jax-cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
}

if shutil.which("pyenv"):  # its commands answer only for versions that are switched on: switch on all
    versions = subprocess.run(["pyenv", "versions", "--bare"], capture_output=True, text=True).stdout
    os.environ["PYENV_VERSION"] = ":".join(reversed(versions.split()))


def pythons() -> list[str]:
    """The Python versions MXNet and JAX are tested on that answer on this machine."""

    def answers(version: str) -> bool:
        python = shutil.which(f"python{version}")
        return (
            python is not None and subprocess.run([python, "--version"], capture_output=True).returncode == 0
        )

    return [version for version in ("3.11", "3.12", "3.13") if answers(version)] or [PYTHON]


def install(session: nox.Session, *frameworks: str, extras: str = "") -> None:
    """Install the project with these frameworks, in the versions it is tested with."""
    wanted = ",".join([*frameworks, *filter(None, [extras])])
    session.install("--editable", f".[{wanted}]", *CONSTRAINTS)
    if "mxnet" in frameworks:
        # MXNet's metadata asks for NumPy 1; resnet_mxnet/compat.py says why NumPy 2 will do.
        session.install("--no-deps", "mxnet", *CONSTRAINTS)


def install_families(session: nox.Session) -> None:
    """Install torchvision, timm and transformers, whose checkpoints the tests convert.

    The first two ask for a PyTorch of their own; what they need besides comes with transformers.
    """
    session.install("transformers", *CONSTRAINTS)
    session.install("--no-deps", "torchvision", "timm", *CONSTRAINTS)


@nox.session(python=PYTHON)
def compare(session: nox.Session) -> None:
    """The main job: the four side by side on real images, proven the same, with a report."""
    install(session, *FRAMEWORKS)
    session.run("resnet-tabs", "compare", *(session.posargs or ["resnet18"]))


@nox.session(python=PYTHON)
def tests(session: nox.Session) -> None:
    """The whole suite, the four frameworks in one process."""
    install(session, *FRAMEWORKS, extras="test")
    install_families(session)
    session.run("pytest", *session.posargs, env=JAX_CACHE)


def one_framework(session: nox.Session, framework: str) -> None:
    """The suite with only one framework installed: a package needs no other than its own."""
    install(session, framework, extras="test")
    files = CONTRACT_TESTS + COMMAND_TESTS * (session.python == PYTHON)  # commands are the same on all
    session.run("pytest", f"--backends={framework}", *(session.posargs or files), env=JAX_CACHE)


@nox.session(python=PYTHON)
def tests_torch(session: nox.Session) -> None:
    """The suite with only PyTorch installed."""
    one_framework(session, "torch")


@nox.session(python=PYTHON)
def tests_tf(session: nox.Session) -> None:
    """The suite with only TensorFlow installed."""
    one_framework(session, "tf")


@nox.session(python=pythons())
def tests_jax(session: nox.Session) -> None:
    """The suite with only JAX installed, on every Python there is."""
    one_framework(session, "jax")


@nox.session(python=pythons())
def tests_mxnet(session: nox.Session) -> None:
    """The suite with only MXNet installed, on every Python there is."""
    one_framework(session, "mxnet")


@nox.session(python=PYTHON)
def tests_d2l(session: nox.Session) -> None:
    """The published d2l 1.0.3 blocks against ours."""
    install(session, *FRAMEWORKS, extras="test")
    session.install("ipython", "matplotlib-inline", "pandas", *CONSTRAINTS)
    session.install("--no-deps", "d2l", *CONSTRAINTS)  # its metadata pins packages of 2022
    session.run("pytest", "tests/d2l", *session.posargs, env=JAX_CACHE)


@nox.session(python=PYTHON)
def tests_zoo(session: nox.Session) -> None:
    """The published networks, deep ones too, converted; shows deviations, seconds and memory."""
    install(session, *FRAMEWORKS, extras="test")
    install_families(session)
    session.run("pytest", "tests/zoo", "-rP", *session.posargs, env=JAX_CACHE)


@nox.session(python=PYTHON)
def benchmark(session: nox.Session) -> None:
    """What training costs, and loading: `nox -s benchmark -- overhead`, or another of `benchmarks`."""
    install(session, *FRAMEWORKS)
    session.run("python", "-m", "benchmarks", *session.posargs, env=JAX_CACHE)


@nox.session(python=PYTHON)
def lint(session: nox.Session) -> None:
    """ruff and mypy; the frameworks are not needed."""
    session.install("--editable", ".", "mypy", "ruff", *CONSTRAINTS)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
