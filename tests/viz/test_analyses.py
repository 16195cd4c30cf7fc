"""Figures of the paper's analyses: what is drawn where, and what is refused."""

import numpy as np
import pytest
from matplotlib.container import BarContainer

from zfnet_jax import viz


def texts(figure) -> list[str]:
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def test_a_chart_of_ablations():
    figure, axes = viz.ablation_chart(
        "a title",
        "a note",
        ["none", "less"],
        {
            "paper": {"train": np.array([[30.0], [40.0]])},
            "here": {"train": np.array([[20.0, 30.0], [50.0, 70.0]])},
        },
    )
    assert {"none", "less", "paper", "here"} <= set(texts(figure))
    marks = axes[1].containers[0][0]
    np.testing.assert_array_equal(marks.get_xdata(), [25, 60])
    # The first row is the upper one.
    first, second = marks.get_ydata()
    assert (
        axes[1].transData.transform((0, first))[1]
        > axes[1].transData.transform((0, second))[1]
    )
    with pytest.raises(ValueError, match="rows and panels"):
        viz.ablation_chart("", "", [], {})


def test_banks_of_filters_and_shares():
    bank = np.zeros((3, 3, 3, 9), np.float32)
    bank[1, 1, 0, 0] = 2.0
    figure, ax = viz.filter_banks("a title", "", {"one": bank, "two": bank[..., :2]})
    assert len(ax.images) == 11 and "± 2" in texts(figure)
    assert np.asarray(ax.images[0].get_array())[1, 1, 0] == 1.0
    with pytest.raises(ValueError, match="one at least"):
        viz.filter_banks("", "", {})

    figure, ax = viz.shares_chart(
        "a title",
        "",
        ["low", "high"],
        {
            "a": np.array([[0.2, 0.4], [0.5, 0.5]]),
            "b": np.array([[0.1, 0.1], [1.0, 1.0]]),
        },
        {"noise": [0.25, None]},
    )
    groups = [x for x in ax.containers if isinstance(x, BarContainer)]
    heights = [[bar.get_height() for bar in bars] for bars in groups]
    assert heights == [[pytest.approx(0.3), 0.5], [pytest.approx(0.1), 1.0]]
    # What is not known has no bar, and no part in a mean.
    series = {"a": np.array([[np.nan, 0.4], [np.nan, np.nan]])}
    figure, ax = viz.shares_chart("", "", ["low", "high"], series)
    figure.draw_without_rendering()
    bars = next(x for x in ax.containers if isinstance(x, BarContainer))
    low, high = (bar.get_height() for bar in bars)
    assert low == pytest.approx(0.4) and np.isnan(high)
    with pytest.raises(ValueError, match="finite"):
        viz.shares_chart("", "", ["low"], {"a": np.array([[np.inf]])})
    with pytest.raises(ValueError, match="1 to 4 series"):
        viz.shares_chart("", "", ["low"], {})
