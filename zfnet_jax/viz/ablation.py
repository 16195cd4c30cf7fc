"""Table 3 of the paper as a figure: errors of variants of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from matplotlib.figure import Figure
from numpy import ndarray

from zfnet_jax.viz.charts import interval_chart
from zfnet_jax.viz.layout import sheet


def ablation_chart(
    title: str,
    rows: Sequence[str],
    errors: Mapping[str, Float[ndarray, "rows seeds"]],
    paper: Mapping[str, Float[ndarray, " rows"]],
) -> Figure:
    """Draw errors of variants, a row for each, with the paper's beside them.

    Args:
        title: Size of the training.
        rows: Names of the variants, from the top.
        errors: Errors in percent of each variant and seed, by kind of error.
        paper: The paper's.
    """
    seeds = next(iter(errors.values())).shape[1]
    spread = {name: {"here": x.std(1)} for name, x in errors.items()}
    chart = interval_chart(
        rows,
        {name: {"here": x.mean(1)} for name, x in errors.items()},
        errors=spread if seeds > 1 else None,
        references={name: {"here": x} for name, x in paper.items()},
        width=280,
    )
    filled = (
        f"mean of {seeds} seeds ± one standard deviation" if seeds > 1 else "1 seed"
    )
    note = f"Filled: {filled}. Hollow: the paper, on ImageNet."
    return sheet(title, chart, note)
