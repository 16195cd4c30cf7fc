"""How much of a picture depends on the network, and how much on the image alone.

    python -m experiments.sanity --data-dir FOLDER

Beyond the paper, for the deconvnet, guided backpropagation and the gradient. First, the
layers are drawn anew at random one by one, from the classifier to the image (Adebayo et
al. 2018), and the picture of the true class is compared with the trained network's.
Second, the picture of the most active unit of a layer is compared with those of random
positive numbers in its place (Mahendran & Vedaldi 2016), of another unit at its
position, and of the same unit in another image. A picture that depends on the network
should change with it. The edges of the image, which depend on no network, serve as a
reference.

Expected with the shipped weights over 100 test images of CIFAR-10, in about a minute on
two CPU cores, as rank correlations of signed values (1 is the same, 0 unrelated):

    all layers above conv5 random: deconvnet 0.87, guided 0.98, gradient -0.01
    all layers random: deconvnet 0.26, guided 0.44, gradient 0.00
    random positive numbers for a unit of conv5: 0.79, 0.95, gradient 0.48
    another unit at its position: 0.79, 0.92, gradient 0.13
    the same unit in another image: 0.05, 0.02, gradient 0.02
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.common import (
    ImageOptions,
    Progress,
    Results,
    at_least,
    main,
)
from zfnet_jax.analysis.sanity import Comparison, controls, sanity
from zfnet_jax.arch import Architecture, Conv
from zfnet_jax.data import Dataset
from zfnet_jax.weights import Pretrained

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURES = {
    "signed": "rank correlation of signed values",
    "magnitude": "rank correlation of magnitudes",
    "ssim": "SSIM of magnitudes",
}


@dataclasses.dataclass(frozen=True)
class Options(ImageOptions):
    """Compare pictures with those of destroyed networks and of other signals."""

    images: int = 100
    """Number of images to average over."""
    shown: int = 3
    """Number of them to draw."""
    layer: str | None = None
    """Layer of the unit; by default the last convolution."""
    seed: int = 0
    """Seed for the random weights and for what takes a unit's place."""
    out: Path = Path("results/sanity")
    """Folder for results; files of the same names are replaced."""


def run(options: Options) -> None:
    """Destroy, compare, draw and write the results."""
    at_least(2, options, "images", "limit")
    at_least(1, options, "shown")
    at_least(0, options, "seed")
    results = Results(options.out)
    net = options.network()
    layer = net.layer(options.layer or last_convolution(net.model.arch)).name
    dataset = options.known_images(net, options.images)
    count = len(dataset)
    with Progress("comparing", 2 * count, unit="picture", every=count // 2) as progress:
        destroyed, control = compare(
            net, dataset, layer, options.seed, options.shown, progress.update
        )
    for name, figure in draw(net, dataset, layer, destroyed, control).items():
        results.figure(name, figure)
    results.metrics(
        {
            "architecture": net.model.arch.name,
            "data": dataset.source,
            "images": count,
            "layer": layer,
            "randomisation": describe(destroyed),
            "controls": describe(control),
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
    """Name of the last convolution; of the classifier if there is none."""
    convolutions = [x.name for x in arch.layers if isinstance(x, Conv)]
    return (convolutions or ["logits"])[-1]


def compare(
    net: Pretrained,
    dataset: Dataset,
    layer: str,
    seed: int,
    shown: int,
    progress: Callable[[int], None],
) -> tuple[Comparison, Comparison]:
    """Both comparisons over all images; progress counts each image twice."""
    images = net.preprocess(dataset.images)
    destroyed = sanity(
        net,
        images,
        dataset.labels,
        seed=seed,
        shown=shown,
        progress=lambda done, _: progress(done),
    )
    control = controls(
        net,
        images,
        layer,
        seed=seed,
        shown=shown,
        progress=lambda done, total: progress(total + done),
    )
    return destroyed, control


def draw(
    net: Pretrained,
    dataset: Dataset,
    layer: str,
    destroyed: Comparison,
    control: Comparison,
) -> dict[str, Figure]:
    """Draw both comparisons; figures by name."""
    from zfnet_jax import viz

    arch = net.model.arch.name
    title = f"{arch}: the true class, as layers from the top down are drawn anew"
    curves, references = {}, {}
    for name, measure in MEASURES.items():
        values = {r: getattr(x, name).T for r, x in destroyed.similarity.items()}
        curves[measure] = {rule: x[:-1] for rule, x in values.items()}
        references[measure] = {rule: x[-1] for rule, x in values.items()}
    figures = {
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
        shown = len(next(iter(comparison.pictures.values())))
        figures[name], _ = viz.compared_pictures(
            heading,
            MEASURES["signed"],
            net.preprocess.pictures(dataset.images[:shown]),
            [dataset.class_names[label] for label in dataset.labels[:shown]],
            comparison.columns,
            {rule: x.swapaxes(0, 1) for rule, x in comparison.pictures.items()},
            {rule: x.signed.T for rule, x in comparison.similarity.items()},
        )
    return figures


def describe(comparison: Comparison) -> dict[str, object]:
    """Metrics of a comparison."""
    return {
        "columns": comparison.columns,
        "rules": {
            rule: {
                **{
                    name: {"mean": values.mean(0), "spread": values.std(0)}
                    for name, values in similarity._asdict().items()
                },
                "empty": comparison.empty[rule].sum(0),
            }
            for rule, similarity in comparison.similarity.items()
        },
    }


def table(comparison: Comparison) -> str:
    """Means as plain text, a row per rule and measure."""
    rows = [["", *comparison.columns[1:]]]
    for rule, similarity in comparison.similarity.items():
        for name, values in similarity._asdict().items():
            means = (f"{mean:z.2f}" for mean in values.mean(0)[1:])
            rows.append([f"{rule}, {name}", *means])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


if __name__ == "__main__":
    sys.exit(main(run, Options))
