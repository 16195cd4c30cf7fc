"""Attribution maps beside the images they belong to, and over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from zfnet_jax.viz.contrast import Contrast, display_projections, measure_scale
from zfnet_jax.viz.layout import (
    FAINT,
    color_bar,
    column,
    picture,
    row,
    sheet,
    space,
    table,
    text,
)

_SIDE = 160
_COLORS = "PuOr_r"


def attribution_maps(
    title: str,
    pictures: UInt8[np.ndarray, "n h w c"],
    captions: Sequence[str],
    maps: Mapping[str, Float[np.ndarray, "n h w c"]],
    contrast: Contrast = "99.5",
) -> Figure:
    """Draw images, each beside its signed maps and these over the image.

    `contrast` is the percentile of the magnitudes shown as black, white or full color.
    """
    numbers = np.arange(len(pictures))
    rows = [[space()]]
    for method in maps:
        rows[0] += [text(method.replace("_", " ")), text("over the image", color=FAINT)]
    rows += [
        [column(picture(image, _SIDE), text(caption), gap=2)]
        for image, caption in zip(pictures, captions, strict=True)
    ]
    for signed in maps.values():
        shown, _ = display_projections(signed, numbers, contrast=contrast)
        for cells, image, pixels, values in zip(
            rows[1:], pictures, shown, signed.sum(-1), strict=True
        ):
            over = overlay(image, values, measure_scale(values, contrast))
            cells += [picture(pixels, _SIDE), picture(over, _SIDE)]
    extent = "greatest magnitude" if contrast == "max" else f"{contrast}th percentile"
    bar = color_bar(-1.0, 1.0, cmap=_COLORS, norm=Normalize(-1, 1))
    return sheet(
        title,
        column(table(rows), row(bar, text(f"share of the {extent}", color=FAINT))),
        "Maps: zero is mid-gray. Over the image: the sum of the channels, orange above "
        f"zero and purple below. Black, white and full color are the {extent} of each "
        "map.",
    )


def overlay(
    image: UInt8[np.ndarray, "h w c"], values: Float[np.ndarray, "h w"], scale: float
) -> Float[np.ndarray, "h w 3"]:
    """Cover a gray or RGB image, made gray, with a signed map.

    A magnitude of `scale` covers the image completely; a scale of 0 leaves it as it is.
    """
    # Rec. 601's luma, lightened so that dark places leave room for the colors.
    weights = [0.299, 0.587, 0.114] if image.shape[2] == 3 else [1.0]
    gray = 0.4 + 0.6 * (image / 255) @ np.array(weights)
    share = np.clip(values / (scale or 1), -1, 1)
    colors = matplotlib.colormaps[_COLORS](0.5 + share / 2)[..., :3]
    opacity = np.abs(share)[..., None]
    return opacity * colors + (1 - opacity) * gray[..., None]
