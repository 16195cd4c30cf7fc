"""Boxes about parts of images, from CSV files."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from zfnet_jax.data.preprocessing import square_side
from zfnet_jax.files import DataNotFoundError

_EDGES = ("top", "left", "bottom", "right")
_COLUMNS = ("image", "part", *_EDGES)


class Row(NamedTuple):
    """A line of a file of boxes.

    Attributes:
        place: File and line, for messages.
        box: Top, left, bottom, right in pixels; bottom and right are exclusive.
    """

    place: str
    box: tuple[int, ...]


def read_boxes(file: Path) -> dict[str, dict[str, Row]]:
    """Read the boxes of a CSV file, by image and then by part.

    The header is image,part,top,left,bottom,right in any order; every image has all
    parts. Numbers of images lose leading zeros.

    Raises:
        DataNotFoundError: There is no such file.
        ValueError: The file is malformed, or an image has a part twice or not at all;
            the message names the line.
    """
    table: dict[str, dict[str, Row]] = {}
    if not file.is_file():
        raise DataNotFoundError(f"there is no file {file} of boxes")
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True, strict=True)
            if sorted(reader.fieldnames or ()) != sorted(_COLUMNS):
                raise ValueError(f"{file}: the header must be {','.join(_COLUMNS)}")
            for cells in reader:
                _add_row(table, cells, f"{file}, line {reader.line_num}")
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file} is not a CSV file in UTF-8: {error}") from error
    if not table:
        raise ValueError(f"{file} holds no boxes")
    parts = dict.fromkeys(part for rows in table.values() for part in rows)
    for image, rows in table.items():
        for part in parts:
            if part not in rows:
                place = next(iter(rows.values())).place
                raise ValueError(f"{place}: {image} has no {part}")
        table[image] = {part: rows[part] for part in parts}
    return table


def _add_row(
    table: dict[str, dict[str, Row]], cells: dict[str, str], place: str
) -> None:
    if None in cells or None in cells.values():
        raise ValueError(f"{place}: give {len(_COLUMNS)} fields")
    image, part = cells["image"].strip(), cells["part"].strip()
    image = str(int(image)) if image.isdecimal() else image
    try:
        box = tuple(int(cells[edge]) for edge in _EDGES)
    except ValueError as error:
        raise ValueError(f"{place}: edges must be whole numbers: {error}") from None
    rows = table.setdefault(image, {})
    if part in rows:
        raise ValueError(f"{place}: {part} of {image} is also in {rows[part].place}")
    rows[part] = Row(place, box)


def check_box(box: Sequence[int], image_hw: tuple[int, int]) -> None:
    """Check that a box is a proper part of an image.

    Raises:
        ValueError: The box is empty, leaves the image or covers all of it.
    """
    top, left, bottom, right = box
    label = f"the box {top}, {left}, {bottom}, {right} (top, left, bottom, right)"
    height, width = image_hw
    if bottom <= top or right <= left:
        raise ValueError(f"{label} is empty")
    if top < 0 or left < 0 or bottom > height or right > width:
        raise ValueError(f"{label} leaves the image of {height} x {width}")
    if (bottom - top, right - left) == (height, width):
        raise ValueError(f"{label} covers the whole image")


def convert_box(
    box: Sequence[int] | Int[np.ndarray, " 4"],
    stored: tuple[int, int],
    kept: tuple[int, int],
    image_hw: tuple[int, int],
    crop: float = 1.0,
) -> Int[np.ndarray, " 4"]:
    """Convert a box from pixels of a stored image to pixels of a network's image.

    The center square of the image is resized, its center of size `kept` cut out, as by
    `fit_photograph`, and that is resized to `image_hw`. A pixel belongs to the box if
    its center does. The arithmetic is in whole numbers, without rounding.
    """
    side, large = min(stored), square_side(kept, crop)
    edges = []
    for index, edge in enumerate(box):
        axis = index % 2
        inside = (int(edge) - (stored[axis] - side) // 2) * large
        inside -= (large - kept[axis]) // 2 * side
        numerator, denominator = inside * image_hw[axis], side * kept[axis]
        # The first center at or after the edge: ceil(edge - 1/2).
        first = -((denominator - 2 * numerator) // (2 * denominator))
        edges.append(min(max(first, 0), image_hw[axis]))
    return np.array(edges)


def fit_box(
    row: Row,
    stored: tuple[int, int],
    kept: tuple[int, int],
    image_hw: tuple[int, int],
    crop: float = 1.0,
) -> Int[np.ndarray, " 4"]:
    """Convert a box as `convert_box` does; an error names its line.

    Raises:
        ValueError: It is not a proper part of its image or of the network's image.
    """
    try:
        check_box(row.box, stored)
    except ValueError as error:
        raise ValueError(f"{row.place}: {error}") from error
    box = convert_box(row.box, stored, kept, image_hw, crop)
    try:
        check_box(box.tolist(), image_hw)
    except ValueError as error:
        raise ValueError(
            f"{row.place}: in the center square, at the network's {image_hw[0]} x "
            f"{image_hw[1]} pixels, {error}"
        ) from error
    return box
