"""How every figure is laid out: sheets in screen pixels, type, checks, files.

Pictures lie on sheets measured in screen pixels and are enlarged by whole factors with
hard edges, so that a pixel of a 32 x 32 image is a square on screen.
"""

from __future__ import annotations

import bisect
import dataclasses
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.textpath import text_to_path

AnyArray = Array | np.ndarray

# A power of two, so that sizes in pixels survive the division into inches exactly.
DPI = 128
SHEET_WIDTH = 1024
MARGIN = 16
GAP = 8

# Heights of type in pixels.
TITLE, LABEL, SMALL = 17, 14, 12

# A colour bar, and the same with the numbers below it.
_BAR = 12
COLOR_BAR = _BAR + 4 + SMALL

INK, FAINT, LINE = "#222222", "#5F5F5F", "#C8C8C8"

# Okabe & Ito's colours, told apart by the colour-blind too; marks, dashes, hatching or
# numbers always say the same.
PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#F0E442",
    "#999999",
)


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
    values = checked("x", x, (None,) * np.ndim(x), "float")
    peak = float(np.abs(values).max())
    if scale is None:
        scale = peak
    if not math.isfinite(scale) or scale < 0 or (scale == 0 and peak > 0):
        raise ValueError(f"scale must be a finite number above 0, got {scale}")
    if scale == 0:
        return np.full(values.shape, 0.5, np.float32), 0.0
    return np.clip(0.5 + values / scale / 2, 0, 1).astype(np.float32), float(scale)


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
    kinds = ["png"] if any(ax.images for ax in fig.axes) else ["png", "pdf"]
    written = []
    for kind in kinds:
        # Rendered in memory, so that an error in drawing leaves no half-written file.
        data = figure_bytes(fig, kind)
        written.append(path.with_suffix(f".{kind}"))
        written[-1].write_bytes(data)
    return tuple(written)


def figure_bytes(fig: Figure, kind: str) -> bytes:
    """A figure as a "png" or "pdf" file, which names neither a date nor a version."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format=kind, dpi="figure", metadata=_OMITTED[kind])
    return buffer.getvalue()


_OMITTED: dict[str, dict[str, str | None]] = {
    "png": {"Software": None},
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
}


def checked(
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
class Grid:
    """Cells of one size, in rows, with gaps between; sizes in pixels."""

    count: int
    columns: int
    cell: tuple[int, int]

    @property
    def height(self) -> int:
        """Of all rows together."""
        return -(-self.count // self.columns) * (self.cell[0] + GAP) - GAP

    @property
    def width(self) -> int:
        """Of all columns together."""
        return self.columns * (self.cell[1] + GAP) - GAP

    def corners(self, top: int, left: int) -> Iterator[tuple[int, int]]:
        """The x and y of each cell's upper left corner."""
        for index in range(self.count):
            row, column = divmod(index, self.columns)
            yield (
                left + column * (self.cell[1] + GAP),
                top + row * (self.cell[0] + GAP),
            )


def grid_of(count: int, cell: tuple[int, int], sheet_width: int) -> Grid:
    """As many columns as fit, or as make the grid square, and full rows if near."""
    fitting = (sheet_width - 2 * MARGIN + GAP) // (cell[1] + GAP)
    most = min(count, max(fitting, math.isqrt(count * cell[0] // cell[1]), 1))
    for columns in range(most, 2 * most // 3, -1):
        if count % columns == 0:
            return Grid(count, columns, cell)
    rows = -(-count // most)
    return Grid(count, -(-count // rows), cell)


def blank_sheet(
    title: str, note: str, height: int, width: int
) -> tuple[Figure, Axes, int]:
    """White paper for contents of a size, and the y where they start.

    The axes count screen pixels from the upper left corner.
    """
    lines = [(title, TITLE)]
    width = max(width, 400, text_width(title, TITLE))
    lines += [(text, SMALL) for text in _wrapped(note, width, SMALL)]
    top = MARGIN + sum(size + 6 for _, size in lines) + GAP
    height, width = top + height + MARGIN, width + 2 * MARGIN
    fig = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    ax.set_xlim(0, width)
    ax.set_ylim(height, 0)
    y = MARGIN
    for text, size in lines:
        write(ax, text, MARGIN, y, size, color=INK if size == TITLE else FAINT)
        y += size + 6
    return fig, ax, top


def chart(sheet: Axes, left: int, top: int, width: int, height: int) -> Axes:
    """Axes of a chart at a place of a sheet, in screen pixels, above what it shows."""
    figure = sheet.get_figure(root=True)
    assert figure is not None
    total_w, total_h = figure.get_size_inches() * DPI
    ax = figure.add_axes(
        (
            left / total_w,
            1 - (top + height) / total_h,
            width / total_w,
            height / total_h,
        )
    )
    ax.tick_params(colors=FAINT, labelsize=points(SMALL), width=0.5, length=3)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set(color=LINE, linewidth=0.5)
    sheet.set_zorder(-1)
    return ax


def enlarged(height: int, width: int, side: int) -> tuple[int, int]:
    """Enlarge by a whole factor to at most `side`; shrink what is very large."""
    longest = max(height, width)
    if longest <= 256:
        factor = max(side // longest, 1)
        return height * factor, width * factor
    return max(height * 256 // longest, 1), max(width * 256 // longest, 1)


def place(
    ax: Axes, picture: np.ndarray, x: int, y: int, size: tuple[int, int], **colors: Any
) -> None:
    """Draw a picture with its upper left corner at (x, y), `size` rows and columns."""
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


def place_color_bar(
    ax: Axes, low: float, high: float, x: int, y: int, width: int, **colors: Any
) -> None:
    """Draw the colours from `low` to `high`, named below; `COLOR_BAR` pixels high."""
    place(ax, np.linspace(low, high, width)[None], x, y, (_BAR, width), **colors)
    y += _BAR + 4
    if low < 0 < high:
        write(ax, "0", x + width / 2, y, SMALL, color=FAINT, ha="center")
    write(ax, f"{low:.3g}", x, y, SMALL, color=FAINT)
    write(ax, f"{high:.3g}", x + width, y, SMALL, color=FAINT, ha="right")


def write(
    ax: Axes, text: str, x: int | float, y: int | float, height: int, **style: Any
) -> None:
    """Write a line of text whose upper left corner is at (x, y)."""
    style = {"color": INK, "ha": "left", **style}
    ax.text(x, y, text, fontsize=points(height), va="top", parse_math=False, **style)


def points(pixels: int | float) -> float:
    """A length in pixels as matplotlib's points."""
    return pixels * 72 / DPI


def text_width(text: str, height: int) -> int:
    """Width of a line of text, in pixels."""
    font = FontProperties(size=height)
    return math.ceil(text_to_path.get_text_width_height_descent(text, font, False)[0])


def _wrapped(text: str, width: int, height: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if lines[-1] and text_width(longer, height) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def shortened(text: str, width: int, height: int) -> str:
    """The text, cut short with an ellipsis where it is wider than `width`.

    What the font has no sign for, such as a line break, is marked as such.
    """
    sign = get_font(findfont(FontProperties())).get_char_index
    text = "".join(x if sign(ord(x)) else "\N{REPLACEMENT CHARACTER}" for x in text)
    if text_width(text, height) <= width:
        return text
    too_long = bisect.bisect_right(
        range(len(text)), width, key=lambda end: text_width(f"{text[:end]}…", height)
    )
    return text[: max(too_long - 1, 0)].rstrip() + "…"
