"""The project's commands: `nox -s compare`, `nox -s tests`, and the sessions CI runs."""

import ast
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nox

nox.options.default_venv_backend = "uv|venv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["tests"]

PYTHON = "3.11"
# uv where it is there: on the path, or beside the Python that runs nox, as `pip install "nox[uv]"` leaves it.
UV = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
# MXNet has no wheel for Windows or Apple silicon: there the other three are compared and tested.
HAS_MXNET = sys.platform == "linux" or (sys.platform == "darwin" and platform.machine() == "x86_64")
FRAMEWORKS = ("torch", "tf", "jax", "mxnet") if HAS_MXNET else ("torch", "tf", "jax")
BACKENDS = f"--backends={','.join(FRAMEWORKS)}"
# What the tests convert from: transformers, and what d2l and older releases of transformers import.
LIBRARIES = ("transformers", "ipython", "matplotlib-inline", "pandas", "pyyaml", "regex", "tqdm")
# Installed alone, because they ask for a PyTorch of their own or for packages of 2022. Of GluonCV one module
# is used, which needs nothing else.
LIBRARIES_ALONE = ("torchvision", "timm", "d2l", "gluoncv")
# Older packages, which hide those of ALL from the session that puts them on its path. tf-keras is Keras 2.
OLD_PACKAGES = ("transformers==4.57.1", "huggingface-hub==0.36.2", "tokenizers==0.22.2", "tf-keras==2.21.0")
# What a framework's absence could break, and the contract in brief; `tests` has the rest.
COMMAND_TESTS = (
    "tests/cli/test_compare.py::test_a_backend_that_is_missing_is_a_row_and_no_pass",
    "tests/cli/test_training.py::test_train_evaluate_and_predict_end_to_end",
    "tests/cli/test_training.py::test_a_missing_gpu_leaves_no_folder",
)
SMOKE_TESTS = (
    "tests/test_packages.py",
    "tests/test_tf.py",
    "tests/test_backends.py",
    "-k=not (test_backends or test_tf) or choice"
    " or smallest or momentum or optimizers_state or went_in or summary or gpu or lent",
)
GPU_TESTS = [
    *(f"tests/test_{part}.py" for part in ("backends", "checkpoints", "packages", "recipe")),
    "tests/training",
    "tests/gpu",
]
# PyPI's PyTorch for Linux has CUDA. MXNet's takes CUDA 11, the others bring newer.
GPU_BUILDS = {
    "torch": ["torch!=2.13.0+cpu"],  # which may lie in a folder that pip was told of
    "tf": ["tensorflow[and-cuda]"],
    "jax": ["jax[cuda13]", "flax", "optax"],
    "mxnet": [".[mxnet-gpu]"],
}
MXNET_GPU = "mxnet-cu112==1.9.1"
# PyTorch's builds for the CPU, a tenth of the size.
CPU_BUILDS = "https://download.pytorch.org/whl/cpu"
CONSTRAINTS = ("--constraint", "constraints.txt")
# The environment of all sessions with every framework, which takes gigabytes.
ALL = Path(__file__).with_name(".nox") / "all"
OLD = ALL / "old"
AXE = Path(__file__).with_name(".nox") / "axe"

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


def told_pip() -> dict[str, str]:
    """What pip was told by its files and, which goes before, by the environment."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True)  # nothing, where there is no pip
    told = {}
    for section in ("global", "install", ":env:"):
        for name, value in re.findall(rf"^{section}\.([\w-]+)=(.+)$", listed.stdout, re.MULTILINE):
            told[name] = ast.literal_eval(value)
    return told


def sources(told: Mapping[str, str], python: str, *, cpu_torch: bool, uv: bool) -> dict[str, str]:
    """Environment variables by which an installer finds what pip would, and PyTorch's build for the CPU.

    uv does not read pip's configuration. PyPI's PyTorch for Linux brings gigabytes of CUDA; a build for the
    CPU in a folder of wheels goes before it, and where there is none, PyTorch's own index has it.
    """
    folders = [folder.removeprefix("file://") for folder in told.get("find-links", "").split()]
    extra = told.get("extra-index-url", "").split()
    wheel = f"torch-*+cpu-cp{''.join(python.split('.')[:2])}-*.whl"
    at_hand = any(any(Path(folder).glob(wheel)) for folder in folders)
    from_pytorch = cpu_torch and sys.platform == "linux" and not at_hand
    if not uv:
        return {"PIP_EXTRA_INDEX_URL": " ".join([*extra, CPU_BUILDS])} if from_pytorch else {}
    found = {
        # A folder that is not there stops uv.
        "UV_FIND_LINKS": ",".join(folder for folder in folders if "://" in folder or Path(folder).is_dir()),
        "UV_DEFAULT_INDEX": told.get("index-url", ""),
        "UV_INDEX": " ".join(extra),
        "UV_INDEX_STRATEGY": "unsafe-best-match" if extra else "",  # the newest of all indexes, as pip does
        "UV_TORCH_BACKEND": "cpu" if from_pytorch else "",
    }
    return {name: value for name, value in found.items() if value and name not in os.environ}


class Environment:
    """Where a session works: installs what is missing, runs modules, says at its end what took how long."""

    def __init__(self, session: nox.Session, folder: Path | None = None, *, gpu: bool = False) -> None:
        self.session = session
        self.folder = folder or Path(session.env_dir).absolute()
        self.python = self.folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
        # nox knows its own uv by that name.
        self.uv = {"none": UV, "uv": "uv"}.get(session.venv_backend)
        self.gpu = gpu
        self.seconds: dict[str, float] = {}
        # Without bytecode each process that imports all frameworks takes 16 s of CPU for it, with it 7. It is
        # written as they are imported: compiling all that is installed would take 30 s.
        session.env["PYTHONDONTWRITEBYTECODE"] = None

    def __enter__(self) -> "Environment":
        return self

    def __exit__(self, *_: object) -> None:
        took = ", ".join(f"{what} {seconds:.0f} s" for what, seconds in self.seconds.items())
        self.session.log(f"{self.session.name} took: {took}")

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[what] = self.seconds.get(what, 0) + time.monotonic() - start

    def create(self) -> None:
        """The shared environment; nox creates the others."""
        python = shutil.which(f"python{PYTHON}") or sys.executable
        # With pip, for a run without uv.
        venv = [self.uv, "venv", "--seed", "--python", python] if self.uv else [python, "-m", "venv"]
        self.session.run_install(*venv, "--clear", str(self.folder), silent=True, external=True)

    def install(self, *extras: str, packages: Sequence[str] = (), alone: Sequence[str] = ()) -> None:
        """The project with these extras and packages in the versions it is tested with.

        `alone` come without what they ask for.
        """
        if "mxnet" in extras:
            # MXNet's metadata asks for NumPy 1; resnet_mxnet/compat.py says why NumPy 2 will do.
            alone = ("mxnet", *alone)
        self.pip("--editable", f".[{','.join(extras)}]" if extras else ".", *packages, *CONSTRAINTS)
        if alone:
            self.pip("--no-deps", *alone, *CONSTRAINTS)

    def pip(self, *arguments: str) -> None:
        """Install, unless that was done before; say nothing of it unless it fails, as nox does."""
        with self.timed("installing"):
            if not self.python.exists():
                self.create()
            ask = "import sys; print(*sys.version_info[:3], sep='.')"
            version = subprocess.check_output([self.python, "-c", ask], text=True).strip()
            pins = b"".join(Path(name).read_bytes() for name in ("pyproject.toml", "constraints.txt"))
            inputs = f"Python {version}, {hashlib.sha256(pins).hexdigest()}"
            record = self.folder / "installed"
            lines = record.read_text().splitlines() if record.exists() else []
            done = lines if lines[:1] == [inputs] else [inputs]
            if " ".join(arguments) in done:
                return
            by_uv = [str(self.uv), "pip", "install", "--python", str(self.python)]
            by_pip = [str(self.python), "-m", "pip", "install", "--no-compile"]
            command = by_uv if self.uv else by_pip
            cpu_torch = not self.gpu and any("torch" in argument for argument in arguments)
            env = sources(told_pip(), version, cpu_torch=cpu_torch, uv=bool(self.uv))
            self.session.run_install(*command, *arguments, env=env, silent=True, external=True)
            record.write_text("\n".join([*done, " ".join(arguments)]))

    def run(self, module: str, *arguments: str, **options: Any) -> None:
        with self.timed(module):
            self.session.run(str(self.python), "-m", module, *arguments, external=True, **options)

    def test(self, *arguments: str) -> None:
        """pytest, some tests at a time. CI reads how they ended."""
        at_once = ("--numprocesses=auto", "--maxprocesses=4", "--dist=loadgroup")
        ended = f"--junit-xml=.nox/results/{self.session.name}.xml"
        self.run("pytest", *at_once, ended, *arguments, env=JAX_CACHE)


@nox.session(venv_backend="none")
def compare(session: nox.Session) -> None:
    """The main job: the frameworks side by side on real images, proven the same, with a report."""
    with Environment(session, ALL) as environment:
        environment.install(*FRAMEWORKS)
        backends = [] if HAS_MXNET else [BACKENDS]
        environment.run("common.cli", "compare", *(session.posargs or ["resnet18"]), *backends)


@contextmanager
def test_environment(session: nox.Session) -> Iterator[Environment]:
    """Every framework, and all libraries whose networks the tests convert: installed once for these tests."""
    with Environment(session, ALL) as environment:
        environment.install(*FRAMEWORKS, "onnx", "test", packages=LIBRARIES, alone=LIBRARIES_ALONE)
        yield environment


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """The core of the suite, the frameworks in one process."""
    with test_environment(session) as environment:
        environment.test(BACKENDS, "-m", "not deep", *session.posargs)


@nox.session(venv_backend="none")
def tests_deep(session: nox.Session) -> None:
    """The rest of the suite, which takes longer."""
    with test_environment(session) as environment:
        environment.test(BACKENDS, "-m", "deep", *session.posargs)


def one_framework(session: nox.Session, framework: str) -> None:
    """Only one framework installed: a package needs no other than its own."""
    with Environment(session) as environment:
        environment.install(framework, "test", packages=["mypy"])
        environment.run("mypy", f"resnet_{framework}")  # with the framework's own types
        wanted = session.posargs or [*COMMAND_TESTS, *SMOKE_TESTS]
        environment.test("--numprocesses=0", f"--backends={framework}", *wanted)


@nox.session(python=PYTHON, allow_parallel=True)
def tests_torch(session: nox.Session) -> None:
    """A smoke test with only PyTorch installed."""
    one_framework(session, "torch")


@nox.session(python=PYTHON, allow_parallel=True)
def tests_tf(session: nox.Session) -> None:
    """A smoke test with only TensorFlow installed."""
    one_framework(session, "tf")


@nox.session(python=newest_python(), allow_parallel=True)
def tests_jax(session: nox.Session) -> None:
    """A smoke test with only JAX installed, on the newest Python."""
    one_framework(session, "jax")


@nox.session(python=newest_python(), allow_parallel=True)
def tests_mxnet(session: nox.Session) -> None:
    """A smoke test with only MXNet installed, on the newest Python."""
    one_framework(session, "mxnet")


@nox.session(python="3.12", allow_parallel=True)
def tests_between(session: nox.Session) -> None:
    """A smoke test of JAX and MXNet on the Python between the oldest and the newest."""
    with Environment(session) as environment:
        environment.install("jax", "mxnet", "test")
        environment.test("--numprocesses=0", "--backends=jax,mxnet", *(session.posargs or SMOKE_TESTS))


@nox.session(venv_backend="none")
def tests_d2l(session: nox.Session) -> None:
    """The published d2l 1.0.3 blocks against ours, and its networks and GluonCV's, converted."""
    with test_environment(session) as environment:
        environment.test("tests/d2l", *session.posargs)


@nox.session(venv_backend="none")
def tests_families(session: nox.Session) -> None:
    """The networks that only older libraries have: transformers' in Flax and TensorFlow, d2l's in Keras 2."""
    with test_environment(session) as environment:
        environment.pip("--no-deps", "--target", str(OLD), "--upgrade", *OLD_PACKAGES)
        session.env["PYTHONPATH"] = str(OLD)
        environment.test(BACKENDS, *(session.posargs or ["tests/families"]))


@nox.session(venv_backend="none")
def tests_zoo(session: nox.Session) -> None:
    """The published networks, deep ones too, converted; shows deviations, seconds and memory."""
    with test_environment(session) as environment:
        environment.test(BACKENDS, "tests/zoo", "-rP", *session.posargs)


@nox.session(venv_backend="none")
def benchmark(session: nox.Session) -> None:
    """What the loop, the data and loading cost: `nox -s benchmark -- overhead`, or another."""
    with Environment(session, ALL) as environment:
        environment.install(*FRAMEWORKS)
        environment.run("benchmarks", *session.posargs, env=JAX_CACHE)


@nox.session(python=PYTHON, allow_parallel=True)
def docs(session: nox.Session) -> None:
    """The site, in docs/_build/html; no framework is needed. `-- --serve` shows it while one writes."""
    build = ["-b", "html", "-W", "--keep-going", "-d", "docs/_build/doctrees", "docs", "docs/_build/html"]
    with Environment(session) as environment:
        environment.install("docs")
        if "--serve" in session.posargs:
            environment.pip("sphinx-autobuild", *CONSTRAINTS)
            lenient = (part for part in build if part != "-W")
            environment.run("sphinx_autobuild", *lenient, "--ignore", "docs/_build")
        else:
            environment.run("sphinx", "-q", *build)
            session.log("open docs/_build/html/index.html")


@nox.session(venv_backend="none")
def tests_docs(session: nox.Session) -> None:
    """After `docs`: the site in Chromium and Firefox, its notebooks, exercises and fifth framework."""
    with Environment(session, ALL) as environment:
        environment.install(*FRAMEWORKS, "docs", "test")
        axe = ("npm", "install", "--silent", "--no-save", "--prefix", str(AXE), "axe-core@4.14.1")
        session.run_install(*axe, external=True)
        environment.test(BACKENDS, *(session.posargs or ["tests/docs"]))


@nox.session(venv_backend="none")
def measure(session: nox.Session) -> None:
    """Measure the figures of the site, as far as the source has changed: `nox -s measure -- padding`."""
    with test_environment(session) as environment:
        environment.install(*FRAMEWORKS, "docs", "test")
        environment.run("docs.measure", *session.posargs, env=JAX_CACHE)


@nox.session(python=PYTHON)
@nox.parametrize("framework", FRAMEWORKS)
def tests_gpu(session: nox.Session, framework: str) -> None:
    """The shared suite on a GPU, with the framework's build for it, in an environment of its own.

    `-- --collect-only` installs and collects, without a GPU too.
    """
    if not ({"--collect-only", "--co"} & {*session.posargs} or shutil.which("nvidia-smi")):
        session.error("there is no GPU: nvidia-smi is not here; run it on a machine with NVIDIA's driver")
    with Environment(session, gpu=True) as environment:
        environment.install("test", packages=GPU_BUILDS[framework])
        if framework == "mxnet":
            environment.pip("--no-deps", MXNET_GPU)
        wanted = session.posargs or GPU_TESTS
        environment.run("pytest", "--device=gpu", f"--backends={framework}", *wanted, env=JAX_CACHE)


@nox.session(python=PYTHON, allow_parallel=True)
def lint(session: nox.Session) -> None:
    """ruff and mypy; the frameworks are not needed."""
    with Environment(session) as environment:
        environment.install(packages=["mypy", "ruff"])
        environment.run("ruff", "check", ".")
        environment.run("ruff", "format", "--check", ".")
        environment.run("mypy")
