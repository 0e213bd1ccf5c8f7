"""Options and fixtures of the shared suite: which backends it runs over, on which device, and in which tier.

The core proves the claim: shapes, layer summaries, function, gradients, steps, interchange, the command, bad
input. `nox -s tests` runs it. What costs much and tells little more is marked `deep`: `nox -s tests_deep`.
"""

from __future__ import annotations

import os

if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    # Workers that all want every core slow each other down many times over. Before NumPy is imported, which
    # starts a thread for each core that it sees.
    cores = sorted(os.sched_getaffinity(0))
    shares = min(int(os.environ["PYTEST_XDIST_WORKER_COUNT"]), len(cores))
    os.sched_setaffinity(0, cores[int(worker.removeprefix("gw")) % shares :: shares])

import shutil
import signal
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from common.architecture import ZOO
from common.backend import BACKENDS, ORACLE
from common.training import curves
from tests.helpers import HAS_AVX512

if TYPE_CHECKING:
    from selenium import webdriver

for name, value in BACKENDS["tf"].environment.items():  # as the command does
    os.environ.setdefault(name, value)

# Trap: on one thread, PyTorch 2.13's oneDNN writes beyond its memory in the gradients of strided 1×1
# convolutions of under 8 channels, where there is AVX2 and no AVX-512: two lines of PyTorch alone crash.
if not HAS_AVX512:
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX")


if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell's background job ignores Ctrl-C, and so would the commands that the tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


# XLA's own switches, for the core; a fifth of the time. A JAX that no longer has one says so and ends.
QUICKLY = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backends",
        default=",".join(BACKENDS),
        help="backends under test, comma-separated; one that cannot be imported fails (default: all four)",
    )
    parser.addoption("--networks", type=int, default=0, help="which random networks to draw (default: 0)")
    parser.addoption("--device", default="cpu", choices=["cpu", "gpu"], help="where the backends compute")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    names = metafunc.config.getoption("--backends").split(",")
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", names)
    if "contract" in metafunc.fixturenames:  # which the oracle holds, too
        metafunc.parametrize("contract", [*names, ORACLE.name])
    if "two_backends" in metafunc.fixturenames:
        metafunc.parametrize("two_backends", list(combinations(names, 2)), ids="-".join)
    if "backend_pair" in metafunc.fixturenames:  # every ordered pair, each with itself too
        metafunc.parametrize("backend_pair", [(a, b) for a in names for b in names], ids="-".join)


def several_backends(config: pytest.Config) -> bool:
    return "," in config.getoption("--backends")


def pytest_configure(config: pytest.Config) -> None:
    """Where several backends are under test, XLA compiles JAX' small networks quickly and not well.

    No deviation grows by it. Where JAX is alone (`nox -s tests_jax`) it compiles as a user's does, and
    wherever one sets these variables; in the deep tier it does for a large network, and where a test asks for
    it (`tests.helpers.optimised`).
    """
    if several_backends(config):
        os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        if config.getoption("markexpr") == "not deep":
            os.environ.setdefault("XLA_FLAGS", QUICKLY)


@pytest.hookimpl(tryfirst=True)  # before xdist looks at the groups, and pytest at the tiers
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of several backends each goes to one worker, which compiles for all its tests, and these go first."""
    several = several_backends(config)
    for item in items:
        backend = parameters(item).get("backend") or parameters(item).get("contract")
        if any(backend not in marker.args for marker in item.iter_markers("core_in")):
            item.add_marker(pytest.mark.deep)
        name = backend or item.path.stem.removeprefix("test_")
        if name in BACKENDS and several and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(name))
    items.sort(key=lambda item: not item.get_closest_marker("xdist_group"))


def parameters(item: pytest.Item) -> dict[str, str]:
    """What a test is parametrised with."""
    return getattr(getattr(item, "callspec", None), "params", {})


@pytest.fixture(scope="session")
def backends(pytestconfig: pytest.Config) -> list[str]:
    """Names of all backends under test."""
    return pytestconfig.getoption("--backends").split(",")


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> str:
    """The device the backends compute on."""
    return pytestconfig.getoption("--device")


@pytest.fixture(scope="session", autouse=True)
def undrawn() -> Iterator[Callable[..., None]]:
    """No curves are drawn in this process after each epoch, which takes most of a short run's time."""
    with pytest.MonkeyPatch.context() as patch:
        draw = curves.draw
        patch.setattr(curves, "draw", lambda *arguments: None)
        yield draw


@pytest.fixture
def drawn(undrawn: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Here they are."""
    monkeypatch.setattr(curves, "draw", undrawn)


@pytest.fixture(scope="module")
def small() -> Iterator[str]:
    """The name of a small network in the zoo, for commands in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ZOO, "small", {"stages": ((1, 4), (1, 8))})
        yield "small"


@pytest.fixture
def sample_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The shipped sample is the data, whatever else is on the machine."""
    monkeypatch.delenv("RESNET_TABS_DATA", raising=False)
    monkeypatch.setattr("common.data.fashion_mnist.DEBIAN", tmp_path / "none")
    monkeypatch.setattr("common.data.fashion_mnist._cache", lambda: tmp_path / "none")


@pytest.fixture
def no_full_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Commands run from here find no full set in the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("RESNET_TABS_DATA", raising=False)


@pytest.fixture
def hangups() -> Iterator[None]:
    """SIGHUP is heard, though the tests may run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="session")
def browser() -> Iterator[webdriver.Chrome]:
    """Chromium without a window, that notes what it fetches and what scripts say."""
    from selenium import webdriver

    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (binary and driver):
        message = "no chromium and chromedriver here; apt-get install chromium chromium-driver"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()
