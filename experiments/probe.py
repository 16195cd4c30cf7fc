"""Accuracy of a linear classifier on each layer: Table 7 of the paper.

    python -m experiments.probe

A linear SVM and a softmax are trained on the features of each layer with a ReLU, while
the network stays as it is. Validation images select the penalty, others test. The
features of the images that the network was trained on are too good, so all three parts
are cut from the test images, without overlap, and anew in each repeat. The pixels and
the same network with random weights are probed alongside the layers.

Expected with the shipped weights, 1,000 images to train, 500 to validate and 1,000 to
test, in 1.9 GB of memory and about two minutes on two CPU cores: the SVM classifies 33%
correctly on pixels, 44% at conv1, 84% at conv5 and 89% at fc7, as many as the network
itself; with random weights 42% at best. The paper, on Caltech-101 and 256: accuracy
rises with depth.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

import zfnet_jax as zf
from experiments.harness import Metrics, Positive, UserError, main
from experiments.inputs import NetworkRun
from experiments.progress import plural
from zfnet_jax.analysis.probe import (
    PENALTIES,
    Classifier,
    Probe,
    balance_order,
    probe_features,
)
from zfnet_jax.analysis.probe import probe as probe_layers
from zfnet_jax.analysis.sanity import cascade
from zfnet_jax.networks import Network
from zfnet_jax.results import spread

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


def probe(
    run: NetworkRun,
    layers: tuple[str, ...] = (),
    train: Positive | None = None,
    validation: Positive | None = None,
    test: Positive | None = None,
    penalties: tuple[float, ...] = PENALTIES,
    repeats: Positive = 2,
    limit: Positive | None = None,
) -> Metrics:
    """Train linear classifiers on the features of each layer.

    Args:
        layers: Layers, by default all that have a ReLU.
        train: Training images, by default 1,000, or a third of the images if that is
            less.
        validation: Images that select the penalty, by default 500, or a sixth if that
            is less.
        test: Test images, by default 1,000, or a third if that is less.
        penalties: Penalties to select from.
        repeats: Draws of images; the random network is probed on the first only.
        limit: At most this many images to train, to validate and to test.
    """
    net, images = run.net, run.images()
    if images.labels is None:
        raise UserError(f"{images.source} have no classes: give a subfolder for each")
    # A network knows more classes than a folder may have.
    kinds, labels = np.unique(images.labels, return_inverse=True)
    rectified = [name for name, layer in net.layers.items() if layer.rectified]
    chosen = net.select(layers or rectified or list(net.layers))
    parts = split(len(images), len(kinds), (train, validation, test), limit)
    probes: dict[str, list[Probes]] = {"trained": [], "random": []}
    accuracies = []
    for repeat in range(repeats):
        seed = run.seed + repeat
        order = balance_order(labels, seed)[: sum(parts)]
        pixels, classes = net.images(images.take(order)), labels[order]
        cut = {"train": parts[0], "validation": parts[1], "penalties": penalties}
        flat = pixels.reshape(len(pixels), -1)
        on_pixels = {PIXELS: probe_features(flat, classes, **cut)}
        networks = {"trained": net}
        if repeat == 0:
            networks["random"] = randomize(net, seed)
        for which, network in networks.items():
            progress = run.progress(f"probing {which}, draw {repeat + 1} of {repeats}")
            by_layer = probe_layers(
                network, pixels, classes, layers=chosen, progress=progress, **cut
            )
            probes[which].append({**on_pixels, **by_layer})
        logits = net.activations(pixels[-parts[2] :], net.output)[net.output]
        true = kinds[classes[-parts[2] :]]
        accuracies.append((logits.argmax(1) == true).mean())
    levels = {"chance": 1 / len(kinds)}
    if run.has_labels_for(images):
        levels["the network itself"] = float(np.mean(accuracies))
    draw(run, probes, levels)
    yield "network", run.network_name
    yield "data", images.source
    yield "images", dict(zip(("train", "validation", "test"), parts, strict=True))
    yield "repeats", repeats
    yield "penalties", penalties
    yield "chance", levels["chance"]
    yield "network_accuracy_of_each", accuracies if run.has_labels_for(images) else None
    yield "probes", {which: describe(each) for which, each in probes.items()}
    yield "paper_percent", TABLE_7


def split(
    available: int,
    classes: int,
    counts: tuple[int | None, int | None, int | None],
    limit: int | None,
) -> tuple[int, ...]:
    """Choose the numbers of images to train, to validate and to test."""
    defaults = (1_000, 3), (500, 6), (1_000, 3)
    parts = tuple(
        min(count or min(most, available // part), limit or available)
        for count, (most, part) in zip(counts, defaults, strict=True)
    )
    if parts[0] < classes:
        raise UserError(
            f"{plural(parts[0], 'image')} to train cannot cover all {classes} classes: "
            "raise --train or --limit"
        )
    if sum(parts) > available:
        raise UserError(
            f"--train, --validation and --test ask for {sum(parts):,} of "
            f"{available:,} images: ask for fewer"
        )
    return parts


def randomize(net: Network, seed: int) -> Network:
    """Make the same network with random weights: a ConvNet with its initial ones."""
    if isinstance(net.model, zf.ConvNet):
        return zf.network(zf.ConvNet(net.model.arch, rngs=nnx.Rngs(seed)))
    *_, (_, network) = cascade(net, seed)
    return network


def draw(
    run: NetworkRun, probes: Mapping[str, list[Probes]], levels: Mapping[str, float]
) -> None:
    """Draw the curves, and the paper's beside them."""
    from zfnet_jax.viz.probe import accuracy_by_layer

    layers, repeats = list(probes["trained"][0]), len(probes["trained"])
    ours = {
        name + ending: np.stack(
            [read_accuracies(probes[which], layer, classifier) for layer in layers], 1
        )
        for which, ending in (("trained", ""), ("random", ", random weights"))
        for classifier, name in _NAMES.items()
    }
    paper = {
        f"SVM, {name}": np.array([[*rows["svm"].values()]]) / 100
        for name, rows in TABLE_7.items()
    }
    figure = accuracy_by_layer(
        f"Accuracy of a linear classifier on each layer of {run.network_name}",
        f"Test images; mean and standard deviation of {plural(repeats, 'draw')}, one "
        "draw for random weights.",
        {
            "This network": (layers, ours),
            "Table 7 of the paper": (list(_DEPTHS), paper),
        },
        levels,
    )
    run.figure("probe", figure)


def describe(probes: Sequence[Probes]) -> dict[str, dict[str, Any]]:
    """Summarize the layers of a network for metrics.json."""
    metrics: dict[str, dict[str, Any]] = {}
    for layer in probes[0]:
        metrics[layer] = {}
        for classifier in _NAMES:
            each = [repeat[layer][classifier] for repeat in probes]
            accuracies = read_accuracies(probes, layer, classifier)
            metrics[layer][classifier] = {
                "accuracy": accuracies.mean(),
                "spread": spread(accuracies),
                "accuracy_of_each": accuracies,
                "penalty_of_each": [x.penalty for x in each],
                "training_by_penalty": np.mean([x.training for x in each], 0),
                "validation_by_penalty": np.mean([x.validation for x in each], 0),
                "objective_gap": max(x.gap for x in each),
            }
    return metrics


def read_accuracies(
    probes: Sequence[Probes], layer: str, classifier: Classifier
) -> np.ndarray:
    """Read the test accuracy of each repeat."""
    return np.array([repeat[layer][classifier].accuracy for repeat in probes])


if __name__ == "__main__":
    sys.exit(main(probe))
