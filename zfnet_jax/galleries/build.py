"""Write a gallery: search, project and save what the units of a network respond to.

    index.html              the layers, with previews
    gallery.json            what the gallery holds, and where its numbers are
    pages/units.js          all units in columns, for the search
    pages/layers/LAYER/     a page for the layer, a page and a picture for each unit,
                            and their numbers
    pages/classes/          which units speak for each class
    pages/sanity/           how much such pictures depend on the network
    pages/live/             the network itself, for one's own picture
    pages/likeness/         which units are alike, and a map of each layer
    pages/compare/          which units of another network they match

Each of these folders is made under a temporary name and then renamed. Its record.json
holds a key, the digest of all that the folder was computed from: one with the right key
is complete, and is kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from zfnet_jax.analysis.evolution import Evolution, evolution
from zfnet_jax.analysis.likeness import Likeness, import_umap, likeness
from zfnet_jax.analysis.mining import TopActivations, top_activations
from zfnet_jax.analysis.sanity import RULES
from zfnet_jax.arch import receptive_field
from zfnet_jax.files import digest, slug, to_json, write_atomically
from zfnet_jax.galleries import pages
from zfnet_jax.galleries.checks import write_sanity
from zfnet_jax.galleries.likeness import Layout, write_comparison, write_likeness
from zfnet_jax.galleries.live import SCRIPTS, describe_network, write_live
from zfnet_jax.galleries.pictures import (
    Twin,
    identify,
    project_units,
    write_course,
    write_images,
    write_pictures,
)
from zfnet_jax.galleries.relevance import search_classes, write_classes
from zfnet_jax.galleries.sources import (
    Other,
    Search,
    digest_code,
    open_other,
    open_source,
)
from zfnet_jax.networks import Network, as_network
from zfnet_jax.processes import broadcast, gather
from zfnet_jax.projections import BATCH_SIZE
from zfnet_jax.relu_rules import Rule

Report = Callable[[int, int], None]
# Another network, the key of its pages, and its search where they are to be written.
Comparison = tuple[Other, str, dict[str, TopActivations] | None]

# Units that are projected together: fewer where their projections take more bytes.
_TOGETHER, _BYTES = 16, 1 << 27
_MOST_THREADS = 8


@dataclasses.dataclass(frozen=True)
class Gallery:
    """A gallery that was written.

    Attributes:
        page: The first page, to be opened in a browser.
        units: Number of units by layer.
        dead: Number of units by layer that no image activates.
    """

    page: Path
    units: Mapping[str, int]
    dead: Mapping[str, int]


def gallery(
    net: Network | Any,
    images: Any,
    folder: str | Path,
    *,
    layers: Sequence[str] | str | None = None,
    labels: Sequence[int] | np.ndarray | Array | None = None,
    class_names: Sequence[str] | None = None,
    pictures: Any = None,
    k: int = 9,
    rules: Sequence[Rule] = RULES,
    epochs: tuple[Mapping[int, Network | Any], Any] | None = None,
    sanity_images: int = 16,
    layout: Layout = "pca",
    compare: tuple[str, Network | Any, Any] | None = None,
    title: str = "Units of a network",
    progress: Callable[[str], Report] | None = None,
) -> Gallery:
    """Write a gallery of static pages, to be explored in a browser without a server.

    It shows each unit's strongest activations, their patches and projections, which
    units speak for each class, and how much such pictures depend on the network. Layers
    that the folder already holds, computed from the same inputs, are kept; a search
    that was killed goes on.

    Under `jax.distributed` all processes call it with the same arguments. They share
    the search; process 0 projects and writes.

    Args:
        net: A `Network`, or any model that `zf.network` takes.
        images: Preprocessed images [n, h, w, c], a source of them, or a path.
        folder: The gallery folder: a new one, or that of an earlier gallery.
        layers: Names of layers; all if None.
        labels: Class of each image; by default those of the images, if they have any.
        class_names: Name of each class; by default those of the images, or of `net`.
        pictures: The images as uint8 [n, h, w, c]; by default those of the images.
            Without any, each image is stretched from its least to its greatest value.
        k: Activations per unit, each of another image.
        rules: Backward rules for ReLUs.
        epochs: Networks by epoch of training, and the images to search: the arguments
            of `zf.evolution`.
        sanity_images: Images of the sanity check; fewer than 2 leave it out.
        layout: Layout of the maps of similar units, as in `Likeness.map`.
        compare: Another network whose units are matched with these: its name, the
            network, and the same images preprocessed for it.
        title: Title of the pages.
        progress: Called with the name of each task; the result is called with the work
            done and its total.

    Returns:
        The first page, and the numbers of units.

    Raises:
        ValueError: The folder holds an `index.html` of something else, there is no such
            layer, or images, labels or pictures do not fit.

    Example:
        >>> import tempfile, numpy as np, zfnet_jax as zf
        >>> net = zf.load("zfnet32-cifar10")
        >>> images = np.random.default_rng(0).normal(size=(20, 32, 32, 3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     zf.gallery(net, images, folder, layers="logits", sanity_images=0).units
        {'logits': 10}
    """
    net, images = as_network(net, images)
    names = net.select(layers)
    source = training = open_source(net, images, labels, class_names, pictures)
    networks: dict[int, Network] = {}
    if epochs is not None:
        for epoch, model in sorted(epochs[0].items()):
            networks[epoch], images = as_network(model, epochs[1])
        training = open_source(net, images)
    k = min(k, len(source))
    search = Search(net, source, k, tuple(rules), networks, training, title)
    progress = progress or (lambda task: lambda done, total: None)
    root = Path(folder) / "pages"
    homes = {name: root / "layers" / slug(name) for name in names}
    other = None if compare is None else open_other(*compare, source)
    if layout == "umap":
        import_umap()  # what is missing is said at once
    new, key, check, has_live = {}, "", None, False
    inputs, result = "", None
    # Process 0 writes all; the others take part in its searches.
    is_first = jax.process_index() == 0
    gather(None)  # at the first exchange Gloo waits for only 30 s
    if is_first:
        _claim(root)
        inputs = _digest_inputs(search)
        new, key, check, has_live = _prepare(
            root, search, homes, inputs, sanity_images, progress
        )
    new, key = broadcast((new, key))
    if new:
        _write_layers(root, search, new, progress)
    if key:
        _write_classes(root, search, homes, key, progress)
    comparison = other and _search_other(root, search, names, other, inputs, progress)
    if is_first:
        records = {name: _read_record(homes[name]) for name in names}
        rows = list(records.values())
        _write_likeness(root, search, rows, inputs, layout, comparison, progress)
        classes = _read_record(root / "classes")["classes"]
        result = Gallery(
            pages.write_index(root, search, rows, check, has_live, classes, other),
            {name: record["units"] for name, record in records.items()},
            {name: record["dead"] for name, record in records.items()},
        )
    return broadcast(result)


def _digest_inputs(search: Search) -> str:
    """Compute the digest of what all folders depend on."""
    net, source = search.net.digest(), search.source.digest()
    return digest(digest_code(), net, source, search.rules, search.title)


def _prepare(
    root: Path,
    search: Search,
    homes: Mapping[str, Path],
    inputs: str,
    sanity_images: int,
    progress: Callable[[str], Report],
) -> tuple[dict[str, tuple[Path, str]], str, dict[str, Any] | None, bool]:
    """Write what is no layer's unless this was done, and find what is to be made.

    Returns:
        The folder and key of each such layer, the key of the classes if they are to be
        made, the record of the sanity check, and whether the network runs in a browser.
    """
    net, source, check = search.net, search.source, None
    if min(len(source), sanity_images) > 1 and len(net.layers[net.output].shape) == 1:
        home, key = root / "sanity", digest(inputs, sanity_images)
        if _read_record(home).get("key") != key:
            with _replace(root, home, key) as part:
                write_sanity(part, search, sanity_images, progress)
        check = _read_record(home)
    program, home = describe_network(net), root / "live"
    key = digest(inputs, search.k, *(pages.TEMPLATES / name for name in SCRIPTS))
    if program is not None and _read_record(home).get("key") != key:
        with _replace(root, home, key) as part:
            write_live(part, search, program)
    classes = digest(inputs, search.k, list(homes))
    is_old = _read_record(root / "classes").get("key") != classes
    weights = [network.digest() for network in search.epochs.values()]
    training = list(search.epochs), weights, search.training.digest()
    keys = {name: digest(inputs, search.k, *training, name) for name in homes}
    new = {
        name: (home, keys[name])
        for name, home in homes.items()
        if _read_record(home).get("key") != keys[name]
    }
    return new, classes if is_old else "", check, program is not None


def _write_layers(
    root: Path,
    search: Search,
    homes: Mapping[str, tuple[Path, str]],
    progress: Callable[[str], Report],
) -> None:
    """Search some layers in one pass, then write one after the other."""
    net, source, names = search.net, search.source, list(homes)
    partial = root / ".search"
    tops = top_activations(
        net,
        source.images,
        names,
        k=search.k,
        labels=source.labels,
        partial=partial,
        progress=progress("searching"),
    )
    courses = {}
    if search.epochs:
        report = progress("following")
        training = search.training.images
        courses = evolution(search.epochs, training, names, progress=report)
    if jax.process_index() != 0:
        return
    report = progress("projecting")
    done, total = 0, sum(len(top.dead) for top in tops.values())
    saved: dict[int, Path] = {}
    twins: dict[tuple[Any, ...], Twin] = {}
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_THREADS)) as pool:
        for name, following in itertools.zip_longest(names, names[1:]):
            if following:  # Its programs are compiled in the meantime.
                some = min(-(-BATCH_SIZE // search.k), len(tops[following].dead))
                pool.submit(project_units, search, tops[following], range(some))
            home, key = homes[name]
            with _replace(root, home, key) as part:
                units = pages.describe_units(search, tops[name])
                write = functools.partial(
                    _write_units, part, search, tops[name], courses.get(name), twins
                )
                for count in pool.map(write, _split(search, name, units)):
                    done += count
                    report(done, total)
                images = {x["image"] for unit in units for x in unit["tops"]}
                write_images(part, source, images, saved)
                pages.write_layer(part, search, name, units)
            saved |= {index: home / "images" / f"{index}.webp" for index in images}
            for unit in (unit for unit in units if unit["tops"]):
                file = home / f"{unit['unit']}.webp"
                twins[identify(search, tops[name], unit["unit"])] = file, unit["tops"]
    shutil.rmtree(partial, ignore_errors=True)


def _search_other(
    root: Path,
    search: Search,
    names: Sequence[str],
    other: Other,
    inputs: str,
    progress: Callable[[str], Report],
) -> Comparison:
    """Search the images with another network, unless this was done."""
    is_new, key = None, ""
    if jax.process_index() == 0:
        key = digest(inputs, search.k, names, other.name, other.net.digest())
        key = digest(key, other.source.digest())
        is_new = _read_record(root / "compare").get("key") != key
    tops = None
    if broadcast(is_new):
        report, images = progress(f"searching {other.name}"), other.source.images
        tops = top_activations(other.net, images, k=search.k, progress=report)
    return other, key, tops


def _write_likeness(
    root: Path,
    search: Search,
    layers: Sequence[dict[str, Any]],
    inputs: str,
    layout: Layout,
    comparison: Comparison | None,
    progress: Callable[[str], Report],
) -> None:
    """Write which units are alike and which match, unless this was done."""
    names = [layer["name"] for layer in layers]

    @functools.cache
    def compare_own() -> Likeness:
        images = search.source.images
        return likeness(search.net, images, names, progress=progress("comparing"))

    home, key = root / "likeness", digest(inputs, search.k, names, layout)
    if _read_record(home).get("key") != key:
        with _replace(root, home, key) as part:
            write_likeness(part, search, compare_own(), layers, layout)
    other, key, tops = comparison or (None, "", None)
    if other and tops:
        with _replace(root, root / "compare", key) as part:
            report = progress(f"comparing {other.name}")
            theirs = likeness(other.net, other.source.images, progress=report)
            write_comparison(part, search, other, compare_own(), theirs, tops, layers)


def _write_classes(
    root: Path,
    search: Search,
    homes: Mapping[str, Path],
    key: str,
    progress: Callable[[str], Report],
) -> None:
    """Search what units speak for, and write the pages of classes."""
    tops = search_classes(search, list(homes), progress("attributing"))
    if jax.process_index() == 0:
        records = [_read_record(home) for home in homes.values()]
        with _replace(root, root / "classes", key) as part:
            write_classes(part, search, records, tops, progress("explaining"))


def _split(
    search: Search, name: str, units: list[dict[str, Any]]
) -> list[list[dict[str, Any]]]:
    """Split units into parts of nearly one size, whose projections fit in memory."""
    field = receptive_field(search.net, name)
    pixels = math.prod(field.size) * search.net.image_shape[2]
    together = _BYTES // (4 * pixels * search.k * len(search.rules))
    parts = -(-len(units) // max(1, min(_TOGETHER, together)))
    size = -(-len(units) // parts)
    return [units[start : start + size] for start in range(0, len(units), size)]


def _write_units(
    part: Path,
    search: Search,
    top: TopActivations,
    course: Evolution | None,
    twins: Mapping[tuple[Any, ...], Twin],
    units: list[dict[str, Any]],
) -> int:
    """Write the pictures of some units of a layer, and count the units."""
    write_pictures(part, search, top, units, twins)
    if course is not None:
        write_course(part, search, course, units)
    return len(units)


def _claim(root: Path) -> None:
    """Make the folder of the pages; refuse to replace a page of something else."""
    page = root.parent / "index.html"
    if page.exists() and pages.MARK not in page.read_text(errors="replace"):
        raise ValueError(f"{page} is not a gallery's: choose another folder")
    root.mkdir(parents=True, exist_ok=True)


def _read_record(home: Path) -> dict[str, Any]:
    file = home / "record.json"
    return json.loads(file.read_bytes()) if file.exists() else {}


@contextlib.contextmanager
def _replace(root: Path, home: Path, key: str) -> Iterator[Path]:
    """Make a folder under another name, and rename it once it is complete."""
    part, old = root / ".part", root / ".old"
    for folder in (part, old):
        shutil.rmtree(folder, ignore_errors=True)
    part.mkdir()
    try:
        yield part
        record = json.loads((part / "record.json").read_bytes())
        write_atomically(part / "record.json", to_json(record | {"key": key}))
        home.parent.mkdir(exist_ok=True)
        if home.exists():
            home.rename(old)
        part.rename(home)
    finally:
        for folder in (part, old):
            shutil.rmtree(folder, ignore_errors=True)
