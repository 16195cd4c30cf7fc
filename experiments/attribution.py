"""Judge attribution maps on shapes, where the pixels of the object are known.

    python -m experiments.quickstart
    python -m experiments.attribution

Saliency (the gradient), guided backpropagation and the deconvnet of the true class's
logit, on test shapes that the network classifies correctly. Two baselines know neither
network nor image: pixels in random order, and those near the center first. For each,
the table holds how often its most important pixel lies on the object, or close to it,
and the areas under its insertion and deletion curves, all with standard errors.
`zfnet_jax.metrics` defines them.

Expected with the weights of `experiments.quickstart`, over 197 of 200 shapes, in one to
three minutes on two CPU cores (2 pixels: close enough for a map that shows outlines):

    on the object: saliency 44%, guided 29%, deconvnet 35%, random 18%, center 70%
    within 2 pixels: saliency 82%, guided 100%, deconvnet 100%, random 31%, center 84%
    insertion (more is better): 0.453, 0.554, 0.533, random 0.242, center 0.601
    deletion (less is better): 0.190, 0.190, 0.192, random 0.243, center 0.192

The center does well because shapes are large and lie near it, and because insertion
favors orders that bring a whole patch over those that bring scattered pixels.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np

from experiments.harness import Metrics, Positive, UserError, main
from experiments.inputs import Images, NetworkRun
from experiments.progress import say, say_table
from zfnet_jax.attribution import attribute
from zfnet_jax.data import DatasetImages
from zfnet_jax.files import DataNotFoundError
from zfnet_jax.metrics import Curves, deletion, importance, insertion, pointing_game
from zfnet_jax.networks import Network
from zfnet_jax.relu_rules import Rule
from zfnet_jax.results import spell_mean, spread
from zfnet_jax.viz.contrast import Contrast

METHODS: dict[str, Rule] = {
    "saliency": "gradient",
    "guided_backprop": "guided",
    "deconvnet": "deconvnet",
}


@dataclasses.dataclass(kw_only=True)
class ShapesRun(NetworkRun):
    """A run on shapes and a network that knows them."""

    dataset: Literal["cifar10", "shapes"] | None = "shapes"

    default_weights = "results/quickstart/weights.safetensors"

    @functools.cached_property
    def net(self) -> Network:
        """The network of --model or --weights."""
        try:
            return super().net
        except DataNotFoundError as error:
            raise DataNotFoundError(
                f"{error}; python -m experiments.quickstart trains a network on shapes "
                "in about a minute"
            ) from error


def attribution(
    run: ShapesRun,
    limit: Positive = 200,
    tolerance: float = 2.0,
    steps: Positive | None = None,
    shown: Positive = 6,
    contrast: Contrast = "99.5",
) -> Metrics:
    """Judge attribution maps by the object's position and the network's answer.

    Args:
        limit: Test shapes at most; those classified correctly are used.
        tolerance: Distance from the object, in pixels, up to which a pixel is close to
            it; 2 of 32 pixels are the 15 of 224 of Zhang et al. 2016.
        steps: Steps of the curves, by default one per row of an image.
        shown: Images in the figure at most.
        contrast: Percentile of the magnitudes that is shown as black and white.
    """
    net, drawn = run.net, run.labeled_images(limit)
    images, masks, logits = find_correct(net, drawn)
    labels = run.targets(images)
    maps = {
        name: attribute(net, images, labels, rule=rule)
        for name, rule in METHODS.items()
    }
    rankings = {name: np.asarray(importance(signed)) for name, signed in maps.items()}
    rankings |= make_baselines(masks.shape, run.rng)
    methods = {}
    for name, ranking in run.track("measuring", rankings.items()):
        methods[name] = {
            "on_object": count_hits(pointing_game(ranking, masks)),
            "near_object": count_hits(pointing_game(ranking, masks, tolerance)),
            "insertion": average(insertion(net, images, labels, ranking, steps=steps)),
            "deletion": average(deletion(net, images, labels, ranking, steps=steps)),
        }
    draw(run, images, logits, maps, shown, contrast)
    print_table(methods, len(images), tolerance)
    yield "network", run.network_name
    yield "images", len(images)
    yield "images_drawn", len(drawn)
    yield "object_share", masks.mean()
    yield "methods", methods
    yield "data", drawn.source


def find_correct(net: Network, images: Images) -> tuple[Images, np.ndarray, np.ndarray]:
    """Find images that are classified correctly, with their masks and logits."""
    masks = images.masks if isinstance(images, DatasetImages) else None
    if masks is None:
        raise UserError(
            f"the objects of {images.source} are unknown: use --dataset shapes"
        )
    logits = net.activations(images, net.output)[net.output]
    correct = np.flatnonzero(logits.argmax(-1) == images.labels)
    if len(correct) < 2:
        raise UserError(
            f"{len(correct)} of {len(images)} shapes are classified correctly, and at "
            "least 2 are needed: train longer, or raise --limit"
        )
    return images.take(correct), masks[correct], logits[correct]


def make_baselines(
    shape: tuple[int, ...], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Rank pixels without network and image, by name: float [n, h, w]."""
    count, height, width = shape
    rows, columns = np.arange(height) - (height - 1) / 2, np.arange(width)
    outward = np.hypot(rows[:, None], columns - (width - 1) / 2)
    return {"random": rng.random(shape), "center": np.tile(-outward, (count, 1, 1))}


def count_hits(hits: np.ndarray) -> dict[str, float]:
    """Count hits, and average them."""
    return {"hits": hits.sum(), **summarize(hits)}


def average(curves: Curves) -> dict[str, object]:
    """Average the areas under curves, and the curves."""
    return {
        **summarize(curves.areas),
        "curve": curves.probabilities.mean(0),
        "fractions": curves.fractions,
    }


def summarize(values: np.ndarray) -> dict[str, float]:
    """Compute the mean and its standard error."""
    wide = values.astype(np.float64)
    error = spread(wide) / math.sqrt(len(wide))
    return {"mean": float(wide.mean()), "standard_error": float(error)}


def draw(
    run: NetworkRun,
    images: Images,
    logits: np.ndarray,
    maps: Mapping[str, np.ndarray],
    shown: int,
    contrast: Contrast,
) -> None:
    """Draw the maps of the first images."""
    from zfnet_jax.viz.attribution import attribution_maps

    probabilities = np.asarray(jax.nn.softmax(logits[:shown])).max(-1)
    names = [run.class_name(label) for label in logits[:shown].argmax(-1)]
    figure = attribution_maps(
        f"Pixels that the logit of the true class responds to, {run.network_name}",
        images.pictures[:shown],
        [
            f"{name}, probability {probability:.3f}"
            for name, probability in zip(names, probabilities, strict=True)
        ],
        {name: signed[:shown] for name, signed in maps.items()},
        contrast,
    )
    run.figure("maps", figure)


def print_table(
    methods: Mapping[str, Mapping[str, Mapping[str, Any]]],
    count: int,
    tolerance: float,
) -> None:
    """Print the results, one row per method."""
    say(f"mean ± standard error over {count} shapes that are classified correctly:")
    within = f"within {tolerance:g} pixels"
    rows = [["", "on the object", within, "insertion", "deletion"]]
    for name, measures in methods.items():
        cells = [name.replace("_", " ")]
        for measure in measures.values():
            mean, error = measure["mean"], measure["standard_error"]
            if "hits" in measure:
                hits = f"{measure['hits']:.0f}/{count}"
                cells.append(f"{hits} = {spell_mean(mean, error, '.1%')}")
            else:
                cells.append(spell_mean(mean, error, ".3f"))
        rows.append(cells)
    say_table(rows)


if __name__ == "__main__":
    sys.exit(main(attribution))
