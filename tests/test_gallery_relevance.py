"""The pages of classes: numbers and pictures, and as a person uses them in Chromium."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import zfnet_jax as zf
from tests.browser import (
    find_faults,
    forget,
    list_requests,
    needs_browser,
    prefer,
    resize,
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
    RARE,
    K,
    build,
)
from tests.test_gallery import CELL, Page, display, read_cells
from zfnet_jax.analysis.relevance import MOST, relevance, top_relevance
from zfnet_jax.files import slug
from zfnet_jax.galleries import reasons
from zfnet_jax.galleries.pages import printable
from zfnet_jax.viz.patches import cut_patches

pytestmark = pytest.mark.usefixtures("compiled_once")

QUICK = {"epochs": None, "sanity_images": 0}
NAMES = [printable(name) for name in CLASSES]
# A person reads numbers to three digits.
DIGITS: dict[str, Any] = {"rtol": 1e-2, "atol": 1e-6}


@pytest.fixture(scope="module")
def folder(compiled_once, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gallery")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reasons, "_SHARE", 1)  # three images per class
        build(folder, **QUICK)
    return folder


@pytest.fixture(scope="module")
def tops(compiled_once):
    return top_relevance(NET, IMAGES, LAYERS, k=K, labels=LABELS)


def read_layer(folder: Path, layer: str) -> dict:
    text = (folder / f"pages/classes/{slug(layer)}.js").read_text()
    assert "<" not in text
    return json.loads(text.removeprefix("const RELEVANCE = ").rstrip(";\n"))


def read_class(folder: Path, label: int) -> list[dict]:
    text = (folder / f"pages/classes/{label}.html").read_text()
    return json.loads(text.partition("const CLASS = ")[2].partition(";</script>")[0])


def test_a_class_lists_the_units_that_most_often_speak_for_it(folder):
    by_layer = relevance(NET, IMAGES, LABELS)
    for label in range(3):
        layers = read_class(folder, label)
        assert [layer["slug"] for layer in layers] == [slug(ODD), "conv1"]
        for layer, name in zip(layers, (ODD, "conv1"), strict=True):
            values = by_layer[name][label == LABELS]
            most = np.argsort(-values, 1)[:, :MOST]
            is_most = np.zeros(values.shape, bool)
            np.put_along_axis(is_most, most, True, 1)
            rate = (is_most & (values > 0)).mean(0) * (values.mean(0) > 0)
            positive = np.maximum(values, 0)
            share = (positive / positive.sum(1, keepdims=True)).mean(0)
            order = sorted(range(len(rate)), key=lambda u: (-rate[u], -share[u]))
            expected = [u for u in order if rate[u]][:6]
            assert [row[0] for row in layer["units"]] == expected
            numbers = [row[1:4] for row in layer["units"]]
            columns = rate[expected], share[expected], values.mean(0)[expected]
            np.testing.assert_allclose(numbers, np.stack(columns, 1), **DIGITS)


def test_a_unit_lists_the_classes_it_speaks_for_and_its_images(folder, tops):
    for name, top in tops.items():
        layer = read_layer(folder, name)
        assert not layer["predicted"] and len(layer["units"]) == len(top.images)
        for unit, (classes, images) in enumerate(layer["units"]):
            rate = top.class_counts[unit] / top.class_sizes
            rate = rate * (top.class_means[unit] > 0)
            share = top.class_shares[unit]
            order = sorted(range(3), key=lambda c: (-rate[c], -share[c]))
            assert [row[0] for row in classes] == [x for x in order if rate[x]]
            assert all(layer["names"][str(row[0])] == NAMES[row[0]] for row in classes)
            count = (top.relevances[unit] > 0).sum()
            assert [row[0] for row in images] == top.images[unit, :count].tolist()
            assert [row[1] for row in images] == LABELS[
                top.images[unit, :count]
            ].tolist()
            values = [row[2] for row in images]
            np.testing.assert_allclose(values, top.relevances[unit, :count], **DIGITS)


def test_patches_are_those_of_the_greatest_relevance(folder, tops):
    top, unit = tops["conv1"], int(tops["conv1"].class_means.mean(1).argmax())
    file = folder / f"pages/classes/units/conv1/{unit}.webp"
    cells = read_cells(file, CELL, CELL)
    for rank in range(K):
        corner = top.positions[unit, rank] - 1
        box = np.concatenate([corner, corner + CELL])[None]
        patch = cut_patches(PICTURES[top.images[unit, rank]][None], box)[0]
        np.testing.assert_array_equal(cells[divmod(rank, 2)][..., :3], patch)


def test_an_example_shows_its_own_projections(folder, tops):
    top, label, rank = tops["conv1"], 2, 1
    image = int(top.example_images[label, rank])
    text = Page(folder / f"pages/classes/{label}.html").text
    assert f"image {image} conv1" in text
    # Three units of two layers; cells of conv1 are enlarged from 3 to 12 pixels.
    file = folder / f"pages/classes/images/{image}-units.webp"
    cells = read_cells(file, 12, 12)
    assert cells.shape[:2] == (2, 6)
    logits = np.asarray(NET(IMAGES[LABELS == label]))[:, label]
    best = np.flatnonzero(LABELS == label)[np.argsort(-logits)]
    assert top.example_images[label].tolist() == best[:3].tolist()
    for column in range(3):
        unit = int(top.example_units[label, rank, column])
        value = top.example_relevances[label, rank, column]
        assert f"unit {unit} {value:.3g}" in text
        position = top.example_positions[label, rank, column]
        own = zf.project(NET, IMAGES[image][None], "conv1", unit, position, crop=True)
        shown, _ = display(own.pixels[0], 99.5)
        cell = cells[1, column, ::4, ::4, :3]
        assert np.abs(cell - shown).max() <= 0.51
        patch = cut_patches(PICTURES[image][None], own.boxes)[0]
        np.testing.assert_array_equal(cells[0, column, ::4, ::4, :3], patch)


def test_without_labels_the_predicted_class_counts(tmp_path):
    build(tmp_path, labels=None, layers="logits", **QUICK)
    predicted = np.asarray(NET(IMAGES)).argmax(1)
    layer = read_layer(tmp_path, "logits")
    assert layer["predicted"]
    text = Page(tmp_path / "pages/classes/index.html").text
    assert "counts for the class that the network predicts" in text
    for label, count in enumerate(np.bincount(predicted, minlength=3)):
        page = tmp_path / f"pages/classes/{label}.html"
        assert page.exists() == (count > 0)
        if count:
            assert f"for {count} of {COUNT} images" in Page(page).text


def test_a_network_without_logits_has_no_classes(tmp_path):
    net = zf.network(lambda x: jax.nn.relu(x @ np.eye(3, dtype="f4")), (4, 4, 3))
    images = np.random.default_rng(0).normal(size=(3, 4, 4, 3)).astype(np.float32)
    zf.gallery(net, images, tmp_path)
    (script,) = (tmp_path / "pages/classes").glob("*.js")
    assert script.read_text() == "const RELEVANCE = null;\n"
    assert "pages/classes" not in (tmp_path / "index.html").read_text()


def texts(browser, selector: str) -> list[str]:
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])]"
        ".filter(x => x.offsetParent).map(x => x.textContent)",
        selector,
    )


@needs_browser
def test_class_pages_in_the_browser(browser, visit, folder):
    forget(browser)
    visit("index.html")
    browser.find_element("link text", "Which units speak for each class").click()
    assert texts(browser, "#classes a") == NAMES
    browser.find_element("css selector", "#find-class input").send_keys("DO")
    assert texts(browser, "#classes a") == ["dog"]
    assert browser.current_url.endswith("#find=DO")
    assert texts(browser, "#class-count") == ["1 of 3 classes"]
    browser.find_element("link text", "dog").click()
    top = read_class(folder, 1)
    shown = texts(browser, "#speakers li a")
    assert shown == [f"unit {x[0]}" for layer in top for x in layer["units"]]
    for width in (390, 1280):
        resize(browser, width)
        script = "return document.documentElement.scrollWidth"
        assert browser.execute_script(script) <= width
    assert browser.execute_script(
        "document.querySelectorAll('img').forEach(x => x.loading = 'eager');"
        "return Promise.all([...document.images].map(x => x.decode()))"
        ".then(() => [...document.images].every(x => x.alt && x.naturalWidth > 0))",
    )
    browser.find_element("css selector", "#speakers li a").click()
    assert browser.title.startswith(printable(ODD))
    assert browser.get_log("browser") == []
    asked, home = list_requests(browser), folder.as_uri()
    assert any(url.endswith("pages/classes/1.html") for url in asked)
    assert all(url.startswith((f"{home}/", "data:", "about:")) for url in asked)


@needs_browser
def test_a_unit_s_page_shows_its_classes(browser, visit, folder):
    browser.get_log("browser")
    for name, units in {"conv1": [0, RARE, DEAD], "logits": [1, 2]}.items():
        layer = read_layer(folder, name)["units"]
        for unit in units:
            classes, images = layer[unit]
            visit(f"pages/layers/{slug(name)}/{unit}.html")
            rows = texts(browser, "#relevance tbody th")
            assert rows == [NAMES[label] for label, *_ in classes]
            shown = texts(browser, "#relevance ol li")
            assert [x.split(",")[0] for x in shown] == [f"image {x[0]}" for x in images]
            pictures = len(browser.find_elements("css selector", "#relevance img"))
            assert pictures == 2 * bool(images)
    assert browser.get_log("browser") == []


@needs_browser
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_axe_finds_nothing_serious(browser, visit, scheme, width):
    prefer(browser, scheme)
    classes = "pages/classes/index.html", "pages/classes/1.html"
    for page in (*classes, "pages/layers/conv1/0.html"):
        visit(page)
        resize(browser, width)
        assert not find_faults(browser), page
