"""Figure 4 of the paper: features over training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zfnet_jax.viz.old_projections import display_projections
from zfnet_jax.viz.sheet import (
    FAINT,
    GAP,
    INK,
    MARGIN,
    SMALL,
    AnyArray,
    blank_sheet,
    chart,
    checked,
    enlarged,
    place,
    points,
    text_width,
    write,
)

_SIDE = 80
_MARKS = "osD^vPX<>*"


def evolution_grid(
    title: str,
    epochs: Sequence[int],
    captions: Sequence[str],
    projections: Float[AnyArray, "u e h w 3"],
    patches: UInt8[AnyArray, "u e h w 3"],
    jumps: Bool[np.ndarray, "u e"],
) -> tuple[Figure, Axes]:
    """Draw each unit's strongest activation at each checkpoint (Fig. 4 of the paper).

    A row for each unit, a column for each checkpoint: the projection, each with its
    own scale, and below it the patch that it saw. A bar stands before a picture of
    another image than the one before.

    Args:
        title: What the figure shows, such as the layer.
        epochs: Of the checkpoints.
        captions: What to write above each unit.
        projections: Of the strongest activations.
        patches: What each saw.
        jumps: Where the image is another than at the checkpoint before.

    Returns:
        The figure and its axes, which hold for each unit and checkpoint the
        projection, then the patch.

    Raises:
        ValueError: An argument is empty, not finite or does not fit the others.
    """
    pixels = checked("projections", projections, (None,) * 4 + (3,), "float")
    units, count, height, width, _ = pixels.shape
    seen = checked("patches", patches, pixels.shape, "uint8")
    moved = checked("jumps", jumps, (units, count), "bool")
    for name, given, wanted in (
        ("epochs", epochs, count),
        ("captions", captions, units),
    ):
        if len(given) != wanted:
            raise ValueError(f"{name} must be {wanted}, got {len(given)}")
    shown, _ = display_projections(
        pixels.reshape(-1, height, width, 3), np.arange(units * count)
    )
    shown = shown.reshape(pixels.shape)
    size = enlarged(height, width, _SIDE)
    line = SMALL + 4
    step = max(size[1], *(text_width(f"epoch {e}", SMALL) for e in epochs)) + GAP
    row_height = line + 2 * size[0] + 2 + GAP
    wide = max(count * step - GAP, *(text_width(text, SMALL) for text in captions))
    fig, ax, top = blank_sheet(
        title,
        "above the strongest activation over all images, projected, each with its own "
        "scale and zero at mid-grey; below what it saw; a bar marks another image than "
        "at the checkpoint before",
        line + units * row_height - GAP,
        wide,
    )
    for column, epoch in enumerate(epochs):
        x = MARGIN + column * step
        write(ax, f"epoch {epoch}", x, top, SMALL, color=FAINT)
    for unit, caption in enumerate(captions):
        y = top + line + unit * row_height
        write(ax, caption, MARGIN, y, SMALL)
        y += line
        for column in range(count):
            x = MARGIN + column * step
            place(ax, shown[unit, column], x, y, size)
            place(ax, seen[unit, column], x, y + size[0] + 2, size)
            if moved[unit, column]:
                bar = x - GAP / 2
                ends = [y, y + 2 * size[0] + 2]
                ax.plot([bar, bar], ends, color=INK, linewidth=1.5)
    return fig, ax


def motion_chart(
    epochs: Sequence[int], motion: Mapping[str, Float[AnyArray, " e"]]
) -> tuple[Figure, Axes]:
    """Draw how far each layer's features move between checkpoints.

    Args:
        epochs: Of the checkpoints, one more than the steps between them.
        motion: By layer, one number for each step.

    Returns:
        The figure and its axes, which hold a line for each layer.

    Raises:
        ValueError: `motion` is empty, not finite or does not fit `epochs`.
    """
    if not motion:
        raise ValueError("motion must hold one layer at least")
    height, width = 360, 560
    labels = max(text_width(layer, SMALL) for layer in motion)
    fig, sheet, top = blank_sheet(
        "How far features move between checkpoints",
        "one minus the correlation of a unit's activations at two checkpoints, on "
        "average over the units of a layer",
        height,
        width,
    )
    inner = width - 40 - labels - GAP, height - 36
    ax = chart(sheet, MARGIN + 40, top, *inner)
    lines = {
        layer: checked(f"motion[{layer!r}]", values, (len(epochs) - 1,), "float")
        for layer, values in motion.items()
    }
    # Names stand at the ends of their lines, moved up where two would overlap.
    most = max(float(heights.max()) for heights in lines.values()) * 1.05 or 1.0
    line = most * (SMALL + 2) / inner[1]
    names: dict[str, float] = {}
    lowest = 0.0
    for layer in sorted(lines, key=lambda layer: lines[layer][-1]):
        names[layer] = max(float(lines[layer][-1]), lowest)
        lowest = names[layer] + line
    for index, (layer, heights) in enumerate(lines.items()):
        shade = str(0.75 * index / max(len(motion) - 1, 1))
        mark = _MARKS[index % len(_MARKS)]
        ax.plot(epochs[1:], heights, color=shade, marker=mark, markersize=4)
        ax.annotate(
            layer,
            (epochs[-1], names[layer]),
            (GAP, 0),
            textcoords="offset pixels",
            va="center",
            fontsize=points(SMALL),
        )
    ax.set_xlabel("epoch", fontsize=points(SMALL))
    ax.set_ylim(0, max(most, lowest))
    ax.set_xticks(list(epochs[1:]))
    return fig, ax
