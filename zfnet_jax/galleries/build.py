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

Each of these folders is kept while all that it was computed from is the same.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
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
from zfnet_jax.files import digest, slug
from zfnet_jax.galleries import pages
from zfnet_jax.galleries.checks import write_sanity
from zfnet_jax.galleries.folders import Folders
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
    other = None if compare is None else open_other(*compare, source)
    if layout == "umap":
        import_umap()  # what is missing is said at once
    root, inputs = Path(folder) / "pages", None
    gather(None)  # at the first exchange Gloo waits for only 30 s
    if jax.process_index() == 0:
        _claim(root)
        inputs = _digest_inputs(search)
    build = _Build(search, Folders(root, broadcast(inputs)), names, progress)
    build.write_sanity(sanity_images)
    build.write_live()
    build.write_layers()
    build.write_classes()
    build.write_likeness(layout)
    build.write_comparison(other)
    return build.finish(other)


def _claim(root: Path) -> None:
    """Make the folder of the pages; refuse to replace a page of something else."""
    page = root.parent / "index.html"
    if page.exists() and pages.MARK not in page.read_text(errors="replace"):
        raise ValueError(f"{page} is not a gallery's: choose another folder")
    root.mkdir(parents=True, exist_ok=True)


def _digest_inputs(search: Search) -> str:
    """Compute the digest of what all folders depend on."""
    net, source = search.net.digest(), search.source.digest()
    return digest(digest_code(), net, source, search.rules, search.title)


@dataclasses.dataclass(frozen=True)
class _Build:
    """The parts of a gallery, each written unless it is there.

    All processes call each method: they share the searches, and process 0 writes.
    """

    search: Search
    folders: Folders
    names: Sequence[str]
    progress: Callable[[str], Report]

    @property
    def is_first(self) -> bool:
        return jax.process_index() == 0

    @property
    def partial(self) -> Path:
        """Folder that keeps a search while it runs."""
        return self.folders.root / ".search"

    def write_sanity(self, count: int) -> None:
        net, source = self.search.net, self.search.source
        if min(len(source), count) < 2 or len(net.layers[net.output].shape) != 1:
            self.folders.remove("sanity")
        elif self.folders.is_new("sanity", count) and self.is_first:
            with self.folders.replace("sanity", count) as part:
                write_sanity(part, self.search, count, self.progress)

    def write_live(self) -> None:
        network = self.live_network
        inputs = self.search.k, *(pages.TEMPLATES / name for name in SCRIPTS)
        if network is None:
            self.folders.remove("live")
        elif self.folders.is_new("live", *inputs) and self.is_first:
            with self.folders.replace("live", *inputs) as part:
                write_live(part, self.search, network)

    def write_layers(self) -> None:
        """Search some layers in one pass, then write one after the other."""
        search = self.search
        weights = [network.digest() for network in search.epochs.values()]
        training = list(search.epochs), weights, search.training.digest()
        inputs = search.k, *training
        new = [
            name
            for name in self.names
            if self.folders.is_new(_home(name), *inputs, name)
        ]
        if not new:
            return
        images, labels = search.source.images, search.source.labels
        report = self.progress("searching")
        tops = top_activations(
            search.net,
            images,
            new,
            k=search.k,
            labels=labels,
            partial=self.partial,
            progress=report,
        )
        courses = {}
        if search.epochs:
            report, training = self.progress("following"), search.training.images
            courses = evolution(search.epochs, training, new, progress=report)
        if self.is_first:
            self._write_found(tops, courses, inputs)
            shutil.rmtree(self.partial, ignore_errors=True)

    def _write_found(
        self,
        tops: Mapping[str, TopActivations],
        courses: Mapping[str, Evolution],
        inputs: Sequence[Any],
    ) -> None:
        search, names, report = self.search, list(tops), self.progress("projecting")
        done, total = 0, sum(len(top.dead) for top in tops.values())
        saved: dict[int, Path] = {}
        twins: dict[tuple[Any, ...], Twin] = {}
        with ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_THREADS)) as pool:
            for name, following in itertools.zip_longest(names, names[1:]):
                if following:  # Its programs are compiled in the meantime.
                    some = min(-(-BATCH_SIZE // search.k), len(tops[following].dead))
                    pool.submit(project_units, search, tops[following], range(some))
                top, home = tops[name], self.folders.root / _home(name)
                with self.folders.replace(_home(name), *inputs, name) as part:
                    units = pages.describe_units(search, top)
                    write = functools.partial(
                        _write_units, part, search, top, courses.get(name), twins
                    )
                    for count in pool.map(write, _split(search, name, units)):
                        done += count
                        report(done, total)
                    images = {x["image"] for unit in units for x in unit["tops"]}
                    write_images(part, search.source, images, saved)
                    has_live = self.live_network is not None
                    pages.write_layer(part, search, name, units, has_live)
                saved |= {index: home / "images" / f"{index}.webp" for index in images}
                for unit in (unit for unit in units if unit["tops"]):
                    file = home / f"{unit['unit']}.webp"
                    twins[identify(search, top, unit["unit"])] = file, unit["tops"]

    def write_classes(self) -> None:
        inputs = self.search.k, self.names
        if not self.folders.is_new("classes", *inputs):
            return
        report = self.progress("attributing")
        tops = search_classes(self.search, self.names, self.partial, report)
        if self.is_first:
            report = self.progress("explaining")
            with self.folders.replace("classes", *inputs) as part:
                write_classes(part, self.search, self.read_layers(), tops, report)
            shutil.rmtree(self.partial, ignore_errors=True)

    def write_likeness(self, layout: Layout) -> None:
        inputs = self.search.k, self.names, layout
        if self.folders.is_new("likeness", *inputs) and self.is_first:
            with self.folders.replace("likeness", *inputs) as part:
                own, records = self.own_likeness, self.read_layers()
                write_likeness(part, self.search, own, records, layout)

    def write_comparison(self, other: Other | None) -> None:
        """Search the images with another network, and match the units of both."""
        if other is None:
            self.folders.remove("compare")
            return
        compared = other.name, other.net.digest(), other.source.digest()
        inputs = self.search.k, self.names, *compared
        if not self.folders.is_new("compare", *inputs):
            return
        net, images = other.net, other.source.images
        report = self.progress(f"searching {other.name}")
        tops = top_activations(net, images, k=self.search.k, progress=report)
        if self.is_first:
            report = self.progress(f"comparing {other.name}")
            theirs = likeness(net, images, progress=report)
            with self.folders.replace("compare", *inputs) as part:
                both, records = (self.own_likeness, theirs), self.read_layers()
                write_comparison(part, self.search, other, *both, tops, records)

    def finish(self, other: Other | None) -> Gallery:
        """Write the first page, and tell all processes what there is."""
        result = None
        if self.is_first:
            records = self.read_layers()
            parts = {
                "sanity": self.folders.read("sanity"),
                "live": self.folders.read("live"),
                "class_pages": self.folders.read("classes")["classes"],
                "compare": self.folders.read("compare"),
            }
            root = self.folders.root
            result = Gallery(
                pages.write_index(root, self.search, records, parts, other),
                {record["name"]: record["units"] for record in records},
                {record["name"]: record["dead"] for record in records},
            )
        return broadcast(result)

    @functools.cached_property
    def live_network(self) -> dict[str, Any] | None:
        return describe_network(self.search.net)

    @functools.cached_property
    def own_likeness(self) -> Likeness:
        report = self.progress("comparing")
        images = self.search.source.images
        return likeness(self.search.net, images, self.names, progress=report)

    def read_layers(self) -> list[dict[str, Any]]:
        return [self.folders.read(_home(name)) for name in self.names]


def _home(layer: str) -> str:
    return f"layers/{slug(layer)}"


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
