"""The fifth framework of the pages holds the contract: the shared suite runs over it, with no framework."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from common.backend import BACKENDS

ROOT = Path(__file__).parents[2]
SUITE = [f"tests/test_{part}.py" for part in ("backends", "checkpoints", "recipe")]
# What the suite asks of each of the four in its own words, and of no contract.
FOUR_ONLY = (
    "bfloat16",  # MXNet, which has none, is left out by name
    "leaves_the_framework_in_float32",  # where a framework keeps its default type
    "no_gradient_is_computed_of_what_is_frozen",  # and its gradients
    "a_trainer_hands_the_recipe_on",  # a class for users; the command needs none
)


def pytest_over_the_fifth(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The shared suite, with `--backends fifth`, in a process whose registry has it."""
    chosen = " and ".join(f"not {name}" for name in FOUR_ONLY)
    command = [sys.executable, "-m", "pytest", "-p", "resnet_fifth", "--backends=fifth", "-q", "-k", chosen]
    environment = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "docs" / "fifth")])
    return subprocess.run(
        [*command, *SUITE, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def test_the_fifth_framework_passes_the_shared_suite() -> None:
    done = pytest_over_the_fifth()
    assert done.returncode == 0, done.stdout[-3000:]
    assert " failed" not in done.stdout.splitlines()[-1]


@pytest.fixture
def prove(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The quick proof that every build runs; the registry has the fifth only as long as this takes."""
    monkeypatch.syspath_prepend(ROOT / "docs" / "fifth")
    proof, package = import_module("prove"), import_module("resnet_fifth")
    BACKENDS["fifth"] = package.FIFTH
    yield proof
    del BACKENDS["fifth"]


def test_the_quick_proof_holds(prove: ModuleType) -> None:
    assert [what for what, off, bound in prove.deviations() if not off <= bound] == []


@pytest.mark.parametrize(
    ("module", "name", "wrong"),
    [
        (
            "layers",
            "channel_mean",
            lambda X: X.sum().sum().sum() * (1 / (X.data.size // X.data.shape[-1] - 1)),
        ),
        ("layers", "pads", lambda X, size, stride, padding: [(size // 2, size // 2)] * 2),
    ],
)
def test_the_quick_proof_finds_a_wrong_layer(
    prove: ModuleType, monkeypatch: pytest.MonkeyPatch, module: str, name: str, wrong: object
) -> None:
    monkeypatch.setattr(f"resnet_fifth.{module}.{name}", wrong)
    assert [what for what, off, bound in prove.deviations() if not off <= bound]
