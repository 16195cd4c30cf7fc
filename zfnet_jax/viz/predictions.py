"""The most probable classes of images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from zfnet_jax.viz.layout import (
    FAINT,
    GAP,
    PALETTE,
    SMALL,
    Box,
    Number,
    column,
    grid,
    picture,
    row,
    sheet,
    shorten,
    space,
    table,
    text,
)

_SIDE, _NAME, _BAR, _NUMBER = 128, 168, 96, 48
_CAPTION = _SIDE + _NAME + _BAR + _NUMBER


def draw_predictions(
    title: str,
    note: str,
    images: UInt8[np.ndarray, "n h w c"],
    captions: Sequence[str],
    names: Sequence[Sequence[str]],
    probabilities: Float[np.ndarray, "n k"],
    truth: Sequence[str] | None = None,
) -> Figure:
    """Draw images, each beside bars of the probabilities of its most probable classes.

    The bar of the true class, where it is known, has a tick and bold type.
    """
    # Bars start at one place in all blocks.
    distinct = {shorten(name, _NAME) for classes in names for name in classes}
    width = max(text(name, bold=True).width for name in distinct)
    blocks = []
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        true = None if truth is None else truth[index]
        heading = [text(shorten(caption, _CAPTION))]
        if true is not None:
            words = shorten(f"true: {true}", _CAPTION)
            heading.append(text(words, color=FAINT))
        chances = zip(names[index], probabilities[index].tolist(), strict=True)
        bars = [_bar(name, width, chance, true) for name, chance in chances]
        body = row(picture(image, _SIDE), table(bars, gap=4))
        blocks.append(column(*heading, body, gap=2))
    return sheet(title, grid(blocks, gap=2 * GAP), note)


def _bar(name: str, width: float, chance: float, true: str | None) -> list[Box]:
    """A row of the table: a tick, the class, a bar and a percentage."""
    is_true = name == true
    number = text(f"{chance:.1%}", bold=is_true)

    def draw(ax: Axes, x: Number, y: Number) -> None:
        for length, color in ((_BAR, "#ECECEC"), (chance * _BAR, PALETTE[0])):
            ax.add_patch(Rectangle((x, y + 2), length, SMALL, color=color, lw=0))

    return [
        *([] if true is None else [text("✓" if is_true else "", bold=True)]),
        Box(width, SMALL + 4, text(shorten(name, _NAME), bold=is_true).draw),
        Box(_BAR, SMALL + 4, draw),
        row(space(_NUMBER - number.width), number, gap=0),
    ]
