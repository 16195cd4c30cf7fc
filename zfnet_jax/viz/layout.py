"""A sheet is boxes in boxes: pictures, text and plots, in rows, columns and grids.

Sizes are screen pixels, of which there are `DPI` to the inch. Small pictures are
enlarged by whole factors with hard edges, so every pixel of a patch is a square.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.textpath import text_to_path

from zfnet_jax.results import spell

# A power of two, so that sizes in pixels survive the division into inches exactly.
DPI = 128
WIDTH = 1024
GAP = 8
MARGIN = 16

# Font sizes.
TITLE, SMALL = 17, 12

INK, FAINT, LINE = "#222222", "#5F5F5F", "#C8C8C8"

# Okabe & Ito's colors, told apart by the color-blind; dashes and marks say the same.
PALETTE = "#0072B2 #D55E00 #009E73 #CC79A7 #E69F00 #56B4E9 #7F7F7F".split()
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 3)))
MARKS = "os^Dv<>"

Number = int | float


@dataclass(frozen=True)
class Box:
    """A part of a sheet.

    Attributes:
        width: Width in pixels.
        height: Height in pixels.
        draw: Draws it with its upper left corner at (x, y) of a sheet's axes.
    """

    width: Number
    height: Number
    draw: Callable[[Axes, Number, Number], None]


def space(width: Number = 0, height: Number = 0) -> Box:
    """Leave a part of a sheet empty."""
    return Box(width, height, lambda ax, x, y: None)


def text(words: str, size: int = SMALL, color: str = INK, bold: bool = False) -> Box:
    """Write a line of text as it is, without interpreting mathematics."""
    words = clean(words)
    style = {
        "fontsize": points(size),
        "color": color,
        "weight": "bold" if bold else "normal",
    }

    def draw(ax: Axes, x: Number, y: Number) -> None:
        ax.text(x, y, words, **style, va="top", parse_math=False)

    width = text_width(words, size)
    # Bold type is wider.
    return Box(width * 9 / 8 if bold else width, size + 4, draw)


def paragraph(words: str, width: Number) -> Box:
    """Write faint text, wrapped to a width."""
    lines = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if lines[-1] and text_width(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return column(*(text(line, color=FAINT) for line in lines), gap=2)


def shorten(words: str, width: Number, size: int = SMALL) -> str:
    """Cut a line of text short with an ellipsis where it is wider than `width`."""
    words = clean(words)
    if text_width(words, size) <= width:
        return words
    while words and text_width(f"{words}…", size) > width:
        words = words[:-1]
    return f"{words.rstrip()}…"


def picture(
    pixels: np.ndarray,
    side: int = 96,
    frames: Sequence[Sequence[Number]] = (),
    fill: bool = False,
    **style: Any,
) -> Box:
    """Show an image.

    Args:
        pixels: [h, w, 3], uint8 or float of 0 to 1, or [h, w] with a color map; [h, w,
            1] is gray.
        side: Longer side in pixels. A small image is enlarged to the next whole factor
            below it, a larger one is shrunk to it.
        frames: Boxes to outline: top, left, bottom, right in pixels of the image.
        fill: Enlarge to `side` itself, where maps of many sizes stand in a row.
        style: Keywords of `imshow`, such as `cmap` and `norm`.
    """
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, 2)
    rows, columns = pixels.shape[:2]
    factor = side / max(rows, columns)
    factor = float(math.floor(factor)) if factor >= 1 and not fill else factor
    width, height = columns * factor, rows * factor
    interpolation = "nearest" if factor >= 1 else "hanning"

    def draw(ax: Axes, x: Number, y: Number) -> None:
        ax.imshow(
            pixels,
            extent=(x, x + width, y + height, y),
            interpolation=interpolation,
            aspect="auto",
            **style,
        )
        for top, left, bottom, right in frames:
            top, bottom = (min(max(edge, 0), rows) * factor for edge in (top, bottom))
            left, right = (
                min(max(edge, 0), columns) * factor for edge in (left, right)
            )
            across = [x + left, x + right, x + right, x + left, x + left]
            down = [y + top, y + top, y + bottom, y + bottom, y + top]
            ax.plot(across, down, color="white", linewidth=1.8)
            ax.plot(across, down, color="black", linewidth=0.8)

    return Box(width, height, draw)


def plot(
    width: Number,
    height: Number,
    draw_data: Callable[[Axes], None],
    *,
    left: Number = 44,
    below: Number = 36,
) -> Box:
    """Place a chart's axes, with room for the labels at its left and below it."""

    def draw(ax: Axes, x: Number, y: Number) -> None:
        figure = ax.get_figure(root=True)
        assert figure is not None
        across, down = figure.get_size_inches() * DPI
        bottom = 1 - (y + height - below) / down
        inner = figure.add_axes(
            (
                (x + left) / across,
                bottom,
                (width - left - GAP) / across,
                (height - below - GAP) / down,
            )
        )
        inner.tick_params(colors=FAINT, labelsize=points(SMALL), width=0.5, length=3)
        inner.spines[["top", "right"]].set_visible(False)
        inner.spines[["left", "bottom"]].set(color=LINE, linewidth=0.5)
        draw_data(inner)

    return Box(width, height, draw)


def color_bar(low: Number, high: Number, width: Number = 160, **style: Any) -> Box:
    """Show the colors from `low` to `high`, labeled below."""
    pixels = np.linspace(low, high, 256)[None]

    def draw(ax: Axes, x: Number, y: Number) -> None:
        ax.imshow(pixels, extent=(x, x + width, y + 12, y), aspect="auto", **style)
        middle = [(0.0, -low / (high - low))] if low < 0 < high else []
        for value, place in ((low, 0.0), *middle, (high, 1.0)):
            label = spell(value)
            shift = text_width(label) * place
            text(label, color=FAINT).draw(ax, x + width * place - shift, y + 14)

    return Box(width, 14 + SMALL + 4, draw)


def row(*boxes: Box, gap: Number = GAP) -> Box:
    """Put boxes side by side, their tops aligned."""

    def draw(ax: Axes, x: Number, y: Number) -> None:
        for box in boxes:
            box.draw(ax, x, y)
            x += box.width + gap

    width = sum(box.width for box in boxes) + gap * max(len(boxes) - 1, 0)
    return Box(width, max((box.height for box in boxes), default=0), draw)


def column(*boxes: Box, gap: Number = GAP) -> Box:
    """Put boxes one above the other, their left sides aligned."""

    def draw(ax: Axes, x: Number, y: Number) -> None:
        for box in boxes:
            box.draw(ax, x, y)
            y += box.height + gap

    height = sum(box.height for box in boxes) + gap * max(len(boxes) - 1, 0)
    return Box(max((box.width for box in boxes), default=0), height, draw)


def table(rows: Sequence[Sequence[Box]], gap: Number = GAP) -> Box:
    """Align boxes in rows and columns; rows may differ in length."""
    widths = [0.0] * max(map(len, rows), default=0)
    for cells in rows:
        for index, box in enumerate(cells):
            widths[index] = max(widths[index], box.width)
    return column(
        *(
            row(
                *(
                    Box(width, box.height, box.draw)
                    for box, width in zip(cells, widths, strict=False)
                ),
                gap=gap,
            )
            for cells in rows
        ),
        gap=gap,
    )


def grid(
    boxes: Sequence[Box],
    columns: int | None = None,
    *,
    width: Number = WIDTH,
    gap: Number = GAP,
) -> Box:
    """Fill rows from the left, by default with as many boxes as fit a width.

    Fewer columns are used if that evens out the rows without adding one.
    """
    if columns is None:
        widest = max((box.width for box in boxes), default=1)
        columns = max(int((width + gap) // (widest + gap)), 1)
        columns = math.ceil(len(boxes) / max(math.ceil(len(boxes) / columns), 1))
    columns = max(columns, 1)
    chunks = [boxes[i : i + columns] for i in range(0, len(boxes), columns)]
    return table(chunks, gap)


def sheet(title: str, body: Box, note: str = "") -> Figure:
    """Make a figure of a title, a note on how to read it, and a body."""
    width = max(body.width, text_width(title, TITLE), 400)
    parts = [text(title, TITLE)]
    if note:
        parts.append(paragraph(note, width))
    return page(column(column(*parts, gap=2), body, gap=12))


def page(body: Box) -> Figure:
    """Make a figure of a body within a margin."""
    across, down = body.width + 2 * MARGIN, body.height + 2 * MARGIN
    # Whatever the user's own settings are.
    with matplotlib.style.context("default"):
        figure = Figure((across / DPI, down / DPI), dpi=DPI, facecolor="white")
        ax = figure.add_axes((0, 0, 1, 1))
        ax.set_axis_off()
        ax.set_zorder(-1)
        # Drawing must not move the limits, and imshow would.
        ax.set_autoscale_on(False)
        body.draw(ax, MARGIN, MARGIN)
        ax.set(xlim=(0, across), ylim=(down, 0))
    return figure


def figure_bytes(figure: Figure, kind: str, dpi: int = DPI) -> bytes:
    """Render a figure as a "png" or "pdf" file that names no date and no version."""
    omitted: dict[str, dict[str, None]] = {
        "png": {"Software": None},
        "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
    }
    buffer = io.BytesIO()
    # Hinting rounds the width of each letter to pixels, and lines outgrow the figure.
    with matplotlib.style.context(["default", {"text.hinting": "none"}]):
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=omitted[kind])
    return buffer.getvalue()


def points(pixels: Number) -> Number:
    """Convert a length in pixels to matplotlib's points."""
    return pixels * 72 / DPI


@functools.lru_cache(maxsize=4096)
def text_width(words: str, size: int = SMALL) -> int:
    """Measure a line of text in pixels."""
    font = FontProperties(size=size)
    words = clean(words)
    return math.ceil(text_to_path.get_text_width_height_descent(words, font, False)[0])


def clean(words: str) -> str:
    """Replace control characters, marks of direction and what the font lacks."""
    sign = get_font(findfont(FontProperties())).get_char_index
    return "".join(x if x.isprintable() and sign(ord(x)) else "\ufffd" for x in words)
