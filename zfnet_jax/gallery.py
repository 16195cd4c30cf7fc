"""A folder of static HTML on which a person explores what each unit responds to.

    claim(folder)
    write_layer(folder, layer, top, source, rules, pictures, key)   # for each layer
    write_course(folder, layer, course, found, source, key)  # where a run has it
    write_sanity(folder, layer, randomised, replaced, figures, key)
    render(folder, network, [layer.name for layer in layers], [layer.name for …], True)

The writers leave pictures and a JSON file of all numbers beside them; `render` makes
the pages from these alone: an overview, a page for each layer, a page for each unit,
and one that says what the pictures tell and what not. They need no server and no
network. What was written under the same key is found by `has_layer`, `has_course` and
`has_sanity`, so that what is unchanged need not be computed again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.resources
import io
import json
import math
import re
import shutil
from collections.abc import (
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.figure import Figure
from PIL import Image

from zfnet_jax import viz
from zfnet_jax.analysis.evolution import Evolution
from zfnet_jax.analysis.mining import TopActivations
from zfnet_jax.analysis.sanity import Comparison
from zfnet_jax.projections import Projections

# Pages of a layer show so many units at a time. These pictures, and the text of all
# units, weigh at most so many bytes together.
UNITS_AT_ONCE = 256
_PAGE_BYTES, _TEXT_BYTES = 7_500_000, 1_100
_LEAST_SIDE, _SMALL_SIDE, _LARGE_SIDE = 8, 64, 224

SANITY_FIGURES = ("randomisation", "randomised_pictures", "controls")

_FORMAT = 1
_ASSETS = ("gallery.css", "gallery.js")


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """The images that were searched.

    Attributes:
        pictures: From indices, [n], to the images as the network sees them: uint8
            [n, h, w, 3].
        labels: [images], an index into `class_names` each.
        class_names: By label.
        description: One line that says which images these are.
    """

    pictures: Callable[[Int[np.ndarray, " n"]], UInt8[np.ndarray, "n h w 3"]]
    labels: Int[np.ndarray, " images"]
    class_names: tuple[str, ...]
    description: str


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer as its pages describe it.

    Attributes:
        name: As in the paper.
        kind: What it computes, in words.
        shape: Of its output: rows, columns, maps, or units alone.
        field: Rows and columns of the image that a unit sees.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    field: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Network:
    """A network as the overview describes it: a title, and facts by what they are."""

    title: str
    facts: Mapping[str, str]


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
    """Projections of the strongest activations of some units of a layer.

    Attributes:
        units: [u], which.
        boxes: [u, k, 4], what each activation sees, as in `Projections`.
        projections: [u, k, h, w, 3] for each backward rule, by its name.
    """

    units: Int[np.ndarray, " u"]
    boxes: Int[np.ndarray, "u k 4"]
    projections: Mapping[str, Float[np.ndarray, "u k h w 3"]]


def claim(folder: Path) -> None:
    """Make a folder one for a gallery, which may then replace what is in it.

    Raises:
        ValueError: It holds files under the names of a gallery that are not of one.
    """
    mark = folder / "gallery.json"
    if _key(mark) is None:
        names = ("index.html", "assets", "images", "layers", "sanity", mark.name)
        if there := [name for name in names if (folder / name).exists()]:
            raise ValueError(
                f"{folder} holds {there[0]} and is no gallery: choose another folder"
            )
    (folder / "images").mkdir(parents=True, exist_ok=True)
    _write(mark, _json({"format": _FORMAT, "key": "gallery"}))


def has_layer(folder: Path, layer: str, key: str) -> bool:
    """Whether `write_layer` has written this layer under this key, and whole."""
    home = _found(folder, layer)
    if _key(home / "layer.json") != key:
        return False
    units = [x for x in _read(home / "layer.json")["units"] if not x["dead"]]
    files = set()
    for unit in units:
        files |= {folder / "images" / f"{name}.webp" for name in unit["pictures"]}
        files.add(home / "large" / f"{unit['unit']}.webp")
        files.add(home / "small" / f"{unit['unit']}.jpg")
    return all(map(_is_there, files))


def has_course(folder: Path, layer: str, key: str) -> bool:
    """Whether `write_course` has written this layer under this key, and whole."""
    home = _course(folder, layer)
    if _key(home / "course.json") != key:
        return False
    units = _read(home / "course.json")["units"]
    return all(_is_there(home / f"{unit}.webp") for unit in units)


def has_sanity(folder: Path, key: str) -> bool:
    """Whether `write_sanity` has written under this key, and whole."""
    home = folder / "sanity"
    if _key(home / "sanity.json") != key:
        return False
    return all(_is_there(home / f"{name}.png") for name in SANITY_FIGURES)


def write_layer(
    folder: Path,
    layer: Layer,
    top: TopActivations,
    source: Source,
    rules: Sequence[str],
    pictures: Iterable[Pictures],
    key: str,
) -> None:
    """Write pictures and numbers of a layer's units; all of them or nothing.

    Args:
        folder: Of the gallery.
        layer: What to say of the layer.
        top: What was found in it.
        source: The images that were searched.
        rules: Names of the backward rules, as in `pictures`.
        pictures: Projections of every unit that fires, in parts, so that not all need
            be in memory. Each is shown on its own scale, `0.5 + x / (2 max|x|)`.
        key: Names what all this was computed from, for `has_layer`.

    Raises:
        ValueError: A unit that fires has no pictures.
    """
    units = _units(top, source)
    with _replaced(_found(folder, layer.name)) as part:
        for name in ("large", "small"):
            (part / name).mkdir()
        cell = layer.field
        for some in pictures:
            cell = _write_large(part, some, top, source, units)
            _write_sources(folder, some, top, source, units)
        drawn = [unit["unit"] for unit in units if "scales" in unit]
        if missing := sorted(set(np.flatnonzero(~top.dead).tolist()) - set(drawn)):
            raise ValueError(f"unit {missing[0]} of {layer.name} has no pictures")
        blocks = 1 + len(rules), _across(top.values.shape[1])
        small = _write_small(part, drawn, blocks, cell)
        record = {
            **dataclasses.asdict(layer),
            "format": _FORMAT,
            "key": key,
            "images": len(source.labels),
            "image_hw": source.pictures(np.zeros(1, int)).shape[1:3],
            "class_names": source.class_names,
            "rules": list(rules),
            "across": blocks[1],
            "cell": cell,
            "small_cell": small,
            "units": units,
        }
        _write(part / "layer.json", _json(record))


def write_course(
    folder: Path,
    layer: str,
    course: Evolution,
    found: Projections,
    units: Sequence[int] | Int[np.ndarray, " u"],
    source: Source,
    key: str,
) -> None:
    """Write how units of a layer came about in training; all of it or nothing.

    Args:
        folder: Of the gallery.
        layer: Name of the layer.
        course: What was found at each checkpoint.
        found: Projections of the units, as `project_course` gives them.
        units: Which units these are.
        source: The images that were searched.
        key: Names what all this was computed from, for `has_course`.
    """
    steps = len(course.epochs)
    shown, scales = viz.display_projections(found.pixels, found.units)
    patches, outside = _patches(source, found.images, found.boxes, found.values)
    records = {}
    with _replaced(_course(folder, layer)) as part:
        for index, unit in enumerate(np.asarray(units).tolist()):
            own = slice(index * steps, (index + 1) * steps)
            rows = np.stack([patches[own], _marked(_bytes(shown[own]), outside[own])])
            _save(part / f"{unit}.webp", _tiled(_reduced(rows, _LARGE_SIDE)))
            records[unit] = {
                "values": course.values[:, unit],
                "images": course.images[:, unit],
                "labels": source.labels[course.images[:, unit]],
                "jumps": course.jumps[:, unit],
                "dead": course.dead[:, unit],
                "scales": scales[own],
            }
        record = {
            "format": _FORMAT,
            "key": key,
            "epochs": course.epochs,
            "searched": source.description,
            "units": records,
        }
        _write(part / "course.json", _json(record))


def write_sanity(
    folder: Path,
    layer: str,
    randomised: Comparison,
    replaced: Comparison,
    figures: Mapping[str, Figure],
    key: str,
) -> None:
    """Write how much of the pictures is the network's; all of it or nothing.

    Args:
        folder: Of the gallery.
        layer: Of the unit that was replaced, a layer with weights.
        randomised: As `analysis.randomisation` gives it, with the rule "deconvnet".
        replaced: As `analysis.controls` gives it, likewise.
        figures: Of these, by the names `SANITY_FIGURES`.
        key: Names what all this was computed from, for `has_sanity`.
    """
    signed = randomised.similarity["deconvnet"].signed
    means = replaced.similarity["deconvnet"].signed.mean(1)
    record = {
        "format": _FORMAT,
        "key": key,
        "layer": layer,
        "images": signed.shape[1],
        "destroyed_above": signed.mean(1)[randomised.columns.index(layer) - 1],
        "replaced": dict(zip(replaced.columns, means, strict=True)),
    }
    with _replaced(folder / "sanity") as part:
        for name in SANITY_FIGURES:
            _write(part / f"{name}.png", viz.figure_bytes(figures[name], "png"))
        _write(part / "sanity.json", _json(record))


def counts(folder: Path, layer: str) -> dict[str, int]:
    """How many units a layer that was written has, and how many of them are dead."""
    units = _read(_found(folder, layer) / "layer.json")["units"]
    return {"units": len(units), "dead": sum(unit["dead"] for unit in units)}


def render(
    folder: Path,
    network: Network,
    layers: Sequence[str],
    courses: Collection[str] = (),
    sanity: bool = False,
) -> Path:
    """Write the pages of layers that `write_layer` has written.

    Pages of other layers, from an earlier gallery in the folder, go; what was computed
    for them stays, for another time.

    Args:
        folder: Of the gallery.
        network: What to say of the network.
        layers: Names of its layers, from the image up.
        courses: Those of which to show what `write_course` has written.
        sanity: Whether to show what `write_sanity` has written.

    Returns:
        The overview, to be opened in a browser.
    """
    pages = jinja2.Environment(
        loader=jinja2.PackageLoader("zfnet_jax", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    pages.filters |= {"number": _number, "percent": _percent, "alike": "{:z.2f}".format}
    templates = importlib.resources.files("zfnet_jax") / "templates"
    (folder / "assets").mkdir(exist_ok=True)
    for asset in _ASSETS:
        _write(folder / "assets" / asset, (templates / asset).read_bytes())

    records = [_read(_found(folder, name) / "layer.json") for name in layers]
    widths = {record["name"]: len(record["units"]) for record in records}
    for number, record in enumerate(records):
        home = folder / "layers" / record["name"]
        course = {"epochs": [], "units": {}, "searched": None}
        if record["name"] in courses:
            course = _read(_course(folder, record["name"]) / "course.json")
        common = {
            "network": network,
            "layer": record,
            "widths": widths,
            "root": "../../",
        }
        neighbours = [
            records[i]["name"] if 0 <= i < len(records) else None
            for i in (number - 1, number + 1)
        ]
        text = pages.get_template("layer.html").render(
            common, neighbours=neighbours, at_once=UNITS_AT_ONCE
        )
        _write(home / "index.html", text.encode())
        template = pages.get_template("unit.html")
        count = len(record["units"])
        for unit in record["units"]:
            text = template.render(
                common,
                unit=unit,
                count=count,
                course=course["units"].get(str(unit["unit"])),
                epochs=course["epochs"],
                searched=course["searched"],
            )
            _write(home / f"{unit['unit']}.html", text.encode())
        for page in home.glob("*.html"):
            if page.stem.isdecimal() and int(page.stem) >= count:
                page.unlink()
    checks = _read(folder / "sanity" / "sanity.json") if sanity else None
    common = {"network": network, "widths": widths, "sanity": checks}
    page = folder / "sanity" / "index.html"
    if checks is None:
        page.unlink(missing_ok=True)
    else:
        text = pages.get_template("sanity.html").render(common, root="../")
        _write(page, text.encode())
    text = pages.get_template("overview.html").render(common, layers=records, root="")
    overview = folder / "index.html"
    _write(overview, text.encode())
    _forget(folder, layers)
    return overview


# Pictures.


def _units(top: TopActivations, source: Source) -> list[dict[str, Any]]:
    """All that is known of each unit; of its strongest activations those above 0."""
    images_of_class = np.bincount(source.labels, minlength=top.class_means.shape[1])
    class_active = top.class_counts / np.maximum(images_of_class, 1)
    favourites, selectivities, dead = top.favourite, top.selectivity, top.dead
    records = []
    for unit, values in enumerate(top.values):
        firing = values > 0
        images, selectivity = top.images[unit][firing], selectivities[unit]
        records.append(
            {
                "unit": unit,
                "dead": bool(dead[unit]),
                "active": top.active[unit],
                "mean": top.mean[unit],
                "values": values[firing],
                "images": images,
                "labels": source.labels[images],
                "positions": top.positions[unit][firing],
                "class_means": top.class_means[unit],
                "class_active": class_active[unit],
                "favourite": None if favourites[unit] < 0 else favourites[unit],
                "selectivity": None if np.isnan(selectivity) else selectivity,
            }
        )
    return records


def _patches(
    source: Source,
    images: Int[np.ndarray, " n"],
    boxes: Int[np.ndarray, "n 4"],
    values: Float[np.ndarray, " n"],
) -> tuple[UInt8[np.ndarray, "n h w 3"], Int[np.ndarray, "n 4"]]:
    """What activations saw, and how far that leaves the image; grey where none is."""
    seen = source.pictures(images)
    outside = viz.outside(boxes, seen.shape[1:3])
    patches = _marked(viz.image_patches(seen, boxes), outside)
    patches[values <= 0] = 128
    return patches, np.where((values > 0)[:, None], outside, 0)


def _write_large(
    part: Path,
    some: Pictures,
    top: TopActivations,
    source: Source,
    units: list[dict[str, Any]],
) -> tuple[int, int]:
    """A picture of each unit: blocks of patches and of projections by each rule."""
    count, k = some.boxes.shape[:2]
    boxes = some.boxes.reshape(-1, 4)
    images, values = top.images[some.units].ravel(), top.values[some.units].ravel()
    patches, outside = _patches(source, images, boxes, values)
    blocks, scales = [patches], {}
    of = np.arange(count * k)
    for rule, pixels in some.projections.items():
        shown, used = viz.display_projections(pixels.reshape(-1, *pixels.shape[2:]), of)
        blocks.append(_marked(_bytes(shown), outside))
        scales[rule] = used.reshape(count, k)
    across = _across(k)
    missing = across**2 - k
    cells = _reduced(np.stack(blocks), _LARGE_SIDE)
    cells = cells.reshape(len(blocks), count, k, *cells.shape[2:])
    blank = (*[(0, 0)] * 2, (0, missing), *[(0, 0)] * 3)
    cells = np.pad(cells, blank, constant_values=128)
    for index, unit in enumerate(some.units.tolist()):
        own = cells[:, index].reshape(len(blocks), across, across, *cells.shape[3:])
        _save(part / "large" / f"{unit}.webp", _tiled(np.concatenate(list(own), 1)))
        firing = len(units[unit]["values"])
        units[unit]["boxes"] = some.boxes[index, :firing]
        units[unit]["scales"] = {r: x[index, :firing] for r, x in scales.items()}
    return cells.shape[3], cells.shape[4]


def _write_sources(
    folder: Path,
    some: Pictures,
    top: TopActivations,
    source: Source,
    units: list[dict[str, Any]],
) -> None:
    """The whole images, each once, named by what they hold."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for unit in some.units.tolist():
        names = []
        for picture in source.pictures(units[unit]["images"]):
            name = hashlib.sha256(picture.tobytes()).hexdigest()[:16]
            names.append(name)
            path = folder / "images" / f"{name}.webp"
            if not _is_there(path):
                _save(path, picture)
        units[unit]["pictures"] = names


def _write_small(
    part: Path, units: Sequence[int], blocks: tuple[int, int], cell: tuple[int, int]
) -> tuple[int, int]:
    """The same smaller, where needed, so that what a page shows stays light."""
    count, across = blocks
    side = min(max(cell), _SMALL_SIDE)
    while True:
        files = {}
        for unit in units:
            with Image.open(part / "large" / f"{unit}.webp") as image:
                large = np.asarray(image.convert("RGB"))
            cells = large.reshape(across, cell[0], count * across, cell[1], 3)
            cells = _reduced(cells.swapaxes(1, 2), side)
            files[unit] = _encoded(_tiled(cells), "JPEG", quality=90, subsampling=0)
        heaviest = sorted(map(len, files.values()), reverse=True)[:UNITS_AT_ONCE]
        room = _PAGE_BYTES - _TEXT_BYTES * len(units)
        if sum(heaviest) <= room or side <= _LEAST_SIDE:
            break
        side = max(_LEAST_SIDE, side * 4 // 5)
    for unit, data in files.items():
        _write(part / "small" / f"{unit}.jpg", data)
    share = min(1, side / max(cell))
    return max(1, round(cell[0] * share)), max(1, round(cell[1] * share))


def _across(k: int) -> int:
    """Columns, and rows, of the square in which k pictures stand."""
    return math.ceil(math.sqrt(k))


def _bytes(shown: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    return np.rint(shown * 255).astype(np.uint8)


def _marked(
    pictures: UInt8[np.ndarray, "n h w 3"], outside: Int[np.ndarray, "n 4"]
) -> UInt8[np.ndarray, "n h w 3"]:
    """Hatched where a picture lies outside its image."""
    height, width = pictures.shape[1:3]
    rows, columns = np.arange(height)[:, None], np.arange(width)
    hatch = np.where((rows + columns) // 2 % 2, 122, 134).astype(np.uint8)[..., None]
    marked = pictures.copy()
    for picture, (above, left, below, right) in zip(
        marked, outside.tolist(), strict=True
    ):
        beyond = (rows < above) | (rows >= height - below)
        beyond = beyond | (columns < left) | (columns >= width - right)
        np.copyto(picture, hatch, where=beyond[..., None])
    return marked


def _reduced(
    cells: UInt8[np.ndarray, "a b h w 3"], side: int
) -> UInt8[np.ndarray, "a b H W 3"]:
    """Each picture reduced so that its longer side is at most so long."""
    height, width = cells.shape[2:4]
    if max(height, width) <= side:
        return cells
    share = side / max(height, width)
    size = max(1, round(width * share)), max(1, round(height * share))
    flat = [
        np.asarray(Image.fromarray(x).resize(size, Image.Resampling.BOX))
        for x in cells.reshape(-1, height, width, 3)
    ]
    return np.stack(flat).reshape(*cells.shape[:2], size[1], size[0], 3)


def _tiled(
    cells: UInt8[np.ndarray, "rows columns h w 3"],
) -> UInt8[np.ndarray, "H W 3"]:
    rows, columns, height, width, _ = cells.shape
    return cells.swapaxes(1, 2).reshape(rows * height, columns * width, 3)


def _encoded(picture: UInt8[np.ndarray, "h w 3"], kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind, **options)
    return file.getvalue()


def _save(path: Path, picture: UInt8[np.ndarray, "h w 3"]) -> None:
    """Without loss; the fastest method, since stronger ones gain a tenth."""
    _write(path, _encoded(picture, "WEBP", lossless=True, quality=0, method=0))


# Files.


def _found(folder: Path, layer: str) -> Path:
    return folder / "layers" / layer / "found"


def _course(folder: Path, layer: str) -> Path:
    return folder / "layers" / layer / "course"


def _key(record: Path) -> str | None:
    """The key of a record; None if there is none, or it is of another format."""
    try:
        read = _read(record)
    except (OSError, ValueError):
        return None
    if not isinstance(read, dict) or read.get("format") != _FORMAT:
        return None
    return read.get("key")


def _is_there(file: Path) -> bool:
    return file.is_file() and file.stat().st_size > 0


def _read(record: Path) -> Any:
    return json.loads(record.read_bytes())


@contextlib.contextmanager
def _replaced(target: Path) -> Iterator[Path]:
    """A folder that takes the place of another one once it is whole."""
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; leave it alone if it holds that already."""
    with contextlib.suppress(OSError):
        if path.stat().st_size == len(data) and path.read_bytes() == data:
            return
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(data)
    part.replace(path)


def _forget(folder: Path, layers: Collection[str]) -> None:
    """Remove pages of other layers, what a killed run left, and images of no layer."""
    used = set()
    for home in (folder / "layers").iterdir():
        for part in home.glob(".*.part"):
            shutil.rmtree(part, ignore_errors=True)
        record = home / "found" / "layer.json"
        if _key(record) is None:
            continue
        for unit in _read(record)["units"]:
            used |= set(unit.get("pictures", ()))
        if home.name not in layers:
            for page in home.glob("*.html"):
                if page.stem.isdecimal() or page.stem == "index":
                    page.unlink()
    for file in (folder / "images").glob("*.webp"):
        if re.fullmatch("[0-9a-f]{16}", file.stem) and file.stem not in used:
            file.unlink()


def _json(value: object) -> bytes:
    def plain(item: Any) -> Any:
        if isinstance(item, np.ndarray | np.generic):
            return item.tolist()
        raise TypeError(f"{type(item).__name__} has no form in JSON")

    text = json.dumps(value, default=plain, sort_keys=True, allow_nan=False)
    return text.encode()


def _number(value: float) -> str:
    return f"{value:.3g}"


def _percent(share: float) -> str:
    """A share in percent; never 0% or 100% unless it is."""
    if 0 < share < 0.001:
        return "< 0.1%"
    if 0.999 < share < 1:
        return "> 99.9%"
    return f"{share:.1%}" if 0 < share < 1 else f"{share:.0%}"
