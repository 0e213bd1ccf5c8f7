"""The trap explorer: what is chosen is seen, said, and in the address; its figures are those measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.docs.browsers import Browser
from tests.docs.conftest import ROOT

SAYS = "return document.querySelector('.explorer .says').textContent"
BARS = "return [...document.querySelectorAll('.explorer .bar')].map(bar => +bar.getAttribute('height'))"


@pytest.fixture
def explorer(site: Path) -> str:
    return (site / "traps" / "explorer.html").as_uri()


def measured(run: str) -> dict:
    text = (ROOT / "docs" / "_data" / "explorer.json").read_text(encoding="utf-8")
    return json.loads(text)["figures"]["runs"][run]


@pytest.mark.parametrize("traps", ["000000", "100000", "001001", "111111"])
@pytest.mark.parametrize("size", [32, 33])
def test_the_address_chooses_and_the_figures_are_the_measured_ones(
    browser: Browser, explorer: str, traps: str, size: int
) -> None:
    browser.open(f"{explorer}?traps={traps}&size={size}")
    run = measured(f"{size}:{traps}")
    assert f"{100 * run['accuracy']:.1f} % of " in browser.script(SAYS)
    assert ("the same to the last bit" in browser.script(SAYS)) == (run["layers"][-1] == 0)
    assert [height > 0 for height in browser.script(BARS)] == [value > 1e-6 for value in run["layers"]]
    assert len(browser.script("return [...document.querySelectorAll('.explorer table td')]")) == 6


def test_a_choice_is_in_the_address_and_survives_a_reload(browser: Browser, explorer: str) -> None:
    browser.open(f"{explorer}?traps=000000&size=32&framework=jax")
    before = browser.script(SAYS)
    browser.press(".explorer input[name=trap2]", "Space")
    after = browser.script(SAYS)
    assert before != after
    assert "epsilon 1e-3" in after
    search = browser.script("return location.search")
    assert all(part in search for part in ("traps=001000", "size=32", "framework=jax"))
    browser.reload()
    assert browser.script(SAYS) == after


def test_it_is_made_for_a_screen_reader(browser: Browser, explorer: str) -> None:
    browser.open(f"{explorer}?traps=100000&size=32")
    assert (
        browser.script("return document.querySelector('.explorer .says').getAttribute('aria-live')")
        == "polite"
    )
    label = browser.script("return document.querySelector('.explorer svg').getAttribute('aria-label')")
    assert label.startswith("Deviation by part: b1 ")
    assert browser.script(
        "return [...document.querySelectorAll('.explorer input')].every(input => input.labels.length === 1)"
    )
