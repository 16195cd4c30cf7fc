"""What a classifier makes of images: its most probable classes beside each."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float, Integer, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from zfnet_jax.viz.sheet import (
    FAINT,
    GAP,
    MARGIN,
    PALETTE,
    SHEET_WIDTH,
    SMALL,
    AnyArray,
    blank_sheet,
    checked,
    enlarged,
    grid_of,
    place,
    shortened,
    text_width,
    write,
)

_SIDE, _ROW = 128, SMALL + 6
_NAME, _BAR, _NUMBER, _TICK = 168, 96, 48, 16
_BLUE, _GROUND = PALETTE[0], "#ECECEC"


def top_classes(
    title: str,
    note: str,
    images: UInt8[AnyArray, "n h w 3"],
    captions: Sequence[str],
    classes: Integer[AnyArray, "n k"],
    probabilities: Float[AnyArray, "n k"],
    class_names: Sequence[str],
    labels: Integer[AnyArray, " n"] | None = None,
) -> tuple[Figure, Axes]:
    """Draw images, each beside bars of the probabilities of a few classes.

    Where the true class is known it stands above the picture, and its bar has a tick
    and bold type.

    Args:
        title: What the figure shows.
        note: What else is to be known, such as which images these are.
        images: RGB pictures.
        captions: What each image is called.
        classes: Of each image, in the order of the bars: indices into `class_names`.
        probabilities: Their probabilities, from 0 to 1.
        class_names: One name a class.
        labels: True classes, if known.

    Returns:
        The figure and its axes, which hold `images` in order.

    Raises:
        ValueError: The arguments differ in length, a class has no name, or a
            probability lies outside 0 to 1.
    """
    pictures = checked("images", images, (None, None, None, 3), "uint8")
    count, height, width = pictures.shape[:3]
    best = checked("classes", classes, (count, None), "integer")
    bars = best.shape[1]
    chances = checked("probabilities", probabilities, (count, bars), "float")
    true = None if labels is None else checked("labels", labels, (count,), "integer")
    if len(captions) != count:
        raise ValueError(f"captions must be {count}, one an image, got {len(captions)}")
    for name, values in (("classes", best), ("labels", best if true is None else true)):
        if values.min() < 0 or values.max() >= len(class_names):
            raise ValueError(
                f"{name} must index the {len(class_names)} class_names, got values "
                f"from {values.min()} to {values.max()}"
            )
    # A softmax in single precision may pass 1 by its rounding.
    if chances.min() < 0 or chances.max() > 1 + 1e-5:
        raise ValueError(
            f"probabilities must lie in 0 to 1, got {chances.min()} to {chances.max()}"
        )

    size = enlarged(height, width, _SIDE)
    line = SMALL + 4
    head, indent = (line, 0) if true is None else (2 * line, _TICK)
    names = {
        label: shortened(class_names[label], _NAME, SMALL)
        for label in map(int, best.ravel())
    }
    # Bold type is wider.
    named = max(text_width(name, SMALL) for name in names.values()) * 9 // 8
    wide = size[1] + GAP + indent + named + GAP + _BAR + GAP + _NUMBER
    cell = head + max(size[0], bars * _ROW) + GAP, wide + 2 * GAP
    grid = grid_of(count, cell, SHEET_WIDTH)
    fig, ax, top = blank_sheet(title, note, grid.height, grid.width)
    for index, (x, y) in enumerate(grid.corners(top, MARGIN)):
        write(ax, shortened(captions[index], wide, SMALL), x, y, SMALL)
        if true is not None:
            truth = shortened(f"true: {class_names[true[index]]}", wide, SMALL)
            write(ax, truth, x, y + line, SMALL, color=FAINT)
        place(ax, pictures[index], x, y + head, size)
        left = x + size[1] + GAP + indent
        start = left + named + GAP
        for rank in range(bars):
            label, chance = best[index, rank], min(float(chances[index, rank]), 1.0)
            above = y + head + rank * _ROW
            right = true is not None and label == true[index]
            style = {"weight": "bold" if right else "normal"}
            if right:
                write(ax, "✓", left - _TICK, above, SMALL, **style)
            write(ax, names[label], left, above, SMALL, **style)
            for length, color in ((1.0, _GROUND), (chance, _BLUE)):
                corner = start, above + 1
                ax.add_patch(Rectangle(corner, length * _BAR, SMALL, color=color, lw=0))
            end = start + _BAR + GAP + _NUMBER
            write(ax, f"{chance:.1%}", end, above, SMALL, ha="right", **style)
    return fig, ax
