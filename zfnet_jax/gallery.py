"""A folder of static HTML pages that show what each unit responds to.

    claim(folder)
    write_layer(folder, layer, top, source, rules, pictures, key)   # for each layer
    write_course(folder, course, projections, units, source, key)   # if there is one
    write_sanity(folder, layer, randomized, replaced, figures, key)
    render(folder, network, [layer.name for layer in layers], [layer.name for …], True)

The writers leave pictures, and all numbers in a JSON file beside them. `render` makes
the pages from these alone: an overview, a page per layer, a page per unit, and a page
on the limits of such pictures. They need neither a server nor the network. `has_layer`,
`has_course` and `has_sanity` recognize what was written under the same key, so that
nothing unchanged needs to be computed again.
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
from PIL import Image

from zfnet_jax.analysis.evolution import Evolution
from zfnet_jax.analysis.mining import TopActivations
from zfnet_jax.analysis.sanity import Comparison
from zfnet_jax.projections import Projections

# Units that a layer's page shows together, and the most bytes that their pictures and
# the text of all units may take.
UNITS_AT_ONCE = 256
_PAGE_BYTES, _TEXT_BYTES = 7_500_000, 1_100
_LEAST_SIDE, _SMALL_SIDE, _LARGE_SIDE = 8, 64, 224

SANITY_FIGURES = ("randomisation", "randomised_pictures", "controls")

_FORMAT = 2
_ASSETS = ("gallery.css", "gallery.js")


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """The images that were searched.

    Attributes:
        pictures: From indices [n] to the images as the network sees them, uint8
            [n, h, w, 3].
        labels: [images], the class of each, an index into `class_names`.
        class_names: One name per class.
        description: Which images these are, in one line.
    """

    pictures: Callable[[Int[np.ndarray, " n"]], UInt8[np.ndarray, "n h w 3"]]
    labels: Int[np.ndarray, " images"]
    class_names: tuple[str, ...]
    description: str


@dataclasses.dataclass(frozen=True)
class Layer:
    """Description of a layer for its pages.

    Attributes:
        name: Name of the layer.
        kind: The operation, in words.
        shape: Shape of the output: rows, columns and maps, or units alone.
        field: Rows and columns of the receptive field, in pixels.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    field: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Network:
    """Description of a network for the overview: a title, and facts by their name."""

    title: str
    facts: Mapping[str, str]


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
    """Projections of the strongest activations of some units of a layer.

    Attributes:
        units: [u], the units.
        boxes: [u, k, 4], the receptive field of each activation, as in `Projections`.
        projections: [u, k, h, w, 3] by backward rule.
    """

    units: Int[np.ndarray, " u"]
    boxes: Int[np.ndarray, "u k 4"]
    projections: Mapping[str, Float[np.ndarray, "u k h w 3"]]


def claim(folder: Path) -> None:
    """Mark a folder as a gallery's, whose files may then be replaced.

    Raises:
        ValueError: It contains other files under the names that a gallery uses.
    """
    mark = folder / "gallery.json"
    if _key(mark) is None:
        names = ("index.html", "assets", "images", "layers", "sanity", mark.name)
        if others := [name for name in names if (folder / name).exists()]:
            raise ValueError(
                f"{folder} contains {others[0]} and is not a gallery: choose another "
                "folder"
            )
    (folder / "images").mkdir(parents=True, exist_ok=True)
    _write(mark, _json({"format": _FORMAT, "key": "gallery"}))


def has_layer(folder: Path, layer: str, key: str) -> bool:
    """Check that `write_layer` has written this layer under this key, completely."""
    home = _layer(folder, layer)
    if _key(home / "layer.json") != key:
        return False
    units = [x for x in _read(home / "layer.json")["units"] if not x["dead"]]
    files = set()
    for unit in units:
        files |= {folder / "images" / f"{name}.webp" for name in unit["pictures"]}
        files.add(home / "large" / f"{unit['unit']}.webp")
        files.add(home / "small" / f"{unit['unit']}.jpg")
    return all(map(_is_written, files))


def has_course(folder: Path, layer: str, key: str) -> bool:
    """Check that `write_course` has written this layer under this key, completely."""
    home = _course(folder, layer)
    if _key(home / "course.json") != key:
        return False
    units = _read(home / "course.json")["units"]
    return all(_is_written(home / f"{unit}.webp") for unit in units)


def has_sanity(folder: Path, key: str) -> bool:
    """Check that `write_sanity` has written under this key, completely."""
    home = folder / "sanity"
    if _key(home / "sanity.json") != key:
        return False
    return all(_is_written(home / f"{name}.png") for name in SANITY_FIGURES)


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
        folder: The gallery folder.
        layer: Description of the layer.
        top: The strongest activations of its units.
        source: The images that were searched.
        rules: Names of the backward rules, as in `pictures`.
        pictures: Projections of every live unit, in parts, so that they need not all be
            in memory. Each is shown on its own scale, `0.5 + x / (2 max|x|)`.
        key: Digest of what all this was computed from, for `has_layer`.

    Raises:
        ValueError: A live unit has no pictures.
    """
    units = _units(top, source)
    with _replace(_layer(folder, layer.name)) as part:
        for name in ("large", "small"):
            (part / name).mkdir()
        cell = layer.field
        for some in pictures:
            cell = _write_large(part, some, top, source, units)
            _write_sources(folder, some, source, units)
        pictured = [unit["unit"] for unit in units if "scales" in unit]
        if missing := sorted(set(np.flatnonzero(~top.dead).tolist()) - set(pictured)):
            raise ValueError(f"unit {missing[0]} of {layer.name} has no pictures")
        blocks = 1 + len(rules), _across(top.activations.shape[1])
        small = _write_small(part, pictured, blocks, cell)
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
    course: Evolution,
    projections: Projections,
    units: Sequence[int] | Int[np.ndarray, " u"],
    source: Source,
    key: str,
) -> None:
    """Write how units of a layer developed during training; all of it or nothing.

    Args:
        folder: The gallery folder.
        course: The strongest activations at each checkpoint.
        projections: Projections of the units, as `Evolution.project` returns them.
        units: The units.
        source: The images that were searched.
        key: Digest of what all this was computed from, for `has_course`.
    """
    from zfnet_jax import viz

    steps = len(course.epochs)
    shown, scales = viz.display_projections(projections.pixels, projections.units)
    patches, outside = _patches(
        source, projections.images, projections.boxes, projections.activations
    )
    records = {}
    with _replace(_course(folder, course.layer)) as part:
        for index, unit in enumerate(np.asarray(units).tolist()):
            own = slice(index * steps, (index + 1) * steps)
            rows = np.stack([patches[own], _hatch(_bytes(shown[own]), outside[own])])
            _save(part / f"{unit}.webp", _tile(_reduce(rows, _LARGE_SIDE)))
            records[unit] = {
                "values": course.activations[:, unit],
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
    randomized: Comparison,
    replaced: Comparison,
    figures: Mapping[str, bytes],
    key: str,
) -> None:
    """Write how much of the pictures depends on the network; all of it or nothing.

    Args:
        folder: The gallery folder.
        layer: Layer of the unit that was replaced; it has weights.
        randomized: Result of `analysis.sanity.sanity`, with the rule "deconvnet".
        replaced: Result of `analysis.sanity.controls`, with the rule "deconvnet".
        figures: PNG files of both, by the names `SANITY_FIGURES`.
        key: Digest of what all this was computed from, for `has_sanity`.
    """
    signed = randomized.similarity["deconvnet"].signed
    means = replaced.similarity["deconvnet"].signed.mean(0)
    record = {
        "format": _FORMAT,
        "key": key,
        "layer": layer,
        "images": len(signed),
        "destroyed_above": signed.mean(0)[randomized.columns.index(layer) - 1],
        "replaced": dict(zip(replaced.columns, means, strict=True)),
    }
    with _replace(folder / "sanity") as part:
        for name in SANITY_FIGURES:
            _write(part / f"{name}.png", figures[name])
        _write(part / "sanity.json", _json(record))


def counts(folder: Path, layer: str) -> dict[str, int]:
    """Number of units of a layer that was written, and of the dead among them."""
    units = _read(_layer(folder, layer) / "layer.json")["units"]
    return {"units": len(units), "dead": sum(unit["dead"] for unit in units)}


def render(
    folder: Path,
    network: Network,
    layers: Sequence[str],
    courses: Collection[str] = (),
    sanity: bool = False,
) -> Path:
    """Write the pages of layers that `write_layer` has written.

    Pages of other layers, from an earlier gallery in the folder, are removed; the
    results behind them stay for another time.

    Args:
        folder: The gallery folder.
        network: Description of the network.
        layers: Names of its layers, in forward order.
        courses: Layers whose results of `write_course` are shown.
        sanity: Show the results of `write_sanity`.

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

    records = [_read(_layer(folder, name) / "layer.json") for name in layers]
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
        neighbors = [
            records[i]["name"] if 0 <= i < len(records) else None
            for i in (number - 1, number + 1)
        ]
        text = pages.get_template("layer.html").render(
            common, neighbors=neighbors, at_once=UNITS_AT_ONCE
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
    """The record of each unit, with those of its strongest activations above 0."""
    images_of_class = np.bincount(source.labels, minlength=top.class_means.shape[1])
    class_active = top.class_counts / np.maximum(images_of_class, 1)
    # A class without images has no mean.
    class_means = np.nan_to_num(top.class_means)
    favorites, selectivities, dead = top.favorite, top.selectivity, top.dead
    records = []
    for unit, activations in enumerate(top.activations):
        positive = activations > 0
        images, selectivity = top.images[unit][positive], selectivities[unit]
        records.append(
            {
                "unit": unit,
                "dead": bool(dead[unit]),
                "active": top.active[unit],
                "mean": top.mean[unit],
                "values": activations[positive],
                "images": images,
                "labels": source.labels[images],
                "positions": top.positions[unit][positive],
                "class_means": class_means[unit],
                "class_active": class_active[unit],
                "favorite": None if favorites[unit] < 0 else favorites[unit],
                "selectivity": None if np.isnan(selectivity) else selectivity,
            }
        )
    return records


def _patches(
    source: Source,
    images: Int[np.ndarray, " n"],
    boxes: Int[np.ndarray, "n 4"],
    activations: Float[np.ndarray, " n"],
) -> tuple[UInt8[np.ndarray, "n h w 3"], Int[np.ndarray, "n 4"]]:
    """Patches of activations, gray if not positive, and how far they leave images."""
    from zfnet_jax import viz

    pictures = source.pictures(images)
    outside = viz.outside(boxes, pictures.shape[1:3])
    patches = _hatch(viz.image_patches(pictures, boxes), outside)
    patches[activations <= 0] = 128
    return patches, np.where((activations > 0)[:, None], outside, 0)


def _write_large(
    part: Path,
    some: Pictures,
    top: TopActivations,
    source: Source,
    units: list[dict[str, Any]],
) -> tuple[int, int]:
    """Save a picture of each unit: its patches, then its projections by each rule."""
    from zfnet_jax import viz

    count, k = some.boxes.shape[:2]
    images, activations = top.images[some.units], top.activations[some.units]
    patches, outside = _patches(
        source, images.ravel(), some.boxes.reshape(-1, 4), activations.ravel()
    )
    blocks, scales = [patches], {}
    for rule, pixels in some.projections.items():
        pixels = pixels.reshape(-1, *pixels.shape[2:])
        shown, used = viz.display_projections(pixels, np.arange(count * k))
        blocks.append(_hatch(_bytes(shown), outside))
        scales[rule] = used.reshape(count, k)
    across = _across(k)
    missing = across**2 - k
    cells = _reduce(np.stack(blocks), _LARGE_SIDE)
    cells = cells.reshape(len(blocks), count, k, *cells.shape[2:])
    blank = (*[(0, 0)] * 2, (0, missing), *[(0, 0)] * 3)
    cells = np.pad(cells, blank, constant_values=128)
    for index, unit in enumerate(some.units.tolist()):
        own = cells[:, index].reshape(len(blocks), across, across, *cells.shape[3:])
        _save(part / "large" / f"{unit}.webp", _tile(np.concatenate(list(own), 1)))
        positive = len(units[unit]["values"])
        units[unit]["boxes"] = some.boxes[index, :positive]
        units[unit]["scales"] = {r: x[index, :positive] for r, x in scales.items()}
    return cells.shape[3], cells.shape[4]


def _write_sources(
    folder: Path,
    some: Pictures,
    source: Source,
    units: list[dict[str, Any]],
) -> None:
    """Save the whole images, each once, named by their digest."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for unit in some.units.tolist():
        names = []
        for picture in source.pictures(units[unit]["images"]):
            name = hashlib.sha256(picture.tobytes()).hexdigest()[:16]
            names.append(name)
            path = folder / "images" / f"{name}.webp"
            if not _is_written(path):
                _save(path, picture)
        units[unit]["pictures"] = names


def _write_small(
    part: Path, units: Sequence[int], blocks: tuple[int, int], cell: tuple[int, int]
) -> tuple[int, int]:
    """Save smaller copies, if necessary, so that a layer's page stays light."""
    count, across = blocks
    side = min(max(cell), _SMALL_SIDE)
    while True:
        files = {}
        for unit in units:
            with Image.open(part / "large" / f"{unit}.webp") as image:
                large = np.asarray(image.convert("RGB"))
            cells = large.reshape(across, cell[0], count * across, cell[1], 3)
            cells = _reduce(cells.swapaxes(1, 2), side)
            files[unit] = _encode(_tile(cells), "JPEG", quality=90, subsampling=0)
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
    """Columns, and rows, of a square of k pictures."""
    return math.ceil(math.sqrt(k))


def _bytes(shown: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    return np.rint(shown * 255).astype(np.uint8)


def _hatch(
    pictures: UInt8[np.ndarray, "n h w 3"], outside: Int[np.ndarray, "n 4"]
) -> UInt8[np.ndarray, "n h w 3"]:
    """Hatch the parts of pictures outside their image."""
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


def _reduce(
    cells: UInt8[np.ndarray, "a b h w 3"], side: int
) -> UInt8[np.ndarray, "a b H W 3"]:
    """Reduce pictures until their longer side is at most `side`."""
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


def _tile(
    cells: UInt8[np.ndarray, "rows columns h w 3"],
) -> UInt8[np.ndarray, "H W 3"]:
    rows, columns, height, width, _ = cells.shape
    return cells.swapaxes(1, 2).reshape(rows * height, columns * width, 3)


def _encode(picture: UInt8[np.ndarray, "h w 3"], kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind, **options)
    return file.getvalue()


def _save(path: Path, picture: UInt8[np.ndarray, "h w 3"]) -> None:
    """Save without loss, by the fastest method: stronger ones gain only a tenth."""
    _write(path, _encode(picture, "WEBP", lossless=True, quality=0, method=0))


# Files.


def _layer(folder: Path, layer: str) -> Path:
    return folder / "layers" / layer / "found"


def _course(folder: Path, layer: str) -> Path:
    return folder / "layers" / layer / "course"


def _key(record: Path) -> str | None:
    """The key of a record; None if there is no record of this format."""
    try:
        read = _read(record)
    except (OSError, ValueError):
        return None
    if not isinstance(read, dict) or read.get("format") != _FORMAT:
        return None
    return read.get("key")


def _is_written(file: Path) -> bool:
    return file.is_file() and file.stat().st_size > 0


def _read(record: Path) -> Any:
    return json.loads(record.read_bytes())


@contextlib.contextmanager
def _replace(target: Path) -> Iterator[Path]:
    """A new folder that replaces another one as soon as it is complete."""
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
    """Write a file completely or not at all; leave it alone if it is the same."""
    with contextlib.suppress(OSError):
        if path.stat().st_size == len(data) and path.read_bytes() == data:
            return
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(data)
    part.replace(path)


def _forget(folder: Path, layers: Collection[str]) -> None:
    """Remove pages of other layers, remains of killed runs, and unused images."""
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
        raise TypeError(f"JSON cannot represent a {type(item).__name__}")

    text = json.dumps(value, default=plain, sort_keys=True, allow_nan=False)
    return text.encode()


def _number(value: float) -> str:
    return f"{value:.3g}"


def _percent(share: float) -> str:
    """A share in percent; 0% and 100% are exact."""
    if 0 < share < 0.001:
        return "< 0.1%"
    if 0.999 < share < 1:
        return "> 99.9%"
    return f"{share:.1%}" if 0 < share < 1 else f"{share:.0%}"
