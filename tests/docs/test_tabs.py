"""The framework one chooses stays: over pages, a reload, and in the address; by mouse and by keyboard."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.browsers import Browser, Chromium

CHOSEN = """
return [...document.querySelectorAll(".sd-tab-set > input:checked + [data-sync-group=framework]")]
    .map(label => label.dataset.syncId);
"""
CHOOSE = """
[...document.querySelectorAll("[data-sync-group=framework]")]
    .find(label => label.dataset.syncId === arguments[0]).click();
"""
FOLLOW = "document.querySelector(`a[href*='${arguments[0]}']`).click()"


@pytest.fixture
def first(site: Path) -> str:
    """A page with tabs that has a link to another with tabs."""
    return (site / "chapter" / "residual-block.html").as_uri()


@pytest.fixture
def second(site: Path) -> str:
    """Another."""
    return (site / "traps" / "padding.html").as_uri()


def chosen(browser: Browser) -> str:
    """The framework that all tabs of the page show."""
    (framework,) = set(browser.script(CHOSEN))
    return framework


def test_pytorch_comes_first(browser: Browser, first: str) -> None:
    browser.open(first)
    browser.script("localStorage.clear()")
    browser.open(first)
    assert chosen(browser) == "torch"
    assert browser.script("return document.querySelector('.sd-tab-set > label').innerText") == "PyTorch"


def test_a_click_switches_all_tabs_and_stays(browser: Browser, first: str, second: str) -> None:
    browser.open(first)
    browser.script(CHOOSE, "jax")
    assert chosen(browser) == "jax"
    assert "framework=jax" in browser.script("return location.search")
    browser.reload()
    assert chosen(browser) == "jax"
    browser.script(FOLLOW, "resnet.html")
    browser.until("return location.pathname.endsWith('/resnet.html') && document.readyState === 'complete'")
    assert chosen(browser) == "jax"
    browser.open(second)  # by its bare address
    # Firefox keeps nothing between two files; there a choice goes by links alone.
    assert chosen(browser) == ("jax" if isinstance(browser, Chromium) else "torch")


def test_the_address_chooses_and_a_later_choice_wins(browser: Browser, first: str) -> None:
    browser.open(f"{first}?framework=mxnet")
    assert chosen(browser) == "mxnet"
    browser.script(CHOOSE, "tf")
    browser.reload()
    assert chosen(browser) == "tf"


def test_arrow_keys_switch_and_the_focus_is_seen(browser: Browser, first: str) -> None:
    browser.open(f"{first}?framework=torch")
    browser.press(".sd-tab-set > input:checked", "ArrowRight")
    assert chosen(browser) == "jax"
    focused = "document.querySelector('.sd-tab-set > input:focus + label')"
    outline = browser.script(f"return getComputedStyle({focused}).outlineStyle")
    assert outline != "none"


def test_tabs_have_roles_and_labels(browser: Browser, first: str) -> None:
    browser.open(first)
    assert browser.script(
        """
        return [...document.querySelectorAll(".sd-tab-set")].every(set =>
            set.getAttribute("role") === "radiogroup" && set.getAttribute("aria-label")
            && [...set.querySelectorAll(":scope > input")].every(input => input.labels.length === 1)
            && [...set.querySelectorAll(":scope > div")].every(panel => panel.getAttribute("aria-label")));
        """
    )
