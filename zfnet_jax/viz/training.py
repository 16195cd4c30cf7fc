"""Training over time, and the confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Integer
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from zfnet_jax.viz.charts import legend, line_chart
from zfnet_jax.viz.layout import (
    FAINT,
    GAP,
    INK,
    SMALL,
    column,
    plot,
    points,
    row,
    sheet,
    shorten,
    text_width,
)


def training_curves(
    history: Sequence[Mapping[str, Any]], test_accuracy: float | None = None
) -> Figure:
    """Draw loss, accuracy and learning rate during training.

    `history` has the `record` of each epoch, with `validation_loss` and
    `validation_accuracy` where they were measured.
    """
    steps_per_epoch = history[-1]["steps"][-1] / history[-1]["epoch"]
    epochs = np.concatenate([x["steps"] for x in history]) / steps_per_epoch
    ends = np.cumsum([len(x["steps"]) for x in history]) - 1

    def curves(name: str, quantity: str) -> dict[str, np.ndarray]:
        measured = {"training": np.concatenate([x[name] for x in history])}
        if quantity in history[-1]:
            measured["validation"] = np.full(len(epochs), np.nan)
            measured["validation"][ends] = [x[quantity] for x in history]
        return measured

    loss = curves("loss_curve", "validation_loss")
    accuracy = curves("accuracy_curve", "validation_accuracy")
    (rates,) = curves("rate_curve", "").values()
    levels = {}
    if test_accuracy is not None:
        levels[f"test {test_accuracy:.2%}"] = test_accuracy
    is_stepped = bool(0 < 10 * rates.min() <= rates.max()) and len(set(rates)) < 5
    style: dict[str, Any] = {"x_label": "epoch", "size": (330, 250)}
    charts = [
        line_chart(epochs, loss, title="loss (nats)", **style),
        line_chart(
            epochs, accuracy, title="accuracy", levels=levels, percent=True, **style
        ),
        line_chart(epochs, {"": rates}, title="learning rate", log=is_stepped, **style),
    ]
    return sheet(
        f"Training for {len(history)} epoch{'s' if len(history) > 1 else ''}",
        column(legend(list(loss)), row(*charts)),
        "Training accuracy is measured with augmentation and dropout.",
    )


def confusion_matrix(
    matrix: Integer[np.ndarray, "c c"], class_names: Sequence[str]
) -> Figure:
    """Draw how often images of each class (rows) were taken for each other class."""
    cell = max(40, text_width(str(matrix.max())) + GAP)
    names = [shorten(x, 140) for x in class_names]
    labels = max(map(text_width, names)) + 3 * GAP + SMALL
    side = cell * len(matrix) + labels + GAP
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)

    def draw(ax: Axes) -> None:
        # The root shows the few errors of a good classifier.
        style = {"cmap": "Blues", "norm": PowerNorm(0.5, 0, 1)}
        ax.imshow(shares, aspect="auto", interpolation="nearest", **style)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0, labelcolor=INK)
        ax.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
        ax.set_yticks(range(len(names)), names, parse_math=False)
        ax.set_xlabel("predicted class", color=FAINT, fontsize=points(SMALL))
        ax.set_ylabel("true class", color=FAINT, fontsize=points(SMALL))
        for y, x in np.argwhere(matrix).tolist():
            ax.text(
                x,
                y,
                str(matrix[y, x]),
                ha="center",
                va="center",
                color="white" if shares[y, x] > 0.45 else INK,
                fontsize=points(SMALL + 2 if x == y else SMALL),
                fontweight="bold" if x == y else "normal",
            )

    right, total = int(matrix.trace()), int(matrix.sum())
    return sheet(
        f"{right:,} of {total:,} test images classified correctly "
        f"({right / max(total, 1):.2%})",
        plot(side, side, draw, left=labels, below=labels),
        "The color of a cell is its share of the true class, from 0 (white) to 100% "
        "(dark), by its square root.",
    )
