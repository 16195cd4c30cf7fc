"""The feature maps that a layer makes of an image."""

from __future__ import annotations

from typing import Any

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
    maps: Float[np.ndarray, "rows columns units"],
    count: int = 64,
    note: str = "",
) -> Figure:
    """Draw an image beside the strongest maps of a layer, on one scale.

    The scale is from 0 to the maximum or, where a map goes below 0, symmetric about it.
    Maps that are zero everywhere are left out, and counted.
    """
    height, width, units = maps.shape
    peaks = np.abs(maps).max((0, 1))
    order = np.argsort(-peaks, kind="stable")[: min(count, (peaks > 0).sum())]
    peak = float(peaks.max())
    low = -peak if maps.min() < 0 else 0.0
    style: dict[str, Any] = {
        "cmap": "PuOr_r" if low else "inferno",
        "norm": Normalize(low, peak or 1.0),
    }
    boxes = [
        column(
            text(f"unit {unit}", color=FAINT),
            picture(maps[..., unit], _MAP, **style),
            gap=0,
        )
        for unit in order
    ]
    side = column(picture(image, _IMAGE), color_bar(low, peak, _IMAGE, **style))
    return sheet(
        title,
        row(side, grid(boxes, width=800), gap=16),
        f"{note} {len(order)} of {units:,} maps of {height} x {width}, strongest "
        f"first; {(peaks == 0).sum() or 'none'} are zero everywhere.",
    )
