"""The build: quick, small, without a framework, and strict about figures that are not the source's."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.docs.conftest import ROOT

COLD, WARM, SIZE = 60, 5, 6_000_000  # seconds, seconds, bytes
NO_FRAMEWORK = """
import runpy, sys
sys.modules |= dict.fromkeys(["torch", "tensorflow", "keras", "jax", "flax", "mxnet"])  # none can be imported
sys.argv = ["sphinx-build", *sys.argv[1:]]
runpy.run_module("sphinx", run_name="__main__")
"""


def build(docs: Path) -> subprocess.CompletedProcess[str]:
    """Build the pages of a checkout, where no framework can be imported."""
    built = docs / "_build"
    strictly = ["-q", "-b", "html", "-W", "--keep-going"]
    arguments = [*strictly, "-d", built / "doctrees", docs, built / "html"]
    command = [sys.executable, "-c", NO_FRAMEWORK, *map(str, arguments)]
    return subprocess.run(command, cwd=docs.parent, capture_output=True, text=True)


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The pages of a checkout of its own, built from nothing in the time that a test holds."""
    checkout = tmp_path_factory.mktemp("checkout")
    for name in subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")[:-1]:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, checkout / name)
    yield checkout / "docs"
    shutil.rmtree(checkout)


def computed() -> float:
    """Seconds that finished processes of this one have computed: on a quiet machine a build takes no longer.

    Here browsers are at work on the same cores.
    """
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_a_build_is_quick_and_small(docs: Path) -> None:
    seconds = []
    for _ in range(2):
        before = computed()
        done = build(docs)
        seconds.append(computed() - before)
        assert done.returncode == 0, done.stderr
    cold, warm = seconds
    assert cold <= COLD
    assert warm <= max(WARM, cold / 4)  # on a slow machine all takes longer
    files = [path for path in (docs / "_build" / "html").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= SIZE


@contextmanager
def longer(path: Path, text: str) -> Iterator[None]:
    """Within, the file ends in this text."""
    before = path.read_text(encoding="utf-8")
    path.write_text(f"{before}\n{text}\n", encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(before, encoding="utf-8")


def test_figures_of_other_source_are_refused(docs: Path) -> None:
    with longer(docs.parent / "resnet_torch" / "layers.py", "CHANGED = True"):
        done = build(docs)
    assert done.returncode != 0
    assert "padding was measured with other source than this; run: nox -s measure -- padding" in done.stderr


def test_a_figure_that_is_not_there_is_refused(docs: Path) -> None:
    with longer(docs / "traps" / "padding.md", "{measured}`padding:nowhere`"):
        done = build(docs)
    assert done.returncode != 0
    assert "padding has no 'nowhere'" in done.stderr


def test_every_figure_says_with_what_it_was_measured() -> None:
    for path in (ROOT / "docs" / "_data").rglob("*.json"):
        found = json.loads(path.read_text(encoding="utf-8"))
        assert {"source", "versions", "machine", "figures"} == set(found), path.name
