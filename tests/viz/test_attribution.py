"""Maps over images."""

import matplotlib
import numpy as np
import pytest

from zfnet_jax.viz.attribution import overlay


@pytest.mark.parametrize("channels", [1, 3])
def test_maps_cover_in_proportion_to_their_magnitude(channels):
    image = np.full((1, 4, channels), 51, np.uint8)
    covered = overlay(image, np.array([[0.0, 2.0, -9.0, 1.0]]), 2.0)[0]
    gray = np.full(3, 0.4 + 0.6 * 0.2)
    orange, purple, middle = (
        np.array(matplotlib.colormaps["PuOr_r"](x)[:3]) for x in (1.0, 0.0, 0.75)
    )
    np.testing.assert_allclose(covered[0], gray)
    np.testing.assert_allclose(covered[1], orange)
    np.testing.assert_allclose(covered[2], purple)
    np.testing.assert_allclose(covered[3], (middle + gray) / 2)
    np.testing.assert_allclose(overlay(image, np.zeros((1, 4)), 0.0)[0], [gray] * 4)
