"""Who leans on whom in `common`: no circles, no arrow up, and a package that is imported brings no proof."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("resnet_torch", "resnet_jax", "resnet_tf", "resnet_mxnet")
# From the bottom up. A room stands on those of lower floors, and knows none beside it or above.
FLOORS = (
    {"reading"},
    {"errors", "timing"},
    {"architecture", "files", "processes"},
    {"layout", "weights"},
    {"deviation", "horizon", "onnx_graph", "recipe", "summary"},
    {"gate"},
    {"backend"},
    {"oracle", "pages", "data"},
    {"proof", "bench", "interop", "training"},
    {"cli"},
)


def modules() -> dict[str, Path]:
    """Every module of `common` and of the packages, by its dotted name."""
    found = {}
    for package in ("common", *PACKAGES):
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imported(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules among these that a file imports, at the top or within; not those for type checkers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else node.module for name in names}
    return found & set(known)


def room(name: str) -> str:
    """The folder or file of `common` that a module lies in; "" for `common` itself."""
    return name.removeprefix("common").removeprefix(".").split(".")[0]


def test_no_modules_import_each_other_in_a_circle() -> None:
    known = modules()
    TopologicalSorter({name: imported(path, known) - {name} for name, path in known.items()}).prepare()


def test_rooms_stand_only_on_those_below() -> None:
    known = {name: path for name, path in modules().items() if room(name) and name.startswith("common")}
    floor = {name: number for number, rooms in enumerate(FLOORS) for name in rooms}
    assert {room(name) for name in known} == set(floor)
    up = {
        f"{name} → {other}"
        for name, path in known.items()
        for other in imported(path, known)
        if room(other) != room(name) and floor[room(other)] >= floor[room(name)]
    }
    assert not up


def test_packages_stand_on_the_ground_floor_on_training_and_families() -> None:
    known = modules()
    for name, path in known.items():
        if name.startswith(PACKAGES):
            rooms = {room(other) for other in imported(path, known) if other.startswith("common")}
            assert not rooms & {"proof", "bench", "cli"}, name


@pytest.mark.core_in("torch")
def test_importing_a_package_loads_nothing_of_proof_bench_or_cli(backend: str) -> None:
    code = f"import sys, resnet_{backend}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    loaded = [name for name in done.stdout.split() if name.startswith("common.")]
    assert "common.training.trainer" in loaded
    assert not [name for name in loaded if room(name) in ("proof", "bench", "cli")]
