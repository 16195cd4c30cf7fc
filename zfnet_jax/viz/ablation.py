"""Table 3 of the paper as a figure: errors of variants of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy import arange, ndarray

from zfnet_jax.results import spread
from zfnet_jax.viz.charts import line_style
from zfnet_jax.viz.layout import (
    GAP,
    LINE,
    SMALL,
    Box,
    column,
    plot,
    row,
    sheet,
    space,
    text,
    text_width,
)

# Height of a variant's row, and width of a panel.
_ROW, _PANEL = 26, 280


def ablation_chart(
    title: str,
    rows: Sequence[str],
    errors: Mapping[str, Float[ndarray, "rows seeds"]],
    paper: Mapping[str, Float[ndarray, " rows"]],
) -> Figure:
    """Draw errors of variants in percent, a row for each, beside the paper's."""
    seeds = next(iter(errors.values())).shape[1]

    def draw_panel(kind: str) -> Box:
        def draw(ax: Axes) -> None:
            places, style = arange(len(rows)), line_style(0, marks=True)
            style |= {"linestyle": "none"}
            means, bars = errors[kind].mean(1), spread(errors[kind], axis=1)
            ax.errorbar(means, places, xerr=bars, **style, capsize=2)
            hollow = style | {"markerfacecolor": "white", "markersize": 5}
            ax.plot(paper[kind], places, **hollow)
            ax.set_ylim(len(rows) - 0.5, -0.5)
            ax.set_yticks([])
            ax.spines["left"].set_visible(False)
            ax.margins(x=0.06)
            ax.grid(axis="x", color=LINE, linewidth=0.3)
            for place in range(len(rows)):
                ax.axhline(place, color=LINE, linewidth=0.3)

        body = plot(_PANEL, len(rows) * _ROW + 28 + GAP, draw, left=GAP, below=28)
        return column(text(kind), body, gap=4)

    widest = max(map(text_width, rows))
    names = [Box(widest, _ROW, text(name).draw) for name in rows]
    above = space(height=SMALL + 8 + GAP + _ROW / 2 - SMALL / 2)
    panels = [draw_panel(kind) for kind in errors]
    filled = (
        f"mean of {seeds} seeds ± one standard deviation" if seeds > 1 else "1 seed"
    )
    return sheet(
        title,
        row(column(above, *names, gap=0), *panels, gap=2 * GAP),
        f"Filled: {filled}. Hollow: the paper, on ImageNet.",
    )
