"""Features over training: Fig. 4 of the paper.

    python -m experiments.train_cifar10 --keep-epochs 1,2,5,10 --out results/run
    python -m experiments.evolution --run results/run

For units of each layer the strongest activation across the training images at each kept
epoch, projected; where its source is another image than before, the picture jumps, and
that is marked. motion.png shows how far each layer's features still move from one
checkpoint to the next: the paper finds that lower layers converge first. Expected over
50,000 images of CIFAR-10 and six checkpoints: ten minutes; `--limit` makes it quick.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import sys
from pathlib import Path
from typing import Literal

import numpy as np

from experiments.common import (
    Progress,
    Results,
    UsageError,
    at_least,
    chosen_layers,
    counted,
    load_dataset,
    load_network,
    main,
    named_units,
    trained_on,
)
from experiments.train_cifar10 import EPOCHS
from zfnet_jax import viz
from zfnet_jax.analysis import Evolution, evolution, motion, project_course
from zfnet_jax.data import DataNotFoundError, Dataset
from zfnet_jax.weights import Pretrained


@dataclasses.dataclass(frozen=True)
class Options:
    """Draw how features come about in training."""

    run: Path = Path("results/train_cifar10")
    """Folder of a training run with --keep-epochs."""
    layers: str | None = None
    """Layers, as in conv1,conv3; if not given, every convolution."""
    units: str | None = None
    """Units of a single layer, as in 3,17; if not given, --count random live ones."""
    count: int = 6
    """How many random units of each layer to draw."""
    rule: Literal["deconvnet", "guided", "gradient"] = "deconvnet"
    """What ReLUs do on the way down."""
    dataset: Literal["cifar10", "shapes"] | None = None
    """Where images come from; if not given, what the network was trained on."""
    split: Literal["train", "test"] = "train"
    """Which half of the dataset to search; the paper searches the training images."""
    data_dir: Path | None = None
    """Folder of prepared tensorflow-datasets; else $TFDS_DATA_DIR or its default."""
    limit: int | None = None
    """Search the first N images at most."""
    sample: int = 500
    """Of how many images to compare features from checkpoint to checkpoint."""
    seed: int = 0
    """Determines which units are drawn."""
    out: Path = Path("results/evolution")
    """Folder for results; files of the same names are replaced."""


def run(options: Options) -> None:
    """Search at each checkpoint, project, draw and write everything down."""
    at_least(1, options, "count", "limit", "sample")
    at_least(0, options, "seed")
    results = Results(options.out)
    files = kept(options.run)
    networks = {epoch: load_network(str(file)) for epoch, file in files.items()}
    epochs = list(networks)
    net = networks[epochs[0]]
    arch = net.model.arch
    layers = chosen_layers(arch, options.layers)
    named = named_units(arch, layers, options.units)
    name = options.dataset or trained_on(net)
    dataset = load_dataset(name, options.split, options.data_dir, options.limit)
    models = {epoch: network.model for epoch, network in networks.items()}
    with Progress("searching", len(epochs), unit="checkpoint") as progress:
        found = evolution(
            models,
            dataset,
            layers,
            preprocess=net.preprocess,
            progress=progress.update,
        )
    sample = np.asarray(net.preprocess(dataset.images[: options.sample]))
    moved = {
        layer: np.nanmean(np.where(np.isnan(x).all(1, keepdims=True), 1, x), 1)
        for layer, x in motion(models, sample, layers).items()
    }
    rng = np.random.default_rng(options.seed)
    metrics = {}
    for layer, course in found.items():
        live = np.flatnonzero(~course.dead.any(0))
        if not len(named or live):
            raise UsageError(f"no unit of {layer} is alive at every checkpoint")
        picked = rng.permutation(live)[: options.count]
        units = np.array(named) if named else np.sort(picked)
        results.figure(
            f"evolution_{layer}",
            drawn(options, networks, dataset, layer, course, units),
        )
        metrics[layer] = {
            "motion": moved[layer],
            "jumps": course.jumps[1:].mean(1),
            "drawn": [
                {
                    "unit": unit,
                    "values": course.values[:, unit],
                    "images": course.images[:, unit],
                    "positions": course.positions[:, unit],
                }
                for unit in units
            ],
        }
    results.figure("motion", viz.motion_chart(epochs, moved)[0])
    results.metrics(
        {
            "architecture": arch.name,
            "data": dataset.source,
            "images": len(dataset),
            "epochs": epochs,
            "rule": options.rule,
            "layers": metrics,
        }
    )
    results.config(options)
    results.manifest(
        seed=options.seed,
        digests={
            "data": dataset.digest(),
            **{
                f"epoch {epoch}": hashlib.sha256(file.read_bytes()).hexdigest()
                for epoch, file in files.items()
            },
        },
    )
    print(
        f"{len(epochs)} checkpoints, {counted(len(layers), 'layer')}; "
        f"figures in {results.path}"
    )


def kept(folder: Path) -> dict[int, Path]:
    """The files of single epochs in the folder of a run, in order."""
    files = {}
    for file in sorted((folder / EPOCHS).glob("epoch_*.safetensors")):
        if match := re.fullmatch(r"epoch_(\d+)\.safetensors", file.name):
            files[int(match[1])] = file
    if len(files) < 2:
        raise DataNotFoundError(
            f"{folder} holds the weights of {counted(len(files), 'epoch')}, and 2 at "
            "least are needed: train with --keep-epochs, as in --keep-epochs 1,2,5,10"
        )
    return files


def drawn(
    options: Options,
    networks: dict[int, Pretrained],
    dataset: Dataset,
    layer: str,
    course: Evolution,
    units: np.ndarray,
):
    """The figure of a layer."""
    net = networks[course.epochs[0]]
    found = project_course(
        {epoch: network.model for epoch, network in networks.items()},
        dataset,
        layer,
        course,
        units,
        rule=options.rule,
        preprocess=net.preprocess,
    )
    seen = net.preprocess.pictures(dataset.images[found.images])
    patches = viz.image_patches(seen, found.boxes)
    shape = len(units), len(course.epochs)
    captions = [
        f"unit {unit}: {', '.join(f'{value:.3g}' for value in course.values[:, unit])}"
        for unit in units
    ]
    return viz.evolution_grid(
        f"{layer} of {net.model.arch.name} over training; {options.rule}",
        course.epochs,
        captions,
        found.pixels.reshape(*shape, *found.pixels.shape[1:]),
        patches.reshape(*shape, *patches.shape[1:]),
        course.jumps[:, units].T,
    )[0]


if __name__ == "__main__":
    sys.exit(main(run, Options))
