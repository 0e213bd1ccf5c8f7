"""`{explorer}`: choose traps and a size, see each layer's deviation and the accuracy; computed ahead."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from docutils import nodes
from source import Stale, depend, read
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Explorer(SphinxDirective):
    """A form, a chart, a sentence and a table; the page's script fills them from the figures in the page."""

    def run(self) -> list[nodes.Node]:
        depend(self.env, "explorer")
        try:
            found = read("explorer")["figures"]
        except Stale as error:
            raise self.error(str(error)) from None
        traps = "".join(
            f'<label><input type="checkbox" name="trap{i}"> {escape(name)}</label>'
            for i, name in enumerate(found["traps"])
        )
        sizes = "".join(
            f'<label><input type="radio" name="size" value="{size}"{" checked" * (not i)}>'
            f" {size} × {size} pixels</label>"
            for i, size in enumerate(found["sizes"])
        )
        inline = json.dumps(found, separators=(",", ":"), ensure_ascii=False)
        html = f"""<form class="explorer">
<fieldset><legend>Traps that the port fell into</legend>{traps}</fieldset>
<fieldset><legend>Images, and the network trained on them</legend>{sizes}</fieldset>
<p class="says" aria-live="polite"></p>
<svg viewBox="0 0 640 270" role="img" aria-label=""></svg>
<details><summary>The figures as a table</summary><table></table></details>
<noscript><p>The explorer needs JavaScript.</p></noscript>
<script type="application/json">{inline}</script>
</form>"""
        return [nodes.raw("", html, format="html")]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("explorer", Explorer)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
