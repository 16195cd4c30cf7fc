"""Runs of a sweep: their curves by the value of each option, and their ranking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from zfnet_jax.viz.charts import finish, legend, line_style
from zfnet_jax.viz.layout import (
    FAINT,
    GAP,
    INK,
    LINE,
    SMALL,
    Box,
    column,
    grid,
    plot,
    points,
    sheet,
    text,
    text_width,
)

# Height of a row of the ranking, and most rows.
_ROW, _MOST = 22, 20

History = Sequence[Mapping[str, Any]]
_QUANTITIES = {
    "validation_accuracy": "validation accuracy",
    "validation_loss": "validation loss (nats)",
}


def compare_runs(
    title: str,
    histories: Sequence[History],
    values: Mapping[str, Sequence[str]],
    ranking: Mapping[str, Sequence[float]],
) -> Figure:
    """Draw the curves of runs by the value of each option, and the final accuracies.

    Args:
        title: Title of the sheet.
        histories: For each run, the record of each epoch, with `epoch`,
            `validation_accuracy` and `validation_loss`.
        values: The value of each run, by option.
        ranking: Final accuracies, 0 to 1, of the runs of each combination of values,
            the best combination first; empty if all its runs failed.
    """
    panels = [_draw_option(name, histories, x) for name, x in values.items()]
    best = dict(list(ranking.items())[:_MOST])
    count = f"the best {_MOST} of {len(ranking)}" if len(ranking) > _MOST else "all"
    heading = f"validation accuracy after the last epoch, {count} combinations"
    return sheet(
        title,
        column(
            grid(panels, gap=3 * GAP),
            column(text(heading), _draw_ranking(best), gap=4),
            gap=3 * GAP,
        ),
        "Curves: a thin line is a run, a thick one the mean of all runs with that "
        "value, whatever their other options, until the first of them ends. Ranking: a "
        "dot is a run, a bar the mean.",
    )


def _draw_option(name: str, histories: Sequence[History], values: Sequence[str]) -> Box:
    """Draw the curves of all runs, told apart by the value of one option."""
    levels = list(dict.fromkeys(values))
    last = max((len(x) for x in histories), default=1)

    def draw_quantity(quantity: str) -> Box:
        curves = np.full((len(histories), last), np.nan)
        for curve, history in zip(curves, histories, strict=True):
            curve[: len(history)] = [x[quantity] for x in history]

        def draw(ax: Axes) -> None:
            for index, level in enumerate(levels):
                rows = curves[[value == level for value in values]]
                for row in rows:
                    _draw_curve(ax, row, index, linewidth=0.6, alpha=0.45)
                begun = rows[np.isfinite(rows[:, 0])]
                if len(begun):
                    _draw_curve(ax, begun.mean(0), index, linewidth=2)
            ticks = MaxNLocator(integer=True) if last > 1 else FixedLocator([1])
            ax.xaxis.set_major_locator(ticks)
            ax.set_xlabel("epoch", color=FAINT, fontsize=points(SMALL))
            ax.margins(x=0.04)
            finish(ax, percent=quantity.endswith("accuracy"))

        return column(text(_QUANTITIES[quantity]), plot(320, 220, draw), gap=2)

    charts = column(*map(draw_quantity, _QUANTITIES), gap=2 * GAP)
    return column(text(name, bold=True), legend(levels), charts, gap=4)


def _draw_curve(ax: Axes, values: np.ndarray, index: int, **style: Any) -> None:
    is_point = np.isfinite(values).sum() == 1  # a line of one would be invisible
    mark = {"marker": "o" if is_point else "", "markersize": 2 + style["linewidth"]}
    epochs = np.arange(1, len(values) + 1)
    ax.plot(epochs, values, **line_style(index) | mark | style)


def _draw_ranking(ranking: Mapping[str, Sequence[float]]) -> Box:
    """Draw the accuracies of each combination as dots in a row, with their mean."""
    labels = [
        f"{name}   {np.mean(x):.2%}" if len(x) else f"{name}   failed"
        for name, x in ranking.items()
    ]

    def draw(ax: Axes) -> None:
        for place, accuracies in enumerate(ranking.values()):
            ax.plot(accuracies, [place] * len(accuracies), "o", **dots)
            if len(accuracies):
                mean = np.mean(accuracies)
                ax.plot([mean, mean], [place - 0.3, place + 0.3], **bar)
        ax.set_ylim(len(ranking) - 0.5, -0.5)
        ax.set_yticks(range(len(ranking)), labels, parse_math=False)
        ax.tick_params(axis="y", length=0, labelcolor=INK)
        ax.spines["left"].set_visible(False)
        ax.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
        ax.grid(axis="both", color=LINE, linewidth=0.3)
        ax.margins(x=0.06)

    color = line_style(0)["color"]
    dots = {"color": color, "markersize": 4, "alpha": 0.6}
    bar = {"color": INK, "linewidth": 1.4}
    left = max(map(text_width, labels)) + 2 * GAP
    return plot(left + 400, len(labels) * _ROW + 28 + GAP, draw, left=left, below=28)
