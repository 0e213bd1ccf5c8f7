"""The chapter as a notebook for each framework, written from the same Markdown as its pages.

Prose stays prose; what was measured is filled in; `{four}` and `{run}` become code of the one framework, a
class after the imports of its file. A class that a cell defines is not imported again later: whoever changes
a block in the notebook sees what becomes of the network.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from drawings import drawing
from measured import table_lines, text
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from run import Block
from source import DOCS, ROOT, Stale, look_up
from sphinx.application import Sphinx
from sphinx.util import logging
from tabs import FRAMEWORKS

from common.backend import BACKENDS

FENCE = re.compile(r"^(`{3,}|:{3,})\{([\w-]+)\} *(.*)$")
OPTION = re.compile(r"^:([\w-]+):\s*(.*)$")
ROLE = re.compile(r"\{(measured|held)\}`([^`]+)`")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:)[^)]+\)")
LABEL = re.compile(r"^\$\$ \([\w-]+\)$", re.MULTILINE)
BESIDE = {"mxnet": "; pip install --no-deps mxnet==1.9.1"}  # its metadata asks for NumPy 1

logger = logging.getLogger(__name__)


@dataclass
class Notebook:
    """Cells for one framework, as the pages are read."""

    framework: str
    cells: list[tuple[str, str]] = field(default_factory=list)
    own: set[str] = field(default_factory=set)  # classes that a cell defined

    def prose(self, lines: list[str]) -> None:
        """Add Markdown, to the cell before if that is Markdown too."""
        added = plain("\n".join(lines)).strip("\n")
        if not added:
            return
        if self.cells and self.cells[-1][0] == "markdown" and not added.startswith("#"):
            added = f"{self.cells.pop()[1]}\n\n{added}"
        self.cells.append(("markdown", added))

    def code(self, code: str) -> None:
        """Add a cell to be run."""
        lines = (self.without_own(line) for line in code.strip("\n").split("\n"))
        self.cells.append(("code", "\n".join(line for line in lines if line is not None).strip("\n")))

    def without_own(self, line: str) -> str | None:
        """An import without the classes that the notebook defined itself; None if nothing is left."""
        found = re.match(rf"(from resnet_{self.framework}(?:\.\w+)? import )([\w, ]+)$", line)
        if not found:
            return line
        names = [name for name in found[2].split(", ") if name not in self.own]
        return found[1] + ", ".join(names) if names else None

    def read(self, lines: list[str]) -> None:
        """Turn Markdown into cells."""
        for directive in directives(lines):
            if isinstance(directive, list):
                self.prose(directive)
            else:
                getattr(self, directive.name.replace("-", "_"), self.unknown)(directive)

    def unknown(self, directive: Directive) -> None:
        """A directive that has no place in a notebook would be lost without a word."""
        raise ValueError(f"notebooks.py does not know {{{directive.name}}}")

    def toctree(self, directive: Directive) -> None:
        """A notebook has its pages in a row."""

    measured_with = toctree

    def run(self, directive: Directive) -> None:
        """Code that a reader can run."""
        block = Block(directive.argument, "\n".join(directive.content).strip("\n"))
        code = block.of(self.framework if block.kind == "four" else "")
        self.code("\n".join(f"!{line}" for line in code.split("\n")) if block.kind == "sh" else code)

    def four(self, directive: Directive) -> None:
        """A class with its file's imports, ready to be changed and run; less than a class is only shown."""
        file, *name = directive.argument.split()
        path = f"resnet_{self.framework}/{file}"
        source = (ROOT / path).read_text(encoding="utf-8")
        tree = ast.parse(source)
        classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        if directive.options or not name or name[0] not in classes:
            raise ValueError(f"in the chapter {{four}} takes a class of {file}, which a cell can define")
        imports = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        excerpt = ast.get_source_segment(source, classes[name[0]])
        self.code("\n".join([f"# {path}", *imports, "", "", str(excerpt)]))
        self.own.add(name[0])

    def literalinclude(self, directive: Directive) -> None:
        """A file of an exercise: to be run if this framework, or none, is enough for it."""
        code = (DOCS / directive.argument.removeprefix("/")).read_text(encoding="utf-8")
        if needs(code) <= {self.framework}:
            self.code(code)
        else:
            self.prose(["```python", code.rstrip("\n"), "```"])

    def drawing(self, directive: Directive) -> None:
        """The drawing in words, which every notebook program shows."""
        self.prose(["> " + " ".join(directive.content), ">", f"> {drawing(directive.argument)[1]}"])

    def plot(self, directive: Directive) -> None:
        """What a plot on the page shows."""
        self.prose([f"> A plot on the page: {directive.options['title']}."])

    def measured_table(self, directive: Directive) -> None:
        """The table of the page."""
        self.prose(table_lines(look_up(directive.argument), directive.options.get("format", "")))

    def dropdown(self, directive: Directive) -> None:
        """A solution, which is not folded here."""
        self.prose([f"**{directive.argument}**"])
        self.read(directive.content)

    def tab_set(self, directive: Directive) -> None:
        """Of tabs, the framework's own."""
        for tab in directives(directive.content):
            if isinstance(tab, Directive) and tab.options["sync"] == self.framework:
                self.read(tab.content)


@dataclass(frozen=True)
class Directive:
    """A directive of MyST, between fences."""

    name: str
    argument: str
    options: dict[str, str]
    content: list[str]


def directives(lines: list[str]) -> Iterator[Directive | list[str]]:
    """The directives among lines, and the lines between them; code that is only shown is among these."""
    between: list[str] = []
    rest = iter(lines)
    for line in rest:
        found = FENCE.match(line)
        if not found:
            between.append(line)
            continue
        yield between
        between = []
        inside = []
        for inner in rest:
            if inner == found[1]:
                break
            inside.append(inner)
        options = {}
        while inside and (option := OPTION.match(inside[0])):
            options[option[1]] = option[2].strip('"')
            inside.pop(0)
        yield Directive(found[2], found[3], options, inside)
    yield between


def plain(markdown: str) -> str:
    """Markdown as a notebook program knows it: roles filled in, links to pages as their text."""

    def role(found: re.Match[str]) -> str:
        if found[1] == "held":
            return f"held by `{found[2]}`"
        address, _, how = found[2].replace("\\|", "|").partition("|")  # within a table it is escaped
        return text(look_up(address), how)

    return LABEL.sub("$$", LINK.sub(r"*\1*", ROLE.sub(role, markdown)))


def needs(code: str) -> set[str]:
    """The frameworks that code imports, as they are or as our package."""
    own = {"torch": "torch", "jax": "jax", "flax": "jax", "tensorflow": "tf", "keras": "tf", "mxnet": "mxnet"}
    own |= {f"resnet_{name}": name for name in FRAMEWORKS}
    names = re.findall(r"^\s*(?:import|from) (\w+)", code, re.MULTILINE)
    return {own[name] for name in names if name in own}


def pages() -> list[Path]:
    """The chapter's pages in the order of their table of contents."""
    index = DOCS / "chapter" / "index.md"
    names = next(
        d.content
        for d in directives(index.read_text(encoding="utf-8").split("\n"))
        if isinstance(d, Directive) and d.name == "toctree"
    )
    return [index.with_name(f"{name}.md") for name in names if name]


def notebook(framework: str) -> nbformat.NotebookNode:
    """The chapter in this framework."""
    label = BACKENDS[framework].label
    install = f'pip install ".[{framework}]"{BESIDE.get(framework, "")}'
    made = Notebook(framework)
    made.prose(
        [
            f"# ResNet in {label}",
            "",
            f"The chapter of the resnet-tabs book, with the code of {label}. Run the cells from top to "
            "bottom. A cell that defines a class has the tested source of the package: change it, and the "
            "cells below use yours.",
            "",
            "The packages must be in the environment of this notebook. In a clone of the repository:",
            "",
            f"```sh\n{install}\n```",
        ]
    )
    made.code(f"import resnet_{framework}  # says whether all is installed")
    for page in pages():
        made.read(page.read_text(encoding="utf-8").split("\n"))
    cells = [
        {"markdown": new_markdown_cell, "code": new_code_cell}[kind](source, id=f"cell-{i}")
        for i, (kind, source) in enumerate(made.cells)
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return new_notebook(cells=cells, metadata=kernel)


def write(app: Sphinx, failed: Exception | None) -> None:
    """Write the four beside the pages."""
    if failed or app.builder.name != "html":
        return
    folder = Path(app.outdir) / "notebooks"
    folder.mkdir(exist_ok=True)
    for framework in FRAMEWORKS:
        try:
            nbformat.write(notebook(framework), folder / f"chapter-{framework}.ipynb")
        except (Stale, ValueError) as error:
            logger.error("the chapter's notebook: %s", error, type="notebooks")


def setup(app: Sphinx) -> dict[str, Any]:
    """Write them when the pages are."""
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
