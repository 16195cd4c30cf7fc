"""Features as an image is shifted, enlarged and turned: Fig. 5 of the paper.

    python -m experiments.invariance --transform rotate

For each transformation, of five images and on average over many: the distance of the
features of the first and of the last hidden layer to those of the untransformed image,
relative to their length, and the probability of the true class. metrics.json also holds
the distances themselves, and a number for each claim of the paper: R² of a line through
the small transformations, and the share of the rotation curve, over all images and of
each class, that repeats 2, 3, 4 or 5 times in a full turn.

The paper: the first layer changes at once; the last is stable, quasi-linear for
translation and scaling, and not invariant to rotation but for objects with rotational
symmetry. Expected with the shipped weights over 200 test images of CIFAR-10, in about a
minute on two CPU cores: at a shift of 2 pixels conv1 has moved by 0.89 of its length
and fc7 by 0.17; R² of fc7 0.91 for translation and 0.92 for scale; turned by 45°, the
probability of the true class falls from 0.82 to 0.36.
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
from zfnet_jax import viz
from zfnet_jax.analysis import (
    IDENTITY,
    Border,
    Invariance,
    Transform,
    check_values,
    invariance,
    linearity,
    periodicity,
    transformed,
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
    """Which transformation: translate is vertical, as in the paper."""
    values: str | None = None
    """Degrees of a single transformation, as in 0,15,30; if not given, as in the paper:
    shifts of up to 60 in 224 pixels of the image's size up and down, by whole pixels,
    1 to 1.8 times, 0 to 360 degrees."""
    layers: str | None = None
    """Layers, as in conv1,fc7; if not given, the first and the last hidden one."""
    border: Border = "reflect"
    """What lies outside the image: its reflection, its edge, or the mean image."""
    images: int = 200
    """How many images make the mean."""
    shown: int = 5
    """How many of them are drawn, 5 at most."""
    out: Path = Path("results/invariance")
    """Folder for results; files of the same names are replaced."""


def run(options: Options) -> None:
    """Transform, compare, draw and write everything down."""
    at_least(1, options, "images", "shown", "limit")
    if options.values is not None and options.transform == "all":
        raise UsageError("--values are of one transformation: say which one")
    results = Results(options.out)
    net = options.network()
    arch = net.model.arch
    values = {
        name: degrees(name, options.values, arch.input_hw[0])
        for name in get_args(Transform)
        if options.transform in (name, "all")
    }
    layers = None if options.layers is None else named_layers(arch, options.layers)
    dataset = options.known_images(net, options.images)
    count = len(dataset)
    shown = min(options.shown, count, 5)
    pictures = net.preprocess.pictures(dataset.images)
    middle = mean_picture(net).astype(np.float32)
    images = np.asarray(net.preprocess(dataset.images))
    metrics = {}
    total = len(values) * count
    with Progress("transforming", total, unit="image", every=32) as progress:
        for done, (transform, chosen) in enumerate(values.items()):
            found = invariance(
                net.model,
                images,
                dataset.labels,
                transform,
                chosen,
                layers,
                border=options.border,
                progress=lambda images, done=done: progress.update(
                    done * count + images
                ),
            )
            shares = np.linspace(0, len(chosen) - 1, min(7, len(chosen)))
            steps = chosen[shares.round().astype(int)]
            moved = [
                middle
                + transformed(
                    pictures[:shown] - middle, transform, float(step), options.border
                )
                for step in steps
            ]
            curves = {f"relative distance at {x}": y for x, y in found.relative.items()}
            figure, _ = viz.invariance_curves(
                f"{transform}: distances relative to an image's own features, "
                f"{arch.name}",
                _UNITS[transform],
                chosen,
                {**curves, "probability of the true class": found.probability},
                shown,
                [dataset.class_names[x] for x in dataset.labels[:shown]],
                np.rint(np.stack(moved, 1)).clip(0, 255).astype(np.uint8),
                steps.tolist(),
            )
            results.figure(f"invariance_{transform}", figure)
            metrics[transform] = described(transform, found, shown)
            if _full_turn(transform, found):
                metrics[transform]["periodicity_by_class"] = {
                    dataset.class_names[label]: periodicities(
                        found, np.flatnonzero(dataset.labels == label)
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
    # Nothing here is random.
    results.manifest(seed=0, digests=options.digests(dataset))
    print(
        f"{counted(len(values), 'transformation')} of {counted(count, 'image')}; "
        f"figures in {results.path}"
    )


def degrees(transform: Transform, text: str | None, height: int) -> np.ndarray:
    """Degrees as given; else the paper's, shifts by whole pixels in proportion."""
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
        found = np.array([float(part) for part in text.split(",")])
    except ValueError:
        found = np.array([np.nan])
    if not np.isfinite(found).all():
        raise UsageError(f"--values {text} must be numbers, as in 0,15,30")
    check_values(transform, found, height)
    return found.astype(np.float32)


def described(transform: Transform, found: Invariance, shown: int) -> dict[str, Any]:
    """What the metrics say of a transformation."""
    far = np.abs(found.values - IDENTITY[transform])
    near = float(far.max()) / 2
    layers = {}
    for layer, curves in found.distances.items():
        mean = curves.mean(0)
        layers[layer] = {
            "distance": mean,
            "spread": curves.std(0),
            "relative": found.relative[layer].mean(0),
            "relative_spread": found.relative[layer].std(0),
            "distance_of_each_shown": curves[:shown],
            "relative_of_each_shown": found.relative[layer][:shown],
            "linearity_of_small": _finite(
                linearity(found.values, mean, IDENTITY[transform], near)
            ),
        }
    metrics = {
        "values": found.values,
        "layers": layers,
        "probability": found.probability.mean(0),
        "probability_spread": found.probability.std(0),
        "probability_of_each_shown": found.probability[:shown],
    }
    if _full_turn(transform, found):
        metrics["periodicity"] = periodicities(found, np.arange(len(found.probability)))
    return metrics


def _full_turn(transform: Transform, found: Invariance) -> bool:
    """Whether curves show how features repeat as an image turns."""
    turns = found.values
    return (
        transform == "rotate"
        and len(turns) > 2 * max(_FOLDS)
        and turns[-1] - turns[0] == 360
        and np.allclose(np.diff(turns), 360 / (len(turns) - 1), atol=1e-3)
    )


def periodicities(
    found: Invariance, images: np.ndarray
) -> dict[str, dict[str, float | None]]:
    """By layer and number of folds, how much of some images' mean curve repeats."""
    return {
        layer: {
            str(fold): _finite(periodicity(curves[images, :-1].mean(0), fold))
            for fold in _FOLDS
        }
        for layer, curves in found.distances.items()
    }


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


if __name__ == "__main__":
    sys.exit(main(run, Options))
