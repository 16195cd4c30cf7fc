"""The pages of classes: the units that speak for each, and images that show it.

index.html              all classes that have images
CLASS.html              the units that most often speak for a class, and some images
images/                 these images, and their most relevant units
LAYER.js                the classes that each unit of a layer speaks for
units/LAYER/UNIT.webp   patches of the images in which a unit is most relevant
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import markupsafe
import numpy as np

from zfnet_jax.analysis.relevance import MOST, TopRelevance, top_relevance
from zfnet_jax.files import slug, to_json, write_atomically
from zfnet_jax.galleries import pages
from zfnet_jax.galleries.numbers import list_terms, printable, to_script
from zfnet_jax.galleries.pictures import count_across
from zfnet_jax.galleries.reasons import (
    IMAGES,
    Report,
    size_patch,
    write_examples,
    write_patches,
)
from zfnet_jax.galleries.sources import Search

# Classes of a unit, and units of a class and a layer, that pages list.
_CLASSES, _UNITS = 5, 6
# Room for the pictures of a unit, in pixels of a page.
_ROOM = 120


def search_classes(
    search: Search, layers: Sequence[str], partial: Path, report: Report
) -> dict[str, TopRelevance]:
    """Search the images for what units speak for; empty if the network has no logits.

    The class of an image is its label, or without labels of the network's classes the
    class that the network predicts.
    """
    net = search.net
    if len(net.layers[net.output].shape) != 1:
        return {}
    images, labels = search.source.images, search.labels
    return top_relevance(
        net,
        images,
        layers,
        k=search.k,
        labels=labels,
        examples=IMAGES,
        partial=partial,
        progress=report,
    )


def write_classes(
    part: Path,
    search: Search,
    records: Sequence[dict[str, Any]],
    tops: dict[str, TopRelevance],
    report: Report,
) -> None:
    """Write the pages of classes, and what the pages of units show of them."""
    for record in records:
        name = record["name"]
        content = to_script(describe_units(search, tops[name]) if tops else None)
        script = f"const RELEVANCE = {content};\n"
        (part / f"{record['slug']}.js").write_text(script, encoding="utf-8")
    classes = []
    if tops:
        write_patches(part / "units", search, tops)
        examples = write_examples(part, search, tops, report)
        classes = describe_classes(part.parent / "layers", search, records, tops)
        _write_pages(part, search, records, classes, examples)
    write_atomically(part / "record.json", to_json({"classes": len(classes)}))


def _write_pages(
    part: Path,
    search: Search,
    records: Sequence[dict[str, Any]],
    classes: Sequence[dict[str, Any]],
    examples: dict[int, list[dict[str, Any]]],
) -> None:
    """Write a page for each class, and one that lists them."""
    common = {
        "search": search,
        "layers": records,
        "image": search.net.image_shape[:2],
        "most": MOST,
        "has_output": any(x["name"] == search.net.output for x in records),
        "examples": examples,
        "terms": list_terms(search),
        "root": "../",
    }
    neighbors = zip([None, *classes], classes, [*classes[1:], None], strict=False)
    for before, one, after in neighbors:
        data = markupsafe.Markup(to_script(one["layers"]))
        values = {"one": one, "before": before, "after": after, "data": data}
        page = pages.render("class.html", **values, **common)
        (part / f"{one['label']}.html").write_text(page, encoding="utf-8")
    page = pages.render("classes.html", classes=classes, **common)
    (part / "index.html").write_text(page, encoding="utf-8")


def describe_classes(
    layers: Path,
    search: Search,
    records: Sequence[dict[str, Any]],
    tops: dict[str, TopRelevance],
) -> list[dict[str, Any]]:
    """Describe the classes that have images, with units from the top layer down."""
    shown = [x for x in reversed(records) if x["name"] != search.net.output]
    sizes = next(iter(tops.values())).class_sizes
    return [
        {
            "label": label,
            "name": search.classes[label],
            "count": int(sizes[label]),
            "layers": [
                describe_class(layers, record, tops[record["name"]], label)
                for record in shown
            ],
        }
        for label in np.flatnonzero(sizes).tolist()
    ]


def describe_units(search: Search, top: TopRelevance) -> dict[str, Any]:
    """Describe the classes that each unit of a layer speaks for, and its images.

    These are classes whose mean relevance is positive, first those for which the unit
    is most often one of the most relevant.
    """
    rates = top.class_counts / np.maximum(top.class_sizes, 1)
    units, labels, shown = [], set[int](), set[int]()
    for unit, rate in enumerate(rates):
        rate = np.where(top.class_means[unit] > 0, rate, 0)
        order = np.lexsort((-top.class_shares[unit], -rate))[:_CLASSES].tolist()
        classes = [
            [
                label,
                _round(rate[label]),
                _round(top.class_shares[unit, label]),
                _round(top.class_means[unit, label]),
                int(top.class_sizes[label]),
            ]
            for label in order
            if rate[label]
        ]
        best = top.images[unit], top.classes[unit], top.relevances[unit]
        images = [
            [int(image), int(label), _round(value)]
            for image, label, value in zip(*best, strict=True)
            if value > 0
        ]
        labels.update(row[0] for row in classes)
        labels.update(row[1] for row in images)
        shown.update(row[0] for row in images)
        units.append([classes, images])
    height, width = size_patch(search, top.layer)
    source = search.source
    named = [] if source.image_names is None else sorted(shown)
    return {
        "slug": slug(top.layer),
        "names": {x: printable(search.classes[x]) for x in sorted(labels)},
        "image_names": {x: printable(source.name_image(x)) for x in named},
        "predicted": search.labels is None,
        "most": MOST,
        "across": count_across(search.k),
        "cell": [height, width],
        "units": units,
    }


def describe_class(
    layers: Path, record: dict[str, Any], top: TopRelevance, label: int
) -> dict[str, Any]:
    """Describe the units of a layer that most often speak for a class."""
    means, shares = top.class_means[:, label], top.class_shares[:, label]
    counts = np.where(means > 0, top.class_counts[:, label], 0)
    order = np.lexsort((-shares, -counts))[:_UNITS].tolist()
    home = layers / record["slug"]
    return {
        "name": printable(record["name"]),
        "slug": record["slug"],
        "style": pages.style_squares(record, _ROOM),
        "units": [
            [
                unit,
                _round(counts[unit] / top.class_sizes[label]),
                _round(shares[unit]),
                _round(means[unit]),
                (home / f"{unit}.webp").exists(),
            ]
            for unit in order
            if counts[unit]
        ],
    }


def _round(value: Any) -> float:
    return float(f"{value:.3g}")
