"""Numbers that judge attribution maps and pictures, and measures that compare them.

The pointing game asks whether the most important pixel lies on the object; insertion
and deletion ask what the network makes of the ranking of all pixels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Float64

from zfnet_jax.attribution import Targets
from zfnet_jax.networks import Network, as_network


def importance(
    maps: Float[Array | np.ndarray, "b h w c"],
) -> Float[Array, "b h w"]:
    """Rank pixels by the greatest magnitude among their channels.

    As in Simonyan et al. 2014, section 3.1.
    """
    return jnp.abs(jnp.asarray(maps)).max(-1)


def pointing_game(
    importances: Float[Array | np.ndarray, "b h w"],
    masks: Bool[Array | np.ndarray, "b h w"],
    tolerance: float = 0.0,
) -> Float[np.ndarray, " b"]:
    """Check whether the most important pixel lies on the object.

    Zhang et al. 2016 (Excitation Backprop, arXiv 1608.00507): the mean over images is
    the accuracy of a method. They also count a point within 15 pixels of the object, on
    images of about 224 pixels.

    Args:
        importances: One number per pixel, as `importance` gives.
        masks: True on the object.
        tolerance: Distance in pixels to the nearest pixel of the object, up to which a
            point is a hit.

    Returns:
        1 for a hit, 0 for a miss. Among several maxima it is the share of them that
        hit, so a constant map scores the share of the image that the object covers.

    Raises:
        ValueError: The shapes differ, `importances` are not finite, a mask is empty, or
            `tolerance` is negative or not finite.
    """
    objects = np.asarray(masks)
    values = _check_importances(importances, objects.shape)
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance must be at least 0 and finite, not {tolerance}")
    empty = np.flatnonzero(~objects.any((1, 2)))
    if empty.size:
        raise ValueError(f"masks[{empty[0]}] is empty: there is no object to point at")
    peaks = values == values.max((1, 2), keepdims=True)
    hits = [
        (_distances(mask)[peak] <= tolerance).mean()
        for mask, peak in zip(objects, peaks, strict=True)
    ]
    return np.array(hits, np.float64)


def _distances(mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Distance from the center of each pixel to that of the nearest one in the mask."""
    squared = np.where(mask, 0.0, np.inf)
    # Squares add up, so one axis can be searched after the other.
    for extent in mask.shape:
        along = np.subtract.outer(np.arange(extent), np.arange(extent)) ** 2
        squared = (squared + along[:, :, None]).min(1).T
    return np.sqrt(squared)


@dataclasses.dataclass(frozen=True, eq=False)
class Curves:
    """Probability of a class as pixels change, most important first.

    Attributes:
        fractions: [steps + 1], share of the pixels that have changed, from 0 to 1.
        probabilities: [n, steps + 1], probability of the target.
        areas: [n], area under each curve over `fractions`, by the trapezoidal rule.
    """

    fractions: Float[np.ndarray, " points"]
    probabilities: Float[np.ndarray, "n points"]
    areas: Float[np.ndarray, " n"]


def insertion(
    net: Any,
    images: Any,
    targets: Targets,
    importances: Float[Array | np.ndarray, "n h w"],
    *,
    baseline: float | Float[Array | np.ndarray, ...] = 0.0,
    steps: int | None = None,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Curves:
    """Insert pixels into a baseline, most important first, and follow a class.

    Petsiuk, Das & Saenko 2018 (RISE, arXiv 1806.07421); a larger area is better. They
    insert into a blurred image. Pixels of equal importance go in row-major order.

    Example:
        >>> import numpy as np, zfnet_jax as zf
        >>> net, images = zf.load("zfnet32-cifar10"), np.ones((2, 32, 32, 3))
        >>> ranking = importance(zf.attribute(net, images, "cat"))
        >>> insertion(net, images, "cat", ranking, steps=4).probabilities.shape
        (2, 5)

    Args:
        net: A `Network`, or any model that `zf.network` takes.
        images: Preprocessed images [n, h, w, c], a source of them, or a path.
        targets: A label or a class name for all images, or one per image.
        importances: One number per pixel, as `importance` gives.
        baseline: Value of a pixel before it is inserted: a number, or an array that
            broadcasts to the images. In preprocessed images 0 is the mean image.
        steps: Number of steps, of equally many pixels up to rounding. None: one per row
            of an image, as in RISE.
        batch_size: Images per batch.
        progress: Called with the number of images done and their total.

    Raises:
        ValueError: The arguments do not fit the network or the images, or `steps` is
            not from 1 to the number of pixels.
    """
    return _replace_pixels(
        *(net, images, targets, importances, baseline, steps, batch_size, progress),
        insert=True,
    )


def deletion(
    net: Any,
    images: Any,
    targets: Targets,
    importances: Float[Array | np.ndarray, "n h w"],
    *,
    baseline: float | Float[Array | np.ndarray, ...] = 0.0,
    steps: int | None = None,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Curves:
    """Replace pixels by a baseline, most important first, and follow a class.

    The reverse of `insertion`, with the same arguments; a smaller area is better. RISE
    replaces pixels by a constant.

    Example:
        >>> import numpy as np, zfnet_jax as zf
        >>> net, images = zf.load("zfnet32-cifar10"), np.ones((2, 32, 32, 3))
        >>> ranking = importance(zf.attribute(net, images, "cat"))
        >>> deletion(net, images, "cat", ranking, steps=4).areas.shape
        (2,)
    """
    return _replace_pixels(
        *(net, images, targets, importances, baseline, steps, batch_size, progress),
        insert=False,
    )


def _replace_pixels(
    net: Any,
    images: Any,
    targets: Targets,
    importances: Any,
    baseline: Any,
    steps: int | None,
    batch_size: int,
    progress: Callable[[int, int], None] | None,
    insert: bool,
) -> Curves:
    net, images = as_network(net, images)
    count, (height, width, channels) = len(images), net.image_shape
    labels = net.targets(targets, count)
    importances = _check_importances(importances, (count, height, width))
    pixels = height * width
    number = height if steps is None else steps
    if not 1 <= number <= pixels:
        raise ValueError(
            f"steps must be from 1 to the {pixels} pixels of an image, not {number}"
        )
    shape = (count, height, width, channels)
    try:
        baselines = np.broadcast_to(np.asarray(baseline), shape)
    except ValueError:
        raise ValueError(
            f"baseline {list(np.shape(baseline))} does not fit images {list(shape)}"
        ) from None
    order = np.argsort(-importances.reshape(count, pixels), 1, kind="stable")
    ranks = np.argsort(order, 1).astype(np.int32).reshape(count, height, width, 1)
    counts = np.arange(number + 1, dtype=np.int32) * pixels // number

    parts = []
    for start, batch, real in net.batches(images, batch_size):
        rows = np.resize(np.arange(start, start + real), len(batch))
        blank = baselines[rows].astype(batch.dtype)
        pair = (blank, batch) if insert else (batch, blank)
        part = _follow(net, *pair, labels[rows], ranks[rows], counts)
        parts.append(np.asarray(part)[:real])
        if progress is not None:
            progress(start + real, count)
    probabilities = np.concatenate(parts)
    fractions = (counts / pixels).astype(probabilities.dtype)
    return Curves(fractions, probabilities, np.trapezoid(probabilities, fractions))


@jax.jit
def _follow(
    net: Network, start: Array, end: Array, labels: Array, ranks: Array, counts: Array
) -> Float[Array, "b points"]:
    """Probabilities of the labels with the first pixels in rank taken from `end`."""

    def step(count: Array) -> Array:
        mixed = jnp.where(ranks < count, end, start)
        logits = net.features(mixed, (net.output,))[net.output]
        probabilities = jax.nn.softmax(logits)
        return jnp.take_along_axis(probabilities, labels[:, None], 1)[:, 0]

    return lax.map(step, counts).T


def _check_importances(importances: Any, shape: tuple[int, ...]) -> np.ndarray:
    importances = np.asarray(importances)
    floats = jnp.issubdtype(importances.dtype, jnp.floating)
    if importances.shape != shape or not floats:
        raise ValueError(
            f"importances must be floats {list(shape)}, one per pixel, not "
            f"{importances.dtype} {list(importances.shape)}"
        )
    if not np.isfinite(importances).all():
        raise ValueError("importances hold a value that is not finite")
    return importances


def sharpness(
    pictures: Float[np.ndarray, "n h w c"],
) -> Float64[np.ndarray, " n"]:
    """Root-mean-square spatial frequency of pictures, in cycles per picture.

    The "spatial frequency" of Eskicioglu & Fisher 1995 ("Image quality measures and
    their performance"), the root mean square of the differences between neighbors, is
    divided by the standard deviation and multiplied by the size. So a wave of k cycles
    has sharpness k at any contrast and in any number of pixels that resolves it.

    Args:
        pictures: Signed values or gray levels; channels count alike.

    Returns:
        0 for a constant picture; 0.32 times the side for a square of white noise.
    """
    x = np.asarray(pictures, np.float64)
    variance = ((x - x.mean((1, 2), keepdims=True)) ** 2).mean((1, 2, 3))
    down, across = (
        x.shape[axis] ** 2 * (np.diff(x, axis=axis) ** 2).mean((1, 2, 3))
        for axis in (1, 2)
    )
    ratio = (down + across) / np.where(variance > 0, variance, 1)
    return np.sqrt(ratio) / (2 * np.pi)


def spearman(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Spearman's rank correlation of two arrays; equal values share their mean rank.

    Returns:
        From -1 to 1; 0 where all values of one side are equal.
    """
    x, y = _ranks(a), _ranks(b)
    spread = math.sqrt((x @ x) * (y @ y))
    return float(x @ y) / spread if spread else 0.0


def _ranks(values: Float[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Ranks minus their mean."""
    order = np.argsort(values)
    ordered = values[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    ends = np.append(starts[1:], len(values))
    ranks = np.empty(len(values))
    ranks[order] = np.repeat((starts + ends - len(values)) / 2, ends - starts)
    return ranks


@jax.jit
def ssim(
    a: Float[Array | np.ndarray, "n h w"], b: Float[Array | np.ndarray, "n h w"]
) -> Float[Array, "n h w"]:
    """Structural similarity at each pixel of pictures with values in [0, 1].

    Wang et al. 2004 ("Image quality assessment"), section III: a Gaussian window of 11
    x 11 pixels, standard deviation 1.5, K1 = 0.01 and K2 = 0.03. Pictures are reflected
    at their border.
    """
    rows, columns = map(_gaussian_weights, a.shape[1:])

    def mean(x: Array) -> Array:
        return jnp.einsum("ih,nhw,jw->nij", rows, x, columns)

    x, y = jnp.asarray(a), jnp.asarray(b)
    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return luminance * structure


def _gaussian_weights(extent: int) -> Float32[np.ndarray, "extent extent"]:
    """Weights of the window at each position of an axis, the border reflected."""
    reach = 5
    bell = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * 1.5**2))
    sources = np.pad(np.arange(extent), reach, "symmetric")
    weights = np.zeros((extent, extent), np.float32)
    for position in range(extent):
        window = sources[position : position + len(bell)]
        np.add.at(weights[position], window, bell / bell.sum())
    return weights
