"""Classes that a linear classifier reads off a layer (Table 7).

The paper trains a linear SVM, or a softmax, on the features of each layer of a frozen
network. Here both use all dimensions of a layer, however many there are: with an L2
penalty the weights lie in the span of the training images (the representer theorem), so
as many coordinates as there are training images are enough.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Float32, Int

from zfnet_jax.networks import Network, as_network
from zfnet_jax.results import Result

Classifier = Literal["svm", "softmax"]

CLASSIFIERS: tuple[Classifier, ...] = get_args(Classifier)

PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
TOLERANCE = 1e-3
# Rounding accumulates during training and shows when the gap is computed afresh.
_STOP = TOLERANCE / 2
_MOST_STEPS = 1000
# Dimensions in memory at a time, besides the features themselves.
_BLOCK = 4096
# As a share of the greatest variance; less is rounding in single precision.
_LEAST_VARIANCE = 1e-6


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Probe(Result):
    """A linear classifier on frozen features.

    Attributes:
        penalty: The penalty with the best validation accuracy.
        accuracy: Share of the test images that are classified correctly.
        predictions: int [test], their predicted classes.
        training: [p], training accuracy by penalty.
        validation: [p], validation accuracy by penalty.
        gap: The greatest of `LinearFit.gaps`.
    """

    penalty: float
    accuracy: float
    predictions: Int[np.ndarray, " test"]
    training: Float[np.ndarray, " p"]
    validation: Float[np.ndarray, " p"]
    gap: float


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LinearFit(Result):
    """Linear classifiers for p penalties.

    Attributes:
        weights: One matrix per penalty.
        intercepts: One vector per penalty.
        objectives: The minimized values.
        gaps: The squared gradient over twice the penalty, as a share of the objective.
            No other weights are better by more, since the penalty curves the objective
            upward in all their directions.
    """

    weights: Float32[np.ndarray, "p d classes"]
    intercepts: Float32[np.ndarray, "p classes"]
    objectives: Float32[np.ndarray, " p"]
    gaps: Float32[np.ndarray, " p"]


def probe(
    net: Network | Any,
    images: Any,
    labels: Int[np.ndarray, " n"],
    *,
    layers: Sequence[str] | str | None = None,
    train: int,
    validation: int,
    penalties: Sequence[float] = PENALTIES,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict[Classifier, Probe]]:
    """Train linear classifiers on the features of each layer, and test them.

    One layer after another is computed, so that only one is in memory.

    Example:
        >>> import numpy as np, zfnet_jax as zf
        >>> net, labels = zf.load("zfnet32-cifar10"), np.arange(12) % 2
        >>> images = np.ones((12, 32, 32, 3)) * labels[:, None, None, None]
        >>> probes = probe(net, images, labels, layers="fc6", train=6, validation=2)
        >>> probes["fc6"]["softmax"].predictions
        array([0, 1, 0, 1])

    Args:
        net: A `Network`, or any model that `zf.network` takes.
        images: Preprocessed images, in random order (see `balance_order`): the first
            `train` train, the next `validation` select the penalty, the rest test.
        labels: Class of each image, from 0; any classes, not only the network's own.
        layers: Names of layers; all if None.
        train: Number of training images.
        validation: Number of validation images.
        penalties: Penalties to select from; a tie goes to the greatest.
        progress: Called with the number of layers done and their total.

    Returns:
        Probes by layer and classifier, the layers in the order of the forward pass.

    Raises:
        ValueError: The images do not fit the network, there is no such layer, or as in
            `probe_features`.
    """
    net, images = as_network(net, images)
    names = net.select(layers)
    if len(labels) != len(images):
        raise ValueError(f"{len(labels)} labels for {len(images)} images")
    probes = {}
    for done, name in enumerate(names, 1):
        features = net.activations(images, name)[name].reshape(len(images), -1)
        probes[name] = probe_features(
            features.astype(np.float32, copy=False),
            labels,
            train,
            validation,
            penalties=penalties,
        )
        if progress is not None:
            progress(done, len(names))
    return probes


def probe_features(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    train: int,
    validation: int,
    *,
    penalties: Sequence[float] = PENALTIES,
) -> dict[Classifier, Probe]:
    """Train linear classifiers on features, select their penalty, and test them.

    Every dimension is standardized over the training rows; one that is constant there
    becomes 0. All are then divided by the square root of the number of the others, so
    that a row has length 1 (in the mean square) and a penalty means the same for layers
    of any width. The arguments are those of `probe`, with a row of features for each
    image.

    Memory is `train`² + `train` · min(d, `train`) numbers besides the features; time
    grows with the cube of the smaller of `train` and d.

    Returns:
        Probes by classifier.

    Raises:
        ValueError: A part of the split is empty, a class has no training row, or as in
            `fit_linear`.
    """
    test = len(features) - train - validation
    if min(train, validation, test) < 1:
        raise ValueError(
            f"{len(features)} images cannot be split into {train} to train, "
            f"{validation} to validate and at least 1 to test"
        )
    classes = int(labels.max()) + 1
    counts = np.bincount(labels[:train], minlength=classes)
    if missing := np.flatnonzero(counts == 0).tolist():
        raise ValueError(f"class {missing[0]} is not among the {train} training images")

    scored = fit_and_score(
        features, labels[:train], dict.fromkeys(CLASSIFIERS, penalties)
    )
    probes: dict[Classifier, Probe] = {}
    for classifier, (fit, values) in scored.items():
        predictions = values.argmax(2)
        correct = predictions == labels[:, None]
        accuracies = correct[train : train + validation].mean(0)
        best = find_best(accuracies, penalties)
        probes[classifier] = Probe(
            penalty=float(penalties[best]),
            accuracy=float(correct[-test:, best].mean()),
            predictions=predictions[-test:, best],
            training=correct[:train].mean(0),
            validation=accuracies,
            gap=float(fit.gaps.max()),
        )
    return probes


def find_best(accuracies: Float[np.ndarray, " p"], penalties: Sequence[float]) -> int:
    """Find the index of the best accuracy; a tie goes to the greatest penalty."""
    order = np.argsort(-np.array(penalties), kind="stable")
    return int(order[np.argmax(accuracies[order])])


def fit_and_score(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " train"],
    penalties: Mapping[Classifier, Sequence[float]],
) -> dict[Classifier, tuple[LinearFit, Float32[np.ndarray, "n p classes"]]]:
    """Train on the first rows, standardized as in `probe_features`; score all rows.

    Args:
        features: One row per image; the first train, one per label.
        labels: Class of each training row, from 0.
        penalties: Penalties by classifier.

    Returns:
        The fit and the scores for each penalty, by classifier.
    """
    train = len(labels)
    coordinates, squares = _rotate(features, train)
    fits: dict[Classifier, LinearFit] = {
        classifier: fit_linear(coordinates, labels, classifier, values)
        for classifier, values in penalties.items()
    }
    weights = np.concatenate([fit.weights for fit in fits.values()])
    # Share of each training row in the weights: coordinates are sums of rows.
    shares = coordinates / np.where(squares > 0, squares, 1)
    flat = shares @ weights.transpose(1, 0, 2).reshape(shares.shape[1], -1)
    scores = np.zeros((len(features), flat.shape[1]), np.float32)
    for block in _standardize(features, train):
        scores += block @ (block[:train].T @ flat)
    by_fit = scores.reshape(len(features), len(weights), -1)
    ends = np.cumsum([len(fit.weights) for fit in fits.values()])[:-1]
    parts = np.split(by_fit, ends, axis=1)
    scored = zip(fits.items(), parts, strict=True)
    return {name: (fit, part + fit.intercepts) for (name, fit), part in scored}


def _standardize(
    features: Float[np.ndarray, "n d"], train: int
) -> Iterator[Float32[np.ndarray, "n b"]]:
    """Features as `probe_features` describes them, a block of dimensions at a time."""
    varies = features[:train].max(0) > features[:train].min(0)
    length = np.sqrt(max(int(varies.sum()), 1))
    for start in range(0, features.shape[1], _BLOCK):
        part = slice(start, start + _BLOCK)
        values = features[:, part]
        mean = values[:train].mean(0, dtype=np.float64)
        deviation = values[:train].std(0, dtype=np.float64)
        scale = varies[part] / np.where(varies[part], deviation, 1) / length
        centered = values - mean.astype(values.dtype)
        yield (centered * scale.astype(np.float32)).astype(np.float32, copy=False)


def _rotate(
    features: Float[np.ndarray, "n d"], train: int
) -> tuple[Float32[np.ndarray, "train r"], Float32[np.ndarray, " r"]]:
    """Training rows in principal coordinates, and the sum of squares of each."""
    rows = (block[:train] for block in _standardize(features, train))
    if features.shape[1] <= train:
        whole = np.concatenate(list(rows), 1)
        squares, axes = np.linalg.eigh(whole.T @ whole)
        coordinates = whole @ axes
    else:
        products = np.zeros((train, train), np.float32)
        for block in rows:
            products += block @ block.T
        squares, axes = np.linalg.eigh(products)
        coordinates = axes * np.sqrt(np.maximum(squares, 0))
    kept = squares > _LEAST_VARIANCE * squares[-1]
    return coordinates * kept, squares * kept


def fit_linear(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    classifier: Classifier,
    penalties: Sequence[float] = PENALTIES,
) -> LinearFit:
    """Train a linear classifier for each penalty by L-BFGS.

    The objective is the mean loss over the rows plus half the penalty times the sum of
    all squared weights. Intercepts are not penalized. LIBLINEAR and scikit-learn call 1
    / (penalty · n) C.

    Args:
        features: One row per image; fastest if columns are uncorrelated with mean 0.
        labels: Class of each row, from 0.
        classifier: "svm", one class against the rest with the squared hinge loss;
            "softmax", multinomial logistic regression.
        penalties: At least one, from 1e-9 to 1e9.

    Returns:
        The classifiers. Training stops at a gap of at most `TOLERANCE`, or after 1,000
        steps, which the smallest penalties may need.

    Raises:
        ValueError: There are fewer than two classes, or as in `check_penalties`.
    """
    check_penalties(penalties)
    classes = int(labels.max()) + 1
    if classes < 2:
        raise ValueError("there is only one class: a probe needs at least two")
    fit = _minimize(
        features.astype(np.float32),
        np.eye(classes, dtype=np.float32)[labels],
        np.array(penalties, np.float32),
        # As an argument, since XLA takes seconds to fold what follows from constants.
        (
            np.zeros((features.shape[1], classes), np.float32),
            np.zeros((1, classes), np.float32),
        ),
        classifier,
    )
    return LinearFit(*map(np.asarray, fit))


def check_penalties(penalties: Sequence[float]) -> None:
    """Refuse penalties that no classifier can be trained with.

    Raises:
        ValueError: There are none, or one is out of range.
    """
    if not len(penalties) or not all(1e-9 <= x <= 1e9 for x in penalties):
        raise ValueError(
            f"penalties {[*map(float, penalties)]}: give at least one, each from 1e-9 "
            "to 1e9"
        )


_Linear = tuple[Array, Array]  # weights [d, classes], intercepts [1, classes]


@functools.partial(jax.jit, static_argnames="classifier")
def _minimize(
    features: Float[Array, "n d"],
    targets: Float[Array, "n classes"],
    penalties: Float[Array, " p"],
    start: _Linear,
    classifier: Classifier,
) -> tuple[Array, Array, Array, Array]:
    """One penalty after another, since each takes its own number of steps."""
    signs = 2 * targets - 1
    # Second derivative of the loss: the squared hinge's where it is not 0, the
    # softmax's at equal probabilities.
    curvature = 2.0 if classifier == "svm" else 1 / targets.shape[1]
    spread = curvature * (features**2).mean(0)[:, None]
    solver = optax.lbfgs()

    def fit(penalty: Array) -> tuple[Array, Array, Array, Array]:
        # Units in which the objective curves about alike along uncorrelated columns.
        units = 1 / jnp.sqrt(penalty + spread)

        def objective(point: _Linear) -> Array:
            weights, intercepts = point[0] * units, point[1]
            scores = features @ weights + intercepts
            if classifier == "svm":
                loss = (jax.nn.relu(1 - signs * scores) ** 2).sum(1)
            else:
                loss = optax.softmax_cross_entropy(scores, targets)
            return loss.mean() + penalty / 2 * (weights**2).sum()

        def gap(value: Array, slopes: _Linear) -> Array:
            squares = ((slopes[0] / units) ** 2).sum() + (slopes[1] ** 2).sum()
            return squares / (2 * penalty * value)

        def is_far(carry: tuple[_Linear, optax.OptState]) -> Array:
            read = functools.partial(optax.tree.get, carry[1])
            steps = read("count")
            is_open = gap(read("value"), read("grad")) > _STOP
            return (steps == 0) | ((steps < _MOST_STEPS) & is_open)

        def step(carry: tuple[_Linear, Any]) -> tuple[_Linear, Any]:
            point, state = carry
            value, slopes = value_and_grad(point, state=state)
            update, state = solver.update(
                slopes, state, point, value=value, grad=slopes, value_fn=objective
            )
            return jax.tree.map(jnp.add, point, update), state

        value_and_grad = optax.value_and_grad_from_state(objective)
        point, _ = jax.lax.while_loop(is_far, step, (start, solver.init(start)))
        value, slopes = jax.value_and_grad(objective)(point)
        return point[0] * units, point[1][0], value, gap(value, slopes)

    return jax.lax.map(fit, penalties)


def balance_order(labels: Int[np.ndarray, " n"], seed: int) -> Int[np.ndarray, " n"]:
    """Draw a random order in which each class comes once before any comes again.

    Consecutive parts cut from it hold equally many images of each class, to within one,
    as long as there are images of all.
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    rank = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        rank[labels[shuffled] == label] = np.arange((labels == label).sum())
    return shuffled[np.argsort(rank, kind="stable")]
