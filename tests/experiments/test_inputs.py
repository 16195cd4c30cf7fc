"""Images as the command line names them: what every command makes of them."""

import importlib
from pathlib import Path

import pytest
from PIL import Image

from zfnet_jax.data import make_shapes

OPTIONS = {
    "feature_maps": (),
    "gallery": (),
    "invariance": ("--limit", 1),
    "occlusion": (),
    "predict": ("--limit", 1),
    "probe": (),
    "project": (),
    "reconstruct": (),
    "sanity": (),
    "top_features": (),
    "transfer": ("--per-class", 1),
}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> Path:
    """A folder of four classes whose first photograph is a truncated JPEG."""
    folder = tmp_path_factory.mktemp("photographs")
    shapes = make_shapes(40, (32, 32))
    for index, label in enumerate(shapes.labels):
        (folder / shapes.class_names[label]).mkdir(exist_ok=True)
        file = folder / shapes.class_names[label] / f"{index:02d}.jpg"
        Image.fromarray(shapes.images[index]).save(file)
    first = min(folder.glob("*/*"))
    first.write_bytes(first.read_bytes()[:-100])
    return folder


@pytest.mark.parametrize("name", OPTIONS)
def test_a_truncated_photograph_is_one_line_that_names_it(
    refuse, weights, damaged, name
):
    command = getattr(importlib.import_module(f"experiments.{name}"), name)
    images = "--images" if name == "transfer" else "--image"
    argv = ("--weights", weights, images, damaged, *OPTIONS[name])
    line = refuse(command, 4, *argv)
    assert str(min(damaged.glob("*/*"))) in line and "truncated" in line, line
