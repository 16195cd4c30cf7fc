"""How much of a picture is the network's, and how much the image's alone.

A picture that shows what a network has learned must change when that is destroyed
(Adebayo et al. 2018, arXiv 1810.03292), must differ between units, and must differ from
what goes down if a unit is replaced by random positive numbers (Mahendran & Vedaldi
2016, "Salient deconvolutional networks"). Each of these is a comparison of two pictures
by `similarity`; beside them all stands that with the edges of the image, which know no
network.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Float64, Int

from zfnet_jax.arch import receptive_field
from zfnet_jax.deconvnet import backproject
from zfnet_jax.metrics import importance
from zfnet_jax.model import ConvNet
from zfnet_jax.relu_rules import Rule

RULES: tuple[Rule, ...] = get_args(Rule)

# Of SSIM, Wang et al. 2004, section III-C.
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2

_TOGETHER = 32


class Similarity(NamedTuple):
    """How alike pictures are; 1 for the same.

    Attributes:
        signed: Spearman's rank correlation of all values, over pixels and channels.
        magnitude: That of their magnitudes.
        ssim: Structural similarity of what is usually shown of them: the greatest
            magnitude among the channels of each pixel, as a share of the picture's
            greatest.
    """

    signed: Float64[np.ndarray, "*shape"]
    magnitude: Float64[np.ndarray, "*shape"]
    ssim: Float64[np.ndarray, "*shape"]


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """Pictures of n images beside a first one of each, by every backward rule.

    Attributes:
        columns: What was done to get each picture; the first are compared with, the
            last are the images' edges.
        similarity: By rule, that of each picture with the first: [columns, n].
        empty: By rule, pictures of zeros alone: [columns, n].
        pictures: By rule, those of the first few images: [columns, shown, h, w, c].
    """

    columns: tuple[str, ...]
    similarity: dict[str, Similarity]
    empty: dict[str, Bool[np.ndarray, "columns n"]]
    pictures: dict[str, Float32[np.ndarray, "columns shown h w c"]]


def randomisation(
    model: ConvNet,
    images: Float[np.ndarray, "n h w c"],
    classes: Int[np.ndarray, " n"],
    seed: int = 0,
    *,
    rules: Sequence[Rule] = RULES,
    shown: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Comparison:
    """Compare pictures of a class as layers are destroyed from the top, one by one.

    The cascading randomisation of Adebayo et al. 2018; see `cascade`. What goes
    down is 1 at the logit of the class, so that a picture does not depend on the sign
    that the logit happens to get.

    Args:
        model: The network.
        images: Preprocessed images.
        classes: Of which class the picture of each is.
        seed: Determines the random weights.
        rules: What a ReLU does on the way down.
        shown: Of how many images to keep the pictures.
        progress: Called with the number of images done.

    Returns:
        Columns `trained`, then one for each layer from the classifier to the image,
        drawn anew together with all before it, then `edges`.

    Raises:
        ValueError: there are no images, or there is no such class or rule.
    """
    count = model.arch.num_classes
    if not len(images):
        raise ValueError("there are no images to make pictures of")
    if len(classes) != len(images) or not 0 <= classes.min() <= classes.max() < count:
        raise ValueError(f"classes must be {len(images)} from 0 to {count - 1}")
    chosen = np.eye(count, dtype=np.float32)[classes]
    each = np.arange(len(images))
    columns = [
        _Column(name, drawn, each, lambda which: chosen[which])
        for name, drawn in [("trained", model), *cascade(model, seed)]
    ]
    return _compared(images, "logits", columns, rules, shown, progress)


def cascade(model: ConvNet, seed: int = 0) -> Iterator[tuple[str, ConvNet]]:
    """Destroy a network's layers one by one, from the classifier to the image.

    A layer's kernel and its biases are drawn anew from the normal distribution that has
    their own mean and standard deviation: what is lost is their order and not their
    scale, so that no layer falls silent or runs over for that reason alone.

    Yields:
        The layer's name, and a network in which it and all above it are random; lower
        layers are those of `model`, which is left as it is.
    """
    graph, weights = nnx.split(model)
    for index, name in enumerate(reversed(model.arch.kernel_shapes())):
        drawn = nnx.merge(graph, weights, copy=True)
        layer = getattr(drawn, name)
        rng = np.random.default_rng([seed, index])
        for values in (layer.kernel, layer.bias):
            old = np.asarray(values[...], np.float64)
            new = old.mean() + old.std() * rng.standard_normal(old.shape)
            values[...] = jnp.asarray(new, jnp.float32)
        _, weights = nnx.split(drawn)
        yield name, drawn


def controls(
    model: ConvNet,
    images: Float[np.ndarray, "n h w c"],
    layer: str,
    seed: int = 0,
    *,
    rules: Sequence[Rule] = RULES,
    shown: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Comparison:
    """Compare the picture of a unit with those of what is not that unit.

    The unit is the most active of the layer, at the place where it is; what goes down
    is 1 there and 0 elsewhere. Beside it stand, by the same image's switches, random
    positive numbers (|N(0, 1)|) in place of all units there and everywhere (Mahendran &
    Vedaldi 2016), and another unit there, drawn from those that are active if there are
    any; and the same unit at the same place of another image, the one of these that
    drives it most there. All are compared inside what the unit sees.

    Args:
        model: The network.
        images: Preprocessed images, two at least.
        layer: Any layer, up to `logits`.
        seed: Determines what is drawn.
        rules: As for `randomisation`.
        shown: As for `randomisation`.
        progress: As for `randomisation`.

    Returns:
        Columns `unit`, `random there`, `random everywhere`, `another unit`,
        `another image` and `edges`; of a dense layer, which is all one place, without
        `random everywhere`.

    Raises:
        ValueError: there are fewer than two images, or no such layer or rule.
    """
    shape = model.arch.shapes()[model.arch.layer(layer).name]
    width = shape[1] if len(shape) == 3 else 1
    if len(images) < 2:
        raise ValueError(f"controls need two images at least, not {len(images)}")
    maps = np.concatenate(
        [
            np.asarray(_activations(*nnx.split(model), images[which], layer))[:fresh]
            for which, fresh in _batches(len(images))
        ]
    ).reshape(len(images), -1, shape[-1])
    each = np.arange(len(images))
    places, units = np.divmod(maps.reshape(len(images), -1).argmax(1), shape[-1])

    field = receptive_field(model.arch, layer)
    inside = np.zeros(images.shape[:3], bool)
    for image, place in zip(inside, places.tolist(), strict=True):
        top, left, bottom, right = field.box(*divmod(place, width))
        image[top:bottom, left:right] = True

    def draws(index: int) -> np.random.Generator:
        return np.random.default_rng([seed, index])

    chances = np.array([draws(i).random(shape[-1]) for i in range(len(images))])
    chances += maps[each, places] > 0
    chances[each, units] = -1
    others = chances.argmax(1)
    rivals = maps[:, places, units]
    np.fill_diagonal(rivals, -np.inf)

    def alone(units: np.ndarray) -> _Signal:
        def signal(which: np.ndarray) -> np.ndarray:
            kept = np.zeros((len(which), *maps.shape[1:]), np.float32)
            kept[np.arange(len(which)), places[which], units[which]] = 1
            return kept.reshape(-1, *shape)

        return signal

    def everywhere(which: np.ndarray) -> np.ndarray:
        drawn = [draws(i).standard_normal(maps.shape[1:]) for i in which.tolist()]
        return np.abs(drawn).astype(np.float32).reshape(-1, *shape)

    def there(which: np.ndarray) -> np.ndarray:
        drawn = everywhere(which).reshape(-1, *maps.shape[1:])
        here = np.arange(maps.shape[1]) == places[which][:, None]
        return (drawn * here[..., None]).reshape(-1, *shape)

    columns = [
        _Column("unit", model, each, alone(units)),
        _Column("random there", model, each, there),
        _Column("random everywhere", model, each, everywhere),
        _Column("another unit", model, each, alone(others)),
        _Column("another image", model, rivals.argmax(0), alone(units)),
    ]
    if len(shape) == 1:
        del columns[2]
    return _compared(images, layer, columns, rules, shown, progress, inside)


_Signal = Callable[[np.ndarray], np.ndarray]


class _Column(NamedTuple):
    """Pictures that are made alike.

    Attributes:
        name: What they are.
        model: Whose.
        sources: From which image's switches each comes.
        signal: What goes down, for some of the images.
    """

    name: str
    model: ConvNet
    sources: Int[np.ndarray, " n"]
    signal: _Signal


def _compared(
    images: Float[np.ndarray, "n h w c"],
    layer: str,
    columns: Sequence[_Column],
    rules: Sequence[Rule],
    shown: int,
    progress: Callable[[int], None] | None,
    inside: Bool[np.ndarray, "n h w"] | None = None,
) -> Comparison:
    count = len(images)
    found: dict[Rule, list[np.ndarray]] = {rule: [] for rule in rules}
    kept: dict[Rule, list[np.ndarray]] = {rule: [] for rule in rules}
    for which, fresh in _batches(count):
        contours = np.asarray(edges(images[which]))
        made = [
            _pictures(
                *nnx.split(column.model),
                images[column.sources[which]],
                column.signal(which),
                layer,
                tuple(rules),
            )
            for column in columns
        ]
        for index, rule in enumerate(rules):
            pictures = np.stack([*(np.asarray(x[index]) for x in made), contours])
            pictures = pictures[:, :fresh]
            seen = None if inside is None else inside[which[:fresh]]
            measured = [
                [*similarity(pictures[0], picture, seen), ~picture.any((1, 2, 3))]
                for picture in pictures
            ]
            found[rule].append(np.array(measured).swapaxes(0, 1))
            kept[rule].append(pictures[:, : max(0, shown - which[0])])
        if progress is not None:
            progress(int(which[0]) + fresh)
    whole = {rule: np.concatenate(parts, -1) for rule, parts in found.items()}
    return Comparison(
        (*(column.name for column in columns), "edges"),
        {rule: Similarity(*numbers[:3]) for rule, numbers in whole.items()},
        {rule: numbers[3] > 0 for rule, numbers in whole.items()},
        {rule: np.concatenate(parts, 1) for rule, parts in kept.items()},
    )


def _batches(count: int) -> Iterator[tuple[Int[np.ndarray, " b"], int]]:
    """Batches of one size, the last filled up, and how many of each are new."""
    size = min(count, _TOGETHER)
    for start in range(0, count, size or 1):
        yield np.arange(start, start + size) % count, min(size, count - start)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _activations(graph, weights, images: Array, layer: str) -> Array:
    found = nnx.merge(graph, weights).features(images, until=layer).features[layer]
    return found.astype(jnp.float32)


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _pictures(
    graph,
    weights,
    images: Array,
    signal: Array,
    layer: str,
    rules: tuple[Rule, ...],
) -> tuple[Array, ...]:
    """By all rules in one program, which does the forward pass once."""
    model = nnx.merge(graph, weights)
    return tuple(
        backproject(model, images, layer, signal, rule=rule) for rule in rules
    )


# Measures.


def similarity(
    a: Float[np.ndarray, "n h w c"],
    b: Float[np.ndarray, "n h w c"],
    inside: Bool[np.ndarray, "n h w"] | None = None,
) -> Similarity:
    """Compare pictures pair by pair, whatever the scale of each: [n].

    Args:
        a: Pictures.
        b: Others.
        inside: Which pixels count; all if not given.
    """
    seen = np.ones(a.shape[:3], bool) if inside is None else inside
    pairs = [
        (x[here].ravel(), y[here].ravel())
        for x, y, here in zip(a, b, seen, strict=True)
    ]
    local = np.asarray(_shown_ssim(a, b, seen), np.float64)
    return Similarity(
        np.array([spearman(x, y) for x, y in pairs]),
        np.array([spearman(np.abs(x), np.abs(y)) for x, y in pairs]),
        np.array(
            [values[here].mean() for values, here in zip(local, seen, strict=True)]
        ),
    )


def spearman(a: Float[np.ndarray, " values"], b: Float[np.ndarray, " values"]) -> float:
    """Spearman's rank correlation; equal values share their mean rank.

    Values that are all the same have no order: their correlation counts as 0.
    """
    x, y = _ranks(a), _ranks(b)
    spread = math.sqrt((x @ x) * (y @ y))
    return float(x @ y) / spread if spread else 0.0


def _ranks(values: Float[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """About their mean."""
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

    Wang et al. 2004 ("Image quality assessment"), section III: a Gaussian window of
    11 x 11 pixels, standard deviation 1.5, K1 = 0.01 and K2 = 0.03. At its border a
    picture is reflected.
    """
    rows, columns = map(_windows, a.shape[1:])

    def mean(x: Array) -> Array:
        return jnp.einsum("ih,nhw,jw->nij", rows, x, columns)

    x, y = jnp.asarray(a), jnp.asarray(b)
    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    both = mean(x * y) - mean_x * mean_y
    light = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    form = (2 * both + _C2) / (var_x + var_y + _C2)
    return light * form


@jax.jit
def _shown_ssim(a: Array, b: Array, inside: Array) -> Float[Array, "n h w"]:
    """Of magnitudes as they are shown."""

    def share(pictures: Array) -> Array:
        values = jnp.where(inside, importance(pictures), 0)
        peak = values.max((1, 2), keepdims=True)
        return values / jnp.where(peak > 0, peak, 1)

    return ssim(share(a), share(b))


def _windows(extent: int) -> Float32[np.ndarray, "extent extent"]:
    """At each place the Gaussian's weights along one axis, its border reflected."""
    reach = _WINDOW // 2
    bell = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * _SIGMA**2))
    seen = np.pad(np.arange(extent), reach, "symmetric")
    weights = np.zeros((extent, extent), np.float32)
    for place in range(extent):
        np.add.at(weights[place], seen[place : place + _WINDOW], bell / bell.sum())
    return weights


@jax.jit
def edges(images: Float[Array | np.ndarray, "n h w c"]) -> Float[Array, "n h w c"]:
    """Magnitude of the Sobel gradient of each channel; the border is reflected."""
    x = jnp.pad(jnp.asarray(images), ((0, 0), (1, 1), (1, 1), (0, 0)), "symmetric")

    def along(x: Array, axis: int, weights: tuple[int, int, int]) -> Array:
        extent = x.shape[axis] - 2
        parts = (
            weight * jax.lax.slice_in_dim(x, i, i + extent, axis=axis)
            for i, weight in enumerate(weights)
            if weight
        )
        return sum(parts, start=jnp.zeros(()))

    smooth, steep = (1, 2, 1), (-1, 0, 1)
    down = along(along(x, 2, smooth), 1, steep)
    across = along(along(x, 1, smooth), 2, steep)
    return jnp.hypot(down, across)
