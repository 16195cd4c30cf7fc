"""Signals that networks send from a layer down to the pixels, stage by stage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from zfnet_jax.results import spell
from zfnet_jax.viz.contrast import Contrast, measure_scale, to_display
from zfnet_jax.viz.layout import (
    FAINT,
    GAP,
    LINE,
    Box,
    Number,
    column,
    grid,
    picture,
    row,
    sheet,
    shorten,
    text,
)

_SIDE, _MAP = 228, 104
# On a line; two lines of maps are as high as a photograph.
_MAPS = 10


class Stage(NamedTuple):
    """A signal after a stage of the backward pass.

    Attributes:
        name: The layer that is undone, as in "conv5" or "unpool 5".
        shape: Rows, columns and channels of the signal.
        values: Its sum over the channels [h, w], or pixels [h, w, c].
    """

    name: str
    shape: tuple[int, ...]
    values: Float[np.ndarray, "h w ..."]


class Descent(NamedTuple):
    """A signal on its way down.

    Attributes:
        title: The signal in words.
        stages: The signal at the start, after every stage and, at last, in pixels.
        measures: Measures of the pixels, by name.
    """

    title: str
    stages: Sequence[Stage]
    measures: Mapping[str, Any]


class Reconstruction(NamedTuple):
    """A photograph, and the signals that a network sends down from it.

    Attributes:
        title: The network, and what it is given.
        picture: The photograph as the network sees it.
        classes: Its most probable classes, with their probabilities.
        whole: All of a layer.
        strongest: Its strongest activation alone.
        field: Receptive field of that: top, left, bottom, right; None for all pixels.
    """

    title: str
    picture: UInt8[np.ndarray, "h w c"]
    classes: Sequence[tuple[str, float]]
    whole: Descent
    strongest: Descent
    field: Sequence[int] | None


def draw_reconstructions(
    title: str,
    reconstructions: Sequence[Reconstruction],
    contrast: Contrast = "99.5",
) -> Figure:
    """Draw the signals that networks send down, one network above the other.

    Each has two rows, of the photograph, the signal after every stage, and the pixels.
    """
    count = max(len(x.whole.stages) for x in reconstructions) - 1
    columns = math.ceil(count / max(math.ceil(count / _MAPS), 2))
    blocks = [_draw_block(x, columns, contrast) for x in reconstructions]
    extent = "maximum" if contrast == "max" else f"{contrast}th percentile"
    return sheet(
        title,
        column(*blocks, gap=3 * GAP),
        "Each map is the signal after the layer above it was undone, summed over its "
        "channels: orange above zero, purple below. The pixels are in color, mid-gray "
        "at zero. The most extreme colors are plus and minus the number below, the "
        f"{extent} of the magnitudes. Sharpness: root-mean-square spatial frequency in "
        "cycles per picture. Edge correlation: rank correlation of the edges of both.",
    )


def _draw_block(
    reconstruction: Reconstruction, columns: int, contrast: Contrast
) -> Box:
    title, image, classes, whole, strongest, field = reconstruction
    best = (f"{chance:.1%}  {name}" for name, chance in classes)
    framed = picture(image, _SIDE, [] if field is None else [field])
    return column(
        text(title, size=14, bold=True),
        _draw_row(
            _caption("photograph", picture(image, _SIDE), *best),
            *(whole, columns, contrast),
        ),
        _draw_row(_caption("receptive field", framed), strongest, columns, contrast),
    )


def _draw_row(
    photograph: Box, descent: Descent, columns: int, contrast: Contrast
) -> Box:
    *maps, last = descent.stages
    pixels = last.values
    if pixels.shape[2] not in (1, 3):
        pixels = pixels.sum(2, keepdims=True)
    scale = measure_scale(pixels, contrast)
    notes = (
        _spell_scale(scale),
        "sharpness {sharpness:.1f}, photograph {photograph_sharpness:.1f}",
        "edge correlation {edge_correlation:z.2f}",
    )
    maps = grid([_draw_map(x, contrast) for x in maps], columns)
    parts = (
        _widen(photograph, _SIDE),
        _widen(maps, columns * (_MAP + GAP) - GAP),
        _caption(
            last.name,
            picture(to_display(pixels, scale), _SIDE),
            *(note.format(**descent.measures) for note in notes),
        ),
    )
    return column(text(descent.title), row(*parts, gap=2 * GAP), gap=6)


def _draw_map(stage: Stage, contrast: Contrast) -> Box:
    scale = measure_scale(stage.values, contrast)
    limits = Normalize(-(scale or 1), scale or 1)
    shown = picture(stage.values, _MAP, fill=True, cmap="PuOr_r", norm=limits)
    size = " x ".join(map(str, stage.shape))
    return _caption(stage.name, _outline(shown), _spell_scale(scale), size)


def _spell_scale(scale: float) -> str:
    return f"± {spell(scale)}" if scale else "all zero"


def _caption(name: str, box: Box, *notes: str) -> Box:
    """Write a name above a picture, and notes below it."""
    lines = (text(shorten(note, _SIDE), color=FAINT) for note in notes)
    return column(text(shorten(name, _SIDE)), column(box, *lines, gap=4), gap=2)


def _outline(box: Box) -> Box:
    """Outline a picture: zero is nearly as white as the sheet."""

    def draw(ax: Axes, x: Number, y: Number) -> None:
        box.draw(ax, x, y)
        style = {"fill": False, "edgecolor": LINE, "linewidth": 0.5}
        ax.add_patch(Rectangle((x, y), box.width, box.height, **style))

    return Box(box.width, box.height, draw)


def _widen(box: Box, width: Number) -> Box:
    return Box(width, box.height, box.draw)
