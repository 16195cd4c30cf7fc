"""The first layers of two networks, trained and measured end to end."""

import json

import numpy as np
import pytest
from flax import nnx
from PIL import Image

import zfnet_jax as zf
from experiments import first_layer
from experiments.common import main
from experiments.first_layer import Options, run
from zfnet_jax import training
from zfnet_jax.arch import Architecture, Conv, Dense, MaxPool
from zfnet_jax.data import Preprocessed, Preprocessing, make_shapes

pytestmark = pytest.mark.usefixtures("compiled_once")


def small(stride: int) -> Architecture:
    return Architecture(
        f"stride {stride}",
        (16, 16),
        (
            Conv("conv1", 4, kernel=5, stride=stride, padding=2),
            MaxPool("pool1", kernel=2, stride=2),
            Conv("conv2", 6, kernel=3, padding=1),
            Dense("logits", 10, relu=False),
        ),
    )


def test_it_trains_and_measures(monkeypatch, tmp_path, capsys):
    bases = {"AlexNet": small(2), "ZFNet": small(1)}
    monkeypatch.setitem(first_layer._BASES, "mini", bases)
    monkeypatch.setattr(first_layer, "_LIMIT", 0.005)
    argv = ["--dataset", "shapes", "--limit", "128", "--epochs", "1", "--seeds", "1"]
    assert main(run, Options, [*argv, "--out", str(tmp_path)]) == 0
    networks = json.loads((tmp_path / "metrics.json").read_text())["networks"]
    assert set(networks) == {
        "AlexNet, no limit",
        "AlexNet, RMS limit",
        "ZFNet, no limit",
        "ZFNet, RMS limit",
    }
    for name, (metrics,) in networks.items():
        assert len(metrics["rms"]) == 4
        assert sum(metrics["bands"].values()) == pytest.approx(1, abs=1e-5)
        # Filters start at an RMS of 0.01.
        assert (max(metrics["rms"]) <= 0.005001) == name.endswith("RMS limit")
        assert metrics["aliasing"]["conv1"] == 0 or name.startswith("AlexNet")
        assert set(metrics["dead"]) == {"conv1", "conv2"}
    aliased = networks["AlexNet, no limit"][0]["aliasing"]["conv1"]
    assert aliased is not None and aliased > 0
    for name in ("filters", "layer2", "bands", "aliasing"):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert np.asarray(image.convert("RGB")).std() > 1
    assert "ZFNet, RMS limit" in capsys.readouterr().out


def test_layer_2_is_drawn_by_its_strongest_activations():
    model = zf.ConvNet(small(2), rngs=nnx.Rngs(0))
    shapes = make_shapes(40, (16, 16), seed=3)
    result = training.TrainResult(
        model, Preprocessing.fit(shapes.images, 1 / 64), [], 0.0, 0.0, 0.0
    )
    inputs = result.preprocess(shapes.images)
    top = zf.top_activations(model, inputs, "conv2", k=1)["conv2"]
    drawn = first_layer.project_strongest(result, shapes, top)
    # The receptive field of layer 2 has 5 + 2 + 2 * 4 pixels.
    assert drawn.shape == (15, 15, 3, 6)
    maps = np.asarray(model.features(inputs).features["conv2"])
    for unit in range(6):
        image, *_ = np.unravel_index(maps[..., unit].argmax(), maps.shape[:3])
        known = zf.project(model, inputs[image][None], "conv2", [unit], crop=True)
        pixels = known.pixels[0]
        np.testing.assert_allclose(
            drawn[..., unit], pixels / max(np.abs(pixels).max(), 1e-30), atol=1e-5
        )


def test_filters_are_counted():
    model = zf.ConvNet(small(2), rngs=nnx.Rngs(0))
    noise = np.random.default_rng(0).normal(size=(5, 5, 3, 4)).astype(np.float32)
    wanted = np.array([0.2, 0.05, 0.05, 0.001], np.float32)
    model.conv1.kernel[...] = noise / np.sqrt((noise**2).mean((0, 1, 2))) * wanted
    model.conv1.bias[...] = np.array([0, 0, -1e4, 0], np.float32)
    shapes = make_shapes(40, (16, 16), seed=3)
    result = training.TrainResult(
        model, Preprocessing.fit(shapes.images, 1 / 64), [], 0.0, 0.0, 0.0
    )
    images = Preprocessed(shapes.images, result.preprocess)
    tops = zf.top_activations(model, images, ["conv1", "conv2"], k=1)
    metrics = first_layer.measure(result, shapes, tops)
    np.testing.assert_allclose(metrics["rms"], wanted, rtol=1e-4)
    assert metrics["largest_over_median"] == pytest.approx(4, rel=1e-3)
    # Above 0.1; above three times the median; below a tenth of the largest.
    assert (metrics["above_the_limit"], metrics["dominant"], metrics["weak"]) == (
        1,
        1,
        1,
    )
    maps = np.asarray(
        model.features(result.preprocess(shapes.images)).features["conv2"]
    )
    dead = {"conv1": 1, "conv2": int((~maps.any((0, 1, 2))).sum())}
    assert metrics["dead"] == dead


def test_the_networks_differ_in_layers_1_and_2_only():
    minis = first_layer._BASES["mini"].values()
    alex, zf_ = (arch.kernel_shapes() for arch in minis)
    differing = {name for name in alex if alex[name] != zf_[name]}
    assert differing == {"conv1"} and alex["conv1"] == (7, 7, 3, 48)
    for arch in minis:
        strides = [x.stride[0] for x in arch.layers if isinstance(x, zf.Conv)]
        assert strides[:2] in ([2, 1], [1, 2]) and set(strides[2:]) == {1}


@pytest.mark.parametrize("flag", ["--seeds", "--epochs", "--limit"])
def test_bad_arguments_fail_in_one_line(flag, tmp_path, refusal):
    line = refusal(run, Options, 2, flag, "0", "--out", str(tmp_path))
    assert flag in line
