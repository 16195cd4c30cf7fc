"""Fig. 2 of the paper: the strongest activations of units, and what they saw."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Integer, UInt8
from matplotlib.figure import Figure

from zfnet_jax.results import spell
from zfnet_jax.viz.contrast import SCALES, Contrast, Scale, display_projections
from zfnet_jax.viz.layout import FAINT, Box, column, grid, picture, row, sheet, text
from zfnet_jax.viz.patches import cut_patches

# Least and greatest side of a patch; in between, a pixel is three screen pixels wide.
_SMALL, _LARGE = 64, 144


def top_features(
    title: str,
    captions: Sequence[tuple[str, str]],
    pictures: UInt8[np.ndarray, "n h w c"],
    boxes: Integer[np.ndarray, "n 4"],
    projections: Float[np.ndarray, "n H W c"],
    scale: Scale = "patch",
    contrast: Contrast = "99.5",
) -> Figure:
    """Draw for each unit a square of patches beside one of their projections.

    Captions are the name of each unit and how active it is; all units have the same
    number of activations, which follow each other, strongest first.
    """
    count = len(projections) // len(captions)
    units = np.repeat(np.arange(len(captions)), count)
    patches = cut_patches(pictures, boxes)
    shown, scales = display_projections(projections, units, scale, contrast)
    across = math.ceil(math.sqrt(count))
    side = min(max(3 * max(patches.shape[1:3]), _SMALL), _LARGE)

    def square(images: np.ndarray) -> Box:
        return grid([picture(x, side) for x in images], across, gap=2)

    blocks = [
        column(
            text(name),
            text(activity, color=FAINT),
            text(_spell_scales(scales[units == unit]), color=FAINT),
            row(square(patches[units == unit]), square(shown[units == unit])),
            gap=2,
        )
        for unit, (name, activity) in enumerate(captions)
    ]
    extent = "max" if contrast == "max" else f"{contrast}th percentile"
    return sheet(
        title,
        grid(blocks, width=1800, gap=16),
        f"Left: patches in the receptive fields of the {count} strongest activations, "
        f"at most one per image. Right: their projections; zero is mid-gray, black and "
        f"white are the {extent} of the magnitudes, and {SCALES[scale]}.",
    )


def _spell_scales(scales: Float[np.ndarray, " k"]) -> str:
    return f"scale {spell(scales.min())} to {spell(scales.max())}"
