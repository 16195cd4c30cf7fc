"""Fig. 5 of the paper: features and probability as an image is transformed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure

from zfnet_jax.viz.charts import legend, line_chart
from zfnet_jax.viz.layout import column, picture, row, sheet, table, text

_AXES = {
    "translate": "shift down (pixels)",
    "scale": "magnification",
    "rotate": "rotation counterclockwise (°)",
}


def invariance_curves(
    network: str,
    transform: Literal["translate", "scale", "rotate"],
    amounts: Float[np.ndarray, " a"],
    distances: Mapping[str, Float[np.ndarray, "n a"]],
    probability: Float[np.ndarray, "n a"],
    names: Sequence[str],
    pictures: UInt8[np.ndarray, "shown steps h w c"],
    steps: Sequence[float],
) -> Figure:
    """Draw images being transformed, and how features and probability change.

    The mean and its band are those of all n images; the first ones, in `pictures` at
    the amounts `steps`, have curves of their own.
    """
    quantities = {
        **{f"relative distance at {layer}": y for layer, y in distances.items()},
        "probability of the true class": probability,
    }
    # A class may occur twice, and curves go by name.
    keys = [f"{i + 1}. {name}" for i, name in enumerate(names)]
    ticks = np.arange(0, 361, 90) if transform == "rotate" else None
    charts = [
        line_chart(
            amounts,
            dict(zip(keys, values, strict=False)),
            title=title,
            x_label=_AXES[transform],
            mean=values,
            x_ticks=ticks if ticks is not None and amounts[-1] == 360 else None,
            y_limits=(0, 1 if values is probability else None),
        )
        for title, values in quantities.items()
    ]
    sign = {"translate": "{:+g}", "scale": "×{:.2f}", "rotate": "{:.0f}°"}[transform]
    heading = [text(""), *(text(sign.format(step)) for step in steps)]
    rows = [
        [text(key), *(picture(x, 96) for x in images)]
        for key, images in zip(keys, pictures, strict=True)
    ]
    action = {"translate": "shifted", "scale": "enlarged", "rotate": "rotated"}
    return sheet(
        f"Features of {network} as images are {action[transform]}",
        column(table([heading, *rows]), legend(keys), row(*charts), gap=16),
        f"Gray: mean of {len(probability):,} images and one standard deviation. "
        "Distances are relative to the length of the untransformed image's features.",
    )
