"""No figure in prose is typed by hand: it comes by a role from what was measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.conftest import ROOT

PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)
# What is no prose: fences, options, formulas, code, roles, and the targets of links.
NO_PROSE = [
    re.compile(r"^(`{3,}).*?^\1`*$", re.MULTILINE | re.DOTALL),
    re.compile(r"^\$\$.*?\$\$", re.MULTILINE | re.DOTALL),
    re.compile(r"^:[\w-]+:.*$", re.MULTILINE),
    re.compile(r"\{[\w-]+\}`[^`]*`"),
    re.compile(r"`+[^`]*`+"),
    re.compile(r"\$[^$]+\$"),
    re.compile(r"\b(?:Python|NumPy|MXNet|section) [\d.]+\d"),  # versions, and places in papers
    re.compile(r"\]\([^)]*\)|<https?://[^>]*>"),
]
UNITS = r"%|percent|points?|ms|milliseconds?|s|seconds?|minutes?|[kMG]B|images|parameters|times|×(?= )|steps"
FIGURES = [
    re.compile(r"\d[\d,.]*[\s\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}]?(?:%|percent\b)"),
    re.compile(rf"\d[\d,.]* (?:{UNITS})\b"),
    re.compile(r"(?<![\d.\w-])\d+\.\d+(?![\d.]*\.\d)"),  # but not 1.9.1, a version
    re.compile(r"\d+(?:\.\d+)?e[-+\N{MINUS SIGN}]?\d+"),
    re.compile(r"\d{1,3}(?:,\d{3})+"),
]


def figures(markdown: str) -> list[str]:
    """What looks like a measured figure in the prose of a page."""
    for pattern in NO_PROSE:
        markdown = pattern.sub(" ", markdown)
    return [found.group() for pattern in FIGURES for found in pattern.finditer(markdown)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_figure_is_typed(page: Path) -> None:
    assert not figures(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "typed",
    ["off by 26 %", "off by 26\N{NARROW NO-BREAK SPACE}%", "a loss of 0.31", "1e-5 apart", "took 12 s"],
)
def test_a_typed_figure_is_found(typed: str) -> None:
    assert figures(f"The logits are {typed}, which is much.")


def test_what_is_no_measured_figure_is_left() -> None:
    markdown = """
ResNet-18 has 3×3 convolutions (He et al. 2015, table 1) in MXNet 1.9.1, `epsilon=1e-5`, $10^{-3}$,
and {measured}`padding:both|.1%`.

```python
x = 0.5
```
"""
    assert not figures(markdown)
