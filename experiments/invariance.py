"""Features as an image is shifted, scaled and rotated: Fig. 5 of the paper.

    python -m experiments.invariance --transform rotate

For each transformation, of five images and on average over many: how far the features
of the first and of the last hidden layer move, relative to the length of those of the
untransformed image, and the probability of the true class. metrics.json also holds the
distances themselves, and a number for each claim of the paper: R² of a line through the
small transformations, and the share of the rotation curve, over all images and per
class, that repeats 2, 3, 4 or 5 times in a full turn.

The paper: the first layer changes at once; the last is stable, quasi-linear for
translation and scaling, and not invariant to rotation except for objects with
rotational symmetry. Expected with the shipped weights over 200 test images of CIFAR-10,
in about a minute on two CPU cores: at a shift of 2 pixels conv1 has moved by 0.87 of
its length and fc7 by 0.09; R² of fc7 is 0.90 for translation and 0.94 for scale;
rotated by 45°, the probability of the true class falls from 0.83 to 0.36.
"""

from __future__ import annotations

import sys
from typing import Any, Literal, get_args

import numpy as np

from experiments.harness import Metrics, Positive, UserError, main
from experiments.inputs import Images, NetworkRun
from zfnet_jax.analysis.invariance import (
    IDENTITY,
    Border,
    Invariance,
    Transform,
    linearity,
    periodicity,
    transform_images,
)
from zfnet_jax.analysis.invariance import invariance as measure
from zfnet_jax.results import spread

_STEPS, _FOLDS = 25, (2, 3, 4, 5)


def invariance(
    run: NetworkRun,
    transform: Literal["translate", "scale", "rotate", "all"] = "all",
    amounts: tuple[float, ...] = (),
    layers: tuple[str, ...] = (),
    border: Border = "reflect",
    limit: Positive = 200,
    shown: Positive = 5,
) -> Metrics:
    """Measure how features move as images are transformed.

    Args:
        transform: Which transformation; translate is vertical, as in the paper.
        amounts: Amounts of a single transformation. By default the paper's: shifts of
            up to 60 of 224 pixels up and down, in proportion to the image's size and by
            whole pixels; 1 to 1.8 times; 0 to 360 degrees.
        layers: Layers, by default the first and the last hidden one without positions
            (the output if there is none).
        border: Source of pixels outside the image: its reflection, its edge, or the
            mean image (zero).
        limit: Images at most.
        shown: Images to draw, at most 5.
    """
    if amounts and transform == "all":
        raise UserError("--amounts needs a single --transform")
    net, images = run.net, run.images(limit)
    shown = min(shown, 5, len(images))
    targets = run.targets(images)
    yield from run.describe_data(images)
    yield "border", border
    transforms = {}
    for name in get_args(Transform):
        if transform not in (name, "all"):
            continue
        result = measure(
            net,
            images,
            targets,
            name,
            amounts or choose_amounts(name, net.image_shape[0]),
            layers=layers or None,
            border=border,
            progress=run.progress(name),
        )
        draw(run, images, targets, name, border, result, shown)
        transforms[name] = describe(name, result, shown)
        if name == "rotate" and _is_full_turn(result.amounts):
            transforms[name]["periodicity"] = measure_periods(result)
            transforms[name]["periodicity_by_class"] = {
                run.class_name(label): measure_periods(result, targets == label)
                for label in np.unique(targets)
            }
    yield "transforms", transforms


def choose_amounts(transform: Transform, height: int) -> np.ndarray:
    """Choose the paper's amounts of a transformation, in proportion to the height."""
    # Between pixels, interpolation alone would blur the image.
    shifts = np.unique(np.round(np.linspace(-60, 60, _STEPS) * height / 224))
    return {
        "translate": shifts,
        "scale": np.linspace(1, 1.8, _STEPS),
        "rotate": np.linspace(0, 360, _STEPS),
    }[transform]


def draw(
    run: NetworkRun,
    images: Images,
    targets: np.ndarray,
    transform: Transform,
    border: Border,
    result: Invariance,
    shown: int,
) -> None:
    """Draw the first images as they are transformed, and all curves."""
    from zfnet_jax.viz.invariance import invariance_curves

    places = np.linspace(0, len(result.amounts) - 1, min(7, len(result.amounts)))
    steps = result.amounts[places.round().astype(int)].tolist()
    pictures = images.pictures[:shown].astype(np.float32)
    middle = pictures.mean((0, 1, 2))
    moved = [
        transform_images(pictures - middle, transform, step, border=border) + middle
        for step in steps
    ]
    figure = invariance_curves(
        run.network_name,
        transform,
        result.amounts,
        result.relative,
        result.probability,
        [run.class_name(label) for label in targets[:shown]],
        np.rint(np.stack(moved, 1)).clip(0, 255).astype(np.uint8),
        steps,
    )
    run.figure(f"invariance_{transform}", figure)


def describe(transform: Transform, result: Invariance, shown: int) -> dict[str, Any]:
    """Summarize a transformation for metrics.json."""
    amounts, start = result.amounts, IDENTITY[transform]
    near = float(np.abs(amounts - start).max()) / 2
    layers = {}
    for layer, distances in result.distances.items():
        mean, relative = distances.mean(0), result.relative[layer]
        layers[layer] = {
            "distance": mean,
            "distance_spread": spread(distances),
            "distance_of_each_shown": distances[:shown],
            "relative": relative.mean(0),
            "relative_spread": spread(relative),
            "relative_of_each_shown": relative[:shown],
            "linearity_of_small": linearity(amounts, mean, start, near),
        }
    return {
        "amounts": amounts,
        "layers": layers,
        "probability": result.probability.mean(0),
        "probability_spread": spread(result.probability),
        "probability_of_each_shown": result.probability[:shown],
    }


def _is_full_turn(amounts: np.ndarray) -> bool:
    """Tell whether the amounts are even steps of a full turn, enough for all folds."""
    return (
        len(amounts) > 2 * max(_FOLDS)
        and amounts[-1] - amounts[0] == 360
        and np.allclose(np.diff(amounts), 360 / (len(amounts) - 1), atol=1e-3)
    )


def measure_periods(
    result: Invariance, which: Any = slice(None)
) -> dict[str, dict[str, float]]:
    """Measure how much of the mean curve of some images repeats, by layer and fold."""
    return {
        layer: {
            str(fold): periodicity(curves[which, :-1].mean(0), fold) for fold in _FOLDS
        }
        for layer, curves in result.distances.items()
    }


if __name__ == "__main__":
    sys.exit(main(invariance))
