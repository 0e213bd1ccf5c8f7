"""report.html in a real browser: tabs switch, nothing is fetched, no script error."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from common.architecture import Architecture
from common.backend import BACKENDS
from common.pages import LABELS
from common.proof.judge import Comparison, Job, Timing, judge
from common.proof.report import ROOMS, Report, write
from common.timing import Spread
from common.weights import initial_weights
from tests.proof.helpers import evidence_of

ARCH = Architecture(stages=((1, 4), (1, 6)), block="resnext", groups=2, stem_channels=4)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report as `compare` writes it, of the oracle's evidence under the frameworks' names."""
    job = Job(ARCH, initial_weights(ARCH), np.random.default_rng(0).random((2, 1, 32, 32)), np.array([3, 1]))
    found = Comparison(job)
    evidence = evidence_of(job)
    for name in ("oracle", *BACKENDS):
        found.evidence[name, "float64"] = copy.deepcopy(evidence)
    found.evidence["tf", "float64"].activations["b2"][0] += 1e-3
    judge(found, list(BACKENDS), ["float64"])
    found.elsewhere = 0.4
    found.timings = {name: Timing(Spread(1.5, 1.2, 1.8), Spread(4.5, 4.2, 5.1)) for name in BACKENDS}

    everywhere = [copy.copy(backend) for backend in BACKENDS.values()]
    for backend in everywhere:
        object.__setattr__(backend, "packages", ("numpy",))  # there, whatever this machine has
    absent = copy.copy(BACKENDS["mxnet"])
    object.__setattr__(absent, "packages", ("no_such_framework",))
    folder = tmp_path_factory.mktemp("report")
    write(Report(found, [*everywhere[1:], absent], "small <net>", "a test"), folder)
    return folder / "report.html"


def visible(browser: webdriver.Chrome) -> list[tuple[str, str]]:
    panels = browser.find_elements(By.CSS_SELECTOR, ".panel")
    return [
        (panel.get_attribute("data-name"), panel.get_attribute("data-room"))
        for panel in panels
        if panel.is_displayed()
    ]


def click(browser: webdriver.Chrome, selector: str) -> None:
    browser.find_element(By.CSS_SELECTOR, selector).click()


def test_tabs_switch_and_stand_side_by_side(browser: webdriver.Chrome, page: Path) -> None:
    browser.get(page.as_uri())
    assert visible(browser) == [("mxnet", "blocks")]
    for name in BACKENDS:
        click(browser, f"[data-tab={name}]")
        assert visible(browser) == [(name, "blocks")]
    for room in ROOMS:
        click(browser, f"button[data-room={room}]")
        assert visible(browser) == [(name, room)]
    click(browser, "[data-tab=beside]")
    assert visible(browser) == [(name, room) for name in BACKENDS]


def test_the_code_shown_is_the_installed_source(browser: webdriver.Chrome, page: Path) -> None:
    browser.get(page.as_uri())
    for name in BACKENDS:
        click(browser, f"[data-tab={name}]")
        shown = browser.find_element(By.CSS_SELECTOR, f"[data-name={name}][data-room=blocks] pre").text
        source = (Path(__file__).parents[2] / f"resnet_{name}" / "blocks.py").read_text(encoding="utf-8")
        assert shown.split() == source.split()


def test_nothing_is_fetched_and_no_script_fails(browser: webdriver.Chrome, page: Path) -> None:
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(page.as_uri())
    click(browser, "[data-tab=beside]")
    assert browser.get_log("browser") == []
    requested = re.findall(r'"documentURL":"[^"]*".*?"url":"([^"]*)"', str(browser.get_log("performance")))
    assert set(requested) == {page.as_uri()}


def test_findings_are_shown_as_text(browser: webdriver.Chrome, page: Path) -> None:
    browser.get(page.as_uri())
    body = browser.find_element(By.TAG_NAME, "body").text
    assert "small <net> in four frameworks" in body
    assert "First layer that differs: b2" in browser.find_element(By.ID, "verdict").text
    assert "not installed; run: pip install" in browser.find_element(By.ID, "backends").text
    for name in ("torch", "tf", "jax"):
        assert LABELS[name] in browser.find_element(By.ID, "timings").text
    assert len(browser.find_elements(By.CSS_SELECTOR, "figure svg")) == 2
