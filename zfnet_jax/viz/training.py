"""How training went: curves over the epochs, confusions, predictions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import SupportsFloat

import numpy as np
from jaxtyping import Float, Integer, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from zfnet_jax.viz.sheet import (
    DPI,
    FAINT,
    INK,
    LABEL,
    LINE,
    MARGIN,
    PALETTE,
    SHEET_WIDTH,
    SMALL,
    TITLE,
    AnyArray,
    blank_sheet,
    checked,
    enlarged,
    grid_of,
    place,
    points,
    shortened,
    text_width,
    write,
)

_QUANTITIES = ("loss", "accuracy")

_BLUE, _VERMILLION = PALETTE[:2]


def training_curves(
    history: Sequence[Mapping[str, SupportsFloat | None]],
) -> tuple[Figure, np.ndarray]:
    """Draw loss, accuracy in percent and learning rate over the epochs.

    A learning rate that is lowered in steps, tenfold or more in all, is drawn on a
    logarithmic axis.

    Args:
        history: One mapping an epoch with `epoch`, `train_loss`, `train_accuracy`,
            `learning_rate` and, where measured, `validation_loss` and
            `validation_accuracy`; accuracies are fractions from 0 to 1.

    Returns:
        The figure and its three axes.

    Raises:
        ValueError: `history` is empty, lacks a key, or holds a value out of range.
    """
    if not history:
        raise ValueError("history holds no epoch")
    epochs = _recorded(history, "epoch")
    rates = _recorded(history, "learning_rate")
    curves = {
        "training": [_recorded(history, f"train_{name}") for name in _QUANTITIES],
        "validation": [
            _recorded(history, f"validation_{name}", optional=True)
            for name in _QUANTITIES
        ],
    }
    fig = Figure(
        figsize=(SHEET_WIDTH / DPI, 352 / DPI),
        dpi=DPI,
        facecolor="white",
        layout="constrained",
    )
    axes: np.ndarray = fig.subplots(1, 3)
    for ax, title in zip(axes, ("loss", "accuracy (%)", "learning rate"), strict=True):
        ax.set_title(title, loc="left", color=INK, fontsize=points(LABEL))
        ax.set_xlabel("epoch", color=FAINT, fontsize=points(SMALL))
        ax.tick_params(colors=FAINT, labelsize=points(SMALL), width=0.5, length=3)
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set(color=LINE, linewidth=0.5)
        ax.grid(axis="y", color=LINE, linewidth=0.3)
        ax.set_axisbelow(True)
        ax.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))

    size = 2.5 if len(epochs) <= 40 else 0
    styles = {"training": (_BLUE, "--", "o"), "validation": (_VERMILLION, "-", "s")}
    for split, (color, dashes, marker) in styles.items():
        for ax, values in zip(axes[:2], curves[split], strict=True):
            kept = ~np.isnan(values)
            if kept.any():
                ax.plot(
                    epochs[kept],
                    values[kept] * (100 if ax is axes[1] else 1),
                    color=color,
                    linestyle=dashes,
                    linewidth=1,
                    marker=marker,
                    markersize=size,
                    label=split,
                )
    for ax in axes[:2]:
        ax.legend(frameon=False, fontsize=points(SMALL), labelcolor=INK, loc="best")

    stepped = 2 * len(np.unique(rates)) <= len(rates)
    axes[2].plot(
        epochs,
        rates,
        color=INK,
        linewidth=1,
        marker="o",
        markersize=size,
        drawstyle="steps-mid" if stepped else "default",
    )
    if stepped and rates.max() >= 10 * rates.min() > 0:
        axes[2].set_yscale("log")
        axes[2].yaxis.set_major_locator(LogLocator())
        axes[2].yaxis.set_minor_formatter(NullFormatter())
    else:
        axes[2].set_ylim(bottom=0)
    axes[2].yaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))

    title = f"{len(epochs)} epoch{'s' if len(epochs) > 1 else ''}: "
    accuracy = curves["validation"][1]
    if np.isnan(accuracy).all():
        title += f"training accuracy {curves['training'][1][-1]:.2%} at the end"
    else:
        best = int(np.nanargmax(accuracy))
        last = int(np.flatnonzero(~np.isnan(accuracy))[-1])
        title += f"validation accuracy {accuracy[last]:.2%} at the end"
        if best != last:
            title += f", {accuracy[best]:.2%} at best (epoch {epochs[best]:g})"
    fig.suptitle(title, x=0.01, ha="left", color=INK, fontsize=points(TITLE))
    return fig, axes


def _recorded(
    history: Sequence[Mapping[str, SupportsFloat | None]],
    key: str,
    *,
    optional: bool = False,
) -> np.ndarray:
    """What each epoch records under `key`; NaN where an optional one is missing."""
    values = []
    for index, row in enumerate(history):
        recorded = row.get(key)
        if recorded is None:
            if not optional:
                raise ValueError(f"history[{index}] has no {key!r}")
            values.append(math.nan)
            continue
        value = float(recorded)
        if not math.isfinite(value):
            raise ValueError(f"history[{index}][{key!r}] must be finite, got {value}")
        if key == "learning_rate" and value < 0:
            raise ValueError(f"history[{index}][{key!r}] is negative: {value}")
        if key.endswith("accuracy") and not 0 <= value <= 1:
            raise ValueError(
                f"history[{index}][{key!r}] must be a fraction from 0 to 1, got {value}"
            )
        values.append(value)
    return np.array(values)


def confusion_matrix(
    matrix: Integer[AnyArray, "c c"], class_names: Sequence[str]
) -> tuple[Figure, Axes]:
    """Draw how often each class was taken for each other.

    Cells show counts, and as colour their share of the true class. The colour follows
    the share's square root, or else the errors of a good classifier would all be white.

    Args:
        matrix: Counts; rows are true classes, columns predicted ones.
        class_names: One name a class, in the matrix's order.

    Returns:
        The figure and the axes of the matrix.

    Raises:
        ValueError: `matrix` is not square or holds a negative count, or `class_names`
            differs from it in length.
    """
    counts = checked("matrix", matrix, (None, None), "integer")
    classes = len(counts)
    if counts.shape[1] != classes:
        raise ValueError(f"matrix must be square, got shape {counts.shape}")
    if counts.min() < 0:
        raise ValueError(f"matrix holds a negative count: {counts.min()}")
    if len(class_names) != classes:
        raise ValueError(
            f"class_names must name {classes} classes, got {len(class_names)} names"
        )
    totals = counts.sum(1, keepdims=True)
    shares = counts / np.maximum(totals, 1)

    numbered = classes <= 25
    cell = max(40, 9 * len(str(counts.max())) + 8) if numbered else 1000 // classes
    named = cell >= SMALL + 2
    side = max(cell * classes, 160)
    fig = Figure(
        figsize=((side + 290) / DPI, (side + 190) / DPI),
        dpi=DPI,
        facecolor="white",
        layout="compressed",
    )
    ax = fig.subplots()
    edges = np.arange(classes + 1) - 0.5
    mesh = ax.pcolormesh(
        edges,
        edges,
        shares,
        cmap="Blues",
        norm=PowerNorm(0.5, 0, 1),
        edgecolors="white" if numbered else "face",
        linewidth=0.5 if numbered else 0,
        # Tens of thousands of cells make a PDF slow as vectors.
        rasterized=not numbered,
    )
    ax.set_aspect("equal")
    ax.set_xlim(-0.5, classes - 0.5)
    ax.set_ylim(classes - 0.5, -0.5)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0, labelsize=points(SMALL), labelcolor=INK)
    if named:
        names = [shortened(name, 140, SMALL) for name in class_names]
        text = {"parse_math": False}
        ax.set_xticks(
            range(classes),
            names,
            rotation=45,
            ha="right",
            rotation_mode="anchor",
            **text,
        )
        ax.set_yticks(range(classes), names, **text)
    ax.set_xlabel("predicted class", color=FAINT, fontsize=points(LABEL))
    ax.set_ylabel("true class", color=FAINT, fontsize=points(LABEL))
    if numbered:
        for (row, column), count in np.ndenumerate(counts):
            dark = shares[row, column] > 0.45
            ax.text(
                column,
                row,
                str(count),
                ha="center",
                va="center",
                color="white" if dark else INK if count else FAINT,
                fontsize=points(LABEL if row == column else SMALL),
                fontweight="bold" if row == column else "normal",
                in_layout=False,
            )
    right, total = int(counts.trace()), int(counts.sum())
    ax.set_title(
        f"{right:,} of {total:,} right" + (f" ({right / total:.2%})" if total else ""),
        loc="left",
        color=INK,
        fontsize=points(TITLE),
    )
    ticks = [0, 0.01, 0.05, 0.1, 0.25, 0.5, 1]
    bar = fig.colorbar(mesh, ax=ax, ticks=ticks, fraction=0.05, aspect=30, pad=0.02)
    bar.ax.set_yticklabels([f"{tick:.0%}" for tick in ticks])
    bar.ax.tick_params(labelsize=points(SMALL), colors=FAINT, width=0.5, length=3)
    bar.ax.spines[:].set_visible(False)
    bar.set_label(
        "share of the true class", color=FAINT, fontsize=points(LABEL), rotation=90
    )
    return fig, ax


def prediction_grid(
    images: UInt8[AnyArray, "n h w 3"],
    labels: Integer[AnyArray, " n"],
    predictions: Integer[AnyArray, " n"],
    probabilities: Float[AnyArray, " n"],
    class_names: Sequence[str],
) -> tuple[Figure, Axes]:
    """Draw images with their true class and, below it, the predicted one.

    A wrong prediction has a cross and a frame, a right one a tick.

    Args:
        images: RGB pictures.
        labels: True classes, as indices into `class_names`.
        predictions: Predicted classes.
        probabilities: What the classifier gives each predicted class, from 0 to 1.
        class_names: One name a class.

    Returns:
        The figure and its axes, which hold `images` in order.

    Raises:
        ValueError: The arrays differ in length, a class has no name, or a probability
            lies outside 0 to 1.
    """
    pictures = checked("images", images, (None, None, None, 3), "uint8")
    count, height, width = pictures.shape[:3]
    true = checked("labels", labels, (count,), "integer")
    guesses = checked("predictions", predictions, (count,), "integer")
    chances = checked("probabilities", probabilities, (count,), "float")
    for name, classes in (("labels", true), ("predictions", guesses)):
        if classes.min() < 0 or classes.max() >= len(class_names):
            raise ValueError(
                f"{name} must index the {len(class_names)} class_names, got values "
                f"from {classes.min()} to {classes.max()}"
            )
    # A softmax in single precision may pass 1 by its rounding.
    if chances.min() < 0 or chances.max() > 1 + 1e-5:
        raise ValueError(
            f"probabilities must lie in 0 to 1, got {chances.min()} to {chances.max()}"
        )

    right = true == guesses
    size = enlarged(height, width, 96)
    names = [shortened(name, 128, SMALL) for name in class_names]
    captions = [
        f"{'✓' if ok else '✗'} {names[guess]} {chance:.0%}"
        for ok, guess, chance in zip(right, guesses, chances, strict=True)
    ]
    texts = [names[label] for label in true] + captions
    cell_width = max(size[1], *(text_width(text, SMALL) for text in texts))
    line = SMALL + 4
    grid = grid_of(count, (size[0] + 2 * line + 8, cell_width), SHEET_WIDTH)
    fig, ax, top = blank_sheet(
        f"{right.sum()} of {count} right",
        "below each picture the true class, then the predicted one and its "
        "probability; ✗ and a frame mark the wrong",
        grid.height,
        grid.width,
    )
    for index, (x, y) in enumerate(grid.corners(top, MARGIN)):
        left = x + (cell_width - size[1]) // 2
        if not right[index]:
            # A larger square behind the picture; a stroke would miss whole pixels.
            corner, frame = (left - 3, y - 3), (size[1] + 6, size[0] + 6)
            ax.add_patch(Rectangle(corner, *frame, color=_VERMILLION, lw=0, zorder=-1))
        place(ax, pictures[index], left, y, size)
        middle, y = left + size[1] / 2, y + size[0] + 8
        color = FAINT if right[index] else INK
        write(ax, names[true[index]], middle, y, SMALL, ha="center")
        write(ax, captions[index], middle, y + line, SMALL, ha="center", color=color)
    return fig, ax
