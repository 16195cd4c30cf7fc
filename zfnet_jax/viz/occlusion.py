"""Figure 7 of the paper: what a square that slides over an image takes away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Integer, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from zfnet_jax.viz.sheet import (
    COLOR_BAR,
    FAINT,
    GAP,
    INK,
    LINE,
    MARGIN,
    PALETTE,
    SMALL,
    AnyArray,
    blank_sheet,
    checked,
    display,
    enlarged,
    place,
    place_color_bar,
    shortened,
    write,
)

_SIDE = 224
_NUMBER_STEP = 28


def occlusion_panels(
    title: str,
    covered: UInt8[AnyArray, "h w 3"],
    tops: Integer[AnyArray, " rows"],
    lefts: Integer[AnyArray, " cols"],
    size: int,
    activity: Float[AnyArray, "rows cols"],
    probability: Float[AnyArray, "rows cols"],
    labels: Integer[AnyArray, "rows cols"],
    class_names: Sequence[str],
    headings: tuple[str, str, str, str, str],
    projections: Sequence[
        tuple[str, UInt8[AnyArray, "H W 3"], Float[AnyArray, "H W 3"]]
    ],
) -> tuple[Figure, Axes]:
    """Draw the five panels of Fig. 7 for one image.

    Maps are drawn where the centres of the squares lie, so that they can be held
    against the image; a frame shows its outline.

    Args:
        title: What the figure shows.
        covered: The picture that the network saw, with the square at one place.
        tops: First row of each position of the square, in pixels.
        lefts: First column.
        size: Height and width of the square, in pixels.
        activity: Total activity of a map of the top layer, panel (b).
        probability: Of a class, panel (d).
        labels: The most probable class, panel (e).
        class_names: One for each class.
        headings: Above the panels (a) to (e).
        projections: For panel (c), of this image and others: a caption, the patch of
            the image, the projection.

    Returns:
        The figure and its axes.

    Raises:
        ValueError: An argument is empty, not finite or does not fit the others.
    """
    picture = checked("covered", covered, (None, None, 3), "uint8")
    rows = checked("tops", tops, (None,), "integer")
    columns = checked("lefts", lefts, (None,), "integer")
    shape = len(rows), len(columns)
    strength = checked("activity", activity, shape, "float")
    chances = checked("probability", probability, shape, "float")
    classes = checked("labels", labels, shape, "integer")
    if not (0 <= classes.min() and classes.max() < len(class_names)):
        raise ValueError(f"labels must be below {len(class_names)}, the class names")

    height, width = picture.shape[:2]
    panel = enlarged(height, width, _SIDE)
    zoom = panel[0] / height
    across = panel[1] + 3 * GAP
    below = GAP + COLOR_BAR + 6
    # The most frequent classes have colours of their own.
    kinds, counts = np.unique(classes, return_counts=True)
    kinds = kinds[np.argsort(-counts, kind="stable")]
    named, rest = kinds[: len(PALETTE) - 1], kinds[len(PALETTE) - 1 :]
    legend = (len(named) + (len(rest) > 0)) * (SMALL + 6)
    small = (panel[0] - GAP) // 2
    strip = 4 * (SMALL + 6) + 2 * small
    top_row = SMALL + 8 + panel[0] + below
    fig, ax, top = blank_sheet(
        title,
        f"square of {size} x {size} pixels; a cell of a map stands where the centre of "
        "the square is, and the frame is the image's border",
        top_row + max(SMALL + 8 + panel[0] + max(below, legend + GAP), strip),
        3 * across,
    )

    def heading(text: str, x: int, y: int) -> None:
        write(ax, shortened(text, across - GAP, SMALL), x, y, SMALL)

    def cells(values: np.ndarray, x: int, y: int, **colors: Any) -> None:
        ax.add_patch(
            Rectangle((x, y), panel[1], panel[0], fill=False, edgecolor=LINE, lw=0.8)
        )
        edges = [
            _edges(first + size / 2, extent)
            for first, extent in ((rows, height), (columns, width))
        ]
        ax.pcolormesh(x + zoom * edges[1], y + zoom * edges[0], values, **colors)

    left, y = MARGIN, top + SMALL + 8
    heading(f"(a) {headings[0]}", left, top)
    place(ax, picture, left, y, panel)

    for number, (text, values, end) in enumerate(
        (
            (f"(b) {headings[1]}", strength, max(float(strength.max()), 1e-30)),
            (f"(d) {headings[3]}", chances, 1.0),
        ),
        1,
    ):
        x = left + number * across
        colors = {"cmap": "viridis", "norm": Normalize(0, end)}
        heading(text, x, top)
        cells(values, x, y, **colors)
        bar = y + panel[0] + GAP
        place_color_bar(ax, 0.0, end, x, bar, panel[1], **colors)

    second = top + top_row
    heading(f"(c) {headings[2]}", left, second)
    x, step = left, small + 2 * GAP
    for caption, patch, projection in projections:
        write(ax, shortened(caption, step - 4, SMALL), x, second + SMALL + 6, SMALL)
        row = second + 2 * (SMALL + 6)
        drawn = checked(caption, projection, (None, None, 3), "float")
        place(ax, checked(caption, patch, drawn.shape, "uint8"), x, row, (small, small))
        shown, scale = display(drawn)
        place(ax, shown, x, row + small + GAP, (small, small))
        note = f"± {scale:.3g}" if scale else "all 0"
        write(ax, note, x, row + 2 * small + GAP + 4, SMALL, color=FAINT)
        x += step

    x, y = left + 2 * across, second + SMALL + 8
    heading(f"(e) {headings[4]}", x, second)
    index = np.full(classes.shape, len(named))
    for number, kind in enumerate(named):
        index[classes == kind] = number
    palette = np.array(
        [[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in PALETTE]
    )
    cells(palette[index], x, y)
    spacing = [max(round(_NUMBER_STEP / (panel[k] / shape[k])), 1) for k in (0, 1)]
    for i in range(spacing[0] // 2, shape[0], spacing[0]):
        for j in range(spacing[1] // 2, shape[1], spacing[1]):
            write(
                ax,
                str(index[i, j] + 1),
                x + zoom * (columns[j] + size / 2),
                y + zoom * (rows[i] + size / 2) - SMALL / 2,
                SMALL,
                color="white" if palette[index[i, j]].mean() < 0.55 else INK,
                ha="center",
            )
    y += panel[0] + GAP
    entries = [class_names[kind] for kind in named]
    if len(rest):
        entries.append(f"{len(rest)} other classes")
    for number, name in enumerate(entries):
        ax.add_patch(Rectangle((x, y), SMALL, SMALL, facecolor=PALETTE[number]))
        share = (index == number).mean()
        write(ax, f"{number + 1}  {name}, {share:.0%}", x + SMALL + 6, y, SMALL)
        y += SMALL + 6
    return fig, ax


def _edges(centres: np.ndarray, extent: int) -> np.ndarray:
    """Borders of cells around centres; of a single one those of the image."""
    if len(centres) == 1:
        return np.array([0.0, extent])
    middles = (centres[1:] + centres[:-1]) / 2
    first, last = centres[0] - middles[0], centres[-1] - middles[-1]
    return np.array([centres[0] + first, *middles, centres[-1] + last])
