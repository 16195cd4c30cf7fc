"""Similar units, the map of a layer, and two networks side by side."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver import ActionChains, Keys

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
    CLASSES,
    COUNT,
    DEAD,
    IMAGES,
    LABELS,
    LAYERS,
    NET,
    ODD,
    PICTURES,
    UNITS,
    YOUNG,
    K,
)
from zfnet_jax.files import slug
from zfnet_jax.galleries import build as building
from zfnet_jax.galleries.numbers import printable
from zfnet_jax.viz.patches import cut_patches

pytestmark = pytest.mark.usefixtures("compiled_once")
# Units 0 and 1 are the same, and so are 10, 11 and 12.
SOURCES = np.array([*range(UNITS)])
SOURCES[[1, 11, 12]] = 0, 10, 10
TWINS = NET.map_weights("conv1", lambda x: x[..., SOURCES])
OTHER = "</script><b>\u202eother"
MAP, UNIT = "pages/likeness/conv1.html", "pages/layers/conv1/5.html"
COMPARED = "pages/compare/index.html", "pages/compare/conv1/index.html"


def build(folder: Path, **changes) -> None:
    options = {"layers": LAYERS, "labels": LABELS, "pictures": PICTURES, "k": K}
    options |= {"rules": ["deconvnet"], "compare": (OTHER, NET, IMAGES)}
    zf.gallery(TWINS, IMAGES, folder, sanity_images=0, **options | changes)


@pytest.fixture(scope="module")
def folder(compiled_once, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alike")
    build(folder)
    return folder


@pytest.fixture(scope="module")
def like(compiled_once):
    return zf.likeness(TWINS, IMAGES, LAYERS)


def read(path: Path):
    return json.loads(path.read_text().partition(" = ")[2].rstrip(";\n"))


def evaluate(browser, script: str):
    return browser.execute_script(f"return {script}")


@pytest.mark.parametrize("layer", ["conv1", "logits"])
def test_data_are_those_of_the_analysis(folder, like, layer):
    data = read(folder / f"pages/likeness/{layer}.js")
    assert data["groups"] == ([[10, 11, 12], [0, 1]] if layer == "conv1" else [])
    assert [x["slug"] for x in data["layers"]] == [slug(name) for name in LAYERS]
    for elsewhere, key in ((False, "within"), (True, "elsewhere")):
        nearest = like.nearest(layer, elsewhere=elsewhere)
        for unit, row in enumerate(data[key]):
            known = nearest.cosines[unit] > 0
            places, units, cosines = np.reshape(row, (-1, 3)).T
            assert units.tolist() == nearest.units[unit, known].tolist()
            np.testing.assert_allclose(cosines, nearest.cosines[unit, known], atol=6e-4)
            names = [LAYERS[int(place)] for place in places]
            assert names == [nearest.layers[x] for x in nearest.places[unit, known]]
    points = np.array([x or [np.nan] * 2 for x in data["points"]])
    expected = like.map(layer) / np.nanmax(np.abs(like.map(layer)))
    np.testing.assert_allclose(points, expected, atol=6e-5)


def test_matches_are_those_of_the_analysis_with_the_other_s_patches(folder, like):
    data = read(folder / "pages/compare/conv1/matches.js")
    match = like.match(zf.likeness(NET, IMAGES), "conv1")
    for unit, pairs in enumerate(data["pairs"]):
        if unit == DEAD:
            assert pairs == []
            continue
        _, number, cosine = pairs[0]
        assert number == match.units[unit]
        assert cosine == pytest.approx(match.cosines[unit], abs=6e-4)
        # One of two same units takes the match, and the other's is named.
        assert pairs[-1][1:] == [SOURCES[unit], 1]
    text = (folder / COMPARED[0]).read_text()
    assert f">23<td>{np.median(match.cosines[match.units >= 0]):.2f}<td>20<td>" in text
    top, unit = zf.top_activations(NET, IMAGES, "conv1", k=K)["conv1"], 5
    boxes = np.concatenate([top.positions[unit] - 1, top.positions[unit] + 2], 1)
    patches = cut_patches(PICTURES[top.images[unit]], boxes)
    with Image.open(folder / f"pages/compare/conv1/{unit}.webp") as image:
        cells = np.asarray(image.convert("RGBA")).reshape(2, 4, 2, 4, 4)
    cells = cells.swapaxes(1, 2)[:, :, :3, :3, :3].reshape(K, 3, 3, 3)
    np.testing.assert_array_equal(cells, patches)


def test_what_has_not_changed_is_kept(folder, monkeypatch):
    built = []

    def spy(net, *arguments, **options):
        built.append(net)
        return zf.likeness(net, *arguments, **options)

    monkeypatch.setattr(building, "likeness", spy)
    build(folder)
    assert built == []
    build(folder, compare=("young", YOUNG, IMAGES))
    assert built == [YOUNG, TWINS]
    build(folder)
    assert (folder / COMPARED[0]).read_text().count("young") == 0


def test_another_number_of_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"young is compared over 9 images.*{COUNT}"):
        build(tmp_path, compare=("young", YOUNG, IMAGES[:9]))


@needs_browser
def test_pages_load_whole_and_ask_for_nothing_else(browser, visit, folder):
    forget(browser)
    pages = "index.html", MAP, UNIT, f"pages/layers/conv1/{DEAD}.html", *COMPARED
    odd = f"pages/likeness/{slug(ODD)}.html", f"pages/compare/{slug(ODD)}/index.html"
    for page in (*pages, *odd):
        visit(page)
        for width in (1280, 390):
            resize(browser, width)
            overflow = evaluate(browser, "document.documentElement.scrollWidth")
            assert overflow <= width, page
        assert has_all_pictures(browser), page
        bold = "[...document.querySelectorAll('b')].map(x => x.textContent)"
        assert "\ufffdother" not in evaluate(browser, bold)
    assert browser.get_log("browser") == []
    asked = list_requests(browser)
    assert any(url.endswith("compare/conv1/matches.js") for url in asked)
    home = folder.as_uri()
    assert all(url.startswith((f"{home}/", "data:", "about:")) for url in asked)


@needs_browser
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_axe_finds_nothing_serious(browser, visit, scheme, width):
    prefer(browser, scheme)
    for page in (MAP, UNIT, *COMPARED):
        visit(page)
        resize(browser, width)
        assert not find_faults(browser), page


@needs_browser
def test_a_unit_s_page_leads_to_similar_units(browser, visit, like):
    visit(UNIT)
    for elsewhere, name in ((False, "within"), (True, "elsewhere")):
        nearest = like.nearest("conv1", elsewhere=elsewhere)
        items = browser.find_elements("css selector", f"#{name} li")
        assert len(items) == (nearest.cosines[5] > 0).sum()
        assert f"{nearest.cosines[5, 0]:.2f}" in items[0].text
    unit = like.nearest("conv1").units[5, 0]
    browser.find_element("css selector", "#within a").click()
    assert browser.current_url.endswith(f"layers/conv1/{unit}.html")
    visit("pages/layers/conv1/0.html")
    first = browser.find_element("css selector", "#within li")
    assert first.text.split("\n") == ["unit 1", "1.00"]
    browser.find_element("link text", "Map of conv1").click()
    assert "unit 0" in browser.find_element("id", "picked").text


def correlate(layer: str, unit: int) -> dict[str, float]:
    """Brute force: the cosine of each other unit, in float64, by its title."""
    features = TWINS.activations(IMAGES, LAYERS)
    responses = {
        name: x.max(tuple(range(1, x.ndim - 1))).astype(float)
        for name, x in features.items()
    }
    own = responses[layer][:, unit]
    return {
        name_unit(name, i): np.corrcoef(own, column)[0, 1]
        for name, columns in responses.items()
        for i, column in enumerate(columns.T)
        if (name, i) != (layer, unit) and column.max() > 0
    }


def name_unit(layer: str, unit: int) -> str:
    name = CLASSES[unit] if layer == "logits" else f"unit {unit}"
    return printable(f"{layer}, {name}")


@needs_browser
@pytest.mark.parametrize(("layer", "unit"), [("conv1", 5), ("logits", 2)])
def test_units_like_a_unit_are_searched(browser, visit, layer, unit):
    visit(f"pages/layers/{layer}/{unit}.html")
    browser.find_element("id", "like").click()
    wait_for(browser, "return byId('results').children.length")
    assert evaluate(browser, "byId('search').q.value") == f"like {layer}/{unit}"
    cosines = correlate(layer, unit)
    ranking = sorted((x for x in cosines if cosines[x] > 0), key=lambda x: -cosines[x])
    own = [x for x in ranking if x.startswith(f"{layer}, ")]
    elsewhere = [x for x in ranking if x not in own]
    nearest = sorted((cosines[x] for x in own[:8] + elsewhere[:8]), reverse=True)
    titles = find(browser, f"like {layer} {unit}")
    # By cosine, since some units are the same.
    np.testing.assert_allclose([cosines[x] for x in titles], nearest, atol=1e-3)
    assert len({*titles}) == len(nearest)
    hits = evaluate(browser, "byId('hits').textContent")
    assert hits == f"{len(nearest)} units like {name_unit(layer, unit)}"
    texts = "[...document.querySelectorAll('#results .small')].map(x => x.textContent)"
    shown = [float(text.split()[1]) for text in evaluate(browser, texts)]
    np.testing.assert_allclose(shown, nearest, atol=6e-3)
    by_sparsity = find(browser, f"like {layer}/{unit}", "sparsity")
    assert {*by_sparsity} == {*titles}
    top = zf.top_activations(TWINS, IMAGES, "conv1", k=K)["conv1"]
    values = {name_unit("conv1", i): x for i, x in enumerate(top.sparsity.tolist())}
    sparsity = [values[x] for x in by_sparsity if x in values]
    assert len(sparsity) > 3 and sparsity == sorted(sparsity, reverse=True)


@needs_browser
def test_likes_that_cannot_be_searched_are_explained(browser, visit, folder):
    visit(UNIT)
    assert find(browser, "like 5") == find(browser, "like conv1/unit 5") != []
    for text, message in {
        "like conv1/99": "there is no unit 99; conv1 has the units 0 to 23",
        "like conv1/7": "conv1, unit 7 is dead: no image activates it",
        "like": "“like” takes a layer and a unit: like conv1/3",
        "like dog": "“like” takes a layer and a unit: like conv1/3",
    }.items():
        assert find(browser, text) == []
        assert browser.find_element("id", "hits").text == message
    likeness = folder / "pages/likeness"
    likeness.rename(folder / "hidden")
    try:
        visit("index.html")
        assert find(browser, "like conv1/5") == []
        hits = browser.find_element("id", "hits").text
        assert hits == "this gallery does not hold which units are alike"
    finally:
        (folder / "hidden").rename(likeness)
        forget(browser)


def point(browser, unit: int) -> ActionChains:
    """Move the mouse to a unit of the map."""
    x, y = evaluate(browser, f"toScreen({unit})")
    canvas = browser.find_element("id", "map")
    size = canvas.size
    return ActionChains(browser).move_to_element_with_offset(
        canvas, x - size["width"] / 2, y - size["height"] / 2
    )


@needs_browser
def test_the_map_is_explored_with_the_mouse(browser, visit):
    visit(MAP)
    assert len(evaluate(browser, "placed")) == UNITS - 1
    points = evaluate(browser, "placed.map(toScreen)")
    width, height = evaluate(browser, "[size.width, size.height]")
    assert (np.array(points) > 0).all() and (np.array(points) < (width, height)).all()
    point(browser, 5).perform()
    panel = browser.find_element("id", "picked")
    assert "unit 5" in panel.text and "most similar: unit" in panel.text
    point(browser, 10).perform()
    assert "near duplicate of 2 others" in panel.text and "cosine 1.00" in panel.text
    # What the pointer is at stays there.
    before = evaluate(browser, "toScreen(5)")
    browser.execute_script("zoom(2, ...toScreen(5))")
    np.testing.assert_allclose(evaluate(browser, "toScreen(5)"), before, atol=0.01)
    canvas = browser.find_element("id", "map")
    ActionChains(browser).drag_and_drop_by_offset(canvas, 40, 30).perform()
    moved = np.subtract(evaluate(browser, "toScreen(5)"), before)
    np.testing.assert_allclose(moved, [40, 30], atol=1)
    assert browser.current_url.endswith(MAP)
    browser.find_element("id", "all").click()
    np.testing.assert_allclose(evaluate(browser, "placed.map(toScreen)"), points)
    point(browser, 5).click().perform()
    assert browser.current_url.endswith("layers/conv1/5.html")
    browser.back()
    assert browser.current_url.endswith(f"{MAP}#unit=5")


@needs_browser
def test_the_map_is_explored_with_keys(browser, visit, folder):
    visit(MAP)
    browser.execute_script("byId('map').focus()")
    press(browser, Keys.RIGHT)
    first = evaluate(browser, "picked")
    press(browser, Keys.RIGHT)
    second = evaluate(browser, "picked")
    positions = evaluate(browser, f"[{first}, {second}].map(toScreen)")
    assert positions[1][0] > positions[0][0]
    assert evaluate(browser, "byId('picked').ariaLive") == "polite"
    scale = evaluate(browser, "view.scale")
    press(browser, "+")
    assert evaluate(browser, "view.scale") == pytest.approx(1.5 * scale)
    press(browser, "0", Keys.UP, Keys.DOWN, Keys.ENTER)
    unit = evaluate(browser, "location.pathname").rpartition("/")[2]
    assert unit.removesuffix(".html").isdecimal()
    browser.get("about:blank")
    browser.get(f"{(folder / MAP).as_uri()}#unit=9")
    assert "unit 9" in browser.find_element("id", "picked").text
    press(browser, "u")
    assert browser.current_url.partition("#")[0].endswith("layers/conv1/index.html")


@needs_browser
def test_patches_are_drawn_and_groups_light_up(browser, visit):
    visit(MAP)
    for _ in range(50):
        time.sleep(0.1)
        if (
            evaluate(browser, "[...patches.values()].filter(x => x).length")
            == UNITS - 1
        ):
            break
    else:
        raise AssertionError("patches are missing")
    browser.execute_script("Object.assign(view, {x: 0, y: 0}); paint()")
    groups = browser.find_elements("css selector", "#groups li")
    assert [len(x.find_elements("tag name", "a")) for x in groups] == [3, 2]
    ActionChains(browser).move_to_element(groups[1]).perform()
    assert evaluate(browser, "lit") == [0, 1]
    groups[0].find_element("tag name", "a").send_keys("")
    assert evaluate(browser, "lit") == [10, 11, 12]


@needs_browser
def test_two_networks_are_side_by_side(browser, visit):
    visit(COMPARED[1])

    def list_units() -> list[int]:
        return evaluate(
            browser, "[...byId('matches').children].map(x => Number(x.dataset.unit))"
        )

    assert len(list_units()) == UNITS - 1
    first = browser.find_element("css selector", "#matches li")
    assert "unit 0\n→\nunit 0\ncosine 1.00" in first.text
    choose(browser, order="least")
    # Of the same units one has taken the match.
    assert sorted(SOURCES[list_units()[:3]]) == [0, 10, 10]
    first = browser.find_element("css selector", "#matches li")
    assert "closer: unit" in first.text
    choose(browser, order="unit")
    assert list_units() == [x for x in range(UNITS) if x != DEAD]
    press(browser, "u")
    assert browser.current_url.endswith(COMPARED[0])
    assert OTHER.replace("\u202e", "\ufffd") in browser.title
