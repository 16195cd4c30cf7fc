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
in about a minute on two CPU cores: at a shift of 2 pixels conv1 has moved by 0.89 of
its length and fc7 by 0.17; R² of fc7 is 0.91 for translation and 0.92 for scale;
rotated by 45°, the probability of the true class falls from 0.82 to 0.36.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from experiments.common import (
    ImageOptions,
    Progress,
    Results,
    UsageError,
    at_least,
    counted,
    main,
    mean_picture,
    named_layers,
)
from zfnet_jax.analysis.invariance import (
    IDENTITY,
    Border,
    Invariance,
    Transform,
    check_amounts,
    invariance,
    linearity,
    periodicity,
    transform_images,
)

_UNITS = {
    "translate": "pixels down",
    "scale": "times larger",
    "rotate": "degrees counter-clockwise",
}
_STEPS, _FOLDS = 25, (2, 3, 4, 5)


@dataclasses.dataclass(frozen=True)
class Options(ImageOptions):
    """Draw how features move as images are transformed."""

    transform: Literal["translate", "scale", "rotate", "all"] = "all"
    """Which transformation; translate is vertical, as in the paper."""
    values: str | None = None
    """Amounts of a single transformation, as in 0,15,30; by default the paper's: shifts
    of up to 60 of 224 pixels up and down, in proportion to the image's size and by
    whole pixels; 1 to 1.8 times; 0 to 360 degrees."""
    layers: str | None = None
    """Layers, as in conv1,fc7; by default the first and the last hidden one."""
    border: Border = "reflect"
    """Source of pixels outside the image: its reflection, its edge, or the mean image
    (zero)."""
    images: int = 200
    """Number of images to average over."""
    shown: int = 5
    """Number of them to draw, at most 5."""
    out: Path = Path("results/invariance")
    """Folder for results; files of the same names are replaced."""


def run(options: Options) -> None:
    """Transform, compare, draw and write the results."""
    from zfnet_jax import viz

    at_least(1, options, "images", "shown", "limit")
    if options.values is not None and options.transform == "all":
        raise UsageError("--values needs a single --transform")
    results = Results(options.out)
    net = options.network()
    arch = net.model.arch
    amounts_by_transform = {
        name: choose_amounts(name, options.values, arch.input_hw[0])
        for name in get_args(Transform)
        if options.transform in (name, "all")
    }
    layers = None if options.layers is None else named_layers(arch, options.layers)
    dataset = options.known_images(net, options.images)
    count = len(dataset)
    shown = min(options.shown, count, 5)
    names = [dataset.class_names[label] for label in dataset.labels[:shown]]
    middle = mean_picture(net).astype(np.float32)
    pictures = net.preprocess.pictures(dataset.images[:shown]) - middle
    images = net.preprocess(dataset.images)
    metrics = {}
    total = len(amounts_by_transform) * count
    with Progress("transforming", total, unit="image", every=32) as progress:
        for index, (transform, amounts) in enumerate(amounts_by_transform.items()):
            result = invariance(
                net,
                images,
                dataset.labels,
                transform,
                amounts,
                layers=layers,
                border=options.border,
                progress=lambda done, _, start=index * count: progress.update(
                    start + done
                ),
            )
            places = np.linspace(0, len(amounts) - 1, min(7, len(amounts)))
            steps = amounts[places.round().astype(int)]
            moved = [
                middle
                + transform_images(
                    pictures, transform, float(step), border=options.border
                )
                for step in steps
            ]
            curves = {
                f"relative distance at {x}": y for x, y in result.relative.items()
            }
            figure, _ = viz.invariance_curves(
                f"{transform}: distances relative to an image's own features, "
                f"{arch.name}",
                _UNITS[transform],
                amounts,
                {**curves, "probability of the true class": result.probability},
                shown,
                names,
                np.rint(np.stack(moved, 1)).clip(0, 255).astype(np.uint8),
                steps.tolist(),
            )
            results.figure(f"invariance_{transform}", figure)
            metrics[transform] = describe(transform, result, shown)
            if _is_full_turn(transform, amounts):
                metrics[transform]["periodicity_by_class"] = {
                    dataset.class_names[label]: measure_periods(
                        result, np.flatnonzero(dataset.labels == label)
                    )
                    for label in np.unique(dataset.labels)
                }
    results.metrics(
        {
            "architecture": arch.name,
            "data": dataset.source,
            "images": count,
            "border": options.border,
            "transforms": metrics,
        }
    )
    results.config(options)
    results.manifest(seed=0, digests=options.digests(dataset))  # nothing is random
    print(
        f"{counted(len(metrics), 'transformation')} of {counted(count, 'image')}; "
        f"figures in {results.path}"
    )


def choose_amounts(transform: Transform, text: str | None, height: int) -> np.ndarray:
    """Amounts of a transformation as given, by default the paper's."""
    if text is None:
        return {
            # Between pixels, interpolation alone would blur the image.
            "translate": np.unique(
                np.round(np.linspace(-60, 60, _STEPS) * height / 224)
            ),
            "scale": np.linspace(1, 1.8, _STEPS),
            "rotate": np.linspace(0, 360, _STEPS),
        }[transform].astype(np.float32)
    try:
        amounts = np.array([float(part) for part in text.split(",")])
    except ValueError:
        amounts = np.array([np.nan])
    if not np.isfinite(amounts).all():
        raise UsageError(f"--values {text} must be numbers, as in 0,15,30")
    return check_amounts(transform, amounts, height)


def describe(transform: Transform, result: Invariance, shown: int) -> dict[str, Any]:
    """Metrics of a transformation."""
    amounts = result.amounts
    near = float(np.abs(amounts - IDENTITY[transform]).max()) / 2
    layers = {}
    for layer, curves in result.distances.items():
        mean, relative = curves.mean(0), result.relative[layer]
        layers[layer] = {
            "distance": mean,
            "spread": curves.std(0),
            "relative": relative.mean(0),
            "relative_spread": relative.std(0),
            "distance_of_each_shown": curves[:shown],
            "relative_of_each_shown": relative[:shown],
            "linearity_of_small": _finite(
                linearity(amounts, mean, IDENTITY[transform], near)
            ),
        }
    metrics = {
        "values": amounts,
        "layers": layers,
        "probability": result.probability.mean(0),
        "probability_spread": result.probability.std(0),
        "probability_of_each_shown": result.probability[:shown],
    }
    if _is_full_turn(transform, amounts):
        everything = np.arange(len(result.probability))
        metrics["periodicity"] = measure_periods(result, everything)
    return metrics


def _is_full_turn(transform: Transform, amounts: np.ndarray) -> bool:
    """Whether the amounts show how features repeat during a rotation."""
    return (
        transform == "rotate"
        and len(amounts) > 2 * max(_FOLDS)
        and amounts[-1] - amounts[0] == 360
        and np.allclose(np.diff(amounts), 360 / (len(amounts) - 1), atol=1e-3)
    )


def measure_periods(
    result: Invariance, images: np.ndarray
) -> dict[str, dict[str, float | None]]:
    """Share of some images' mean curve that repeats, by layer and number of folds."""
    return {
        layer: {
            str(fold): _finite(periodicity(curves[images, :-1].mean(0), fold))
            for fold in _FOLDS
        }
        for layer, curves in result.distances.items()
    }


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


if __name__ == "__main__":
    sys.exit(main(run, Options))
