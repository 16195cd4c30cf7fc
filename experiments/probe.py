"""How well the features of each layer tell classes: Table 7 of the paper.

    python -m experiments.probe

On the features of each layer with a ReLU a linear SVM and a softmax are trained, while
the network stays as it is; validation images pick the penalty, and others test. On the
images that the network learned from its features are too good, so all three parts are
cut from the test images, without overlap, and anew for each repeat. Beside the layers
stand the pixels, and the same architecture with random weights.

Expected with the shipped weights, 1,000 images to train, 500 to validate and 1,000 to
test, in 1.9 GB of memory and about two minutes on two CPU cores: the SVM gets 33% right
on pixels, 45% at conv1, 80% at conv5 and 85% at fc7, as many as the network itself;
with random weights 42% at best. The paper, on Caltech-101 and 256: accuracy rises with
depth.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from flax import nnx
from matplotlib.figure import Figure

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
from zfnet_jax import viz
from zfnet_jax.analysis import (
    PENALTIES,
    Classifier,
    Probe,
    balanced_order,
    layer_features,
    probe,
)
from zfnet_jax.arch import Architecture, Conv, Dense
from zfnet_jax.model import ConvNet

PIXELS = "pixels"
_NAMES: dict[Classifier, str] = {"svm": "SVM", "softmax": "softmax"}

Probes = dict[str, dict[Classifier, Probe]]  # by layer

# Percent right in Table 7, of a network that learned on ImageNet; layer 6 is not there.
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
    """Layers, as in conv1,fc7; if not given, all that have a ReLU."""
    train_images: int | None = None
    """How many images train; if not given, 1,000, or 1 in 3 where there are few."""
    validation_images: int | None = None
    """How many pick the penalty; if not given, 500, or 1 in 6 where there are few."""
    images: int | None = None
    """How many images test; if not given, 1,000, or 1 in 3 where there are few."""
    penalties: str | None = None
    """What to pick from, as in 0.1,0.01; if not given, powers of ten from 1 to 1e-5."""
    repeats: int = 2
    """How often to draw images; the random network sees the first draw only."""
    limit: int | None = None
    """Take at most N images to train, N to validate and N to test."""
    seed: int = 0
    """Of the first draw and of the random network; each further draw takes the next."""
    out: Path = Path("results/probe")
    """Folder for results; files of the same names are replaced."""


def run(options: Options) -> None:
    """Draw images, probe every layer, draw the curves and write everything down."""
    counts = ("train_images", "validation_images", "images")
    at_least(1, options, *counts, "repeats", "limit")
    at_least(0, options, "seed")
    penalties = strengths(options.penalties)
    results = Results(options.out)
    net = options.network()
    arch = net.model.arch
    layers = probed_layers(arch, options.layers)
    name = options.dataset or trained_on(net)
    dataset = load_dataset(name, "test", options.data_dir)
    train, validation, test = parts(options, len(dataset), len(dataset.class_names))

    found: dict[str, list[Probes]] = {"trained": [], "random": []}
    own = []
    total = options.repeats * (1 + len(layers)) + len(layers)
    with Progress("probing", total, unit="layer") as progress:
        done = itertools.count(1)
        for repeat in range(options.repeats):
            seed = options.seed + repeat
            order = balanced_order(dataset.labels, seed)[: train + validation + test]
            images = np.asarray(net.preprocess(dataset.images[order]))
            labels = dataset.labels[order]

            def probed(features: dict[str, np.ndarray], labels=labels) -> Probes:
                probes: Probes = {}
                for layer in [*features]:
                    # Popped, so that its memory is free once it is done.
                    probes[layer] = probe(
                        features.pop(layer),
                        labels,
                        train,
                        validation,
                        penalties=penalties,
                    )
                    progress.update(next(done))
                return probes

            pixels = probed({PIXELS: images.reshape(len(images), -1)})
            models = {"trained": net.model}
            if repeat == 0:
                models["random"] = ConvNet(arch, rngs=nnx.Rngs(seed))
            for which, model in models.items():
                probes = probed(layer_features(model, images, layers))
                found[which].append({**pixels, **probes})
            logits = layer_features(net.model, images[-test:], ["logits"])["logits"]
            own.append(float((logits.argmax(1) == labels[-test:]).mean()))

    chance = 1 / len(dataset.class_names)
    levels = {"chance": chance}
    same = net.class_names == dataset.class_names
    if same:
        levels["the network itself"] = float(np.mean(own))
    results.figure("probe", drawn(arch, found, levels))
    results.metrics(
        {
            "architecture": arch.name,
            "data": dataset.source,
            "images": {"train": train, "validation": validation, "test": test},
            "repeats": options.repeats,
            "penalties": penalties,
            "chance": chance,
            "network_accuracy_of_each": own if same else None,
            "probes": {which: described(probes) for which, probes in found.items()},
            "paper_percent": TABLE_7,
        }
    )
    results.config(options)
    results.manifest(seed=options.seed, digests=options.digests(dataset))
    mean = {x: _accuracies(found["trained"], x, "svm").mean() for x in layers}
    best = max(mean, key=lambda layer: mean[layer])
    print(
        f"{counted(len(layers), 'layer')}, {counted(options.repeats, 'repeat')}; the "
        f"SVM is best at {best}: {mean[best]:.2%} right; figure in {results.path}"
    )


def strengths(text: str | None) -> list[float]:
    """Penalties as given, or the usual ones."""
    if text is None:
        return list(PENALTIES)
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = [0.0]
    if not all(1e-9 <= penalty <= 1e9 for penalty in found):
        raise UsageError(
            f"--penalties {text} must be numbers from 1e-9 to 1e9, as in 0.1,0.01"
        )
    return found


def parts(options: Options, available: int, classes: int) -> tuple[int, int, int]:
    """How many images train, validate and test, of so many."""
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
            f"{counted(train, 'image')} to train cannot show all {classes} classes; "
            "raise --train-images or --limit"
        )
    if (asked := train + validation + test) > available:
        raise UsageError(
            f"--train-images {train}, --validation-images {validation} and --images "
            f"{test} are {asked} images together: there are {available}"
        )
    return train, validation, test


def probed_layers(arch: Architecture, text: str | None) -> list[str]:
    """The layers that are named, or all those with a ReLU, from the image up."""
    chosen = chosen_layers(arch, text, (Conv, Dense))
    return chosen if text is not None else [x for x in chosen if x != "logits"]


def drawn(
    arch: Architecture, found: Mapping[str, list[Probes]], levels: Mapping[str, float]
) -> Figure:
    """The curves, beside those of the paper."""
    layers, repeats = list(found["trained"][0]), len(found["trained"])
    ours = {
        name + ending: np.stack(
            [_accuracies(found[which], layer, classifier) for layer in layers], 1
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


def described(probes: Sequence[Probes]) -> dict[str, dict[str, object]]:
    """What the metrics say of a network's layers."""
    told: dict[str, dict[str, object]] = {}
    for layer in probes[0]:
        told[layer] = {}
        for classifier in _NAMES:
            each = [repeat[layer][classifier] for repeat in probes]
            accuracies = _accuracies(probes, layer, classifier)
            told[layer][classifier] = {
                "accuracy": accuracies.mean(),
                "spread": accuracies.std(),
                "accuracy_of_each": accuracies,
                "penalty_of_each": [found.penalty for found in each],
                "training_by_penalty": np.mean([x.training for x in each], 0),
                "validation_by_penalty": np.mean([x.validation for x in each], 0),
                "objective_gap": max(found.gap for found in each),
            }
    return told


def _accuracies(
    probes: Sequence[Probes], layer: str, classifier: Classifier
) -> np.ndarray:
    return np.array([repeat[layer][classifier].accuracy for repeat in probes])


if __name__ == "__main__":
    sys.exit(main(run, Options))
