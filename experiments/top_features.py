"""The nine strongest activations of units over a dataset, projected (Fig. 2).

    python -m experiments.top_features --data-dir FOLDER

For each layer a random subset of its units, or those named: the projections of each
unit's strongest activations, one per image, beside the patches of the images in their
receptive fields. Expected with the shipped weights over the 10,000 test images of
CIFAR-10: about a minute. The result folder contains a figure for each layer and
metrics.json, with images, positions, activations and classes.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from experiments.common import (
    ImageOptions,
    Progress,
    Results,
    UsageError,
    at_least,
    chosen_layers,
    counted,
    main,
    named_units,
)
from zfnet_jax.analysis.mining import TopActivations, top_activations
from zfnet_jax.data import Dataset, Preprocessed
from zfnet_jax.weights import Pretrained

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Options(ImageOptions):
    """Draw the strongest activations of units over a dataset."""

    layers: str | None = None
    """Layers, as in conv1,conv3; by default every convolution."""
    units: str | None = None
    """Units of a single layer, as in 3,17; by default --count random live ones."""
    count: int = 16
    """Number of random units to draw per layer."""
    top: int = 9
    """Activations per unit, each of another image."""
    rule: Literal["deconvnet", "guided", "gradient"] = "deconvnet"
    """Backward rule for ReLUs."""
    scale: Literal["patch", "unit", "layer"] = "patch"
    """Projections that share a display scale: none, a unit's, the layer's."""
    split: Literal["train", "test"] = "test"
    """Split of the dataset to search."""
    seed: int = 0
    """Seed for the choice of units."""
    out: Path = Path("results/top_features")
    """Folder for results; files of the same names are replaced."""


def run(options: Options) -> None:
    """Search, project, draw and write the results."""
    at_least(1, options, "count", "top", "limit")
    at_least(0, options, "seed")
    results = Results(options.out)
    net = options.network()
    arch = net.model.arch
    layers = chosen_layers(arch, options.layers)
    named = named_units(arch, layers, options.units)
    dataset = options.images_for(net, split=options.split)
    images = Preprocessed(dataset.images, net.preprocess)
    step = len(dataset) // 10
    with Progress("searching", len(dataset), unit="images", every=step) as progress:
        tops = top_activations(
            net,
            images,
            layers,
            k=options.top,
            labels=dataset.labels,
            progress=progress.update,
        )

    rng = np.random.default_rng(options.seed)
    metrics = {}
    with Progress("projecting", len(layers), unit="layer") as progress:
        for done, (layer, top) in enumerate(tops.items(), 1):
            live = np.flatnonzero(~top.dead)
            if not len(named or live):
                raise UsageError(f"all units of {layer} are dead: none can be drawn")
            picked = rng.permutation(live)[: options.count]
            units = np.array(named) if named else np.sort(picked)
            results.figure(f"top_{layer}", draw(options, net, dataset, top, units))
            metrics[layer] = describe(dataset, top, units)
            progress.update(done)
    results.metrics(
        {
            "architecture": arch.name,
            "data": dataset.source,
            "images": len(dataset),
            "rule": options.rule,
            "scale": options.scale,
            "layers": metrics,
        }
    )
    results.config(options)
    results.manifest(seed=options.seed, digests=options.digests(dataset))
    print(
        f"{counted(len(layers), 'layer')} over {len(dataset):,} images; "
        f"figures in {results.path}"
    )


def draw(
    options: Options,
    net: Pretrained,
    dataset: Dataset,
    top: TopActivations,
    units: np.ndarray,
) -> Figure:
    """Project and draw some units of a layer."""
    from zfnet_jax import viz

    images = Preprocessed(dataset.images, net.preprocess)
    projections = top.project(net, images, units, rule=options.rule)
    pictures = net.preprocess.pictures(dataset.images[projections.images])
    patches = viz.image_patches(pictures, projections.boxes)
    outside = viz.outside(projections.boxes, pictures.shape[1:3])
    silent = projections.activations <= 0
    patches[silent], outside[silent] = 128, 0
    shape = len(units), top.activations.shape[1]
    captions = [
        f"unit {unit}: dead"
        if top.dead[unit]
        else f"unit {unit}: {strongest[0]:.3g} to {strongest[-1]:.3g}"
        for unit, strongest in zip(units, top.activations[units], strict=True)
    ]
    figure, _ = viz.top_features(
        f"{top.layer} of {net.model.arch.name}: {len(units)} of {len(top.dead)} units, "
        f"{top.dead.sum()} dead; {options.rule}",
        captions,
        projections.pixels.reshape(*shape, *projections.pixels.shape[1:]),
        patches.reshape(*shape, *patches.shape[1:]),
        outside.reshape(*shape, 4),
        options.scale,
    )
    return figure


def describe(
    dataset: Dataset, top: TopActivations, units: np.ndarray
) -> dict[str, object]:
    """Metrics of a layer."""
    names = dataset.class_names
    selective = top.selectivity[~np.isnan(top.selectivity)]
    of_class = dataset.labels[top.images[~top.dead]][..., None] == np.arange(len(names))
    shares = of_class.mean(1).max(-1)
    return {
        "units": len(top.dead),
        "dead": np.flatnonzero(top.dead),
        "median_selectivity": np.median(selective) if len(selective) else None,
        "mean_share_of_one_class": shares.mean() if len(shares) else None,
        "three_quarters_of_one_class": (shares >= 0.75).mean() if len(shares) else None,
        "median_active": np.median(top.active),
        "drawn": [
            {
                "unit": unit,
                "values": top.activations[unit],
                "images": top.images[unit],
                "positions": top.positions[unit],
                "classes": [names[c] for c in dataset.labels[top.images[unit]]],
                "active": top.active[unit],
                "mean": top.mean[unit],
                # The network may have more classes, and a class may have no images.
                "class_means": {
                    name: None if np.isnan(mean) else mean
                    for name, mean in zip(names, top.class_means[unit], strict=False)
                },
            }
            for unit in units
        ],
    }


if __name__ == "__main__":
    sys.exit(main(run, Options))
