"""How much of a picture is the network's, and how much the image's alone.

    python -m experiments.sanity --data-dir FOLDER

Beyond the paper, for the deconvnet, guided backpropagation and the gradient. First, the
layers are redrawn at random one by one, from the classifier to the image (Adebayo et
al. 2018), and the picture of the true class compared with the trained network's.
Second, the picture of the most active unit of a layer is compared with those of random
positive numbers in its place (Mahendran & Vedaldi 2016), of another unit there, and of
the same unit in another image. A picture that tells of the network should change with
it; beside all stand the edges of the image, which know no network.

Expected with the shipped weights over 100 test images of CIFAR-10, in about a minute on
two CPU cores, as rank correlations of signed values (1 is the same, 0 unrelated):

    all layers above conv5 random: deconvnet 0.87, guided 0.98, gradient -0.01
    all layers random: deconvnet 0.26, guided 0.44, gradient 0.00
    random positive numbers for a unit of conv5: 0.79, 0.95, gradient 0.48
    another unit at its place: 0.79, 0.92, gradient 0.13
    the same unit in another image: 0.05, 0.02, gradient 0.02
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.common import (
    ImageOptions,
    Progress,
    Results,
    at_least,
    main,
)
from zfnet_jax import viz
from zfnet_jax.analysis import Comparison, controls, randomisation
from zfnet_jax.arch import Architecture, Conv
from zfnet_jax.data import Dataset
from zfnet_jax.weights import Pretrained

MEASURES = {
    "signed": "rank correlation of signed values",
    "magnitude": "rank correlation of magnitudes",
    "ssim": "SSIM of magnitudes",
}


@dataclasses.dataclass(frozen=True)
class Options(ImageOptions):
    """Compare pictures with those of what the network did not learn."""

    images: int = 100
    """How many images make the means."""
    shown: int = 3
    """How many of them are drawn."""
    layer: str | None = None
    """Layer of the unit; if not given, the last convolution."""
    seed: int = 0
    """Determines the random weights and what takes a unit's place."""
    out: Path = Path("results/sanity")
    """Folder for results; files of the same names are replaced."""


def run(options: Options) -> None:
    """Destroy, compare, draw and write everything down."""
    at_least(2, options, "images", "limit")
    at_least(1, options, "shown")
    at_least(0, options, "seed")
    results = Results(options.out)
    net = options.network()
    arch = net.model.arch
    layer = arch.layer(options.layer or last_convolution(arch)).name
    dataset = options.known_images(net, options.images)
    count = len(dataset)
    with Progress("comparing", 2 * count, unit="picture", every=count // 2) as progress:
        found = examine(
            net, dataset, layer, options.seed, options.shown, progress.update
        )
    for name, figure in figures(net, dataset, layer, *found).items():
        results.figure(name, figure)
    destroyed, control = found
    results.metrics(
        {
            "architecture": arch.name,
            "data": dataset.source,
            "images": count,
            "layer": layer,
            "randomisation": described(destroyed),
            "controls": described(control),
        }
    )
    results.config(options)
    results.manifest(seed=options.seed, digests=options.digests(dataset))
    for title, comparison in (
        ("layers drawn anew from the top down", destroyed),
        (f"a unit of {layer}", control),
    ):
        print(f"{title}, mean of {count} images:\n{table(comparison)}")
    print(f"figures in {results.path}")


def last_convolution(arch: Architecture) -> str:
    """Of a network without one, the classifier."""
    convolutions = [x.name for x in arch.layers if isinstance(x, Conv)]
    return (convolutions or ["logits"])[-1]


def examine(
    net: Pretrained,
    dataset: Dataset,
    layer: str,
    seed: int,
    shown: int,
    progress: Callable[[int], None],
) -> tuple[Comparison, Comparison]:
    """Both comparisons over all images; progress counts each image twice."""
    images = np.asarray(net.preprocess(dataset.images))
    destroyed = randomisation(
        net.model, images, dataset.labels, seed, shown=shown, progress=progress
    )
    return destroyed, controls(
        net.model,
        images,
        layer,
        seed,
        shown=shown,
        progress=lambda done: progress(len(images) + done),
    )


def figures(
    net: Pretrained,
    dataset: Dataset,
    layer: str,
    destroyed: Comparison,
    control: Comparison,
) -> dict[str, Figure]:
    """What `examine` found, by the name of each figure."""
    arch = net.model.arch.name
    title = f"{arch}: the true class, as layers from the top down are drawn anew"
    curves, references = {}, {}
    for name, measure in MEASURES.items():
        values = {r: getattr(x, name) for r, x in destroyed.similarity.items()}
        curves[measure] = {rule: x[:-1] for rule, x in values.items()}
        references[measure] = {rule: x[-1] for rule, x in values.items()}
    found = {
        "randomisation": viz.similarity_curves(
            title, destroyed.columns[:-1], curves, references
        )[0]
    }
    for name, heading, comparison in (
        ("randomised_pictures", title, destroyed),
        (
            "controls",
            f"{arch}: the most active unit of {layer}, and what takes its place",
            control,
        ),
    ):
        shown = next(iter(comparison.pictures.values())).shape[1]
        found[name], _ = viz.compared_pictures(
            heading,
            MEASURES["signed"],
            net.preprocess.pictures(dataset.images[:shown]),
            [dataset.class_names[label] for label in dataset.labels[:shown]],
            comparison.columns,
            comparison.pictures,
            {rule: x.signed for rule, x in comparison.similarity.items()},
        )
    return found


def described(comparison: Comparison) -> dict[str, object]:
    """What the metrics say of a comparison."""
    return {
        "columns": comparison.columns,
        "rules": {
            rule: {
                **{
                    name: {"mean": values.mean(1), "spread": values.std(1)}
                    for name, values in similarity._asdict().items()
                },
                "empty": comparison.empty[rule].sum(1),
            }
            for rule, similarity in comparison.similarity.items()
        },
    }


def table(comparison: Comparison) -> str:
    """Means as plain text, a row for each rule and measure."""
    rows = [["", *comparison.columns[1:]]]
    for rule, similarity in comparison.similarity.items():
        for name, values in similarity._asdict().items():
            means = (f"{mean:z.2f}" for mean in values.mean(1)[1:])
            rows.append([f"{rule}, {name}", *means])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


if __name__ == "__main__":
    sys.exit(main(run, Options))
