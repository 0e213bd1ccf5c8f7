"""Two packages next to each other: both whole, what corresponds in one row, and the choice in the address."""

from __future__ import annotations

from pathlib import Path

from tests.docs.browsers import Browser
from tests.docs.conftest import ROOT

ROWS = """
return [...document.querySelectorAll(".side-by-side tbody tr")].map(row => {
    const text = i => row.querySelectorAll("td")[i].querySelector("code")?.textContent ?? null;
    return [text(1), text(4)];
});
"""
CHOOSE = """
const choice = document.querySelector(`select[name=${arguments[0]}]`);
choice.value = arguments[1];
choice.dispatchEvent(new Event("change", {bubbles: true}));
"""


def source(package: str, file: str) -> list[str]:
    return (ROOT / f"resnet_{package}" / file).read_text(encoding="utf-8").rstrip("\n").split("\n")


def test_both_files_are_whole_and_what_corresponds_is_in_one_row(browser: Browser, site: Path) -> None:
    browser.open((site / "side-by-side.html").as_uri())
    rows = browser.script(ROWS)
    assert [left for left, _ in rows if left is not None] == source("torch", "blocks.py")
    assert [right for _, right in rows if right is not None] == source("jax", "blocks.py")
    opposite = dict(rows)
    assert opposite["class Residual(nn.Module):"] == "class Residual(nn.Module):"
    assert opposite["class ResNeXtBlock(nn.Module):"] == "class ResNeXtBlock(nn.Module):"


def test_the_choice_is_in_the_address_and_goes_along(browser: Browser, site: Path) -> None:
    browser.open((site / "side-by-side.html").as_uri())
    browser.script(CHOOSE, "left", "mxnet")
    browser.script(CHOOSE, "right", "tf")
    assert "left=mxnet&right=tf" in browser.script("return location.search")
    browser.reload()
    assert [left for left, _ in browser.script(ROWS) if left is not None] == source("mxnet", "blocks.py")
    browser.script("document.querySelector('article a[href*=\"layers.html\"]').click()")
    browser.until("return location.pathname.endsWith('/layers.html') && document.readyState === 'complete'")
    assert [right for _, right in browser.script(ROWS) if right is not None] == source("tf", "layers.py")


def test_the_same_package_twice_has_no_marks(browser: Browser, site: Path) -> None:
    browser.open(f"{(site / 'side-by-side.html').as_uri()}?left=torch&right=torch")
    assert not browser.script("return document.querySelectorAll('.side-by-side tr.differs').length")
