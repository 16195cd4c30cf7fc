"""How training went: curves, confused classes, predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Integer, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from zfnet_jax.viz.charts import legend, line_chart
from zfnet_jax.viz.layout import (
    FAINT,
    GAP,
    INK,
    PALETTE,
    SMALL,
    Box,
    Number,
    column,
    grid,
    picture,
    plot,
    points,
    row,
    sheet,
    shorten,
    text,
    text_width,
)

# Most classes whose confusions are written as numbers.
_NUMBERED = 25


def training_curves(
    history: Sequence[Mapping[str, Any]], test_accuracy: float | None = None
) -> Figure:
    """Draw loss, accuracy and learning rate during training.

    Args:
        history: The `record` of each `zfnet_jax.training.Epoch`, with
            `validation_loss` and `validation_accuracy` where they were measured.
        test_accuracy: Accuracy on the test images, 0 to 1, where it was measured.
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
    """Draw how often test images of each class were taken for each other class.

    Args:
        matrix: Counts; rows are true classes, columns predicted ones.
        class_names: Names of the classes, in the matrix's order.
    """
    classes = len(matrix)
    is_numbered = classes <= _NUMBERED
    cell = max(40, text_width(str(matrix.max())) + GAP)
    if not is_numbered:
        cell = max(1000 // classes, 1)
    names = [shorten(x, 140) for x in class_names] if cell > SMALL else []
    margin = max(map(text_width, names), default=20)
    side = cell * classes
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
        if is_numbered:
            for y, x in np.argwhere(matrix).tolist():
                _write_count(ax, y, x, int(matrix[y, x]), float(shares[y, x]))

    labels = margin + 3 * GAP + SMALL
    body = plot(
        side + labels + GAP, side + labels + GAP, draw, left=labels, below=labels
    )
    right, total = int(matrix.trace()), int(matrix.sum())
    return sheet(
        f"{right:,} of {total:,} test images classified correctly "
        f"({right / max(total, 1):.2%})",
        body,
        "The color of a cell is its share of the true class, from 0 (white) to 100% "
        "(dark), by its square root.",
    )


def _write_count(ax: Axes, y: Any, x: Any, count: Any, share: Any) -> None:
    is_right = x == y
    ax.text(
        x,
        y,
        str(count),
        ha="center",
        va="center",
        color="white" if share > 0.45 else INK,
        fontsize=points(SMALL + 2 if is_right else SMALL),
        fontweight="bold" if is_right else "normal",
    )


def prediction_grid(
    images: UInt8[np.ndarray, "n h w c"],
    labels: Integer[np.ndarray, " n"],
    predictions: Integer[np.ndarray, " n"],
    probabilities: Float[np.ndarray, " n"],
    class_names: Sequence[str],
) -> Figure:
    """Draw images with their true class and, below it, the predicted one.

    A wrong prediction has a cross and a frame, a right one a tick.

    Args:
        images: Pictures.
        labels: True classes, as indices into `class_names`.
        predictions: Predicted classes.
        probabilities: Probability of each predicted class.
        class_names: Names of the classes.
    """
    is_right = labels == predictions
    names = [shorten(name, 128) for name in class_names]
    boxes = []
    for index, image in enumerate(images):
        mark, color = ("✓", FAINT) if is_right[index] else ("✗", INK)
        prediction = f"{mark} {names[predictions[index]]} {probabilities[index]:.0%}"
        shown = picture(image, 96)
        boxes.append(
            column(
                shown if is_right[index] else _frame(shown),
                text(names[labels[index]]),
                text(prediction, color=color),
                gap=4,
            )
        )
    return sheet(
        f"{is_right.sum()} of {len(images)} test images classified correctly",
        grid(boxes, gap=12),
        "Below each picture its true class, then the predicted one and its "
        "probability; ✗ and a frame mark errors.",
    )


def _frame(box: Box) -> Box:
    """Put a colored square behind a picture."""

    def draw(ax: Axes, x: Number, y: Number) -> None:
        corner, size = (x - 3, y - 3), (box.width + 6, box.height + 6)
        ax.add_patch(Rectangle(corner, *size, color=PALETTE[1], lw=0, zorder=-1))
        box.draw(ax, x, y)

    return Box(box.width, box.height, draw)
