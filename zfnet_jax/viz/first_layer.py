"""Figure 6 of the paper: first-layer filters of several networks, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from zfnet_jax.viz.sheet import (
    FAINT,
    GAP,
    INK,
    MARGIN,
    PALETTE,
    SMALL,
    AnyArray,
    blank_sheet,
    chart,
    checked,
    display,
    enlarged,
    place,
    points,
    text_width,
    write,
)

_ACROSS, _SIDE = 8, 32
_HATCHES = ("", "//", "..", "xx")
_GROUP, _HEIGHT = 110, 220


def filter_banks(
    title: str, note: str, banks: Mapping[str, Float[AnyArray, "_ _ 3 _"]]
) -> tuple[Figure, Axes]:
    """Draw the filters of several first layers, each bank on one scale.

    Args:
        title: What the figure shows.
        note: What a reader must know of it.
        banks: Kernels that take RGB, by what is written above them.

    Returns:
        The figure and its axes, which hold the filters, bank by bank.

    Raises:
        ValueError: There is none, or a kernel is empty, not finite or not of RGB.
    """
    if not banks:
        raise ValueError("banks must hold one at least")
    kernels = {
        name: checked(name, kernel, (None, None, 3, None), "float")
        for name, kernel in banks.items()
    }
    sizes = [
        enlarged(kernel.shape[0], kernel.shape[1], _SIDE) for kernel in kernels.values()
    ]
    rows = [-(-kernel.shape[3] // _ACROSS) for kernel in kernels.values()]
    heights = [n * (size[0] + 2) for n, size in zip(rows, sizes, strict=True)]
    widths = [
        max(_ACROSS * (size[1] + 2), text_width(name, SMALL)) + 2 * GAP
        for name, size in zip(kernels, sizes, strict=True)
    ]
    above = 2 * (SMALL + 6)
    fig, ax, top = blank_sheet(
        title,
        "; ".join(
            part
            for part in (
                "zero is mid-grey, white and black plus and minus the number above",
                note,
            )
            if part
        ),
        max(heights) + above,
        sum(widths),
    )
    left = MARGIN
    for (name, kernel), size, width in zip(kernels.items(), sizes, widths, strict=True):
        shown, scale = display(kernel)
        write(ax, name, left, top, SMALL)
        write(ax, f"± {scale:.3g}", left, top + SMALL + 6, SMALL, color=FAINT)
        for index in range(kernel.shape[3]):
            row, column = divmod(index, _ACROSS)
            x, y = left + column * (size[1] + 2), top + above + row * (size[0] + 2)
            place(ax, shown[..., index], x, y, size)
        left += width
    return fig, ax


def shares_chart(
    title: str,
    note: str,
    groups: Sequence[str],
    series: Mapping[str, Float[AnyArray, "groups runs"]],
    reference: Mapping[str, Sequence[float | None]] | None = None,
) -> tuple[Figure, Axes]:
    """Draw shares as groups of bars, a bar in each for every series.

    Args:
        title: What the figure shows.
        note: What a reader must know of it.
        groups: Names of the groups.
        series: Shares from 0 to 1 by name, for each group and run, NaN where it is not
            known; a bar is the mean, a line one standard deviation over several runs.
        reference: By name, a share for each group that is drawn as a line across it;
            None where there is none.

    Returns:
        The figure and the axes.

    Raises:
        ValueError: An argument is empty, infinite or does not fit the others.
    """
    if not groups or not 0 < len(series) <= len(_HATCHES):
        raise ValueError(f"there must be a group, and 1 to {len(_HATCHES)} series")
    bars = {}
    for name, runs in series.items():
        unknown = np.isnan(runs)
        known = checked(name, np.where(unknown, 0, runs), (len(groups), None), "float")
        bars[name] = np.ma.masked_array(known, unknown)
    width = len(groups) * _GROUP
    fig, sheet, top = blank_sheet(title, note, _HEIGHT + 90, width + 60)
    ax = chart(sheet, MARGIN + 50, top + 50, width, _HEIGHT)
    step = 0.8 / len(bars)
    places = np.arange(len(groups))
    for index, (name, runs) in enumerate(bars.items()):
        ax.bar(
            places + (index - (len(bars) - 1) / 2) * step,
            runs.mean(1).filled(np.nan),
            step,
            yerr=runs.std(1).filled(np.nan) if runs.shape[1] > 1 else None,
            color=PALETTE[index],
            hatch=_HATCHES[index],
            edgecolor="white",
            linewidth=0.5,
            error_kw={"elinewidth": 1},
            label=name,
        )
    for name, levels in (reference or {}).items():
        known = [(x, level) for x, level in enumerate(levels) if level is not None]
        for x, level in known:
            first = x == known[0][0]
            ax.hlines(level, x - 0.45, x + 0.45, INK, "--", label=name if first else "")
    ax.set_xticks(places, groups)
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=2,
        frameon=False,
        fontsize=points(SMALL),
        labelcolor=INK,
    )
    return fig, ax
