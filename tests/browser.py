"""Headless Chromium, and what a person does in it."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver import ActionChains
from selenium.webdriver.support.wait import WebDriverWait

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="needs Chromium: Debian's packages chromium and chromium-driver",
)
_ARGUMENTS = (
    "headless=new",
    "no-sandbox",
    "force-prefers-reduced-motion",
    # A camera that shows a moving test picture, without asking.
    "use-fake-device-for-media-stream",
    "use-fake-ui-for-media-stream",
)


@contextlib.contextmanager
def start() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in _ARGUMENTS:
        options.add_argument(f"--{argument}")
    logs = {"browser": "ALL", "performance": "ALL"}
    options.set_capability("goog:loggingPrefs", logs)
    with webdriver.Chrome(options, webdriver.ChromeService(DRIVER)) as browser:
        browser.set_script_timeout(60)
        yield browser


def resize(browser, width: int, dots: int = 1) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": dots}
    metrics = {**size, "mobile": width < 700}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def prefer(browser, scheme: str, media: str = "") -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    emulated = {"features": [feature], "media": media}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", emulated)


def press(browser, *keys: str) -> None:
    for key in keys:
        ActionChains(browser).send_keys(key).perform()


def choose(browser, **values: str) -> None:
    """Set controls as a person does, with the event that follows."""
    for name, value in values.items():
        browser.execute_script(
            "const c = document.querySelector(`main [name=${arguments[0]}]`);"
            "c.value = arguments[1];"
            "c.dispatchEvent(new Event('input', {bubbles: true}));",
            name,
            value,
        )


def wait_for(browser, script: str) -> None:
    WebDriverWait(browser, 20, 0.02).until(lambda x: x.execute_script(script))


def find(browser, text: str, sort: str = "match") -> list[str]:
    """Search, and list the titles of the results."""
    browser.execute_script(
        "const form = byId('search'); form.q.focus(); form.q.value = arguments[0];"
        "form.sort.value = arguments[1];"
        "form.q.dispatchEvent(new Event('input', {bubbles: true}));",
        text,
        sort,
    )
    wait_for(browser, "return byId('results').ariaBusy === 'false'")
    return browser.execute_script(
        "return [...document.querySelectorAll('#results b')].map(x => x.textContent)"
    )


def has_all_pictures(browser) -> bool:
    """Load the pictures of a page, and tell whether none is missing."""
    return browser.execute_script(
        "document.querySelectorAll('img').forEach(x => x.loading = 'eager');"
        "return Promise.all([...document.images].map(x => x.decode()))"
        ".then(() => [...document.images].every(x => x.naturalWidth > 0))",
    )


def forget(browser) -> None:
    """Empty the logs, which hold what earlier pages left."""
    for log in ("browser", "performance"):
        browser.get_log(log)


def list_requests(browser) -> set[str]:
    """Addresses of all that was asked for since the logs were emptied."""
    logs = [json.loads(x["message"])["message"] for x in browser.get_log("performance")]
    return {
        log["params"]["request"]["url"]
        for log in logs
        if log["method"] == "Network.requestWillBeSent"
    }


def find_faults(browser) -> list[tuple[str, str]]:
    """Serious and critical faults of a page for those who cannot see or use a mouse."""
    axe = pytest.importorskip("axe_core_python", reason="needs axe-core-python")
    code = (Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    browser.execute_script(code)
    violations = browser.execute_async_script(
        "axe.run({resultTypes: ['violations']}).then(x => arguments[0](x.violations))"
    )
    return [
        (fault["id"], fault["nodes"][0]["html"])
        for fault in violations
        if fault["impact"] in ("serious", "critical")
    ]
