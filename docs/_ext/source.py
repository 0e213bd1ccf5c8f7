"""What was measured, with which source, and where the figures lie."""

from __future__ import annotations

import ast
import json
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.environment import BuildEnvironment

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
DATA = DOCS / "_data"
PACKAGES = ("common", "resnet_torch", "resnet_jax", "resnet_tf", "resnet_mxnet")


class Stale(Exception):
    """A figure that is not there, or was measured with other code than this."""


@cache
def modules() -> dict[str, Path]:
    """The modules that figures can depend on, by name: those of the packages, and what measures."""
    found = {}
    for package in (*PACKAGES, "benchmarks"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found | {f"measures.{path.stem}": path for path in sorted((DOCS / "measures").glob("*.py"))}


@cache
def tree(path: Path) -> ast.Module:
    """A file's code."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imported(path: Path) -> frozenset[str]:
    """The modules that a file imports, and those that the registry loads for it."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    if found & {"common.backend", "common.load_backend"}:
        found |= {f"{package}.backend" for package in PACKAGES[1:]} | {"common.oracle"}
    found |= {name.rpartition(".")[0] for name in found}  # whose `__init__` runs too
    return frozenset(found & set(modules()))


@cache
def files(section: str) -> tuple[Path, ...]:
    """What a section's figures depend on: what measures SECTION or SECTION/PART, and all that it imports.

    Where it runs commands, or the code of pages, that is everything; but for the zoo, only what measures it.
    """
    name = section.partition("/")[0]
    first = [DOCS / "measures" / f"{name}.py"]
    if name == "zoo":  # which takes an hour
        return tuple(first)
    if name in ("depth", "exercises"):  # which run the exercises' code
        first += sorted((DOCS / "exercises").glob("*.py"))
    if name in ("fifth", "runs", "start"):
        first += [path for module, path in modules().items() if module.startswith(PACKAGES)]
    found: dict[Path, None] = {}
    while first:
        path = first.pop()
        if path not in found:
            found[path] = None
            first += [modules()[module] for module in imported(path)]
    return tuple(sorted(found))


def canonical(node: object) -> str:
    """The code of a node without docstrings, imports and comments; the same for all versions of Python."""
    if isinstance(node, list):
        return f"[{','.join(canonical(part) for part in node if not is_silent(part))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = {name: value for name, value in ast.iter_fields(node) if value not in (None, [])}
    return f"{type(node).__name__}({','.join(f'{n}={canonical(value)}' for n, value in fields.items())})"


def is_silent(node: object) -> bool:
    """Whether this is a docstring or an import, which compute nothing."""
    is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return is_text or isinstance(node, ast.Import | ast.ImportFrom)


@cache
def pieces(path: Path) -> frozenset[str]:
    """What stands at the top level of a file: classes, functions, values."""
    return frozenset(canonical([node]) for node in tree(path).body)


@cache
def digest(section: str) -> str:
    """A hash of the code of these files; where in them a class or function stands does not matter."""
    together = sorted(set().union(*map(pieces, files(section))))
    return sha256("\n".join(together).encode()).hexdigest()


def path(section: str) -> Path:
    """Where a section's figures lie."""
    return DATA / f"{section}.json"


@cache
def read(section: str) -> dict[str, Any]:
    """A section's figures, and what they were measured with.

    Raises:
        Stale: if they were never measured, or with other source.
    """
    try:
        found = json.loads(path(section).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Stale(f"{section} was never measured; run: nox -s measure -- {section}") from None
    if found["source"] != digest(section):
        raise Stale(f"{section} was measured with other source than this; run: nox -s measure -- {section}")
    return found


def depend(env: BuildEnvironment, section: str) -> None:
    """Read the page again once the section's figures, or the source they were measured with, have changed."""
    for file in (path(section), *files(section)):
        env.note_dependency(str(file))


def look_up(address: str) -> Any:
    """The figure at SECTION:KEY/KEY/…, where a key of a list is a number.

    Raises:
        Stale: if it is not there.
    """
    section, _, keys = address.partition(":")
    value = read(section)["figures"]
    for key in keys.split("/"):
        try:
            value = value[int(key)] if isinstance(value, list) else value[key]
        except (KeyError, IndexError, ValueError):
            raise Stale(
                f"{section} has no {key!r} in {keys!r}; it has {', '.join(map(str, value))}"
            ) from None
    return value
