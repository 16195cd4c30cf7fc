"""What a unit or a class answers to: projections to pixels, signed heat maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Integer, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from zfnet_jax.viz.sheet import (
    COLOR_BAR,
    FAINT,
    GAP,
    MARGIN,
    SHEET_WIDTH,
    SMALL,
    AnyArray,
    blank_sheet,
    checked,
    display,
    enlarged,
    grid_of,
    place,
    place_color_bar,
    text_width,
    write,
)

Scale = Literal["patch", "unit", "layer"]

SCALES: dict[Scale, str] = {
    "patch": "each projection has its own scale",
    "unit": "the projections of a unit by one rule share a scale",
    "layer": "all projections by one rule share a scale",
}

# Pictures in a grid and maps alone are enlarged to about so many pixels.
_PATCH_SIDE, _MAP_SIDE = 128, 256


def display_projections(
    pixels: Float[AnyArray, "n ..."],
    units: Integer[AnyArray, " n"],
    scale: Scale = "patch",
) -> tuple[Float[np.ndarray, "n ..."], Float[np.ndarray, " n"]]:
    """Map projections to `0.5 + x / (2 max|x|)`, where zero is mid-grey.

    Args:
        pixels: Projections of one layer by one rule.
        units: The unit that each is of.
        scale: Over what the maximum is taken: "patch", each projection by itself;
            "unit", all those of a unit; "layer", all.

    Returns:
        The projections for display, float32 in [0, 1], and the maximum used for each;
        it is 0 where there is nothing but zeros, which are mid-grey.

    Raises:
        ValueError: `pixels` is empty or not finite, `units` differs from it in length,
            or there is no such scale.
    """
    values = checked("pixels", pixels, (None,) * max(np.ndim(pixels), 1), "float")
    of = checked("units", units, (len(values),), "integer")
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
    groups = {"patch": np.arange(len(of)), "unit": of, "layer": np.zeros(len(of))}
    shown, used = np.empty(values.shape, np.float32), np.empty(len(of))
    for group in np.unique(groups[scale]):
        members = groups[scale] == group
        shown[members], used[members] = display(values[members])
    return shown, used


def projection_grid(
    title: str,
    image: UInt8[AnyArray, "h w 3"],
    boxes: Integer[AnyArray, "n 4"],
    units: Integer[AnyArray, " n"],
    captions: Sequence[str],
    projections: Mapping[str, Float[AnyArray, "n H W 3"]],
    scale: Scale = "patch",
) -> tuple[Figure, Axes]:
    """Draw an image beside what units of a layer see in it, a column for each rule.

    Each unit has a row, which starts with the patch of the image that its projections
    cover. Below each projection stands its scale, as `display_projections` gives it.

    Args:
        title: What the figure shows, such as the layer.
        image: The RGB picture that the network saw.
        boxes: What part of the image each row covers, in pixels: top, left, bottom,
            right, the last two exclusive. They are of one size and may leave the
            image.
        units: The unit of each row.
        captions: What to write above each row, such as the unit and its activation.
        projections: Projections of the size of the boxes, by the name of their rule.
        scale: See `display_projections`; it never spans rules, whose magnitudes
            have nothing in common.

    Returns:
        The figure and its axes, which hold `image`, then for each row its patch and
        its projections.

    Raises:
        ValueError: An argument is empty, not finite or does not fit the others, or
            there is no such scale.
    """
    picture = checked("image", image, (None, None, 3), "uint8")
    corners = checked("boxes", boxes, (None, 4), "integer")
    rows = len(corners)
    sizes = np.unique(corners[:, 2:] - corners[:, :2], axis=0)
    if len(sizes) > 1 or sizes.min() < 1:
        raise ValueError(f"boxes must be of one size, got {sizes.tolist()}")
    height, width = map(int, sizes[0])
    if len(captions) != rows:
        raise ValueError(f"captions must be {rows}, as the boxes, got {len(captions)}")
    if not projections:
        raise ValueError("projections must hold those of one rule at least")
    columns = []
    for rule, pixels in projections.items():
        shape = (rows, height, width, 3)
        values = checked(f"projections[{rule!r}]", pixels, shape, "float")
        columns.append(display_projections(values, units, scale))
    patches = [_image_patch(picture, box) for box in corners.tolist()]

    line, above = SMALL + 4, SMALL + 8
    size = enlarged(height, width, _PATCH_SIDE)
    headings = ["image", *projections]
    scales = [[f"± {s:.3g}" if s else "all 0" for s in used] for _, used in columns]
    texts = [*headings, *(text for column in scales for text in column)]
    step = max(size[1], *(text_width(text, SMALL) for text in texts)) + GAP
    cell_width = max(
        step * len(headings) - GAP, *(text_width(text, SMALL) for text in captions)
    )
    picture_size = enlarged(picture.shape[0], picture.shape[1], 192)
    left = MARGIN + picture_size[1] + 2 * GAP
    # A wider gap keeps the columns of one row of units together.
    cell = (line + size[0] + 4 + line, cell_width + GAP)
    grid = grid_of(rows, cell, SHEET_WIDTH - left + MARGIN)
    outside = any(
        min(box[:2]) < 0 or box[2] > picture.shape[0] or box[3] > picture.shape[1]
        for box in corners.tolist()
    )
    fig, ax, top = blank_sheet(
        title,
        "zero is mid-grey, white and black are plus and minus the number below; "
        + SCALES[scale]
        + ("; outside the image all is mid-grey" if outside else ""),
        above + max(grid.height, line + picture_size[0]),
        left - MARGIN + grid.width,
    )
    place(ax, picture, MARGIN, top + above + line, picture_size)
    for index, (x, y) in enumerate(grid.corners(top + above, left)):
        if index < grid.columns:
            for column, heading in enumerate(headings):
                write(ax, heading, x + column * step, top, SMALL, color=FAINT)
        write(ax, captions[index], x, y, SMALL)
        y += line
        place(ax, patches[index], x, y, size)
        for column, (shown, _) in enumerate(columns):
            x += step
            place(ax, shown[index], x, y, size)
            write(ax, scales[column][index], x, y + size[0] + 4, SMALL, color=FAINT)
    return fig, ax


def image_patches(
    images: UInt8[np.ndarray, "n h w 3"], boxes: Integer[np.ndarray, "n 4"]
) -> UInt8[np.ndarray, "n H W 3"]:
    """Of each image the patch inside its box, mid-grey where that leaves the image.

    Args:
        images: RGB pictures.
        boxes: Top, left, bottom, right in pixels, exclusive; all of one size.
    """
    pairs = zip(images, boxes.tolist(), strict=True)
    return np.stack([_image_patch(image, box) for image, box in pairs])


def outside(
    boxes: Integer[np.ndarray, "n 4"], image_hw: tuple[int, int]
) -> Integer[np.ndarray, "n 4"]:
    """How far boxes leave an image: pixels above, to the left, below, to the right."""
    ends = np.array(image_hw, boxes.dtype)
    return np.concatenate([-boxes[:, :2], boxes[:, 2:] - ends], 1).clip(0)


def _image_patch(
    image: UInt8[np.ndarray, "h w 3"], box: Sequence[int]
) -> UInt8[np.ndarray, "H W 3"]:
    """The patch inside a box, mid-grey where the box leaves the image."""
    top, left, bottom, right = box
    rows, columns = np.arange(top, bottom), np.arange(left, right)
    inside = np.ix_(
        (rows >= 0) & (rows < image.shape[0]),
        (columns >= 0) & (columns < image.shape[1]),
    )
    patch = np.full((bottom - top, right - left, 3), 128, np.uint8)
    patch[inside] = image[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    return patch


def heat_map(
    values: Float[AnyArray, "h w ..."], title: str, scale: float | None = None
) -> tuple[Figure, Axes]:
    """Draw a signed map in colours that are symmetric about zero.

    Args:
        values: The map; several channels are summed, which keeps the sign.
        title: What the map is of.
        scale: The magnitude where the colours end; None takes the greatest there is.

    Returns:
        The figure and its axes, which hold the map, then the colour bar.

    Raises:
        ValueError: `values` is empty, not finite or of another shape, `scale` is not a
            finite number above 0.
    """
    signed, end, note = _signed(values, scale)
    colors = {"cmap": "PuOr_r", "norm": Normalize(-end, end)}
    size = enlarged(signed.shape[0], signed.shape[1], _MAP_SIDE)
    bar = max(size[1], 160)
    fig, ax, top = blank_sheet(title, note, size[0] + GAP + COLOR_BAR, bar)
    place(ax, signed, MARGIN, top, size, **colors)
    place_color_bar(ax, -end, end, MARGIN, top + size[0] + GAP, bar, **colors)
    return fig, ax


def overlay(
    image: UInt8[AnyArray, "h w 3"],
    values: Float[AnyArray, "H W ..."],
    title: str,
    scale: float | None = None,
) -> tuple[Figure, Axes]:
    """Draw an image beside itself in grey, covered by a signed map.

    The colours are those of `heat_map`; a value covers the image in proportion to its
    magnitude, and at zero the image shows as it is.

    Args:
        image: The RGB picture that the map belongs to.
        values: The map, of any size; it is stretched over the image. Several channels
            are summed.
        title: What the map is of.
        scale: The magnitude where the colours end; None takes the greatest there is.

    Returns:
        The figure and its axes, which hold the image, the image in grey, the map over
        it, then the colour bar.

    Raises:
        ValueError: As `heat_map`, or `image` is not uint8[h, w, 3].
    """
    picture = checked("image", image, (None, None, 3), "uint8")
    signed, end, note = _signed(values, scale)
    colors = {"cmap": "PuOr_r", "norm": Normalize(-end, end)}
    size = enlarged(picture.shape[0], picture.shape[1], _MAP_SIDE)
    bar = max(size[1], 160)
    # Rec. 601's luma, lightened so that dark places leave the colours room.
    grey = 0.4 + 0.6 * (picture / 255) @ np.array([0.299, 0.587, 0.114])
    opacity = np.clip(np.abs(signed) / end, 0, 1)
    x = MARGIN + size[1] + GAP
    fig, ax, top = blank_sheet(
        title, note, size[0] + GAP + COLOR_BAR, size[1] + GAP + bar
    )
    place(ax, picture, MARGIN, top, size)
    place(ax, grey, x, top, size, cmap="gray", norm=Normalize(0, 1))
    place(ax, signed, x, top, size, alpha=opacity, **colors)
    place_color_bar(ax, -end, end, x, top + size[0] + GAP, bar, **colors)
    return fig, ax


def _signed(values: AnyArray, scale: float | None) -> tuple[np.ndarray, float, str]:
    """The map as float[h, w], the magnitude where colours end, what to note."""
    channels = np.ndim(values) == 3
    signed = checked("values", values, (None,) * (3 if channels else 2), "float")
    note = "orange is above zero, purple below"
    if channels:
        note += f"; summed over {signed.shape[2]} channels"
        signed = signed.sum(2)
    peak = float(np.abs(signed).max())
    if scale is not None and not 0 < scale < math.inf:
        raise ValueError(f"scale must be a finite number above 0, got {scale}")
    if scale is not None and peak > scale:
        note += f"; up to {peak:.3g} in magnitude, cut at {scale:.3g}"
    if not peak:
        note += "; all 0"
    # Zeros alone have no scale; any draws them as zero.
    return signed, scale or peak or 1.0, note
