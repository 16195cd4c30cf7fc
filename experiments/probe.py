"""How well a linear classifier reads the classes off each layer: Table 7 of the paper.

    python -m experiments.probe

A linear SVM and a softmax are trained on the features of each layer with a ReLU, while
the network stays as it is. Validation images select the penalty, others test. The
features of the images that the network was trained on are too good, so all three parts
are cut from the test images, without overlap, and anew in each repeat. The pixels and
the same architecture with random weights are probed alongside the layers.

Expected with the shipped weights, 1,000 images to train, 500 to validate and 1,000 to
test, in 1.9 GB of memory and about two minutes on two CPU cores: the SVM classifies 33%
correctly on pixels, 45% at conv1, 80% at conv5 and 85% at fc7, as many as the network
itself; with random weights 42% at best. The paper, on Caltech-101 and 256: accuracy
rises with depth.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from flax import nnx

from experiments.common import (
    ImageOptions,
    Progress,
    Results,
    UsageError,
    at_least,
    chosen_layers,
    counted,
    load_dataset,
    main,
    trained_on,
)
from zfnet_jax.analysis.probe import (
    PENALTIES,
    Classifier,
    Probe,
    balance_order,
    probe,
    probe_features,
)
from zfnet_jax.arch import Architecture, Conv, Dense
from zfnet_jax.model import ConvNet
from zfnet_jax.weights import Pretrained

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PIXELS = "pixels"
_NAMES: dict[Classifier, str] = {"svm": "SVM", "softmax": "softmax"}

Probes = dict[str, dict[Classifier, Probe]]  # by layer

# Percent correct in Table 7, of a network trained on ImageNet; it has no layer 6.
_DEPTHS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc7")
TABLE_7 = {
    "Caltech-101": {
        "svm": dict(zip(_DEPTHS, (44.8, 66.2, 72.3, 76.6, 86.2, 85.5), strict=True)),
        "softmax": {"conv5": 82.9, "fc7": 85.4},
    },
    "Caltech-256": {
        "svm": dict(zip(_DEPTHS, (24.6, 39.6, 46.0, 51.3, 65.6, 71.7), strict=True)),
        "softmax": {"conv5": 65.7, "fc7": 72.6},
    },
}


@dataclasses.dataclass(frozen=True)
class Options(ImageOptions):
    """Train linear classifiers on the features of each layer."""

    layers: str | None = None
    """Layers, as in conv1,fc7; by default all that have a ReLU."""
    train_images: int | None = None
    """Training images; by default 1,000, or a third of the images if that is less."""
    validation_images: int | None = None
    """Images that select the penalty; by default 500, or a sixth if that is less."""
    images: int | None = None
    """Test images; by default 1,000, or a third if that is less."""
    penalties: str | None = None
    """Penalties to select from, as in 0.1,0.01; by default powers of ten from 1 to
    1e-5."""
    repeats: int = 2
    """Number of draws of images; the random network is probed on the first only."""
    limit: int | None = None
    """Use at most N images to train, N to validate and N to test."""
    seed: int = 0
    """Seed for the first draw and the random network; each further draw takes the
    next."""
    out: Path = Path("results/probe")
    """Folder for results; files of the same names are replaced."""


def run(options: Options) -> None:
    """Draw images, probe every layer, draw the curves and write the results."""
    counts = ("train_images", "validation_images", "images")
    at_least(1, options, *counts, "repeats", "limit")
    at_least(0, options, "seed")
    penalties = parse_penalties(options.penalties)
    results = Results(options.out)
    net = options.network()
    arch = net.model.arch
    layers = select_layers(arch, options.layers)
    name = options.dataset or trained_on(net)
    dataset = load_dataset(name, "test", options.data_dir)
    train, validation, test = split(options, len(dataset), len(dataset.class_names))

    probes: dict[str, list[Probes]] = {"trained": [], "random": []}
    accuracies = []
    total = options.repeats * (1 + len(layers)) + len(layers)
    with Progress("probing", total, unit="layer") as progress:
        done = 0
        for repeat in range(options.repeats):
            seed = options.seed + repeat
            order = balance_order(dataset.labels, seed)[: train + validation + test]
            images, labels = (
                net.preprocess(dataset.images[order]),
                dataset.labels[order],
            )
            flat = images.reshape(len(images), -1)
            pixels = probe_features(
                flat, labels, train, validation, penalties=penalties
            )
            done += 1
            progress.update(done)
            models: dict[str, Pretrained | ConvNet] = {"trained": net}
            if repeat == 0:
                models["random"] = ConvNet(arch, rngs=nnx.Rngs(seed))
            for which, model in models.items():
                by_layer = probe(
                    model,
                    images,
                    labels,
                    layers=layers,
                    train=train,
                    validation=validation,
                    penalties=penalties,
                    progress=lambda layer, _, start=done: progress.update(
                        start + layer
                    ),
                )
                done += len(layers)
                probes[which].append({PIXELS: pixels, **by_layer})
            logits = net.activations(images[-test:], net.output)[net.output]
            accuracies.append(float((logits.argmax(1) == labels[-test:]).mean()))

    chance = 1 / len(dataset.class_names)
    levels = {"chance": chance}
    is_known = net.class_names == dataset.class_names
    if is_known:
        levels["the network itself"] = float(np.mean(accuracies))
    results.figure("probe", draw(arch, probes, levels))
    results.metrics(
        {
            "architecture": arch.name,
            "data": dataset.source,
            "images": {"train": train, "validation": validation, "test": test},
            "repeats": options.repeats,
            "penalties": penalties,
            "chance": chance,
            "network_accuracy_of_each": accuracies if is_known else None,
            "probes": {which: describe(x) for which, x in probes.items()},
            "paper_percent": TABLE_7,
        }
    )
    results.config(options)
    results.manifest(seed=options.seed, digests=options.digests(dataset))
    means = {x: _accuracies(probes["trained"], x, "svm").mean() for x in layers}
    best = max(means, key=lambda layer: means[layer])
    print(
        f"{counted(len(layers), 'layer')}, {counted(options.repeats, 'repeat')}; the "
        f"SVM is best at {best}: {means[best]:.2%} correct; figure in {results.path}"
    )


def parse_penalties(text: str | None) -> list[float]:
    """Penalties as given, by default `PENALTIES`."""
    if text is None:
        return list(PENALTIES)
    try:
        penalties = [float(part) for part in text.split(",")]
    except ValueError:
        penalties = [0.0]
    if not all(1e-9 <= penalty <= 1e9 for penalty in penalties):
        raise UsageError(
            f"--penalties {text} must be numbers from 1e-9 to 1e9, as in 0.1,0.01"
        )
    return penalties


def split(options: Options, available: int, classes: int) -> tuple[int, int, int]:
    """Numbers of images to train, to validate and to test."""
    train, validation, test = (
        min(count, options.limit or count)
        for count in (
            options.train_images or min(1_000, available // 3),
            options.validation_images or min(500, available // 6),
            options.images or min(1_000, available // 3),
        )
    )
    if train < classes:
        raise UsageError(
            f"{counted(train, 'image')} to train cannot cover all {classes} classes; "
            "raise --train-images or --limit"
        )
    if (asked := train + validation + test) > available:
        raise UsageError(
            f"--train-images {train}, --validation-images {validation} and --images "
            f"{test} are {asked} images together: there are {available}"
        )
    return train, validation, test


def select_layers(arch: Architecture, text: str | None) -> list[str]:
    """Layers as given, by default all with a ReLU, in forward order."""
    chosen = chosen_layers(arch, text, (Conv, Dense))
    return chosen if text is not None else [x for x in chosen if x != "logits"]


def draw(
    arch: Architecture, probes: Mapping[str, list[Probes]], levels: Mapping[str, float]
) -> Figure:
    """Draw the curves, and the paper's next to them."""
    from zfnet_jax import viz

    layers, repeats = list(probes["trained"][0]), len(probes["trained"])
    ours = {
        name + ending: np.stack(
            [_accuracies(probes[which], layer, classifier) for layer in layers], 1
        )
        for which, ending in (("trained", ""), ("random", ", random weights"))
        for classifier, name in _NAMES.items()
    }
    paper = {
        f"SVM, {name}": np.array([[*rows["svm"].values()]]) / 100
        for name, rows in TABLE_7.items()
    }
    figure, _ = viz.accuracy_by_layer(
        f"What a linear classifier reads off each layer of {arch.name}",
        f"share of test images right; the mean over {counted(repeats, 'draw')} and one "
        "standard deviation; random weights: one draw",
        {
            "here": (layers, ours),
            "the paper's Table 7": (list(TABLE_7["Caltech-101"]["svm"]), paper),
        },
        levels,
    )
    return figure


def describe(probes: Sequence[Probes]) -> dict[str, dict[str, object]]:
    """Metrics of a network's layers."""
    metrics: dict[str, dict[str, object]] = {}
    for layer in probes[0]:
        metrics[layer] = {}
        for classifier in _NAMES:
            each = [repeat[layer][classifier] for repeat in probes]
            accuracies = _accuracies(probes, layer, classifier)
            metrics[layer][classifier] = {
                "accuracy": accuracies.mean(),
                "spread": accuracies.std(),
                "accuracy_of_each": accuracies,
                "penalty_of_each": [x.penalty for x in each],
                "training_by_penalty": np.mean([x.training for x in each], 0),
                "validation_by_penalty": np.mean([x.validation for x in each], 0),
                "objective_gap": max(x.gap for x in each),
            }
    return metrics


def _accuracies(
    probes: Sequence[Probes], layer: str, classifier: Classifier
) -> np.ndarray:
    return np.array([repeat[layer][classifier].accuracy for repeat in probes])


if __name__ == "__main__":
    sys.exit(main(run, Options))
