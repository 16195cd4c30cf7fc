"""Signed projections on a gray scale, ready to be shown."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float, Integer

Contrast = Literal["max", "99.5", "99"]
Scale = Literal["patch", "unit", "layer"]

SCALES: dict[Scale, str] = {
    "patch": "each projection has its own scale",
    "unit": "the projections of a unit share a scale",
    "layer": "all projections share a scale",
}


def measure_scale(x: Float[np.ndarray, ...], contrast: Contrast = "99.5") -> float:
    """Find the magnitude to show as black or white, 0 if all values are 0.

    It is a percentile of the magnitudes that are not zero, or their maximum, which a
    single pixel may set.
    """
    if contrast == "max":
        return float(np.abs(x).max(initial=0))
    magnitudes = np.abs(x[x != 0])
    if not magnitudes.size:
        return 0.0
    # Several times as fast as `np.percentile`, which interpolates in the same way.
    rank, share = divmod((magnitudes.size - 1) * float(contrast) / 100, 1)
    ordered = np.partition(magnitudes, int(rank))
    low, above = ordered[int(rank)], ordered[int(rank) + 1 :]
    high = above.min() if above.size else low
    return float(low + share * (high - low))


def to_display(
    x: Float[np.ndarray, ...], scale: float | None = None
) -> Float[np.ndarray, ...]:
    """Map signed values to `0.5 + x / (2 scale)` in [0, 1], so that zero is mid-gray.

    Magnitudes above `scale`, which is measured if it is None, are clipped.
    """
    scale = measure_scale(x) if scale is None else scale
    if scale == 0:
        return np.full(x.shape, 0.5, np.float32)
    shown = x.astype(np.float64)
    shown /= 2 * scale
    shown += 0.5
    return np.clip(shown, 0, 1, out=shown).astype(np.float32)


def display_projections(
    pixels: Float[np.ndarray, "n h w c"],
    units: Integer[np.ndarray, " n"],
    scale: Scale = "patch",
    contrast: Contrast = "99.5",
) -> tuple[Float[np.ndarray, "n h w _"], Float[np.ndarray, " n"]]:
    """Map projections of one layer by one rule for display.

    Other channel counts than 1 and 3 are summed. `scale` says which projections share a
    scale: none ("patch"), those of a unit, or all.

    Returns:
        float32 in [0, 1] with 1 or 3 channels, zero mid-gray, and the scale of each.
    """
    if pixels.shape[3] not in (1, 3):
        pixels = pixels.sum(3, keepdims=True)
    groups = {"patch": np.arange(len(units)), "unit": units, "layer": 0 * units}[scale]
    shown, scales = np.empty(pixels.shape, np.float32), np.empty(len(units))
    for group in np.unique(groups):
        members = groups == group
        scales[members] = measure_scale(pixels[members], contrast)
        shown[members] = to_display(pixels[members], scales[members][0])
    return shown, scales
