"""Charts of measured values: lines with a band, grouped bars, rows with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

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
    space,
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
    return style | {"linestyle": DASHES[index % len(DASHES)]}


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
            center, spread = mean.mean(0), mean.std(0)
            edges = np.clip([center - spread, center + spread], low, high)
            ax.fill_between(x, *edges, color="#DDDDDD", linewidth=0)
            ax.plot(x, center, color="#777777", linewidth=2.2)
        for index, (name, values) in enumerate(curves.items()):
            style = line_style(index, marks)
            if values.ndim == 2:
                bar = {"capsize": 2, "elinewidth": 0.8}
                ax.errorbar(x, values.mean(0), values.std(0), **style, **bar)
                continue
            known = np.isfinite(values)
            if known.sum() == 1:  # a line of one point would be invisible
                style = {"marker": "o", "markersize": 4} | style
            ax.plot(np.asarray(x)[known], values[known], **style)
            if bands and name in bands:
                half = bands[name]
                edges = np.clip([values - half, values + half], low, high)
                ax.fill_between(x, *edges, color=style["color"], alpha=0.15, lw=0)
        for name, level in (levels or {}).items():
            ax.axhline(level, color=FAINT, linewidth=0.7, linestyle=(0, (1, 3)))
            write_at(ax, name, 0.01, level)
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


def bar_chart(
    groups: Sequence[str],
    series: Values,
    *,
    errors: Values | None = None,
    title: str = "",
    levels: Mapping[str, Number] | None = None,
    percent: bool = False,
    size: tuple[Number, Number] = (480, 250),
) -> Box:
    """Draw grouped bars.

    Args:
        groups: Names of the groups, from the left.
        series: One value for each group, by the name of the series.
        errors: Half length of an error bar for each value.
        title: Quantity and unit, written above.
        levels: Values of horizontal lines, by name.
        percent: Show shares of 0 to 1 as percentages.
        size: Width and height in pixels.
    """
    hatches = ("", "////", "....", "xxxx", "\\\\\\\\")

    def draw(ax: Axes) -> None:
        width = 0.8 / len(series)
        places = np.arange(len(groups))
        for index, (name, values) in enumerate(series.items()):
            ax.bar(
                places + (index - (len(series) - 1) / 2) * width,
                values,
                width * 0.92,
                yerr=None if errors is None else errors[name],
                color=PALETTE[index],
                hatch=hatches[index],
                edgecolor="white",
                linewidth=0,
                error_kw={"elinewidth": 0.8, "capsize": 2, "ecolor": INK},
            )
        for name, level in (levels or {}).items():
            ax.axhline(level, color=FAINT, linewidth=0.7, linestyle=(0, (1, 3)))
            write_at(ax, name, 0.01, level)
        ax.set_xticks(places, [*map(clean, groups)], parse_math=False)
        ax.tick_params(axis="x", labelcolor=INK, length=0)
        finish(ax, percent)

    def swatch(index: int) -> Box:
        def draw(ax: Axes, x: Number, y: Number) -> None:
            ax.bar(
                x + 8,
                12,
                16,
                y + 2,
                color=PALETTE[index],
                hatch=hatches[index],
                edgecolor="white",
                linewidth=0,
            )

        return Box(16, SMALL + 4, draw)

    entries = [row(swatch(i), text(name), gap=4) for i, name in enumerate(series)]
    names = [row(*entries, gap=2 * GAP)] if len(series) > 1 else []
    return column(text(title), *names, plot(*size, draw), gap=4)


def interval_chart(
    rows: Sequence[str],
    panels: Mapping[str, Values],
    *,
    errors: Mapping[str, Values] | None = None,
    references: Mapping[str, Values] | None = None,
    row_height: Number = 26,
    width: Number = 330,
) -> Box:
    """Draw values in rows, with an interval about each, in panels that share the rows.

    Args:
        rows: Names of the rows, from the top.
        panels: By heading, values of each row by the name of their series; NaN is left
            out.
        errors: Half length of the interval of each value.
        references: Values to compare with, drawn as hollow marks.
        row_height: Height of a row in pixels.
        width: Width of a panel in pixels.
    """
    height = len(rows) * row_height
    has_legend = any(len(series) > 1 for series in panels.values())

    def panel(heading: str, first: bool) -> Box:
        def draw(ax: Axes) -> None:
            series = panels[heading]
            places = np.arange(len(rows))
            for index, (name, values) in enumerate(series.items()):
                shift = (index - (len(series) - 1) / 2) * 0.24
                style = line_style(index, marks=True) | {"linestyle": "none"}
                error = None if errors is None else errors[heading][name]
                ax.errorbar(values, places + shift, xerr=error, **style, capsize=2)
                if references is not None and name in references.get(heading, {}):
                    hollow = style | {"markerfacecolor": "white", "markersize": 5}
                    ax.plot(references[heading][name], places + shift, **hollow)
            ax.set_ylim(len(rows) - 0.5, -0.5)
            ax.set_yticks([])
            ax.spines["left"].set_visible(False)
            ax.margins(x=0.06)
            ax.grid(axis="x", color=LINE, linewidth=0.3)
            for place in range(len(rows)):
                ax.axhline(place, color=LINE, linewidth=0.3)

        names = [legend(list(panels[heading]), marks=True)] if has_legend else []
        body = plot(width, height + 28 + GAP, draw, left=GAP, below=28)
        return column(text(heading), *names, body, gap=4)

    label = max(map(text_width, rows))
    names = [Box(label, row_height, text(name).draw) for name in rows]
    lines = 2 if has_legend else 1
    above = space(height=lines * (SMALL + 8) + GAP + row_height / 2 - SMALL / 2)
    labels = column(above, *names, gap=0)
    return row(labels, *(panel(heading, False) for heading in panels), gap=2 * GAP)


def write_at(ax: Axes, words: str, x: Number, y: Number, color: str = FAINT) -> None:
    """Write in a chart, at a share of its width and a value."""
    ax.annotate(
        clean(words),
        (x, y),
        xycoords=("axes fraction", "data"),
        va="bottom",
        color=color,
        fontsize=points(SMALL),
        parse_math=False,
        annotation_clip=False,
    )


def finish(ax: Axes, percent: bool) -> None:
    """Add the grid, and percent signs to shares."""
    if percent:
        ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
    ax.grid(axis="y", color=LINE, linewidth=0.3)
    ax.set_axisbelow(True)
