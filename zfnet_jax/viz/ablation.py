"""Table 3 of the paper as a figure: errors of variants of a network, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
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

_MARKS = ("o", "s", "^")
_ROW, _PANEL = 24, 330


def ablation_chart(
    title: str,
    note: str,
    rows: Sequence[str],
    panels: Mapping[str, Mapping[str, Float[AnyArray, "rows _"]]],
) -> tuple[Figure, np.ndarray]:
    """Draw errors of variants, a row for each, in panels that share the rows.

    Args:
        title: What the figure shows.
        note: What a reader must know of it.
        rows: Names of the variants, from the top down.
        panels: By heading, errors in percent by their name, of each variant and run. A
            mark is the mean, a bar one standard deviation to each side.

    Returns:
        The figure and the axes of its panels.

    Raises:
        ValueError: An argument is empty, not finite or does not fit the others.
    """
    if not rows or not panels:
        raise ValueError("rows and panels must hold one at least")
    drawn = {
        heading: {
            name: checked(f"{heading}: {name}", runs, (len(rows), None), "float")
            for name, runs in series.items()
        }
        for heading, series in panels.items()
    }
    if not all(0 < len(series) <= len(_MARKS) for series in drawn.values()):
        raise ValueError(f"a panel must hold 1 to {len(_MARKS)} kinds of error")
    label = max(text_width(row, SMALL) for row in rows) + 2 * GAP
    height = len(rows) * _ROW
    fig, sheet, top = blank_sheet(
        title, note, height + 80, label + len(drawn) * (_PANEL + 2 * GAP)
    )
    top += 44
    for place, row in enumerate(rows):
        write(sheet, row, MARGIN, top + (place + 0.5) * _ROW - SMALL / 2, SMALL)
    axes = []
    for column, (heading, series) in enumerate(drawn.items()):
        left = MARGIN + label + column * (_PANEL + 2 * GAP)
        ax = chart(sheet, left, top, _PANEL, height)
        write(sheet, heading, left, top - 44, SMALL)
        places = np.arange(len(rows)) + 0.5
        for (name, runs), mark, color in zip(
            series.items(), _MARKS, PALETTE, strict=False
        ):
            ax.errorbar(
                runs.mean(1),
                places,
                xerr=runs.std(1) if runs.shape[1] > 1 else None,
                fmt=mark,
                color=color,
                markersize=5,
                elinewidth=1,
                label=name.replace("_", " "),
            )
        ax.hlines(places, 0, 1, LINE, linewidth=0.4, transform=ax.get_yaxis_transform())
        ax.set_ylim(len(rows), 0)
        ax.set_xlim(left=0)
        ax.set_yticks([])
        ax.set_xlabel("error in percent", color=FAINT, fontsize=points(SMALL))
        ax.spines["left"].set_visible(False)
        ax.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=len(series),
            frameon=False,
            borderpad=0,
            fontsize=points(SMALL),
            labelcolor=INK,
        )
        axes.append(ax)
    return fig, np.array(axes)
