"""The gallery's files: pictures, numbers, links, and what is kept."""

import html.parser
import json
import math
import re
import shutil
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import zfnet_jax as zf
from tests.gallery_case import (
    CLASSES,
    COUNT,
    DEAD,
    IMAGES,
    LABELS,
    LAYERS,
    NAMES,
    NET,
    ODD,
    PICTURES,
    RARE,
    RULES,
    SIDE,
    TRAINING,
    YOUNG,
    K,
    build,
    build_named,
    search,
)
from zfnet_jax.analysis import mining, search_state
from zfnet_jax.analysis.sanity import controls
from zfnet_jax.files import digest, slug
from zfnet_jax.galleries import build as building
from zfnet_jax.galleries import pages, zip_gallery
from zfnet_jax.galleries.pages import printable
from zfnet_jax.galleries.sources import open_source
from zfnet_jax.viz.patches import cut_patches

pytestmark = pytest.mark.usefixtures("compiled_once")

CELL = 3  # of conv1, whose mosaics have an edge of 1


@pytest.fixture(scope="module")
def folder(compiled_once, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("outside") / "gallery"
    build(folder)
    return folder


class Page(html.parser.HTMLParser):
    """Links, sources, alternative texts and text of a page."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.alts: list[str | None] = []
        self.text = ""
        self.feed(file.read_text(encoding="utf-8"))
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag == "img" and "src" in given:
            self.alts.append(given.get("alt"))
        for name in ("src", "href"):
            link = given.get(name) or "data:"
            if not link.startswith(("data:", "#")):
                self.links.add(link)

    def handle_data(self, data):
        self.text += f" {data}"


def layer(folder: Path, name: str) -> Path:
    return folder / "pages" / "layers" / slug(name)


def read_cells(file: Path, height: int, width: int) -> np.ndarray:
    """Pictures of a mosaic [rows, columns, h, w, rgba]; checks its edges."""
    with Image.open(file) as image:
        pixels = np.asarray(image.convert("RGBA"))
    cells = pixels.reshape(-1, height + 1, pixels.shape[1] // (width + 1), width + 1, 4)
    cells = cells.swapaxes(1, 2)
    assert not cells[:, :, height:, :, 3].any() and not cells[:, :, :, width:, 3].any()
    return cells[:, :, :height, :width]


def display(x: np.ndarray, percentile: float) -> tuple[np.ndarray, float]:
    """Pixels of a projection by the definition, and its scale."""
    scale = np.percentile(np.abs(x[x != 0]), percentile)
    return 255 * np.clip(0.5 + x / (2 * scale), 0, 1), scale


def test_every_link_leads_to_a_file_of_the_folder(folder):
    pages = list(folder.rglob("*.html"))
    units = sum(2 + NET.layer(name).shape[-1] for name in LAYERS)
    assert len(pages) == 2 + units + 1 + len(CLASSES)
    reached = {folder / "index.html"}
    for file in pages:
        page = Page(file)
        for link in page.links:
            assert "//" not in link, f"{file} asks the network for {link}"
            target = (file.parent / link.partition("#")[0]).resolve()
            assert target.is_file() and target.is_relative_to(folder), (file, link)
            reached.add(target)
        assert all(page.alts), f"{file} has a picture without a text"
    # The pages of units show the pictures in pages/classes/units by script.
    by_script = {*folder.glob("pages/classes/units/*/*.webp")}
    others = {x.name for x in {*folder.rglob("*.*")} - by_script}
    unreached = others - {x.name for x in reached}
    assert unreached == {"record.json"}  # pages/units.js is the search's
    # Whatever the name of a layer.
    assert [x.name for x in folder.parent.iterdir()] == ["gallery"]


def test_any_name_is_shown_as_text(folder):
    shown = ODD.replace("\u202e", "\ufffd").replace("\x1b", "\ufffd")
    for file in (folder / "index.html", layer(folder, ODD) / "index.html"):
        source = file.read_text(encoding="utf-8")
        assert shown in Page(file).text and "A <i>small</i> network" in Page(file).text
        assert "\u202e" not in source and "\x1b" not in source and "<i>" not in source
    for file in (folder / "pages").glob("*.js"):
        assert "<b>" not in file.read_text() and "\u202e" not in file.read_text()
    assert 'ship "<b>\ufffd' in Page(layer(folder, "conv1") / "5.html").text


@pytest.mark.parametrize("unit", [0, RARE])
def test_a_mosaic_holds_patches_and_the_projections_of_each_rule(folder, unit):
    top, side = search()["conv1"], math.isqrt(K)
    cells = read_cells(layer(folder, "conv1") / f"{unit}.webp", CELL, CELL)
    assert cells.shape[:2] == (side, side * 7)
    count = int((top.activations[unit] > 0).sum())
    assert count == (2 if unit == RARE else K)
    text = Page(layer(folder, "conv1") / f"{unit}.html").text
    for rank in range(K):
        row, column = divmod(rank, side)
        if rank >= count:
            assert not cells[row, column::side].any()
            continue
        image, position = top.images[unit, rank], top.positions[unit, rank]
        own = IMAGES[image][None], "conv1", unit, position
        for index, rule in enumerate(RULES):
            one = zf.project(NET, *own, rule=rule, crop=True)
            patch = cut_patches(PICTURES[image][None], one.boxes)[0]
            np.testing.assert_array_equal(cells[row, column, ..., :3], patch)
            for place, percentile in enumerate((99.5, 100)):
                shown, scale = display(one.pixels[0], percentile)
                cell = cells[row, column + side * (1 + 2 * index + place), ..., :3]
                assert np.abs(cell - shown).max() <= 0.51
                assert f"± {scale:.3g}" in text


def test_pages_show_the_numbers_of_the_search(folder):
    top, unit = search()["conv1"], 5
    text = Page(layer(folder, "conv1") / f"{unit}.html").text
    for rank, image in enumerate(top.images[unit]):
        row, column = top.positions[unit, rank]
        name = printable(CLASSES[LABELS[image]])
        assert (
            f"activation {top.activations[unit, rank]:.3g} · image {image}, {name} · "
            f"row {row}, column {column} of the map"
        ) in text
    for label, name in enumerate(map(printable, CLASSES)):
        share = top.class_counts[unit, label] / (COUNT / 3)
        count = (LABELS[top.images[unit]] == label).sum()
        mean = f"{top.class_means[unit, label]:.3g}"
        assert f"{name} {mean} {share:.{share < 1:d}%} {count}" in text
    assert f"class selectivity {top.selectivity[unit]:.3g}" in text
    assert f"sparsity {top.sparsity[unit]:.3g}" in text


def test_numbers_are_those_of_the_search_and_the_pages(folder):
    outline = json.loads((folder / "gallery.json").read_text())
    assert [x["name"] for x in outline["layers"]] == list(LAYERS)
    assert outline["classes"] == list(CLASSES) and outline["images"] == COUNT
    assert outline["weights"] == digest(*map(np.asarray, jax.tree.leaves(NET)))
    for described in outline["layers"]:
        top = search()[described["name"]]
        assert (folder / described["page"]).is_file()
        numbers = json.loads((folder / described["numbers"]).read_text())
        assert numbers["layer"] == described
        units = numbers["units"]
        assert described["units"] == len(units) == len(top.dead)
        for name in ("active", "mean", "sparsity", "selectivity"):
            values = [x[name] for x in units]
            ours = np.array([np.nan if x is None else x for x in values])
            np.testing.assert_allclose(ours, getattr(top, name), rtol=1e-5)
        for unit, theirs in enumerate(top.activations):
            ours = [x["activation"] for x in units[unit]["tops"]]
            np.testing.assert_allclose(ours, theirs[theirs > 0], rtol=1e-5)
    unit = json.loads((layer(folder, "conv1") / "units.json").read_text())["units"][5]
    text = Page(layer(folder, "conv1") / "5.html").text
    for one in unit["tops"]:
        row, column = one["position"]
        box = (
            max(row - 1, 0),
            max(column - 1, 0),
            min(row + 2, SIDE),
            min(column + 2, SIDE),
        )
        assert one["box"] == [*box]
        for rule in RULES:
            assert f"± {one['scales'][rule]['99.5']:.3g}" in text
    assert [x["epoch"] for x in unit["course"]] == [1, 10]
    sanity = json.loads((folder / "pages/sanity/numbers.json").read_text())
    rows = sanity["tables"]["controls"]["rows"]
    assert len(rows) == 9
    assert {type(x) for row in rows for x in row["values"]} <= {float, type(None)}


def test_a_zip_holds_the_pages_and_is_the_same_each_time(folder, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for copy in (first, second):
        shutil.copytree(folder, copy)
        (copy / "config.json").write_text("of a command")
        (copy / "pages/.search").mkdir()
        (copy / "pages/.search/0.npz").write_text("of a search that was killed")
        zip_gallery(copy)
    stale = second / "pages/layers/earlier"
    shutil.copytree(layer(second, "logits"), stale)
    zip_gallery(second)
    content = zip_gallery(first).read_bytes()
    assert content == (second / "gallery.zip").read_bytes()
    with zipfile.ZipFile(first / "gallery.zip") as archive:
        archive.extractall(tmp_path / "out")
    files = {x.relative_to(folder) for x in folder.rglob("*") if x.is_file()}
    out = tmp_path / "out/gallery"
    assert {x.relative_to(out) for x in out.rglob("*") if x.is_file()} == files
    assert all((out / x).read_bytes() == (folder / x).read_bytes() for x in files)


def test_a_class_that_contradicts_the_strongest_is_named_beside_theirs(folder):
    top = search()["conv1"]
    agree = []
    for unit in np.flatnonzero(top.active == 1):
        counts = np.bincount(LABELS[top.images[unit]], minlength=3)
        if np.sort(counts)[-2] == counts.max():
            continue
        best, favorite = counts.argmax(), top.favorite[unit]
        text = Page(layer(folder, "conv1") / f"{unit}.html").text
        summary = f"{counts.max()} of {K} {printable(CLASSES[best])}"
        if favorite != best:
            summary += f"; highest mean: {printable(CLASSES[favorite])}"
        assert f"; {summary}; class selectivity" in text
        agree.append(favorite == best)
    assert {*agree} == {False, True}


def test_previews_are_selective_units_that_respond_to_different_images():
    images = [[1, 2], [2, 3], [3, 4], [4, 5], [5, 6], [7]]
    units = [
        {"unit": unit, "tops": [{"image": x} for x in own], "selectivity": 1 / unit}
        for unit, own in enumerate(images, 1)
    ]
    # All but the last share an image with the one before.
    assert [x["unit"] for x in pages._choose_previews(units)] == [1, 3, 5, 6]
    assert [x["unit"] for x in pages._choose_previews(units[:4])] == [1, 3, 2, 4]


@pytest.fixture(scope="module")
def named(compiled_once, tmp_path_factory) -> Path:
    return build_named(tmp_path_factory.mktemp("named")).page.parent


def test_images_of_a_folder_are_shown_by_name(named):
    outline = json.loads((named / "gallery.json").read_text())
    assert outline["image_names"] == list(NAMES)
    shown = [printable(name) for name in NAMES]
    unit = json.loads((layer(named, "conv1") / "units.json").read_text())["units"][5]
    page = Page(layer(named, "conv1") / "5.html")
    assert len(unit["tops"]) == len(NAMES)
    for top in unit["tops"]:
        what = f"{shown[top['image']]}, {top['class']}"
        assert f"activation {top['activation']:.3g} · {what} · row" in page.text
        assert {what, f"patch of {what}"} <= {*page.alts}
    for step in unit["course"]:
        value, what = step["activation"], f"{shown[step['image']]}, {step['class']}"
        assert f"epoch {step['epoch']} activation {value:.3g} {what}" in page.text
    script = (named / "pages/classes/conv1.js").read_text()
    relevance = json.loads(script.removeprefix("const RELEVANCE = ").rstrip(";\n"))
    assert relevance["image_names"] == {str(x): y for x, y in enumerate(shown)}
    assert all(x in Page(named / "pages/sanity/index.html").text for x in shown)
    classes = [Page(file) for file in named.glob("pages/classes/[0-9].html")]
    assert any(x in Page(named / "pages/classes/index.html").alts for x in shown)
    assert all(
        any(x in page.text and x in page.alts for x in shown) for page in classes
    )
    for file in (*named.rglob("*.html"), *named.rglob("*.js")):
        source = file.read_text(encoding="utf-8")
        assert "<i>" not in source and "\u202e" not in source, file
        assert not re.search(r'image \d+[,<"]', source), file


def test_images_without_names_are_shown_by_number(folder):
    assert json.loads((folder / "gallery.json").read_text())["image_names"] is None
    script = (folder / "pages/classes/conv1.js").read_text()
    assert '"image_names":{}' in script
    assert "<bdi>" not in (folder / "pages/sanity/index.html").read_text()


def test_names_are_part_of_the_inputs():
    class Images:
        def __init__(self, *names):
            self.names = names

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return IMAGES[:2][index]

    sources = [open_source(NET, Images(*names)) for names in ("ab", "ab", "ac")]
    first, same, other = (source.digest() for source in sources)
    assert first == same != other
    with pytest.raises(ValueError, match="names: 1 for 2 images"):
        open_source(NET, Images("a"))


def test_units_of_the_classifier_are_classes(folder):
    for unit, name in enumerate(CLASSES):
        text = Page(layer(folder, "logits") / f"{unit}.html").text
        assert f"logits, {printable(name)} " in text and "unit 1" not in text


def test_a_dead_unit_is_named_and_not_drawn(folder):
    page = Page(layer(folder, "conv1") / f"{DEAD}.html")
    assert f"Dead: none of the {COUNT} images activates it" in page.text
    assert not page.alts
    assert not (layer(folder, "conv1") / f"{DEAD}.webp").exists()


def test_evolution_shows_the_strongest_activation_at_each_epoch(folder):
    unit = 2
    cells = read_cells(layer(folder, "conv1") / f"{unit}-epochs.webp", CELL, CELL)
    text = Page(layer(folder, "conv1") / f"{unit}.html").text
    for step, (epoch, net) in enumerate({1: YOUNG, 10: NET}.items()):
        top = zf.top_activations(net, TRAINING, "conv1", k=1)["conv1"]
        image = top.images[unit, 0]
        assert f"epoch {epoch} activation {top.activations[unit, 0]:.3g}" in text
        one = top.project(net, TRAINING, unit)
        shown, _ = display(one.pixels[0], 99.5)
        assert np.abs(cells[1, step, ..., :3] - shown).max() <= 0.51
        # Without pictures of their own, images are stretched to their range.
        low, high = TRAINING[image].min(), TRAINING[image].max()
        picture = np.rint(255 * (TRAINING[image] - low) / (high - low))
        patch = cut_patches(picture.astype(np.uint8)[None], one.boxes)[0]
        np.testing.assert_array_equal(cells[0, step, ..., :3], patch)


def test_the_sanity_check_is_that_of_the_first_images(folder):
    replaced = controls(NET, IMAGES[:5], ODD)
    randomized = zf.sanity(NET, IMAGES[:5], LABELS[:5], shown=3)
    for result, name in ((replaced, "another unit"), (randomized, "logits")):
        column = result.columns.index(name)
        number = result.similarity["deconvnet"].signed[:, column].mean()
        for file in (folder / "index.html", folder / "pages/sanity/index.html"):
            assert f"{number:z.2f}" in Page(file).text
    size = 12, 12
    cells = read_cells(folder / "pages/sanity/randomized.webp", *size)
    assert cells.shape[:2] == (9, len(randomized.columns))
    shown, _ = display(randomized.pictures["guided"][1, 2], 99.5)
    assert np.abs(cells[4, 2, ..., :3] - shown).max() <= 0.51


def test_a_second_build_computes_only_what_has_changed(folder, tmp_path, monkeypatch):
    out = tmp_path / "copy"
    shutil.copytree(folder, out)

    def contents() -> dict[Path, bytes]:
        return {x.relative_to(out): x.read_bytes() for x in out.rglob("*.*")}

    before = contents()
    with monkeypatch.context() as patch:
        patch.setattr(building, "top_activations", None)
        patch.setattr(building, "write_sanity", None)
        build(out)
        assert contents() == before
        build(out, layers="conv1")
        assert {x["name"] for x in read_layers(out)} == {"conv1"}
    shutil.rmtree(layer(out, ODD))
    searched = []

    def spy(net, images, layers, **options):
        searched.append(list(layers))
        return zf.top_activations(net, images, layers, **options)

    monkeypatch.setattr(building, "top_activations", spy)
    build(out)
    assert searched == [[ODD]] and contents() == before


@pytest.mark.parametrize(
    "change",
    [
        {"k": 3},
        {"labels": LABELS[::-1]},
        {"pictures": 255 - PICTURES},
        {"rules": ["gradient"]},
        {"epochs": ({1: YOUNG, 10: YOUNG}, TRAINING)},
        {"epochs": ({1: YOUNG, 10: NET}, IMAGES)},
    ],
)
def test_a_layer_is_made_again_for_other_inputs(folder, tmp_path, monkeypatch, change):
    out, written = tmp_path / "copy", []
    shutil.copytree(folder, out)

    def spy(build, tops, *others):
        written.extend(tops)

    monkeypatch.setattr(building._Build, "_write_found", spy)
    build(out)
    assert not written
    build(out, sanity_images=0, **change)
    assert written == list(LAYERS)


def read_layers(folder: Path) -> list[dict]:
    return json.loads((folder / "gallery.json").read_text())["layers"]


def test_an_interrupted_build_leaves_the_earlier_layer(folder, tmp_path, monkeypatch):
    out = tmp_path / "copy"
    shutil.copytree(folder, out)
    before = {x: x.read_bytes() for x in out.rglob("*.*")}
    (out / "pages/.part").mkdir()
    (out / "pages/.part/5.webp").write_bytes(b"of a build that was killed")

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(building, "write_images", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build(out, layers="logits", k=3)
    assert {x: x.read_bytes() for x in out.rglob("*.*")} == before


def test_a_search_that_was_killed_goes_on(folder, tmp_path, monkeypatch):
    def kill(done, total):
        if done == total:
            raise KeyboardInterrupt

    monkeypatch.setattr(search_state, "_SAVE_EVERY", 0)
    options = {"layers": "logits", "epochs": None, "sanity_images": 0}
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, progress=lambda task: kill, **options)
    monkeypatch.setattr(mining, "_merge", None)
    build(tmp_path, **options)
    assert [x.name for x in (tmp_path / "pages").glob(".*")] == []
    expected = (layer(folder, "logits") / "0.webp").read_bytes()
    assert (layer(tmp_path, "logits") / "0.webp").read_bytes() == expected


def test_pictures_of_another_size_or_another_page_in_the_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"pictures of 6 x 12 .* images of 12 x 12"):
        build(tmp_path, pictures=PICTURES[:, :6])
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(ValueError, match=r"index\.html is not a gallery's: choose"):
        build(tmp_path)
    assert [x.name for x in tmp_path.iterdir()] == ["index.html"]


def test_no_images_and_labels_of_another_number_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^labels: 3 for 30 images$"):
        build(tmp_path, labels=LABELS[:3])
    with pytest.raises(ValueError, match=r"^there are no images$"):
        zf.gallery(NET, IMAGES[:0], tmp_path)
    assert not [*tmp_path.iterdir()]


def test_a_gray_network_without_labels_or_live_units(tmp_path):
    def apply(params, x):
        hidden = jax.nn.relu(x.mean((1, 2)) @ params["fc"]["kernel"] - 1e6)
        return hidden @ params["logits"]["kernel"]

    kernels = {"fc": np.ones((1, 2), "f4"), "logits": np.ones((2, 2), "f4")}
    params = {name: {"kernel": kernel} for name, kernel in kernels.items()}
    net = zf.network(apply, (4, 4, 1), params=params)
    images = np.random.default_rng(0).normal(size=(3, 4, 4, 1)).astype(np.float32)
    result = zf.gallery(net, images, tmp_path, layers="fc")
    assert (result.units, result.dead) == ({"fc": 2}, {"fc": 2})
    assert "2 units, 2 dead" in Page(result.page).text
    assert "class selectivity" not in Page(layer(tmp_path, "fc") / "index.html").text
