"""Features over training: Fig. 4 of the paper.

    python -m experiments.train_cifar10 --keep-epochs 1 2 5 10 --out results/run
    python -m experiments.evolution --run results/run

For some units of each layer, the strongest activation over the training images at each
kept epoch: its patch and its projection. A bar marks where the image differs from the
one before. motion.png shows how much each layer's features still change from one
checkpoint to the next; the paper finds that lower layers converge first. Expected over
50,000 images of CIFAR-10 and six checkpoints: ten minutes; `--limit` makes it quick.

With `--model`, its function is called with each of the files RUN/epochs/epoch_N.*.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments.harness import Metrics, Positive, UserError, main
from experiments.inputs import Images, NetworkRun
from experiments.progress import plural
from zfnet_jax.analysis.evolution import Evolution, motion
from zfnet_jax.analysis.evolution import evolution as follow
from zfnet_jax.files import DataNotFoundError, slug
from zfnet_jax.relu_rules import Rule
from zfnet_jax.viz.contrast import Contrast


def evolution(
    job: NetworkRun,
    run: Path = Path("results/train_cifar10"),
    layers: tuple[str, ...] = (),
    units: tuple[int, ...] = (),
    count: Positive = 6,
    limit: Positive | None = None,
    sample: Positive = 500,
    rule: Rule = "deconvnet",
    contrast: Contrast = "99.5",
    split: Literal["train", "test"] = "train",
) -> Metrics:
    """Draw how features develop during training.

    Args:
        run: Folder of a training run with --keep-epochs.
        layers: Layers, by default every convolution.
        units: Units of a single layer, by default random ones.
        count: Random units per layer.
        limit: Images at most to search, by default all.
        sample: Images on which features are compared from checkpoint to checkpoint.
        rule: Backward rule for ReLUs.
        contrast: Percentile of the magnitudes that is shown as black and white.
        split: Split of the dataset to search; the paper searches the training images.
    """
    from zfnet_jax.viz.evolution import motion_chart

    if job.weights is not None:
        raise UserError("--weights: the weights are those of --run; omit it")
    files = list_epochs(run)
    jobs = {
        epoch: dataclasses.replace(job, weights=str(file))
        for epoch, file in files.items()
    }
    networks = {epoch: step.net for epoch, step in jobs.items()}
    last = jobs[max(jobs)]
    names = last.net.select(layers or last.default_layers())
    last.check_units(names, units)
    images = last.images(limit, split)
    job.digests |= {
        f"epoch {epoch}": step.digests["weights"] for epoch, step in jobs.items()
    }
    job.digests["data"] = last.digests["data"]

    courses = follow(networks, images, names, progress=job.progress("searching"))
    compared = images[np.arange(min(sample, len(images)))]
    motions = motion(networks, compared, names)
    moved = {layer: average_motion(values) for layer, values in motions.items()}
    results = {}
    for layer, course in job.track("projecting", courses.items()):
        alive = np.flatnonzero(~course.dead.any(0))
        chosen = last.select_units(units, count, layer, alive)
        figure = draw(last, networks, images, course, chosen, rule, contrast)
        job.figure(f"evolution_{slug(layer)}", figure)
        results[layer] = describe(course, chosen) | {"motion": moved[layer]}
    job.figure("motion", motion_chart(last.network_name, list(networks), moved))
    yield from last.describe_data(images)
    yield "epochs", list(networks)
    yield "rule", rule
    yield "layers", results


def list_epochs(folder: Path) -> dict[int, Path]:
    """Weight files of single epochs in the folder of a run, in order."""
    if not folder.is_dir():
        raise DataNotFoundError(f"--run {folder}: there is no such folder")
    files = {}
    for file in folder.glob("epochs/epoch_*"):
        if match := re.match(r"epoch_(\d+)\.", file.name):
            files[int(match[1])] = file
    if len(files) < 2:
        raise DataNotFoundError(
            f"--run {folder}: it kept {plural(len(files), 'epoch')}, and at least 2 "
            "are needed; train with --keep-epochs 1 2 5 10"
        )
    return dict(sorted(files.items()))


def average_motion(motion: np.ndarray) -> np.ndarray:
    """Average over the units that vary; a layer of none counts as unrelated, 1."""
    varies = ~np.isnan(motion)
    sums = np.where(varies, motion, 0).sum(1)
    return np.where(varies.any(1), sums / varies.sum(1).clip(1), 1)


def draw(
    last: NetworkRun,
    networks: dict[int, Any],
    images: Images,
    course: Evolution,
    units: np.ndarray,
    rule: Rule,
    contrast: Contrast,
) -> Any:
    """Project and draw some units of a layer."""
    from zfnet_jax.viz.evolution import evolution_grid

    projections = course.project(networks, images, units, rule=rule)
    return evolution_grid(
        f"{course.layer} of {last.network_name} during training",
        course.epochs,
        units.tolist(),
        course.activations[:, units].T,
        course.jumps[:, units].T,
        images.pictures[projections.images],
        projections.boxes,
        projections.pixels,
        contrast,
    )


def describe(course: Evolution, units: np.ndarray) -> dict[str, Any]:
    """Summarize a layer for metrics.json."""
    return {
        "jumps": course.jumps[1:].mean(1),
        "drawn": [
            {
                "unit": unit,
                "activations": course.activations[:, unit],
                "images": course.images[:, unit],
                "positions": course.positions[:, unit],
            }
            for unit in units
        ],
    }


if __name__ == "__main__":
    sys.exit(main(evolution))
