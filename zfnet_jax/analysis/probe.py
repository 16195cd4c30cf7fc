"""How well classes can be read off a layer by a linear classifier (Table 7).

The paper trains a linear SVM, or a softmax, on the features of each layer of a network
that stays as it is. Here both see all dimensions of a layer, however many they are:
with an L2 penalty the weights lie in the span of the training images (the representer
theorem), so that as many coordinates as there are training images say everything.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Float32, Int

from zfnet_jax.model import ConvNet

Classifier = Literal["svm", "softmax"]

PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
TOLERANCE = 1e-3
# Rounding adds up while a training goes on, and shows when its gap is taken afresh.
_CLOSE = TOLERANCE / 2
_MOST_STEPS = 1000
_TOGETHER = 250
# Dimensions in memory at a time, beside the features themselves.
_BLOCK = 4096
# Of the greatest variance; single precision does not tell less from nothing.
_LEAST_VARIANCE = 1e-6


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
    """A linear classifier on frozen features.

    Attributes:
        penalty: The one that served the validation images best.
        accuracy: Share of the test images that it gets right.
        predictions: [test], the class of each of them.
        training: [p], share of the training images right, by penalty.
        validation: [p], share of the validation images right, by penalty.
        gap: The greatest of `LinearFit.gaps`.
    """

    penalty: float
    accuracy: float
    predictions: Int[np.ndarray, " test"]
    training: Float[np.ndarray, " p"]
    validation: Float[np.ndarray, " p"]
    gap: float


@dataclasses.dataclass(frozen=True, eq=False)
class LinearFit:
    """Linear classifiers for several penalties.

    Attributes:
        weights: [p, d, classes].
        intercepts: [p, classes].
        objectives: [p], what was minimised.
        gaps: [p], the squared gradient over twice the penalty, as a share of the
            objective: no other weights are better by more, since the penalty makes the
            objective curve up in all their directions.
    """

    weights: Float32[np.ndarray, "p d classes"]
    intercepts: Float32[np.ndarray, "p classes"]
    objectives: Float32[np.ndarray, " p"]
    gaps: Float32[np.ndarray, " p"]


def probe(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    train: int,
    validation: int,
    *,
    classifiers: Sequence[Classifier] = get_args(Classifier),
    penalties: Sequence[float] = PENALTIES,
) -> dict[Classifier, Probe]:
    """Train linear classifiers on features, pick their penalty, and test them.

    Every dimension has its mean over the training rows subtracted and is divided by its
    standard deviation over them; one that is constant there becomes 0. Then all are
    divided by the square root of the number of the others, so that a row is 1 long (in
    the mean square) and a penalty means the same for layers of any width.

    Takes `train`² + `train`·min(d, `train`) numbers of memory beside the features, and
    time with the cube of the smaller of `train` and d.

    Args:
        features: Of any model, in random order (see `balanced_order`): the first
            `train` rows train, the next `validation` pick the penalty, the rest test.
        labels: The class of each row, from 0.
        train: How many rows train.
        validation: How many pick the penalty.
        classifiers: See `fit_linear`.
        penalties: To pick from; of equally good ones the greatest is picked.

    Returns:
        What was found, by classifier.

    Raises:
        ValueError: a part has no row, a class has no row to train, a feature is not
            finite, or as `fit_linear`.
    """
    if min(train, validation, len(features) - train - validation) < 1:
        raise ValueError(
            f"{len(features)} rows are not enough to train on {train}, to validate on "
            f"{validation} and to test on the rest, one or more each"
        )
    if not np.isfinite(features.min()) or not np.isfinite(features.max()):
        raise ValueError("features must be finite")
    counts = np.bincount(labels)
    classes = len(counts)
    seen = np.bincount(labels[:train], minlength=classes)
    if missing := np.flatnonzero(seen == 0).tolist():
        raise ValueError(f"class {missing[0]} has no row among the {train} to train")

    coordinates, squares = _principal(features, train)
    fits = [fit_linear(coordinates, labels[:train], c, penalties) for c in classifiers]
    weights = np.stack([found.weights for found in fits])  # classifier, p, r, class
    # Of every training row in the weights: what a coordinate is made of.
    shares = coordinates / np.where(squares > 0, squares, 1)
    flat = shares @ weights.transpose(2, 0, 1, 3).reshape(shares.shape[1], -1)
    scores = np.zeros((len(features), flat.shape[1]), np.float32)
    for block in _standardised(features, train):
        scores += block @ (block[:train].T @ flat)
    by_fit = scores.reshape(len(features), *weights.shape[:2], classes)

    # The greatest penalty first, since argmax takes the first of equals.
    order = np.argsort(-np.array(penalties), kind="stable")
    probes: dict[Classifier, Probe] = {}
    for index, (classifier, found) in enumerate(zip(classifiers, fits, strict=True)):
        predictions = (by_fit[:, index] + found.intercepts).argmax(2)
        right = predictions == labels[:, None]
        known = right[train : train + validation].mean(0)
        best = int(order[np.argmax(known[order])])
        tested = slice(train + validation, None)
        probes[classifier] = Probe(
            penalty=float(penalties[best]),
            accuracy=float(right[tested, best].mean()),
            predictions=predictions[tested, best],
            training=right[:train].mean(0),
            validation=known,
            gap=float(found.gaps.max()),
        )
    return probes


def _standardised(
    features: Float[np.ndarray, "n d"], train: int
) -> Iterator[Float32[np.ndarray, "n b"]]:
    """The features as `probe` describes them, some dimensions at a time."""
    varies = features[:train].max(0) > features[:train].min(0)
    length = np.sqrt(max(int(varies.sum()), 1))
    for start in range(0, features.shape[1], _BLOCK):
        part = slice(start, start + _BLOCK)
        values = features[:, part]
        mean = values[:train].mean(0, dtype=np.float64)
        deviation = values[:train].std(0, dtype=np.float64)
        scale = varies[part] / np.where(varies[part], deviation, 1) / length
        yield (values - mean.astype(values.dtype)) * scale.astype(np.float32)


def _principal(
    features: Float[np.ndarray, "n d"], train: int
) -> tuple[Float32[np.ndarray, "train r"], Float32[np.ndarray, " r"]]:
    """The training rows in principal coordinates, and the sum of squares of each.

    There are as many as the smaller of rows and dimensions, and products of rows are
    the same as before.
    """
    rows = (block[:train] for block in _standardised(features, train))
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
    """Train a linear classifier for each penalty, by L-BFGS.

    Minimised is the mean loss over the rows plus half the penalty times the sum of all
    squared weights; intercepts are not penalised. LIBLINEAR and scikit-learn call
    1 / (penalty · n) C.

    Args:
        features: Quickest if their columns are uncorrelated, of mean 0.
        labels: The class of each row, from 0.
        classifier: "svm", each class against the rest, with the squared hinge loss;
            "softmax", multinomial logistic regression.
        penalties: One or more.

    Returns:
        The classifiers. Each training stops once its gap is `TOLERANCE` or less, or
        after 1,000 steps, which the smallest penalties may take.

    Raises:
        ValueError: there is no such classifier, fewer than two classes, no penalty, or
            one that is not from 1e-9 to 1e9.
    """
    if classifier not in get_args(Classifier):
        known = ", ".join(get_args(Classifier))
        raise ValueError(f"classifier {classifier!r} is not one of {known}")
    if not penalties:
        raise ValueError("there must be one penalty at least to pick from")
    if wrong := [x for x in penalties if not 1e-9 <= x <= 1e9]:
        raise ValueError(f"a penalty must be from 1e-9 to 1e9, not {wrong[0]:g}")
    classes = int(labels.max()) + 1
    if classes < 2:
        raise ValueError("there must be two classes at least to tell apart")
    found = _fitted(
        features.astype(np.float32),
        np.eye(classes, dtype=np.float32)[labels],
        np.array(penalties, np.float32),
        # From outside, since XLA takes seconds to find what follows from constants.
        (
            np.zeros((features.shape[1], classes), np.float32),
            np.zeros((1, classes), np.float32),
        ),
        classifier,
    )
    return LinearFit(*map(np.asarray, found))


_Linear = tuple[Array, Array]  # weights [d, classes], intercepts [1, classes]


@functools.partial(jax.jit, static_argnums=4)
def _fitted(
    features: Float[Array, "n d"],
    targets: Float[Array, "n classes"],
    penalties: Float[Array, " p"],
    start: _Linear,
    classifier: Classifier,
) -> tuple[Array, Array, Array, Array]:
    """One penalty after another, since each takes its own number of steps."""
    signs = 2 * targets - 1
    # How much a loss curves up: the squared hinge's where it does, the softmax's at
    # equal chances.
    curvature = 2.0 if classifier == "svm" else 1 / targets.shape[1]
    spread = curvature * (features**2).mean(0)[:, None]
    solver = optax.lbfgs()

    def fit(penalty: Array) -> tuple[Array, Array, Array, Array]:
        # In units in which the objective curves about alike along uncorrelated columns.
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

        def far(carry: tuple[_Linear, optax.OptState]) -> Array:
            of = functools.partial(optax.tree.get, carry[1])
            steps = of("count")
            going_on = gap(of("value"), of("grad")) > _CLOSE
            return (steps == 0) | ((steps < _MOST_STEPS) & going_on)

        def move(carry: tuple[_Linear, Any]) -> tuple[_Linear, Any]:
            point, state = carry
            value, slopes = known(point, state=state)
            step, state = solver.update(
                slopes, state, point, value=value, grad=slopes, value_fn=objective
            )
            return jax.tree.map(jnp.add, point, step), state

        known = optax.value_and_grad_from_state(objective)
        point, _ = jax.lax.while_loop(far, move, (start, solver.init(start)))
        value, slopes = jax.value_and_grad(objective)(point)
        return point[0] * units, point[1][0], value, gap(value, slopes)

    return jax.lax.map(fit, penalties)


def layer_features(
    model: ConvNet, images: Float[np.ndarray, "n h w c"], layers: Sequence[str]
) -> dict[str, Float32[np.ndarray, "n d"]]:
    """What layers make of images, each image's as one row.

    Args:
        model: The network.
        images: Preprocessed images.
        layers: Which.

    Returns:
        Of each layer every position of every map, 4 bytes each.

    Raises:
        ValueError: there is no such layer, no layer or no image.
    """
    arch = model.arch
    names = tuple(arch.layer(name).name for name in layers)
    if not names or not len(images):
        raise ValueError("there must be one layer and one image at least")
    graph, weights = nnx.split(model)
    shapes = arch.shapes()
    found = {
        name: np.empty((len(images), int(np.prod(shapes[name]))), np.float32)
        for name in names
    }
    for start in range(0, len(images), _TOGETHER):
        batch = images[start : start + _TOGETHER]
        count = len(batch)
        if len(images) > _TOGETHER > count:
            batch = np.pad(batch, ((0, _TOGETHER - count), (0, 0), (0, 0), (0, 0)))
        for name, values in _flattened(graph, weights, batch, names).items():
            found[name][start : start + count] = np.asarray(values)[:count]
    return found


@functools.partial(jax.jit, static_argnums=(0, 3))
def _flattened(
    graph, weights, images: Array, names: tuple[str, ...]
) -> dict[str, Float[Array, "n d"]]:
    model = nnx.merge(graph, weights)
    order = [layer.name for layer in model.arch.layers]
    seen = model.features(images, until=max(names, key=order.index)).features
    return {name: seen[name].reshape(len(images), -1) for name in names}


def balanced_order(labels: Int[np.ndarray, " n"], seed: int) -> Int[np.ndarray, " n"]:
    """A random order in which every class comes once before any comes again.

    So parts that are cut from it, one after another, hold as many images of each class
    as of any other, to within one, for as long as there are images of all.

    Args:
        labels: The class of each image.
        seed: Of the order.

    Returns:
        Indices of all images.
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    rank = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        rank[labels[shuffled] == label] = np.arange((labels == label).sum())
    return shuffled[np.argsort(rank, kind="stable")]
