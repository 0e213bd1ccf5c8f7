"""{held}`tests/test_backends.py::test_logits`: the test that holds what the prose says; it must exist."""

from __future__ import annotations

import ast
from functools import cache
from typing import Any

from docutils import nodes
from source import ROOT
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxRole

logger = logging.getLogger(__name__)


@cache
def tests(file: str) -> frozenset[str]:
    """The tests in a file, in classes or not."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


class Held(SphinxRole):
    """A test's name, as one gives it to pytest."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        file, _, name = self.text.partition("::")
        if not (ROOT / file).is_file() or (name and name not in tests(file)):
            logger.error("there is no test %s", self.text, location=self.get_location(), type="held")
        return [nodes.inline("", "held by "), nodes.literal("", self.text, classes=["held"])], []


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the role."""
    app.add_role("held", Held())
    return {"parallel_read_safe": True, "parallel_write_safe": True}
