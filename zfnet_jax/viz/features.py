"""What a network holds: the maps of a layer."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from zfnet_jax.viz.sheet import (
    COLOR_BAR,
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
    place_color_bar,
    points,
    text_width,
    write,
)


def feature_maps(
    image: UInt8[AnyArray, "h w 3"],
    maps: Float[AnyArray, "rows columns c"],
    layer: str,
    max_maps: int = 64,
) -> tuple[Figure, Axes]:
    """Draw an image beside the maps that a layer makes of it.

    The first `max_maps` channels are shown, in order, on one scale: from 0 to their
    maximum or, where a map goes below 0, symmetric about it. A map that is 0 everywhere
    is crossed out.

    Args:
        image: The RGB picture that the maps come from.
        maps: The layer's maps; height and width may be 1.
        layer: The layer's name, for the title.
        max_maps: How many channels to show at most.

    Returns:
        The figure and its axes, which hold `image`, the maps, then the colour bar.

    Raises:
        ValueError: An array is empty, not finite or of another shape; `max_maps` is not
            positive.
    """
    picture = checked("image", image, (None, None, 3), "uint8")
    values = checked("maps", maps, (None, None, None), "float")
    if max_maps < 1:
        raise ValueError(f"max_maps must be positive, got {max_maps}")
    height, width, channels = values.shape
    dead = ~np.any(values, axis=(0, 1))
    shown = values[..., :max_maps]
    count = shown.shape[2]
    peak = float(np.abs(shown).max())
    low = -peak if shown.min() < 0 else 0.0
    # Maps of zeros alone have no scale; any upper limit draws them as zero.
    colors = {
        "cmap": "PuOr_r" if low < 0 else "inferno",
        "norm": Normalize(low, peak or 1.0),
    }

    number = SMALL + 4
    size = enlarged(height, width, 64)
    cell_width = max(size[1], text_width(str(channels), SMALL))
    picture_size = enlarged(picture.shape[0], picture.shape[1], 192)
    bar = max(picture_size[1], 160)
    left = MARGIN + bar + 2 * GAP
    grid = grid_of(count, (size[0] + number, cell_width), SHEET_WIDTH - left + MARGIN)
    fig, ax, top = blank_sheet(
        f"{layer}: {f'{count} of ' if count < channels else ''}{channels} "
        f"map{'s' if channels > 1 else ''} of {height} x {width}",
        f"{dead.sum()} of {channels} dead here: zero everywhere, crossed out"
        if dead.any()
        else "none dead here",
        max(grid.height, number + picture_size[0] + GAP + COLOR_BAR),
        left - MARGIN + grid.width,
    )
    y = top + number
    place(ax, picture, MARGIN, y, picture_size)
    for channel, (x, y_number) in enumerate(grid.corners(top, left)):
        write(ax, str(channel), x, y_number, SMALL, color=FAINT)
        y_map = y_number + number
        place(ax, shown[..., channel], x, y_map, size, **colors)
        if dead[channel]:
            for ends in ((y_map, y_map + size[0]), (y_map + size[0], y_map)):
                ax.plot((x, x + size[1]), ends, color=FAINT, linewidth=points(1))
    y += picture_size[0] + GAP
    place_color_bar(ax, low, peak, MARGIN, y, bar, **colors)
    return fig, ax
