"""Links of the built pages: each leads to a page and an anchor that are there; nothing loads from outside."""

from __future__ import annotations

import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADS = {("link", "href"), ("script", "src"), ("img", "src"), ("source", "src"), ("iframe", "src")}


class Page(HTMLParser):
    """What a page links to, what it loads, and what can be linked to in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "id" and value:
                self.anchors.add(value)
            if (tag, name) in LOADS and value:
                self.loads.append(value)
            if (tag, name) == ("a", "href") and value:
                self.links.append(value)


read = cache(Page)


def test_every_link_leads_somewhere(pages: list[Path]) -> None:
    broken = []
    for page in pages:
        for link in read(page).links + read(page).loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if not target.is_file():
                broken.append(f"{page.name}: {link}")
            elif target.suffix == ".html" and parts.fragment:
                broken += [f"{page.name}: {link}"] * (unquote(parts.fragment) not in read(target).anchors)
    assert not broken


def test_no_markup_is_left_over(pages: list[Path]) -> None:
    # A bar in a table's cell ends the cell, also within a role; it has to be written as \\|.
    left = [
        page.name
        for page in pages
        if re.search(r"\{(measured|held|py:\w+)\}", page.read_text(encoding="utf-8"))
    ]
    assert not left


def test_nothing_is_loaded_from_outside(pages: list[Path]) -> None:
    outside = [
        f"{page.name}: {load}"
        for page in pages
        for load in read(page).loads
        if urlsplit(load).scheme not in ("", "data")
    ]
    assert not outside
