"""The gallery as a person uses it, in headless Chromium."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver import ActionChains, Keys

from tests.references.gallery_case import (
    AT_ONCE,
    RULES,
    UNITS,
    boxes_of,
    build,
    top_of,
)

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="needs Chromium: Debian's packages chromium and chromium-driver",
)

PAGES = (
    "index.html",
    "layers/conv1/index.html",
    "layers/conv1/5.html",
    "layers/conv1/7.html",
    "layers/conv2/2.html",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gallery")
    build(folder)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability(
        "goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"}
    )
    service = webdriver.ChromeService(DRIVER)
    with webdriver.Chrome(options, service) as browser:
        yield browser


@pytest.fixture
def visit(browser, folder):
    """Open a page as new, at the size of a desktop."""
    size(browser, 1280, 900)

    def open_page(page: str) -> None:
        browser.get("about:blank")
        browser.get((folder / page).as_uri())

    return open_page


def size(browser, width: int, height: int, *, mobile: bool = False) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile},
    )


def script(browser, code: str, *arguments):
    return browser.execute_script(code, *arguments)


def press(browser, *keys: str) -> None:
    for key in keys:
        ActionChains(browser).send_keys(key).perform()


def choose(browser, **values: str) -> None:
    """Set controls as a person does, with the event that follows."""
    for name, value in values.items():
        script(
            browser,
            "const c = document.querySelector('#controls').elements[arguments[0]];"
            "c.value = arguments[1];"
            "c.dispatchEvent(new Event('input', {bubbles: true}));",
            name,
            value,
        )


def shown(browser) -> list[int]:
    return script(
        browser,
        "return [...document.querySelectorAll('#units > li')]"
        ".filter(x => x.offsetParent).map(x => Number(x.dataset.unit))",
    )


def count(browser) -> str:
    return script(browser, "return document.querySelector('#count').textContent")


def focused(browser) -> str:
    return script(browser, "return document.activeElement.textContent")


def at(browser) -> str:
    return "/".join(browser.current_url.partition("#")[0].split("/")[-3:])


def test_pages_load_whole_and_ask_for_nothing_else(browser, visit, folder):
    for log in ("browser", "performance"):
        browser.get_log(log)  # what earlier pages left
    for page in PAGES:
        visit(page)
        loaded = script(
            browser,
            "document.querySelectorAll('img').forEach(x => x.loading = 'eager');"
            "return Promise.all([...document.images].map(x => x.decode()))"
            ".then(() => [...document.images].every(x => x.naturalWidth > 0))",
        )
        assert loaded, page
    assert browser.get_log("browser") == []
    home = folder.as_uri()
    asked = set()
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.add(message["params"]["request"]["url"])
    assert any(url.endswith(".webp") for url in asked)
    assert all(url.startswith((f"{home}/", "data:", "about:")) for url in asked)


def test_a_layer_of_256_units_opens_in_less_than_a_second(browser, tmp_path):
    build(tmp_path, ["wide"])
    page = tmp_path / "layers/wide/index.html"
    times = []
    for _ in range(3):
        browser.get("about:blank")
        browser.get(page.as_uri())
        code = "return performance.getEntriesByType('navigation')[0].loadEventEnd"
        times.append(script(browser, code))
    assert len(shown(browser)) == 256
    assert 0 < min(times) < 1000


def test_links_lead_from_the_network_to_a_unit_and_back(browser, visit):
    visit("index.html")
    for text, page in (
        ("conv1", "layers/conv1/index.html"),
        ("unit 5", "layers/conv1/5.html"),
        ("unit 6 ›", "layers/conv1/6.html"),
        ("‹ unit 5", "layers/conv1/5.html"),
        ("conv1", "layers/conv1/index.html"),
        ("conv2 ›", "layers/conv2/index.html"),
    ):
        browser.find_element("link text", text).click()
        assert at(browser) == page
    browser.find_element("link text", "A drawn network").click()
    assert browser.title == "A drawn network"


def test_filters_filter(browser, visit):
    top = top_of("conv1")
    everything = np.arange(UNITS["conv1"])
    visit("layers/conv1/index.html")
    assert shown(browser) == list(range(AT_ONCE))

    cases: list[tuple[dict[str, str], np.ndarray]] = [
        ({"class": "1"}, everything[top.favorite == 1]),
        ({"state": "dead"}, everything[top.dead]),
        ({"state": "live"}, everything[~top.dead]),
        ({"least": "50"}, everything[top.active.round(3) >= 0.5]),
        ({"most": "50"}, everything[top.active.round(3) <= 0.5]),
        ({"find": "3, 17,20-22"}, np.array([3, 17, 20, 21, 22])),
        ({"find": "22-20"}, np.array([20, 21, 22])),
        ({"find": "99"}, np.array([])),
    ]
    for wanted, units in cases:
        choose(browser, **wanted)
        assert shown(browser) == units[:AT_ONCE].tolist(), wanted
        assert count(browser).startswith(f"{len(units)} of {UNITS['conv1']} units")
        browser.find_element("css selector", "#controls [type=reset]").click()
        time.sleep(0.05)
        assert len(shown(browser)) == AT_ONCE
    choose(browser, **{"class": "1", "least": "50"})
    both = everything[(top.favorite == 1) & (top.active.round(3) >= 0.5)]
    assert 0 < len(both) and shown(browser) == both.tolist()
    choose(browser, find="x")
    assert shown(browser) == [] and "3, 17, 20-29" in count(browser)


def test_the_share_that_is_shown_is_the_share_that_is_filtered(browser, visit):
    visit("layers/conv1/index.html")
    for unit in (0, 3, 5):
        choose(browser, find=str(unit), least="", most="")
        text = browser.find_element("css selector", "#units li:not([hidden])").text
        share = text.partition("active in ")[2].partition("%")[0]
        choose(browser, least=share, most=share)
        assert shown(browser) == [unit], share


def test_a_choice_is_still_there_on_coming_back(browser, visit):
    visit("layers/conv1/index.html")
    choose(browser, state="dead")
    browser.find_element("link text", "unit 7").click()
    browser.back()
    assert shown(browser) == [7]
    browser.find_element("link text", "unit 7").click()
    press(browser, "u")
    assert shown(browser) == [7]


def test_an_address_may_name_what_to_show(browser, visit, folder):
    browser.get_log("browser")
    visit("layers/conv1/index.html")
    for part, units in (
        ("find=3,5&view=patches", [3, 5]),
        ("from=20", list(range(20, 34))),
        ("view=x&rule=y&sort=z&from=-1", list(range(20))),
    ):
        script(browser, "location.hash = arguments[0]", part)
        time.sleep(0.1)
        assert shown(browser) == units
    assert browser.get_log("browser") == []


def test_pictures_lead_to_their_unit(browser, visit):
    visit("layers/conv2/index.html")
    browser.find_element("css selector", "[data-unit='3'] .projections").click()
    assert at(browser) == "layers/conv2/3.html"


def test_frames_lie_where_the_activation_sees(browser, visit):
    visit("layers/conv1/5.html")
    frames = script(
        browser,
        "return [...document.querySelectorAll('.source')].map(s => {"
        "const i = s.querySelector('img').getBoundingClientRect(),"
        "f = s.querySelector('i').getBoundingClientRect();"
        "return [f.top - i.top, f.left - i.left, f.bottom - i.top, f.right - i.left]"
        ".map(x => x / i.width * 12)})",
    )
    expected = boxes_of(top_of("conv1").positions)[5]
    np.testing.assert_allclose(frames, expected, atol=0.05)


@pytest.mark.parametrize(
    ("order", "key"),
    [
        ("active", lambda top: -top.active),
        ("value", lambda top: -top.activations[:, 0]),
        ("selectivity", lambda top: -np.nan_to_num(top.selectivity, nan=-1)),
        ("rare", lambda top: np.where(top.dead, np.inf, top.active)),
    ],
)
def test_units_are_sorted(browser, visit, order, key):
    visit("layers/conv1/index.html")
    choose(browser, sort=order)
    expected = np.argsort(key(top_of("conv1")), kind="stable")
    assert shown(browser) == expected[:AT_ONCE].tolist()


def test_so_many_units_are_shown_at_a_time(browser, visit):
    visit("layers/conv1/index.html")
    browser.find_element("id", "forth").click()
    assert shown(browser) == list(range(AT_ONCE, UNITS["conv1"]))
    assert not browser.find_element("id", "forth").is_enabled()
    browser.find_element("id", "back").click()
    assert shown(browser) == list(range(AT_ONCE))


def test_rules_and_views_switch_by_hand_and_by_key(browser, visit):
    visit("layers/conv2/index.html")

    def block() -> int:
        """Which block of the picture the first unit's second window shows."""
        return script(
            browser,
            "const w = document.querySelector('.projections').getBoundingClientRect();"
            "const i = document.querySelector('.projections img')"
            ".getBoundingClientRect(); return Math.round((w.left - i.left) / w.width)",
        )

    assert block() == 1
    choose(browser, rule=RULES[2])
    assert block() == 3
    press(browser, "r")
    assert block() == 1
    press(browser, "r")
    assert block() == 2

    def visible() -> list[bool]:
        return [
            browser.find_element("class name", name).is_displayed()
            for name in ("patches", "projections")
        ]

    assert visible() == [True, True]
    press(browser, "v")
    assert visible() == [True, False]
    press(browser, "v")
    assert visible() == [False, True]


def test_keys_work(browser, visit):
    visit("layers/conv2/index.html")
    press(browser, Keys.RIGHT)
    assert focused(browser) == "unit 0"
    press(browser, Keys.RIGHT)
    assert focused(browser) == "unit 1"
    press(browser, Keys.DOWN)
    below = focused(browser)
    columns = script(
        browser,
        "return getComputedStyle(document.querySelector('#units'))"
        ".gridTemplateColumns.split(' ').length",
    )
    assert below == f"unit {1 + columns}"
    press(browser, Keys.UP, Keys.ENTER)
    assert at(browser) == "layers/conv2/1.html"
    press(browser, Keys.RIGHT)
    assert at(browser) == "layers/conv2/2.html"
    press(browser, Keys.LEFT)
    assert at(browser) == "layers/conv2/1.html"
    press(browser, "u")
    assert at(browser) == "layers/conv2/index.html"
    press(browser, "p")
    assert at(browser) == "layers/conv1/index.html"
    press(browser, "n", "?")
    assert browser.find_element("id", "keys").is_displayed()
    press(browser, "?")
    assert not browser.find_element("id", "keys").is_displayed()
    press(browser, "f", "3", Keys.ESCAPE, "u")
    assert browser.title == "A drawn network"


def test_any_unit_is_found_from_any_page(browser, visit):
    for page, text, target in (
        ("index.html", "conv2 3", "layers/conv2/3.html"),
        ("index.html", "conv1", "layers/conv1/index.html"),
        ("layers/conv1/5.html", "17", "layers/conv1/17.html"),
        ("layers/conv1/index.html", "conv2/0", "layers/conv2/0.html"),
        ("index.html", "CONV2 unit 3", "layers/conv2/3.html"),
    ):
        visit(page)
        press(browser, "/", text, Keys.ENTER)
        assert at(browser) == target


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("conv9 1", "there is no layer conv9; the layers are conv1, conv2"),
        ("conv2 6", "there is no unit 6; conv2 has the units 0 to 5"),
        ("conv2 x", "there is no unit x; conv2 has the units 0 to 5"),
        ("7", "there is no layer 7; the layers are conv1, conv2"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(browser, visit, text, message):
    visit("index.html")
    press(browser, "/", text, Keys.ENTER)
    assert browser.find_element("id", "jump-error").text == message
    assert browser.title == "A drawn network"


@pytest.mark.parametrize("width", [320, 390, 800])
def test_nothing_is_wider_than_the_screen(browser, visit, width):
    size(browser, width, 800, mobile=width < 700)
    for page in PAGES:
        visit(page)
        size(browser, width, 800, mobile=width < 700)
        inner = script(browser, "return document.documentElement.scrollWidth")
        assert inner <= width, page


def test_it_is_dark_where_the_reader_wants_it_dark(browser, visit):
    def brightness() -> list[int]:
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        return script(
            browser,
            "const s = getComputedStyle(document.body);"
            "return [s.backgroundColor, s.color].map("
            "c => c.match(/\\d+/g).slice(0, 3).map(Number).reduce((a, b) => a + b))",
        )

    visit("index.html")
    scheme = "dark"
    paper, ink = brightness()
    assert paper < 100 < 500 < ink
    scheme = "light"
    paper, ink = brightness()
    assert ink < 100 < 500 < paper


def test_a_unit_s_pictures_are_its_own(browser, visit):
    """The part of the file that each frame shows, by where the frame lies on it."""
    visit("layers/conv1/5.html")
    places = script(
        browser,
        "return [...document.querySelectorAll('.activations li')].map(li =>"
        "[...li.querySelectorAll('.cell')].map(cell => {"
        "const c = cell.getBoundingClientRect(),"
        "i = cell.firstChild.getBoundingClientRect();"
        "return [Math.round((c.top - i.top) / c.height),"
        "Math.round((c.left - i.left) / c.width)]}))",
    )
    assert places == [
        [[rank // 2, rank % 2 + 2 * block] for block in range(1 + len(RULES))]
        for rank in range(4)
    ]
