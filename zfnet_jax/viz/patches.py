"""Patches of images and signed projections, ready to be shown."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float, Integer, UInt8

Contrast = Literal["max", "99.5", "99"]
Scale = Literal["patch", "unit", "layer"]

# Gray of what is outside the image, and of zero.
GRAY = 128

SCALES: dict[Scale, str] = {
    "patch": "each projection has its own scale",
    "unit": "the projections of a unit share a scale",
    "layer": "all projections share a scale",
}


def measure_scale(x: Float[np.ndarray, ...], contrast: Contrast = "99.5") -> float:
    """Find the magnitude to show as black or white.

    Args:
        x: Signed values.
        contrast: Percentile of the magnitudes that are not zero, or their maximum. A
            single pixel sets the maximum, and leaves the rest gray.

    Returns:
        The scale; 0 if all values are 0.
    """
    magnitudes = np.abs(x[x != 0])
    if not magnitudes.size:
        return 0.0
    if contrast == "max":
        return float(magnitudes.max())
    return float(np.percentile(magnitudes, float(contrast)))


def to_display(
    x: Float[np.ndarray, ...], scale: float | None = None
) -> Float[np.ndarray, ...]:
    """Map signed values to `0.5 + x / (2 scale)`, so that zero is mid-gray.

    Args:
        x: Signed values.
        scale: Magnitude that reaches black or white, where larger ones are clipped;
            None measures it.

    Returns:
        float32 in [0, 1].
    """
    scale = measure_scale(x) if scale is None else scale
    if scale == 0:
        return np.full(x.shape, 0.5, np.float32)
    return np.clip(0.5 + x.astype(np.float64) / scale / 2, 0, 1).astype(np.float32)


def display_projections(
    pixels: Float[np.ndarray, "n h w c"],
    units: Integer[np.ndarray, " n"],
    scale: Scale = "patch",
    contrast: Contrast = "99.5",
) -> tuple[Float[np.ndarray, "n h w _"], Float[np.ndarray, " n"]]:
    """Map projections of one layer by one rule for display.

    Args:
        pixels: Projections; other channel counts than 1 and 3 are summed.
        units: The unit of each.
        scale: Projections that share a scale: none ("patch"), those of a unit, or all.
        contrast: As for `measure_scale`.

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


def cut_patches(
    images: UInt8[np.ndarray, "n h w c"], boxes: Integer[np.ndarray, "n 4"]
) -> UInt8[np.ndarray, "n H W c"]:
    """Cut a box out of each image, mid-gray where it leaves the image.

    Args:
        images: Pictures.
        boxes: Top, left, bottom, right in pixels, exclusive; all of one size.
    """
    height, width = boxes[0, 2:] - boxes[0, :2]
    shape = (len(images), height, width, images.shape[3])
    patches = np.full(shape, GRAY, np.uint8)
    for patch, image, (top, left, bottom, right) in zip(
        patches, images, boxes.tolist(), strict=True
    ):
        inside = image[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
        y, x = max(-top, 0), max(-left, 0)
        patch[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    return patches
