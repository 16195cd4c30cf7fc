"""Figure 5 of the paper: features and probability as an image is transformed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure

from zfnet_jax.viz.sheet import (
    FAINT,
    GAP,
    INK,
    MARGIN,
    PALETTE,
    SMALL,
    AnyArray,
    blank_sheet,
    chart,
    checked,
    enlarged,
    place,
    points,
    shortened,
    write,
)

_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))


def invariance_curves(
    title: str,
    unit: str,
    values: Float[AnyArray, " v"],
    curves: Mapping[str, Float[AnyArray, "n v"]],
    shown: int,
    names: Sequence[str],
    pictures: UInt8[AnyArray, "shown steps h w 3"],
    steps: Sequence[float],
) -> tuple[Figure, np.ndarray]:
    """Draw some images being transformed, and what that does to each quantity.

    Args:
        title: What the figure shows, such as the transformation.
        unit: What `values` are, such as degrees.
        values: Degrees of the transformation.
        curves: By the quantity's name, its value for each image and degree. All images
            make the mean and its band of one standard deviation; the first few have
            lines of their own.
        shown: How many have.
        names: What these are called.
        pictures: Each of these at some degrees.
        steps: Which degrees these are.

    Returns:
        The figure and the axes of the curves.

    Raises:
        ValueError: An argument is empty, not finite or does not fit the others.
    """
    x = checked("values", values, (None,), "float")
    if not curves:
        raise ValueError("curves must hold one quantity at least")
    lines = {
        name: checked(f"curves[{name!r}]", y, (None, len(x)), "float")
        for name, y in curves.items()
    }
    if not 0 < shown <= min(map(len, lines.values())) or shown > len(_DASHES):
        raise ValueError(f"shown must be from 1 to {len(_DASHES)} images, not {shown}")
    if len(names) != shown:
        raise ValueError(f"names must be {shown}, got {len(names)}")
    seen = checked("pictures", pictures, (shown, len(steps), None, None, 3), "uint8")

    size = enlarged(seen.shape[2], seen.shape[3], 64)
    label, plot = 110, (270, 210)
    rows_height = shown * (size[0] + GAP) + SMALL + GAP
    across = max(label + len(steps) * (size[1] + GAP), len(lines) * (plot[0] + 44))
    count = len(next(iter(lines.values())))
    fig, sheet, top = blank_sheet(
        title,
        f"lines: the images above; grey: mean of {count:,} images and one standard "
        "deviation",
        rows_height + plot[1] + 64,
        across,
    )
    for column, step in enumerate(steps):
        left = MARGIN + label + column * (size[1] + GAP)
        write(sheet, f"{step:g}", left, top, SMALL, color=FAINT)
        for row in range(shown):
            y = top + SMALL + GAP + row * (size[0] + GAP)
            place(sheet, seen[row, column], left, y, size)
    for row, name in enumerate(names):
        y = top + SMALL + GAP + row * (size[0] + GAP)
        write(sheet, shortened(name, label - GAP, SMALL), MARGIN, y, SMALL)
        middle = y + SMALL + 10
        style = {"color": PALETTE[row], "linestyle": _DASHES[row], "linewidth": 1.4}
        sheet.plot([MARGIN, MARGIN + 60], [middle, middle], **style)
    axes = []
    for column, (name, y) in enumerate(lines.items()):
        left = MARGIN + 44 + column * (plot[0] + 44)
        ax = chart(sheet, left, top + rows_height + 16, plot[0] - 10, plot[1])
        mean, spread = y.mean(0), y.std(0)
        ax.fill_between(x, mean - spread, mean + spread, color="#DDDDDD", linewidth=0)
        ax.plot(x, mean, color="#777777", linewidth=2.2)
        for row in range(shown):
            ax.plot(
                x, y[row], color=PALETTE[row], linestyle=_DASHES[row], linewidth=1.1
            )
        ax.set_title(name, loc="left", color=INK, fontsize=points(SMALL))
        ax.set_xlabel(unit, color=FAINT, fontsize=points(SMALL))
        ax.set_ylim(bottom=0)
        ax.margins(x=0)
        axes.append(ax)
    return fig, np.array(axes)
