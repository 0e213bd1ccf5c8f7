"""`{side-by-side} blocks.py`: one file of two packages, with the lines that correspond opposite one another.

Which lines correspond is computed at build, for each pair of packages, as biology aligns sequences (Needleman
and Wunsch 1970): the pairs in order whose likeness adds up to most. The page's script shows a pair.
"""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from source import ROOT
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from tabs import FRAMEWORKS

# What the four call differently, by what it is called here.
SYNONYMS = {
    "framework": "torch jax flax tf tensorflow keras mxnet gluon nn linen npx np jnp mx f",
    "module": "module hybridblock layer model sequential hybridsequential",
    "tensor": "tensor array ndarray",
    "forward": "forward call hybrid_forward __call__ setup __init__",
    "conv": "conv conv2d lazyconv2d",
    "norm": "batchnorm batchnorm2d lazybatchnorm2d batchnormalization norm",
    "channels": "channels features filters in_channels out_channels",
    "kernel": "kernel_size kernel",
    "stride": "strides stride",
    "dense": "dense linear lazylinear",
    "add": "add append add_module",
    "name": "name key prefix",
}
MEANING = {word: meaning for meaning, words in SYNONYMS.items() for word in words.split()}
LEAST = 0.25  # of their words that two lines share, to stand opposite one another


def words(line: str) -> frozenset[str]:
    """A line's words, as all four would call them, and those signs that say what kind of line it is."""
    found = re.findall(r"\w+|\S", line)
    return frozenset(MEANING.get(word.lower(), word.lower()) for word in found if word not in "()[]{},.:'\"")


def likeness(a: frozenset[str], b: frozenset[str]) -> float:
    """The share of words that two lines have in common; of empty lines a little."""
    if not a or not b:
        return 0.05 if a == b else 0.0
    shared = len(a & b) / len(a | b)
    return shared if shared >= LEAST else 0.0


def align(left: list[frozenset[str]], right: list[frozenset[str]]) -> list[tuple[int, int]]:
    """The pairs of lines, in order, whose likeness adds up to most."""
    best = [[0.0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i, a in enumerate(left):
        row, above = best[i + 1], best[i]
        for j, b in enumerate(right):
            row[j + 1] = max(above[j] + likeness(a, b), above[j + 1], row[j])
    pairs = []
    i, j = len(left), len(right)
    while i and j:
        if best[i][j] == best[i - 1][j]:
            i -= 1
        elif best[i][j] == best[i][j - 1]:
            j -= 1
        else:
            i, j = i - 1, j - 1
            pairs.append((i, j))
    return pairs[::-1]


def rows(left: list[str], right: list[str]) -> list[tuple[int, int, int]]:
    """Line numbers that share a row, −1 for none, and whether they say the same: 1, or 0."""
    a, b = ([words(line) for line in lines] for lines in (left, right))
    found: list[tuple[int, int, int]] = []
    i = j = 0
    for to_i, to_j in [*align(list(map(frozenset, a)), list(map(frozenset, b))), (len(a), len(b))]:
        found += [(k, -1, 0) for k in range(i, to_i)] + [(-1, k, 0) for k in range(j, to_j)]
        if to_i < len(a):
            found.append((to_i, to_j, int(a[to_i] == b[to_j])))
        i, j = to_i + 1, to_j + 1
    return found


def highlighted(text: str) -> list[str]:
    """Each line as HTML, without the marks of what has no colour: they are most of it."""
    html = highlight(text, PythonLexer(stripnl=False), HtmlFormatter(nowrap=True))
    return re.sub(r'<span class="[npwo]">([^<]*)</span>', r"\1", html).rstrip("\n").split("\n")


class SideBySide(SphinxDirective):
    """A file of two packages, which the reader chooses."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        file = self.arguments[0]
        paths = {name: ROOT / f"resnet_{name}" / file for name in FRAMEWORKS}
        for path in [*paths.values(), Path(__file__)]:
            self.env.note_dependency(str(path))
        texts = {name: path.read_text(encoding="utf-8") for name, path in paths.items()}
        lines = {name: text.rstrip("\n").split("\n") for name, text in texts.items()}
        data = {
            "file": file,
            "labels": FRAMEWORKS,
            "lines": {name: highlighted(text) for name, text in texts.items()},
            "rows": {f"{a} {b}": rows(lines[a], lines[b]) for a, b in itertools.combinations(FRAMEWORKS, 2)},
        }
        inline = json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("</", "<\\/")
        html = f"""<form class="side-by-side">
<p>{self.select("left", "torch")} {self.select("right", "jax")}</p>
<p class="says" aria-live="polite"></p>
<div class="highlight" role="region" tabindex="0" aria-label="{file} of two packages"><table></table></div>
<noscript><p>This page needs JavaScript to put the two files next to each other.</p></noscript>
<script type="application/json">{inline}</script>
</form>"""
        return [nodes.raw("", html, format="html")]

    def select(self, side: str, chosen: str) -> str:
        """A labelled choice of packages."""
        options = "".join(
            f'<option value="{name}"{" selected" if name == chosen else ""}>{label}</option>'
            for name, label in FRAMEWORKS.items()
        )
        return f'<label>{side.capitalize()} <select name="{side}">{options}</select></label>'


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("side-by-side", SideBySide)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
