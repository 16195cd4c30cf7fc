"""The first layers of two networks, trained and measured end to end."""

import numpy as np
import pytest
from flax import nnx

import zfnet_jax as zf
from experiments import first_layer as module
from experiments import mini
from experiments.first_layer import first_layer
from zfnet_jax.arch import Architecture, Conv, Dense, MaxPool
from zfnet_jax.data import Preprocessing, make_shapes

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


def test_networks_are_trained_with_and_without_the_limit(monkeypatch, measure):
    monkeypatch.setitem(module._BASES, "mini", {"AlexNet": small(2)})
    # Filters start at an RMS of 0.01.
    monkeypatch.setattr(module, "_LIMIT", 0.005)
    monkeypatch.setattr(mini, "load_dataset", lambda *args: make_shapes(300))
    argv = ["--limit", 128, "--networks", "mini"]
    metrics, out = measure(first_layer, *argv)
    assert list(metrics["networks"]) == ["AlexNet, RMS limit", "AlexNet, no limit"]
    for name, (numbers,) in metrics["networks"].items():
        assert (max(numbers["rms"]) <= 0.005001) == name.endswith("RMS limit")
        assert sum(numbers["bands"].values()) == pytest.approx(1, abs=1e-5)
        assert numbers["aliasing"]["conv1"] > 0
    assert {x.name for x in out.glob("*.pdf")} == {
        "filters.pdf",
        "layer2.pdf",
        "numbers.pdf",
    }


def test_filters_are_counted():
    model = zf.ConvNet(small(2), rngs=nnx.Rngs(0))
    noise = np.random.default_rng(0).normal(size=(5, 5, 3, 4)).astype(np.float32)
    rms = np.array([0.2, 0.05, 0.05, 0.001], np.float32)
    model.conv1.kernel[...] = noise / np.sqrt((noise**2).mean((0, 1, 2))) * rms
    model.conv1.bias[...] = np.array([0, 0, -1e4, 0], np.float32)
    shapes = make_shapes(40, (16, 16), seed=3)
    net = zf.network(model, preprocess=Preprocessing.fit(shapes.images, 1 / 64))
    images = net.load_images(shapes)
    tops = zf.top_activations(net, images, ["conv1", "conv2"], k=1)
    metrics = module.measure(net, images, tops)
    np.testing.assert_allclose(metrics["rms"], rms, rtol=1e-4)
    assert metrics["largest_over_median"] == pytest.approx(4, rel=1e-3)
    # Above 0.1; above three times the median; below a tenth of the largest.
    counts = [metrics[name] for name in ("above_the_limit", "dominant", "weak")]
    assert counts == [1, 1, 1]
    activations = net.activations(images, ["conv2", net.output])
    dead = int((~activations["conv2"].any((0, 1, 2))).sum())
    assert metrics["dead"] == {"conv1": 1, "conv2": dead}
    wrong = activations[net.output].argmax(1) != shapes.labels
    assert metrics["error"] == pytest.approx(wrong.mean())


def test_networks_differ_in_layers_1_and_2_only():
    minis = module._BASES["mini"].values()
    alexnet, zfnet = (arch.kernel_shapes() for arch in minis)
    differing = {name for name in alexnet if alexnet[name] != zfnet[name]}
    assert differing == {"conv1"} and alexnet["conv1"] == (7, 7, 3, 48)
    for arch in minis:
        strides = [x.stride[0] for x in arch.layers if isinstance(x, zf.Conv)]
        assert strides[:2] in ([2, 1], [1, 2]) and set(strides[2:]) == {1}
