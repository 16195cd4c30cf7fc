"""The pages on units that are alike, in one network and in two.

pages/likeness/LAYER.js          each unit's most similar units, the map, the groups
pages/likeness/LAYER.html        the map
pages/compare/index.html         how far the layers of two networks match
pages/compare/LAYER/             which unit is which; patches of the other network
"""

from __future__ import annotations

import collections
import functools
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np

from zfnet_jax.analysis.likeness import Likeness, Match, Neighbors
from zfnet_jax.analysis.mining import TopActivations
from zfnet_jax.files import slug, to_json, write_atomically
from zfnet_jax.galleries import pages
from zfnet_jax.galleries.numbers import printable, to_script
from zfnet_jax.galleries.pictures import count_across, save_mosaic, shrink
from zfnet_jax.galleries.sources import Other, Search
from zfnet_jax.networks import Network
from zfnet_jax.viz.patches import cut_patches

Layout = Literal["pca", "umap"]

# Similar units of a unit, and the cosine above which two are near duplicates.
_SIMILAR, _DUPLICATE = 8, 0.9
# A match elsewhere is named if its cosine is greater by this.
_BETTER = 0.01
# Units whose patches are cut together, and threads that do so.
_TOGETHER, _MOST_THREADS = 16, 8


def write_likeness(
    part: Path,
    search: Search,
    like: Likeness,
    records: Sequence[dict[str, Any]],
    layout: Layout,
) -> None:
    """Write the data and the map of each layer."""
    names = [record["name"] for record in records]
    layers = [_describe_layer(search.net, record) for record in records]
    for index, record in enumerate(records):
        name = record["name"]
        points, groups = like.map(name, layout), like.groups(name, _DUPLICATE)
        data = {
            "own": index,
            "layers": layers,
            "within": _list_neighbors(like.nearest(name, _SIMILAR), names),
            "elsewhere": _list_neighbors(
                like.nearest(name, _SIMILAR, elsewhere=True), names
            ),
            "points": _list_points(points),
            "groups": groups,
        }
        target = f'LIKENESS["{record["slug"]}"]'
        write_data(part / f"{record['slug']}.js", target, data)
        live = np.isfinite(points[:, 0])
        page = pages.render(
            "map.html",
            search=search,
            layer=record,
            layers=records,
            root="../",
            images=len(like.images),
            threshold=_DUPLICATE,
            groups=groups,
            hidden=int((~live).sum()),
            layout=layout,
            share=_explain(points[live], like.directions[name][live]),
        )
        (part / f"{record['slug']}.html").write_text(page, encoding="utf-8")
    write_atomically(part / "record.json", to_json({"images": len(like.images)}))


def write_comparison(
    part: Path,
    search: Search,
    other: Other,
    like: Likeness,
    theirs: Likeness,
    tops: Mapping[str, TopActivations],
    records: Sequence[dict[str, Any]],
) -> None:
    """Write which units of another network match those of each layer."""
    names, shape = list(tops), other.net.image_shape[:2]
    used: dict[str, set[int]] = collections.defaultdict(set)
    layers = []
    for name in names:
        field = other.net.layer(name).receptive_field
        record = {"name": name, "slug": slug(name), "across": count_across(search.k)}
        cell = shrink(field.size if field else shape)
        layers.append(_describe_layer(other.net, record | {"cell": cell, "blocks": 1}))
    rows = []
    for record in records:
        name = record["name"]
        match = like.match(theirs, name)
        pairs = _list_matches(match, name, names)
        for unit in range(len(pairs)):
            for place, number, _ in pairs[unit]:
                used[names[place]].add(number)
        data = {
            "own": _describe_layer(search.net, record),
            "layers": layers,
            "pairs": pairs,
        }
        (part / record["slug"]).mkdir(exist_ok=True)
        write_data(part / record["slug"] / "matches.js", "const MATCHES", data)
        rows.append(_summarize(record, match))
    common = {"search": search, "other": other, "images": len(like.images)}
    for record, row in zip(records, rows, strict=True):
        page = pages.render(
            "compare.html",
            layer=record,
            layers=records,
            row=row,
            root="../../",
            **common,
        )
        (part / record["slug"] / "index.html").write_text(page, encoding="utf-8")
    page = pages.render(
        "comparison.html", rows=rows, layers=records, root="../", **common
    )
    (part / "index.html").write_text(page, encoding="utf-8")
    for name, units in used.items():
        _write_patches(part / slug(name), other, tops[name], sorted(units))
    write_atomically(part / "record.json", to_json({"name": other.name, "rows": rows}))


def write_data(path: Path, target: str, data: Any) -> None:
    """Write a script that holds data: pages may not read other files."""
    write_atomically(path, f"{target} = {to_script(data)};\n")


def _describe_layer(net: Network, record: dict[str, Any]) -> dict[str, Any]:
    """Collect what a script needs to show the units of a layer."""
    names = net.class_names if record["name"] == net.output else None
    shown = {key: record[key] for key in ("slug", "across", "cell", "blocks")}
    return shown | {
        "name": printable(record["name"]),
        "names": names and [printable(name) for name in names],
    }


def _list_neighbors(
    neighbors: Neighbors, names: Sequence[str]
) -> list[list[int | float]]:
    """List layer, unit and cosine of each neighbor above 0, in one row per unit."""
    places = np.array([names.index(name) for name in neighbors.layers] or [0])
    table = []
    for row in range(len(neighbors.units)):
        known = neighbors.cosines[row] > 0
        columns = (
            places[neighbors.places[row, known]].tolist(),
            neighbors.units[row, known].tolist(),
            neighbors.cosines[row, known].astype(float).round(3).tolist(),
        )
        table.append([x for triple in zip(*columns, strict=True) for x in triple])
    return table


def _list_points(points: np.ndarray) -> list[list[float] | None]:
    """List coordinates from -1 to 1."""
    scaled = points.astype(float) / (np.nanmax(np.abs(points), initial=0) or 1)
    return [None if np.isnan(point[0]) else point.tolist() for point in scaled.round(4)]


def _explain(points: np.ndarray, directions: np.ndarray) -> float:
    """Compute the share of the variance that a plane holds."""
    if len(points) < 2:
        return 1.0
    return float(points.var(0).sum() / max(directions.var(0).sum(), 1e-12))


def _list_matches(
    match: Match, layer: str, names: Sequence[str]
) -> list[list[tuple[int, int, float]]]:
    """List layer, unit and cosine of each unit's match, and of a better one."""
    table = []
    for unit, cosine in enumerate(match.cosines.astype(float).round(3).tolist()):
        pairs = []
        if match.units[unit] >= 0:
            pairs.append((names.index(layer), int(match.units[unit]), cosine))
        best = float(match.best.cosines[unit, 0].astype(float).round(3))
        if best == best and (not pairs or best > cosine + _BETTER):
            place = names.index(match.best.layers[match.best.places[unit, 0]])
            pairs.append((place, int(match.best.units[unit, 0]), best))
        table.append(pairs)
    return table


def _summarize(record: dict[str, Any], match: Match) -> dict[str, Any]:
    """Describe how far a layer matches."""
    known = match.units >= 0
    units, cosines = np.arange(len(known))[known], match.cosines[known]
    return {
        "name": record["name"],
        "units": len(known),
        "matched": int(known.sum()),
        "median": float(np.median(cosines)) if known.any() else None,
        "close": int((cosines > _DUPLICATE).sum()),
        "same": int((match.units[known] == units).sum()),
        "threshold": _DUPLICATE,
    }


def _write_patches(
    folder: Path, other: Other, top: TopActivations, units: Sequence[int]
) -> None:
    """Save a mosaic of patches for some units of the other network."""
    folder.mkdir(exist_ok=True)
    parts = [units[x : x + _TOGETHER] for x in range(0, len(units), _TOGETHER)]
    write = functools.partial(_write_some, folder, other, top)
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_THREADS)) as pool:
        list(pool.map(write, parts))


def _write_some(
    folder: Path, other: Other, top: TopActivations, units: Sequence[int]
) -> None:
    field = other.net.layer(top.layer).receptive_field
    images, inverse = np.unique(top.images[units], return_inverse=True)
    pictures = other.source.read_pictures(images)
    for unit, chosen in zip(units, inverse.reshape(len(units), -1), strict=True):
        ranks = np.flatnonzero(top.activations[unit] > 0)
        boxes = np.array(
            [
                field.box(*position, clip=False)
                if field
                else (0, 0, *other.net.image_shape[:2])
                for position in top.positions[unit, ranks].tolist()
            ]
        )
        patches = cut_patches(pictures[chosen[ranks]], boxes)
        across = count_across(top.activations.shape[1])
        cells = {divmod(rank, across): patches[rank] for rank in ranks.tolist()}
        save_mosaic(folder / f"{unit}.webp", cells, across, across)
