"""Figures of the paper's analyses: what is drawn where, and what is refused."""

import numpy as np
import pytest
from matplotlib.collections import QuadMesh
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
