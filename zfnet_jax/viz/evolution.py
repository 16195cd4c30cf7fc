"""Fig. 4 of the paper: features over training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zfnet_jax.results import spell
from zfnet_jax.viz.charts import legend, line_chart
from zfnet_jax.viz.contrast import Contrast, display_projections
from zfnet_jax.viz.layout import (
    FAINT,
    INK,
    Box,
    Number,
    column,
    grid,
    picture,
    row,
    sheet,
    space,
    text,
)
from zfnet_jax.viz.patches import cut_patches

# Least and greatest side of a patch; in between, a pixel is three screen pixels wide.
_SMALL, _LARGE = 96, 128


def evolution_grid(
    title: str,
    epochs: Sequence[int],
    units: Sequence[int],
    activations: Float[np.ndarray, "u e"],
    jumps: Bool[np.ndarray, "u e"],
    pictures: UInt8[np.ndarray, "n h w c"],
    boxes: Integer[np.ndarray, "n 4"],
    projections: Float[np.ndarray, "n H W c"],
    contrast: Contrast = "99.5",
) -> Figure:
    """Draw each unit's strongest activation at each checkpoint.

    `jumps` tells whether its image differs from the one at the checkpoint before.
    """
    patches, each = cut_patches(pictures, boxes), np.arange(len(boxes))
    shown, _ = display_projections(projections, each, contrast=contrast)
    side = min(max(3 * max(patches.shape[1:3]), _SMALL), _LARGE)
    steps = [
        column(
            text(f"epoch {epoch}", color=FAINT),
            text(f"activation {spell(activation)}", color=FAINT),
            _mark_jump(column(picture(patch, side), picture(x, side), gap=2), jump),
            gap=2,
        )
        for epoch, activation, jump, patch, x in zip(
            [*epochs] * len(units),
            activations.ravel(),
            jumps.ravel().tolist(),
            patches,
            shown,
            strict=True,
        )
    ]
    blocks = []
    for index, unit in enumerate(units):
        own = steps[index * len(epochs) : (index + 1) * len(epochs)]
        blocks.append(column(text(f"unit {unit}"), row(*own), gap=2))
    return sheet(
        title,
        grid(blocks, width=1400, gap=16),
        "Strongest activation over all images at each epoch. Above: patch in its "
        "receptive field. Below: its projection, each with its own scale; zero is "
        "mid-gray. A bar marks a change of image.",
    )


def _mark_jump(box: Box, is_jump: bool) -> Box:
    """Put a bar at the left of a box, or leave room for it."""

    def draw(ax: Axes, x: Number, y: Number) -> None:
        ax.plot([x + 1, x + 1], [y, y + box.height], color=INK, linewidth=1.5)

    bar = Box(3, box.height, draw) if is_jump else space(3)
    return row(bar, box, gap=2)


def motion_chart(
    network: str,
    epochs: Sequence[int],
    motion: Mapping[str, Float[np.ndarray, " steps"]],
) -> Figure:
    """Draw how far each layer's features move from one checkpoint to the next."""
    chart = line_chart(
        epochs[1:],
        motion,
        title="motion: 1 minus the correlation with the checkpoint before",
        x_label="epoch",
        x_ticks=epochs[1:],
        y_limits=(0, None),
        marks=True,
        size=(560, 340),
    )
    return sheet(
        f"How far features of {network} move between checkpoints",
        column(legend(list(motion), marks=True), chart),
        "Correlation of a unit's activations at two checkpoints, over all positions of "
        "the same images; mean of the units of a layer.",
    )
