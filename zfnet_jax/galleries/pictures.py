"""The picture files of a gallery."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from zfnet_jax.analysis.evolution import Evolution
from zfnet_jax.analysis.mining import TopActivations, project_strongest
from zfnet_jax.galleries.sources import Search, Source
from zfnet_jax.projections import Projections
from zfnet_jax.viz.contrast import Contrast, display_projections
from zfnet_jax.viz.patches import cut_patches

CONTRASTS: tuple[Contrast, ...] = ("99.5", "max")
# Pictures up to the first side are saved without loss, larger than the second shrunk.
_EXACT, _LARGEST = 64, 224


# The file of a unit's pictures, and the description of what they show.
Twin = tuple[Path, list[dict[str, Any]]]


def identify(search: Search, top: TopActivations, unit: int) -> tuple[Any, ...]:
    """Collect what a unit's pictures depend on.

    It is the same for the parts of a concatenation, and for a value of two names.
    """
    strongest = top.images, top.positions, top.activations
    field = search.net.layer(top.layer).receptive_field
    return field, *(array[unit].tobytes() for array in strongest)


def write_pictures(
    part: Path,
    search: Search,
    top: TopActivations,
    units: Sequence[dict[str, Any]],
    twins: Mapping[tuple[Any, ...], Twin],
) -> None:
    """Save a mosaic for each live unit: its patches, then projections by each rule."""
    live = []
    for unit in units:
        twin = twins.get(identify(search, top, unit["unit"]))
        if twin is not None:
            shutil.copyfile(twin[0], part / f"{unit['unit']}.webp")
            unit["tops"] = twin[1]
        elif unit["tops"]:
            live.append(unit)
    if not live:
        return
    numbers, k = [unit["unit"] for unit in live], top.activations.shape[1]
    by_rule = project_units(search, top, numbers)
    pictures = search.source.read_pictures(by_rule[0].images)
    patches, across = cut_patches(pictures, by_rule[0].boxes), count_across(k)
    for index, unit in enumerate(live):
        own = slice(index * k, (index + 1) * k)
        blocks, scales = [patches[own]], []
        for x in by_rule:
            for contrast in CONTRASTS:
                shown, scale = display_projections(
                    x.pixels[own], x.units[own], "patch", contrast
                )
                blocks.append(to_color(shown))
                scales.append(scale)
        cells = {}
        for rank, activation in enumerate(unit["tops"]):
            row, column = divmod(rank, across)
            for block, cell in enumerate(blocks):
                cells[row, block * across + column] = cell[rank]
            activation["scales"] = [float(scale[rank]) for scale in scales]
        save_mosaic(part / f"{unit['unit']}.webp", cells, across, across * len(blocks))


def project_units(
    search: Search, top: TopActivations, units: Sequence[int]
) -> list[Projections]:
    """Project the strongest activations of some units by each rule."""
    strongest = top.images, top.positions, top.activations
    net, images = search.net, search.source.images
    return project_strongest(net, images, top.layer, units, *strongest, search.rules)


def write_course(
    part: Path, search: Search, course: Evolution, units: Sequence[dict[str, Any]]
) -> None:
    """Save each unit's strongest activation at each epoch: patches and projections."""
    source, steps = search.training, len(course.epochs)
    numbers = [unit["unit"] for unit in units]
    x = course.project(search.epochs, source.images, numbers, rule=search.rules[0])
    patches = cut_patches(source.read_pictures(x.images), x.boxes)
    shown, scales = display_projections(x.pixels, x.units)
    for index, unit in enumerate(units):
        cells, unit["course"] = {}, []
        for step, epoch in enumerate(course.epochs):
            place = index * steps + step
            cells[0, step], cells[1, step] = patches[place], to_color(shown[place])
            unit["course"].append(
                {
                    "epoch": epoch,
                    "dead": bool(course.dead[step, unit["unit"]]),
                    "activation": float(x.activations[place]),
                    "image": int(x.images[place]),
                    "class": source.name_class(int(x.images[place])),
                    "jump": bool(course.jumps[step, unit["unit"]]),
                    "scale": float(scales[place]),
                }
            )
        if not all(step["dead"] for step in unit["course"]):
            save_mosaic(part / f"{unit['unit']}-epochs.webp", cells, 2, steps)


def write_images(
    part: Path, source: Source, indices: Iterable[int], saved: Mapping[int, Path]
) -> None:
    """Save whole images by their indices; copy the files of those saved before."""
    (part / "images").mkdir()
    for index in sorted(indices):
        path = part / "images" / f"{index}.webp"
        if index in saved:
            shutil.copyfile(saved[index], path)
        else:
            picture = source.read_pictures([index])[0]
            _save(path, picture, max(picture.shape) <= _EXACT)


def save_mosaic(
    path: Path,
    cells: Mapping[tuple[int, int], UInt8[np.ndarray, "h w 3"]],
    rows: int,
    columns: int,
    exact: int = _EXACT,
) -> None:
    """Save pictures by row and column, each with a transparent edge below and right.

    Those of sides up to `exact` are saved without loss.
    """
    height, width = shrink(next(iter(cells.values())).shape[:2])
    canvas = np.zeros((rows, height + 1, columns, width + 1, 4), np.uint8)
    for (row, column), cell in cells.items():
        if cell.shape[:2] != (height, width):
            image = Image.fromarray(cell).resize((width, height), Image.Resampling.BOX)
            cell = np.asarray(image)
        canvas[row, :height, column, :width, :3] = cell
        canvas[row, :height, column, :width, 3] = 255
    whole = canvas.reshape(rows * (height + 1), columns * (width + 1), 4)
    _save(path, whole, max(height, width) <= exact)


def shrink(size: Sequence[int], largest: int = _LARGEST) -> tuple[int, int]:
    """Find the height and width at which a picture of some size is saved."""
    share = min(1, largest / max(size))
    return max(1, round(size[0] * share)), max(1, round(size[1] * share))


def count_across(k: int) -> int:
    """Count the rows, and the columns, of the square that k pictures fill."""
    return math.ceil(math.sqrt(k))


def to_color(shown: Shaped[np.ndarray, "*n h w c"]) -> UInt8[np.ndarray, "*n h w 3"]:
    """Convert displayed projections to pixels of three channels."""
    pixels = np.rint(255 * shown).astype(np.uint8)
    return np.broadcast_to(pixels, (*pixels.shape[:-1], 3))


def _save(path: Path, pixels: UInt8[np.ndarray, "h w c"], is_exact: bool) -> None:
    # The fastest method: stronger ones gain only a tenth.
    options = {"lossless": True, "quality": 0} if is_exact else {"quality": 90}
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.save(path, "WEBP", method=0, **options)
