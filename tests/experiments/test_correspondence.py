"""Masked parts of shapes and of a file of boxes, end to end."""

import numpy as np
import pytest
from PIL import Image

import zfnet_jax as zf
from experiments.correspondence import correspondence
from tests.networks import small_network
from zfnet_jax.data import make_shapes, shape_parts
from zfnet_jax.data.boxes import convert_box

HEADER = "image,part,top,left,bottom,right\n"


def test_metrics_are_those_of_the_corners_of_arrows(measure, weights):
    argv = ["--weights", weights, "--draws", 9, "--limit", 12]
    metrics, out = measure(correspondence, *argv)
    net = zf.load(weights)
    indices, parts = shape_parts("arrow", 120, seed=1)
    shapes = make_shapes(120, seed=1).take(indices)
    assert {shapes.class_names[label] for label in shapes.labels} == {"arrow"}
    # The network sees them at half their size.
    boxes = {
        part: np.stack([convert_box(b, (32, 32), (32, 32), (16, 16)) for b in rows])
        for part, rows in parts.items()
    }
    by_layer = zf.correspondence(net, net.load_images(shapes), boxes, draws=9)
    assert list(metrics["layers"]) == sorted(by_layer) == ["conv2", "fc3"]
    for layer, x in by_layer.items():
        known = metrics["layers"][layer]
        assert known["mixed"] == pytest.approx(x.mixed.mean())
        for index, part in enumerate(x.parts):
            row = known["parts"][part]
            assert row["delta"] == pytest.approx(x.delta[index])
            assert row["random"] == pytest.approx(x.random[index].mean())
            assert row["p_random"] == pytest.approx(x.p_random[index])
            assert row["p_mixed"] == pytest.approx(x.p_mixed[index])
    assert metrics["boxes"]["tip"][str(indices[0])] == boxes["tip"][0].tolist()
    figures = {file.stem for file in out.glob("*.p*")}
    assert figures == {"correspondence", "masked_images"}


def test_boxes_are_resized_with_their_images(measure, weights, tmp_path):
    """Two files and a test image, in columns of another order, as a spreadsheet may."""
    for index, (height, width) in enumerate([(64, 96), (40, 32)]):
        picture = Image.fromarray(make_shapes(2).images[index])
        picture.resize((width, height)).save(tmp_path / f"photo{index}.png")
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
    folder = tmp_path / "boxes"
    folder.mkdir()
    file = folder / "parts.csv"
    file.write_bytes("\ufeff".encode() + "\r\n".join(rows).encode())
    argv = ["--weights", weights, "--draws", 2, "--boxes", file, "--image", tmp_path]
    metrics, _ = measure(correspondence, *argv, "--layers", "fc3", "pool1")
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
    assert set(metrics["layers"]) == {"fc3", "pool1"}
    assert "shapes" in metrics["data"]
    # Any other model, on the first two images only.
    argv[:2] = ["--model", "tests.networks:small_network"]
    metrics, _ = measure(correspondence, *argv, "--limit", 2)
    assert metrics["images"] == 2
    assert metrics["boxes"]["eye"]["photo0.png"] == [0, 0, 6, 12]


def test_a_rectangle_fills_its_box_where_the_center_is_kept(measure, tmp_path):
    rows, argv = [HEADER.strip()], ["--draws", 2, "--boxes", tmp_path / "parts.csv"]
    boxes = {"0.png": (8, 37, 30, 59), "1.png": (22, 20, 50, 41)}
    for name, (top, left, bottom, right) in boxes.items():
        pixels = np.zeros((64, 96, 3), np.uint8)
        pixels[top:bottom, left:right] = 255
        Image.fromarray(pixels).save(tmp_path / name)
        rows.append(f"{name},eye,{top},{left},{bottom},{right}")
    (tmp_path / "parts.csv").write_text("\n".join(rows))
    argv += ["--model", "tests.networks:small_network", "--layers", "conv1"]
    metrics, _ = measure(correspondence, *argv)
    net = small_network()
    images, converted = net.load_images(tmp_path), metrics["boxes"]["eye"]
    for name, picture in zip(images.names, images.pictures[:], strict=True):
        places = np.argwhere(picture[..., 0] > 127)
        assert converted[name] == [*places.min(0), *(places.max(0) + 1)]
    eyes = {"eye": np.array([converted[name] for name in images.names])}
    x = zf.correspondence(net, images, eyes, layers="conv1", draws=2)["conv1"]
    row = metrics["layers"]["conv1"]["parts"]["eye"]
    assert row["delta"] == pytest.approx(x.delta[0], abs=1e-6)
    assert row["changed"] == pytest.approx(x.changed[0], abs=1e-6)


def test_impossible_requests_are_refused(refuse, weights, tmp_path):
    given = ["--weights", weights]
    assert "--boxes" in refuse(correspondence, 2, *given, "--dataset", "cifar10")
    assert "pool1" in refuse(correspondence, 2, *given, "--layers", "conv9")
    assert "no.csv" in refuse(correspondence, 3, *given, "--boxes", "no.csv")
    file = tmp_path / "parts.csv"
    for image, code, message in (
        ("2000", 2, "line 3: there is no test image 2000, only 0 to 1999"),
        ("no.png", 3, "line 3: there is no photograph"),
    ):
        file.write_text(HEADER + f"1,eye,0,0,9,9\n{image},eye,3,3,9,9\n")
        assert message in refuse(correspondence, code, *given, "--boxes", file)
    file.write_text(HEADER + "1,eye,0,0,9,9\n")
    assert "two images" in refuse(correspondence, 2, *given, "--boxes", file)
