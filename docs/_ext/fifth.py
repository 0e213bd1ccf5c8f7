"""The fifth framework is held to the contract by every build: no page shows one that is not the same."""

from __future__ import annotations

import sys
from typing import Any

from source import DOCS
from sphinx.application import Sphinx
from sphinx.errors import SphinxError

sys.path.append(str(DOCS / "fifth"))


class NotTheSame(SphinxError):
    """The fifth framework parts ways with the oracle."""

    category = "docs/fifth is not the same network"


def check(app: Sphinx) -> None:
    """Refuse the build, in a line, unless all is within bounds."""
    try:
        import prove

        found = prove.deviations()
    except Exception as error:
        raise NotTheSame(f"{type(error).__name__}: {error}") from error
    off = [f"{what} {value:.1e}, bound {bound:.0e}" for what, value, bound in found if not value <= bound]
    if off:
        raise NotTheSame("; ".join(off))


def setup(app: Sphinx) -> dict[str, Any]:
    """Have it checked before anything is read."""
    app.connect("builder-inited", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
