"""Transformations against scikit-image, and distances that are known."""

import math

import jax
import jaxtyping
import numpy as np
import pytest
from skimage import transform as skimage

from tests.comparison import assert_close
from tests.networks import TINY, random_model
from zfnet_jax.analysis.invariance import (
    IDENTITY,
    invariance,
    linearity,
    periodicity,
    transform_images,
)

MODES = {"reflect": "symmetric", "edge": "edge", "zero": "constant"}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(5, 9, 12, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    return random_model(TINY)


def by_skimage(image, transform: str, value: float, border: str) -> np.ndarray:
    """The same as an affine map of columns and rows from result to source."""
    height, width = image.shape[:2]
    to_center = skimage.AffineTransform(
        translation=(-(width - 1) / 2, -(height - 1) / 2)
    )
    if transform == "translate":
        change = skimage.AffineTransform(translation=(0, -value))
    elif transform == "scale":
        change = skimage.AffineTransform(scale=(1 / value, 1 / value))
    else:
        return skimage.rotate(
            image, value, order=1, mode=MODES[border], preserve_range=True
        )
    back = skimage.AffineTransform(translation=((width - 1) / 2, (height - 1) / 2))
    whole = skimage.AffineTransform(back.params @ change.params @ to_center.params)
    return skimage.warp(image, whole, order=1, mode=MODES[border], preserve_range=True)


@pytest.mark.parametrize("border", MODES)
@pytest.mark.parametrize(
    ("transform", "value"), [("translate", -3.25), ("scale", 0.6), ("rotate", 250.0)]
)
def test_images_are_transformed_as_by_scikit_image(images, transform, value, border):
    ours = np.asarray(transform_images(images, transform, value, border=border))
    for image, got in zip(images, ours, strict=True):
        expected = by_skimage(image.astype(np.float64), transform, value, border)
        if border == "zero":
            # How a pixel half outside is mixed with what is outside differs.
            ones = np.ones_like(image, np.float64)
            inside = by_skimage(ones, transform, value, border) > 1 - 1e-6
            got, expected = got[inside], expected[inside]
            assert inside.any()
        np.testing.assert_allclose(got, expected, atol=1e-4)


def test_a_shift_goes_down_and_a_quarter_turn_is_exact(images):
    down = np.asarray(transform_images(images, "translate", 2.0, border="edge"))
    np.testing.assert_array_equal(down[:, 2:], images[:, :-2])
    square = images[:, :, :9]
    turned = np.asarray(transform_images(square, "rotate", 90.0))
    np.testing.assert_allclose(turned, np.rot90(square, axes=(1, 2)), atol=1e-5)


def test_the_identity_has_distance_zero(model, images):
    probabilities = jax.nn.softmax(model(images))[:, 0]
    for transform, amount in IDENTITY.items():
        same = transform_images(images, transform, amount)
        np.testing.assert_allclose(same, images, atol=1e-5)
        result = invariance(model, images, 0, transform, [amount])
        assert list(result.distances) == ["conv1", "fc3"]
        assert not any(x.any() for x in result.distances.values())
        np.testing.assert_allclose(result.probability[:, 0], probabilities, rtol=1e-5)


def test_distances_are_those_of_the_features(model, images, monkeypatch):
    # Three batches, the last of them padded.
    monkeypatch.setattr("zfnet_jax.analysis.invariance._BATCH_SIZE", 2)
    labels = np.array([0, 1, 2, 0, 1], np.int32)
    amounts = [-1.5, 0.0, 2.0]
    layers = ["logits", "pool1"]
    done = []
    options = {"border": "zero", "progress": lambda *x: done.append(x)}
    result = invariance(
        model, images, labels, "translate", amounts, layers=layers, **options
    )
    assert done == [(2, 5), (4, 5), (5, 5)]
    assert list(result.distances) == ["pool1", "logits"]
    np.testing.assert_array_equal(result.amounts, amounts)
    before = model.features(images).features
    for column, amount in enumerate(amounts):
        moved = transform_images(images, "translate", amount, border="zero")
        after = model.features(moved).features
        for layer in layers:
            x, y = (np.asarray(f[layer]).reshape(5, -1) for f in (before, after))
            distance = np.linalg.norm(x - y, axis=1)
            relative = distance / np.linalg.norm(x, axis=1)
            assert_close(result.distances[layer][:, column], distance)
            assert_close(result.relative[layer][:, column], relative)
        probabilities = np.asarray(jax.nn.softmax(after["logits"]))
        assert_close(result.probability[:, column], probabilities[np.arange(5), labels])


def test_linearity_by_hand():
    amounts = np.array([-2.0, -1.0, 0.0, 1.0, 2.0, 9.0])
    assert linearity(amounts, 3 * np.abs(amounts), 0.0, 2.0) == pytest.approx(1)
    # Of 0, 1, 1, 2, 2 against 0, 1, 1, 1, 1: squared covariance over variances.
    curve = np.array([1.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    expected = 1.2**2 / (2.8 * 0.8)
    assert linearity(amounts, curve, 0.0, 2.0) == pytest.approx(expected)
    assert math.isnan(linearity(amounts, np.ones(6), 0.0, 2.0))
    assert math.isnan(linearity(amounts, curve, 0.0, 0.5))


def test_periodicity_of_known_curves():
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    assert periodicity(1 - np.cos(4 * angles), 4) == pytest.approx(1)
    assert periodicity(1 - np.cos(4 * angles), 3) == pytest.approx(0)
    assert periodicity(2 - np.cos(4 * angles) - np.cos(angles), 4) == pytest.approx(0.5)
    assert math.isnan(periodicity(np.ones(24), 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transform": "shear"}, "shear.*translate, scale, rotate"),
        ({"border": "none"}, "none.*reflect, edge, zero"),
        ({"amounts": [np.nan]}, "finite"),
        ({"amounts": [10.0]}, "amount 10: translate takes -9 to 9"),
    ],
)
def test_impossible_transformations_are_refused(
    model, images, change, message, monkeypatch
):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    arguments = {"transform": "translate", "amounts": [1.0], **change}
    with pytest.raises(ValueError, match=message):
        invariance(model, images, 0, **arguments)
