"""The feature maps that a layer makes of an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from zfnet_jax.viz.layout import (
    FAINT,
    color_bar,
    column,
    grid,
    picture,
    row,
    sheet,
    text,
)

_IMAGE, _MAP = 192, 64


def draw_maps(
    title: str,
    image: UInt8[np.ndarray, "h w c"],
    maps: Float[np.ndarray, "n rows columns"],
    captions: Sequence[str],
    note: str = "",
) -> Figure:
    """Draw an image beside maps on one scale.

    The scale is from 0 to the maximum or, where a map goes below 0, symmetric about it.

    Args:
        title: The layer and the network.
        image: The image as the network sees it.
        maps: The maps, at least one.
        captions: What to write above each.
        note: Origin of the image, and which maps these are.
    """
    peak = float(np.abs(maps).max())
    low = -peak if maps.min() < 0 else 0.0
    style = {
        "cmap": "PuOr_r" if low else "inferno",
        "norm": Normalize(low, peak or 1.0),
    }
    boxes = [
        column(text(caption, color=FAINT), picture(x, _MAP, **style), gap=0)
        for caption, x in zip(captions, maps, strict=True)
    ]
    side = column(picture(image, _IMAGE), color_bar(low, peak, _IMAGE, **style))
    return sheet(title, row(side, grid(boxes, width=800), gap=16), note)
