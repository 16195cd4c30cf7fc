"""Figure 2 of the paper: the strongest activations of units, and what they saw."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Integer, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zfnet_jax.viz.projections import SCALES, Scale, display_projections
from zfnet_jax.viz.sheet import (
    FAINT,
    GAP,
    MARGIN,
    SHEET_WIDTH,
    SMALL,
    AnyArray,
    blank_sheet,
    checked,
    enlarged,
    grid_of,
    place,
    text_width,
    write,
)

_SIDE, _SEAM = 48, 2


def top_features(
    title: str,
    captions: Sequence[str],
    projections: Float[AnyArray, "u k h w 3"],
    patches: UInt8[AnyArray, "u k h w 3"],
    outside: Integer[AnyArray, "u k 4"],
    scale: Scale = "patch",
) -> tuple[Figure, Axes]:
    """Draw for each unit a square of projections beside one of the patches seen.

    Strongest first, row by row, the same places in both squares (Fig. 2 of the paper).

    Args:
        title: What the figure shows, such as the layer.
        captions: What to write above each unit.
        projections: Of each unit's strongest activations.
        patches: What of the image each one sees.
        outside: How many pixels of each patch lie above, left of, below and right of
            the image; a line marks where it ends.
        scale: See `display_projections`.

    Returns:
        The figure and its axes, which hold for each unit its projections, then its
        patches.

    Raises:
        ValueError: An argument is empty, not finite or does not fit the others, or
            there is no such scale.
    """
    pixels = checked("projections", projections, (None,) * 4 + (3,), "float")
    units, count, height, width, _ = pixels.shape
    seen = checked("patches", patches, pixels.shape, "uint8")
    beyond = checked("outside", outside, (units, count, 4), "integer")
    if len(captions) != units:
        raise ValueError(f"captions must be {units}, one a unit, got {len(captions)}")
    of = np.repeat(np.arange(units), count)
    shown, _ = display_projections(pixels.reshape(-1, height, width, 3), of, scale)
    shown = shown.reshape(pixels.shape)

    size = enlarged(height, width, _SIDE)
    across = math.ceil(math.sqrt(count))
    down = -(-count // across)
    step = size[0] + _SEAM, size[1] + _SEAM
    block = down * step[0] - _SEAM, across * step[1] - _SEAM
    line = SMALL + 4
    wide = max(2 * block[1] + GAP, *(text_width(text, SMALL) for text in captions))
    grid = grid_of(units, (line + block[0] + GAP, wide + GAP), SHEET_WIDTH)
    note = (
        f"left the {count} strongest activations projected to pixels, right what they "
        f"saw; zero is mid-grey, {SCALES[scale]}"
    )
    if beyond.any():
        note += "; beyond the line is outside the image"
    fig, ax, top = blank_sheet(title, note, grid.height, grid.width)
    factor = size[0] / height, size[1] / width
    for unit, (x, y) in enumerate(grid.corners(top, MARGIN)):
        write(ax, captions[unit], x, y, SMALL)
        for index in range(count):
            row, column = divmod(index, across)
            corner = x + column * step[1], y + line + row * step[0]
            place(ax, shown[unit, index], *corner, size)
            corner = corner[0] + block[1] + GAP, corner[1]
            place(ax, seen[unit, index], *corner, size)
            _mark(ax, corner, size, factor, beyond[unit, index].tolist())
    return fig, ax


def _mark(
    ax: Axes,
    corner: tuple[int, int],
    size: tuple[int, int],
    factor: tuple[float, float],
    outside: Sequence[int],
) -> None:
    """Draw the edges of the image that lie within a patch."""
    above, before, below, after = outside
    top, bottom = corner[1] + above * factor[0], corner[1] + size[0] - below * factor[0]
    left, right = (
        corner[0] + before * factor[1],
        corner[0] + size[1] - after * factor[1],
    )
    style = {"color": FAINT, "linewidth": 0.6, "solid_capstyle": "butt"}
    for there, y in ((above, top), (below, bottom)):
        if there:
            ax.plot([left, right], [y, y], **style)
    for there, x in ((before, left), (after, right)):
        if there:
            ax.plot([x, x], [top, bottom], **style)
