"""Images as the command line names them: what every command makes of them."""

import importlib
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from experiments.harness import main
from experiments.predict import predict
from experiments.prepare_images import prepare_images
from experiments.top_features import top_features
from zfnet_jax.data import make_shapes, open_labeled

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


# Records.


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> tuple[Path, Path, Path]:
    """Folders of shapes, their records, and folders of the files in these records."""
    root = tmp_path_factory.mktemp("prepared")
    folders, records, copies = (root / x for x in ("folders", "records", "copies"))
    for split, count in (("train", 12), ("val", 24)):
        shapes = make_shapes(count, (258, 270), seed=count)
        for index, label in enumerate(shapes.labels):
            folder = folders / split / shapes.class_names[label]
            folder.mkdir(exist_ok=True, parents=True)
            Image.fromarray(shapes.images[index]).save(folder / f"{index:02d}.png")
    argv = ["--images", str(folders), "--out", str(records), "--workers", "0"]
    assert main(prepare_images, argv) == 0
    for split in ("train", "val"):
        images = open_labeled(records, split)
        for index in range(len(images)):
            content, label = images.items.fetch(index)
            folder = copies / split / images.class_names[label]
            folder.mkdir(exist_ok=True, parents=True)
            (folder / f"image {index}").with_suffix(".jpg").write_bytes(content)
    return folders, records, copies


def read_rows(out: Path) -> list[dict]:
    return json.loads((out / "predictions.json").read_text())["images"]


def test_records_are_classified_as_the_photographs_in_them(measure, weights, prepared):
    folders, records, copies = prepared
    argv = ["--weights", weights, "--shown", 3, "--ten-crop", "--image"]
    metrics, out = measure(predict, *argv, records)
    rows = read_rows(out)
    own, out = measure(predict, *argv, copies / "val")
    by_name = {x.pop("image").removesuffix(".jpg"): x for x in read_rows(out)}
    assert by_name == {row.pop("image"): row for row in rows}
    for view in ("one_view", "ten_crop"):
        assert metrics[view] == own[view] and 0 < own[view]["top5_accuracy"] < 1
    assert metrics["data"].startswith("24 val images, prepared from ")

    _, out = measure(predict, *argv, folders / "val")
    for row, original in zip(rows, read_rows(out), strict=True):
        assert row["true_class"] == original["true_class"]
        chances, expected = (
            dict(zip(x["classes"], x["probabilities"], strict=True))
            for x in (row, original)
        )
        for name in chances.keys() & expected.keys():
            assert chances[name] == pytest.approx(expected[name], abs=0.01)


def test_records_are_searched_as_the_photographs_in_them(measure, weights, prepared):
    _, records, copies = prepared
    argv = ["--weights", weights, "--split", "train", "--layers", "conv2", "--image"]
    metrics, out = measure(top_features, *argv, records)
    own, expected = measure(top_features, *argv, copies / "train")
    assert metrics["images"] == 12
    for unit in metrics["layers"]["conv2"]["drawn"] + own["layers"]["conv2"]["drawn"]:
        del unit["images"]  # files are in the order of their names
    assert metrics["layers"] == own["layers"]
    name = "top_conv2.png"
    assert (out / name).read_bytes() == (expected / name).read_bytes()


def test_records_that_are_not_complete_are_refused(refuse, weights, prepared, tmp_path):
    records = shutil.copytree(prepared[1], tmp_path / "records")
    (records / "images.json").unlink()
    line = refuse(top_features, 3, "--weights", weights, "--image", records)
    assert f"{records} are not complete" in line
