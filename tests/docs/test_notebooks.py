"""The chapter's notebooks run from first cell to last, and have no leftovers of the site's Markdown."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
nbclient = pytest.importorskip("nbclient", reason="nbclient, nbformat and ipykernel run the notebooks")


@pytest.fixture(scope="module")
def notebooks() -> object:
    """The module of the site that writes them."""
    sys.path[:0] = [str(DOCS / "_ext")]
    try:
        import notebooks

        return notebooks
    finally:
        sys.path.remove(str(DOCS / "_ext"))


def test_execution(backend: str, notebooks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(DOCS.parent))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    made = notebooks.notebook(backend)
    nbclient.NotebookClient(made, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = [output for cell in made.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any(output.get("name") == "stdout" for output in printed)


def test_prose_is_plain(backend: str, notebooks) -> None:
    made = notebooks.notebook(backend)
    prose = "\n".join(cell.source for cell in made.cells if cell.cell_type == "markdown")
    assert not re.search(r"\{[a-z-]+\}`|^:::|^```\{|\]\(\.\./", prose, re.MULTILINE)
    code = "\n".join(cell.source for cell in made.cells if cell.cell_type == "code")
    others = {"torch", "jax", "tf", "mxnet"} - {backend}
    assert not re.search(rf"resnet_({'|'.join(others)})\b", code)
