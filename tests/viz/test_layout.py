"""Boxes in boxes: what is drawn, where, and under whose settings."""

import io
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import FillBetweenPolyCollection, LineCollection
from PIL import Image

from zfnet_jax.viz.ablation import ablation_chart
from zfnet_jax.viz.charts import line_chart
from zfnet_jax.viz.layout import (
    DPI,
    GAP,
    MARGIN,
    Box,
    column,
    figure_bytes,
    grid,
    picture,
    row,
    sheet,
    shorten,
    space,
    table,
    text,
    text_width,
)


def places(body: Box, count: int) -> list[tuple[float, float]]:
    """Upper left corners of the images of a body, from its own corner."""
    (ax,) = sheet("title", body).axes
    extents = [image.get_extent() for image in ax.images]
    assert len(extents) == count
    left, top = extents[0][0], extents[0][3]
    return [(x - left, y - top) for x, _, _, y in extents]


def test_boxes_lie_side_by_side_and_under_each_other():
    square, tall = (picture(np.zeros((h, 4, 3)), h * 3) for h in (4, 8))
    assert (square.width, square.height, tall.height) == (12, 12, 24)
    side = row(square, tall, gap=5)
    assert (side.width, side.height) == (12 + 5 + 12, 24)
    assert places(side, 2) == [(0, 0), (17, 0)]
    below = column(square, space(height=3), side, gap=1)
    assert (below.width, below.height) == (29, 12 + 1 + 3 + 1 + 24)
    assert places(below, 3) == [(0, 0), (0, 17), (17, 17)]
    aligned = table([[square, square], [space(width=20), square]], gap=0)
    assert places(aligned, 3) == [(0, 0), (20, 0), (20, 12)]


def test_a_grid_fills_its_width_without_a_widow():
    boxes = [picture(np.zeros((2, 2, 3)), 100)] * 9
    assert grid(boxes, width=4 * 100 + 3 * GAP).width == 3 * 100 + 2 * GAP
    assert grid(boxes, 2, gap=0).height == 500


def test_a_pixel_is_a_square_of_whole_screen_pixels():
    for side, shape, size in (
        (96, (7, 5, 3), (91, 65)),
        (100, (200, 400, 3), (50, 100)),
    ):
        box = picture(np.zeros(shape), side)
        assert (box.height, box.width) == size
    one = picture(np.full((2, 2, 1), 0.25), 8)
    (ax,) = sheet("", one).axes
    np.testing.assert_array_equal(ax.images[0].get_array(), np.full((2, 2, 3), 0.25))


def test_a_frame_is_clipped_to_the_image():
    box = picture(np.zeros((4, 4, 3)), 40, frames=[(-2, 1, 3, 9)])
    (ax,) = sheet("", box).axes
    x, y = (np.asarray(axis) for axis in ax.lines[-1].get_data())
    left, _, _, top = ax.images[0].get_extent()
    assert (x.min() - left, x.max() - left) == (10, 40)
    assert (y.min() - top, y.max() - top) == (0, 30)


@pytest.mark.filterwarnings("error")
def test_names_are_shown_as_text_whatever_they_hold():
    words = "$x^{ \x1b[31mred\u202e \n漢"
    figure = sheet(words, column(text(words), text(shorten(words * 9, 60))))
    figure_bytes(figure, "png")
    chart = line_chart([0, 1], {"a": np.zeros(2)}, x_ticks={0: words, 1: "$_$"})
    figure_bytes(sheet("title", chart), "png")
    title, line, short = (x.get_text() for x in figure.axes[0].texts)
    assert title == line == "$x^{ \ufffd[31mred\ufffd \ufffd\ufffd"
    assert text_width(short) <= 60 and short.endswith("…")


def test_the_users_settings_do_not_matter():
    body = column(text("words"), line_chart([0, 1], {"a": np.array([0.0, 1.0])}))
    expected = figure_bytes(sheet("title", body, "note"), "png")
    settings: Any = {"text.usetex": True, "font.size": 40, "axes.facecolor": "red"}
    with matplotlib.rc_context(settings):
        assert figure_bytes(sheet("title", body, "note"), "png") == expected


@pytest.mark.parametrize("dpi", [32, 80, 128, 256])
def test_lines_end_at_the_margin_at_any_resolution(dpi):
    note = "till all villi fill illegally little bits of filling " * 9
    data = figure_bytes(sheet("title", space(500), note), "png", dpi)
    image = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
    columns = np.nonzero((image < 255).any(0))[0]
    across = image.shape[1] - MARGIN * dpi / DPI
    assert across - 60 * dpi / DPI < columns.max() <= across + 1


def test_a_file_names_no_date_and_no_version():
    figure = sheet("title", text("words"))
    for kind in ("png", "pdf"):
        data = figure_bytes(figure, kind)
        assert data == figure_bytes(figure, kind)
        assert b"Matplotlib" not in data and b"CreationDate" not in data


def test_curves_have_the_mean_and_the_spread_of_their_repeats():
    x, runs = [0, 1, 2], np.array([[0.0, 1.0, 2.0], [2.0, 3.0, 4.0]])
    bands = {"b": np.array([1.0, 1.0, 9.0])}
    chart = line_chart(
        x,
        {"a": runs, "b": runs[0]},
        bands=bands,
        mean=runs,
        y_limits=(0, 3),
    )
    _, ax = sheet("title", chart).axes
    lines = [tuple(np.asarray(line.get_ydata())) for line in ax.lines]
    assert lines[0] == (1, 2, 3) and lines.count((1, 2, 3)) == 2 and (0, 1, 2) in lines
    # Bands stay between the limits.
    bands = [x for x in ax.collections if isinstance(x, FillBetweenPolyCollection)]
    heights = np.concatenate(
        [np.asarray(x.get_paths()[0].vertices)[:, 1] for x in bands]
    )
    assert len(bands) == 2 and heights.min() == 0 and heights.max() == 3


def test_variants_have_their_mean_spread_and_reference():
    errors = {"train": np.array([[29.0, 31.0], [38.0, 42.0]])}
    paper = {"train": np.array([31.0, 41.0])}
    page, ax = ablation_chart("title", ["none", "less"], errors, paper).axes
    points = {tuple(np.asarray(line.get_xdata())) for line in ax.lines}
    assert (30, 40) in points and (31, 41) in points
    (bars,) = (x for x in ax.collections if isinstance(x, LineCollection))
    ends = [segment[:, 0].tolist() for segment in bars.get_segments()]
    expected = [[30 - 2**0.5, 30 + 2**0.5], [40 - 8**0.5, 40 + 8**0.5]]
    np.testing.assert_allclose(ends, expected)
    assert {"none", "less", "train"} <= {x.get_text() for x in page.texts}
    first, second = (ax.transData.transform((0, y))[1] for y in (0, 1))
    assert first > second, "the first row is the upper one"
