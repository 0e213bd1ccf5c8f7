"""Search finds a word of a page, from a folder, without a network."""

from __future__ import annotations

from pathlib import Path

from tests.docs.browsers import Browser


def test_search_finds_a_page(browser: Browser, site: Path) -> None:
    browser.open(f"{(site / 'search.html').as_uri()}?q=lopsided")
    browser.until("return document.querySelectorAll('ul.search a').length > 0")
    found = browser.script("return [...document.querySelectorAll('ul.search a')].map(link => link.href)")
    assert any("traps/padding.html" in link for link in found)
    assert not browser.errors()
