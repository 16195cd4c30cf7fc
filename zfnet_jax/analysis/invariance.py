"""Changes of features when an image is shifted, scaled or rotated (Fig. 5).

The paper transforms five images by various amounts. It plots the Euclidean distance
between the features of the transformed and of the original image, at the first and at
the last hidden layer, and the probability of the true class.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Float32

from zfnet_jax.networks import Network, as_network
from zfnet_jax.results import Result

Transform = Literal["translate", "scale", "rotate"]
Border = Literal["reflect", "edge", "zero"]

IDENTITY: dict[Transform, float] = {"translate": 0.0, "scale": 1.0, "rotate": 0.0}
_MODES = {"reflect": "reflect", "edge": "nearest", "zero": "constant"}
_BATCH_SIZE = 32


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Invariance(Result):
    """Effect of a transformation on n images.

    Attributes:
        amounts: [a], the amounts of the transformation.
        distances: By layer, [n, a]: Euclidean distance to the features of the
            untransformed image.
        relative: By layer, [n, a]: the same divided by the length of the untransformed
            image's features.
        probability: [n, a], the probability of the target.
    """

    amounts: Float32[np.ndarray, " a"]
    distances: dict[str, Float32[np.ndarray, "n a"]]
    relative: dict[str, Float32[np.ndarray, "n a"]]
    probability: Float32[np.ndarray, "n a"]


def invariance(
    net: Network | Any,
    images: Any,
    targets: Any,
    transform: Transform,
    amounts: Sequence[float | int] | Float[np.ndarray, " a"],
    *,
    layers: Sequence[str] | str | None = None,
    border: Border = "reflect",
    progress: Callable[[int, int], None] | None = None,
) -> Invariance:
    """Compare the features of transformed images with those of the originals.

    Example:
        >>> import numpy as np, zfnet_jax as zf
        >>> net, images = zf.load("zfnet32-cifar10"), np.ones((2, 32, 32, 3))
        >>> result = invariance(net, images, "cat", "translate", [0.0, 2.0])
        >>> list(result.distances), result.probability.shape
        (['conv1', 'fc7'], (2, 2))

    Args:
        net: A `Network`, or any model that `zf.network` takes.
        images: Preprocessed images.
        targets: Class whose probability is measured, as a label or a name: one for all
            images, or one per image.
        transform: As in `transform_images`.
        amounts: Amounts of the transformation. `IDENTITY` leaves an image unchanged.
        layers: Names of layers. None: the first layer and, for the paper's layer 7,
            `net.embedding`.
        border: As in `transform_images`.
        progress: Called with the number of images done and their total.

    Raises:
        ValueError: There is no such transformation, border, layer or class, an amount
            is out of range, or the images do not fit the network.
    """
    net, images = as_network(net, images)
    if border not in get_args(Border):
        raise ValueError(f"border {border!r} is not one of {', '.join(_MODES)}")
    amounts = check_amounts(transform, amounts, net.image_shape[0])
    if layers is None:
        layers = [next(iter(net.layers)), net.embedding]
    names = net.select(layers)
    labels = net.targets(targets, len(images))

    parts = []
    for start, batch, count in net.batches(images, _BATCH_SIZE):
        targets = np.resize(labels[start : start + count], len(batch))
        # Both sides of a distance come from one program, so no change is exactly 0.
        read = functools.partial(_read, net, batch, targets, transform, border, names)
        before, _ = read(np.float32(IDENTITY[transform]))
        columns = [_measure(before, *read(amount)) for amount in amounts]
        parts.append(jax.tree.map(lambda *x: np.stack(x, 1), *columns))
        if progress is not None:
            progress(start + count, len(images))
    # Only the last batch is padded.
    distances, relative, probability = jax.tree.map(
        lambda *x: np.concatenate(x)[: len(images)], *parts
    )
    return Invariance(
        amounts,
        {name: distances[name] for name in names},
        {name: relative[name] for name in names},
        probability,
    )


@functools.partial(jax.jit, static_argnames=("transform", "border", "layers"))
def _read(
    net: Network,
    images: Array,
    labels: Array,
    transform: Transform,
    border: Border,
    layers: tuple[str, ...],
    amount: Array,
) -> tuple[dict[str, Float[Array, "n d"]], Float[Array, " n"]]:
    # Interpolation at whole pixels is exact only to rounding.
    moved = jnp.where(
        amount == IDENTITY[transform],
        images,
        transform_images(images, transform, amount, border=border),
    )
    features = net.features(moved, (*layers, net.output))
    features = {
        name: values.reshape(len(images), -1).astype(jnp.float32)
        for name, values in features.items()
    }
    probabilities = jax.nn.softmax(features[net.output])
    return features, jnp.take_along_axis(probabilities, labels[:, None], 1)[:, 0]


@jax.jit
def _measure(
    before: dict[str, Array], after: dict[str, Array], probability: Float[Array, " n"]
) -> tuple[dict[str, Array], dict[str, Array], Float[Array, " n"]]:
    """Distances, the same relative to the length of the first, and `probability`."""
    distances, relative = {}, {}
    for name, original in before.items():
        distances[name] = jnp.linalg.norm(after[name] - original, axis=1)
        length = jnp.linalg.norm(original, axis=1)
        relative[name] = distances[name] / jnp.where(length > 0, length, 1)
    return distances, relative, probability


def transform_images(
    images: Float[Array | np.ndarray, "n h w c"],
    transform: Transform,
    amount: float | Float[Array | np.ndarray, ""],
    *,
    border: Border = "reflect",
) -> Float[Array, "n h w c"]:
    """Transform images about their center by linear interpolation; also under jit.

    Args:
        images: [n, h, w, c].
        transform: "translate" moves the picture down by `amount` pixels, as in the
            paper; "scale" enlarges it by the factor `amount`; "rotate" turns it
            counterclockwise by `amount` degrees.
        amount: Amount of the transformation.
        border: Pixels outside the image: its reflection, the nearest edge, or zeros,
            the mean image after preprocessing.
    """
    height, width = images.shape[1:3]
    center = (height - 1) / 2, (width - 1) / 2
    rows, columns = jnp.meshgrid(
        jnp.arange(height, dtype=jnp.float32) - center[0],
        jnp.arange(width, dtype=jnp.float32) - center[1],
        indexing="ij",
    )
    if transform == "translate":
        rows = rows - amount
    elif transform == "scale":
        rows, columns = rows / amount, columns / amount
    else:
        angle = jnp.deg2rad(jnp.asarray(amount, jnp.float32))
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        rows, columns = cos * rows + sin * columns, cos * columns - sin * rows
    sources = [rows + center[0], columns + center[1]]

    def move(plane: Float[Array, "h w"]) -> Float[Array, "h w"]:
        return map_coordinates(plane, sources, order=1, mode=_MODES[border])

    planes = jnp.asarray(images).transpose(0, 3, 1, 2)
    return jax.vmap(jax.vmap(move))(planes).transpose(0, 2, 3, 1)


def check_amounts(
    transform: Transform,
    amounts: Sequence[float | int] | Float[np.ndarray, " a"],
    height: int,
) -> Float32[np.ndarray, " a"]:
    """Check the amounts of a transformation and return them in single precision.

    Raises:
        ValueError: There is no such transformation, no amount, or one that is not
            finite or out of range: shifts up to the images' height, scales from 0.1 to
            10, angles up to ten turns either way.
    """
    ranges = {
        "translate": (-height, height),
        "scale": (0.1, 10),
        "rotate": (-3600, 3600),
    }
    if transform not in ranges:
        raise ValueError(f"transform {transform!r} is not one of {', '.join(ranges)}")
    given = np.asarray(amounts, np.float64)
    if not len(given) or not np.isfinite(given).all():
        raise ValueError("amounts must be at least one finite number")
    low, high = ranges[transform]
    outside = given[(given < low) | (given > high)]
    if len(outside):
        raise ValueError(
            f"amount {outside[0]:g}: {transform} takes {low:g} to {high:g}"
        )
    return given.astype(np.float32)


def linearity(
    amounts: Float[np.ndarray, " a"],
    curve: Float[np.ndarray, " a"],
    identity: float,
    within: float,
) -> float:
    """R² of a line through a curve over the distance from the identity, up to `within`.

    The paper calls layer 7 quasi-linear for translation and scaling. NaN for fewer than
    three amounts or a constant curve.
    """
    distances = np.abs(np.asarray(amounts, np.float64) - identity)
    included = distances <= within
    x, y = distances[included], np.asarray(curve, np.float64)[included]
    if len(x) < 3 or np.ptp(y) == 0:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1] ** 2)


def periodicity(curve: Float[np.ndarray, " a"], folds: int) -> float:
    """Share of a curve's variance that repeats `folds` times in a full turn.

    The distance curve of a rotation falls back every 360 / folds degrees for an object
    of that rotational symmetry. The curve has equal steps of a full turn, without the
    last. NaN for a constant curve.
    """
    y = np.asarray(curve, np.float64)
    power = np.abs(np.fft.fft(y - y.mean())) ** 2
    if power.sum() <= 1e-20 * (y**2).sum():
        return math.nan
    orders = np.minimum(np.arange(len(y)), len(y) - np.arange(len(y)))
    return float(power[(orders > 0) & (orders % folds == 0)].sum() / power.sum())
