"""Every page in both browsers: nothing from outside, no script error, nothing axe finds, fit for a phone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.browsers import PHONE, Browser, Chromium
from tests.docs.conftest import ROOT

AXE = ROOT / ".nox" / "axe" / "node_modules" / "axe-core" / "axe.min.js"
COLOURS = ["color-contrast", "link-in-text-block"]  # the rules that see colours: all else is as in light
RUN_AXE = """
const done = arguments[arguments.length - 1];
const only = arguments[0] ? {runOnly: {type: "rule", values: arguments[0]}} : {};
// Without `preload` it fetches no style sheets.
axe.run(document, {preload: false, ...only}).then(found => done(found.violations));
"""


def found_by_axe(browser: Browser, rules: list[str] | None) -> list[str]:
    """The rules, of these or of all, that the open page breaks, and where."""
    return [
        f"{violation['id']}: {violation['help']}, at {violation['nodes'][0]['target']}"
        for violation in browser.wait_for(AXE.read_text(encoding="utf-8") + RUN_AXE, rules)
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_asked_for_outside_and_axe_finds_nothing(
    browser: Browser, pages: list[Path], scheme: str
) -> None:
    browser.prefer(scheme)
    wrong = {}
    for page in pages:
        browser.open(page.as_uri())
        assert browser.script(f"return matchMedia('(prefers-color-scheme: {scheme})').matches")
        found = [*browser.asked_outside(), *browser.errors()]
        if scheme == "light":
            found += found_by_axe(browser, None)
        elif isinstance(browser, Chromium):  # it takes seconds a page, and colours are the style sheets'
            found += found_by_axe(browser, COLOURS)
        if found:
            wrong[page.name] = found
    assert not wrong


def test_no_page_is_wider_than_a_phone(browser: Browser, pages: list[Path]) -> None:
    wide = {}
    with browser.narrow():
        for page in pages:
            browser.open(page.as_uri())
            width = browser.script("return Math.max(document.documentElement.scrollWidth, innerWidth)")
            if width != PHONE:
                wide[page.name] = width
    assert not wide
