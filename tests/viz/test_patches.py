"""Patches and projections as they are displayed."""

import numpy as np
import pytest

from zfnet_jax.viz.contrast import display_projections, measure_scale, to_display
from zfnet_jax.viz.patches import cut_patches


def test_zero_is_mid_gray_and_the_scale_black_and_white():
    x = np.array([-4.0, -2.0, 0.0, 1.0, 2.0])
    np.testing.assert_array_equal(to_display(x, 2.0), [0, 0, 0.5, 0.75, 1])
    np.testing.assert_array_equal(to_display(np.zeros(3)), [0.5] * 3)


def test_one_pixel_does_not_set_the_scale():
    x = np.zeros(20_000)
    x[:1000] = np.linspace(-1, 1, 1000)
    x[0] = 1e6
    assert measure_scale(x, "max") == 1e6
    # Of the thousand that are not zero, five may lie above it.
    assert (np.abs(x) > measure_scale(x, "99.5")).sum() == 5
    assert measure_scale(np.zeros(3)) == 0


@pytest.mark.parametrize(
    ("scale", "expected"),
    [("patch", [1, 2, 4]), ("unit", [2, 2, 4]), ("layer", [4] * 3)],
)
def test_projections_share_a_scale_as_asked(scale, expected):
    pixels = np.array([1.0, -2.0, 4.0])[:, None, None, None] * np.ones((3, 2, 2, 3))
    units = np.array([5, 5, 9])
    shown, scales = display_projections(pixels, units, scale, "max")
    np.testing.assert_array_equal(scales, expected)
    signs = np.array([1, -2, 4]) / expected / 2 + 0.5
    np.testing.assert_allclose(shown[:, 0, 0, 0], signs)


def test_other_channels_are_summed():
    pixels = np.array([1.0, 2.0]).reshape(1, 1, 1, 2)
    shown, scales = display_projections(pixels, np.array([0]))
    assert shown.shape == (1, 1, 1, 1) and scales[0] == 3


def test_a_patch_is_gray_outside_the_image():
    image = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1)
    boxes = np.array([[-1, 2, 2, 5]])
    (patch,) = cut_patches(image, boxes)
    expected = [[128, 128, 128], [2, 3, 128], [6, 7, 128]]
    np.testing.assert_array_equal(patch[..., 0], expected)
    (away,) = cut_patches(image, boxes + 9)
    assert (away == 128).all()
