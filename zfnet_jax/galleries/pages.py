"""The pages of a gallery, from templates."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from zfnet_jax.analysis.mining import TopActivations
from zfnet_jax.files import slug, to_json, write_atomically
from zfnet_jax.galleries.numbers import (
    FORMAT,
    printable,
    write_outline,
    write_scripts,
    write_units,
)
from zfnet_jax.galleries.pictures import CONTRASTS, count_across, shrink
from zfnet_jax.galleries.sources import Other, Search
from zfnet_jax.viz.sanity import spell_similarity

TEMPLATES = Path(__file__).parent / "templates"

# Every page holds it.
MARK = '<meta name="generator" content="zfnet_jax">'

# Files that pages share.
_SHARED = (
    *("gallery.css", "gallery.js", "layer.js", "likeness.js", "map.js"),
    *("relevance.js", "search.js"),
)

# Units of a layer's page that are shown together.
UNITS_AT_ONCE = 256
# Units of a layer on the first page, and classes of a unit.
_PREVIEWS, _CLASSES = 4, 20
# Side, in pixels, of a unit's pictures among the results of a search.
_THUMBNAIL = 72

_KINDS = {
    "conv": "convolution",
    "dense": "dense layer",
    "norm": "contrast normalization",
    "max pool": "max pooling",
    "mean pool": "mean pooling",
    "relu": "ReLU",
    "named": "named value",
    "output": "result",
}


def describe_units(search: Search, top: TopActivations) -> list[dict[str, Any]]:
    """Describe the units of a layer, each with its strongest activations above 0."""
    units, favorite, selectivity = [], top.favorite, top.selectivity
    for unit in range(len(top.dead)):
        majority, count = _count_majority(search, top, unit)
        units.append(
            {
                "unit": unit,
                "name": search.name_unit(top.layer, unit),
                "dead": bool(top.dead[unit]),
                "active": float(top.active[unit]),
                "mean": float(top.mean[unit]),
                "sparsity": _known(top.sparsity[unit]),
                "selectivity": _known(selectivity[unit]),
                "favorite": int(favorite[unit]),
                "majority": majority,
                "majority_count": count,
                "tops": _describe_tops(search, top, unit),
                "classes": _describe_classes(search, top, unit),
                "course": [],
            }
        )
        units[-1]["summary"] = _summarize_classes(search, units[-1])
    return units


def _known(value: np.floating) -> float | None:
    return None if np.isnan(value) else float(value)


def _describe_tops(
    search: Search, top: TopActivations, unit: int
) -> list[dict[str, Any]]:
    field = search.net.layer(top.layer).receptive_field
    height, width = search.net.image_shape[:2]
    tops = []
    for rank in np.flatnonzero(top.activations[unit] > 0):
        image, position = int(top.images[unit, rank]), top.positions[unit, rank]
        box = field.box(*position.tolist()) if field else (0, 0, height, width)
        tops.append(
            {
                "activation": float(top.activations[unit, rank]),
                "image": image,
                "class": search.source.name_class(image),
                "position": position.tolist(),
                "box": list(box),
            }
        )
    return tops


def _describe_classes(
    search: Search, top: TopActivations, unit: int
) -> list[dict[str, Any]]:
    """Describe a unit's activity by class, the highest mean first."""
    labels = search.source.labels
    if labels is None:
        return []
    sizes = np.bincount(labels, minlength=top.class_means.shape[1])
    positive = top.activations[unit] > 0
    counts = np.bincount(labels[top.images[unit, positive]], minlength=len(sizes))
    means = top.class_means[unit]
    order = [x for x in np.argsort(-means, kind="stable") if sizes[x]]
    return [
        {
            "name": search.source.class_names[label],
            "mean": float(means[label]),
            "active": float(top.class_counts[unit, label] / sizes[label]),
            "count": int(counts[label]),
        }
        for label in order[:_CLASSES]
    ]


def _count_majority(search: Search, top: TopActivations, unit: int) -> tuple[int, int]:
    """Find the class of most of a unit's strongest, and how many are of it."""
    labels = search.source.labels
    if labels is None or top.dead[unit]:
        return -1, 0
    images = top.images[unit, top.activations[unit] > 0]
    return collections.Counter(labels[images].tolist()).most_common(1)[0]


def _summarize_classes(search: Search, unit: dict[str, Any]) -> str:
    """Name the class of most of the strongest; also another of the highest mean."""
    names, label = search.source.class_names, unit["majority"]
    if label < 0:
        return ""
    summary = f"{unit['majority_count']} of {len(unit['tops'])} {names[label]}"
    if unit["favorite"] == label:
        return summary
    return f"{summary}; highest mean: {names[unit['favorite']]}"


def write_layer(
    part: Path,
    search: Search,
    name: str,
    units: Sequence[dict[str, Any]],
    has_live: bool,
) -> None:
    """Write the page of a layer, those of its units, and its record."""
    layer, image = search.net.layer(name), search.net.image_shape[:2]
    field = layer.receptive_field.size if layer.receptive_field else None
    live = [unit for unit in units if not unit["dead"]]
    record = {
        "name": name,
        "slug": slug(name),
        "kind": _KINDS[layer.kind],
        "rectified": layer.rectified and layer.kind != "relu",
        "shape": layer.shape,
        "field": field,
        "units": len(units),
        "dead": len(units) - len(live),
        "dead_units": [unit["unit"] for unit in units if unit["dead"]],
        "active": float(np.median([unit["active"] for unit in live] or [0])),
        "blocks": 1 + len(search.rules) * len(CONTRASTS),
        "across": count_across(search.k),
        "cell": shrink(field or image),
        "previews": _choose_previews(live),
    }
    common = {
        "search": search,
        "layer": record,
        "image": image,
        "contrasts": CONTRASTS,
        "root": "../../",
    }
    page = render("layer.html", at_once=UNITS_AT_ONCE, **common)
    (part / "index.html").write_text(page, encoding="utf-8")
    for unit in units:
        page = render("unit.html", unit=unit, has_live=has_live, **common)
        (part / f"{unit['unit']}.html").write_text(page, encoding="utf-8")
    write_units(part, search, record, units)
    write_atomically(part / "record.json", to_json(record))


def _choose_previews(live: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Choose selective units, first those that respond most to different images."""
    # A unit that few images activate is selective by chance.
    order = sorted(
        live, key=lambda unit: (-len(unit["tops"]), -(unit["selectivity"] or 0))
    )
    unlike, rest = [], []
    images: set[int] = set()
    for unit in order:
        own = {top["image"] for top in unit["tops"]}
        if own.isdisjoint(images):
            unlike.append(unit)
            images |= own
        else:
            rest.append(unit)
    return (unlike + rest)[:_PREVIEWS]


def write_sanity(
    part: Path, search: Search, record: dict[str, Any], tables: dict[str, Any]
) -> None:
    """Write the page of the sanity check and its record."""
    page = render("sanity.html", search=search, check=record, root="../", tables=tables)
    (part / "index.html").write_text(page, encoding="utf-8")
    numbers = {"format": FORMAT, **record, "tables": tables}
    write_atomically(part / "numbers.json", to_json(numbers))
    write_atomically(part / "record.json", to_json(record))


def write_live(part: Path, search: Search, layers: Sequence[dict[str, Any]]) -> None:
    """Write the page on which the network runs, except what describes the network."""
    engine = (TEMPLATES / "engine.js").read_text(encoding="utf-8")
    values = {"layers": layers, "contrasts": CONTRASTS, "engine": engine}
    page = render("live.html", search=search, root="../", **values)
    (part / "index.html").write_text(page, encoding="utf-8")
    for name in ("live.css", "live.js"):
        write_atomically(part / name, (TEMPLATES / name).read_bytes())


def write_index(
    root: Path,
    search: Search,
    records: Sequence[dict[str, Any]],
    parts: Mapping[str, Any],
    other: Other | None,
) -> Path:
    """Write the first page, and what all pages share; return its path.

    `parts` tell of each other folder what it holds, nothing if it is missing.
    """
    for name in _SHARED:
        write_atomically(root / name, (TEMPLATES / name).read_bytes())
    styles = [style_squares(record, _THUMBNAIL) for record in records]
    write_scripts(root, search, records, styles, bool(parts["class_pages"]))
    write_outline(root.parent, search, records, parts)
    page = render(
        "index.html",
        search=search,
        layers=records,
        check=parts["sanity"],
        has_live=bool(parts["live"]),
        classes=parts["class_pages"],
        other=other,
        accuracy=getattr(search.net, "metadata", {}).get("test_accuracy"),
        root="pages/",
    )
    return write_atomically(root.parent / "index.html", page)


def style_squares(record: dict[str, Any], room: int) -> str:
    """Give the sizes of a layer's squares, as a style for those that a script makes."""
    macros = vars(_TEMPLATES.get_template("macros.html").module)
    return str(macros["sizes"](record, room))


def render(template: str, **values: Any) -> str:
    """Fill in a template."""
    return _TEMPLATES.get_template(template).render(**values)


def _format_percent(share: float) -> str:
    """Write a share in percent; 0% and 100% are exact."""
    if 0 < share < 0.001:
        return "< 0.1%"
    if 0.999 < share < 1:
        return "> 99.9%"
    return f"{share:.1%}" if 0 < share < 1 else f"{share:.0%}"


_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(TEMPLATES),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
    # Not markup, which holds names that have been through it.
    finalize=lambda value: printable(value) if type(value) is str else value,
)
_TEMPLATES.filters |= {
    "number": "{:.3g}".format,
    "percent": _format_percent,
    "correlation": lambda value: spell_similarity(np.nan if value is None else value),
}
