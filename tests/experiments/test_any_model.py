"""SqueezeNet and its projections; tests/test_relu_rules.py has more of them."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from jax import lax
from PIL import Image

from experiments import any_model
from experiments.any_model import (
    LAYERS,
    RULES,
    Options,
    crop,
    load,
    preprocess,
    run,
    squeezenet,
)
from experiments.common import main
from tests.networks import random_squeezenet_weights
from tests.references import make_squeezenet as reference
from zfnet_jax.data import load_photograph
from zfnet_jax.networks import network

WEIGHTS, PHOTOGRAPH = reference.WEIGHTS, reference.PHOTOGRAPH
present = pytest.mark.skipif(
    not (WEIGHTS.exists() and PHOTOGRAPH.exists()),
    reason="needs the weights and photographs of the folder shared",
)


@present
def test_photographs_are_recognized():
    with (PHOTOGRAPH.parent / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))[::5]
    images = np.stack(
        [
            preprocess(crop(load_photograph(PHOTOGRAPH.with_name(row["file"]))))
            for row in rows
        ]
    )
    guesses = np.asarray(jax.jit(squeezenet)(load(WEIGHTS), images)).argmax(-1)
    labels = np.array([int(row["class_index"]) for row in rows])
    # 67% of a larger sample.
    assert (guesses == labels).mean() >= 0.5


# From here on weights drawn at random do.


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A file of random weights, and a photograph."""
    folder = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(0)
    weights = random_squeezenet_weights()
    safetensors.numpy.save_file(weights, folder / "weights.safetensors")
    pixels = rng.integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).resize((300, 240)).save(folder / "photograph.png")
    return folder


def arguments(drawn, out, *more):
    image, weights = drawn / "photograph.png", drawn / "weights.safetensors"
    return ["--image", f"{image}", "--weights", f"{weights}", "--out", f"{out}", *more]


def test_it_draws_and_measures_what_the_model_says(drawn, tmp_path):
    argv = arguments(drawn, tmp_path, "--layer", "pool1", "--units", "3")
    assert main(run, Options, argv) == 0
    for layer in ("logits", "pool1"):
        with Image.open(tmp_path / f"projections_{layer}.png") as figure:
            assert np.asarray(figure.convert("RGB")).std() > 1
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert [len(metrics[layer]) for layer in ("logits", "pool1")] == [2, 3]
    image = preprocess(crop(load_photograph(drawn / "photograph.png")))
    weights = load(drawn / "weights.safetensors")
    kernel = weights["conv1.weight"].transpose(2, 3, 1, 0)
    conv1 = lax.conv_general_dilated(
        jnp.asarray(image[None]),
        jnp.asarray(kernel),
        (2, 2),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    maps = np.asarray(nnx.max_pool(nnx.relu(conv1), (3, 3), (2, 2)))[0]
    best = np.sort(maps.max((0, 1)))[::-1]
    for entry, value in zip(metrics["pool1"], best, strict=False):
        row, column = entry["position"]
        assert entry["value"] == pytest.approx(value, rel=1e-5)
        assert maps[row, column, entry["unit"]] == pytest.approx(value, rel=1e-5)
        # 3 x 3 filters of 7 x 7 pixels, 2 apart.
        top, left, bottom, right = entry["box"]
        assert (top, left, bottom - top, right - left) == (4 * row, 4 * column, 11, 11)
        assert all(entry["scales"][rule] > 0 for rule in RULES)
    for name in ("config.json", "manifest.json"):
        assert json.loads((tmp_path / name).read_text())


def test_layers_have_the_shapes_of_the_paper():
    def read(height):
        net = network(squeezenet, (height, 227, 3), params=weights)
        return {layer: net.layer(layer).shape for layer in LAYERS}

    weights = random_squeezenet_weights()
    assert sum(x.size for x in weights.values()) == 1_248_424
    sizes = read(227)
    assert sizes["conv1"] == (111, 111, 96) and sizes["pool1"] == (55, 55, 96)
    assert sizes["fire4"] == (55, 55, 256) and sizes["fire8"] == (27, 27, 512)
    assert sizes["fire9"] == (13, 13, 512) and sizes["logits"] == (1000,)
    # Rounded up, as in Caffe: 229 gives 112 and 55.5.
    assert read(229)["pool1"] == (56, 55, 96)


@pytest.mark.parametrize("size", [(1, 5000), (3, 2), (256, 256), (300, 900)])
def test_photographs_of_any_size_fit(size):
    gray = np.full((*size, 3), 7, np.uint8)
    np.testing.assert_array_equal(crop(gray), np.full((227, 227, 3), 7))


def test_preprocessing_is_blue_first():
    picture = np.zeros((227, 227, 3), np.uint8)
    picture[..., 0] = 255
    np.testing.assert_array_equal(preprocess(picture)[0, 0], [-104, -117, 132])


@pytest.mark.parametrize(
    ("change", "code", "parts"),
    [
        (["--layer", "fire1"], 2, ["--layer must be one of conv1", "not fire1"]),
        (["--layer", "logits"], 2, ["--layer must be one of"]),
        (["--units", "0"], 2, ["--units must be from 1 to the 256 of fire5, not 0"]),
        (
            ["--classes", "-1"],
            2,
            ["--classes must be from 1 to the 1000 of logits, not -1"],
        ),
        (["--classes", "1001"], 2, ["from 1 to the 1000 of logits, not 1001"]),
        (["--units", "257"], 2, ["from 1 to the 256 of fire5, not 257"]),
        (["--image", "nowhere.jpg"], 3, ["nowhere.jpg"]),
        (["--image", "{tiff}"], 3, ["damaged.tiff is truncated or damaged"]),
        (["--weights", "nowhere"], 3, ["there is no weight file nowhere"]),
        (["--weights", "{cut}"], 4, ["cut.safetensors is truncated, damaged"]),
        (
            ["--weights", "{other}"],
            2,
            ["is not SqueezeNet v1.0", "conv1.bias is missing"],
        ),
        (["--weights", "{more}"], 2, ["extra is (1,), where no tensor is expected"]),
        (
            ["--weights", "{whole}"],
            2,
            ["conv1.bias holds a value that is not a finite"],
        ),
        (
            ["--weights", "{infinite}"],
            2,
            ["conv1.bias holds a value that is not a finite"],
        ),
    ],
)
def test_what_cannot_be_is_one_line(change, code, parts, drawn, tmp_path, capfd):
    whole = (drawn / "weights.safetensors").read_bytes()
    names = ("cut", "other", "more", "whole", "infinite")
    files = {name: tmp_path / f"{name}.safetensors" for name in names}
    files["cut"].write_bytes(whole[:-1])
    safetensors.numpy.save_file({"x": np.zeros(1, np.float32)}, files["other"])
    weights = safetensors.numpy.load(whole) | {"extra": np.zeros(1, np.float32)}
    safetensors.numpy.save_file(weights, files["more"])
    del weights["extra"]
    for name, value in (("whole", np.int8(1)), ("infinite", np.float32(np.inf))):
        changed = weights | {"conv1.bias": np.full(96, value)}
        safetensors.numpy.save_file(changed, files[name])
    files["tiff"] = tmp_path / "damaged.tiff"
    with Image.open(drawn / "photograph.png") as picture:
        picture.save(files["tiff"], compression="tiff_lzw")
    content = bytearray(files["tiff"].read_bytes())
    content[100:-400] = bytes(byte ^ 0x5A for byte in content[100:-400])
    files["tiff"].write_bytes(content)
    capfd.readouterr()
    options = dict(zip(*[iter(arguments(drawn, tmp_path / "out"))] * 2, strict=True))
    options[change[0]] = change[1].format(**files)
    argv = [word for pair in options.items() for word in pair]
    assert main(any_model.run, Options, argv) == code
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    for part in parts:
        assert part in captured.err
