"""Fig. 6: filters on one scale, and means of what is known."""

import numpy as np
import pytest
from matplotlib.container import BarContainer

from zfnet_jax.viz.first_layer import filter_banks, first_layer_numbers


def test_filters_of_a_bank_share_a_scale():
    bank = np.zeros((3, 3, 3, 9), np.float32)
    bank[..., 0], bank[..., 1] = 2.0, -1.0
    (ax,) = filter_banks("Filters", {"one": bank, "two": bank[..., :2] / 4}).axes
    shown = [float(np.asarray(x.get_array()).mean()) for x in ax.images]
    assert shown == [1, 0.25, *[0.5] * 7, 1, 0.25]
    words = [x.get_text() for x in ax.texts]
    assert "one: 9 filters, black -2, white 2" in words and "0: 0.500" in words


def test_bars_are_means_of_the_seeds_whose_share_is_known():
    series = {"a": np.array([[0.2, np.nan], [np.nan, np.nan]])}
    figure = first_layer_numbers("Numbers", [["", "n"]], {"b": (["c", "d"], series)})
    figure.draw_without_rendering()
    (bars,) = (x for x in figure.axes[1].containers if isinstance(x, BarContainer))
    low, high = (bar.get_height() for bar in bars)
    assert low == pytest.approx(0.2) and np.isnan(high)
