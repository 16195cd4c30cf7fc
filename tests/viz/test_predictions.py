"""Pictures beside bars of probabilities."""

from typing import Any

import jaxtyping
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Rectangle

from zfnet_jax import viz

NAMES = ["airplane", "cat", "dog", "Staffordshire bullterrier, Staffordshire bull dog"]


def arguments(**changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    given = {
        "title": "3 photographs",
        "note": "all of them",
        "images": rng.integers(0, 256, (3, 16, 24, 3), np.uint8),
        "captions": ["a.jpg", "b.jpg", "c.jpg"],
        "classes": np.array([[1, 0], [2, 3], [3, 1]]),
        "probabilities": np.array([[1.0, 0.0], [0.5, 0.25], [0.7, 0.2]], np.float32),
        "class_names": NAMES,
    }
    return given | changes


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def bars(ax) -> list[float]:
    """The length of each bar as a share of the ground below it, in order."""
    found = [patch.get_width() for patch in ax.patches if isinstance(patch, Rectangle)]
    return [bar / ground for ground, bar in zip(found[::2], found[1::2], strict=True)]


def test_bars_are_the_probabilities_beside_the_pictures():
    given = arguments()
    _, ax = viz.top_classes(**given)
    np.testing.assert_allclose(bars(ax), given["probabilities"].ravel(), atol=1e-6)
    for picture, image in zip(ax.images, given["images"], strict=True):
        np.testing.assert_array_equal(picture.get_array(), image)
    assert {"100.0%", "0.0%", "50.0%", "25.0%", "70.0%", "20.0%"} <= {*texts(ax)}
    assert {"a.jpg", "b.jpg", "c.jpg", "airplane", "cat", "dog"} <= {*texts(ax)}
    assert "✓" not in texts(ax) and len(bars(ax)) == 6


def test_the_true_class_is_told_without_colour():
    # Its second, its first, none of its classes.
    _, ax = viz.top_classes(**arguments(labels=np.array([0, 2, 0])))
    assert texts(ax).count("✓") == 2
    assert texts(ax).count("true: airplane") == 2 and "true: dog" in texts(ax)
    bold = [text.get_text() for text in ax.texts if text.get_fontweight() == "bold"]
    assert bold == ["✓", "airplane", "0.0%", "✓", "dog", "50.0%"]


@pytest.mark.parametrize("labels", [None, np.array([0, 2, 3])])
def test_nothing_overlaps_or_leaves_the_sheet(labels):
    fig, ax = viz.top_classes(**arguments(labels=labels, captions=["long " * 99] * 3))
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    width, height = canvas.get_width_height()
    things = [*ax.texts, *ax.images, *ax.patches[::2]]
    boxes = [thing.get_window_extent() for thing in things]
    for index, one in enumerate(boxes):
        assert 0 <= one.x0 and one.x1 <= width and 0 <= one.y0 and one.y1 <= height
        for other, two in enumerate(boxes[:index]):
            apart = max(one.x0 - two.x1, two.x0 - one.x1, one.y0 - two.y1)
            apart = max(apart, two.y0 - one.y1)
            # The boxes of lines of text hold room for signs that are not there.
            assert apart > -4, (things[index], things[other])


def test_signs_that_the_font_lacks_are_marked():
    fig, ax = viz.top_classes(**arguments(captions=["写真.jpg", "a\nb", "\udcff"]))
    FigureCanvasAgg(fig).draw()
    mark = "\N{REPLACEMENT CHARACTER}"
    assert {f"{mark * 2}.jpg", f"a{mark}b", mark} <= {*texts(ax)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"captions": ["a.jpg"]}, "captions must be 3, one an image, got 1"),
        ({"classes": np.array([[1, 0]] * 2)}, "classes must be a non-empty integer"),
        (
            {"classes": np.array([[1, 4]] * 3)},
            "index the 4 class_names, .* from 1 to 4",
        ),
        ({"labels": np.array([0, 1, -1])}, "labels must index the 4 class_names"),
        ({"probabilities": np.full((3, 2), 1.1)}, "must lie in 0 to 1"),
        ({"probabilities": np.full((3, 2), np.nan)}, "not finite"),
        ({"probabilities": np.full((3, 1), 0.5)}, "probabilities must be"),
    ],
)
def test_what_does_not_fit_is_named(changes, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        viz.top_classes(**arguments(**changes))
