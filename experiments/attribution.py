"""Judge attribution maps on shapes, where the pixels of the object are known.

    python -m experiments.attribution --weights results/quickstart/weights.safetensors

Saliency (the gradient), guided backpropagation and the deconvnet of the true class's
logit, on test shapes that the network classifies correctly. Two baselines know neither
network nor image: pixels in random order, and those near the center first. For each,
the table holds how often its most important pixel lies on the object, or close to it,
and the areas under its insertion and deletion curves, all with standard errors.
`zfnet_jax.metrics` defines them.

Expected with the weights of `experiments.quickstart`, over 195 of 200 shapes, in one to
three minutes on two CPU cores (2 pixels: close enough for a map that shows outlines):

    on the object: saliency 46%, guided 36%, deconvnet 31%, random 24%, center 70%
    within 2 pixels: saliency 92%, guided 100%, deconvnet 100%, random 34%, center 84%
    insertion (more is better): 0.529, 0.615, 0.603, random 0.277, center 0.679
    deletion (less is better): 0.195, 0.200, 0.195, random 0.273, center 0.223

The center does well because shapes are large and lie near it, and because insertion
favors orders that bring a whole patch over those that bring scattered pixels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

import zfnet_jax as zf
from experiments.common import Progress, Results, UsageError, at_least, main
from zfnet_jax import viz
from zfnet_jax.attribution import attribute
from zfnet_jax.data import Dataset, make_shapes
from zfnet_jax.files import DataNotFoundError
from zfnet_jax.metrics import Curves, deletion, importance, insertion, pointing_game
from zfnet_jax.relu_rules import Rule
from zfnet_jax.weights import Pretrained

METHODS: dict[str, Rule] = {
    "saliency": "gradient",
    "guided_backprop": "guided",
    "deconvnet": "deconvnet",
}

# The training set of `experiments.quickstart` is drawn with the seed 0.
_TEST_SEED = 1
# Images in a figure, and images in a row of it.
_SHOWN, _ACROSS = 6, 3


@dataclasses.dataclass(frozen=True)
class Options:
    """Judge attribution maps by the object's position and the network's answer."""

    weights: Path = Path("results/quickstart/weights.safetensors")
    """Network trained on shapes, as `python -m experiments.quickstart` writes it."""
    images: int = 200
    """Number of test shapes to draw; those classified correctly are used."""
    tolerance: float = 2.0
    """Distance from the object, in pixels, up to which a pixel is close to it; 2 of 32
    pixels are the 15 of 224 of Zhang et al. 2016."""
    steps: int | None = None
    """Steps of the curves; one per row of an image if not given."""
    seed: int = 0
    """Seed for the random order."""
    out: Path = Path("results/attribution")
    """Folder for results; files of the same names are replaced."""


def run(options: Options) -> None:
    """Measure, draw and write the results."""
    check(options)
    results = Results(options.out)
    net = load(options.weights)
    drawn = make_shapes(options.images, net.image_shape[:2], seed=_TEST_SEED)
    logits = net.activations(net.preprocess(drawn.images), net.output)[net.output]
    right = np.flatnonzero(logits.argmax(-1) == drawn.labels)
    if len(right) < 2:
        raise UsageError(
            f"--weights {options.weights} classifies {len(right)} of {len(drawn)} "
            "shapes correctly, and at least 2 are needed: train longer, or draw more "
            "with --images"
        )
    shapes = drawn.take(right)
    images, masks = net.preprocess(shapes.images), shapes.masks
    assert masks is not None
    maps = {
        name: attribute(net, images, shapes.labels, rule=rule)
        for name, rule in METHODS.items()
    }
    rankings = {name: np.asarray(importance(signed)) for name, signed in maps.items()}
    rankings |= baselines(masks.shape, options.seed)

    methods = {}
    with Progress("measuring", len(rankings), unit="method") as progress:
        for done, (name, importances) in enumerate(rankings.items(), 1):
            inserted, deleted = (
                curve(net, images, shapes.labels, importances, steps=options.steps)
                for curve in (insertion, deletion)
            )
            on_object = pointing_game(importances, masks)
            near_object = pointing_game(importances, masks, options.tolerance)
            methods[name] = {
                "on_object": {"hits": on_object.sum(), **summarize(on_object)},
                "near_object": {"hits": near_object.sum(), **summarize(near_object)},
                "insertion": average(inserted),
                "deletion": average(deleted),
            }
            progress.update(done)

    for name, figure in figures(shapes, maps, logits[right]):
        results.figure(name, figure)
    results.metrics(
        {
            "images": len(shapes),
            "images_drawn": len(drawn),
            "object_share": masks.mean(),
            "methods": methods,
            "data": drawn.source,
        }
    )
    results.config(options)
    results.manifest(
        seed=options.seed,
        digests={
            "shapes": shapes.digest(),
            "weights": hashlib.sha256(options.weights.read_bytes()).hexdigest(),
        },
    )
    print(
        f"{len(shapes):,} of {len(drawn):,} test shapes are classified correctly; "
        "over these, mean ± standard error:"
    )
    print(table(methods, len(shapes), options.tolerance))
    print(f"figures in {results.path}", flush=True)


def check(options: Options) -> None:
    at_least(1, options, "images", "steps")
    at_least(0, options, "seed")
    if not 0 <= options.tolerance < math.inf:
        raise UsageError(f"--tolerance must be 0 or more, not {options.tolerance}")


def load(path: Path) -> Pretrained:
    """Load a network that knows shapes, at the size at which they are drawn."""
    if not path.is_file():
        raise DataNotFoundError(
            f"there is no weight file {path}: python -m experiments.quickstart trains "
            "a network on shapes in about a minute and writes weights.safetensors"
        )
    net = zf.load(path)
    if net.class_names != make_shapes(0).class_names:
        raise UsageError(
            f"--weights {path} knows {', '.join(net.class_names)}, not the classes of "
            "shapes: train a network on these with python -m experiments.quickstart"
        )
    if net.preprocess.size is not None:
        raise UsageError(
            f"--weights {path} resizes its images; the masks of shapes have the size "
            "of the images"
        )
    return net


def baselines(shape: tuple[int, ...], seed: int) -> dict[str, np.ndarray]:
    """Importances that know neither network nor image, by name; float [n, h, w]."""
    count, height, width = shape
    rows, columns = np.arange(height) - (height - 1) / 2, np.arange(width)
    outward = np.hypot(rows[:, None], columns - (width - 1) / 2)
    return {
        "random": np.random.default_rng(seed).random(shape),
        "center": np.tile(-outward, (count, 1, 1)),
    }


def average(curves: Curves) -> dict[str, object]:
    """Mean area under curves with its standard error, and the mean curve."""
    return {
        **summarize(curves.areas),
        "curve": curves.probabilities.mean(0),
        "fractions": curves.fractions,
    }


def summarize(values: np.ndarray) -> dict[str, float]:
    """Mean and standard error."""
    wide = values.astype(np.float64)
    error = wide.std(ddof=1) / math.sqrt(len(wide))
    return {"mean": float(wide.mean()), "standard_error": float(error)}


def table(
    methods: Mapping[str, Mapping[str, Mapping[str, Any]]],
    count: int,
    tolerance: float,
) -> str:
    """Results as plain text, one row per method."""
    rows = [
        ["", "on the object", f"within {tolerance:g} pixels", "insertion", "deletion"]
    ]
    for name, measures in methods.items():
        row = [name.replace("_", " ")]
        for measure in measures.values():
            mean, error = measure["mean"], measure["standard_error"]
            if "hits" in measure:
                hits = f"{measure['hits']:.0f}/{count}"
                row.append(f"{hits} = {100 * mean:.1f} ± {100 * error:.1f}%")
            else:
                row.append(f"{mean:.3f} ± {error:.3f}")
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def figures(
    shapes: Dataset, maps: Mapping[str, np.ndarray], logits: np.ndarray
) -> Iterator[tuple[str, Figure]]:
    """Maps of the first images, side by side and over them, by name of the figure."""
    count = min(_SHOWN, len(shapes))
    images, labels = shapes.images[:count], shapes.labels[:count]
    height, width, _ = images[0].shape
    probabilities = np.asarray(jax.nn.softmax(logits[:count]))[range(count), labels]
    corners = [(i // _ACROSS * height, i % _ACROSS * width) for i in range(count)]
    figure, _ = viz.projection_grid(
        "what the logit of the true class responds to",
        mosaic(images),
        np.array([(top, left, top + height, left + width) for top, left in corners]),
        np.arange(count),
        [
            f"{shapes.class_names[label]}: probability {probability:.3f}"
            for label, probability in zip(labels, probabilities, strict=True)
        ],
        {name.replace("_", " "): signed[:count] for name, signed in maps.items()},
    )
    yield "maps", figure
    for name, signed in maps.items():
        summed = signed[:count].sum(-1)
        peaks = np.abs(summed).max((1, 2), keepdims=True)
        shares = summed / np.where(peaks, peaks, 1)
        figure, _ = viz.overlay(
            mosaic(images),
            mosaic(shares),
            f"{name.replace('_', ' ')}, each map a share of its maximum",
        )
        yield f"overlay_{name}", figure


def mosaic(pictures: np.ndarray) -> np.ndarray:
    """Lay out pictures [n, h, w, ...] in rows of three, the rest zeros."""
    missing = -len(pictures) % _ACROSS
    pictures = np.pad(pictures, ((0, missing), *[(0, 0)] * (pictures.ndim - 1)))
    rows = [
        np.concatenate(pictures[i : i + _ACROSS], axis=1)
        for i in range(0, len(pictures), _ACROSS)
    ]
    return np.concatenate(rows)


if __name__ == "__main__":
    sys.exit(main(run, Options))
