"""Arrays to figures: training curves, confusions, predictions, feature maps, filters.

Nothing here knows a model: arrays and names go in, a matplotlib `(Figure, Axes)` comes
out, and nothing is shown, cached or set globally. Pictures lie on sheets measured in
screen pixels and are enlarged by whole factors with hard edges, so that a pixel of a
32 x 32 image is a square on screen. Every colour scale is written on its figure, and no
fact is told by colour alone.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np
from jaxtyping import Array, Float, Integer, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

AnyArray = Array | np.ndarray

# A power of two, so that sizes in pixels survive the division into inches exactly.
_DPI = 128
_SHEET_WIDTH = 1024
_MARGIN = 16
_GAP = 8

# Heights of type in pixels.
_TITLE, _LABEL, _SMALL = 17, 14, 12

_QUANTITIES = ("loss", "accuracy")

# Okabe & Ito's palette, told apart by the colour-blind too.
_BLUE, _VERMILLION = "#0072B2", "#D55E00"
_INK, _FAINT, _LINE = "#222222", "#5F5F5F", "#C8C8C8"


def display(
    x: Float[AnyArray, "*shape"], scale: float | None = None
) -> tuple[Float[np.ndarray, "*shape"], float]:
    """Map signed values to `0.5 + x / (2 scale)`, where zero is mid-grey.

    Args:
        x: Values of any shape, such as filters or projections.
        scale: The magnitude that reaches black or white; larger ones are clipped. None
            takes the greatest in `x`.

    Returns:
        The values for display, float32 in [0, 1], and the scale used. An `x` of zeros
        alone gives mid-grey and the scale 0.

    Raises:
        ValueError: `x` is empty or not finite, `scale` is not a finite number above 0.
    """
    values = _checked("x", x, (None,) * np.ndim(x), "float")
    peak = float(np.abs(values).max())
    if scale is None:
        scale = peak
    if not math.isfinite(scale) or scale < 0 or (scale == 0 and peak > 0):
        raise ValueError(f"scale must be a finite number above 0, got {scale}")
    if scale == 0:
        return np.full(values.shape, 0.5, np.float32), 0.0
    return np.clip(0.5 + values / scale / 2, 0, 1).astype(np.float32), float(scale)


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
        figsize=(_SHEET_WIDTH / _DPI, 352 / _DPI),
        dpi=_DPI,
        facecolor="white",
        layout="constrained",
    )
    axes: np.ndarray = fig.subplots(1, 3)
    for ax, title in zip(axes, ("loss", "accuracy (%)", "learning rate"), strict=True):
        ax.set_title(title, loc="left", color=_INK, fontsize=_points(_LABEL))
        ax.set_xlabel("epoch", color=_FAINT, fontsize=_points(_SMALL))
        ax.tick_params(colors=_FAINT, labelsize=_points(_SMALL), width=0.5, length=3)
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set(color=_LINE, linewidth=0.5)
        ax.grid(axis="y", color=_LINE, linewidth=0.3)
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
        ax.legend(frameon=False, fontsize=_points(_SMALL), labelcolor=_INK, loc="best")

    stepped = 2 * len(np.unique(rates)) <= len(rates)
    axes[2].plot(
        epochs,
        rates,
        color=_INK,
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
    fig.suptitle(title, x=0.01, ha="left", color=_INK, fontsize=_points(_TITLE))
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
    counts = _checked("matrix", matrix, (None, None), "integer")
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
    named = cell >= _SMALL + 2
    side = max(cell * classes, 160)
    fig = Figure(
        figsize=((side + 290) / _DPI, (side + 190) / _DPI),
        dpi=_DPI,
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
    ax.tick_params(length=0, labelsize=_points(_SMALL), labelcolor=_INK)
    if named:
        names = [_shortened(name, 140, _SMALL) for name in class_names]
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
    ax.set_xlabel("predicted class", color=_FAINT, fontsize=_points(_LABEL))
    ax.set_ylabel("true class", color=_FAINT, fontsize=_points(_LABEL))
    if numbered:
        for (row, column), count in np.ndenumerate(counts):
            dark = shares[row, column] > 0.45
            ax.text(
                column,
                row,
                str(count),
                ha="center",
                va="center",
                color="white" if dark else _INK if count else _FAINT,
                fontsize=_points(_LABEL if row == column else _SMALL),
                fontweight="bold" if row == column else "normal",
                in_layout=False,
            )
    right, total = int(counts.trace()), int(counts.sum())
    ax.set_title(
        f"{right:,} of {total:,} right" + (f" ({right / total:.2%})" if total else ""),
        loc="left",
        color=_INK,
        fontsize=_points(_TITLE),
    )
    ticks = [0, 0.01, 0.05, 0.1, 0.25, 0.5, 1]
    bar = fig.colorbar(mesh, ax=ax, ticks=ticks, fraction=0.05, aspect=30, pad=0.02)
    bar.ax.set_yticklabels([f"{tick:.0%}" for tick in ticks])
    bar.ax.tick_params(labelsize=_points(_SMALL), colors=_FAINT, width=0.5, length=3)
    bar.ax.spines[:].set_visible(False)
    bar.set_label(
        "share of the true class", color=_FAINT, fontsize=_points(_LABEL), rotation=90
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
    pictures = _checked("images", images, (None, None, None, 3), "uint8")
    count, height, width = pictures.shape[:3]
    true = _checked("labels", labels, (count,), "integer")
    guesses = _checked("predictions", predictions, (count,), "integer")
    chances = _checked("probabilities", probabilities, (count,), "float")
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
    size = _enlarged(height, width, 96)
    names = [_shortened(name, 128, _SMALL) for name in class_names]
    captions = [
        f"{'✓' if ok else '✗'} {names[guess]} {chance:.0%}"
        for ok, guess, chance in zip(right, guesses, chances, strict=True)
    ]
    texts = [names[label] for label in true] + captions
    cell_width = max(size[1], *(_text_width(text, _SMALL) for text in texts))
    line = _SMALL + 4
    grid = _grid(count, (size[0] + 2 * line + 8, cell_width), _SHEET_WIDTH)
    fig, ax, top = _sheet(
        f"{right.sum()} of {count} right",
        "below each picture the true class, then the predicted one and its "
        "probability; ✗ and a frame mark the wrong",
        grid.height,
        grid.width,
    )
    for index, (x, y) in enumerate(grid.corners(top, _MARGIN)):
        left = x + (cell_width - size[1]) // 2
        if not right[index]:
            # A larger square behind the picture; a stroke would miss whole pixels.
            corner, frame = (left - 3, y - 3), (size[1] + 6, size[0] + 6)
            ax.add_patch(Rectangle(corner, *frame, color=_VERMILLION, lw=0, zorder=-1))
        _place(ax, pictures[index], left, y, size)
        middle, y = left + size[1] / 2, y + size[0] + 8
        color = _FAINT if right[index] else _INK
        _write(ax, names[true[index]], middle, y, _SMALL, ha="center")
        _write(ax, captions[index], middle, y + line, _SMALL, ha="center", color=color)
    return fig, ax


def feature_maps(
    image: UInt8[AnyArray, "h w 3"],
    maps: Float[AnyArray, "rows columns c"],
    layer: str,
    max_maps: int = 64,
) -> tuple[Figure, Axes]:
    """Draw an image beside the maps that a layer makes of it.

    The first `max_maps` channels are shown, in order, on one scale: from 0 to their
    maximum or, where a map goes below 0, symmetric about it. A map that is 0 everywhere
    is crossed out.

    Args:
        image: The RGB picture that the maps come from.
        maps: The layer's maps; height and width may be 1.
        layer: The layer's name, for the title.
        max_maps: How many channels to show at most.

    Returns:
        The figure and its axes, which hold `image`, the maps, then the colour bar.

    Raises:
        ValueError: An array is empty, not finite or of another shape; `max_maps` is not
            positive.
    """
    picture = _checked("image", image, (None, None, 3), "uint8")
    values = _checked("maps", maps, (None, None, None), "float")
    if max_maps < 1:
        raise ValueError(f"max_maps must be positive, got {max_maps}")
    height, width, channels = values.shape
    dead = ~np.any(values, axis=(0, 1))
    shown = values[..., :max_maps]
    count = shown.shape[2]
    peak = float(np.abs(shown).max())
    low = -peak if shown.min() < 0 else 0.0
    # Maps of zeros alone have no scale; any upper limit draws them as zero.
    colors = {
        "cmap": "PuOr_r" if low < 0 else "inferno",
        "norm": Normalize(low, peak or 1.0),
    }

    number = _SMALL + 4
    size = _enlarged(height, width, 64)
    cell_width = max(size[1], _text_width(str(channels), _SMALL))
    picture_size = _enlarged(picture.shape[0], picture.shape[1], 192)
    bar = (12, max(picture_size[1], 160))
    left = _MARGIN + bar[1] + 2 * _GAP
    grid = _grid(count, (size[0] + number, cell_width), _SHEET_WIDTH - left + _MARGIN)
    fig, ax, top = _sheet(
        f"{layer}: {f'{count} of ' if count < channels else ''}{channels} "
        f"map{'s' if channels > 1 else ''} of {height} x {width}",
        f"{dead.sum()} of {channels} dead here: zero everywhere, crossed out"
        if dead.any()
        else "none dead here",
        max(grid.height, number + picture_size[0] + _GAP + bar[0] + number),
        left - _MARGIN + grid.width,
    )
    y = top + number
    _place(ax, picture, _MARGIN, y, picture_size)
    for channel, (x, y_number) in enumerate(grid.corners(top, left)):
        _write(ax, str(channel), x, y_number, _SMALL, color=_FAINT)
        y_map = y_number + number
        _place(ax, shown[..., channel], x, y_map, size, **colors)
        if dead[channel]:
            for ends in ((y_map, y_map + size[0]), (y_map + size[0], y_map)):
                ax.plot((x, x + size[1]), ends, color=_FAINT, linewidth=_points(1))
    y += picture_size[0] + _GAP
    _place(ax, np.linspace(low, peak, bar[1])[None], _MARGIN, y, bar, **colors)
    y += bar[0] + 4
    _write(ax, f"{low:.3g}", _MARGIN, y, _SMALL, color=_FAINT)
    _write(ax, f"{peak:.3g}", _MARGIN + bar[1], y, _SMALL, color=_FAINT, ha="right")
    return fig, ax


def first_layer_filters(
    kernels: Float[AnyArray, "kh kw 3 n"],
) -> tuple[Figure, Axes]:
    """Draw the filters that see the pixels, in order, as colours on one scale.

    Below each stand its number and its RMS, which the paper's training keeps from
    passing 1e-1 because single filters come to dominate (section 3 and Fig. 6a).

    Args:
        kernels: RGB filters in HWIO order.

    Returns:
        The figure and its axes, which hold the filters in order, as `display` gives
        them.

    Raises:
        ValueError: `kernels` is empty, not finite or has another shape.
    """
    values = _checked("kernels", kernels, (None, None, 3, None), "float")
    height, width, _, count = values.shape
    colors, scale = display(values)
    size = _enlarged(height, width, 64)
    captions = [f"{rms:#.2g}" for rms in np.sqrt(np.square(values).mean((0, 1, 2)))]
    cell_width = max(
        size[1], *(_text_width(f"{count}  {text}", _SMALL) for text in captions)
    )
    grid = _grid(count, (size[0] + _SMALL + 6, cell_width), _SHEET_WIDTH)
    fig, ax, top = _sheet(
        f"{count} filter{'s' if count > 1 else ''} of {height} x {width} x 3",
        (f"black is {-scale:.3g}, mid-grey 0, white {scale:.3g}" if scale else "all 0")
        + "; below each filter its number and RMS",
        grid.height,
        grid.width,
    )
    for index, (x, y) in enumerate(grid.corners(top, _MARGIN)):
        _place(ax, colors[..., index], x, y, size)
        y += size[0] + 4
        _write(ax, str(index), x, y, _SMALL, color=_FAINT)
        _write(ax, captions[index], x + cell_width, y, _SMALL, ha="right")
    return fig, ax


def save_figure(fig: Figure, path: str | Path) -> tuple[Path, ...]:
    """Write a figure as PNG and, if it holds no picture, as PDF of the same name.

    The same figure gives the same bytes: neither file names a date or a version.

    Args:
        fig: The figure.
        path: Where the PNG goes; must end in `.png`.

    Returns:
        The files written.

    Raises:
        ValueError: `path` does not end in `.png`.
        OSError: A file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".png":
        raise ValueError(f"path must end in .png, got {path}")
    metadata: dict[str, dict[str, str | None]] = {".png": {"Software": None}}
    if not any(ax.images for ax in fig.axes):
        metadata[".pdf"] = {"Creator": None, "Producer": None, "CreationDate": None}
    written = []
    for suffix, omitted in metadata.items():
        # Rendered in memory, so that an error in drawing leaves no half-written file.
        buffer = io.BytesIO()
        fig.savefig(buffer, format=suffix[1:], dpi="figure", metadata=omitted)
        written.append(path.with_suffix(suffix))
        written[-1].write_bytes(buffer.getvalue())
    return tuple(written)


def _checked(
    name: str, value: AnyArray, shape: tuple[int | None, ...], kind: str
) -> np.ndarray:
    """The value in numpy, or a ValueError that names the argument.

    None in `shape` stands for any length but 0. Floats come back as float64, whatever
    their width: half precision would overflow in sums and squares.
    """
    array = np.asarray(value)
    if kind == "float":
        # bfloat16, which numpy borrows, has the kind V.
        fits = array.dtype.kind in "fV" and np.can_cast(array.dtype, np.float64)
    elif kind == "integer":
        fits = array.dtype.kind in "iu"
    else:
        fits = array.dtype == kind
    fits = fits and array.ndim == len(shape)
    for length, wanted in zip(array.shape, shape, strict=False):
        fits = fits and (length > 0 if wanted is None else length == wanted)
    if not fits:
        wanted = ", ".join("*" if length is None else str(length) for length in shape)
        raise ValueError(
            f"{name} must be a non-empty {kind}[{wanted}], "
            f"got {array.dtype}{list(array.shape)}"
        )
    if kind != "float":
        return array
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds values that are not finite")
    return array


@dataclasses.dataclass(frozen=True)
class _Grid:
    """Cells of one size, in rows, with gaps between; sizes in pixels."""

    count: int
    columns: int
    cell: tuple[int, int]

    @property
    def height(self) -> int:
        return -(-self.count // self.columns) * (self.cell[0] + _GAP) - _GAP

    @property
    def width(self) -> int:
        return self.columns * (self.cell[1] + _GAP) - _GAP

    def corners(self, top: int, left: int) -> Iterator[tuple[int, int]]:
        """The x and y of each cell's upper left corner."""
        for index in range(self.count):
            row, column = divmod(index, self.columns)
            yield (
                left + column * (self.cell[1] + _GAP),
                top + row * (self.cell[0] + _GAP),
            )


def _grid(count: int, cell: tuple[int, int], sheet_width: int) -> _Grid:
    """As many columns as fit, or as make the grid square, and full rows if near."""
    fitting = (sheet_width - 2 * _MARGIN + _GAP) // (cell[1] + _GAP)
    most = min(count, max(fitting, math.isqrt(count * cell[0] // cell[1]), 1))
    for columns in range(most, 2 * most // 3, -1):
        if count % columns == 0:
            return _Grid(count, columns, cell)
    rows = -(-count // most)
    return _Grid(count, -(-count // rows), cell)


def _sheet(title: str, note: str, height: int, width: int) -> tuple[Figure, Axes, int]:
    """White paper for contents of a size, and the y where they start.

    The axes count screen pixels from the upper left corner.
    """
    lines = [(title, _TITLE)]
    width = max(width, 400, _text_width(title, _TITLE))
    lines += [(text, _SMALL) for text in _wrapped(note, width, _SMALL)]
    top = _MARGIN + sum(size + 6 for _, size in lines) + _GAP
    height, width = top + height + _MARGIN, width + 2 * _MARGIN
    fig = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    ax.set_xlim(0, width)
    ax.set_ylim(height, 0)
    y = _MARGIN
    for text, size in lines:
        _write(ax, text, _MARGIN, y, size, color=_INK if size == _TITLE else _FAINT)
        y += size + 6
    return fig, ax, top


def _enlarged(height: int, width: int, side: int) -> tuple[int, int]:
    """Enlarge by a whole factor to at most `side`; shrink what is very large."""
    longest = max(height, width)
    if longest <= 256:
        factor = max(side // longest, 1)
        return height * factor, width * factor
    return max(height * 256 // longest, 1), max(width * 256 // longest, 1)


def _place(
    ax: Axes, picture: np.ndarray, x: int, y: int, size: tuple[int, int], **colors: Any
) -> None:
    height, width = size
    shrunk = height < picture.shape[0]
    ax.imshow(
        picture,
        origin="upper",
        extent=(x, x + width, y + height, y),
        aspect="auto",
        interpolation="hanning" if shrunk else "nearest",
        **colors,
    )


def _write(
    ax: Axes, text: str, x: int | float, y: int | float, height: int, **style: Any
) -> None:
    style = {"color": _INK, "ha": "left", **style}
    ax.text(x, y, text, fontsize=_points(height), va="top", parse_math=False, **style)


def _points(pixels: int | float) -> float:
    return pixels * 72 / _DPI


def _text_width(text: str, height: int) -> int:
    font = FontProperties(size=height)
    return math.ceil(text_to_path.get_text_width_height_descent(text, font, False)[0])


def _wrapped(text: str, width: int, height: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if lines[-1] and _text_width(longer, height) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _shortened(text: str, width: int, height: int) -> str:
    if _text_width(text, height) <= width:
        return text
    while text and _text_width(text + "…", height) > width:
        text = text[:-1]
    return text.rstrip() + "…"
