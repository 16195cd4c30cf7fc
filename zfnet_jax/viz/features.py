"""What a network holds: the maps of a layer, the filters of the first."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zfnet_jax.viz.sheet import (
    FAINT,
    MARGIN,
    SHEET_WIDTH,
    SMALL,
    AnyArray,
    blank_sheet,
    checked,
    display,
    enlarged,
    grid_of,
    place,
    text_width,
    write,
)


def first_layer_filters(
    kernels: Float[AnyArray, "kh kw 3 n"],
) -> tuple[Figure, Axes]:
    """Draw the filters that see the pixels, in order, as colours on one scale.

    Below each stand its number and its RMS, which the paper's training keeps from
    passing 1e-1 because single filters come to dominate (section 3 and Fig. 6a).

    Args:
        kernels: RGB filters in HWIO order.

    Returns:
        The figure and its axes, which hold the filters in order, as `display` gives
        them.

    Raises:
        ValueError: `kernels` is empty, not finite or has another shape.
    """
    values = checked("kernels", kernels, (None, None, 3, None), "float")
    height, width, _, count = values.shape
    colors, scale = display(values)
    size = enlarged(height, width, 64)
    captions = [f"{rms:#.2g}" for rms in np.sqrt(np.square(values).mean((0, 1, 2)))]
    cell_width = max(
        size[1], *(text_width(f"{count}  {text}", SMALL) for text in captions)
    )
    grid = grid_of(count, (size[0] + SMALL + 6, cell_width), SHEET_WIDTH)
    fig, ax, top = blank_sheet(
        f"{count} filter{'s' if count > 1 else ''} of {height} x {width} x 3",
        (f"black is {-scale:.3g}, mid-grey 0, white {scale:.3g}" if scale else "all 0")
        + "; below each filter its number and RMS",
        grid.height,
        grid.width,
    )
    for index, (x, y) in enumerate(grid.corners(top, MARGIN)):
        place(ax, colors[..., index], x, y, size)
        y += size[0] + 4
        write(ax, str(index), x, y, SMALL, color=FAINT)
        write(ax, captions[index], x + cell_width, y, SMALL, ha="right")
    return fig, ax
