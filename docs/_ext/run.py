"""Code that a reader can run, with what it printed when it was run: `nox -s measure -- runs`.

    ```{run} python       once, with no framework
    ```{run} four         in tabs; resnet_torch and "torch" become each package's own
    ```{run} sh           a command

The blocks of a page go on from one another, as in a notebook. Output of other code is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from docutils import nodes
from source import DOCS, Stale, depend, read
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from tabs import FRAMEWORKS, tab_set

BLOCK = re.compile(r"^(`{3,})\{run\} (python|four|sh)\n(.*?)^\1$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """Some code of a page; `kind` is python, four or sh."""

    kind: str
    code: str

    def of(self, framework: str) -> str:
        """The code in this framework's tab."""
        if self.kind != "four":
            return self.code
        return self.code.replace("resnet_torch", f"resnet_{framework}").replace('"torch"', f'"{framework}"')

    def key(self, framework: str) -> str:
        """What its output is filed under."""
        return sha256(f"{self.kind}\n{self.of(framework)}".encode()).hexdigest()[:16]

    @property
    def frameworks(self) -> list[str]:
        """The tabs it has; other code has one, without a name."""
        return list(FRAMEWORKS) if self.kind == "four" else [""]


def blocks(page: str) -> list[Block]:
    """Those of a page, given as Sphinx names it: traps/padding."""
    markdown = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    return [Block(kind, code.strip("\n")) for _, kind, code in BLOCK.findall(markdown)]


def pages() -> Iterator[str]:
    """Pages that have code to run."""
    for path in sorted(DOCS.rglob("*.md")):
        page = path.relative_to(DOCS).with_suffix("").as_posix()
        if not page.startswith("_") and blocks(page):
            yield page


def section(page: str) -> str:
    """The section of `source` that has a page's output."""
    return f"runs/{page.replace('/', '-')}"


class Run(SphinxDirective):
    """Code, and what it printed."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        depend(self.env, section(self.env.docname))
        block = Block(self.arguments[0], "\n".join(self.content).strip("\n"))
        try:
            printed = read(section(self.env.docname))["figures"]
            contents = {name: shown(block, name, printed) for name in block.frameworks}
        except Stale as error:
            raise self.error(str(error)) from None
        lines = tab_set(contents) if block.kind == "four" else contents[""]
        return self.parse_text_to_nodes("\n".join(lines))


def shown(block: Block, framework: str, printed: dict[str, str]) -> list[str]:
    """Markdown of the code and its output."""
    language = "sh" if block.kind == "sh" else "python"
    if block.key(framework) not in printed:
        raise Stale(f"this code was never run; run: nox -s measure -- runs ({json.dumps(block.code[:40])}…)")
    output = printed[block.key(framework)].rstrip("\n")
    lines = [f"````{{code-block}} {language}", block.of(framework), "````"]
    return [*lines, "", "````{code-block} text", ":class: output", "", output, "````"] if output else lines


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("run", Run)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
