"""`{api} common.weights`: every public name of a module, from its source as text; nothing is imported.

Descriptions are Markdown with the sections of Google's style: Args, Attributes, Returns, Raises.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from docutils import nodes
from source import ROOT
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Yields):$")
ENTRY = re.compile(r"^    (\S[^:]*): (.*)$")  # name: what it is


@dataclass
class Name:
    """A public name: how it is written, what its docstring says, and the names in it."""

    name: str
    kind: str  # as the Python domain has it: class, function, method, property, data
    signature: str
    docstring: str
    members: list[Name] = field(default_factory=list)


def path_of(module: str) -> Path:
    """The file of a module or package."""
    file = ROOT.joinpath(*module.split("."))
    return file / "__init__.py" if file.is_dir() else file.with_suffix(".py")


def public(module: str) -> tuple[str, list[Name]]:
    """A module's docstring, and the public names that are defined in it."""
    text = path_of(module).read_text(encoding="utf-8")
    tree = ast.parse(text)
    return ast.get_docstring(tree) or "", list(names(tree.body, text.splitlines(), in_class=False))


def exports(module: str) -> dict[str, str]:
    """The names a package offers that others of its modules define, and which those are."""
    tree = ast.parse(path_of(module).read_text(encoding="utf-8"))
    if not any(
        isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__" for node in tree.body
    ):
        return {}
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    found = {name.name: origin(node.module or "", name.name) for node in imports for name in node.names}
    return {name: origin for name, origin in found.items() if origin}


def origin(module: str, name: str) -> str:
    """The module that defines a name which this one, or one that it imports from, has; of others, none."""
    if not path_of(module).is_file():
        return ""
    defined = any(found.name == name for found in public(module)[1])
    return module if defined else exports(module).get(name, "")


def names(body: list[ast.stmt], lines: list[str], in_class: bool) -> Iterator[Name]:
    """The public names that these statements define."""
    for node in body:
        match node:
            case ast.ClassDef(name=name) if name[0] != "_":
                bases = ", ".join(map(ast.unparse, node.bases))
                members = list(names(node.body, lines, in_class=True))
                for member in members:
                    if bases and member.kind != "data" and not member.docstring:
                        member.docstring = f"As in `{bases}`."
                yield Name(name, "class", f"({bases})" if bases else "", docstring(node), members)
            case ast.FunctionDef(name=name) if name[0] != "_" and not is_setter(node):
                yield function(node, in_class)
            case ast.FunctionDef(name="__init__" | "__call__" as name):
                yield Name(name, "method", signature(node, in_class), docstring(node))
            case ast.AnnAssign(target=ast.Name(id=name)) if name[0] != "_":
                value = f" = {short(node.value)}" if node.value else ""
                yield Name(
                    name, "data", f": {ast.unparse(node.annotation)}{value}", comment(lines, node.lineno)
                )
            case ast.Assign(targets=[ast.Name(id=name)]) if name[0] != "_":
                yield Name(name, "data", f" = {short(node.value)}", comment(lines, node.lineno))


def is_setter(node: ast.FunctionDef) -> bool:
    """Whether this is the other half of a property, which is described where its value is."""
    return any(ast.unparse(decorator) == f"{node.name}.setter" for decorator in node.decorator_list)


def function(node: ast.FunctionDef, in_class: bool) -> Name:
    """A function, a method, or a property."""
    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
    if decorators & {"property", "cached_property"}:
        returns = f": {ast.unparse(node.returns)}" if node.returns else ""
        return Name(node.name, "property", returns, docstring(node))
    return Name(node.name, "method" if in_class else "function", signature(node, in_class), docstring(node))


def signature(node: ast.FunctionDef, in_class: bool) -> str:
    """What stands behind the name, without the object a method is of."""
    arguments = ast.unparse(node.args)
    if in_class and not any(ast.unparse(d) == "staticmethod" for d in node.decorator_list):
        arguments = arguments.partition(", ")[2]
    return f"({arguments})" + (f" → {ast.unparse(node.returns)}" if node.returns else "")


def docstring(node: ast.ClassDef | ast.FunctionDef) -> str:
    """A docstring without its indentation."""
    return ast.get_docstring(node) or ""


def short(value: ast.expr) -> str:
    """A value, or its beginning."""
    text = ast.unparse(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def comment(lines: list[str], number: int) -> str:
    """What the source says of the value in this line: behind it, or above it."""
    _, mark, behind = lines[number - 1].partition("  # ")
    above = []
    for line in reversed(lines[: number - 1]):
        if not line.startswith("# "):
            break
        above.insert(0, line.removeprefix("# "))
    return behind if mark else " ".join(above)


def markdown(text: str) -> list[str]:
    """A docstring as Markdown: its sections become lists."""
    lines: list[str] = []
    section = ""
    for line in text.splitlines():
        if found := SECTION.match(line):
            section = found[1]
            lines += ["", f"**{section}**", ""]
        elif line and not line.startswith(" "):
            section = ""
            lines.append(line)
        elif section and (found := ENTRY.match(line)):
            lines.append(f"- `{found[1]}`: {found[2]}")
        else:
            lines.append(
                line.removeprefix("    ")
                if section in ("Returns", "Yields")
                else line[2:]
                if section
                else line
            )
    return lines


class Api(SphinxDirective):
    """A module's public names."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        module = self.arguments[0]
        self.env.note_dependency(str(path_of(module)))
        said, found = public(module)
        domain = self.env.domains.python_domain
        domain.note_module(module, f"module-{module}", "", "", False)
        anchor = nodes.target("", "", ids=[f"module-{module}"])
        exported = [self.exported(module, name, origin) for name, origin in exports(module).items()]
        entries = [self.entry(module, name) for name in found]
        return [anchor, *self.described(said), nodes.bullet_list("", *exported), *entries]

    def exported(self, module: str, name: str, origin: str) -> nodes.list_item:
        """A name that can be imported from here, too, with a link to where it is described."""
        full = f"{module}.{name}"
        item = nodes.list_item("", ids=[full])
        item += self.parse_text_to_nodes(f"{{py:obj}}`{full} <{origin}.{name}>`")
        self.env.domains.python_domain.note_object(full, "data", full, aliased=True, location=item)
        return item

    def entry(self, parent: str, name: Name) -> addnodes.desc:
        """A name's signature, description and members."""
        full = f"{parent}.{name.name}"
        line = addnodes.desc_signature("", "", ids=[full], classes=["sig-object", "py"])
        line["_toc_parts"], line["_toc_name"] = (), ""
        if name.kind in ("class", "property"):
            line += addnodes.desc_annotation("", f"{name.kind} ")
        line += [addnodes.desc_name("", name.name), nodes.Text(name.signature)]
        content = addnodes.desc_content("", *self.described(name.docstring))
        content += [self.entry(full, member) for member in name.members]
        self.env.domains.python_domain.note_object(full, name.kind, full, location=line)
        return addnodes.desc(
            "", line, content, domain="py", objtype=name.kind, desctype=name.kind, no_index=True
        )

    def described(self, text: str) -> list[nodes.Node]:
        """A docstring's nodes."""
        return self.parse_text_to_nodes("\n".join(markdown(text))) if text else []


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("api", Api)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
