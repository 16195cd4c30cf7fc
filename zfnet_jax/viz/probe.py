"""Table 7 of the paper: accuracy against depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zfnet_jax.viz.sheet import (
    FAINT,
    GAP,
    INK,
    LINE,
    MARGIN,
    PALETTE,
    SMALL,
    AnyArray,
    blank_sheet,
    chart,
    checked,
    points,
    text_width,
    write,
)

_STYLES = tuple(zip(PALETTE[:4], "os^D", ("-", "--", "-.", ":"), strict=True))
_HEIGHT, _STEP = 340, 64

Curves = Mapping[str, Float[AnyArray, "repeats layers"]]


def accuracy_by_layer(
    title: str,
    note: str,
    panels: Mapping[str, tuple[Sequence[str], Curves]],
    levels: Mapping[str, float],
) -> tuple[Figure, np.ndarray]:
    """Draw how well each layer's features tell classes, in one panel or several.

    Args:
        title: What the figure shows.
        note: What a reader must know of it.
        panels: By heading, the names of its layers from the image up, and the curves:
            shares right by name, each repeat a row. A curve is the mean of its rows, a
            bar one standard deviation.
        levels: Shares right, by name, that are lines across the first panel.

    Returns:
        The figure and the axes of its panels.

    Raises:
        ValueError: An argument is empty, not finite, not a share, or does not fit the
            others.
    """
    if not panels:
        raise ValueError("panels must hold one at least")
    drawn: dict[str, tuple[Sequence[str], dict[str, np.ndarray]]] = {}
    for heading, (layers, curves) in panels.items():
        if not 0 < len(curves) <= len(_STYLES):
            raise ValueError(f"{heading} must hold 1 to {len(_STYLES)} curves")
        drawn[heading] = (
            layers,
            {
                name: checked(f"curves[{name!r}]", rows, (None, len(layers)), "float")
                for name, rows in curves.items()
            },
        )
    shares = [rows for _, curves in drawn.values() for rows in curves.values()]
    ends = np.concatenate([*map(np.ravel, shares), [*levels.values()]])
    if not (ends.min() >= 0 and ends.max() <= 1):
        raise ValueError("what is right must be a share from 0 to 1")

    widths = []
    for index, (heading, (layers, curves)) in enumerate(drawn.items()):
        names = [*curves, *(levels if index == 0 else ())]
        names = max(text_width(name, SMALL) for name in names) + 3 * GAP
        plot = max(len(layers) * _STEP, text_width(heading, SMALL) - names, 120)
        widths.append((plot, names))
    indent, above, below = 44, SMALL + 2 * GAP, SMALL + 2 * GAP
    fig, sheet, top = blank_sheet(
        title,
        note,
        above + _HEIGHT + below,
        sum(indent + sum(width) for width in widths),
    )
    left, axes = MARGIN, []
    for (heading, (layers, curves)), (plot, names) in zip(
        drawn.items(), widths, strict=True
    ):
        write(sheet, heading, left, top, SMALL)
        left += indent
        ax = chart(sheet, left, top + above, plot, _HEIGHT)
        _draw(ax, layers, curves, {} if axes else levels)
        left += plot + names
        axes.append(ax)
    return fig, np.array(axes)


def _draw(
    ax: Axes,
    layers: Sequence[str],
    curves: Mapping[str, np.ndarray],
    levels: Mapping[str, float],
) -> None:
    places = np.arange(len(layers))
    heights: dict[str, float] = {}
    colors = dict.fromkeys(levels, FAINT)
    for level, height in levels.items():
        ax.axhline(100 * height, color=FAINT, linewidth=0.7, linestyle=(0, (1, 3)))
        heights[level] = 100 * height
    for (name, rows), (color, mark, dashes) in zip(
        curves.items(), _STYLES, strict=False
    ):
        mean = 100 * rows.mean(0)
        ax.errorbar(
            places,
            mean,
            100 * rows.std(0),
            color=color,
            marker=mark,
            linestyle=dashes,
            markersize=4,
            linewidth=1.2,
            capsize=2,
            elinewidth=0.8,
        )
        heights[name], colors[name] = float(mean[-1]), color
    # Names stand at the ends of their lines, moved apart where two would overlap.
    line = 100 * (SMALL + 3) / _HEIGHT
    order = sorted(heights, key=lambda name: heights[name])
    spots = np.array([heights[name] for name in order])
    for index in range(1, len(spots)):
        spots[index] = max(spots[index], spots[index - 1] + line)
    spots -= max(0.0, spots[-1] - 100)
    for index in range(len(spots) - 2, -1, -1):
        spots[index] = min(spots[index], spots[index + 1] - line)
    for name, spot in zip(order, spots, strict=True):
        ax.annotate(
            name,
            (1, spot),
            (GAP, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset pixels",
            va="center",
            color=colors[name],
            fontsize=points(SMALL),
            annotation_clip=False,
        )
    ax.set_xlim(-0.4, len(layers) - 0.6)
    ax.set_ylim(0, 100)
    ax.set_yticks(range(0, 101, 20), [f"{share}%" for share in range(0, 101, 20)])
    ax.set_xticks(places, list(layers))
    ax.tick_params(axis="x", labelcolor=INK)
    ax.grid(axis="y", color=LINE, linewidth=0.3)
    ax.set_axisbelow(True)
