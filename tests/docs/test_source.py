"""What makes a figure stale: other code that it was measured with, and nothing else."""

from __future__ import annotations

import ast
import sys

import pytest

sys.path[:0] = ["docs/_ext"]

from source import ROOT, canonical, files  # noqa: E402

CODE = '''
"""A module."""
import numpy as np

def double(x):
    """Twice x."""  # said twice
    return 2 * x
'''


def piece(code: str) -> str:
    return canonical(ast.parse(code).body)


def test_comments_docstrings_imports_and_layout_do_not_matter() -> None:
    assert piece(CODE) == piece("from numpy import pi\ndef double(x):\n    return (2\n        * x)")


@pytest.mark.parametrize("new", ["3 * x", "2 * y", "2 / x", "2.0 * x", "'2 * x'"])
def test_other_code_matters(new: str) -> None:
    assert piece(CODE.replace("2 * x", new)) != piece(CODE)


def names(section: str) -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in files(section)}


def test_a_figure_depends_on_what_is_imported_to_measure_it() -> None:
    needed = {
        "docs/measures/padding.py",
        "docs/measures/shared.py",
        "common/oracle.py",
        "common/proof/traps.py",
    }
    assert needed <= names("padding")
    assert {f"resnet_{name}/layers.py" for name in ("mxnet", "torch", "tf", "jax")} <= names("padding")
    assert "resnet_mxnet/compat.py" in names("padding")  # which the package's `__init__` imports
    assert not {name for name in names("padding") if name.startswith(("common/cli", "common/interop"))}


@pytest.mark.parametrize("section", ["runs/convert", "start", "fifth"])
def test_what_runs_commands_depends_on_all(section: str) -> None:
    assert {"common/cli/train.py", "common/interop/convert.py", "resnet_tf/files.py"} <= names(section)


def test_what_runs_exercises_depends_on_their_code() -> None:
    assert {"docs/exercises/plain.py", "resnet_torch/blocks.py"} <= names("depth")
