"""Chromium and Firefox, driven alike, without a network: what a test asks of a page."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

PHONE = 390  # pixels


KEYS = {"ArrowRight": "\ue014", "Tab": "\ue004", "Enter": "\ue007", "Space": " "}  # of WebDriver


def program(*names: str) -> str:
    """Where the first of these programs lies that is there."""
    for name in names:
        if path := shutil.which(name):
            return path
    raise FileNotFoundError(
        f"{names[0]} is not here; run: apt-get install chromium chromium-driver firefox-esr"
    )


class Browser(ABC):
    """A browser without a window."""

    @abstractmethod
    def open(self, address: str) -> None:
        """Go to a page, and wait until it and its scripts have loaded."""

    @abstractmethod
    def reload(self) -> None:
        """Load the page again."""

    @abstractmethod
    def script(self, body: str, *arguments: Any) -> Any:
        """What this JavaScript returns."""

    @abstractmethod
    def wait_for(self, body: str, *arguments: Any) -> Any:
        """What this JavaScript hands to its last argument, a function."""

    def until(self, body: str) -> None:
        """Wait until this JavaScript returns what is true."""
        deadline = time.monotonic() + 20
        while not self.script(body):
            assert time.monotonic() < deadline, f"never true: {body}"
            time.sleep(0.05)

    @abstractmethod
    def press(self, selector: str, key: str) -> None:
        """Press a key while the first such element has the focus: "ArrowRight", "Tab", "Enter", "Space"."""

    @abstractmethod
    def prefer(self, scheme: str) -> None:
        """From the next page on, prefer "light" or "dark"."""

    @abstractmethod
    def narrow(self) -> AbstractContextManager[None]:
        """Within, be as wide as a phone."""

    @abstractmethod
    def asked_outside(self) -> list[str]:
        """Addresses that pages asked the network for since the last call."""

    @abstractmethod
    def errors(self) -> list[str]:
        """What scripts complained of since the last call."""

    @abstractmethod
    def quit(self) -> None:
        """End it."""


class Chromium(Browser):
    """Through its driver."""

    def __init__(self) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        for argument in (
            "--headless=new",
            "--no-sandbox",  # which a container does not allow
            "--disable-gpu",
            "--disable-background-networking",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--window-size=1280,1000",
        ):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        options.binary_location = program("chromium")
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(program("chromedriver")))

    def open(self, address: str) -> None:
        self.driver.get(address)

    def reload(self) -> None:
        self.driver.refresh()

    def script(self, body: str, *arguments: Any) -> Any:
        return self.driver.execute_script(body, *arguments)

    def wait_for(self, body: str, *arguments: Any) -> Any:
        return self.driver.execute_async_script(body, *arguments)

    def press(self, selector: str, key: str) -> None:
        self.driver.find_element("css selector", selector).send_keys(KEYS[key])

    def prefer(self, scheme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    @contextmanager
    def narrow(self) -> Iterator[None]:
        size = {"width": PHONE, "height": 844, "deviceScaleFactor": 1, "mobile": True}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        yield
        self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    def asked_outside(self) -> list[str]:
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith(("file:", "data:", "blob:", "chrome:", "about:"))]

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def quit(self) -> None:
        self.driver.quit()


class Firefox(Browser):
    """Through Marionette, which is part of it."""

    def __init__(self) -> None:
        from marionette_driver.marionette import Marionette

        self.folder = tempfile.TemporaryDirectory()
        self.driver = Marionette(
            bin=program("firefox-esr", "firefox"),
            headless=True,
            gecko_log=str(Path(self.folder.name) / "log"),
            startup_timeout=120,
        )
        self.driver.start_session()
        self.inside(
            """
            window.asked = [];
            window.watcher = {observe(channel) {
                channel.QueryInterface(Ci.nsIHttpChannel);
                if (channel.loadInfo?.loadingPrincipal?.schemeIs("file")) window.asked.push(channel.URI.spec);
            }};
            Services.obs.addObserver(window.watcher, "http-on-modify-request");
            """
        )

    def inside(self, body: str) -> Any:
        """What this JavaScript returns that runs as a part of the browser, not of the page."""
        with self.driver.using_context("chrome"):
            return self.driver.execute_script(body)

    def open(self, address: str) -> None:
        self.driver.navigate(address)

    def reload(self) -> None:
        self.driver.refresh()

    def script(self, body: str, *arguments: Any) -> Any:
        return self.driver.execute_script(body, script_args=arguments)

    def wait_for(self, body: str, *arguments: Any) -> Any:
        return self.driver.execute_async_script(body, script_args=arguments)

    def press(self, selector: str, key: str) -> None:
        self.driver.find_element("css selector", selector).send_keys(KEYS[key])

    def prefer(self, scheme: str) -> None:
        name, value = "layout.css.prefers-color-scheme.content-override", {"dark": 0, "light": 1}[scheme]
        self.inside(f'Services.prefs.setIntPref("{name}", {value})')

    @contextmanager
    def narrow(self) -> Iterator[None]:
        self.inside(f'gBrowser.selectedBrowser.style.maxWidth = "{PHONE}px"')  # a window cannot be so narrow
        self.until(f"return innerWidth === {PHONE}")
        yield
        self.inside('gBrowser.selectedBrowser.style.maxWidth = ""')

    def asked_outside(self) -> list[str]:
        return self.inside("return window.asked.splice(0)")

    def errors(self) -> list[str]:
        return self.inside(
            """
            const said = Services.console.getMessageArray().filter(message =>
                message instanceof Ci.nsIScriptError && message.sourceName.startsWith("file:")
                && !(message.flags & Ci.nsIScriptError.warningFlag)).map(String);
            Services.console.reset();
            return said;
            """
        )

    def quit(self) -> None:
        self.driver.quit()
        self.driver.cleanup()
        self.folder.cleanup()


BROWSERS = {"chromium": Chromium, "firefox": Firefox}
