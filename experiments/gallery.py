"""A gallery of every unit of a network, to be explored in a browser.

    python -m experiments.gallery --data-dir FOLDER
    python -m experiments.gallery --run results/train_cifar10

Searches a dataset for the strongest activations of every unit of every layer (Fig. 2 of
the paper), projects them to pixels by three backward rules, and writes static pages:
open index.html. It says what such pictures tell and what not, measured on a few images
as `experiments.sanity` does on many. With --run, the network is that of a training run,
and if it kept the weights of epochs, each unit's page shows how it came about (Fig. 4).
Expected with the shipped weights over the 10,000 test images of CIFAR-10: two to three
minutes on two CPU cores; a second run into the same folder computes only what has
changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
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
from experiments.evolution import kept
from experiments.project import RULES
from zfnet_jax import gallery
from zfnet_jax.analysis import (
    TopActivations,
    evolution,
    project_course,
    project_top,
    top_activations,
)
from zfnet_jax.arch import (
    Architecture,
    ContrastNorm,
    Conv,
    Dense,
    MaxPool,
    receptive_field,
)
from zfnet_jax.data import DataNotFoundError, Dataset
from zfnet_jax.weights import Pretrained

# So many units are projected at a time.
_TOGETHER = 16
# What pictures tell is measured on so many images, and shown of so many.
_EXAMINED, _SHOWN = 16, 3


@dataclasses.dataclass(frozen=True)
class Options:
    """Write pages on which every unit of a network can be explored."""

    layers: str | None = None
    """Layers, as in conv1,conv3; if not given, all."""
    top: int = 9
    """How many activations of each unit, each of another image."""
    weights: str | None = None
    """A shipped name (zfnet32-cifar10 if not given), or the weights.safetensors of a
    training run."""
    run: Path | None = None
    """Folder of a training run, instead of --weights: its network, and how its units
    came about if it was trained with --keep-epochs."""
    dataset: Literal["cifar10", "shapes"] | None = None
    """Where images come from; if not given, what the network was trained on."""
    split: Literal["train", "test"] = "test"
    """Which half of the dataset to search."""
    data_dir: Path | None = None
    """Folder of prepared tensorflow-datasets; else $TFDS_DATA_DIR or its default."""
    limit: int | None = None
    """Search the first N images at most."""
    evolution_limit: int = 10_000
    """Search the first N training images at most at each kept epoch."""
    out: Path = Path("results/gallery")
    """Folder for the gallery, new or of an earlier one; what has not changed is not
    computed again."""


def run(options: Options) -> None:
    """Search, project, write the pages and say which to open."""
    at_least(1, options, "top", "limit", "evolution_limit")
    weights = options.weights or "zfnet32-cifar10"
    if options.run is not None:
        if options.weights is not None:
            raise UsageError("--run brings its own weights: leave --weights out")
        weights = str(options.run / "weights.safetensors")
    results = Results(options.out)
    gallery.claim(results.path)
    net = load_network(weights)
    arch = net.model.arch
    layers = chosen_layers(arch, options.layers, object)
    files = {} if options.run is None else _kept(options.run)
    networks = {epoch: load_network(str(file)) for epoch, file in files.items()}
    if any(network.model.arch != arch for network in networks.values()):
        raise UsageError(
            f"--run {options.run}: the weights of its epochs are of another "
            f"architecture than its own, {arch.name}"
        )
    name = options.dataset or trained_on(net)
    dataset = load_dataset(name, options.split, options.data_dir, options.limit)
    digests = {
        "data": dataset.digest(),
        "weights": weights_digest(weights),
    }
    found = explore(results.path, net, dataset, layers, options.top, digests)
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
            "layers": found,
        }
    )
    results.config(options)
    results.manifest(seed=0, digests=digests)  # nothing here is random
    units = sum(layer["units"] for layer in found.values())
    print(f"{counted(len(layers), 'layer')}, {units:,} units; open {page}")


def _kept(folder: Path) -> dict[int, Path]:
    """The files of single epochs of a run, none if these are too few to compare."""
    try:
        return kept(folder)
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
    """Search and project what the folder does not hold already.

    Returns:
        Of each layer the number of units and of dead ones.
    """
    source = _source(net, dataset)
    keys = {layer: _named(digests, layer=layer, top=top) for layer in layers}
    new = [x for x in layers if not gallery.has_layer(folder, x, keys[x])]
    if len(new) < len(layers):
        kept_layers = counted(len(layers), "layer")
        print(f"unchanged: {len(layers) - len(new)} of {kept_layers}", flush=True)
    found = {}
    if new:
        step = len(dataset) // 10
        with Progress("searching", len(dataset), unit="images", every=step) as progress:
            found = top_activations(
                net.model,
                dataset,
                new,
                top,
                preprocess=net.preprocess,
                progress=progress.update,
            )
    total = sum(int((~x.dead).sum()) for x in found.values())
    with Progress("projecting", total, unit="units", every=total // 20) as progress:
        done = 0
        for layer, strongest in found.items():
            gallery.write_layer(
                folder,
                described(net.model.arch, layer),
                strongest,
                source,
                RULES,
                _projected(net, dataset, layer, strongest, progress, done),
                keys[layer],
            )
            done += int((~strongest.dead).sum())
    return {layer: gallery.counts(folder, layer) for layer in layers}


def _projected(
    net: Pretrained,
    dataset: Dataset,
    layer: str,
    top: TopActivations,
    progress: Progress,
    done: int,
) -> Iterator[gallery.Pictures]:
    """Projections of the units that fire, a few units at a time."""
    live = np.flatnonzero(~top.dead)
    for start in range(0, len(live), _TOGETHER):
        units = live[start : start + _TOGETHER]
        by_rule = {
            rule: project_top(
                net.model,
                dataset,
                layer,
                top,
                units,
                rule=rule,
                preprocess=net.preprocess,
            )
            for rule in RULES
        }
        shape = len(units), top.values.shape[1]
        yield gallery.Pictures(
            units,
            by_rule[RULES[0]].boxes.reshape(*shape, 4),
            {
                rule: found.pixels.reshape(*shape, *found.pixels.shape[1:])
                for rule, found in by_rule.items()
            },
        )
        progress.update(done + start + len(units), layer=layer)


def examine(
    folder: Path, net: Pretrained, dataset: Dataset, digests: Mapping[str, str]
) -> bool:
    """Write what the pictures tell, if the folder does not hold it already.

    Returns:
        Whether it can be measured: on two images at least, of the network's classes.
    """
    few = dataset.take(np.arange(min(_EXAMINED, len(dataset))))
    if len(few) < 2 or few.class_names != net.class_names:
        print("what the pictures tell needs two images of the network's own classes")
        return False
    key = _named(digests, part="sanity")
    if not gallery.has_sanity(folder, key):
        layer = sanity.last_convolution(net.model.arch)
        total = 2 * len(few)
        with Progress("examining", total, unit="pictures", every=total) as progress:
            found = sanity.examine(net, few, layer, 0, _SHOWN, progress.update)
        figures = sanity.figures(net, few, layer, *found)
        gallery.write_sanity(folder, layer, *found, figures, key)
    return True


def follow(
    folder: Path,
    networks: Mapping[int, Pretrained],
    dataset: Dataset,
    layers: Sequence[str],
    digests: Mapping[str, str],
) -> list[str]:
    """Write the evolution of every unit that the folder does not hold already.

    Returns:
        The layers that have one.
    """
    net = networks[min(networks)]
    models = {epoch: network.model for epoch, network in networks.items()}
    digests = {"data": dataset.digest(), **digests}
    keys = {layer: _named(digests, layer=layer) for layer in layers}
    new = [x for x in layers if not gallery.has_course(folder, x, keys[x])]
    if new:
        with Progress("following", len(models), unit="checkpoint") as progress:
            found = evolution(
                models,
                dataset,
                new,
                preprocess=net.preprocess,
                progress=progress.update,
            )
        with Progress("projecting", len(new), unit="layer") as progress:
            for done, (layer, course) in enumerate(found.items(), 1):
                units = np.arange(course.values.shape[1])
                projections = project_course(
                    models, dataset, layer, course, units, preprocess=net.preprocess
                )
                gallery.write_course(
                    folder,
                    layer,
                    course,
                    projections,
                    units,
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
    """Write the pages; returns the one to open."""
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


def described(arch: Architecture, layer: str) -> gallery.Layer:
    """A layer in words and numbers."""
    match arch.layer(layer):
        case Conv(kernel=(rows, columns), stride=(stride, _)):
            kind = f"{rows} × {columns} convolution, stride {stride}, rectified"
        case MaxPool(kernel=(rows, columns), stride=(stride, _)):
            kind = f"maximum over {rows} × {columns}, stride {stride}"
        case ContrastNorm():
            kind = "contrast normalisation across maps"
        case Dense(relu=relu):
            kind = "dense layer, rectified" if relu else "dense layer"
    field = receptive_field(arch, layer).size
    return gallery.Layer(layer, kind, arch.shapes()[layer], field)


def _source(net: Pretrained, dataset: Dataset) -> gallery.Source:
    return gallery.Source(
        lambda which: net.preprocess.pictures(dataset.images[which]),
        dataset.labels,
        dataset.class_names,
        _searched(dataset),
    )


def _searched(dataset: Dataset) -> str:
    return f"{len(dataset):,} images of {dataset.source or dataset.name}"


def _named(digests: Mapping[str, str], **what: str | int) -> str:
    """Names what a part of the gallery is computed from, this code included."""
    code = code_digest(__file__, sanity.__file__)
    parts = {**digests, **what, "code": code}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main(run, Options))
