"""Charts of measured values: lines with a band, and grouped bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from zfnet_jax.results import spread
from zfnet_jax.viz.layout import (
    DASHES,
    FAINT,
    GAP,
    INK,
    LINE,
    MARKS,
    PALETTE,
    SMALL,
    Box,
    Number,
    clean,
    column,
    plot,
    points,
    row,
    text,
    text_width,
)

Values = Mapping[str, np.ndarray]


def legend(names: Sequence[str], marks: bool = False) -> Box:
    """Name the curves of a chart by color and dashes, or by color and mark."""

    def sample(index: int) -> Box:
        def draw(ax: Axes, x: Number, y: Number) -> None:
            style = line_style(index, marks)
            ax.plot([x + 4, x + 14, x + 24], [y + 8] * 3, **style)

        return Box(28, SMALL + 4, draw)

    entries = [row(sample(i), text(name), gap=4) for i, name in enumerate(names)]
    return row(*entries, gap=2 * GAP)


def line_style(index: int, marks: bool = False) -> Any:
    """Style of the curve with this index, as keywords of `plot`."""
    style = {"color": PALETTE[index % len(PALETTE)], "linewidth": 1.2}
    if marks:
        return style | {"marker": MARKS[index % len(MARKS)], "markersize": 4}
    # From the eighth curve on, colors have other dashes.
    return style | {"linestyle": DASHES[(index + index // len(PALETTE)) % len(DASHES)]}


def line_chart(
    x: Sequence[Number] | np.ndarray,
    curves: Values,
    *,
    title: str = "",
    x_label: str = "",
    bands: Values | None = None,
    mean: np.ndarray | None = None,
    levels: Mapping[str, Number] | None = None,
    x_ticks: Sequence[Number] | np.ndarray | Mapping[Number, str] | None = None,
    y_limits: tuple[Number | None, Number | None] = (None, None),
    percent: bool = False,
    log: bool = False,
    marks: bool = False,
    size: tuple[Number, Number] = (320, 250),
) -> Box:
    """Draw curves over a common axis.

    Args:
        x: Positions of the values.
        curves: Values by the name of the curve, NaN where there is none; a row of
            several repeats is drawn as its mean with a bar of one standard deviation.
        title: Quantity and unit, written above.
        x_label: Quantity and unit of `x`.
        bands: Half width of a band about each curve that has one.
        mean: Values [n, x] whose mean and standard deviation are drawn in gray.
        levels: Values of horizontal lines, by name.
        x_ticks: Positions of the ticks, with their labels if those differ.
        y_limits: Range of the values; None fits it to them. Bands are clipped to it.
        percent: Show shares of 0 to 1 as percentages.
        log: Use a logarithmic axis.
        marks: Tell curves apart by marks, for few points, and not by dashes.
        size: Width and height in pixels.
    """

    def draw(ax: Axes) -> None:
        low, high = y_limits
        if mean is not None:
            center, half = mean.mean(0), spread(mean)
            edges = np.clip([center - half, center + half], low, high)
            ax.fill_between(x, *edges, color="#DDDDDD", linewidth=0)
            ax.plot(x, center, color="#777777", linewidth=2.2)
        for index, (name, values) in enumerate(curves.items()):
            style = line_style(index, marks)
            _draw_curve(ax, np.asarray(x), values, style)
            if bands and name in bands:
                half = bands[name]
                edges = np.clip([values - half, values + half], low, high)
                ax.fill_between(x, *edges, color=style["color"], alpha=0.15, lw=0)
        for name, level in (levels or {}).items():
            _draw_level(ax, name, level)
        if isinstance(x_ticks, Mapping):
            slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
            style = slanted if slant else {}
            ax.set_xticks(list(x_ticks), labels, parse_math=False, **style)
        elif x_ticks is not None:
            ax.set_xticks(x_ticks)
        if log:
            ax.set_yscale("log")
        ax.set_ylim(low, None if high is None else high + 0.02 * (high - (low or 0)))
        ax.margins(x=0.02)
        ax.set_xlabel(x_label, color=FAINT, fontsize=points(SMALL))
        finish(ax, percent)

    labels = [*map(clean, x_ticks.values())] if isinstance(x_ticks, Mapping) else [""]
    longest = max(map(text_width, labels))
    slant = longest + GAP > size[0] / len(labels)
    below = 36 + (longest * 0.7 if slant else 0)
    return column(text(title), plot(*size, draw, below=below), gap=2)


def _draw_curve(ax: Axes, x: np.ndarray, values: np.ndarray, style: Any) -> None:
    if values.ndim == 2:
        bar = {"capsize": 2, "elinewidth": 0.8}
        ax.errorbar(x, values.mean(0), spread(values), **style, **bar)
        return
    known = np.isfinite(values)
    if known.sum() == 1:  # a line of one point would be invisible
        style = {"marker": "o", "markersize": 4} | style
    ax.plot(x[known], values[known], **style)


def _draw_level(ax: Axes, name: str, level: Number) -> None:
    ax.axhline(level, color=FAINT, linewidth=0.7, linestyle=(0, (1, 3)))
    ax.annotate(
        clean(name),
        (0.01, level),
        xycoords=("axes fraction", "data"),
        va="bottom",
        color=FAINT,
        fontsize=points(SMALL),
        parse_math=False,
        annotation_clip=False,
    )


def bar_chart(title: str, groups: Sequence[str], shares: Values, errors: Values) -> Box:
    """Draw shares, 0 to 1, as a bar for each series in each group.

    `errors` are half lengths of error bars; both are by the name of the series.
    """
    hatches = ("", "////", "....", "xxxx", "\\\\\\\\")

    def style(index: int) -> dict[str, Any]:
        fill = {"color": PALETTE[index], "hatch": hatches[index]}
        return fill | {"edgecolor": "white", "linewidth": 0}

    def draw(ax: Axes) -> None:
        width, places = 0.8 / len(shares), np.arange(len(groups))
        for index, (name, values) in enumerate(shares.items()):
            ax.bar(
                places + (index - (len(shares) - 1) / 2) * width,
                values,
                width * 0.92,
                yerr=errors[name],
                error_kw={"elinewidth": 0.8, "capsize": 2, "ecolor": INK},
                **style(index),
            )
        ax.set_xticks(places, [*map(clean, groups)], parse_math=False)
        ax.tick_params(axis="x", labelcolor=INK, length=0)
        finish(ax, percent=True)

    def swatch(index: int) -> Box:
        def draw(ax: Axes, x: Number, y: Number) -> None:
            ax.bar(x + 8, 12, 16, y + 2, **style(index))

        return Box(16, SMALL + 4, draw)

    entries = [row(swatch(i), text(name), gap=4) for i, name in enumerate(shares)]
    names = [row(*entries, gap=2 * GAP)] if len(shares) > 1 else []
    return column(text(title), *names, plot(480, 250, draw), gap=4)


def finish(ax: Axes, percent: bool) -> None:
    """Add the grid, and percent signs to shares."""
    if percent:
        ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
    ax.grid(axis="y", color=LINE, linewidth=0.3)
    ax.set_axisbelow(True)
