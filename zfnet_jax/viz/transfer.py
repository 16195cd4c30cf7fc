"""Fig. 9 of the paper: accuracy against training images per class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from zfnet_jax.viz.charts import legend, line_chart
from zfnet_jax.viz.layout import GAP, column, row, sheet, text

Curves = Mapping[str, Float[np.ndarray, "draws counts"]]


def accuracy_by_count(
    title: str,
    note: str,
    panels: Mapping[str, tuple[Sequence[int], Curves]],
    chance: float,
) -> Figure:
    """Draw accuracy against the number of training images per class.

    A panel has these numbers, and accuracies of several draws by the name of the curve.
    A dotted line is at chance.
    """
    boxes = []
    for heading, (counts, curves) in panels.items():
        # On a logarithmic axis, with the numbers themselves as labels.
        chart = line_chart(
            np.log(counts),
            curves,
            x_label="training images per class",
            levels={"": chance},
            x_ticks={float(np.log(count)): f"{count:,}" for count in counts},
            y_limits=(0, 1),
            percent=True,
            marks=True,
            size=(480, 320),
        )
        names = legend(list(curves), marks=True)
        boxes.append(column(text(heading), names, chart, gap=4))
    return sheet(title, row(*boxes, gap=4 * GAP), note)
