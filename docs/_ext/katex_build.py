"""Formulas become HTML and MathML at build, by KaTeX in QuickJS: no script in the page, no network."""

from __future__ import annotations

import json
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from quickjs import Context
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

KATEX = Path(__file__).parents[1] / "_vendor" / "katex.min.js"  # npm pack katex@0.16.22
logger = logging.getLogger(__name__)


@cache
def context() -> Context:
    """The interpreter, with KaTeX loaded."""
    context = Context()
    context.eval(KATEX.read_text(encoding="utf-8"))
    return context


def render(node: nodes.Element, display: bool) -> str:
    """A formula's HTML; one that KaTeX does not know is a warning."""
    options = json.dumps({"displayMode": display, "throwOnError": True, "strict": "error"})
    call = f"katex.renderToString({json.dumps(node.astext())}, {options})"
    try:  # as JSON, because the wrapper refuses some of QuickJS' strings ("Unknown quickjs tag: -6")
        return json.loads(context().eval(f"JSON.stringify({call})"))
    except Exception as error:
        logger.warning("formula: %s", str(error).split("\n")[0], location=node, type="katex")
        return f"<code>{escape(node.astext())}</code>"


def inline(translator: Any, node: nodes.Element) -> None:
    """A formula in a line of text."""
    translator.body.append(f'<span class="math notranslate">{render(node, display=False)}</span>')
    raise nodes.SkipNode


def block(translator: Any, node: nodes.Element) -> None:
    """A formula on a line of its own; one that is wider than the page scrolls, by keyboard too."""
    translator.body.append(translator.starttag(node, "div", "", CLASS="math notranslate", tabindex="0"))
    if node["number"]:
        number = get_node_equation_number(translator, node)
        translator.body.append(f'<span class="eqno">({number})')
        translator.add_permalink_ref(node, "Link to this equation")
        translator.body.append("</span>")
    translator.body.append(render(node, display=True) + "</div>")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the renderer, and its style sheet and fonts."""
    app.add_html_math_renderer("katex", (inline, None), (block, None))
    app.add_css_file("katex/katex.min.css")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
