"""Activations of units, projected to pixels by one or more rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Integer, UInt8
from matplotlib.figure import Figure

from zfnet_jax.results import spell
from zfnet_jax.viz.contrast import SCALES, Contrast, Scale, display_projections
from zfnet_jax.viz.layout import (
    FAINT,
    GAP,
    Box,
    column,
    grid,
    picture,
    row,
    sheet,
    table,
    text,
)
from zfnet_jax.viz.patches import cut_patches

_SIDE, _WIDTH = 128, 2100


def draw_projections(
    title: str,
    captions: Sequence[tuple[str, str]],
    projections: Mapping[str, Float[np.ndarray, "n H W c"]],
    units: Integer[np.ndarray, " n"],
    scale: Scale = "patch",
    contrast: Contrast = "99.5",
    image: UInt8[np.ndarray, "h w c"] | None = None,
    boxes: Integer[np.ndarray, "n 4"] | None = None,
    note: str = "",
    patches: UInt8[np.ndarray, "n H W c"] | None = None,
    width: int = _WIDTH,
) -> Figure:
    """Draw projections in blocks, with the image and the patch that they belong to.

    They are by rule, of the whole image or of the receptive fields, which are `boxes`
    in `image`; patches of several images are given as `patches`. A scale never spans
    rules, whose magnitudes have nothing in common. Captions are the name of each unit
    and how strongly it is active.
    """
    columns: list[tuple[list[Box], list[Box]]] = []
    count = len(captions)
    if image is not None and boxes is not None:
        framed = [picture(image, _SIDE, [box]) for box in boxes.tolist()]
        columns.append((_write(["receptive field"] * count), framed))
        if next(iter(projections.values())).shape[1:3] != image.shape[:2]:
            patches = cut_patches(np.stack([image] * count), boxes)
    if patches is not None:
        pictures = [picture(x, _SIDE) for x in patches]
        columns.append((_write(["patch"] * count), pictures))
    for rule, pixels in projections.items():
        shown, scales = display_projections(pixels, units, scale, contrast)
        labels = [f"{rule} ± {spell(x)}" if x else f"{rule} all zero" for x in scales]
        columns.append((_write(labels), [picture(x, _SIDE) for x in shown]))
    blocks = []
    for index, (name, activity) in enumerate(captions):
        labels = [labels[index] for labels, _ in columns]
        pictures = [pictures[index] for _, pictures in columns]
        heading = row(text(name, bold=True), text(activity))
        blocks.append(column(heading, table([labels, pictures], gap=GAP), gap=2))
    channels = next(iter(projections.values())).shape[3]
    total = "" if channels in (1, 3) else f", summed over {channels} channels"
    extent = "maximum" if contrast == "max" else f"{contrast}th percentile"
    return sheet(
        title,
        grid(blocks, width=width, gap=16),
        f"{note} Zero is mid-gray; black and white are minus and plus the number above "
        f"a projection{total}, the {extent} of the magnitudes; {SCALES[scale]}.",
    )


def _write(labels: Sequence[str]) -> list[Box]:
    """Write the labels of a column, each as wide as the widest."""
    boxes = [text(words, color=FAINT) for words in labels]
    width = max((box.width for box in boxes), default=0)
    return [dataclasses.replace(box, width=width) for box in boxes]
