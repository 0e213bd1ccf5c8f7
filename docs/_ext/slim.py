"""Pages without what nobody sees: a tenth of a page, on a site that shall fit on any stick.

Pygments marks every plain name and bracket, and docutils every word of a literal. Matplotlib numbers every
part of a plot, turns every text by 0 degrees, repeats formulas as comments, and gives ticks groups and
colours that they have anyway. The theme brings maps of its own source.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

UNSEEN = re.compile(r'<span class="(?:[npw]|pre)">([^<]*)</span>')
PARTS = r"(?:text|line2d|[xy]tick|matplotlib\.axis|patch|axes|figure|legend)_\d+"
TICK = r"fill: currentColor; stroke: currentColor; stroke-width: 0\.\d"
UNSEEN_IN_PLOTS = re.compile(
    rf' id="{PARTS}"| transform="rotate\(-0 [^"]*\)"|<!-- \$[^>]* -->\n| style="{TICK}"(?=/>)'
    r"|(?<=px); fill: currentColor(?=\">[^<]*</tspan>)"
)
GROUP_OF_ONE = re.compile(r"<g>\n(<use [^>]*/>|<text [^>]*>[^<]*</text>)\n</g>")


def slim(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Take them out of a page's body."""
    if "body" in context:
        body = UNSEEN_IN_PLOTS.sub("", UNSEEN.sub(r"\1", context["body"]))
        for _ in range(2):  # ticks have two
            body = GROUP_OF_ONE.sub(r"\1", body)
        context["body"] = body


def drop_maps(app: Sphinx, exception: Exception | None) -> None:
    """Take the theme's maps out of the built site."""
    for path in Path(app.outdir).rglob("*.map"):
        path.unlink()


def setup(app: Sphinx) -> dict[str, Any]:
    """Do so before a page is written, and at the end."""
    app.connect("html-page-context", slim)
    app.connect("build-finished", drop_maps)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
