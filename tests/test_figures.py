"""The pictures of the README and the documentation."""

import json
import re

import numpy as np
import pytest

from docs import figures


@pytest.mark.parametrize("name", figures.PICTURES)
def test_picture_is_up_to_date(name):
    record = json.loads(figures.RECORD.read_text())
    advice = f"draw it again: python -m docs.figures {name}"
    assert record.get(name) == figures.digest(name), advice


def test_digest_notices_what_a_picture_depends_on(monkeypatch):
    names = "hero.jpg", "ablation.png", "first_layer.png"

    def changed() -> list[bool]:
        return [figures.digest(x) != y for x, y in zip(names, before, strict=True)]

    before = [figures.digest(name) for name in names]
    monkeypatch.setitem(figures.UNITS, "conv1", (0, 1))
    assert changed() == [True, False, False]
    monkeypatch.undo()
    monkeypatch.setattr(figures.Table, "read", lambda table: [["other"]])
    assert changed() == [False, True, False]


def test_picture_is_drawn_again():
    name = "ablation.png"
    data = figures.encode(figures.PICTURES[name].draw(figures.Session()), name)
    assert figures.compare(data, figures.FOLDER / name) < figures.TOLERANCE
    assert figures.compare(data, figures.FOLDER / "transfer.png") == np.inf


def test_pages_show_all_pictures_and_no_others():
    pages = [figures.ROOT / "README.md", *figures.FOLDER.parent.rglob("*.md")]
    shown = {
        name
        for page in pages
        for name in re.findall(r"figures/([\w-]+\.(?:jpg|png|gif))", page.read_text())
    }
    files = {x.name for x in figures.FOLDER.iterdir()} - {figures.RECORD.name}
    assert files == shown
    assert files >= figures.PICTURES.keys()


def test_pictures_are_small():
    sizes = [path.stat().st_size for path in figures.FOLDER.iterdir()]
    assert sum(sizes) <= 2e6
