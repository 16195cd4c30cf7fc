"""The gallery as a person uses it, in headless Chromium."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from selenium.webdriver import Keys

import zfnet_jax as zf
from tests.browser import (
    choose,
    find,
    find_faults,
    forget,
    has_all_pictures,
    list_requests,
    needs_browser,
    prefer,
    press,
    resize,
    wait_for,
)
from tests.gallery_case import (
    AT_ONCE,
    CLASSES,
    DEAD,
    IMAGES,
    LABELS,
    NAMES,
    ODD,
    SIDE,
    UNITS,
    K,
    build,
    build_named,
    make_network,
    search,
)
from zfnet_jax.files import slug
from zfnet_jax.galleries.pages import printable

pytestmark = [pytest.mark.usefixtures("compiled_once"), needs_browser]

CONV1, LOGITS = "pages/layers/conv1", "pages/layers/logits"
PAGES = (
    "index.html",
    f"{CONV1}/index.html",
    f"{CONV1}/5.html",
    f"{CONV1}/{DEAD}.html",
    f"pages/layers/{slug(ODD)}/index.html",
    f"{LOGITS}/2.html",
    "pages/sanity/index.html",
)


@pytest.fixture(scope="module")
def folder(compiled_once, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gallery")
    build(folder)
    return folder


def list_shown(browser) -> list[int]:
    return browser.execute_script(
        "return [...document.querySelectorAll('#units > li')]"
        ".filter(x => x.offsetParent).map(x => Number(x.dataset.unit))"
    )


def count(browser) -> str:
    return browser.find_element("id", "count").text


def focused(browser) -> str:
    return browser.execute_script("return document.activeElement.textContent")


def place(browser) -> str:
    return "/".join(browser.current_url.partition("#")[0].split("/")[-2:])


def locate(browser, selector: str) -> list:
    """Row and column of the cell that each frame of a mosaic shows."""
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map(cell => {"
        "const c = cell.getBoundingClientRect(),"
        "i = cell.firstChild.getBoundingClientRect();"
        "return [(c.top - i.top) / c.height, (c.left - i.left) / c.width]})",
        selector,
    )


def test_pages_load_whole_and_ask_for_nothing_else(browser, visit, folder):
    forget(browser)
    for page in PAGES:
        visit(page)
        assert has_all_pictures(browser), page
    assert find(browser, "cat")
    assert browser.get_log("browser") == []
    asked = list_requests(browser)
    assert any(url.endswith(".webp") for url in asked)
    home = folder.as_uri()
    assert all(url.startswith((f"{home}/", "data:", "about:")) for url in asked)


def test_filters_filter(browser, visit):
    top, units = search()["conv1"], np.arange(UNITS)
    visit(f"{CONV1}/index.html")
    percent = (100 * top.active.astype(float)).round(1)
    for wanted, expected in (
        ({"class": "1"}, units[top.favorite == 1]),
        ({"state": "dead"}, units[top.dead]),
        ({"state": "live"}, units[~top.dead]),
        ({"most": "50"}, units[percent <= 50]),
        ({"find": "3, 17,20-22"}, [3, 17, 20, 21, 22]),
        ({"find": "99"}, []),
        ({"class": "1", "least": "99"}, units[(top.favorite == 1) & (percent >= 99)]),
    ):
        choose(browser, **wanted)
        assert list_shown(browser) == list(expected)[:AT_ONCE], wanted
        assert count(browser).startswith(f"{len(expected)} of {UNITS} units")
        browser.find_element("css selector", "#controls [type=reset]").click()
        time.sleep(0.05)
        assert len(list_shown(browser)) == AT_ONCE
    choose(browser, find="x")
    assert list_shown(browser) == [] and "3, 17, 20-29" in count(browser)
    visit(f"{LOGITS}/index.html")
    choose(browser, find='Ship "<B>')
    assert list_shown(browser) == [2]


def test_units_are_sorted(browser, visit):
    top = search()["conv1"]
    for order, key in {
        "active": -top.active,
        "value": -top.activations[:, 0],
        "selectivity": -np.nan_to_num(top.selectivity, nan=-1),
        "sparsity": -np.nan_to_num(top.sparsity, nan=-1),
        "rare": np.where(top.dead, np.inf, top.active),
    }.items():
        visit(f"{CONV1}/index.html")
        choose(browser, sort=order)
        expected = np.argsort(key, kind="stable")
        assert list_shown(browser) == expected[:AT_ONCE].tolist()
        browser.find_element("id", "forth").click()
        assert list_shown(browser) == expected[AT_ONCE:].tolist()
        assert not browser.find_element("id", "forth").is_enabled()


def test_a_choice_is_kept_in_the_address(browser, visit):
    visit(f"{CONV1}/index.html")
    choose(browser, find="3,5", contrast="max")
    browser.find_element("link text", "unit 5").click()
    select = browser.find_element("css selector", "main select")
    assert select.get_property("value") == "max"
    press(browser, "u")
    assert list_shown(browser) == [3, 5]
    browser.execute_script("location.hash = 'from=20'")
    time.sleep(0.1)
    assert list_shown(browser) == list(range(20, UNITS))


def test_rules_contrasts_and_views_switch(browser, visit):
    visit(f"{CONV1}/index.html")

    def block() -> int:
        (_, column), *_ = locate(browser, "#units > li:not([hidden]) .projections")
        return round(column)

    assert block() == 1
    choose(browser, rule="gradient")
    assert block() == 5
    press(browser, "c")
    assert block() == 6
    press(browser, "r")
    assert block() == 2
    shown = []
    for _ in range(3):
        live = "#units > li:not([hidden])"
        names = f"{live} .patches", f"{live} .projections"
        find = browser.find_element
        shown.append([find("css selector", x).is_displayed() for x in names])
        press(browser, "v")
    assert shown == [[True, True], [True, False], [False, True]]


def test_a_unit_s_pictures_are_its_own_and_its_frames_inside_the_image(browser, visit):
    positions = search()["conv1"].positions
    on_border = np.isin(positions, (0, SIDE - 1)).any((1, 2))
    unit = np.flatnonzero(on_border & (search()["conv1"].active == 1))[0]
    visit(f"{CONV1}/{unit}.html")
    for contrast in (0, 1):
        cells = locate(browser, ".activations .cell")
        expected = [
            # A cell is 3 pixels of the mosaic, and an edge of 1 follows.
            [rank // 2 * 4 / 3, (rank % 2 + 2 * block) * 4 / 3]
            for rank in range(K)
            for block in (0, *(1 + 2 * rule + contrast for rule in range(3)))
        ]
        np.testing.assert_allclose(cells, expected, atol=0.02)
        press(browser, "c")
    frames = browser.execute_script(
        "return [...document.querySelectorAll('.source')].map(s => {"
        "const i = s.querySelector('img').getBoundingClientRect(),"
        "f = s.querySelector('i').getBoundingClientRect();"
        "return [f.top - i.top, f.left - i.left, f.bottom - i.top, f.right - i.left]"
        ".map(x => x / i.width)})",
    )
    boxes = np.concatenate([positions[unit] - 1, positions[unit] + 2], 1)
    boxes = boxes.clip(0, SIDE)
    np.testing.assert_allclose(np.multiply(frames, SIDE), boxes, atol=0.05)


@pytest.mark.parametrize(("width", "dots"), [(320, 2), (400, 3), (1280, 1)])
def test_pictures_are_enlarged_exactly_and_nothing_leaves_the_screen(
    browser, visit, width, dots
):
    for page in PAGES:
        visit(page)
        resize(browser, width, dots)
        script = "return document.documentElement.scrollWidth"
        assert browser.execute_script(script) <= width, page
        controls = (
            "const c = byId('controls'); return c ? c.scrollWidth - c.clientWidth : 0"
        )
        assert browser.execute_script(controls) == 0, page
        factors = browser.execute_script(
            "return [...document.querySelectorAll('.square, .cell, .source')]"
            ".filter(x => x.offsetParent).map(x =>"
            "x.getBoundingClientRect().width * devicePixelRatio /"
            "parseFloat(getComputedStyle(x).getPropertyValue('--width')))"
        )
        np.testing.assert_allclose(factors, np.round(factors), atol=0.01)
        assert min(factors, default=1) >= 1


def test_long_names_of_images_are_shown_in_full(browser, tmp_path):
    root = build_named(tmp_path).page.parent
    pages = *root.glob("pages/classes/*.html"), root / "pages/sanity/index.html"
    for page in (root / f"{CONV1}/5.html", *pages):
        browser.get(page.as_uri())
        for width in (390, 1280):
            resize(browser, width)
            script = "return document.documentElement.scrollWidth"
            assert browser.execute_script(script) <= width, page
            boxes = "[...document.querySelectorAll('bdi')].filter(x => x.offsetParent)"
            widths = f"return {boxes}.map(x => x.getBoundingClientRect().right)"
            assert max(browser.execute_script(widths), default=0) <= width, page
    browser.get((root / f"{CONV1}/5.html").as_uri())
    listed = browser.find_elements("css selector", "#relevance ol bdi")
    assert listed and {x.text for x in listed} <= {printable(x) for x in NAMES}
    assert browser.find_elements("css selector", "bdi i") == []


def test_keys_work(browser, visit):
    visit(f"{LOGITS}/index.html")
    press(browser, Keys.RIGHT, Keys.RIGHT)
    assert focused(browser) == "dog"
    press(browser, Keys.LEFT, Keys.ENTER)
    assert place(browser) == "logits/0.html"
    press(browser, Keys.RIGHT)
    assert place(browser) == "logits/1.html"
    press(browser, Keys.LEFT, "u")
    assert place(browser) == "logits/index.html"
    browser.find_element("css selector", "[data-unit='2'] .projections").click()
    assert place(browser) == "logits/2.html" and "ship" in browser.title
    press(browser, "u", "p", "p")
    assert place(browser) == "conv1/index.html"
    press(browser, Keys.RIGHT, Keys.DOWN, Keys.UP)
    assert focused(browser) == "unit 0"
    press(browser, "n", "?")
    assert browser.find_element("id", "keys").is_displayed()
    press(browser, "?")
    assert not browser.find_element("id", "keys").is_displayed()
    press(browser, "f", "3", Keys.ESCAPE, "u")
    assert browser.title == "A <i>small</i> network"


def test_any_unit_is_reached_from_any_page(browser, visit):
    for text, target in {
        "CONV1/unit 23": "conv1/23.html",
        "conv1": "conv1/index.html",
        "2": "logits/2.html",
        "../$x$ <b>\ufffd\ufffd[1m 4": f"{slug(ODD)}/4.html",
    }.items():
        visit(f"{LOGITS}/1.html")
        press(browser, "/", text, Keys.ENTER)
        wait_for(browser, f"return location.href.endsWith('{target}')")


def list_by_class(label: int, sort: str) -> list[str]:
    """Sort the units of a class by the definition."""
    rows = []
    for name, top in search().items():
        for unit in range(len(top.dead)):
            strongest = LABELS[top.images[unit, top.activations[unit] > 0]]
            score = (strongest == label).sum() / max(1, len(strongest))
            score += top.favorite[unit] == label
            score += 10 * (name == "logits" and unit == label)
            values = {"sparsity": top.sparsity[unit], "activity": top.active[unit]}
            value = values.get(sort, np.nan_to_num(top.selectivity[unit], nan=-1))
            title = CLASSES[unit] if name == "logits" else f"unit {unit}"
            key = -score if sort == "match" else 0, -float(f"{value:.5g}")
            if score:
                rows.append((key, printable(f"{name}, {title}")))
    return [title for _, title in sorted(rows, key=lambda row: row[0])]


def test_units_of_a_class_are_listed_as_one_types(browser, visit):
    visit(f"{CONV1}/5.html")
    for sort in ("match", "selectivity", "sparsity", "activity"):
        for label, text in enumerate(("CA", "dog", "ship")):
            expected = list_by_class(label, sort)
            assert find(browser, text, sort) == expected, (text, sort)
    assert browser.find_element("id", "hits").text == (
        f"{len(list_by_class(2, 'activity'))} results"
    )
    conv1 = [x for x in list_by_class(1, "sparsity") if x.startswith("conv1,")]
    assert find(browser, "conv1 dog", "sparsity") == conv1
    assert find(browser, "log")[0] == "logits"
    assert len(find(browser, "", "selectivity")) == 23 + 6 + 2
    assert find(browser, "dog cat") == []


def test_broader_terms_find_classes(browser, tmp_path):
    names = ("beagle", "robin", "golden retriever")
    net, options = make_network(1, names), {"labels": LABELS, "k": K}
    layers = ["conv1", "logits"]
    zf.gallery(net, IMAGES, tmp_path, layers=layers, sanity_images=0, **options)
    browser.get((tmp_path / "index.html").as_uri())
    beagle, robin, retriever = (find(browser, name) for name in names)
    assert find(browser, "bird") == robin
    assert {*find(browser, "DOG")} == {*beagle, *retriever} != {*robin}
    dogs = ["logits, beagle", "logits, golden retriever"]
    assert sorted(find(browser, "logits dog")) == dogs
    assert {*find(browser, "vertebr")} == {*beagle, *robin, *retriever}
    terms = json.loads((tmp_path / "gallery.json").read_text())["class_terms"]
    assert terms["beagle"][:3] == ["hound", "hunting dog", "dog"]
    assert terms["robin"][0] == "American robin" and terms.keys() == {*names}
    browser.get((tmp_path / "pages/classes/index.html").as_uri())
    browser.find_element("css selector", "#find-class input").send_keys("dog")
    shown = browser.find_elements("css selector", "#classes li:not([hidden]) a")
    assert [x.text for x in shown] == ["beagle", "golden retriever"]


def test_queries_are_understood_as_people_type_them(browser, tmp_path):
    names = ("beagle", "dogsled", "tabby", "maillot, tank suit", "axolotl")
    net = zf.network(
        lambda params, x: x.mean((1, 2)) @ params["tank"]["kernel"],
        (1, 1, 5),
        params={"tank": {"kernel": np.eye(5, dtype=np.float32)}},
        class_names=names,
    )
    images = np.eye(5, dtype=np.float32)[:, None, None]
    options = {"labels": np.arange(5), "rules": ["gradient"], "sanity_images": 0}
    zf.gallery(net, images, tmp_path, layers="tank", k=1, **options)
    browser.get((tmp_path / "index.html").as_uri())

    def units(*numbers: int) -> list[str]:
        return [f"tank, {names[unit]}" for unit in numbers]

    for query, expected in {
        "dog": units(0),
        "dogs": units(0),
        "Puppies": units(0),
        "puppy": units(0),
        "kittens": units(2),
        "dogsl": units(1),
        "animals": units(0, 2, 4),
        "dog tank": units(0),
        "dogs in layer tank": units(0),
        "unit 4 of tank": units(4),
        "units 1, 4": units(1, 4),
        "tank, unit 4": units(4),
        "layer tank": ["tank", *units(*range(5))],
        "dog or cat": units(0, 2),
        "dog, cat in tank": units(0, 2),
        "dog or": units(0),
        # The name of a class holds a comma and the layer's name.
        "maillot, tank suit": units(3),
        "dog cat": [],
    }.items():
        assert sorted(find(browser, query)) == sorted(expected), query


def test_names_that_javascript_gives_to_every_object_are_names(browser, tmp_path):
    names = ("constructor", "toString", "__proto__")
    rng = np.random.default_rng(0)

    def model(params, x):
        x = x.mean((1, 2))
        for name in names:
            x = x @ params[name]["kernel"]
        return x

    params = {
        name: {"kernel": np.eye(3) + rng.uniform(0, 0.1, (3, 3)).astype(np.float32)}
        for name in names
    }
    net = zf.network(model, (1, 1, 3), params=params, class_names=names)
    images, labels = np.eye(3, dtype=np.float32)[:, None, None], np.arange(3)
    options = {"labels": labels, "rules": ["gradient"], "sanity_images": 0}
    zf.gallery(net, images, tmp_path, layers=names, k=1, **options)
    forget(browser)
    for page in ("index.html", "pages/layers/__proto__/index.html"):
        browser.get((tmp_path / page).as_uri())
        assert find(browser, "constructor 1") == ["constructor, unit 1"]
        assert find(browser, "__proto__ tostring") == ["__proto__, toString"]
        assert len(find(browser, "tostr")) == 4
        assert len(find(browser, "like constructor/1")) > 0
        assert find(browser, "valueOf") == []
    assert list_shown(browser) == [0, 1, 2]
    assert browser.get_log("browser") == []


def test_a_gallery_without_labels_says_where_classes_are(browser, tmp_path):
    names = [f"fire{i}" for i in range(9)]

    def model(params, x):
        x = x.mean((1, 2))
        for name in names:
            x = x @ params[name]["kernel"]
        return x

    params = {name: {"kernel": np.eye(3, dtype=np.float32)} for name in names}
    classes = ("cat", "dog", "ship")
    net = zf.network(model, (1, 1, 3), params=params, class_names=classes)
    images = np.eye(3, dtype=np.float32)[:, None, None]
    options = {"rules": ["gradient"], "sanity_images": 0}
    zf.gallery(net, images, tmp_path, layers=names, k=1, **options)
    browser.get((tmp_path / "index.html").as_uri())
    assert find(browser, "dogs") == ["fire8, dog"]
    assert find(browser, "fire5 dog") == []
    hits = browser.find_element("id", "hits")
    assert hits.text == (
        "the images have no labels, so fire5 cannot be searched by class; "
        "see the class pages"
    )
    assert find(browser, "dodo") == []
    assert hits.text.endswith("fire0, fire1, fire2, fire3, fire4, fire5 … and 3 more")
    find(browser, "dogs fire5")
    hits.find_element("css selector", "a").click()
    shown = browser.find_elements("css selector", "#classes li:not([hidden]) a")
    assert [x.text for x in shown] == ["dog"]


DOGS = ("pug", "beagle", "collie", "boxer", "Rottweiler", "kelpie", "whippet")
BREEDS = (*DOGS, "basset", "Samoyed")


def test_all_of_a_unit_s_strongest_count(browser, tmp_path):
    """Unit 0 has nine breeds, unit 1 a robin and a tie of four breeds and four cats."""
    names = (*BREEDS, "robin", "tabby", "dogsled", "hotdog")
    labels = np.array([*range(9), *[9, *[0] * 4, *[10] * 4], *[11, 12]])
    images = np.zeros((len(labels), 1, 1, 3), np.float32)
    images[:9, ..., 0] = images[9:18, ..., 1] = images[18:, ..., 2] = 1
    kernel = np.eye(3, dtype=np.float32)
    net = zf.network(
        lambda params, x: x.mean((1, 2)) @ params["fc"]["kernel"],
        (1, 1, 3),
        params={"fc": {"kernel": kernel}},
        class_names=("a", "b", "c"),
    )
    options = {"labels": labels, "class_names": names, "rules": ["gradient"]}
    zf.gallery(net, images, tmp_path, layers="fc", k=9, sanity_images=0, **options)
    browser.get((tmp_path / "index.html").as_uri())
    assert find(browser, "dog") == ["fc, a", "fc, b"]
    small = [x.text for x in browser.find_elements("css selector", "#results .small")]
    assert small[0].startswith("9 of 9 match · 1 of 9 pug")
    assert find(browser, "cat") == ["fc, b"]
    # A name's part counts where no whole name is meant, and then a word's beginning.
    assert find(browser, "sled") == find(browser, "sle") == ["fc, c"]


def test_a_search_is_used_by_keys(browser, visit):
    visit("index.html")
    titles = find(browser, "dog")
    field = browser.switch_to.active_element
    assert field.get_attribute("role") == "combobox"

    def active() -> str:
        row = browser.find_element("id", field.get_attribute("aria-activedescendant"))
        assert row.get_attribute("aria-selected") == "true" and row.is_displayed()
        return row.find_element("css selector", "b").text

    assert active() == titles[0] and field.get_attribute("aria-expanded") == "true"
    press(browser, Keys.DOWN, Keys.DOWN, Keys.UP)
    assert active() == titles[1]
    press(browser, Keys.UP, Keys.UP)
    assert active() == titles[-1]
    press(browser, Keys.ESCAPE)
    assert field.get_attribute("aria-expanded") == "false"
    assert not browser.find_element("id", "panel").is_displayed()
    press(browser, Keys.DOWN)
    wait_for(browser, "return !byId('panel').hidden")
    press(browser, Keys.DOWN, Keys.ENTER)
    wait_for(browser, "return document.title.includes(', unit ')")
    layer, unit = titles[1].split(", unit ")
    assert place(browser) == f"{layer}/{unit}.html"
    browser.back()
    wait_for(browser, "return !byId('panel').hidden && byId('results').children.length")
    assert browser.current_url.endswith("index.html#q=dog")


def test_an_address_opens_a_unit_a_layer_or_a_search(browser, visit):
    for address, target in {
        "conv1/5": "conv1/5.html",
        "conv1": "conv1/index.html",
        f"{slug(ODD)}/2": f"{slug(ODD)}/2.html",
    }.items():
        visit(f"index.html#{address}")
        wait_for(browser, f"return location.href.endsWith('{target}')")
    visit("index.html#q=dog&sort=sparsity")
    wait_for(browser, "return byId('results').children.length")
    titles = [x.text for x in browser.find_elements("css selector", "#results b")]
    assert titles == list_by_class(1, "sparsity")
    find(browser, "cat", "activity")
    assert browser.current_url.endswith("#q=cat&sort=activity")
    visit(f"{CONV1}/5.html")
    find(browser, "a b&c", "activity")
    link = browser.find_element("id", "search-address").get_attribute("href")
    assert link.endswith("/index.html#q=a+b%26c&sort=activity")
    for text, address in {"like 17": "like+conv1%2F17", "17": "conv1%2F17"}.items():
        find(browser, text)
        link = browser.find_element("id", "search-address").get_attribute("href")
        assert link.endswith(f"#q={address}")
    visit("index.html#ship%20%22")
    wait_for(browser, "return byId('results').children.length")
    assert browser.find_element("name", "q").get_property("value") == 'ship "'


def test_a_unit_s_address_is_copied(browser, visit, folder):
    visit(f"{CONV1}/5.html#contrast=max")
    browser.find_element("id", "copy").click()
    wait_for(browser, "return byId('copied').textContent")
    assert browser.find_element("id", "copied").text == "copied"
    text = browser.find_element("id", "citation").text
    address = f"{folder.as_uri()}/index.html#conv1/5"
    assert text == f"A <i>small</i> network: conv1, unit 5. {address}"
    browser.get(address)
    wait_for(browser, "return location.href.endsWith('conv1/5.html')")


def test_a_missing_unit_is_said_with_those_there_are(browser, visit):
    for text, message in {
        "conv9 1": "no unit or class; the layers are conv1, ",
        "logits 6": "there is no unit 6; logits has the units 0 to 2",
        f"like conv1/{DEAD}": f"conv1, unit {DEAD} is dead: no image activates it",
        "": "a layer, a unit, a class: conv1, conv1 3, cat, conv1 cat, like conv1/3",
    }.items():
        visit("index.html")
        assert find(browser, text) == []
        press(browser, Keys.ENTER)
        assert browser.find_element("id", "hits").text.startswith(message)
    visit("index.html#conv1/99")
    wait_for(browser, "return byId('hits').textContent")
    assert "conv1 has the units 0 to 23" in browser.find_element("id", "hits").text


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_axe_finds_nothing_serious(browser, visit, scheme, width):
    prefer(browser, scheme)
    for page in (*PAGES, "index.html#q=dog"):
        visit(page)
        resize(browser, width)
        if "#" in page:
            wait_for(browser, "return byId('results').children.length")
        assert not find_faults(browser), page


def test_pages_are_printed_black_on_white_without_controls(browser, visit):
    visit(f"{CONV1}/5.html")
    prefer(browser, "dark", media="print")
    colors = (
        "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
    )
    assert browser.execute_script(colors) == ["rgb(255, 255, 255)", "rgb(0, 0, 0)"]
    square = browser.find_element("css selector", ".overview .square")
    assert square.is_displayed() and square.size["width"] > 300
    left = "return ['nav', 'h1'].map(x => document.querySelector(x))"
    left += ".map(x => x.getBoundingClientRect().left)"
    assert len({*browser.execute_script(left)}) == 1
    for page in (f"{CONV1}/5.html", f"{CONV1}/index.html"):
        visit(page)
        prefer(browser, "dark", media="print")
        shown = browser.find_elements("css selector", "form, button, .steps")
        assert len(shown) > 3 and not any(x.is_displayed() for x in shown)


def test_pages_are_dark_where_the_reader_wants_it(browser, visit):
    for scheme in ("light", "dark"):
        prefer(browser, scheme)
        for page in PAGES:
            visit(page)
            paper, ink = browser.execute_script(
                "const s = getComputedStyle(document.body);"
                "return [s.backgroundColor, s.color].map(c =>"
                "c.match(/\\d+/g).slice(0, 3).map(Number).reduce((a, b) => a + b))",
            )
            assert (paper < 100 < 500 < ink) == (scheme == "dark")
