"""The pages of a gallery, from templates."""

from __future__ import annotations

import collections
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from zfnet_jax.analysis.mining import TopActivations
from zfnet_jax.files import slug, to_json, write_atomically
from zfnet_jax.galleries.pictures import CONTRASTS, count_across, shrink
from zfnet_jax.galleries.sources import Search
from zfnet_jax.imagenet.classes import SYNONYMS

# Every page holds it.
MARK = '<meta name="generator" content="zfnet_jax">'

# Units of a layer's page that are shown together.
UNITS_AT_ONCE = 256
# Units of a layer on the first page, and classes of a unit.
_PREVIEWS, _CLASSES = 4, 20
# Side, in pixels, of a unit's pictures among the results of a search.
_THUMBNAIL = 72
# Version of the format of gallery.json and units.json.
_FORMAT = 1

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
    part: Path, search: Search, name: str, units: Sequence[dict[str, Any]]
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
        "active": float(np.median([unit["active"] for unit in live] or [0])),
        "blocks": 1 + len(search.rules) * len(CONTRASTS),
        "across": count_across(search.k),
        "cell": shrink(field or image),
        # A unit that few images activate is selective by chance.
        "previews": sorted(
            live, key=lambda unit: (-len(unit["tops"]), -(unit["selectivity"] or 0))
        )[:_PREVIEWS],
    }
    common = {
        "search": search,
        "layer": record,
        "image": image,
        "contrasts": CONTRASTS,
        "root": "../../",
    }
    page = _render("layer.html", at_once=UNITS_AT_ONCE, **common)
    (part / "index.html").write_text(page, encoding="utf-8")
    for unit in units:
        page = _render("unit.html", unit=unit, **common)
        (part / f"{unit['unit']}.html").write_text(page, encoding="utf-8")
    columns = to_script(_list_columns(units))
    write_atomically(part / "units.js", f'UNITS["{record["slug"]}"] = {columns};\n')
    numbers = {
        "format": _FORMAT,
        "layer": _outline(record),
        "units": [_list_numbers(search, unit) for unit in units],
    }
    write_atomically(part / "units.json", json.dumps(_round(numbers, 6)))
    write_atomically(part / "record.json", to_json(record))


def _outline(record: dict[str, Any]) -> dict[str, Any]:
    """Describe a layer for those who read the numbers."""
    home = f"pages/layers/{record['slug']}"
    names = "name", "kind", "rectified", "shape", "units", "dead", "active"
    return {
        **{name: record[name] for name in names},
        "receptive_field": record["field"],
        "address": f"index.html#{record['slug']}",
        "page": f"{home}/index.html",
        "numbers": f"{home}/units.json",
    }


def _list_numbers(search: Search, unit: dict[str, Any]) -> dict[str, Any]:
    """List the numbers of a unit's page, with classes by name."""
    names = search.source.class_names
    tops = []
    for top in unit["tops"]:
        scales = np.reshape(top["scales"], (len(search.rules), len(CONTRASTS)))
        by_rule = {
            rule: dict(zip(CONTRASTS, row, strict=True))
            for rule, row in zip(search.rules, scales.tolist(), strict=True)
        }
        tops.append({**top, "scales": by_rule})
    by_name = {
        key: names[unit[key]] if unit[key] >= 0 else None
        for key in ("favorite", "majority")
    }
    numbers = {**unit, **by_name, "tops": tops}
    del numbers["summary"]
    return numbers


def _list_columns(units: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """List what the page of a layer and the search show of units, by column."""
    names = [printable(unit["name"]) for unit in units]
    is_plain = names == [f"unit {unit}" for unit in range(len(units))]
    keys = "active", "sparsity", "selectivity"
    values = {key: [unit[key] for unit in units] for key in keys}
    for place, key in ((0, "strongest"), (-1, "weakest")):
        values[key] = [
            x["tops"][place]["activation"] if x["tops"] else 0 for x in units
        ]
    return {
        "name": None if is_plain else names,
        "tops": [len(unit["tops"]) for unit in units],
        **{
            key: [unit[key] for unit in units]
            for key in ("favorite", "majority", "majority_count")
        },
        **_round(values, 5),
    }


def _round(value: Any, digits: int) -> Any:
    """Round every float in nested lists and mappings; NaN becomes None."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if np.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _round(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_round(item, digits) for item in value]
    return value


def to_script(value: Any) -> str:
    """Write a value as JavaScript that may stand anywhere, also inside of HTML."""
    return json.dumps(value, separators=(",", ":")).replace("<", r"\u003c")


def write_sanity(
    part: Path, search: Search, record: dict[str, Any], tables: dict[str, Any]
) -> None:
    """Write the page of the sanity check and its record."""
    page = _render(
        "sanity.html", search=search, check=record, root="../", tables=tables
    )
    (part / "index.html").write_text(page, encoding="utf-8")
    numbers = {"format": _FORMAT, **record, "tables": tables}
    write_atomically(part / "numbers.json", to_json(numbers))
    write_atomically(part / "record.json", to_json(record))


def write_index(
    root: Path,
    search: Search,
    records: Sequence[dict[str, Any]],
    check: dict[str, Any] | None,
) -> Path:
    """Write the first page, and what all pages share; return its path."""
    for name in ("gallery.css", "gallery.js", "layer.js", "search.js"):
        text = (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")
        write_atomically(root / name, text)
    _write_data(root, search, records)
    accuracy = getattr(search.net, "metadata", {}).get("test_accuracy")
    source = search.source
    outline = {
        "format": _FORMAT,
        "title": search.title,
        "source": source.description,
        "images": len(source),
        "image_shape": search.net.image_shape,
        "classes": None if source.labels is None else source.class_names,
        "test_accuracy": accuracy,
        "k": search.k,
        "rules": search.rules,
        "contrasts": CONTRASTS,
        "epochs": list(search.epochs),
        "layers": [_outline(record) for record in records],
        "sanity": None if check is None else "pages/sanity/numbers.json",
    }
    write_atomically(root.parent / "gallery.json", to_json(outline))
    page = _render(
        "index.html",
        search=search,
        layers=records,
        check=check,
        accuracy=accuracy,
        root="pages/",
    )
    return write_atomically(root.parent / "index.html", page)


def _write_data(root: Path, search: Search, records: Sequence[dict[str, Any]]) -> None:
    """Write the data that all pages load, and those of the search."""
    names = [] if search.source.labels is None else search.source.class_names
    sizes = _TEMPLATES.get_template("macros.html").module.sizes  # pyright: ignore[reportAttributeAccessIssue]
    layers = [
        {
            "name": printable(record["name"]),
            "slug": record["slug"],
            "units": record["units"],
            "style": sizes(record, _THUMBNAIL),
        }
        for record in records
    ]
    classes = [printable(name) for name in names]
    script = f"const LAYERS = {to_script(layers)}, CLASSES = {to_script(classes)};\n"
    write_atomically(root / "layers.js", f"{script}const UNITS = {{}};\n")
    synonyms = [SYNONYMS.get(name, "") for name in names]
    parts = [
        (root / "layers" / record["slug"] / "units.js").read_text(encoding="utf-8")
        for record in records
    ]
    parts.append(f"const SYNONYMS = {to_script(synonyms)};\n")
    write_atomically(root / "units.js", "".join(parts))


def printable(text: str) -> str:
    """Replace control characters and marks of direction."""
    return "".join(x if x.isprintable() or x == "\n" else "\ufffd" for x in text)


def _render(template: str, **values: Any) -> str:
    return _TEMPLATES.get_template(template).render(**values)


def _format_percent(share: float) -> str:
    """Write a share in percent; 0% and 100% are exact."""
    if 0 < share < 0.001:
        return "< 0.1%"
    if 0.999 < share < 1:
        return "> 99.9%"
    return f"{share:.1%}" if 0 < share < 1 else f"{share:.0%}"


_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
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
    "correlation": "{:z.2f}".format,
}
