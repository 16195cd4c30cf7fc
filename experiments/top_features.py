"""The nine strongest activations of units over a dataset, projected (Fig. 2).

    python -m experiments.top_features --data-dir FOLDER

For each layer a random subset of its units, or those named: a square of the projections
of each unit's strongest activations, one an image, beside a square of the patches of
the images that they saw. Expected with the shipped weights over the 10,000 test images
of CIFAR-10: about a minute. The result folder holds a figure for each layer and
metrics.json, with images, positions, activations and classes.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
from zfnet_jax import viz
from zfnet_jax.analysis import TopActivations, project_top, top_activations
from zfnet_jax.data import Dataset
from zfnet_jax.projections import Projections
from zfnet_jax.weights import Pretrained


@dataclasses.dataclass(frozen=True)
class Options(ImageOptions):
    """Draw the strongest activations of units over a dataset."""

    layers: str | None = None
    """Layers, as in conv1,conv3; if not given, every convolution."""
    units: str | None = None
    """Units of a single layer, as in 3,17; if not given, --count random live ones."""
    count: int = 16
    """How many random units of each layer to draw."""
    top: int = 9
    """How many activations of each unit, each of another image."""
    rule: Literal["deconvnet", "guided", "gradient"] = "deconvnet"
    """What ReLUs do on the way down."""
    scale: Literal["patch", "unit", "layer"] = "patch"
    """What shares a display scale: nothing, a unit, the whole layer."""
    split: Literal["train", "test"] = "test"
    """Which half of the dataset to search."""
    seed: int = 0
    """Determines which units are drawn."""
    out: Path = Path("results/top_features")
    """Folder for results; files of the same names are replaced."""


def run(options: Options) -> None:
    """Search, project, draw and write everything down."""
    at_least(1, options, "count", "top", "limit")
    at_least(0, options, "seed")
    results = Results(options.out)
    net = options.network()
    arch = net.model.arch
    layers = chosen_layers(arch, options.layers)
    named = named_units(arch, layers, options.units)
    dataset = options.images_for(net, split=options.split)
    step = len(dataset) // 10
    with Progress("searching", len(dataset), unit="images", every=step) as progress:
        found = top_activations(
            net.model,
            dataset,
            layers,
            options.top,
            preprocess=net.preprocess,
            progress=progress.update,
        )

    rng = np.random.default_rng(options.seed)
    metrics = {}
    with Progress("projecting", len(layers), unit="layer") as progress:
        for done, (layer, top) in enumerate(found.items(), 1):
            live = np.flatnonzero(~top.dead)
            if not len(named or live):
                raise UsageError(f"all units of {layer} are dead: none can be drawn")
            picked = rng.permutation(live)[: options.count]
            units = np.array(named) if named else np.sort(picked)
            projections = project_top(
                net.model,
                dataset,
                layer,
                top,
                units,
                rule=options.rule,
                preprocess=net.preprocess,
            )
            fig, _ = drawn(options, net, dataset, layer, top, units, projections)
            results.figure(f"top_{layer}", fig)
            metrics[layer] = described(dataset, top, units)
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


def drawn(
    options: Options,
    net: Pretrained,
    dataset: Dataset,
    layer: str,
    top: TopActivations,
    units: np.ndarray,
    projections: Projections,
) -> tuple[Figure, Axes]:
    """The figure of a layer."""
    seen = net.preprocess.pictures(dataset.images[projections.images])
    patches = viz.image_patches(seen, projections.boxes)
    outside = viz.outside(projections.boxes, seen.shape[1:3])
    silent = projections.values <= 0
    patches[silent], outside[silent] = 128, 0
    shape = len(units), top.values.shape[1]
    captions = [
        f"unit {unit}: dead"
        if top.dead[unit]
        else f"unit {unit}: {values[0]:.3g} to {values[-1]:.3g}"
        for unit, values in zip(units, top.values[units], strict=True)
    ]
    dead = int(top.dead.sum())
    arch = net.model.arch.name
    title = f"{layer} of {arch}: {len(units)} of {len(top.values)} units, {dead} dead"
    return viz.top_features(
        f"{title}; {options.rule}",
        captions,
        projections.pixels.reshape(*shape, *projections.pixels.shape[1:]),
        patches.reshape(*shape, *patches.shape[1:]),
        outside.reshape(*shape, 4),
        options.scale,
    )


def described(
    dataset: Dataset, top: TopActivations, units: np.ndarray
) -> dict[str, object]:
    """What the metrics say of a layer."""
    names = dataset.class_names
    selective = top.selectivity[~np.isnan(top.selectivity)]
    of_class = dataset.labels[top.images[~top.dead]][..., None] == np.arange(len(names))
    shares = of_class.mean(1).max(-1)
    return {
        "units": len(top.values),
        "dead": np.flatnonzero(top.dead),
        "median_selectivity": np.median(selective) if len(selective) else None,
        "mean_share_of_one_class": shares.mean() if len(shares) else None,
        "three_quarters_of_one_class": (shares >= 0.75).mean() if len(shares) else None,
        "median_active": np.median(top.active),
        "drawn": [
            {
                "unit": unit,
                "values": top.values[unit],
                "images": top.images[unit],
                "positions": top.positions[unit],
                "classes": [names[c] for c in dataset.labels[top.images[unit]]],
                "active": top.active[unit],
                "mean": top.mean[unit],
                "class_means": dict(zip(names, top.class_means[unit], strict=True)),
            }
            for unit in units
        ],
    }


if __name__ == "__main__":
    sys.exit(main(run, Options))
