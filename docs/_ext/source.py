"""What was measured, with which source, and where the figures lie."""

from __future__ import annotations

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
    """A figure that is not there, or was measured with other source than this."""


def files(section: str) -> list[Path]:
    """What a section's figures depend on: the packages, and what measures SECTION or SECTION/PART."""
    name = section.partition("/")[0]
    measures = [DOCS / "measure.py", DOCS / "measures" / "shared.py", DOCS / "measures" / f"{name}.py"]
    if name in ("depth", "exercises"):  # which run the exercises' code
        measures += [DOCS / "measures" / "depth.py", *sorted((DOCS / "exercises").glob("*.py"))]
    if name == "scale":
        measures.append(ROOT / "benchmarks" / "scale.py")
    return [*(path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))), *measures]


@cache
def digest(section: str) -> str:
    """A hash of these files, the same on all systems."""
    together = sha256()
    for path in files(section):
        together.update(f"{path.relative_to(ROOT).as_posix()}\n{path.read_text(encoding='utf-8')}".encode())
    return together.hexdigest()


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
