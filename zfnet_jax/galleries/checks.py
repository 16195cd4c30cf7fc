"""The page on how much the pictures of a gallery depend on the network."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from zfnet_jax.analysis.sanity import Comparison, controls, sanity
from zfnet_jax.files import write_atomically
from zfnet_jax.galleries import pages
from zfnet_jax.galleries.pictures import (
    save_mosaic,
    shrink,
    to_color,
    write_images,
)
from zfnet_jax.galleries.sources import Search
from zfnet_jax.results import summarize
from zfnet_jax.viz.contrast import display_projections
from zfnet_jax.viz.layout import figure_bytes
from zfnet_jax.viz.sanity import similarity_curves, spell_means

# Images that are drawn.
_SHOWN = 3


def write_sanity(
    part: Path, search: Search, count: int, progress: Callable[[str], Any]
) -> None:
    """Compare pictures with those of randomized networks and of other signals."""
    net, source = search.net, search.source
    images = np.asarray(source.images[np.arange(min(count, len(source)))])
    count, shown = len(images), min(_SHOWN, len(images))
    targets = np.asarray(net(images)).argmax(-1)
    if search.labels is not None:
        targets = search.labels[:count]
    options: Any = {"rules": search.rules, "shown": shown}
    report = progress("randomizing")
    randomized = sanity(net, images, targets, **options, progress=report)
    stages = randomized.columns[1:-1]
    # From the classifier down: the last convolution, or the first layer without any.
    convolutions = [name for name in stages if net.layer(name).kind == "conv"]
    layer = (convolutions or stages[::-1])[0]
    report = progress("replacing")
    replaced = controls(net, images, layer, **options, progress=report)
    write_images(part, source, range(shown), {})
    write_atomically(part / "curves.png", draw_curves(randomized))
    tables = {}
    for name, result in (("randomized", randomized), ("controls", replaced)):
        save_pictures(part / f"{name}.webp", result)
        tables[name] = tabulate(result, [search.classes[x] for x in targets[:shown]])
    rule = search.rules[0]
    above = summarize(randomized.similarity[rule].signed)
    column = randomized.columns.index(layer) - 1
    means = summarize(replaced.similarity[rule].signed).mean
    record = {
        "layer": layer,
        "rule": rule,
        "images": count,
        "random_above": above.mean[column],
        "random_above_images": above.known[column],
        "replaced": dict(zip(replaced.columns, means, strict=True)),
    }
    pages.write_sanity(part, search, record, tables)


def save_pictures(path: Path, result: Comparison) -> None:
    """Save the pictures of a comparison, a row for each image and rule."""
    rules, shown = result.pictures, len(next(iter(result.pictures.values())))
    cells = {}
    for row, (image, rule) in enumerate(itertools.product(range(shown), rules)):
        pictures = rules[rule][image]
        display, _ = display_projections(pictures, np.arange(len(pictures)))
        for column, picture in enumerate(to_color(display)):
            cells[row, column] = picture
    save_mosaic(path, cells, shown * len(rules), len(result.columns))


def tabulate(result: Comparison, names: list[str]) -> dict[str, Any]:
    """Describe a comparison for its page: columns, rows of images, and means."""
    signed = {rule: x.signed for rule, x in result.similarity.items()}
    return {
        "columns": result.columns,
        "rows": [
            {"image": image, "name": name, "rule": rule, "values": values[image]}
            for image, name in enumerate(names)
            for rule, values in signed.items()
        ],
        "means": {rule: spell_means(values) for rule, values in signed.items()},
        "cell": shrink(next(iter(result.pictures.values())).shape[2:4]),
    }


def draw_curves(randomized: Comparison) -> bytes:
    """Draw how alike pictures still are as layers are randomized, as a PNG file."""
    title = "The picture of the class, as layers are randomized from the top"
    figure = similarity_curves(title, randomized.columns, {**randomized.similarity})
    return figure_bytes(figure, "png")
