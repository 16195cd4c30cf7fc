"""Fig. 6 of the paper: filters of the first layer, and what the second responds to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from zfnet_jax.results import summarize
from zfnet_jax.viz.charts import bar_chart
from zfnet_jax.viz.contrast import display_projections, measure_scale, to_display
from zfnet_jax.viz.layout import FAINT, Box, column, grid, picture, sheet, table, text

_SIDE, _ACROSS = 56, 16


def filter_banks(
    title: str, banks: Mapping[str, Float[np.ndarray, "_ _ _ _"]]
) -> Figure:
    """Draw HWIO kernels of first layers, each bank on one scale, with their RMS."""
    blocks = []
    for name, kernel in banks.items():
        scale = measure_scale(kernel)
        filters = np.moveaxis(to_display(kernel, scale), 3, 0)
        rms = np.sqrt(np.square(kernel).mean((0, 1, 2)))
        captions = [f"{index}: {value:.3f}" for index, value in enumerate(rms)]
        heading = (
            f"{name}: {len(filters)} filters, black {-scale:.2g}, white {scale:.2g}"
        )
        blocks.append(_draw_bank(heading, filters, captions))
    note = "Below each filter its number and its RMS; mid-gray is 0."
    return sheet(title, column(*blocks, gap=16), note)


def layer_2(title: str, banks: Mapping[str, Float[np.ndarray, "_ _ _ _"]]) -> Figure:
    """Draw the projection of the strongest activation of each unit of layer 2."""
    blocks = []
    for name, pixels in banks.items():
        shown, _ = display_projections(pixels, np.arange(len(pixels)))
        captions = [str(index) for index in range(len(pixels))]
        blocks.append(_draw_bank(name, shown, captions))
    return sheet(
        title,
        column(*blocks, gap=16),
        "Projection of the strongest activation of each unit, each with its own scale; "
        "plain gray: a unit that is never active.",
    )


def _draw_bank(heading: str, pictures: np.ndarray, captions: Sequence[str]) -> Box:
    side = max(_SIDE, *pictures.shape[1:3])
    cells = [
        column(picture(x, side), text(caption, color=FAINT), gap=2)
        for x, caption in zip(pictures, captions, strict=True)
    ]
    return column(text(heading), grid(cells, _ACROSS, gap=6), gap=4)


def first_layer_numbers(
    title: str,
    numbers: Sequence[Sequence[str]],
    charts: Mapping[str, tuple[Sequence[str], Mapping[str, Float[np.ndarray, "_ _"]]]],
    note: str = "",
) -> Figure:
    """Draw a table, and shares as groups of bars with a bar for every network.

    Charts are, by heading, the names of the groups, and by network the shares, 0 to 1,
    of each group and seed; NaN where a share is not known.
    """
    cells = [[text(cell) for cell in line] for line in numbers]
    bars = []
    for heading, (groups, series) in charts.items():
        summaries = {name: summarize(x.T) for name, x in series.items()}
        means = {name: x.mean for name, x in summaries.items()}
        errors = {name: x.spread for name, x in summaries.items()}
        bars.append(bar_chart(heading, groups, means, errors))
    return sheet(title, column(table(cells, gap=12), *bars, gap=16), note)
