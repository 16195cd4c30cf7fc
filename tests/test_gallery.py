"""The gallery's files: pictures, numbers, links, and what is kept."""

import dataclasses
import html.parser
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.references.gallery_case import (
    AT_ONCE,
    CELL,
    COUNT,
    EPOCHS,
    IMAGE,
    LAYERS,
    NARROW,
    NETWORK,
    RULES,
    SOURCE,
    UNITS,
    K,
    build,
    build_sanity,
    course_of,
    pictures_of,
    projections,
    top_of,
)
from zfnet_jax import gallery, viz


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gallery")
    build(folder)
    return folder


class Links(html.parser.HTMLParser):
    """What a page refers to, and its texts."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.hrefs: set[str] = set()
        self.sources: set[str] = set()
        self.alts: list[str | None] = []
        self.text = ""
        self.feed(page.read_text(encoding="utf-8"))
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag == "img":
            self.alts.append(given.get("alt"))
        if source := given.get("src"):
            self.sources.add(source)
        if (href := given.get("href")) and not href.startswith("data:"):
            self.hrefs.add(href)

    def handle_data(self, data):
        self.text += data


def record(folder: Path, layer: str) -> dict:
    return json.loads((folder / "layers" / layer / "found" / "layer.json").read_text())


def test_every_link_leads_to_a_file_of_the_folder(folder):
    pages = list(folder.rglob("*.html"))
    assert len(pages) == 1 + sum(1 + UNITS[name] for name in NARROW)
    reached = set()
    for page in pages:
        links = Links(page)
        for link in links.hrefs | links.sources:
            assert "//" not in link, f"{page} asks the network for {link}"
            target = (page.parent / link).resolve()
            assert target.is_file() and target.is_relative_to(folder), (page, link)
            reached.add(target)
        assert all(links.alts), f"{page} has a picture without a text"
    strangers = set(folder.rglob("*.*")) - reached
    assert {file.suffix for file in strangers} <= {".json"}


def test_every_page_is_light(folder):
    for page in folder.rglob("*.html"):
        linked = {(page.parent / x).resolve() for x in Links(page).sources}
        assert page.stat().st_size + sum(x.stat().st_size for x in linked) < 8e6


def test_a_unit_s_picture_holds_patches_and_each_rule_exactly(folder):
    top, boxes = top_of("conv1"), pictures_of("conv1")[1]
    unit = 5
    with Image.open(folder / "layers/conv1/found/large/5.webp") as image:
        pixels = np.asarray(image.convert("RGB"))
    side = math.ceil(math.sqrt(K))
    assert pixels.shape == (side * CELL[0], side * CELL[1] * (1 + len(RULES)), 3)
    cells = pixels.reshape(side, CELL[0], (1 + len(RULES)) * side, CELL[1], 3)
    cells = cells.swapaxes(1, 2)
    for rank in range(K):
        row, column = divmod(rank, side)
        outside = viz.outside(boxes[unit, rank][None], IMAGE)[0]
        above, left, below, right = outside
        rows, columns = slice(above, CELL[0] - below), slice(left, CELL[1] - right)
        inside = np.zeros(CELL, bool)
        inside[rows, columns] = True
        source = SOURCE.pictures(top.images[unit, rank][None])[0]
        y, x = boxes[unit, rank][:2]
        patch = cells[row, column]
        for a, b in np.argwhere(inside):
            np.testing.assert_array_equal(patch[a, b], source[y + a, x + b])
        hatched = {122, 134}
        assert not (~inside).any() or set(patch[~inside].ravel()) == hatched
        for index, rule in enumerate(RULES, 1):
            values = projections(rule, "conv1")[unit, rank]
            scale = np.abs(values).max()
            shown = np.rint(255 * (0.5 + values / (2 * scale)))
            got = cells[row, index * side + column]
            assert np.abs(got[inside].astype(int) - shown[inside]).max() <= 1
            assert not (~inside).any() or set(got[~inside].ravel()) == hatched
            known = record(folder, "conv1")["units"][unit]["scales"][rule][rank]
            assert known == pytest.approx(scale)
    assert any(viz.outside(boxes[unit], IMAGE).ravel()), "none leaves the image"


def test_numbers_are_those_that_were_found(folder):
    top = top_of("conv1")
    found = record(folder, "conv1")
    assert (found["images"], found["class_names"]) == (COUNT, list(SOURCE.class_names))
    for unit in (0, 5, 22):
        known = found["units"][unit]
        np.testing.assert_array_equal(known["values"], top.activations[unit])
        np.testing.assert_array_equal(known["images"], top.images[unit])
        np.testing.assert_array_equal(known["positions"], top.positions[unit])
        np.testing.assert_array_equal(known["labels"], SOURCE.labels[top.images[unit]])
        share = top.class_counts[unit] / np.bincount(SOURCE.labels, minlength=3)
        np.testing.assert_allclose(known["class_active"], share)
    text = Links(folder / "layers/conv1/5.html").text
    for rank, image in enumerate(top.images[5]):
        assert f"{top.activations[5, rank]:.3g}" in text
        assert f"image {image}" in text


def test_a_dead_unit_is_named_and_not_drawn(folder):
    dead = int(np.flatnonzero(top_of("conv1").dead)[0])
    assert not (folder / f"layers/conv1/found/large/{dead}.webp").exists()
    links = Links(folder / f"layers/conv1/{dead}.html")
    assert "answers to none" in links.text and not links.alts
    assert f"{dead}.html" in Links(folder / "layers/conv1/index.html").hrefs


def test_what_is_not_active_is_left_out(folder):
    """Of a unit that fires in two images, the other places show nothing."""
    unit = record(folder, "conv1")["units"][3]
    assert len(unit["values"]) == 2 and min(unit["values"]) > 0
    with Image.open(folder / "layers/conv1/found/large/3.webp") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert (pixels[CELL[0] :] == 128).all()
    assert Links(folder / "layers/conv1/3.html").text.count("row ") == 2


def test_evolution_is_shown_where_there_is_one(folder):
    course, found = course_of()
    known = json.loads((folder / "layers/conv2/course/course.json").read_text())
    assert known["epochs"] == list(EPOCHS)
    for unit in range(UNITS["conv2"]):
        own = known["units"][str(unit)]
        expected = {"values": course.activations, "images": course.images}
        expected |= {"jumps": course.jumps, "dead": course.dead}
        for name, values in expected.items():
            np.testing.assert_array_equal(own[name], values[:, unit], name)
        np.testing.assert_array_equal(own["labels"], SOURCE.labels[own["images"]])
        with Image.open(folder / f"layers/conv2/course/{unit}.webp") as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)
        pixels = pixels.reshape(2, CELL[0], len(EPOCHS), CELL[1], 3).swapaxes(1, 2)
        for step in range(len(EPOCHS)):
            index = unit * len(EPOCHS) + step
            if course.dead[step, unit]:
                continue
            outside = viz.outside(found.boxes[index][None], IMAGE)[0]
            inside = np.s_[
                outside[0] : CELL[0] - outside[2], outside[1] : CELL[1] - outside[3]
            ]
            seen = SOURCE.pictures(found.images[index][None])
            patch = viz.image_patches(seen, found.boxes[index][None])[0]
            np.testing.assert_array_equal(pixels[0, step][inside], patch[inside])
            shown, scale = viz.display(found.pixels[index])
            assert np.abs(pixels[1, step][inside] - 255 * shown[inside]).max() <= 1
            assert own["scales"][step] == pytest.approx(scale)
    text = Links(folder / "layers/conv2/1.html").text
    assert "epoch 1" in text and "epoch 10" in text and "another image" in text
    assert f"{course.activations[1, 1]:.3g}" in text
    assert "epoch" not in Links(folder / "layers/conv1/5.html").text


def test_a_layer_of_dead_units_alone_is_shown(tmp_path):
    top = top_of("conv2")
    dead = dataclasses.replace(
        top,
        activations=np.zeros_like(top.activations),
        active=np.zeros_like(top.active),
    )
    gallery.claim(tmp_path)
    gallery.write_layer(tmp_path, LAYERS["conv2"], dead, SOURCE, RULES, [], "key")
    page = gallery.render(tmp_path, NETWORK, ["conv2"])
    assert "6 of 6 dead" in Links(page).text
    assert "deconvnet" in Links(tmp_path / "layers/conv2/index.html").text


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(ValueError, match=r"contains index\.html and is not a gallery"):
        gallery.claim(tmp_path)
    assert [x.name for x in tmp_path.iterdir()] == ["index.html"]


def test_pictures_are_reduced_to_what_a_page_may_weigh(tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    build(whole)

    def weight(folder):
        sizes = [x.stat().st_size for x in folder.glob("layers/conv1/found/small/*")]
        return sum(sorted(sizes, reverse=True)[:AT_ONCE])

    limit = weight(whole) - 1
    monkeypatch.setattr(gallery, "_PAGE_BYTES", limit)
    monkeypatch.setattr(gallery, "_TEXT_BYTES", 0)
    monkeypatch.setattr(gallery, "_LEAST_SIDE", 2)
    build(tmp_path / "light")
    assert weight(tmp_path / "light") <= limit
    small = record(tmp_path / "light", "conv1")["small_cell"]
    assert small < record(whole, "conv1")["small_cell"] == list(CELL)
    text = Links(tmp_path / "light/layers/conv1/index.html").text
    assert f"reduced here from {CELL[0]} × {CELL[1]} to {small[0]} × {small[1]}" in text


def test_what_has_not_changed_is_known(tmp_path):
    build(tmp_path)
    assert gallery.has_layer(tmp_path, "conv1", "key")
    assert not gallery.has_layer(tmp_path, "conv1", "another key")
    assert not gallery.has_layer(tmp_path, "conv9", "key")
    assert gallery.has_course(tmp_path, "conv2", "key")
    assert not gallery.has_course(tmp_path, "conv1", "key")
    assert gallery.counts(tmp_path, "conv1") == {"units": UNITS["conv1"], "dead": 1}
    gallery.render(tmp_path, NETWORK, NARROW, ["conv2"])
    before = {x: x.stat().st_mtime_ns for x in tmp_path.rglob("*.html")}
    gallery.render(tmp_path, NETWORK, NARROW, ["conv2"])
    assert {x: x.stat().st_mtime_ns for x in before} == before


def test_what_is_written_again_takes_the_place_of_the_earlier_one(tmp_path):
    build(tmp_path, layers=["conv2"])
    stale = tmp_path / "layers/conv2/found/large/99.webp"
    stale.write_bytes(b"of a wider layer")
    build(tmp_path, layers=["conv2"])
    assert not stale.exists()


@pytest.mark.parametrize("content", [b"", b"[1]", b"{}"])
def test_a_file_that_is_damaged_is_written_again(tmp_path, content):
    build(tmp_path, layers=["conv2"])
    for name in ("small/0.jpg", "layer.json"):
        file = tmp_path / "layers/conv2/found" / name
        before = file.read_bytes()
        file.write_bytes(content if name.endswith("json") else b"")
        assert not gallery.has_layer(tmp_path, "conv2", "key")
        file.write_bytes(before)
    assert gallery.has_layer(tmp_path, "conv2", "key")


@pytest.mark.parametrize(
    "lost",
    [
        "images/*.webp",
        "layers/conv2/found/large/*",
        "layers/conv2/found/small/*",
        "layers/conv2/found/layer.json",
    ],
)
def test_what_is_no_longer_whole_is_written_again(tmp_path, lost):
    build(tmp_path, layers=["conv2"])
    next(tmp_path.glob(lost)).unlink()
    assert not gallery.has_layer(tmp_path, "conv2", "key")


def test_a_record_cut_short_is_written_again(tmp_path):
    build(tmp_path, layers=["conv2"])
    file = tmp_path / "layers/conv2/found/layer.json"
    file.write_bytes(file.read_bytes()[:-9])
    assert not gallery.has_layer(tmp_path, "conv2", "key")


def test_a_write_that_fails_leaves_the_earlier_one(tmp_path):
    build(tmp_path, layers=["conv2"])
    before = {x: x.read_bytes() for x in tmp_path.rglob("*") if x.is_file()}

    def failing():
        yield next(iter(pictures_of("conv2")[2]))
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        gallery.write_layer(
            tmp_path,
            LAYERS["conv2"],
            top_of("conv2"),
            SOURCE,
            RULES,
            failing(),
            "new key",
        )
    after = {x: x.read_bytes() for x in tmp_path.rglob("*") if x.is_file()}
    assert after == before


def test_a_unit_without_pictures_is_a_fault(tmp_path):
    with pytest.raises(ValueError, match=r"unit 0 of conv2 has no pictures"):
        gallery.write_layer(
            tmp_path, LAYERS["conv2"], top_of("conv2"), SOURCE, RULES, [], "key"
        )
    assert not (tmp_path / "layers/conv2/found").exists()


def test_pages_of_other_layers_go_and_what_was_computed_stays(tmp_path):
    build(tmp_path)
    mine = [tmp_path / "images" / "holiday.webp", tmp_path / "layers/conv1/note.txt"]
    for file in mine:
        file.write_text("mine")
    stale = tmp_path / "images" / f"{0:016x}.webp"
    stale.write_text("of no layer")
    killed = tmp_path / "layers/conv1/.found.part"
    killed.mkdir()
    gallery.render(tmp_path, NETWORK, ["conv2"])
    assert not list((tmp_path / "layers/conv1").glob("*.html"))
    assert not stale.exists() and not killed.exists()
    assert all(file.read_text() == "mine" for file in mine)
    assert gallery.has_layer(tmp_path, "conv1", "key")
    assert "epoch" not in Links(tmp_path / "layers/conv2/1.html").text
    reached = {
        (page.parent / link).resolve()
        for page in tmp_path.rglob("*.html")
        for link in Links(page).hrefs | Links(page).sources
    }
    assert all(file.is_file() for file in reached)


def test_what_the_pictures_tell_is_said_first_and_shown(tmp_path):
    build(tmp_path, layers=["conv2"])
    assert not gallery.has_sanity(tmp_path, "key")
    numbers = build_sanity(tmp_path)
    assert gallery.has_sanity(tmp_path, "key")
    assert not gallery.has_sanity(tmp_path, "another key")
    overview = gallery.render(tmp_path, NETWORK, ["conv2"], sanity=True)
    page = overview.parent / "sanity/index.html"
    assert "sanity/index.html" in Links(overview).hrefs
    for links in (Links(overview), Links(page)):
        for number in numbers.values():
            assert f"{number:.2f}" in links.text
        assert "above conv2" in links.text and "6 images" in links.text
    links = Links(page)
    assert links.sources - {"../assets/gallery.js"} == {
        f"{name}.png" for name in gallery.SANITY_FIGURES
    }
    assert all(links.alts)
    for link in links.hrefs | links.sources:
        assert (page.parent / link).is_file()

    # Without it, neither page speaks of it.
    overview = gallery.render(tmp_path, NETWORK, ["conv2"])
    assert not page.exists()
    assert "sanity/index.html" not in Links(overview).hrefs
    next((tmp_path / "sanity").glob("*.png")).unlink()
    assert not gallery.has_sanity(tmp_path, "key")


def test_texts_are_escaped(tmp_path):
    build(tmp_path, layers=["conv2"])
    network = gallery.Network("<script>alert(1)</script>", {"a & b": '"<i>"'})
    page = gallery.render(tmp_path, network, ["conv2"])
    assert "<script>alert" not in page.read_text()
    assert "<i>" not in page.read_text().replace('<i style="--extent', "")
