"""Masked parts end to end: shapes, files of boxes, and what is wrong with them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import zfnet_jax as zf
from experiments.common import main
from experiments.correspondence import Options, convert_box, read_boxes, run
from zfnet_jax.analysis.correspondence import correspondence
from zfnet_jax.data import Preprocessing, fit_photograph, make_shapes, shape_parts

pytestmark = pytest.mark.usefixtures("compiled_once")

SHIPPED = Path(__file__).parents[2] / "experiments" / "boxes"
HEADER = "image,part,top,left,bottom,right\n"


def metrics_of(out: Path) -> dict:
    return json.loads((out / "metrics.json").read_text())


@pytest.fixture(scope="module")
def finished(compiled_once, trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("results") / "new"
    argv = ["--weights", str(trained / "weights.safetensors"), "--draws", "9"]
    assert main(run, Options, [*argv, "--limit", "12", "--out", str(out)]) == 0
    return out


def test_the_numbers_are_those_of_the_corners_of_arrows(finished, trained):
    metrics = metrics_of(finished)
    net = zf.load(trained / "weights.safetensors")
    indices, parts = shape_parts("arrow", 120, seed=1)
    shapes = make_shapes(120, seed=1)
    assert (shapes.labels[indices] == shapes.class_names.index("arrow")).all()
    # The network sees them at half their size.
    boxes = {
        part: np.stack([convert_box(b, (32, 32), (32, 32), (16, 16)) for b in rows])
        for part, rows in parts.items()
    }
    images = net.preprocess(shapes.images[indices])
    by_layer = correspondence(net, images, boxes, draws=9)
    assert list(metrics["layers"]) == sorted(by_layer) == ["conv2", "fc3"]
    for layer, x in by_layer.items():
        known = metrics["layers"][layer]
        assert known["mixed"] == pytest.approx(x.mixed.mean())
        for index, part in enumerate(x.parts):
            row = known["parts"][part]
            assert row["delta"] == pytest.approx(x.delta[index])
            assert row["spread_over_pairs"] == pytest.approx(x.spread[index])
            assert row["random"] == pytest.approx(x.random[index].mean())
            assert row["p_random"] == pytest.approx(x.p_random[index])
            assert row["p_mixed"] == pytest.approx(x.p_mixed[index])
    place = metrics["boxes"]["tip"][str(indices[0])]
    assert place == boxes["tip"][0].tolist()
    assert metrics["images"] == 12
    for name in ("masked_images", "correspondence"):
        with Image.open(finished / f"{name}.png") as image:
            assert np.asarray(image.convert("RGB")).std() > 1


def test_the_same_seed_writes_the_same_bytes(finished, trained, tmp_path):
    argv = ["--weights", str(trained / "weights.safetensors"), "--draws", "9"]
    argv += ["--limit", "12", "--out"]
    assert main(run, Options, [*argv, str(tmp_path / "same")]) == 0
    for file in finished.iterdir():
        if file.name not in ("manifest.json", "config.json"):
            again = tmp_path / "same" / file.name
            assert again.read_bytes() == file.read_bytes(), file.name
    assert main(run, Options, [*argv, str(tmp_path / "other"), "--seed", "1"]) == 0
    one, other = (
        metrics_of(out)["layers"]["fc3"]["parts"]["tip"]
        for out in (finished, tmp_path / "other")
    )
    assert one["delta"] == other["delta"] and one["random"] != other["random"]


@pytest.fixture
def annotated(tmp_path) -> Path:
    """Two files and a test image, in columns of another order, as a spreadsheet may."""
    shapes = make_shapes(40)
    folder = tmp_path / "boxes"
    folder.mkdir()
    for index, (height, width) in enumerate([(64, 96), (40, 32)]):
        picture = Image.fromarray(shapes.images[index]).resize((width, height))
        picture.save(folder / f"photo{index}.png")
    rows = [
        "part,image,top,left,bottom,right",
        "eye,photo0.png,0,16,16,48",
        "nose,photo0.png,32,40,64,88",
        "nose, photo1.png ,20,0,36,16",
        "eye,photo1.png,4,8,12,24",
        "",
        "eye,7,0,0,10,12",
        '"nose",007,20,20,32,32',
    ]
    file = folder / "parts.csv"
    file.write_bytes("\ufeff".encode() + "\r\n".join(rows).encode())
    return file


def test_boxes_are_resized_with_their_images(annotated, trained, tmp_path):
    out = tmp_path / "out"
    argv = ["--weights", str(trained / "weights.safetensors"), "--draws", "2"]
    argv += ["--boxes", str(annotated), "--layers", "fc3,pool1", "--out", str(out)]
    assert main(run, Options, argv) == 0
    metrics = metrics_of(out)
    # At 16 x 16: the first is 4 times as large, after its middle 64 columns are cut
    # out; the second twice as large, less 4 rows above and below.
    assert metrics["boxes"] == {
        "eye": {
            "photo0.png": [0, 0, 4, 8],
            "photo1.png": [0, 4, 4, 12],
            "7": [0, 0, 5, 6],
        },
        "nose": {
            "photo0.png": [8, 6, 16, 16],
            "photo1.png": [8, 0, 16, 8],
            "7": [10, 10, 16, 16],
        },
    }
    assert list(metrics["layers"]) == ["fc3", "pool1"]
    assert "shapes" in metrics["data"]
    digests = json.loads((out / "manifest.json").read_text())["digests"]
    assert sorted(digests) == ["boxes", "images", "weights"]
    # Elsewhere than the file of boxes; the first two images only.
    moved = annotated.rename(tmp_path / "moved.csv")
    argv[argv.index("--boxes") + 1] = str(moved)
    argv += ["--images", str(tmp_path / "boxes"), "--limit", "2"]
    assert main(run, Options, argv) == 0
    assert metrics_of(out)["images"] == 2


@pytest.mark.parametrize(
    ("stored", "kept", "input_hw"),
    [
        ((256, 341), (32, 32), (32, 32)),
        ((391, 256), (32, 32), (32, 32)),
        ((101, 77), (20, 12), (20, 12)),
        ((20, 30), (32, 32), (32, 32)),
        ((57, 57), (32, 32), (16, 16)),
        ((32, 32), (32, 32), (45, 45)),
    ],
)
def test_a_stripe_shows_in_the_converted_box(stored, kept, input_hw):
    """Stripes across the image: half of a pixel's light is where an edge lies."""
    preprocess = Preprocessing(np.zeros((*kept, 3), np.float32), 1.0, input_hw)
    rng = np.random.default_rng(0)
    checked = 0
    for _ in range(20):
        for axis in (0, 1):
            extent = stored[axis]
            start = int(rng.integers(0, extent - extent // 4))
            end = int(rng.integers(start + extent // 5, extent + 1))
            box = [0, 0, *stored]
            box[axis], box[axis + 2] = start, end
            image = np.zeros((*stored, 3), np.uint8)
            image[box[0] : box[2], box[1] : box[3]] = 255
            seen = preprocess.pictures(fit_photograph(image, kept)[None])[0, ..., 0]
            line = seen.mean(1 - axis)
            first, _, last, _ = np.roll(convert_box(box, stored, kept, input_hw), -axis)
            inside = np.zeros(input_hw[axis], bool)
            inside[first:last] = True
            # Pixels that an edge halves may fall on either side of it by rounding.
            clear = np.abs(line - 127.5) > 20
            np.testing.assert_array_equal((line > 127.5)[clear], inside[clear])
            checked += clear.sum()
    assert checked > 15 * 20


def test_shipped_boxes_are_of_ten_dogs_each():
    for name in ("cifar10_dogs", "dog_faces"):
        table = read_boxes(SHIPPED / f"{name}.csv")
        assert len(table) == 10
        for rows in table.values():
            assert list(rows) == ["right eye", "left eye", "nose"]
            right, left, nose = (np.array(row.box) for row in rows.values())
            # The dog's own right eye is left in the picture; the nose is below both.
            middle = [box[:2] + box[2:] for box in (right, left, nose)]
            assert middle[0][1] < middle[2][1] < middle[1][1]
            assert middle[2][0] > (middle[0][0] + middle[1][0]) / 2
    for rows in read_boxes(SHIPPED / "cifar10_dogs.csv").values():
        for row in rows.values():
            top, left, bottom, right = row.box
            assert 0 <= top < bottom <= 32 and 0 <= left < right <= 32


GOOD = "1,eye,0,0,9,9\n2,eye,3,3,9,9\n"


@pytest.mark.parametrize(
    ("text", "code", "parts"),
    [
        ("", 2, ["line 1", "no boxes"]),
        (HEADER, 2, ["line 2", "no boxes"]),
        ("image,part,top,left,bottom\n", 2, ["line 1", "header must be image,part"]),
        (HEADER + "1,eye,0,0,9\n", 2, ["line 2", "5 fields, not 6"]),
        (HEADER + GOOD + "3,eye,0,0,9,9,1\n", 2, ["line 4", "7 fields, not 6"]),
        (HEADER + "1,eye,0,x,9,9\n", 2, ["line 2", "left must be a whole number", "x"]),
        (HEADER + "1,eye,0,,9,9\n", 2, ["line 2", "left", "''"]),
        (HEADER + "1,eye,0,1.5,9,9\n", 2, ["line 2", "1.5"]),
        (HEADER + ",eye,0,0,9,9\n", 2, ["line 2", "no image"]),
        (HEADER + "1,,0,0,9,9\n", 2, ["line 2", "no part"]),
        (HEADER + '1,"eye,0,0,9,9\n', 2, ["line 2", "unexpected end"]),
        (HEADER + GOOD + "01,eye,1,1,9,9\n", 2, ["line 4", "eye of 1", "line 2"]),
        (HEADER + GOOD + "2,nose,1,1,9,9\n", 2, ["line 2", "1 has no nose"]),
        (HEADER + "1,eye,0,0,9,9\n", 2, ["line 2", "two images", "not 1"]),
        (HEADER + GOOD + "3,eye,0,0,9,33\n", 2, ["line 4", "leaves", "32 x 32"]),
        (HEADER + GOOD + "3,eye,-1,0,9,9\n", 2, ["line 4", "leaves"]),
        (HEADER + GOOD + f"3,eye,0,0,9,1{'0' * 30}\n", 2, ["line 4", "leaves"]),
        (HEADER + GOOD + "3,eye,9,0,9,9\n", 2, ["line 4", "is empty"]),
        (HEADER + GOOD + "3,eye,0,0,32,32\n", 2, ["line 4", "covers the whole"]),
        (HEADER + GOOD + "3,eye,2,2,3,3\n", 2, ["line 4", "16 x 16", "is empty"]),
        (HEADER + GOOD + "wide.png,eye,0,0,9,9\n", 2, ["line 4", "square", "is empty"]),
        (HEADER + GOOD + "wide.png,eye,0,9,20,80\n", 2, ["line 4", "covers the whole"]),
        (HEADER + GOOD + "2000,eye,0,0,9,9\n", 2, ["line 4", "2000", "0 to 1999"]),
        (HEADER + GOOD + "no.png,eye,0,0,9,9\n", 3, ["line 4", "no.png"]),
        (HEADER + GOOD + "parts.csv,eye,0,0,9,9\n", 3, ["line 4", "parts.csv"]),
    ],
)
def test_a_bad_file_of_boxes_fails_in_one_line(
    text, code, parts, trained, tmp_path, refusal
):
    file = tmp_path / "parts.csv"
    file.write_text(text)
    Image.new("RGB", (100, 20)).save(tmp_path / "wide.png")
    given = ["--weights", str(trained / "weights.safetensors"), "--boxes", str(file)]
    line = refusal(run, Options, code, *given, "--out", str(tmp_path / "out"))
    for part in ("parts.csv", *parts):
        assert part in line
    assert not list((tmp_path / "out").iterdir())


def test_fewer_images_than_asked_for(trained, tmp_path, refusal):
    file = tmp_path / "parts.csv"
    file.write_text(HEADER + GOOD)
    argv = ["--weights", str(trained / "weights.safetensors"), "--boxes", str(file)]
    argv += ["--limit", "9", "--out", str(tmp_path / "out")]
    assert "--limit 9: there are only 2 images" in refusal(run, Options, 2, *argv)


def test_a_file_of_boxes_must_be_text(trained, tmp_path, refusal):
    file = tmp_path / "parts.csv"
    file.write_bytes((HEADER + GOOD).encode() + "3,œil,0,0,9,9\n".encode("cp1252"))
    out = ["--out", str(tmp_path / "out")]
    assert "line 4: not UTF-8" in refusal(run, Options, 2, "--boxes", str(file), *out)
    missing = str(tmp_path / "no.csv")
    assert "no.csv" in refusal(run, Options, 3, "--boxes", missing, *out)


@pytest.mark.parametrize(
    ("argv", "code", "parts"),
    [
        (["--dataset", "cifar10"], 2, ["cifar10", "--boxes"]),
        (["--images", "."], 2, ["--images", "--boxes"]),
        (["--boxes", "a.csv", "--shape", "heart"], 2, ["--shape", "--boxes"]),
        (["--shape", "disk"], 2, ["disk"]),
        (["--layers", "conv9"], 2, ["conv9", "conv1 pool1 conv2 fc3 logits"]),
        (["--draws", "0"], 2, ["--draws must be 1 or more"]),
        (["--limit", "1"], 2, ["--limit must be 2 or more"]),
        (["--seed", "-1"], 2, ["--seed must be 0 or more"]),
        (["--weights", "no.safetensors"], 3, ["no.safetensors"]),
    ],
)
def test_bad_arguments_fail_in_one_line(argv, code, parts, trained, tmp_path, refusal):
    given = ["--weights", str(trained / "weights.safetensors")]
    line = refusal(run, Options, code, *given, "--out", str(tmp_path / "out"), *argv)
    for part in parts:
        assert part in line
