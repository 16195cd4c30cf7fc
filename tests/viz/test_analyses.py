"""Figures of the paper's analyses: what is drawn where, and what is refused."""

import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.container import BarContainer
from matplotlib.patches import Rectangle

from zfnet_jax import viz


def texts(figure) -> list[str]:
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def test_curves_of_an_invariance():
    curves = {"distance": np.array([[1.0, 0.0, 1.0], [3.0, 0.0, 5.0]])}
    pictures = np.zeros((1, 2, 4, 4, 3), np.uint8)
    values = np.array([-1.0, 0.0, 1.0])
    arguments = ("a title", "pixels", values, curves, 1, ["cat"], pictures, [-1.0, 1.0])
    figure, axes = viz.invariance_curves(*arguments)
    mean, own = axes[0].lines
    np.testing.assert_array_equal(mean.get_ydata(), [2, 0, 3])
    np.testing.assert_array_equal(own.get_ydata(), [1, 0, 1])
    assert axes[0].get_title(loc="left") == "distance"
    assert axes[0].get_xlabel() == "pixels"
    assert {"a title", "cat", "-1", "1"} <= set(texts(figure))
    with pytest.raises(ValueError, match="shown must be from 1"):
        viz.invariance_curves(*arguments[:4], 0, [], pictures, [0.0, 1.0])
    with pytest.raises(ValueError, match="names must be 1"):
        viz.invariance_curves(*arguments[:5], [], *arguments[6:])


def occluded(**change):
    arguments = {
        "title": "a title",
        "covered": np.zeros((8, 8, 3), np.uint8),
        "tops": np.array([0, 3, 6]),
        "lefts": np.array([0, 6]),
        "size": 2,
        "activity": np.arange(6.0).reshape(3, 2),
        "probability": np.linspace(0, 1, 6).reshape(3, 2),
        "labels": np.array([[0, 0], [2, 0], [0, 2]]),
        "class_names": ("cat", "dog", "ship"),
        "headings": ("square", "activity", "pixels", "probability", "class"),
        "projections": [("this", np.zeros((4, 4, 3), np.uint8), np.ones((4, 4, 3)))],
    }
    return viz.occlusion_panels(**{**arguments, **change})


def test_panels_of_an_occlusion():
    figure, ax = occluded()
    shown = texts(figure)
    headings = [
        f"({letter}) {name}"
        for letter, name in zip(
            "abcde",
            ("square", "activity", "pixels", "probability", "class"),
            strict=True,
        )
    ]
    assert set(headings) <= set(shown)
    # Classes by how often they come, with their share.
    assert "1  cat, 67%" in shown and "2  ship, 33%" in shown
    meshes = [x for x in ax.collections if isinstance(x, QuadMesh)]
    activity, probability, labels = (np.asarray(x.get_array()) for x in meshes)
    np.testing.assert_array_equal(activity, np.arange(6.0).reshape(3, 2))
    np.testing.assert_allclose(probability.ravel(), np.linspace(0, 1, 6))
    colours = labels.reshape(-1, 3)
    assert (colours[0] == colours[1]).all() and (colours[0] != colours[2]).any()
    # The first cell is about the centre of the first square: 1 of 8 pixels in.
    corners = np.asarray(meshes[0].get_coordinates())
    frame = ax.patches[0]
    assert isinstance(frame, Rectangle)
    centre = (corners[0, 0] + corners[1, 1])[1] / 2
    assert centre == pytest.approx(frame.get_y() + frame.get_height() / 8)


def test_many_classes_share_a_colour():
    names = [f"class {index}" for index in range(12)]
    figure, _ = occluded(
        labels=np.arange(12).reshape(3, 4),
        lefts=np.array([0, 2, 4, 6]),
        activity=np.zeros((3, 4)),
        probability=np.zeros((3, 4)),
        class_names=names,
    )
    assert "8  5 other classes, 42%" in texts(figure)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.full((3, 2), 3)}, "labels must be below 3"),
        ({"activity": np.full((3, 2), np.inf)}, "activity"),
        ({"probability": np.full((3, 2), np.nan)}, "probability"),
    ],
)
def test_panels_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        occluded(**change)


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
