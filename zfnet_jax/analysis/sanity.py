"""Dependence of a picture on the network, rather than on the image alone.

A picture that shows what a network has learned must change when the weights are
destroyed (Adebayo et al. 2018, arXiv 1810.03292). It must differ between units, and
from the picture of random positive numbers in place of a unit (Mahendran & Vedaldi
2016, "Salient deconvolutional networks"). Each check compares two pictures by
`similarity`. The edges of the image, which depend on no network, serve as a reference.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float64, Int

from zfnet_jax.deconvnet import backproject
from zfnet_jax.metrics import importance, spearman, ssim
from zfnet_jax.networks import Network, as_network
from zfnet_jax.relu_rules import Rule
from zfnet_jax.results import Result

RULES: tuple[Rule, ...] = get_args(Rule)
_BATCH_SIZE = 32


class Similarity(NamedTuple):
    """Similarity of pictures: 1 for equal ones, NaN if one is zero everywhere.

    Attributes:
        signed: Spearman's rank correlation of all values, over pixels and channels.
        magnitude: Spearman's rank correlation of their magnitudes.
        ssim: Structural similarity of the pictures as usually shown: the greatest
            magnitude among the channels, as a share of the picture's greatest.
    """

    signed: Float64[np.ndarray, "*shape"]
    magnitude: Float64[np.ndarray, "*shape"]
    ssim: Float64[np.ndarray, "*shape"]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Comparison(Result):
    """Pictures of n images compared with the first of each, by backward rule.

    Attributes:
        columns: Names of the c pictures of an image. The first is the reference, the
            last the image's edges.
        similarity: By rule, [n, c]: similarity of each picture to the first.
        empty: By rule, [n, c]: a picture is zero everywhere.
        pictures: By rule, [shown, c, h, w, channels]: pictures of the first images.
    """

    columns: tuple[str, ...]
    similarity: dict[Rule, Similarity]
    empty: dict[Rule, Bool[np.ndarray, "n c"]]
    pictures: dict[Rule, Float[np.ndarray, "shown c h w channels"]]


_Signal = Callable[[np.ndarray], np.ndarray]


class _Column(NamedTuple):
    name: str
    net: Network  # makes the pictures
    sources: Int[np.ndarray, " n"]  # indices of the images they are made from
    signal: _Signal  # signals for the images of some indices


def sanity(
    net: Network | Any,
    images: Any,
    targets: Any,
    *,
    rules: Sequence[Rule] = RULES,
    seed: int = 0,
    shown: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Compare pictures of a class as layers are destroyed from the top, one by one.

    This is the cascading randomization of Adebayo et al. 2018; see `cascade`. The
    signal is 1 at the output of the class.

    Example:
        >>> import numpy as np, zfnet_jax as zf
        >>> net, images = zf.load("zfnet32-cifar10"), np.ones((2, 32, 32, 3))
        >>> result = sanity(net, images, "cat", rules=["gradient"])
        >>> result.columns[:4], result.similarity["gradient"].signed.shape
        (('trained', 'logits', 'fc7', 'fc6'), (2, 10))

    Args:
        net: A `Network`, or any model that `zf.network` takes.
        images: Preprocessed images.
        targets: Class of the pictures, as a label or a name: one for all images, or one
            per image.
        rules: Backward rules for ReLUs.
        seed: Seed for the random weights.
        shown: Number of images whose pictures are returned.
        progress: Called with the number of images done and their total.

    Returns:
        Columns `trained`, then one per layer with weights, named after it, in which it
        and all layers above it are random, then `edges`.

    Raises:
        ValueError: The images do not fit the network, or there is no such class or
            rule.
    """
    net, images = as_network(net, images)
    images = net.images(images)
    labels, own = net.targets(targets, len(images)), np.arange(len(images))
    signal = np.eye(net.num_classes, dtype=np.float32)[labels]
    columns = [
        _Column(name, stage, own, signal.__getitem__)
        for name, stage in [("trained", net), *cascade(net, seed)]
    ]
    return _compare(images, net.output, columns, rules, shown, progress)


def cascade(net: Network, seed: int = 0) -> Iterator[tuple[str, Network]]:
    """Destroy the layers of a network one by one, from the output to the image.

    Each array of weights is drawn anew from the normal distribution with its own mean
    and standard deviation, so that no layer falls silent or overflows. One without
    negative values, such as the variances of a batch normalization, is shuffled
    instead.

    Yields:
        Name of a layer with weights, and a network in which it and all layers above it
        are random.

    Raises:
        ValueError: No layer has weights.
    """
    count = 0
    for layer in reversed(list(net.layers)):
        redrawn = _redraw(net, layer, _rng(seed, count))
        if redrawn is not None:
            net, count = redrawn, count + 1
            yield layer, net
    if not count:
        raise ValueError("no layer of the network has weights to destroy")


def _redraw(net: Network, layer: str, rng: np.random.Generator) -> Network | None:
    arrays: list[Any] = []
    net.map_weights(layer, lambda array: arrays.append(array) or array)
    if not arrays:
        return None
    # The largest first: the order of the arrays depends on how a model stores them.
    for index in sorted(range(len(arrays)), key=lambda index: -arrays[index].size):
        old = np.asarray(arrays[index], np.float64)
        if (old >= 0).all():
            new = rng.permutation(old.ravel()).reshape(old.shape)
        else:
            new = old.mean() + old.std() * rng.standard_normal(old.shape)
        arrays[index] = jnp.asarray(new, arrays[index].dtype)
    values = iter(arrays)
    return net.map_weights(layer, lambda _: next(values))


def controls(
    net: Network | Any,
    images: Any,
    layer: str,
    *,
    rules: Sequence[Rule] = RULES,
    seed: int = 0,
    shown: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Compare the picture of a unit with those of other signals in its place.

    The unit is each image's strongest of the layer, at its strongest position; the
    signal is 1 there and 0 elsewhere. Its picture is compared inside the receptive
    field with those of

    - random positive numbers (|N(0, 1)|) in place of all units at that position, and at
      all positions (Mahendran & Vedaldi 2016),
    - another unit at that position, drawn from the active ones if there are any,
    - the same unit at the same position of another image, the one that activates it
      most there.

    The arguments are those of `sanity`, with at least two images and the name of a
    layer.

    Returns:
        Columns `unit`, `random there`, `random everywhere`, `another unit`, `another
        image` and `edges`. A layer of vectors has a single position, and no `random
        everywhere`.

    Raises:
        ValueError: There are fewer than two images, they do not fit the network, or
            there is no such layer or rule.
    """
    net, images = as_network(net, images)
    shape = net.layer(layer).shape
    if len(images) < 2:
        raise ValueError(f"controls needs at least two images, not {len(images)}")
    images = net.images(images)
    maps = net.activations(images, layer)[layer].reshape(len(images), -1, shape[-1])
    strongest = maps.reshape(len(images), -1).argmax(1)
    positions, units = np.divmod(strongest, shape[-1])
    columns = _replace_units(net, maps, positions, units, seed)
    if len(shape) == 1:
        columns = [x for x in columns if x.name != "random everywhere"]
    inside = _receptive_fields(net, layer, positions)
    return _compare(images, layer, columns, rules, shown, progress, inside)


def _replace_units(
    net: Network,
    maps: Float[np.ndarray, "n positions units"],
    positions: Int[np.ndarray, " n"],
    units: Int[np.ndarray, " n"],
    seed: int,
) -> list[_Column]:
    own = np.arange(len(maps))
    scores = np.array([_rng(seed, i).random(maps.shape[2]) for i in own.tolist()])
    scores += maps[own, positions] > 0
    scores[own, units] = -1
    rivals = maps[:, positions, units].copy()
    np.fill_diagonal(rivals, -np.inf)

    def draw(which: np.ndarray) -> np.ndarray:
        shape = maps.shape[1:]
        numbers = [_rng(seed, i).standard_normal(shape) for i in which.tolist()]
        return np.abs(numbers).astype(np.float32)

    def draw_at_position(which: np.ndarray) -> np.ndarray:
        is_position = np.arange(maps.shape[1]) == positions[which][:, None]
        return draw(which) * is_position[..., None]

    def select(units: np.ndarray) -> _Signal:
        def signal(which: np.ndarray) -> np.ndarray:
            ones = np.zeros((len(which), *maps.shape[1:]), np.float32)
            ones[np.arange(len(which)), positions[which], units[which]] = 1
            return ones

        return signal

    return [
        _Column("unit", net, own, select(units)),
        _Column("random there", net, own, draw_at_position),
        _Column("random everywhere", net, own, draw),
        _Column("another unit", net, own, select(scores.argmax(1))),
        _Column("another image", net, rivals.argmax(0), select(units)),
    ]


def _rng(seed: int, index: int) -> np.random.Generator:
    """Random numbers of one image, in any batch, or of one layer."""
    return np.random.default_rng([seed, index])


def _receptive_fields(
    net: Network, layer: str, positions: Int[np.ndarray, " n"]
) -> Bool[np.ndarray, "n h w"]:
    field, shape = net.layer(layer).receptive_field, net.layer(layer).shape
    inside = np.full((len(positions), *net.image_shape[:2]), field is None)
    if field is not None:
        for pixels, position in zip(inside, positions.tolist(), strict=True):
            top, left, bottom, right = field.box(*divmod(position, shape[1]))
            pixels[top:bottom, left:right] = True
    return inside


def _compare(
    images: Float[np.ndarray, "n h w c"],
    layer: str,
    columns: Sequence[_Column],
    rules: Sequence[Rule],
    shown: int,
    progress: Callable[[int, int], None] | None,
    inside: Bool[np.ndarray, "n h w"] | None = None,
) -> Comparison:
    net = columns[0].net
    shape = net.layer(layer).shape
    measures: dict[Rule, list[np.ndarray]] = {rule: [] for rule in rules}
    kept: dict[Rule, list[np.ndarray]] = {rule: [] for rule in rules}
    for start, batch, count in net.batches(images, _BATCH_SIZE):
        which = np.minimum(np.arange(start, start + len(batch)), len(images) - 1)
        edges = np.asarray(find_edges(batch))
        by_column = []
        for column in columns:
            sources, signal = images[column.sources[which]], column.signal(which)
            signal = signal.reshape(-1, *shape)
            by_column.append(
                _draw_pictures(column.net, sources, signal, layer, tuple(rules))
            )
        pixels = None if inside is None else inside[which[:count]]
        for index, rule in enumerate(rules):
            pictures = [*(np.asarray(x[index]) for x in by_column), edges]
            pictures = np.stack(pictures, 1)[:count]
            parts = [
                [*similarity(pictures[:, 0], x, pixels), ~x.any((1, 2, 3))]
                for x in pictures.swapaxes(0, 1)
            ]
            measures[rule].append(np.array(parts).transpose(1, 2, 0))
            kept[rule].append(pictures[: max(0, shown - start)])
        if progress is not None:
            progress(start + count, len(images))
    # [measure, n, c], the last measure for empty pictures.
    whole: dict[Rule, np.ndarray] = {
        rule: np.concatenate(parts, 1) for rule, parts in measures.items()
    }
    return Comparison(
        (*(column.name for column in columns), "edges"),
        {rule: Similarity(*numbers[:3]) for rule, numbers in whole.items()},
        {rule: numbers[3] > 0 for rule, numbers in whole.items()},
        {rule: np.concatenate(parts) for rule, parts in kept.items()},
    )


@functools.partial(jax.jit, static_argnames=("layer", "rules"))
def _draw_pictures(
    net: Network, images: Array, signal: Array, layer: str, rules: tuple[Rule, ...]
) -> tuple[Array, ...]:
    """Pictures by all rules in one program, which shares the forward pass."""
    return tuple(backproject(net, images, layer, signal, rule=rule) for rule in rules)


def similarity(
    a: Float[np.ndarray, "n h w c"],
    b: Float[np.ndarray, "n h w c"],
    inside: Bool[np.ndarray, "n h w"] | None = None,
) -> Similarity:
    """Compare pictures pair by pair, at any scale, by the pixels `inside` (or all)."""
    masks = np.ones(a.shape[:3], bool) if inside is None else inside
    pairs = [
        (x[mask].ravel(), y[mask].ravel())
        for x, y, mask in zip(a, b, masks, strict=True)
    ]
    local = np.asarray(_shown_ssim(a, b, masks), np.float64)
    measures = (
        [spearman(x, y) for x, y in pairs],
        [spearman(np.abs(x), np.abs(y)) for x, y in pairs],
        [x[mask].mean() for x, mask in zip(local, masks, strict=True)],
    )
    are_drawn = a.any((1, 2, 3)) & b.any((1, 2, 3))
    return Similarity(*(np.where(are_drawn, x, np.nan) for x in measures))


@jax.jit
def _shown_ssim(a: Array, b: Array, inside: Array) -> Float[Array, "n h w"]:
    def normalize(pictures: Array) -> Array:
        values = jnp.where(inside, importance(pictures), 0)
        peak = values.max((1, 2), keepdims=True)
        return values / jnp.where(peak > 0, peak, 1)

    return ssim(normalize(a), normalize(b))


@jax.jit
def find_edges(images: Float[Array | np.ndarray, "n h w c"]) -> Float[Array, "n h w c"]:
    """Magnitude of the Sobel gradient of each channel; the border is reflected."""
    x = jnp.pad(jnp.asarray(images), ((0, 0), (1, 1), (1, 1), (0, 0)), "symmetric")

    def smooth(x: Array, axis: int) -> Array:
        size = x.shape[axis] - 2
        low, middle, high = (
            jax.lax.slice_in_dim(x, i, i + size, axis=axis) for i in range(3)
        )
        return low + 2 * middle + high

    down = smooth(x[:, 2:] - x[:, :-2], 2)
    across = smooth(x[:, :, 2:] - x[:, :, :-2], 1)
    return jnp.hypot(down, across)
