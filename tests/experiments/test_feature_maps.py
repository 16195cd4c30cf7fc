"""Feature maps of one image, end to end."""

import json

import numpy as np
import pytest
from PIL import Image

import zfnet_jax as zf
from experiments import feature_maps
from experiments.common import main
from experiments.feature_maps import Options, run
from zfnet_jax.data import fit_photograph

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photographs") / "photograph.png"
    coarse = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    Image.fromarray(coarse).resize((60, 40), Image.Resampling.BICUBIC).save(path)
    return path


def test_the_maps_are_those_of_the_image(photo, trained, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        feature_maps.Results,
        "figure",
        lambda self, name, figure: drawn.update({name: figure}),
    )
    weights = trained / "weights.safetensors"
    argv = ["--image", str(photo), "--weights", str(weights), "--out", str(tmp_path)]
    assert main(run, Options, [*argv, "--layers", "conv2,pool1", "--count", "3"]) == 0
    net = zf.load(weights)
    picture = fit_photograph(np.asarray(Image.open(photo)), (32, 32))
    features = net.model.features(np.asarray(net.preprocess(picture[None]))).features
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert list(metrics["layers"]) == ["conv2", "pool1"]
    assert metrics["layers"]["conv2"]["dead"] == [1]
    for layer in ("conv2", "pool1"):
        maps = np.asarray(features[layer][0])
        known = metrics["layers"][layer]
        np.testing.assert_allclose(known["maxima"], maps.max((0, 1)), rtol=1e-5)
        for unit, (row, column) in enumerate(known["positions"]):
            np.testing.assert_allclose(
                maps[row, column, unit], known["maxima"][unit], rtol=1e-5
            )
        (ax,) = drawn[f"feature_maps_{layer}"].axes
        image, *shown = (np.asarray(x.get_array()) for x in ax.images[:4])
        # As the network sees it, at half its size.
        assert image.shape == (16, 16, 3)
        for unit, values in enumerate(shown):
            np.testing.assert_allclose(values, maps[..., unit], rtol=1e-4, atol=1e-5)


def test_every_convolution_is_drawn_unless_told(photo, trained, tmp_path):
    weights = str(trained / "weights.safetensors")
    argv = ["--image", str(photo), "--weights", weights, "--out", str(tmp_path)]
    assert main(run, Options, argv) == 0
    names = {path.name for path in tmp_path.glob("*.png")}
    assert names == {"feature_maps_conv1.png", "feature_maps_conv2.png"}


@pytest.mark.parametrize(
    ("argv", "code", "parts"),
    [
        (["--layers", "conv9"], 2, ["conv9", "conv1 pool1 conv2 fc3 logits"]),
        (["--layers", "fc3"], 2, ["fc3", "dense", "conv1, pool1, conv2"]),
        (["--count", "0"], 2, ["--count"]),
        (["--image", "nowhere.png"], 3, ["nowhere.png"]),
        (["--weights", "no.safetensors"], 3, ["no.safetensors"]),
        (["--arch", "zfnet32"], 2, ["--arch"]),
    ],
)
def test_what_cannot_be_is_one_line(
    argv, code, parts, photo, trained, tmp_path, refusal
):
    given = ["--image", str(photo), "--weights", str(trained / "weights.safetensors")]
    line = refusal(run, Options, code, *given, "--out", str(tmp_path / "out"), *argv)
    for part in parts:
        assert part in line
