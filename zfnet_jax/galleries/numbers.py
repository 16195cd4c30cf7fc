"""The numbers of a gallery: as JSON for readers, as scripts for its pages.

docs/reference/gallery_files.md describes the JSON files. Pages that are opened as files
cannot read these, so scripts hold what they need.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zfnet_jax.files import digest, to_json, write_atomically
from zfnet_jax.galleries.pictures import CONTRASTS
from zfnet_jax.galleries.sources import Search
from zfnet_jax.imagenet.classes import BROADER_TERMS, SYNONYMS

# Version of the JSON files.
FORMAT = 1
# What to read of each folder beside those of layers.
_PARTS = {
    "sanity": "pages/sanity/numbers.json",
    "live": "pages/live/index.html",
    "class_pages": "pages/classes/index.html",
    "compare": "pages/compare/index.html",
}


def write_units(
    part: Path,
    search: Search,
    record: dict[str, Any],
    units: Sequence[dict[str, Any]],
) -> None:
    """Write the numbers of the units of a layer."""
    columns = to_script(_list_columns(search, units))
    write_atomically(part / "units.js", f'UNITS["{record["slug"]}"] = {columns};\n')
    numbers = {
        "format": FORMAT,
        "layer": _outline(record),
        "units": [_list_numbers(search, unit) for unit in units],
    }
    write_atomically(part / "units.json", json.dumps(_round(numbers, 6)))


def write_outline(
    folder: Path,
    search: Search,
    records: Sequence[dict[str, Any]],
    parts: Mapping[str, Any],
) -> None:
    """Write what the gallery holds; `parts` tell which other folders there are."""
    source = search.source
    outline = {
        "format": FORMAT,
        "title": search.title,
        "source": source.description,
        "images": len(source),
        "image_names": source.image_names,
        "image_shape": search.net.image_shape,
        "classes": None if source.labels is None else source.class_names,
        "class_terms": list_terms(search),
        "weights": digest(*map(np.asarray, jax.tree.leaves(search.net))),
        "test_accuracy": getattr(search.net, "metadata", {}).get("test_accuracy"),
        "k": search.k,
        "rules": search.rules,
        "contrasts": CONTRASTS,
        "epochs": list(search.epochs),
        "layers": [_outline(record) for record in records],
        **{name: path if parts[name] else None for name, path in _PARTS.items()},
    }
    write_atomically(folder / "gallery.json", to_json(outline))


def write_scripts(
    root: Path,
    search: Search,
    records: Sequence[dict[str, Any]],
    styles: Sequence[str],
    has_class_pages: bool,
) -> None:
    """Write the layers, which all pages load, and all units, which the search loads.

    `styles` are the sizes of each layer's thumbnails.
    """
    names = [] if search.source.labels is None else search.source.class_names
    layers = [
        {
            "name": printable(record["name"]),
            "slug": record["slug"],
            "units": record["units"],
            "dead": record["dead_units"],
            "style": style,
        }
        for record, style in zip(records, styles, strict=True)
    ]
    classes = [printable(name) for name in names]
    script = f"const LAYERS = {to_script(layers)}, CLASSES = {to_script(classes)};\n"
    script += f"const HAS_CLASS_PAGES = {to_script(has_class_pages)};\n"
    # Objects without a prototype: a layer may be called "constructor".
    script += "const UNITS = Object.create(null), LIKENESS = Object.create(null);\n"
    write_atomically(root / "layers.js", script)
    parts = [
        (root / "layers" / record["slug"] / "units.js").read_text(encoding="utf-8")
        for record in records
    ]
    parts.append(f"const TERMS = {to_script(list_terms(search))};\n")
    write_atomically(root / "units.js", "".join(parts))


def list_terms(search: Search) -> dict[str, list[str]]:
    """List other names and broader terms of the classes that are ImageNet's."""
    names = dict.fromkeys([*search.source.class_names, *(search.net.class_names or ())])
    return {
        name: [*filter(None, SYNONYMS[name].split(", ")), *BROADER_TERMS[name]]
        for name in names
        if name in SYNONYMS
    }


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
        "map": f"pages/likeness/{record['slug']}.html",
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


def _list_columns(search: Search, units: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """List what the page of a layer and the search show of units, by column."""
    names = [printable(unit["name"]) for unit in units]
    is_plain = names == [f"unit {unit}" for unit in range(len(units))]
    tops = [[x["activation"] for x in unit["tops"]] or [0.0] for unit in units]
    values = {
        **{
            key: [unit[key] for unit in units]
            for key in ("active", "sparsity", "selectivity")
        },
        "strongest": [x[0] for x in tops],
        "weakest": [x[-1] for x in tops],
    }
    return {
        "name": None if is_plain else names,
        "tops": [len(unit["tops"]) for unit in units],
        "labels": [_list_labels(search, unit) for unit in units],
        **{
            key: [unit[key] for unit in units]
            for key in ("favorite", "majority", "majority_count")
        },
        **_round(values, 5),
    }


def _list_labels(search: Search, unit: dict[str, Any]) -> list[int]:
    """List the classes of a unit's strongest activations; none without labels."""
    labels, images = search.source.labels, [top["image"] for top in unit["tops"]]
    return [] if labels is None else labels[images].tolist()


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


def printable(text: str) -> str:
    """Replace control characters and marks of direction."""
    return "".join(x if x.isprintable() or x == "\n" else "\ufffd" for x in text)
