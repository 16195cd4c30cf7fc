"""Squares that slide over shapes and over a photograph, end to end."""

import json

import jax
import numpy as np
import pytest
import scipy.stats
from PIL import Image

import zfnet_jax as zf
from experiments.common import main
from experiments.occlusion import Options, measure_drops, run
from zfnet_jax.analysis.occlusion import share_on
from zfnet_jax.data import SHAPES, make_shapes

pytestmark = pytest.mark.usefixtures("compiled_once")


def arguments(trained, out, *argv: str) -> list[str]:
    return ["--weights", str(trained / "weights.safetensors"), *argv, "--out", str(out)]


@pytest.fixture(scope="module")
def finished(compiled_once, trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("results") / "new"
    argv = ["--limit", "60", "--images", "4", "--shown", "1"]
    assert main(run, Options, arguments(trained, out, *argv)) == 0
    return out


def test_the_numbers_are_those_of_the_library(finished, trained):
    metrics = json.loads((finished / "metrics.json").read_text())
    net = zf.load(trained / "weights.safetensors")
    shapes = make_shapes(60, seed=1)
    images = net.preprocess(shapes.images)
    correct = np.flatnonzero(np.asarray(net(images)).argmax(-1) == shapes.labels)[:4]
    assert len(metrics["of_each"]) == len(correct) > 0
    gray = np.full((1, 32, 32, 3), 128, np.uint8)
    labels = shapes.labels[correct]
    # A quarter and a sixteenth of 16 pixels.
    responses = zf.occlusion(
        net, images[correct], labels, size=4, stride=1, fill=net.preprocess(gray)[0]
    )
    logits = np.load(finished / "logits.npy")
    np.testing.assert_allclose(logits, responses.logits, rtol=1e-4, atol=1e-5)
    for index, known in enumerate(metrics["of_each"]):
        assert known["target"] == net.class_names[labels[index]]
        assert known["unit"] == responses.units[index]
        least = responses.probability[index].min()
        assert known["least_probability"] == pytest.approx(least, 1e-4)
        assert known["activity"] == pytest.approx(responses.clean_activity[index], 1e-4)
    with Image.open(finished / "occlusion_0.png") as image:
        assert np.asarray(image.convert("RGB")).std() > 1
    assert not (finished / "occlusion_1.png").exists()


def test_shares_of_drops(finished, trained):
    metrics = json.loads((finished / "metrics.json").read_text())
    net = zf.load(trained / "weights.safetensors")
    shapes = make_shapes(60, seed=1)
    images = net.preprocess(shapes.images)
    correct = np.flatnonzero(np.asarray(net(images)).argmax(-1) == shapes.labels)[:4]
    cover = net.preprocess(np.full((1, 32, 32, 3), 128, np.uint8))[0]
    shares, activity, correlations = [], [], []
    assert shapes.masks is not None
    for index in correct:
        label, image = int(shapes.labels[index]), images[[index]]
        x = zf.occlusion(net, image, label, size=4, stride=1, fill=cover)
        clean = float(jax.nn.softmax(x.clean_logits[0])[label])
        # The masks are of 32 x 32 pixels and the network's images of 16 x 16.
        mask = shapes.masks[index].reshape(16, 2, 16, 2).mean((1, 3)) > 0.5
        shares.append(share_on(x.by_pixel(clean - x.probability)[0], mask))
        maps = np.asarray(net.model.features(image).features[x.layer])
        signal = np.zeros_like(maps)
        signal[..., x.units[0]] = maps[..., x.units[0]]
        pixels = zf.backproject(net, image, x.layer, signal)
        strength = np.abs(np.asarray(pixels[0])).max(-1)
        strongest = strength >= np.sort(strength.ravel())[-64]
        drop = x.by_pixel(x.clean_activity[0] - x.activity[0])
        activity.append(share_on(drop, strongest))
        ranks = [scipy.stats.rankdata(y.ravel()) for y in (x.activity, x.probability)]
        correlations.append(np.corrcoef(*ranks)[0, 1])
    on = metrics["drop_on_the_object"]
    assert on["share"] == pytest.approx(np.mean(shares), abs=0.05)
    assert on["chance"] == pytest.approx(shapes.masks[correct].mean(), abs=0.03)
    each = metrics["of_each"]
    known = [x["activity_drop_on_projection"] for x in each]
    assert known == pytest.approx(activity, abs=0.02)
    assert [x["activity_and_probability"] for x in each] == pytest.approx(
        np.nan_to_num(correlations), abs=1e-3
    )


def test_a_second_run_writes_the_same_bytes(finished, trained, tmp_path):
    argv = ["--limit", "60", "--images", "4", "--shown", "1"]
    assert main(run, Options, arguments(trained, tmp_path, *argv)) == 0
    for file in finished.iterdir():
        if file.name not in ("manifest.json", "config.json"):
            assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name


def test_a_photograph_needs_no_dataset(trained, tmp_path):
    photograph = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(photograph)
    argv = ["--image", str(photograph), "--others", "0", "--target", "heart"]
    more = ["--size", "5", "--stride", "4", "--fill", "mean"]
    out = tmp_path / "out"
    assert main(run, Options, arguments(trained, out, *argv, *more)) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["of_each"][0]["target"] == "heart"
    assert (metrics["size"], metrics["stride"]) == (5, 4)
    assert np.load(out / "logits.npy").shape == (1, 4, 4, len(SHAPES))
    manifest = json.loads((out / "manifest.json").read_text())
    assert set(manifest["digests"]) == {"image", "weights"}


def test_drops_on_known_objects():
    """A network of one pixel responds to the object on that pixel, and no other."""
    arch = zf.Architecture(
        "one", (6, 6), (zf.Conv("conv1", 1, 1), zf.Dense("logits", 2, relu=False))
    )
    model = zf.load_weights(
        {
            "conv1.weight": np.ones((1, 3, 1, 1), np.float32),
            "conv1.bias": np.zeros(1, np.float32),
            "logits.weight": np.zeros((2, 36), np.float32),
            "logits.bias": np.zeros(2, np.float32),
        },
        arch,
    )
    model.logits.kernel[...] = np.eye(36, 2, -14, np.float32)
    images = np.ones((2, 6, 6, 3), np.float32)
    responses = zf.occlusion(model, images, 0, size=1, stride=1)
    masks = np.zeros((2, 6, 6), bool)
    masks[0, 2:4, 1:3] = True  # includes pixel 14, in row 2 and column 2
    masks[1, 0] = True
    drops = measure_drops(responses, np.array([0, 0]), masks)
    assert drops["share"] == pytest.approx(0.5)
    assert drops["on_other_objects"] == pytest.approx(0.5)
    assert drops["chance"] == pytest.approx(10 / 72)
    responses = zf.occlusion(model, images[:1], 0, size=1, stride=1)
    drops = measure_drops(responses, np.array([0]), masks[:1])
    assert drops["share"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("argv", "code", "parts"),
    [
        (["--size", "17"], 2, ["17 x 17 pixels", "16 x 16"]),
        (["--size", "0"], 2, ["--size"]),
        (["--stride", "0"], 2, ["--stride"]),
        (["--target", "unicorn"], 2, ["unicorn", "disk"]),
        (["--target", "10"], 2, ["target 10", "0 to 9"]),
        (["--indices", "60"], 2, ["--indices 60", "60 test images"]),
        (["--images", "3000"], 2, ["--images 3000", "classified correctly"]),
        (["--image", "no.jpg"], 3, ["no.jpg"]),
        (["--image", "no.jpg", "--indices", "1"], 2, ["--indices", "--image"]),
        (["--weights", "no.safetensors"], 3, ["no.safetensors"]),
    ],
)
def test_bad_arguments_fail_in_one_line(argv, code, parts, trained, tmp_path, refusal):
    if argv[0] != "--images":
        argv = [*argv, "--limit", "60"]
    line = refusal(run, Options, code, *arguments(trained, tmp_path / "out"), *argv)
    for part in parts:
        assert part in line
