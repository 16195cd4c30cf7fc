"""What the drawings of masked images and of their Δ hold."""

import io

import jaxtyping
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread
from matplotlib.patches import Rectangle

from zfnet_jax import viz

PARTS = ("right eye", "nose")


def pictures(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def drawn(count: int = 3, height: int = 8, width: int = 12) -> dict:
    images = pictures(count, height, width, 3)
    boxes = {part: np.tile([[1, 2, 4, 7]], (count, 1)) + 1 for part in PARTS}
    hidden = images.copy()
    hidden[:, 2:5, 3:8] = 0
    return {
        "title": "what is masked",
        "names": [f"a rather long name of dog {index}" for index in range(count)],
        "pictures": images,
        "masked": dict.fromkeys(PARTS, hidden),
        "boxes": boxes,
    }


def compared() -> dict:
    random = np.linspace(0.4, 0.6, 20)
    return {
        "title": "how alike",
        "parts": PARTS,
        "delta": {"conv5": np.array([0.3, 0.5])},
        "spread": {"conv5": np.array([0.05, 0.1])},
        "random": {"conv5": np.stack([random, random + 0.1])},
        "mixed": {"conv5": random},
        "p_values": {"conv5": (np.array([0.01, 0.5]), np.array([0.03, 0.7]))},
    }


def test_masked_images_lie_below_their_image_with_the_box_framed():
    case = drawn()
    fig, ax = viz.masked_images(**case)
    shown = [np.asarray(image.get_array()) for image in ax.images]
    assert len(shown) == 9
    np.testing.assert_array_equal(shown[1], case["pictures"][1])
    np.testing.assert_array_equal(shown[4], case["masked"]["right eye"][1])
    texts = [text.get_text() for text in ax.texts]
    assert {"as it is", *PARTS} <= set(texts)
    # The end of a name is what differs.
    assert sum(text.startswith("…") and text.endswith("dog 1") for text in texts) == 1
    # Two frames to a box, around it to the pixel of the screen.
    frames = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    assert len(frames) == 12
    left, right, _, top = ax.images[4].get_extent()
    frame = next(p for p in frames if left < p.get_x() < right and p.get_y() > top)
    scale = (right - left) / 12
    assert (frame.get_x() - left) / scale == pytest.approx(3)
    assert (frame.get_y() - top) / scale == pytest.approx(2)
    assert frame.get_width() / scale == pytest.approx(5)
    assert frame.get_height() / scale == pytest.approx(3)
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    width, height = canvas.get_width_height()
    for text in ax.texts:
        box = text.get_window_extent()
        assert 0 <= box.x0 and box.x1 <= width and 0 <= box.y0 and box.y1 <= height


def test_charts_hold_every_number(tmp_path):
    case = compared()
    fig, (ax,) = viz.correspondence_chart(**case)
    dots = [x.get_xdata()[0] for x in ax.lines if x.get_marker() == "o"]
    assert dots == [0.3, 0.5]
    bars = [list(x.get_xdata()) for x in ax.lines if x.get_marker() != "o"]
    np.testing.assert_allclose(bars, [[0.25, 0.35], [0.4, 0.6]])
    strokes = [[line[0, 0] for line in c.get_segments()] for c in ax.collections]
    np.testing.assert_allclose(strokes[0], case["random"]["conv5"][0])
    np.testing.assert_allclose(strokes[1], [0.5])
    np.testing.assert_allclose(strokes[4], case["mixed"]["conv5"])
    texts = [text.get_text() for text in ax.texts]
    assert texts == ["p random 0.01", "p mixed 0.03", "p random 0.5", "p mixed 0.7"]
    # No pictures: a file of lines too.
    files = viz.save_figure(fig, tmp_path / "chart.png")
    assert [file.suffix for file in files] == [".png", ".pdf"]
    assert imread(io.BytesIO(files[0].read_bytes())).std() > 0.01


@pytest.mark.parametrize(
    ("draw", "change", "message"),
    [
        ("masked_images", {"names": ["one"]}, "names must be 3"),
        ("masked_images", {"masked": {}}, "same parts"),
        ("masked_images", {"boxes": {"tail": np.zeros((3, 4), int)}}, "same parts"),
        ("masked_images", {"pictures": pictures(3, 8, 12)}, "pictures"),
        ("correspondence_chart", {"delta": {}}, "one at least"),
        ("correspondence_chart", {"mixed": {"fc7": np.ones(3)}}, "same layers"),
        ("correspondence_chart", {"spread": {"conv5": np.ones(3)}}, "spread"),
        ("correspondence_chart", {"mixed": {"conv5": np.full(3, np.nan)}}, "finite"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, change, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    case = drawn() if draw == "masked_images" else compared()
    with pytest.raises(ValueError, match=message):
        getattr(viz, draw)(**{**case, **change})
