"""Figure 8 and Table 1 of the paper: masked parts, and how alike features change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Integer, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

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
    shortened,
    text_width,
    write,
)

# Pictures are enlarged to about so many pixels.
_SIDE = 96
_ROW, _PLOT = 44, 360
_MIXED = "mixed parts"


def masked_images(
    title: str,
    names: Sequence[str],
    pictures: UInt8[AnyArray, "n h w 3"],
    masked: Mapping[str, UInt8[AnyArray, "n h w 3"]],
    boxes: Mapping[str, Integer[AnyArray, "n 4"]],
) -> tuple[Figure, Axes]:
    """Draw images, and below each the same with one part after another masked (Fig. 8).

    Args:
        title: What the images are.
        names: Of the images.
        pictures: The images.
        masked: By what is masked, the images with that.
        boxes: By the same, which box: top, left, bottom, right in pixels, exclusive. It
            is outlined.

    Returns:
        The figure and its axes, which hold a column for each image.

    Raises:
        ValueError: An argument is empty or does not fit the others.
    """
    shown = checked("pictures", pictures, (None, None, None, 3), "uint8")
    count, height, width = shown.shape[:3]
    if len(names) != count:
        raise ValueError(f"names must be {count}, as the pictures, got {len(names)}")
    if not masked or masked.keys() != boxes.keys():
        raise ValueError("masked and boxes must name the same parts, one at least")
    rows: dict[str, tuple[np.ndarray, np.ndarray | None]] = {"as it is": (shown, None)}
    for part, images in masked.items():
        rows[part] = (
            checked(f"masked[{part!r}]", images, shown.shape, "uint8"),
            checked(f"boxes[{part!r}]", boxes[part], (count, 4), "integer"),
        )
    size = enlarged(height, width, _SIDE)
    label = max(text_width(row, SMALL) for row in rows) + GAP
    line = SMALL + GAP
    fig, ax, top = blank_sheet(
        title,
        "a frame of white and black surrounds what is masked",
        line + len(rows) * (size[0] + GAP) - GAP,
        label + count * (size[1] + GAP) - GAP,
    )
    for column, name in enumerate(names):
        x = MARGIN + label + column * (size[1] + GAP)
        # Names of files differ at their ends.
        end = shortened(name[::-1], size[1], SMALL)[::-1]
        write(ax, end, x, top, SMALL, color=FAINT)
    scale = np.array([size[0] / height, size[1] / width] * 2)
    for row, (part, (images, places)) in enumerate(rows.items()):
        y = top + line + row * (size[0] + GAP)
        write(ax, part, MARGIN, y, SMALL)
        for column in range(count):
            x = MARGIN + label + column * (size[1] + GAP)
            place(ax, images[column], x, y, size)
            if places is None:
                continue
            box = places[column] * scale
            corner = x + box[1], y + box[0]
            for color, thick in (("black", 3.0), ("white", 1.2)):
                ax.add_patch(
                    Rectangle(
                        corner,
                        box[3] - box[1],
                        box[2] - box[0],
                        fill=False,
                        edgecolor=color,
                        linewidth=points(thick),
                    )
                )
    return fig, ax


def correspondence_chart(
    title: str,
    parts: Sequence[str],
    delta: Mapping[str, Float[AnyArray, " p"]],
    spread: Mapping[str, Float[AnyArray, " p"]],
    random: Mapping[str, Float[AnyArray, "p r"]],
    mixed: Mapping[str, Float[AnyArray, " r"]],
    p_values: Mapping[str, tuple[Float[AnyArray, " p"], Float[AnyArray, " p"]]],
) -> tuple[Figure, np.ndarray]:
    """Draw each part's Δ above those of random boxes, and mixed parts, for each layer.

    Args:
        title: What is compared.
        parts: Names.
        delta: By layer, Δ of each part.
        spread: Its standard deviation over pairs of images.
        random: Δ of each draw of random boxes of its size.
        mixed: Δ of each draw of one part or another in each image.
        p_values: Of each part, against its random boxes and against mixed parts.

    Returns:
        The figure and the axes, one for each layer.

    Raises:
        ValueError: An argument is empty, not finite or does not fit the others.
    """
    given = (spread, random, mixed, p_values)
    if not delta or any(delta.keys() != x.keys() for x in given):
        raise ValueError("all must be of the same layers, one at least")
    shape = (len(parts),)
    label = max(text_width(part, SMALL) for part in (*parts, _MIXED)) + GAP
    height = len(parts) * _ROW + _ROW // 2
    fig, sheet, top = blank_sheet(
        title,
        "dot and bar: the part, and one standard deviation over pairs of images; "
        "strokes: draws of random boxes of its size, or of one part or another in each "
        "image, the long one their mean; p: of the part being no more alike than these",
        SMALL + GAP + height + 48,
        label + len(delta) * (_PLOT + 2 * GAP) - 2 * GAP,
    )
    top += SMALL + GAP
    for row, part in enumerate((*parts, _MIXED)):
        write(sheet, part, MARGIN, top + row * _ROW + 6, SMALL)
    axes = []
    for column, layer in enumerate(delta):
        middle = checked(f"delta[{layer!r}]", delta[layer], shape, "float")
        around = checked(f"spread[{layer!r}]", spread[layer], shape, "float")
        draws = checked(f"random[{layer!r}]", random[layer], (*shape, None), "float")
        others = checked(f"mixed[{layer!r}]", mixed[layer], (None,), "float")
        chances = [
            checked(f"p_values[{layer!r}]", values, shape, "float")
            for values in p_values[layer]
        ]
        left = MARGIN + label + column * (_PLOT + 2 * GAP)
        ax = chart(sheet, left, top, _PLOT, height)
        write(sheet, layer, left, top - SMALL - GAP, SMALL)
        for row in range(len(parts)):
            above, below = row * _ROW + 14, row * _ROW + 30
            ends = middle[row] - around[row], middle[row] + around[row]
            ax.plot(ends, [above, above], color=INK, linewidth=1.2)
            ax.plot(middle[row], above, "o", color=INK, markersize=4)
            _strokes(ax, draws[row], below)
            for y, against, values in (
                (above, "random", chances[0]),
                (below, "mixed", chances[1]),
            ):
                ax.annotate(
                    f"p {against} {values[row]:.2g}",
                    (1, y),
                    (-2, 0),
                    xycoords=("axes fraction", "data"),
                    textcoords="offset points",
                    ha="right",
                    va="center",
                    color=FAINT,
                    fontsize=points(SMALL),
                )
        _strokes(ax, others, len(parts) * _ROW + 12)
        ax.set_ylim(height, 0)
        ax.set_yticks([])
        seen = np.concatenate([middle - around, middle + around, others, draws.ravel()])
        low, high = float(seen.min()), float(seen.max())
        # Room for the p-values at the right; no width at all if nothing differs.
        room = (high - low) or 0.1
        ax.set_xlim(low - 0.05 * room, high + 0.5 * room)
        ax.set_xlabel(
            "Δ, lower is more alike", color=FAINT, fontsize=points(SMALL), labelpad=3
        )
        ax.spines["left"].set_visible(False)
        axes.append(ax)
    return fig, np.array(axes)


def _strokes(ax: Axes, values: np.ndarray, y: int) -> None:
    ax.vlines(values, y - 4, y + 4, color="#9A9A9A", linewidth=0.4)
    ax.vlines(values.mean(), y - 8, y + 8, color="#606060", linewidth=1.4)
