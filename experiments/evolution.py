"""Features over training: Fig. 4 of the paper.

    python -m experiments.train_cifar10 --keep-epochs 1,2,5,10 --out results/run
    python -m experiments.evolution --run results/run

For some units of each layer, the strongest activation over the training images at each
kept epoch, projected. A bar marks where its source image differs from the one before.
motion.png shows how much each layer's features still change from one checkpoint to the
next; the paper finds that lower layers converge first. Expected over 50,000 images of
CIFAR-10 and six checkpoints: ten minutes; `--limit` makes it quick.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

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
from zfnet_jax.analysis.evolution import Evolution, evolution, motion
from zfnet_jax.data import Dataset, Preprocessed
from zfnet_jax.files import DataNotFoundError
from zfnet_jax.weights import Pretrained

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Options:
    """Draw how features develop during training."""

    run: Path = Path("results/train_cifar10")
    """Folder of a training run with --keep-epochs."""
    layers: str | None = None
    """Layers, as in conv1,conv3; by default every convolution."""
    units: str | None = None
    """Units of a single layer, as in 3,17; by default --count random live ones."""
    count: int = 6
    """Number of random units to draw per layer."""
    rule: Literal["deconvnet", "guided", "gradient"] = "deconvnet"
    """Backward rule for ReLUs."""
    dataset: Literal["cifar10", "shapes"] | None = None
    """Source of the images; by default what the network was trained on."""
    split: Literal["train", "test"] = "train"
    """Split of the dataset to search; the paper searches the training images."""
    data_dir: Path | None = None
    """Folder of prepared tensorflow-datasets; else $TFDS_DATA_DIR or its default."""
    limit: int | None = None
    """Search only the first N images."""
    sample: int = 500
    """Images on which features are compared from checkpoint to checkpoint."""
    seed: int = 0
    """Seed for the choice of units."""
    out: Path = Path("results/evolution")
    """Folder for results; files of the same names are replaced."""


def run(options: Options) -> None:
    """Search at each checkpoint, project, draw and write the results."""
    from zfnet_jax import viz

    at_least(1, options, "count", "limit", "sample")
    at_least(0, options, "seed")
    results = Results(options.out)
    files = list_epochs(options.run)
    networks = {epoch: load_network(str(file)) for epoch, file in files.items()}
    epochs = list(networks)
    net = networks[epochs[0]]
    arch = net.model.arch
    layers = chosen_layers(arch, options.layers)
    named = named_units(arch, layers, options.units)
    name = options.dataset or trained_on(net)
    dataset = load_dataset(name, options.split, options.data_dir, options.limit)
    images = Preprocessed(dataset.images, net.preprocess)
    with Progress("searching", len(epochs), unit="checkpoint") as progress:
        courses = evolution(networks, images, layers, progress=progress.update)
    sample = images[np.arange(min(options.sample, len(images)))]
    moved = {
        layer: np.nanmean(np.where(np.isnan(x).all(1, keepdims=True), 1, x), 1)
        for layer, x in motion(networks, sample, layers).items()
    }
    rng = np.random.default_rng(options.seed)
    metrics = {}
    for layer, course in courses.items():
        live = np.flatnonzero(~course.dead.any(0))
        if not len(named or live):
            raise UsageError(f"no unit of {layer} is alive at every checkpoint")
        picked = rng.permutation(live)[: options.count]
        units = np.array(named) if named else np.sort(picked)
        results.figure(
            f"evolution_{layer}",
            draw(options, networks, dataset, course, units),
        )
        metrics[layer] = {
            "motion": moved[layer],
            "jumps": course.jumps[1:].mean(1),
            "drawn": [
                {
                    "unit": unit,
                    "values": course.activations[:, unit],
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


def list_epochs(folder: Path) -> dict[int, Path]:
    """Weight files of single epochs in the folder of a run, in order."""
    files = {}
    for file in sorted((folder / EPOCHS).glob("epoch_*.safetensors")):
        if match := re.fullmatch(r"epoch_(\d+)\.safetensors", file.name):
            files[int(match[1])] = file
    if len(files) < 2:
        raise DataNotFoundError(
            f"{folder} contains the weights of {counted(len(files), 'epoch')}, and at "
            "least 2 are needed: train with --keep-epochs, as in --keep-epochs 1,2,5,10"
        )
    return files


def draw(
    options: Options,
    networks: dict[int, Pretrained],
    dataset: Dataset,
    course: Evolution,
    units: np.ndarray,
) -> Figure:
    """Project and draw some units of a layer."""
    from zfnet_jax import viz

    net = networks[course.epochs[0]]
    images = Preprocessed(dataset.images, net.preprocess)
    projections = course.project(networks, images, units, rule=options.rule)
    pictures = net.preprocess.pictures(dataset.images[projections.images])
    patches = viz.image_patches(pictures, projections.boxes)
    shape = len(units), len(course.epochs)
    captions = [
        f"unit {unit}: {', '.join(f'{x:.3g}' for x in course.activations[:, unit])}"
        for unit in units
    ]
    return viz.evolution_grid(
        f"{course.layer} of {net.model.arch.name} over training; {options.rule}",
        course.epochs,
        captions,
        projections.pixels.reshape(*shape, *projections.pixels.shape[1:]),
        patches.reshape(*shape, *patches.shape[1:]),
        course.jumps[:, units].T,
    )[0]


if __name__ == "__main__":
    sys.exit(main(run, Options))
