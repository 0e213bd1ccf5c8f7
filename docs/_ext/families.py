"""`{families}`: other people's networks as a table, from the data that `resnet-tabs convert` works by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from docutils import nodes
from measured import markdown_table
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from common.backend import BACKENDS
from common.interop.families import FAMILIES, Family

HEADINGS = ("Family", "Library", "Framework", "`--to` writes", "Blocks of two 3×3", "Bottlenecks")


def axes(said: Mapping[str, Any] | None) -> str:
    """What these networks have otherwise than the chapter's."""
    if said is None:
        return "none in this library"
    return ", ".join(f"`{name}={value!r}`" for name, value in said.items()) or "as the chapter"


def row(name: str, family: Family) -> list[str]:
    """A family's line."""
    files = [f"`{suffix}`" if suffix else "a folder or checkpoint" for suffix in family.suffixes]
    framework = BACKENDS[family.framework].label
    return [
        f"`{name}`",
        family.package,
        framework,
        ", ".join(files),
        axes(family.basic),
        axes(family.bottleneck),
    ]


class Families(SphinxDirective):
    """The table."""

    def run(self) -> list[nodes.Node]:
        rows = [row(name, family) for name, family in FAMILIES.items()]
        return self.parse_text_to_nodes("\n".join(markdown_table(HEADINGS, rows)))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("families", Families)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
