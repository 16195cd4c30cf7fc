"""Accuracy against depth, drawn."""

import numpy as np
import pytest

from zfnet_jax import viz

OURS = {"SVM": np.array([[0.2, 0.6], [0.4, 0.8]]), "softmax": np.array([[0.3, 0.7]])}
PAPER = {"SVM": np.array([[0.4, 0.7, 0.9]])}
PANELS = {"here": (["conv1", "fc2"], OURS), "paper": (["1", "2", "3"], PAPER)}


def test_curves_are_means_and_names_stand_apart():
    fig, (ours, paper) = viz.accuracy_by_layer("title", "note", PANELS, {"chance": 0.7})
    mean = ours.containers[0].lines[0]
    np.testing.assert_allclose(mean.get_ydata(), [30, 70])
    bars = ours.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose(np.array(bars)[:, :, 1], [[20, 40], [60, 80]])
    assert [label.get_text() for label in paper.get_xticklabels()] == ["1", "2", "3"]
    assert {text.get_text() for text in ours.texts} == {"SVM", "softmax", "chance"}
    # All three end at 70%.
    heights = sorted(text.xy[1] for text in ours.texts)
    assert min(np.diff(heights)) > 100 * 12 / 340
    assert max(abs(height - 70) for height in heights) < 12
    texts = {text.get_text() for text in fig.axes[0].texts}
    assert {"title", "note", "here", "paper"} <= texts


def test_names_stay_inside_the_panel():
    curves = {"one": np.ones((1, 2)), "two": np.ones((1, 2)), "three": np.ones((1, 2))}
    panels = {"here": (["conv1", "fc2"], curves)}
    _, axes = viz.accuracy_by_layer("title", "note", panels, {})
    assert max(text.xy[1] for text in axes[0].texts) == 100


@pytest.mark.parametrize(
    ("panels", "levels", "message"),
    [
        ({}, {}, "panels"),
        ({"here": (["a", "b"], {})}, {}, "here must hold 1 to 4"),
        ({"here": (["a"], OURS)}, {}, r"curves\['SVM'\]"),
        ({"here": (["a"], {"x": np.array([[1.5]])})}, {}, "from 0 to 1"),
        ({"here": (["a"], {"x": np.array([[0.5]])})}, {"chance": -1.0}, "from 0 to 1"),
        ({"here": (["a"], {"x": np.array([[np.nan]])})}, {}, "finite"),
    ],
)
def test_what_cannot_be_drawn_is_refused(panels, levels, message):
    with pytest.raises(ValueError, match=message):
        viz.accuracy_by_layer("title", "note", panels, levels)
