"""Fig. 8 and Table 1 of the paper: masked parts, and how alike features change."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Integer, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zfnet_jax.viz.layout import (
    FAINT,
    GAP,
    INK,
    SMALL,
    Box,
    column,
    picture,
    plot,
    points,
    row,
    sheet,
    shorten,
    space,
    table,
    text,
    text_width,
)

_SIDE = 96
# Height of a part's row and width of a layer's plot.
_ROW, _PLOT = 44, 360
_MIXED = "mixed parts"


def masked_images(
    title: str,
    names: Sequence[str],
    pictures: UInt8[np.ndarray, "n h w c"],
    masked: Mapping[str, UInt8[np.ndarray, "n h w c"]],
    boxes: Mapping[str, Integer[np.ndarray, "n 4"]],
) -> Figure:
    """Draw images, and below each the same image with one part after another masked."""
    # Names of files differ at their ends.
    heading = [text(shorten(x[::-1], _SIDE)[::-1], color=FAINT) for x in names]
    rows = [
        [space(), *heading],
        [text("unmasked"), *(picture(image, _SIDE) for image in pictures)],
    ]
    for part, images in masked.items():
        pairs = zip(images, boxes[part].tolist(), strict=True)
        cells = [picture(image, _SIDE, [box]) for image, box in pairs]
        rows.append([text(part), *cells])
    return sheet(title, table(rows), "A frame surrounds what is masked.")


def correspondence_chart(
    title: str, parts: Sequence[str], layers: Mapping[str, tuple[np.ndarray, ...]]
) -> Figure:
    """Draw each part's Δ above those of random boxes, and mixed parts, for each layer.

    By layer: Δ [p] of each part and its standard deviation [p] over pairs of images; Δ
    of draws of random boxes [p, r] and of mixed parts [r]; p-values [p] against random
    boxes and against mixed parts.
    """
    height = len(parts) * _ROW + _ROW // 2
    labels = [Box(text_width(name), _ROW, text(name).draw) for name in (*parts, _MIXED)]
    charts = []
    for layer, arrays in layers.items():
        draw = functools.partial(_draw_layer, height, *arrays)
        body = plot(_PLOT, height + 36 + GAP, draw, left=0)
        charts.append(column(text(layer), body, gap=0))
    names = column(space(height=SMALL + 10 + GAP), *labels, gap=0)
    return sheet(
        title,
        row(names, *charts, gap=2 * GAP),
        "Dot and bar: the part, and one standard deviation over pairs of images. "
        "Strokes: draws of random boxes of its size, or of mixed parts, one or another "
        "in each image; the long stroke is their mean. p: chance of a Δ as low as the "
        "part's among these draws.",
    )


def _draw_layer(
    height: int,
    delta: np.ndarray,
    spread: np.ndarray,
    random: np.ndarray,
    mixed: np.ndarray,
    p_random: np.ndarray,
    p_mixed: np.ndarray,
    ax: Axes,
) -> None:
    for index, (middle, half, draws) in enumerate(
        zip(delta, spread, random, strict=True)
    ):
        above, below = index * _ROW + 14, index * _ROW + 30
        style = {"fmt": "o", "color": INK, "markersize": 4, "elinewidth": 1.2}
        ax.errorbar(middle, above, xerr=half, **style)
        _draw_strokes(ax, draws, below)
        for y, words in (
            (above, f"p random {p_random[index]:.2g}"),
            (below, f"p mixed {p_mixed[index]:.2g}"),
        ):
            ax.annotate(
                words,
                (1, y),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="center",
                color=FAINT,
                fontsize=points(SMALL),
            )
    _draw_strokes(ax, mixed, len(delta) * _ROW + 12)
    known = np.nan_to_num(spread)  # a single pair has none
    ends = np.concatenate([delta - known, delta + known, mixed, random.ravel()])
    # Room for the p-values at the right; no width at all if nothing differs.
    extent = float(np.ptp(ends)) or 0.1
    ax.set_xlim(ends.min() - 0.05 * extent, ends.max() + 0.5 * extent)
    ax.set_ylim(height, 0)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("Δ (lower is more alike)", color=FAINT, fontsize=points(SMALL))


def _draw_strokes(ax: Axes, values: np.ndarray, y: int) -> None:
    ax.vlines(values, y - 4, y + 4, color="#9A9A9A", linewidth=0.4)
    ax.vlines(values.mean(), y - 8, y + 8, color="#606060", linewidth=1.4)
