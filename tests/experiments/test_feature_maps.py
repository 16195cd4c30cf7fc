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
    argv = ["--model", "tests.networks:small_network", "--images", photographs]
    metrics, _ = measure(feature_maps, *argv)
    assert [len(x["maxima"]) for x in metrics["layers"].values()] == [8, 16]


def test_a_dense_layer_is_refused(refuse, weights):
    line = refuse(feature_maps, 2, "--weights", weights, "--layers", "fc3")
    assert "fc3" in line and "conv1 pool1 conv2" in line


@pytest.mark.parametrize("sign", [1, -1])
def test_maps_are_drawn_strongest_first_on_one_scale(sign):
    maps = sign * np.array([[[1.0, 0, 4, 2]], [[0.0, 0, 3, 2]]])
    figure = draw_maps("conv1", np.zeros((4, 4, 3), np.uint8), maps, 3)
    _, _, *pictures = figure.axes[0].images
    shown = [np.asarray(x.get_array()).tolist() for x in pictures]
    assert shown == [maps[..., unit].tolist() for unit in (2, 3, 0)]
    low = 0 if sign > 0 else -4
    assert {(x.norm.vmin, x.norm.vmax) for x in pictures} == {(low, 4)}
    (note,) = (x.get_text() for x in figure.axes[0].texts if "zero" in x.get_text())
    assert "3 of 4 maps of 2 x 1" in note and "1 are zero" in note
