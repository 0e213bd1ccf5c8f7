"""`{four} blocks.py Residual`: the same piece of the four packages, in tabs, from the source that is tested.

Where a piece has no name of its own it goes from the first line that holds a text to the next that holds
another:

    :::{four} layers.py
    :torch-from: "class BatchNorm2d("
    :torch-to: "return Y"
    :::

A framework that is not given is said to need nothing, if one is given at all.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

FRAMEWORKS = {"torch": "PyTorch", "jax": "JAX", "tf": "TensorFlow", "mxnet": "MXNet"}


def tab_set(contents: dict[str, list[str]]) -> list[str]:
    """Markdown of tabs that are switched together on all pages, by framework."""
    lines = ["::::::{tab-set}", ":sync-group: framework", ""]
    for name, content in contents.items():
        lines += [f":::::{{tab-item}} {FRAMEWORKS[name]}", f":sync: {name}", "", *content, ":::::"]
    return [*lines, "::::::"]


class Four(SphinxDirective):
    """A piece of each package, in tabs."""

    required_arguments = 1  # file
    optional_arguments = 1  # class or function
    option_spec: ClassVar = {
        f"{name}-{end}": directives.unchanged for name in FRAMEWORKS for end in ("from", "to")
    }

    def run(self) -> list[nodes.Node]:
        contents = {name: self.excerpt(name) for name in FRAMEWORKS}
        return self.parse_text_to_nodes("\n".join(tab_set(contents)), allow_section_headings=False)

    def excerpt(self, framework: str) -> list[str]:
        """Markdown that includes the framework's piece."""
        file, *name = self.arguments
        path = f"resnet_{framework}/{file}"
        start, end = (self.options.get(f"{framework}-{part}") for part in ("from", "to"))
        if self.options and not start:
            return [f"Nothing to do in {FRAMEWORKS[framework]}."]
        if not self.options:
            lines = [f":pyobject: {name[0]}"] if name else []
        else:
            lines = [f":start-at: {quoted(start)}", *([f":end-at: {quoted(end)}"] if end else [])]
        return [
            f":::{{literalinclude}} /../{path}",
            ":language: python",
            ":lineno-match:",
            *lines,
            f":caption: {path}",
            ":::",
        ]


def quoted(text: str) -> str:
    """As an option takes it: options are YAML, in which # and : mean something."""
    return json.dumps(text.strip('"'), ensure_ascii=False)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("four", Four)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
