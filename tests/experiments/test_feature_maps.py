"""Feature maps of an image, end to end."""

import numpy as np
import pytest

import zfnet_jax as zf
from experiments.feature_maps import feature_maps
from zfnet_jax.viz.feature_maps import draw_maps


def test_metrics_are_those_of_the_maps(measure, weights, photographs):
    argv = ["--weights", weights, "--image", photographs, "--count", 3]
    metrics, out = measure(feature_maps, *argv, "--layers", "pool1", "conv2")
    net = zf.load(weights)
    maps = net.activations(net.load_images(photographs / "0.png"), ["pool1", "conv2"])
    assert metrics["image"] == "0.png" and metrics["layers"].keys() == maps.keys()
    assert metrics["layers"]["conv2"]["dead"] == [1]
    for layer, (values,) in maps.items():
        known = metrics["layers"][layer]
        np.testing.assert_allclose(known["maxima"], values.max((0, 1)), rtol=1e-5)
        rows, columns = np.array(known["positions"]).T
        units = np.arange(values.shape[2])
        peaks = values[rows, columns, units]
        np.testing.assert_allclose(peaks, known["maxima"], rtol=1e-5)
        assert (out / f"feature_maps_{layer}.png").stat().st_size > 2_000


def test_any_model_has_maps(measure, photographs):
    argv = ["--model", "tests.networks:small_network", "--image", photographs]
    metrics, _ = measure(feature_maps, *argv)
    assert [len(x["maxima"]) for x in metrics["layers"].values()] == [8, 16]


def test_a_dense_layer_is_refused(refuse, weights):
    line = refuse(feature_maps, 2, "--weights", weights, "--layers", "fc3")
    assert "fc3" in line and "conv1 pool1 conv2" in line


@pytest.mark.parametrize("sign", [1, -1])
def test_maps_share_a_scale_that_starts_at_or_is_symmetric_about_zero(sign):
    maps = sign * np.arange(8.0).reshape(2, 2, 2)
    figure = draw_maps("conv1", np.zeros((4, 4, 3), np.uint8), maps, ["a", "b"])
    norms = [x.norm for x in figure.axes[0].images[1:]]
    low = 0 if sign > 0 else -7
    assert {(norm.vmin, norm.vmax) for norm in norms} == {(low, 7)}
