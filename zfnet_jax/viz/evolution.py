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
    pictures: UInt8[np.ndarray, "u e h w c"],
    boxes: Integer[np.ndarray, "u e 4"],
    projections: Float[np.ndarray, "u e H W c"],
    contrast: Contrast = "99.5",
) -> Figure:
    """Draw each unit's strongest activation at each checkpoint.

    Args:
        title: The layer and the network.
        epochs: Epochs of the checkpoints.
        units: Numbers of the units.
        activations: The strongest activation of each unit at each checkpoint.
        jumps: Whether its image differs from the one at the checkpoint before.
        pictures: Its image.
        boxes: Its receptive field: top, left, bottom, right in pixels.
        projections: The activations projected to these boxes.
        contrast: Percentile of the magnitudes shown as black and white.
    """
    shape = projections.shape
    flat = projections.reshape(-1, *shape[2:])
    shown, _ = display_projections(flat, np.arange(len(flat)), "patch", contrast)
    shown = shown.reshape(*shape[:4], -1)
    side = min(max(3 * max(shape[2:4]), _SMALL), _LARGE)
    blocks = []
    for index, unit in enumerate(units):
        patches = cut_patches(pictures[index], boxes[index])
        steps = [
            column(
                text(f"epoch {epoch}", color=FAINT),
                text(f"activation {spell(activation)}", color=FAINT),
                _mark_jump(column(picture(patch, side), picture(x, side), gap=2), jump),
                gap=2,
            )
            for epoch, activation, jump, patch, x in zip(
                epochs,
                activations[index],
                jumps[index].tolist(),
                patches,
                shown[index],
                strict=True,
            )
        ]
        blocks.append(column(text(f"unit {unit}"), row(*steps), gap=2))
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
    """Draw how far each layer's features move from one checkpoint to the next.

    Args:
        network: Name of the network.
        epochs: Epochs of the checkpoints, one more than the steps between them.
        motion: For each layer one number per step.
    """
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
