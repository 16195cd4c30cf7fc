"""Classes that a network was not trained on (Tables 4 and 5, Fig. 9).

The paper keeps all layers of an ImageNet network, trains a new classifier on top of
them with a few images per class, and compares it with the same network trained on
these images alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Int32, UInt8

from zfnet_jax.analysis.probe import (
    CLASSIFIERS,
    PENALTIES,
    Classifier,
    balance_order,
    check_penalties,
    find_best,
    fit_and_score,
)
from zfnet_jax.arch import Architecture
from zfnet_jax.data import Preprocessed, Preprocessing
from zfnet_jax.inference import evaluate
from zfnet_jax.networks import Network, as_network, network
from zfnet_jax.recipes import FAST, Recipe
from zfnet_jax.results import Result
from zfnet_jax.training import train_batches

# Parts of the training images that take turns to select the penalty.
_FOLDS = 3


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Transfer(Result):
    """Accuracy of new classifiers on frozen features.

    Attributes:
        layer: Name of the layer whose features the classifiers take.
        per_class: [k], training images per class.
        accuracies: [draws, k] by classifier, from `mean_class_accuracy`.
        penalties: [draws, k] by classifier, the selected penalties.
        test_images: [classes], test images of each class.
    """

    layer: str
    per_class: Int[np.ndarray, " k"]
    accuracies: dict[Classifier, Float[np.ndarray, "draws k"]]
    penalties: dict[Classifier, Float[np.ndarray, "draws k"]]
    test_images: Int[np.ndarray, " classes"]


def transfer(
    net: Network | Any,
    images: Any,
    labels: Int[np.ndarray, " n"],
    *,
    per_class: Sequence[int] = (15, 30),
    draws: int = 5,
    layer: str | None = None,
    test_per_class: int | None = None,
    penalties: Sequence[float] = PENALTIES,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Transfer:
    """Train new classifiers on a layer of a frozen network with few images per class.

    In every draw, the smaller training sets are part of the larger ones, and all are
    tested on the same images. Only training images select the penalty: a third of them
    at a time validates classifiers of the others. A single image per class takes the
    greatest penalty.

    Args:
        net: A `Network`, or any model that `zf.network` takes.
        images: Preprocessed images.
        labels: Class of each image, from 0; any classes, not only the network's own.
        per_class: Numbers of training images per class, all different.
        draws: Number of draws of training and test images.
        layer: Name of the layer; by default the last hidden one without positions.
        test_per_class: Test images per class at most; None tests on all images that
            the largest training set leaves.
        penalties: Penalties to select from, each from 1e-9 to 1e9; a tie goes to the
            greatest.
        seed: Seed of the first draw; the next ones take the numbers after it.
        progress: Called with the number of training sets done and their total.

    Returns:
        Accuracies by draw and number of training images.

    Raises:
        ValueError: The images do not fit the network, there is no such layer, a class
            has too few images, or a number or penalty is out of range.

    Example:
        >>> import numpy as np, zfnet_jax as zf
        >>> net, labels = zf.load("zfnet32-cifar10"), np.arange(12) % 2
        >>> images = np.ones((12, 32, 32, 3)) * labels[:, None, None, None]
        >>> result = transfer(net, images, labels, per_class=[1, 2], draws=1)
        >>> result.layer, result.accuracies["softmax"]
        ('fc7', array([[1., 1.]]))
    """
    check_request(labels, per_class, draws, test_per_class)
    check_penalties(penalties)
    net, images = as_network(net, images)
    name = layer or net.embedding
    if len(labels) != len(images):
        raise ValueError(f"{len(labels)} labels for {len(images)} images")
    features = net.activations(images, name)[name].reshape(len(images), -1)
    features = features.astype(np.float32, copy=False)

    shape = draws, len(per_class)
    accuracies: dict[Classifier, np.ndarray] = {x: np.empty(shape) for x in CLASSIFIERS}
    selected: dict[Classifier, np.ndarray] = {x: np.empty(shape) for x in CLASSIFIERS}
    for draw, column, chosen, tests in draw_sets(
        labels, per_class, draws, test_per_class, seed, progress
    ):
        best = select_penalties(features[chosen], labels[chosen], penalties)
        rows = features[np.concatenate([chosen, tests])]
        fits = fit_and_score(rows, labels[chosen], {x: [best[x]] for x in CLASSIFIERS})
        for classifier, (_, scores) in fits.items():
            predictions = scores[len(chosen) :, 0].argmax(1)
            accuracy = mean_class_accuracy(predictions, labels[tests])
            accuracies[classifier][draw, column] = accuracy
            selected[classifier][draw, column] = best[classifier]
    left = np.bincount(labels) - max(per_class)
    tests = np.minimum(left, test_per_class or left)
    return Transfer(name, np.array(per_class), accuracies, selected, tests)


def train_from_scratch(
    arch: Architecture,
    pictures: Any,
    labels: Int[np.ndarray, " n"],
    *,
    per_class: Sequence[int] = (15, 30),
    draws: int = 5,
    test_per_class: int | None = None,
    recipe: Recipe = FAST,
    steps: int = 300,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Float[np.ndarray, "draws k"]:
    """Train networks on the training sets of `transfer` alone, and test them.

    The arguments with the same names are those of `transfer`.

    Args:
        arch: The architecture; its classifier gets the number of classes.
        pictures: Pixels, uint8 [n, h, w, c], or a source of them.
        labels: Class of each image, from 0.
        per_class: Numbers of training images per class.
        draws: Number of draws.
        test_per_class: Test images per class at most.
        recipe: The recipe; the number of epochs is not used.
        steps: Updates of each network, whatever the number of images.
        seed: Seed of the first draw, and of the weights.
        progress: Called with the number of networks done and their total.

    Returns:
        Accuracies from `mean_class_accuracy`.

    Raises:
        ValueError: A class has too few images, or a number is out of range.
    """
    check_request(labels, per_class, draws, test_per_class)
    accuracies = np.empty((draws, len(per_class)))
    for draw, column, chosen, tests in draw_sets(
        labels, per_class, draws, test_per_class, seed, progress
    ):
        few = pictures[chosen], labels[chosen].astype(np.int32)
        net = train_on(arch, *few, recipe, steps, seed + draw)
        images = Preprocessed(tests, lambda rows: pictures[rows])
        predictions = evaluate(net, images).argmax(1)
        accuracies[draw, column] = mean_class_accuracy(predictions, labels[tests])
    return accuracies


def train_on(
    arch: Architecture,
    pictures: UInt8[np.ndarray, "n h w c"],
    labels: Int32[np.ndarray, " n"],
    recipe: Recipe,
    steps: int,
    seed: int,
) -> Network:
    """Train a network on a few images of all classes, repeated in random order."""
    count = steps * recipe.batch_size
    rng = np.random.default_rng(seed)
    repeats = [rng.permutation(len(labels)) for _ in range(-(-count // len(labels)))]
    order = np.concatenate(repeats)[:count].reshape(steps, recipe.batch_size)

    def read(start: int, stop: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return ((pictures[rows], labels[rows]) for rows in order[start:stop])

    *_, last = train_batches(
        arch,
        read,
        preprocess=Preprocessing.fit(pictures, recipe.scale, arch.input_hw),
        class_count=int(labels.max()) + 1,
        steps=steps,
        recipe=recipe,
        epochs=1,
        seed=seed,
    )
    return network(last.model, preprocess=last.preprocess)


def check_request(
    labels: Int[np.ndarray, " n"],
    per_class: Sequence[int],
    draws: int,
    test_per_class: int | None,
) -> None:
    """Refuse numbers of images that cannot be drawn.

    The arguments are those of `transfer`.

    Raises:
        ValueError: A number is out of range, or a class has too few images.
    """
    if not per_class or min(per_class) < 1 or len({*per_class}) < len(per_class):
        raise ValueError(
            f"per_class {[*per_class]}: give different whole numbers of at least 1"
        )
    for name, value in (("draws", draws), ("test_per_class", test_per_class)):
        if value is not None and value < 1:
            raise ValueError(f"{name} {value}: give a whole number of at least 1")
    sizes, most = np.bincount(labels), max(per_class)
    if sizes.min() <= most:
        small = int(sizes.argmin())
        raise ValueError(
            f"{most} training images per class: class {small} has {sizes[small]} in "
            "all, and at least one has to test"
        )


def draw_sets(
    labels: Int[np.ndarray, " n"],
    per_class: Sequence[int],
    draws: int,
    test_per_class: int | None,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[int, int, Int[np.ndarray, " m"], Int[np.ndarray, " t"]]]:
    """Draw training sets and the images that test them.

    The arguments are those of `transfer`.

    Yields:
        Number of the draw, index into `per_class`, and indices of the images that train
        and test. Those that train come in rounds of one image per class.
    """
    sizes, most = np.bincount(labels), max(per_class)
    # Place of an image within its class, in the order of `balance_order`.
    place = np.sort(np.concatenate([np.arange(size) for size in sizes]))
    is_test = (place >= most) & (place < most + (test_per_class or len(labels)))
    for draw in range(draws):
        order = balance_order(labels, seed + draw)
        for column, count in enumerate(per_class):
            yield draw, column, order[place < count], order[is_test]
            if progress is not None:
                progress(draw * len(per_class) + column + 1, draws * len(per_class))


def select_penalties(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    penalties: Sequence[float],
) -> dict[Classifier, float]:
    """Select the penalty of each classifier by cross-validation.

    The rows come in rounds of one per class, as from `draw_sets`.
    """
    rounds = np.arange(len(labels)) // (labels.max() + 1)
    folds = min(_FOLDS, int(rounds[-1]) + 1)
    hits = {classifier: np.zeros(len(penalties)) for classifier in CLASSIFIERS}
    for fold in range(folds if folds > 1 else 0):
        is_out = rounds % folds == fold
        order = np.argsort(is_out, kind="stable")
        rows, kept = labels[order], int((~is_out).sum())
        every = dict.fromkeys(CLASSIFIERS, penalties)
        fits = fit_and_score(features[order], rows[:kept], every)
        for classifier, (_, scores) in fits.items():
            hits[classifier] += (scores[kept:].argmax(2) == rows[kept:, None]).sum(0)
    return {x: float(penalties[find_best(hits[x], penalties)]) for x in CLASSIFIERS}


def mean_class_accuracy(
    predictions: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"]
) -> float:
    """Compute each class's share of correct predictions, and their mean.

    Unlike the share over all images, it counts small classes as much as large ones.

    Example:
        >>> mean_class_accuracy(np.array([0, 0, 0, 1]), np.array([0, 0, 0, 0]))
        0.75
    """
    sizes = np.bincount(labels)
    correct = np.bincount(labels[predictions == labels], minlength=len(sizes))
    return float((correct[sizes > 0] / sizes[sizes > 0]).mean())
