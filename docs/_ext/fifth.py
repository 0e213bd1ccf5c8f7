"""The fifth framework is held to the contract by every build: no page shows one that is not the same."""

from __future__ import annotations

import sys
from hashlib import sha256
from typing import Any, NoReturn

from source import DOCS, Stale, look_up
from sphinx.application import Sphinx
from sphinx.util import logging

FOLDER = DOCS / "fifth"
logger = logging.getLogger(__name__)


def code() -> str:
    """A hash of the fifth framework, which is no package of the project and so in no other hash."""
    files = sorted(FOLDER.rglob("*.py"))
    return sha256("".join(path.read_text(encoding="utf-8") for path in files).encode()).hexdigest()


def is_measured() -> bool:
    """Whether the figures of its page are of this code."""
    try:
        return look_up("fifth:code") == code()
    except Stale:
        return True  # each figure on the page says so


def refuse(why: str) -> NoReturn:
    """End the build. Of an exception Sphinx would make a page, this is one line."""
    raise SystemExit(f"docs/fifth is not the same network: {why}")


def check(app: Sphinx) -> None:
    """Refuse the build, in a line, unless all is within bounds."""
    sys.path.append(str(FOLDER))
    try:
        import prove

        found = prove.deviations()
    except Exception as error:
        refuse(f"{type(error).__name__}: {error}")
    off = [f"{what} {value:.1e}, bound {bound:.0e}" for what, value, bound in found if not value <= bound]
    if off:
        refuse("; ".join(off))
    if not is_measured():
        logger.error("docs/fifth was measured with other code than this; run: nox -s measure -- fifth")


def setup(app: Sphinx) -> dict[str, Any]:
    """Have it checked before anything is read."""
    app.connect("builder-inited", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
