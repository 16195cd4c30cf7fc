"""Transformations against scikit-image, and distances that are known."""

import math

import jax
import numpy as np
import pytest
from skimage import transform as skimage

import zfnet_jax as zf
from tests.analysis.test_mining import SMALL
from tests.references.deconvnet_cases import draw_state
from zfnet_jax.analysis import IDENTITY, invariance, linearity, periodicity, transformed

pytestmark = pytest.mark.usefixtures("compiled_once")

MODES = {"reflect": "symmetric", "edge": "edge", "zero": "constant"}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(5, 9, 12, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    return zf.load_weights(draw_state(SMALL), SMALL)


def by_skimage(image, transform: str, value: float, border: str) -> np.ndarray:
    """The same as an affine map of columns and rows from result to source."""
    height, width = image.shape[:2]
    to_centre = skimage.AffineTransform(
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
    whole = skimage.AffineTransform(back.params @ change.params @ to_centre.params)
    return skimage.warp(image, whole, order=1, mode=MODES[border], preserve_range=True)


@pytest.mark.parametrize("border", MODES)
@pytest.mark.parametrize(
    ("transform", "value"),
    [
        ("translate", 2.0),
        ("translate", -3.25),
        ("scale", 1.7),
        ("scale", 0.6),
        ("rotate", 33.0),
        ("rotate", 250.0),
    ],
)
def test_images_are_transformed_as_by_scikit_image(images, transform, value, border):
    ours = np.asarray(transformed(images, transform, value, border))
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
    down = np.asarray(transformed(images, "translate", 2.0, "edge"))
    np.testing.assert_array_equal(down[:, 2:], images[:, :-2])
    square = images[:, :, :9]
    turned = np.asarray(transformed(square, "rotate", 90.0))
    np.testing.assert_allclose(turned, np.rot90(square, axes=(1, 2)), atol=1e-5)


def test_the_identity_has_distance_zero(model, images):
    labels = np.zeros(5, np.int32)
    chances = jax.nn.softmax(model.features(images).logits)[:, 0]
    for transform, value in IDENTITY.items():
        same = transformed(images, transform, value)
        np.testing.assert_allclose(same, images, atol=1e-5)
        found = invariance(model, images, labels, transform, [value])
        assert list(found.distances) == ["conv1", "fc3"]
        assert not any(x.any() for x in found.distances.values())
        np.testing.assert_allclose(found.probability[:, 0], chances, rtol=1e-5)


def test_distances_are_those_of_the_features(model, images):
    labels = np.array([0, 1, 2, 0, 1], np.int32)
    values = [-1.5, 0.0, 2.0]
    layers = ["pool1", "logits"]
    found = invariance(
        model, images, labels, "translate", values, layers, border="zero"
    )
    before = model.features(images)
    for column, value in enumerate(values):
        after = model.features(transformed(images, "translate", value, "zero"))
        for layer in layers:
            x, y = (
                np.asarray(f.features[layer]).reshape(5, -1) for f in (before, after)
            )
            distance = np.linalg.norm(x - y, axis=1)
            np.testing.assert_allclose(
                found.distances[layer][:, column], distance, rtol=1e-4, atol=1e-5
            )
            np.testing.assert_allclose(
                found.relative[layer][:, column],
                distance / np.linalg.norm(x, axis=1),
                rtol=1e-4,
                atol=1e-5,
            )
        chances = np.asarray(jax.nn.softmax(after.logits))
        np.testing.assert_allclose(
            found.probability[:, column], chances[np.arange(5), labels], rtol=1e-4
        )


def test_linearity_by_hand():
    values = np.array([-2.0, -1.0, 0.0, 1.0, 2.0, 9.0])
    assert linearity(values, 3 * np.abs(values), 0.0, 2.0) == pytest.approx(1)
    # Of 0, 1, 1, 2, 2 against 0, 1, 1, 1, 1: squared covariance over variances.
    curve = np.array([1.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    expected = 1.2**2 / (2.8 * 0.8)
    assert linearity(values, curve, 0.0, 2.0) == pytest.approx(expected)
    assert math.isnan(linearity(values, np.ones(6), 0.0, 2.0))
    assert math.isnan(linearity(values, curve, 0.0, 0.5))


def test_periodicity_of_known_curves():
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    assert periodicity(1 - np.cos(4 * angles), 4) == pytest.approx(1)
    assert periodicity(1 - np.cos(4 * angles), 3) == pytest.approx(0)
    assert periodicity(2 - np.cos(4 * angles) - np.cos(angles), 4) == pytest.approx(0.5)
    assert math.isnan(periodicity(np.ones(24), 4))
    with pytest.raises(ValueError, match="folds must be from 2 to 12, not 1"):
        periodicity(np.ones(24), 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transform": "shear"}, "shear.*translate, scale, rotate"),
        ({"border": "none"}, "none.*reflect, edge, zero"),
        ({"values": []}, "values"),
        ({"values": [np.nan]}, "finite"),
        ({"transform": "scale", "values": [0.0]}, "0.1 to 10, not 0"),
        ({"values": [10.0]}, "-9 to 9, not 10"),
        ({"layers": ["conv9"]}, "conv9"),
        ({"labels": np.full(5, 3, np.int32)}, "labels"),
        ({"images": np.zeros((0, 9, 12, 3), np.float32)}, "no images"),
    ],
)
def test_what_cannot_be_is_refused(model, images, change, message, monkeypatch):
    import jaxtyping

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    arguments = {
        "model": model,
        "images": images,
        "labels": np.zeros(5, np.int32),
        "transform": "translate",
        "values": [1.0],
    }
    with pytest.raises(ValueError, match=message):
        invariance(**{**arguments, **change})
