"""The fifth framework is held to the contract by every build: no page shows one that is not the same."""

from __future__ import annotations

import sys
from hashlib import sha256
from typing import Any

from source import DOCS, Stale, look_up
from sphinx.application import Sphinx
from sphinx.errors import SphinxError
from sphinx.util import logging

FOLDER = DOCS / "fifth"
logger = logging.getLogger(__name__)


class NotTheSame(SphinxError):
    """The fifth framework parts ways with the oracle."""

    category = "docs/fifth is not the same network"


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


def check(app: Sphinx) -> None:
    """Refuse the build, in a line, unless all is within bounds."""
    sys.path.append(str(FOLDER))
    try:
        import prove

        found = prove.deviations()
    except Exception as error:
        raise NotTheSame(f"{type(error).__name__}: {error}") from error
    off = [f"{what} {value:.1e}, bound {bound:.0e}" for what, value, bound in found if not value <= bound]
    if off:
        raise NotTheSame("; ".join(off))
    if not is_measured():
        logger.error("docs/fifth was measured with other code than this; run: nox -s measure -- fifth")


def setup(app: Sphinx) -> dict[str, Any]:
    """Have it checked before anything is read."""
    app.connect("builder-inited", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
