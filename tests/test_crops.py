"""Projections by crops equal those of whole images, on any convolutional network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zfnet_jax as zf
from tests import networks as examples
from zfnet_jax import projections as projecting
from zfnet_jax.crops import find_crop

SHAPE = (96, 77, 3)


def images(count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, *SHAPE), np.float32)


@pytest.fixture(scope="module")
def net() -> zf.networks.Network:
    return zf.network(examples.residual_nnx(), SHAPE)


@pytest.mark.parametrize("rule", ["deconvnet", "guided", "gradient"])
@pytest.mark.parametrize("layer", ["stem.pool", "block2.conv1"])
def test_every_place_of_the_map(net, layer, rule, monkeypatch):
    crop = find_crop(net, layer)
    assert crop is not None
    assert crop.net.image_shape[0] < 70
    height, width, _ = net.layer(layer).shape
    rows, columns = np.linspace(0, height - 1, 4), np.linspace(0, width - 1, 3)
    places = np.stack(np.meshgrid(rows, columns), -1).reshape(-1, 2).astype(int)
    units, positions = np.zeros((2, len(places)), int), np.stack([places] * 2)
    by_crop = zf.project(net, images(), layer, units, positions, rule=rule)
    monkeypatch.setattr(projecting, "find_crop", lambda *_: None)
    whole = zf.project(net, images(), layer, units, positions, rule=rule)
    np.testing.assert_allclose(
        by_crop.activations, whole.activations, rtol=1e-4, atol=1e-5
    )
    scale = np.abs(whole.pixels).max()
    np.testing.assert_allclose(by_crop.pixels, whole.pixels, atol=1e-5 * scale)
    np.testing.assert_array_equal(by_crop.boxes, whole.boxes)


def test_large_fields_take_the_whole_image(net):
    smaller = net.resize((72, 69))
    assert smaller is not None and find_crop(smaller, "block2") is None  # 51 of 69
    assert find_crop(net, "fc") is None


def test_networks_that_know_the_place_take_the_whole_image():
    """A map of coordinates makes a crop another image."""
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 4))

    def placed(x):
        rows = jnp.arange(x.shape[1], dtype=x.dtype)[:, None, None] / 10
        x = jax.lax.conv_general_dilated(
            x + rows,
            kernel,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return jax.nn.relu(x).mean((1, 2))

    net = zf.network(placed, SHAPE)
    assert find_crop(net, "conv1") is not None
    projections = zf.project(net, images(1), "conv1", [0, 1, 2, 3], rule="gradient")
    for unit, (pixels, box) in enumerate(
        zip(projections.pixels, projections.boxes, strict=True)
    ):
        expected = np.zeros((98, 79, 3), np.float32)
        top, left, bottom, right = box + 1
        expected[top:bottom, left:right] = kernel[..., unit]
        expected *= projections.activations[unit]
        np.testing.assert_allclose(pixels, expected[1:-1, 1:-1], rtol=1e-5)
