"""Fig. 7 of the paper: responses of a network as a square slides over an image."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Integer, UInt8
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure

from zfnet_jax.results import spell
from zfnet_jax.viz.contrast import Contrast, display_projections
from zfnet_jax.viz.layout import (
    FAINT,
    GAP,
    PALETTE,
    SMALL,
    Box,
    color_bar,
    column,
    picture,
    row,
    sheet,
    shorten,
    space,
    table,
    text,
)

# Sides of a panel, and of the pictures in panel (c).
_SIDE, _SMALL_SIDE = 288, 136
_GAP = 24


def occlusion_panels(
    title: str,
    covered: UInt8[np.ndarray, "h w c"],
    boxes: Integer[np.ndarray, "rows cols 4"],
    activity: Float[np.ndarray, "rows cols"],
    probability: Float[np.ndarray, "rows cols"],
    labels: Integer[np.ndarray, "rows cols"],
    class_names: Sequence[str],
    headings: tuple[str, str, str, str, str],
    uncovered: Float[np.ndarray, " 2"],
    names: Sequence[str],
    pictures: UInt8[np.ndarray, "n h w c"],
    projections: Float[np.ndarray, "n h w c"],
    contrast: Contrast = "99.5",
) -> Figure:
    """Draw the five panels of Fig. 7 for one image.

    By position of the square, one of `boxes`: (b) `activity` of a feature map, (d)
    `probability` of a class, (e) the most probable of `class_names`. Panel (c) has the
    pictures and the projections of the images of these names, (a) the covered image.
    Below (b) and (d) are their values in the `uncovered` image.
    """
    image = picture(covered, _SIDE)
    a, b, c, d, e = (
        text(shorten(f"({letter}) {heading}", _SIDE - GAP))
        for letter, heading in zip("abcde", headings, strict=True)
    )
    maps, bars = [], []
    for values, high in ((activity, max(activity.max(), 1e-30)), (probability, 1.0)):
        style = {"cmap": "viridis", "norm": Normalize(0, high)}
        maps.append(_frame(spread_cells(values, boxes, covered.shape[:2]), **style))
        bars.append(color_bar(0.0, float(high), image.width, **style))
    notes = (text(f"uncovered {spell(x)}", color=FAINT) for x in uncovered)
    lines = [a, b, d], [image, *maps], [space(), *bars], [space(), *notes]
    upper = table(lines, gap=GAP)
    strip = _draw_projections(names, pictures, projections, contrast)
    classes = _draw_classes(labels, class_names, boxes, covered.shape[:2])
    height, width = boxes[0, 0, 2:] - boxes[0, 0, :2]
    return sheet(
        title,
        column(upper, row(column(c, strip), column(e, classes), gap=_GAP), gap=_GAP),
        f"The square has {height} x {width} pixels. A cell of a map lies where the "
        "center of the square is; the frame is the border of the image.",
    )


def spread_cells(
    values: Float[np.ndarray, "rows cols *c"],
    boxes: Integer[np.ndarray, "rows cols 4"],
    image_hw: tuple[int, int],
) -> Float[np.ndarray, "h w *c"]:
    """Give each pixel of an image the value of the box with the nearest center.

    Pixels farther outside the first and the last center than half a step are NaN, and
    show as white.
    """
    places = []
    for axis, extent in enumerate(image_hw):
        line = boxes[:, 0] if axis == 0 else boxes[0]
        centers = line[:, [axis, axis + 2]].mean(1)
        pixels = np.arange(extent) + 0.5
        nearest = np.abs(np.subtract.outer(pixels, centers)).argmin(1)
        steps = np.diff(centers) if len(centers) > 1 else np.array([2.0 * extent])
        first, last = centers[0] - steps[0] / 2, centers[-1] + steps[-1] / 2
        places.append(np.where((pixels < first) | (pixels > last), -1, nearest))
    # A row and a column of NaN at the end, where -1 points.
    padding = [(0, 1), (0, 1)] + [(0, 0)] * (values.ndim - 2)
    padded = np.pad(values.astype(float), padding, constant_values=np.nan)
    return padded[np.ix_(*places)]


def _frame(cells: np.ndarray, **style: Any) -> Box:
    return picture(cells, _SIDE, [(0, 0, *cells.shape[:2])], **style)


def _draw_projections(
    names: Sequence[str],
    pictures: np.ndarray,
    projections: np.ndarray,
    contrast: Contrast,
) -> Box:
    """Draw images above their projections, as wide as two panels."""
    shown, scales = display_projections(
        projections, np.arange(len(names)), contrast=contrast
    )
    columns = [
        column(
            text(shorten(name, _SMALL_SIDE)),
            picture(image, _SMALL_SIDE),
            picture(projection, _SMALL_SIDE),
            text(f"zero ± {spell(scale)}" if scale else "all zero", color=FAINT),
            gap=4,
        )
        for name, image, projection, scale in zip(
            names, pictures, shown, scales, strict=True
        )
    ]
    strip = row(*columns, gap=GAP)
    width = max(2 * (_SIDE + GAP) - _GAP, strip.width)
    return dataclasses.replace(strip, width=width)


def _draw_classes(
    labels: np.ndarray,
    class_names: Sequence[str],
    boxes: np.ndarray,
    image_hw: tuple[int, int],
) -> Box:
    """Draw the map of classes; the most frequent ones have colors of their own."""
    order = np.argsort(-np.bincount(labels.ravel()), kind="stable")
    ranks = np.argsort(order)[labels].clip(max=len(PALETTE) - 1)
    names = [class_names[index] for index in order[: len(PALETTE) - 1]]
    if rest := len(order) - len(names):
        names.append(f"{rest} other class{'es' if rest > 1 else ''}")
    colors = np.array([to_rgb(color) for color in PALETTE])
    cells = np.nan_to_num(spread_cells(colors[ranks], boxes, image_hw), nan=1.0)
    entries = [
        row(
            picture(np.array(to_rgb(color))[None, None], SMALL),
            text(f"{name}, {(ranks == rank).mean():.0%}"),
        )
        for rank, (name, color) in enumerate(zip(names, PALETTE, strict=False))
    ]
    return column(_frame(cells), *entries, gap=4)
