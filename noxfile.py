"""The project's commands: `nox -s compare`, `nox -s tests`, and the sessions CI runs."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nox

nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["tests"]

PYTHON = "3.11"
# MXNet has no wheel for Windows or Apple silicon: there the other three are compared and tested.
HAS_MXNET = sys.platform == "linux" or (sys.platform == "darwin" and platform.machine() == "x86_64")
FRAMEWORKS = ("torch", "tf", "jax", "mxnet") if HAS_MXNET else ("torch", "tf", "jax")
BACKENDS = f"--backends={','.join(FRAMEWORKS)}"
# What a framework's absence could break; the rest of the suite is the same whatever is installed.
CONTRACT_TESTS = [f"tests/test_{part}.py" for part in ("backends", "checkpoints", "packages")]
COMMAND_TESTS = [
    "tests/cli/test_compare.py::test_a_backend_that_is_missing_is_a_row_and_no_pass",
    "tests/cli/test_training.py::test_train_evaluate_and_predict_end_to_end",
    "tests/cli/test_training.py::test_a_missing_gpu_leaves_no_folder",
]
GPU_TESTS = [*CONTRACT_TESTS, "tests/test_recipe.py", "tests/training", "tests/gpu"]
# PyPI's PyTorch for Linux has CUDA. MXNet's takes CUDA 11, the others bring newer.
GPU_BUILDS = {
    "torch": ["torch"],
    "tf": ["tensorflow[and-cuda]"],
    "jax": ["jax[cuda13]", "flax", "optax"],
    "mxnet": [".[mxnet-gpu]"],
}
MXNET_GPU = "mxnet-cu112==1.9.1"
CONSTRAINTS = ("--constraint", "constraints.txt")
ALL = Path(__file__).with_name(".nox") / "all"
AXE = Path(__file__).with_name(".nox") / "axe"
# Older packages, which hide those of ALL from the session that puts them on its path. tf-keras is Keras 2.
OLD = Path(__file__).with_name(".nox") / "old"
OLD_PACKAGES = ("transformers==4.57.1", "huggingface-hub==0.36.2", "tokenizers==0.22.2", "tf-keras==2.21.0")

# XLA compiles each network for seconds, and the tests of both Pythons compile the same ones.
JAX_CACHE = {
    "JAX_COMPILATION_CACHE_DIR": str(Path(__file__).with_name(".nox") / "jax-cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
}

if shutil.which("pyenv"):  # its commands answer only for versions that are switched on: switch on all
    versions = subprocess.run(["pyenv", "versions", "--bare"], capture_output=True, text=True).stdout
    os.environ["PYENV_VERSION"] = ":".join(reversed(versions.split()))


def newest_python() -> str:
    """The newest Python on this machine that MXNet and JAX are for; `tests` has the oldest."""

    def answers(version: str) -> bool:
        python = shutil.which(f"python{version}")
        return (
            python is not None and subprocess.run([python, "--version"], capture_output=True).returncode == 0
        )

    return next(filter(answers, ("3.13", "3.12")), PYTHON)


def pip(run: Callable[..., Any], *arguments: str) -> None:
    """Install, and say nothing of it unless it fails, as nox does."""
    run("pip", "install", *arguments, *CONSTRAINTS, silent=True)


def install(session: nox.Session, *frameworks: str, extras: str = "") -> Callable[..., Any]:
    """Install the project with these frameworks, in the versions it is tested with.

    Returns what runs a module with them. The sessions that take every framework share an environment,
    because it takes minutes and gigabytes.
    """
    if frameworks == FRAMEWORKS:
        python = ALL / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
        if not python.exists():
            session.run(
                shutil.which(f"python{PYTHON}") or sys.executable, "-m", "venv", str(ALL), external=True
            )
        run = partial(session.run, str(python), "-m", external=True)
    else:
        run = partial(session.run, "python", "-m")
    wanted = ",".join([*frameworks, *filter(None, [extras])])
    pip(run, "--editable", f".[{wanted}]")
    if "mxnet" in frameworks:
        # MXNet's metadata asks for NumPy 1; resnet_mxnet/compat.py says why NumPy 2 will do.
        pip(run, "--no-deps", "mxnet")
    return run


def install_families(run: Callable[..., Any]) -> None:
    """Install torchvision, timm and transformers, whose checkpoints the tests convert.

    The first two ask for a PyTorch of their own; what they need besides comes with transformers.
    """
    pip(run, "transformers")
    pip(run, "--no-deps", "torchvision", "timm")


def install_d2l(run: Callable[..., Any]) -> None:
    """Install d2l, whose metadata pins packages of 2022, and what it imports."""
    pip(run, "ipython", "matplotlib-inline", "pandas")
    pip(run, "--no-deps", "d2l")


def test(run: Callable[..., Any], *arguments: str) -> None:
    """pytest, some tests at a time."""
    at_once = ("--numprocesses=auto", "--maxprocesses=4", "--dist=loadgroup")
    run("pytest", *at_once, *arguments, env=JAX_CACHE)


@nox.session(venv_backend="none")
def compare(session: nox.Session) -> None:
    """The main job: the frameworks side by side on real images, proven the same, with a report."""
    run = install(session, *FRAMEWORKS)
    backends = [] if HAS_MXNET else [BACKENDS]
    run("common.cli", "compare", *(session.posargs or ["resnet18"]), *backends)


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """The whole suite, the frameworks in one process."""
    run = install(session, *FRAMEWORKS, extras="test")
    install_families(run)
    test(run, BACKENDS, *session.posargs)


def one_framework(session: nox.Session, framework: str) -> None:
    """The suite with only one framework installed: a package needs no other than its own."""
    run = install(session, framework, extras="test")
    pip(run, "mypy")
    run("mypy", f"resnet_{framework}")  # with the framework's own types
    # The longest first, so that no process is left alone with them.
    files = [*COMMAND_TESTS, *CONTRACT_TESTS, f"tests/test_{framework}.py"]
    if session.python == PYTHON:  # `tests` has proven that they agree, with the same wheels
        files += ["-k", "not agree"]
    test(run, f"--backends={framework}", *(session.posargs or files))


@nox.session(python=PYTHON)
def tests_torch(session: nox.Session) -> None:
    """The suite with only PyTorch installed."""
    one_framework(session, "torch")


@nox.session(python=PYTHON)
def tests_tf(session: nox.Session) -> None:
    """The suite with only TensorFlow installed."""
    one_framework(session, "tf")


@nox.session(python=newest_python())
def tests_jax(session: nox.Session) -> None:
    """The suite with only JAX installed, on the newest Python."""
    one_framework(session, "jax")


@nox.session(python=newest_python())
def tests_mxnet(session: nox.Session) -> None:
    """The suite with only MXNet installed, on the newest Python."""
    one_framework(session, "mxnet")


@nox.session(venv_backend="none")
def tests_d2l(session: nox.Session) -> None:
    """The published d2l 1.0.3 blocks against ours, and its networks and GluonCV's, converted."""
    run = install(session, *FRAMEWORKS, extras="test")
    install_d2l(run)
    pip(run, "--no-deps", "gluoncv", "torchvision")  # of GluonCV one module is used, which needs nothing else
    test(run, "tests/d2l", *session.posargs)


@nox.session(venv_backend="none")
def tests_families(session: nox.Session) -> None:
    """The networks that only older libraries have: transformers' in Flax and TensorFlow, d2l's in Keras 2."""
    run = install(session, *FRAMEWORKS, extras="test")
    install_d2l(run)
    pip(run, "pyyaml", "regex", "tqdm")  # what transformers needs besides
    run("pip", "install", "--no-deps", "--target", str(OLD), "--upgrade", *OLD_PACKAGES, silent=True)
    session.env["PYTHONPATH"] = str(OLD)
    test(run, BACKENDS, *(session.posargs or ["tests/families"]))


@nox.session(venv_backend="none")
def tests_zoo(session: nox.Session) -> None:
    """The published networks, deep ones too, converted; shows deviations, seconds and memory."""
    run = install(session, *FRAMEWORKS, extras="test")
    install_families(run)
    test(run, BACKENDS, "tests/zoo", "-rP", *session.posargs)


@nox.session(venv_backend="none")
def benchmark(session: nox.Session) -> None:
    """What the loop, the data and loading cost: `nox -s benchmark -- overhead`, or another."""
    run = install(session, *FRAMEWORKS)
    run("benchmarks", *session.posargs, env=JAX_CACHE)


@nox.session(python=PYTHON)
def docs(session: nox.Session) -> None:
    """The site, in docs/_build/html; no framework is needed. `-- --serve` shows it while one writes."""
    session.install("--editable", ".[docs]", *CONSTRAINTS)
    build = ["-b", "html", "-W", "--keep-going", "-d", "docs/_build/doctrees", "docs", "docs/_build/html"]
    if "--serve" in session.posargs:
        session.install("sphinx-autobuild", *CONSTRAINTS)
        session.run("sphinx-autobuild", *(part for part in build if part != "-W"), "--ignore", "docs/_build")
    else:
        session.run("sphinx-build", "-q", *build)
        session.log("open docs/_build/html/index.html")


@nox.session(venv_backend="none")
def tests_docs(session: nox.Session) -> None:
    """After `docs`: the site in Chromium and Firefox, its notebooks, exercises and fifth framework."""
    run = install(session, *FRAMEWORKS, extras="docs,test")
    session.run(
        "npm", "install", "--silent", "--no-save", "--prefix", str(AXE), "axe-core@4.14.1", external=True
    )
    test(run, BACKENDS, *(session.posargs or ["tests/docs"]))


@nox.session(venv_backend="none")
def measure(session: nox.Session) -> None:
    """Measure the figures of the site, as far as the source has changed: `nox -s measure -- padding`."""
    run = install(session, *FRAMEWORKS, extras="docs,test")
    install_families(run)
    run("docs.measure", *session.posargs, env=JAX_CACHE)


@nox.session(python=PYTHON)
@nox.parametrize("framework", FRAMEWORKS)
def tests_gpu(session: nox.Session, framework: str) -> None:
    """The shared suite on a GPU, with the framework's build for it, in an environment of its own.

    `-- --collect-only` installs and collects, without a GPU too.
    """
    if not ({"--collect-only", "--co"} & {*session.posargs} or shutil.which("nvidia-smi")):
        session.error("there is no GPU: nvidia-smi is not here; run it on a machine with NVIDIA's driver")
    session.install("--editable", ".[test]", *GPU_BUILDS[framework], *CONSTRAINTS)
    if framework == "mxnet":
        session.install("--no-deps", MXNET_GPU)
    wanted = session.posargs or GPU_TESTS
    session.run("pytest", "--device=gpu", f"--backends={framework}", *wanted, env=JAX_CACHE)


@nox.session(python=PYTHON)
def lint(session: nox.Session) -> None:
    """ruff and mypy; the frameworks are not needed."""
    session.install("--editable", ".", "mypy", "ruff", *CONSTRAINTS)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
