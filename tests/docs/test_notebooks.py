"""The chapter's notebooks run from first cell to last, and have no leftovers of the site's Markdown."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

from tests.docs.conftest import ROOT


@pytest.fixture
def notebook(backend: str, site: Path) -> nbformat.NotebookNode:
    """The one that readers of this framework download."""
    return nbformat.read(site / "notebooks" / f"chapter-{backend}.ipynb", as_version=4)


def test_execution(notebook: nbformat.NotebookNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any(output.get("name") == "stdout" for output in printed)


def test_prose_is_plain(notebook: nbformat.NotebookNode, backend: str) -> None:
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert not re.search(r"\{[a-z-]+\}`|^:::|^```\{|\]\(\.\./", prose, re.MULTILINE)
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    others = {"torch", "jax", "tf", "mxnet"} - {backend}
    assert not re.search(rf"resnet_({'|'.join(others)})\b", code)
