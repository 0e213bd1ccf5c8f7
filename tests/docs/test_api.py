"""The API's pages have every public name, and every public name says what it is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.docs.conftest import ROOT
from tests.docs.test_links import read

PACKAGES = ("common", "resnet_torch", "resnet_jax", "resnet_tf", "resnet_mxnet")


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Every importable module without an underscore."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts).removesuffix(".__init__")
            if not any(part.startswith("_") for part in name.split(".")):
                yield name, ast.parse(path.read_text(encoding="utf-8"))


def definitions(parent: str, body: list[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    """Public names that these statements define, and in classes."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            defined = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            defined = [target.id for target in targets if isinstance(target, ast.Name)]
        else:
            continue
        for name in defined:
            if not name.startswith("_"):
                yield f"{parent}.{name}", node
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from definitions(f"{parent}.{node.name}", node.body)


def test_every_public_name_is_there(site: Path) -> None:
    anchors = set().union(*(read(page).anchors for page in (site / "api").glob("*.html")))
    names = [name for module, tree in modules() for name, _ in definitions(module, tree.body)]
    assert len(names) > 1000
    assert not [name for name in names if name not in anchors]


def test_what_the_packages_offer_is_there(site: Path) -> None:
    anchors = set().union(*(read(page).anchors for page in (site / "api").glob("*.html")))
    offered = {
        f"{module}.{name}"
        for module, tree in modules()
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        for name in ast.literal_eval(node.value)
    }
    assert offered
    assert not offered - anchors


def test_every_public_class_and_function_says_what_it_is() -> None:
    silent = [
        name
        for module, tree in modules()
        for name, node in definitions(module, tree.body)
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and name.count(".") == module.count(".") + 1
        if not ast.get_docstring(node)
    ]
    assert not silent
