"""Pictures of the units that speak for classes.

These are patches of the images in which a unit is most relevant, and the most relevant
units of some images, projected from them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from zfnet_jax.analysis.relevance import TopRelevance
from zfnet_jax.arch import receptive_field
from zfnet_jax.files import slug
from zfnet_jax.galleries.pictures import (
    count_across,
    save_mosaic,
    shrink,
    to_color,
    write_images,
)
from zfnet_jax.galleries.sources import Search
from zfnet_jax.projections import Projections, project
from zfnet_jax.viz.contrast import display_projections
from zfnet_jax.viz.patches import cut_patches

Report = Callable[[int, int], None]

# Images of a class, and the layers and units of each that are projected, at most.
IMAGES, _LAYERS, _UNITS = 3, 5, 3
# Share of the gallery's projections that these may take; one per layer are made anyway.
_SHARE = 0.03
# Largest side of the pictures, and of those that are saved without loss.
_CELL, _EXACT = 48, 16
# Images whose projections share a program, and units whose patches are cut together.
_BATCH, _TOGETHER = 16, 1024


def write_patches(folder: Path, search: Search, tops: dict[str, TopRelevance]) -> None:
    """Save for each unit the patches of the images in which it is most relevant."""
    units = []
    for name, top in tops.items():
        (folder / slug(name)).mkdir(parents=True)
        units += [(top, int(unit)) for unit in np.flatnonzero(top.relevances[:, 0] > 0)]

    def write(start: int) -> None:
        some = units[start : start + _TOGETHER]
        for (top, unit), cells in zip(some, _cut_patches(search, some), strict=True):
            across = count_across(search.k)
            file = folder / slug(top.layer) / f"{unit}.webp"
            save_mosaic(file, cells, across, across, exact=_EXACT)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(write, range(0, len(units), _TOGETHER)))


def _cut_patches(
    search: Search, units: Sequence[tuple[TopRelevance, int]]
) -> list[dict[tuple[int, int], UInt8[np.ndarray, "h w 3"]]]:
    """Cut the patches of some units, by row and column; each image is read once."""
    places: dict[int, list[tuple[int, int]]] = {}
    for index, (top, unit) in enumerate(units):
        for rank in np.flatnonzero(top.relevances[unit] > 0).tolist():
            places.setdefault(int(top.images[unit, rank]), []).append((index, rank))
    cells: list[dict[tuple[int, int], Any]] = [{} for _ in units]
    for image, pairs in sorted(places.items()):
        picture = search.source.read_pictures([image])
        for index, rank in pairs:
            top, unit = units[index]
            box = _find_boxes(search, top.layer, top.positions[unit, rank][None])
            patch = cut_patches(picture, box)[0]
            size = size_patch(search, top.layer)
            place = divmod(rank, count_across(search.k))
            cells[index][place] = _resize(patch, size)
    return cells


def write_examples(
    part: Path,
    search: Search,
    tops: dict[str, TopRelevance],
    report: Report,
) -> dict[int, list[dict[str, Any]]]:
    """Save some images of each class with their most relevant units; describe them."""
    layers, (count, units) = _choose_layers(search, tops), _bound_examples(search, tops)
    chosen = layers[0].example_images[:, :count]
    labels, ranks = np.nonzero(chosen >= 0)
    images = chosen[labels, ranks].tolist()
    write_images(part, search.source, images, {})
    examples: dict[int, list[dict[str, Any]]] = {label: [] for label in labels.tolist()}

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(images), _BATCH):
            some = slice(start, start + _BATCH)
            # All batches have one size, so that their programs are compiled once.
            rows = np.resize(labels[some], _BATCH), np.resize(ranks[some], _BATCH)
            batch = _write_batch(part, search, layers, rows, units, pool)
            for label, example in zip(labels[some].tolist(), batch, strict=False):
                examples[label].append(example)
            report(min(start + _BATCH, len(images)), len(images))
    return examples


def _choose_layers(search: Search, tops: dict[str, TopRelevance]) -> list[TopRelevance]:
    """Choose layers, evenly spaced, through which every path to the logits leads."""
    hidden = [name for name in tops if name != search.net.output] or list(tops)
    trunk = {*search.net.trunk(search.net.output)}
    names = [name for name in hidden if name in trunk] or hidden
    count = min(_LAYERS, len(names))
    places = np.linspace(0, len(names) - 1, count).round().astype(int)
    return [tops[names[place]] for place in places]


def _bound_examples(search: Search, tops: dict[str, TopRelevance]) -> tuple[int, int]:
    """Choose how many images per class, and units per layer of each, to project."""
    units = sum(len(top.relevances) for top in tops.values())
    classes = np.count_nonzero(next(iter(tops.values())).class_sizes)
    layers = _SHARE * units * search.k * len(search.rules) / classes / _LAYERS
    count = min(max(1, int(layers / _UNITS)), IMAGES)
    return count, min(max(1, int(layers)), _UNITS)


def _write_batch(
    part: Path,
    search: Search,
    layers: Sequence[TopRelevance],
    rows: tuple[np.ndarray, np.ndarray],
    units: int,
    pool: ThreadPoolExecutor,
) -> list[dict[str, Any]]:
    """Save mosaics of images, given by class and rank: patches above projections."""
    images = layers[0].example_images[rows]
    batch = np.asarray(search.source.images[images])
    pictures = search.source.read_pictures(images)
    size = shrink(search.net.image_shape[:2], _CELL)
    examples = [{"image": image, "layers": []} for image in images.tolist()]
    mosaics: list[dict[tuple[int, int], Any]] = [{} for _ in examples]

    def project_layer(top: TopRelevance) -> Projections:
        chosen = top.example_units[rows], top.example_positions[rows]
        own = (array[:, :units] for array in chosen)
        rule = search.rules[0]
        return project(search.net, batch, top.layer, *own, rule=rule, crop=True)

    projections = pool.map(project_layer, layers)
    for column, (top, x) in enumerate(zip(layers, projections, strict=True)):
        patches = cut_patches(pictures[x.images], x.boxes)
        shown = to_color(display_projections(x.pixels, x.units)[0])
        values = top.example_relevances[rows][:, :units]
        for example in examples:
            home = {"name": top.layer, "slug": slug(top.layer)}
            example["layers"].append(home | {"units": []})
        for source, image in enumerate(x.images.tolist()):
            rank = source % values.shape[1]
            if values[image, rank] <= 0:
                continue
            place = units * column + rank
            for row, block in enumerate((patches, shown)):
                mosaics[image][row, place] = _resize(block[source], size)
            unit = int(x.units[source]), float(values[image, rank]), place
            examples[image]["layers"][-1]["units"].append(unit)
    for example, cells in zip(examples, mosaics, strict=True):
        example |= {"columns": units * len(layers), "cell": size}
        if cells:
            file = part / "images" / f"{example['image']}-units.webp"
            save_mosaic(file, cells, 2, units * len(layers), exact=_EXACT)
    return examples


def _find_boxes(
    search: Search, layer: str, positions: Int[np.ndarray, "n 2"]
) -> Int[np.ndarray, "n 4"]:
    """Receptive fields of positions in a layer; they may leave the image."""
    field = receptive_field(search.net, layer)
    corners = positions * np.array(field.stride) + np.array(field.start)
    return np.concatenate([corners, corners + np.array(field.size)], axis=1)


def size_patch(search: Search, layer: str) -> tuple[int, int]:
    """Find the height and width at which patches of a layer's units are saved."""
    return shrink(receptive_field(search.net, layer).size, _CELL)


def _resize(
    picture: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "H W 3"]:
    if picture.shape[:2] == size:
        return picture
    height, width = size
    image = Image.fromarray(picture).resize((width, height), Image.Resampling.BOX)
    return np.asarray(image)
