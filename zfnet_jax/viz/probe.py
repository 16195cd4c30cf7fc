"""Table 7 of the paper: accuracy against depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from zfnet_jax.viz.charts import legend, line_chart
from zfnet_jax.viz.layout import GAP, column, row, sheet, text, text_width

Curves = Mapping[str, Float[np.ndarray, "repeats layers"]]


def accuracy_by_layer(
    title: str,
    note: str,
    panels: Mapping[str, tuple[Sequence[str], Curves]],
    levels: Mapping[str, float],
) -> Figure:
    """Draw how well each layer's features tell classes, in one panel or several.

    A panel has the names of its layers, from the image up, and curves by name; levels
    are lines across the first panel.
    """
    boxes = []
    for heading, (layers, curves) in panels.items():
        step = max(64, max(map(text_width, layers)) + GAP)
        chart = line_chart(
            np.arange(len(layers)),
            curves,
            levels={} if boxes else levels,
            x_ticks={float(place): name for place, name in enumerate(layers)},
            y_limits=(0, 1),
            percent=True,
            marks=True,
            size=(max(len(layers) * step, 240) + 60, 380),
        )
        names = legend(list(curves), marks=True)
        boxes.append(column(text(heading), names, chart, gap=4))
    return sheet(title, row(*boxes, gap=4 * GAP), note)
