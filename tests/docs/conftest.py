"""The built site, and the browsers it is opened in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.browsers import BROWSERS, Browser

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def site() -> Path:
    """The folder of the pages, which `nox -s docs` builds."""
    folder = ROOT / "docs" / "_build" / "html"
    assert (folder / "index.html").exists(), "there are no pages; run: nox -s docs"
    return folder


@pytest.fixture(scope="session")
def pages(site: Path) -> list[Path]:
    """Every page."""
    return sorted(site.rglob("*.html"))


@pytest.fixture(
    scope="session",
    params=[pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in BROWSERS],
)
def browser(request: pytest.FixtureRequest) -> Iterator[Browser]:
    """Each browser, started once."""
    browser = BROWSERS[request.param]()
    try:
        yield browser
    finally:
        browser.quit()
