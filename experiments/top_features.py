"""The nine strongest activations of units, projected to pixels: Fig. 2 of the paper.

    python -m experiments.top_features --layers conv3 --units 5 22

For each layer a random subset of its units, or those named: patches of the images in
the receptive fields of each unit's strongest activations, at most one per image, beside
the projections of these activations. Expected with the shipped weights over the 10,000
test images of CIFAR-10: about a minute on two CPU cores. A killed search resumes,
losing at most a minute. The result folder holds a figure for each layer and
metrics.json, with images, positions, activations and classes.
"""

from __future__ import annotations

import shutil
import sys
from typing import Any, Literal

import numpy as np

from experiments.harness import Metrics, Positive, main
from experiments.inputs import Images, SharedRun, average_known
from experiments.progress import plural
from zfnet_jax.analysis.mining import TopActivations, top_activations
from zfnet_jax.files import slug
from zfnet_jax.relu_rules import Rule
from zfnet_jax.results import spell
from zfnet_jax.viz.contrast import Contrast, Scale, display_projections


def top_features(
    run: SharedRun,
    layers: tuple[str, ...] = (),
    units: tuple[int, ...] = (),
    count: Positive = 15,
    k: Positive = 9,
    limit: Positive | None = None,
    rule: Rule = "deconvnet",
    scale: Scale = "patch",
    contrast: Contrast = "99.5",
    split: Literal["train", "test"] = "test",
) -> Metrics:
    """Draw the strongest activations of units over a set of images.

    Args:
        layers: Layers, by default every convolution.
        units: Units of a single layer, by default random ones.
        count: Random units per layer.
        k: Activations per unit, each from another image.
        limit: Images at most, by default all.
        rule: Backward rule for ReLUs.
        scale: Projections that share a display scale: none (patch), those of a unit, or
            all of a layer.
        contrast: Percentile of the magnitudes that is shown as black and white.
        split: Split of the dataset or records to search.
    """
    names = run.net.select(layers or run.default_layers())
    run.check_units(names, units)
    images = run.images(limit, split)
    labels = images.labels if run.has_labels_for(images) else None
    partial = run.path / ".search"
    tops = top_activations(
        run.net,
        images,
        names,
        k=k,
        labels=labels,
        partial=partial,
        progress=run.progress("searching"),
    )
    if not run.is_first:
        return
    results = {}
    for layer, top in run.track("projecting", tops.items()):
        live = np.flatnonzero(~top.dead)
        chosen = run.select_units(units, count, layer, live)
        scales = draw(run, images, top, chosen, rule, scale, contrast)
        results[layer] = describe(images, top, chosen)
        for unit, values in zip(results[layer]["drawn"], scales, strict=True):
            unit["scales"] = values
    shutil.rmtree(partial, ignore_errors=True)
    yield from run.describe_data(images)
    yield "layers", results


def draw(
    run: SharedRun,
    images: Images,
    top: TopActivations,
    units: np.ndarray,
    rule: Rule,
    scale: Scale,
    contrast: Contrast,
) -> np.ndarray:
    """Project and draw some units of a layer; return their display scales [u, k]."""
    from zfnet_jax.viz.top_features import top_features

    projections = top.project(run.net, images, units, rule=rule)
    figure = top_features(
        f"Strongest activations of {top.layer} in {run.network_name}: "
        f"{len(units)} of {plural(len(top.dead), 'unit')}",
        [(f"unit {unit}", describe_activity(top, unit)) for unit in units],
        images.pictures[projections.images],
        projections.boxes,
        projections.pixels,
        scale,
        contrast,
    )
    run.figure(f"top_{slug(top.layer)}", figure)
    scales = display_projections(projections.pixels, projections.units, scale, contrast)
    return scales[1].reshape(len(units), -1)


def describe_activity(top: TopActivations, unit: int) -> str:
    """Describe how strongly and how often a unit is active."""
    if top.dead[unit]:
        return "dead: never active"
    (first, last), share = top.activations[unit, [0, -1]], top.active[unit]
    return (
        f"activation {spell(first)} to {spell(last)}, active in {share:.0%} of images"
    )


def describe(images: Images, top: TopActivations, units: np.ndarray) -> dict[str, Any]:
    """Summarize a layer for metrics.json."""
    metrics: dict[str, Any] = {
        "units": len(top.dead),
        "dead": np.flatnonzero(top.dead),
        "median_active": np.median(top.active),
        "drawn": [
            {
                "unit": unit,
                "activations": top.activations[unit],
                "images": top.images[unit],
                "positions": top.positions[unit],
                "active": top.active[unit],
                "mean": top.mean[unit],
            }
            for unit in units
        ],
    }
    if images.labels is None or images.class_names is None:
        return metrics
    names = images.class_names
    selectivity = top.selectivity[~np.isnan(top.selectivity)]
    labels = images.labels[top.images[~top.dead]]
    shares = (labels[..., None] == np.arange(len(names))).mean(1).max(-1)
    metrics["median_selectivity"] = np.median(selectivity) if selectivity.size else None
    metrics["mean_share_of_one_class"] = average_known(shares)
    metrics["three_quarters_of_one_class"] = average_known(shares >= 0.75)
    for unit in metrics["drawn"]:
        index = unit["unit"]
        unit["classes"] = [names[x] for x in images.labels[top.images[index]]]
        means = zip(names, top.class_means[index], strict=False)
        unit["class_means"] = {name: x for name, x in means if np.isfinite(x)}
    return metrics


if __name__ == "__main__":
    sys.exit(main(top_features))
