"""Sanity checks: the parts of the network and of the image alone in a picture.

    python -m experiments.sanity

Beyond the paper, for the deconvnet, guided backpropagation and the gradient. First, the
layers are randomized one by one, from the classifier to the image (Adebayo et al.
2018), and the picture of the true class is compared with the trained network's. Second,
the picture of the most active unit of a layer is compared with those of random positive
numbers in its place (Mahendran & Vedaldi 2016), of another unit at its position, and of
the same unit in another image. A picture that depends on the network should change with
it. The edges of the image, which depend on no network, serve as a reference.

Expected with the shipped weights over 100 test images of CIFAR-10, in about a minute on
two CPU cores, as rank correlations of signed values (1 is the same, 0 unrelated):

    all layers above conv5 random: deconvnet 0.95, guided 0.96, gradient 0.03
    all layers random: deconvnet 0.22, guided 0.49, gradient 0.00
    random positive numbers for a unit of conv5: 0.85, 0.95, gradient 0.44
    another unit at its position: 0.92, 0.92, gradient 0.12
    the same unit in another image: 0.21, 0.01, gradient 0.01

With random layers, half and more of the pictures by the deconvnet and by guided
backpropagation are empty. Those are left out.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from experiments.harness import Metrics, Positive, UserError, main
from experiments.inputs import Images, NetworkRun
from experiments.progress import say, say_table
from zfnet_jax.analysis.sanity import Comparison, controls
from zfnet_jax.analysis.sanity import sanity as randomize
from zfnet_jax.files import slug
from zfnet_jax.results import summarize
from zfnet_jax.viz.contrast import Contrast


def sanity(
    run: NetworkRun,
    layers: tuple[str, ...] = (),
    limit: Positive = 100,
    shown: Positive = 3,
    contrast: Contrast = "99.5",
) -> Metrics:
    """Compare pictures with those of randomized networks and of other signals.

    Args:
        layers: Layers of the most active unit, by default the last convolution.
        limit: Images at most.
        shown: Images to draw at most.
        contrast: Percentile of the magnitudes that is shown as black and white.
    """
    from zfnet_jax.viz.sanity import similarity_curves

    names = run.net.select(layers or run.default_layers()[-1])
    images = run.images(limit)
    if len(images) < 2:
        raise UserError("one image: sanity compares it with others, so give at least 2")
    targets = run.targets(images)
    options: dict[str, Any] = {"seed": run.seed, "shown": shown}
    progress = run.progress("randomizing")
    comparison = randomize(run.net, images, targets, **options, progress=progress)
    title = f"The true class in {run.network_name}, as layers are randomized"
    steps, similarity = comparison.columns, {**comparison.similarity}
    curves = similarity_curves(f"{title} from the top", steps, similarity)
    run.figure("randomization", curves)
    draw_pictures(
        run, "randomized_pictures", title, images, targets, comparison, contrast
    )
    print_table("layers randomized from the top", comparison)
    yield from run.describe_data(images)
    yield "randomization", describe(comparison)
    by_layer = {}
    for layer in names:
        progress = run.progress(f"replacing units of {layer}")
        comparison = controls(run.net, images, layer, **options, progress=progress)
        title = f"Most active unit of {layer}, and others instead, {run.network_name}"
        name = f"controls_{slug(layer)}"
        draw_pictures(run, name, title, images, targets, comparison, contrast)
        print_table(f"most active unit of {layer}", comparison)
        by_layer[layer] = describe(comparison)
    yield "controls", by_layer


def draw_pictures(
    run: NetworkRun,
    name: str,
    title: str,
    images: Images,
    targets: np.ndarray,
    comparison: Comparison,
    contrast: Contrast,
) -> None:
    """Draw the pictures of the first images."""
    from zfnet_jax.viz.sanity import compared_pictures

    shown = len(next(iter(comparison.pictures.values())))
    figure = compared_pictures(
        title,
        images.pictures[:shown],
        [run.class_name(label) for label in targets[:shown]],
        comparison.columns,
        {**comparison.pictures},
        {rule: x.signed for rule, x in comparison.similarity.items()},
        contrast,
    )
    run.figure(name, figure)


def describe(comparison: Comparison) -> dict[str, Any]:
    """Summarize a comparison for metrics.json."""
    rules = {}
    for rule, similarity in comparison.similarity.items():
        rules[rule] = {
            name: summarize(values)._asdict()
            for name, values in similarity._asdict().items()
        }
        rules[rule]["empty"] = comparison.empty[rule].sum(0)
    return {"columns": comparison.columns, "rules": rules}


def print_table(title: str, comparison: Comparison) -> None:
    """Print rank correlations of signed values: means over images, a row per column."""
    from zfnet_jax.viz.sanity import spell_means

    similarity = comparison.similarity
    means = [spell_means(x.signed)[1:] for x in similarity.values()]
    say(f"{title}, rank correlation with the first:")
    say_table([["", *similarity], *zip(comparison.columns[1:], *means, strict=True)])


if __name__ == "__main__":
    sys.exit(main(sanity))
