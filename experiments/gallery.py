"""A gallery of every unit of a network, to be explored in a browser.

    python -m experiments.gallery --data-dir FOLDER
    python -m experiments.gallery --run results/train_cifar10

Searches a dataset for the strongest activations of every unit of every layer (Fig. 2 of
the paper), projects them to pixels by three backward rules, and writes static pages:
open index.html. One page measures on a few images how much such pictures depend on the
network, as `experiments.sanity` does on many. With --run, the network is that of a
training run; if the run kept the weights of several epochs, each unit's page shows how
the unit developed (Fig. 4). Expected with the shipped weights over the 10,000 test
images of CIFAR-10: two to three minutes on two CPU cores. A second run into the same
folder computes only what has changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from experiments import sanity
from experiments.common import (
    Progress,
    Results,
    UsageError,
    at_least,
    chosen_layers,
    code_digest,
    counted,
    load_dataset,
    load_network,
    main,
    trained_on,
    weights_digest,
)
from experiments.evolution import list_epochs
from experiments.project import RULES
from zfnet_jax import gallery
from zfnet_jax.analysis.evolution import evolution
from zfnet_jax.analysis.mining import TopActivations, top_activations
from zfnet_jax.arch import (
    Architecture,
    ContrastNorm,
    Conv,
    Dense,
    MaxPool,
    receptive_field,
)
from zfnet_jax.data import Dataset, Preprocessed
from zfnet_jax.files import DataNotFoundError
from zfnet_jax.weights import Pretrained

# Units that are projected together.
_UNITS = 16
# Images of the sanity check, and how many of them are drawn.
_SANITY_IMAGES, _SANITY_SHOWN = 16, 3


@dataclasses.dataclass(frozen=True)
class Options:
    """Write pages on which every unit of a network can be explored."""

    layers: str | None = None
    """Layers, as in conv1,conv3; by default all."""
    top: int = 9
    """Activations per unit, each of another image."""
    weights: str | None = None
    """A shipped name (by default zfnet32-cifar10), or the weights.safetensors of a
    training run."""
    run: Path | None = None
    """Folder of a training run, instead of --weights; one with --keep-epochs also shows
    how its units developed."""
    dataset: Literal["cifar10", "shapes"] | None = None
    """Source of the images; by default what the network was trained on."""
    split: Literal["train", "test"] = "test"
    """Split of the dataset to search."""
    data_dir: Path | None = None
    """Folder of prepared tensorflow-datasets; else $TFDS_DATA_DIR or its default."""
    limit: int | None = None
    """Search only the first N images."""
    evolution_limit: int = 10_000
    """Search only the first N training images at each kept epoch."""
    out: Path = Path("results/gallery")
    """Folder for the gallery, new or that of an earlier one, of which unchanged parts
    are kept."""


def run(options: Options) -> None:
    """Search, project and write the pages."""
    at_least(1, options, "top", "limit", "evolution_limit")
    weights = options.weights or "zfnet32-cifar10"
    if options.run is not None:
        if options.weights is not None:
            raise UsageError("--run has its own weights: omit --weights")
        weights = str(options.run / "weights.safetensors")
    results = Results(options.out)
    gallery.claim(results.path)
    net = load_network(weights)
    arch = net.model.arch
    layers = chosen_layers(arch, options.layers, object)
    files = {} if options.run is None else _list_epochs(options.run)
    networks = {epoch: load_network(str(file)) for epoch, file in files.items()}
    if any(network.model.arch != arch for network in networks.values()):
        raise UsageError(
            f"--run {options.run}: its epochs have another architecture than its "
            f"weights, {arch.name}"
        )
    name = options.dataset or trained_on(net)
    dataset = load_dataset(name, options.split, options.data_dir, options.limit)
    digests = {
        "data": dataset.digest(),
        "weights": weights_digest(weights),
    }
    units = explore(results.path, net, dataset, layers, options.top, digests)
    examined = examine(results.path, net, dataset, digests)
    courses = []
    if networks:
        train = load_dataset(name, "train", options.data_dir, options.evolution_limit)
        keys = {str(epoch): _digest(file) for epoch, file in files.items()}
        courses = follow(results.path, networks, train, layers, keys)
    page = publish(results.path, net, dataset, layers, courses, examined)
    results.metrics(
        {
            "architecture": arch.name,
            "data": dataset.source,
            "images": len(dataset),
            "layers": units,
        }
    )
    results.config(options)
    results.manifest(seed=0, digests=digests)  # nothing is random
    total = sum(layer["units"] for layer in units.values())
    print(f"{counted(len(layers), 'layer')}, {total:,} units; open {page}")


def _list_epochs(folder: Path) -> dict[int, Path]:
    """Weight files of single epochs of a run; none if too few to compare."""
    try:
        return list_epochs(folder)
    except DataNotFoundError as error:
        print(f"without evolution: {error}", flush=True)
        return {}


def explore(
    folder: Path,
    net: Pretrained,
    dataset: Dataset,
    layers: Sequence[str],
    top: int,
    digests: Mapping[str, str],
) -> dict[str, dict[str, int]]:
    """Search and project the layers that the folder does not contain already.

    Returns:
        For each layer the number of units, and of the dead among them.
    """
    source = _source(net, dataset)
    keys = {layer: _key(digests, layer=layer, top=top) for layer in layers}
    new = [x for x in layers if not gallery.has_layer(folder, x, keys[x])]
    if len(new) < len(layers):
        all_layers = counted(len(layers), "layer")
        print(f"unchanged: {len(layers) - len(new)} of {all_layers}", flush=True)
    tops = {}
    if new:
        step = len(dataset) // 10
        with Progress("searching", len(dataset), unit="images", every=step) as progress:
            tops = top_activations(
                net,
                Preprocessed(dataset.images, net.preprocess),
                new,
                k=top,
                labels=dataset.labels,
                progress=progress.update,
            )
    total = sum(int((~x.dead).sum()) for x in tops.values())
    with Progress("projecting", total, unit="units", every=total // 20) as progress:
        done = 0
        for layer, strongest in tops.items():
            gallery.write_layer(
                folder,
                describe(net.model.arch, layer),
                strongest,
                source,
                RULES,
                _project(
                    net,
                    dataset,
                    strongest,
                    lambda count, done=done, layer=layer: progress.update(
                        done + count, layer=layer
                    ),
                ),
                keys[layer],
            )
            done += int((~strongest.dead).sum())
    return {layer: gallery.counts(folder, layer) for layer in layers}


def _project(
    net: Pretrained,
    dataset: Dataset,
    top: TopActivations,
    progress: Callable[[int], None],
) -> Iterator[gallery.Pictures]:
    """Projections of the live units of a layer, some units at a time."""
    images = Preprocessed(dataset.images, net.preprocess)
    live = np.flatnonzero(~top.dead)
    for start in range(0, len(live), _UNITS):
        units = live[start : start + _UNITS]
        by_rule = {rule: top.project(net, images, units, rule=rule) for rule in RULES}
        shape = len(units), top.activations.shape[1]
        yield gallery.Pictures(
            units,
            by_rule[RULES[0]].boxes.reshape(*shape, 4),
            {
                rule: x.pixels.reshape(*shape, *x.pixels.shape[1:])
                for rule, x in by_rule.items()
            },
        )
        progress(start + len(units))


def examine(
    folder: Path, net: Pretrained, dataset: Dataset, digests: Mapping[str, str]
) -> bool:
    """Write the sanity check, if the folder does not contain it already.

    Returns:
        Whether it is possible: with at least two images of the network's classes.
    """
    from zfnet_jax import viz

    sample = dataset.take(np.arange(min(_SANITY_IMAGES, len(dataset))))
    if len(sample) < 2 or sample.class_names != net.class_names:
        print("the sanity check needs two images of the network's own classes")
        return False
    key = _key(digests, part="sanity")
    if not gallery.has_sanity(folder, key):
        layer = sanity.last_convolution(net.model.arch)
        total = 2 * len(sample)
        with Progress("examining", total, unit="pictures", every=total) as progress:
            comparisons = sanity.compare(
                net, sample, layer, 0, _SANITY_SHOWN, progress.update
            )
        figures = sanity.draw(net, sample, layer, *comparisons)
        files = {name: viz.figure_bytes(x, "png") for name, x in figures.items()}
        gallery.write_sanity(folder, layer, *comparisons, files, key)
    return True


def follow(
    folder: Path,
    networks: Mapping[int, Pretrained],
    dataset: Dataset,
    layers: Sequence[str],
    digests: Mapping[str, str],
) -> list[str]:
    """Write the evolution of the units that the folder does not contain already.

    Returns:
        The layers that have one.
    """
    net = networks[min(networks)]
    images = Preprocessed(dataset.images, net.preprocess)
    digests = {"data": dataset.digest(), **digests}
    keys = {layer: _key(digests, layer=layer) for layer in layers}
    new = [x for x in layers if not gallery.has_course(folder, x, keys[x])]
    if new:
        with Progress("following", len(networks), unit="checkpoint") as progress:
            courses = evolution(networks, images, new, progress=progress.update)
        with Progress("projecting", len(new), unit="layer") as progress:
            for done, (layer, course) in enumerate(courses.items(), 1):
                gallery.write_course(
                    folder,
                    course,
                    course.project(networks, images),
                    np.arange(course.activations.shape[1]),
                    _source(net, dataset),
                    keys[layer],
                )
                progress.update(done)
    return list(layers)


def publish(
    folder: Path,
    net: Pretrained,
    dataset: Dataset,
    layers: Sequence[str],
    courses: Sequence[str],
    examined: bool,
) -> Path:
    """Write the pages and return the first one."""
    facts = {
        "network": f"{net.model.arch.name}, classes {', '.join(net.class_names)}",
        "searched": _searched(dataset),
    }
    accuracy = net.metadata.get("test_accuracy")
    if accuracy is not None:
        facts["test accuracy"] = f"{float(accuracy):.2%}"
    if command := net.metadata.get("command"):
        facts["trained by"] = str(command)
    title = f"What {net.model.arch.name} has learned"
    network = gallery.Network(title, facts)
    return gallery.render(folder, network, layers, courses, examined)


def describe(arch: Architecture, layer: str) -> gallery.Layer:
    """Description of a layer for its page."""
    match arch.layer(layer):
        case Conv(kernel=(rows, columns), stride=(stride, _)):
            kind = f"{rows} × {columns} convolution, stride {stride}, rectified"
        case MaxPool(kernel=(rows, columns), stride=(stride, _)):
            kind = f"maximum over {rows} × {columns}, stride {stride}"
        case ContrastNorm():
            kind = "contrast normalization across maps"
        case Dense(relu=relu):
            kind = "dense layer, rectified" if relu else "dense layer"
    field = receptive_field(arch, layer).size
    return gallery.Layer(layer, kind, arch.shapes()[layer], field)


def _source(net: Pretrained, dataset: Dataset) -> gallery.Source:
    return gallery.Source(
        lambda indices: net.preprocess.pictures(dataset.images[indices]),
        dataset.labels,
        dataset.class_names,
        _searched(dataset),
    )


def _searched(dataset: Dataset) -> str:
    return f"{len(dataset):,} images of {dataset.source or dataset.name}"


def _key(digests: Mapping[str, str], **part: str | int) -> str:
    """Digest of what a part of the gallery is computed from, this code included."""
    code = code_digest(__file__, sanity.__file__)
    parts = {**digests, **part, "code": code}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main(run, Options))
