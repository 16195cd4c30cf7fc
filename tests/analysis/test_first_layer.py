"""Filters and strides whose spectra are known."""

import jax
import numpy as np
import pytest
from flax import nnx

import zfnet_jax as zf
from tests.networks import MIXED, as_function
from zfnet_jax.analysis.first_layer import (
    aliasing,
    band_energy,
    dense_feature,
    filter_rms,
    limit_filters,
)
from zfnet_jax.arch import Architecture, Conv, Dense


def test_rms_and_its_limit_by_hand():
    kernel = np.zeros((2, 2, 1, 3), np.float32)
    kernel[..., 0, 0] = [[1, 1], [1, 1]]
    kernel[..., 0, 1] = [[0.2, 0], [0, 0]]
    np.testing.assert_allclose(filter_rms(kernel), [1, 0.1, 0], rtol=1e-6)
    after = limit_filters(kernel, 0.1)
    np.testing.assert_allclose(after[..., 0, 0], 0.1, rtol=1e-6)
    np.testing.assert_array_equal(after[..., 1:], kernel[..., 1:])


@pytest.mark.parametrize(
    ("wavelength", "band"), [(16, "low"), (6, "mid"), (2.5, "high")]
)
def test_a_wave_lies_in_its_band(wavelength, band):
    rows, columns = np.mgrid[:33, :33] - 16
    window = np.outer(np.hanning(35)[1:-1], np.hanning(35)[1:-1])
    waves = [
        np.cos(2 * np.pi * (np.cos(turn) * rows + np.sin(turn) * columns) / wavelength)
        for turn in (0, 0.6, np.pi / 2)
    ]
    kernel = np.stack([window * wave for wave in waves], -1)[:, :, None]
    shares = band_energy(kernel.astype(np.float32))
    assert (shares[band] > 0.95).all()
    np.testing.assert_allclose(sum(shares.values()), 1, rtol=1e-5)


def test_energy_of_noise_and_of_nothing():
    noise = np.random.default_rng(0).normal(size=(5, 5, 3, 1000)).astype(np.float32)
    means = [float(share.mean()) for share in band_energy(noise).values()]
    areas = [np.pi / 64, 3 * np.pi / 64, 1 - np.pi / 16]
    assert means == pytest.approx(areas, abs=0.01)
    nothing = band_energy(np.zeros((3, 3, 3, 2), np.float32))
    assert not any(share.any() for share in nothing.values())


@pytest.mark.parametrize(("layer", "stride"), [("conv1", (2, 1)), ("conv3", (8, 4))])
def test_a_dense_feature_holds_the_feature(layer, stride):
    model = zf.ConvNet(MIXED, rngs=nnx.Rngs(3))
    images = np.random.default_rng(0).normal(size=(2, 23, 19, 3)).astype(np.float32)
    dense = jax.jit(dense_feature, static_argnums=2)(model, images, layer)
    feature = model.features(images, until=layer).features[layer]
    rows, columns = feature.shape[1:3]
    sampled = dense[:, :: stride[0], :: stride[1]][:, :rows, :columns]
    np.testing.assert_allclose(sampled, feature, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"fc4.*dense"):
        dense_feature(model, images, "fc4")


def strided(stride: int, kernel: np.ndarray) -> zf.ConvNet:
    """One convolution of a kernel, whose outputs stay above zero."""
    side = kernel.shape[0]
    conv = Conv("conv1", 1, side, stride, padding=side // 2)
    arch = Architecture("one", (48, 48), (conv, Dense("logits", 2, relu=False)))
    model = zf.ConvNet(arch, rngs=nnx.Rngs(0))
    model.conv1.kernel[...] = np.repeat(kernel[..., None, None], 3, 2).astype(
        np.float32
    )
    model.conv1.bias[...] = np.full(1, 1e3, np.float32)
    return model


def share(stride: int, images: np.ndarray) -> float:
    """Aliasing of a layer that passes its image on."""
    return float(aliasing(strided(stride, np.ones((1, 1))), images, "conv1")[0])


def test_aliasing_of_noise_and_of_smooth_images():
    noise = np.random.default_rng(0).normal(size=(40, 48, 48, 3)).astype(np.float32)
    assert share(1, noise) == 0
    assert share(2, noise) == pytest.approx(3 / 4, abs=0.03)
    assert share(4, noise) == pytest.approx(15 / 16, abs=0.02)
    # A wave of 12 pixels is slow enough for a stride of 4 and too fast for one of 8.
    wave = np.cos(2 * np.pi * np.arange(48) / 12)[None, :, None, None]
    waves = np.broadcast_to(wave, (1, 48, 48, 3)).astype(np.float32)
    assert share(4, waves) < 0.01
    assert share(8, waves) > 0.99


def test_a_map_that_never_varies_has_no_aliasing():
    flat = np.ones((3, 48, 48, 3), np.float32)
    assert np.isnan(aliasing(strided(2, np.zeros((1, 1))), flat, "conv1")[0])


def test_a_function_has_no_strides():
    model = strided(2, np.ones((1, 1)))
    with pytest.raises(ValueError, match="needs a ConvNet"):
        aliasing(as_function(model), np.ones((3, 48, 48, 3), np.float32), "conv1")
