"""Occlusion: a square slides over an image (section 4.2, Fig. 7).

For a `ConvNet` only what a square can change is recomputed (`zfnet_jax.windows`); any
other network runs once per position of the square. Both give the same numbers.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from zfnet_jax import windows
from zfnet_jax.analysis.correspondence import mask_boxes
from zfnet_jax.model import ConvNet
from zfnet_jax.networks import Network, as_network
from zfnet_jax.results import Result, spread

Pair = tuple[int, int]

# Positions that are computed together: windows of a ConvNet, images of other networks.
_WINDOWS, _IMAGES = 256, 32


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Occlusion(Result):
    """Responses of a network to images with a square of them covered.

    Arrays over positions are [n, rows, cols]: the image, then the place of the square.

    Attributes:
        targets: The class whose probability is followed, one per image.
        tops: First covered row at each position of the square, in pixels.
        lefts: First covered column.
        size: Height and width of the square, in pixels.
        logits: [n, rows, cols, classes].
        probability: Probability of each image's target class.
        label: The most probable class.
        activity: Sum of one feature map, panel (b) of Fig. 7.
        layer: The layer of that map.
        units: The unit of that map, one per image.
        clean_logits: Logits of the uncovered images, [n, classes].
        clean_probability: Probability of the targets in the uncovered images.
        clean_activity: Activity in the uncovered images.
    """

    targets: Int32[np.ndarray, " n"]
    tops: Int32[np.ndarray, " rows"]
    lefts: Int32[np.ndarray, " cols"]
    size: Pair
    logits: Float32[np.ndarray, "n rows cols classes"]
    probability: Float32[np.ndarray, "n rows cols"]
    label: Int32[np.ndarray, "n rows cols"]
    activity: Float32[np.ndarray, "n rows cols"]
    layer: str
    units: Int32[np.ndarray, " n"]
    clean_logits: Float32[np.ndarray, "n classes"]
    clean_probability: Float32[np.ndarray, " n"]
    clean_activity: Float32[np.ndarray, " n"]

    @property
    def boxes(self) -> Int[np.ndarray, "rows cols 4"]:
        """Top, left, bottom and right of each square; bottom and right exclusive."""
        tops, lefts = np.meshgrid(self.tops, self.lefts, indexing="ij")
        return np.stack([tops, lefts, tops + self.size[0], lefts + self.size[1]], -1)

    def by_pixel(
        self, values: Float[np.ndarray, "*n rows cols"]
    ) -> Float[np.ndarray, "*n h w"]:
        """Mean of `values` over the squares that cover each pixel.

        A pixel that no square covers gets 0, which needs a stride above the size.

        Args:
            values: One number per position, such as the drop of a probability.
        """
        covered = []
        for starts, size in zip((self.tops, self.lefts), self.size, strict=True):
            offsets = np.subtract.outer(np.arange(starts[-1] + size), starts)
            covered.append((offsets >= 0) & (offsets < size))
        down, across = covered
        counts = np.outer(down.sum(1), across.sum(1)).clip(1)
        return down @ np.asarray(values, np.float64) @ across.T / counts


def occlusion(
    net: Network | Any,
    images: Any,
    targets: int | str | Sequence[int | str] | Int[np.ndarray, " n"],
    *,
    size: int | Pair,
    stride: int | Pair,
    fill: float | Array | np.ndarray = 0.0,
    units: int | Sequence[int] | Int[np.ndarray, " n"] | None = None,
    layer: str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Occlusion:
    """Slide a square over images and record the network's responses (Fig. 7).

    Example:
        >>> import numpy as np, zfnet_jax as zf
        >>> net, images = zf.load("zfnet32-cifar10"), np.ones((1, 32, 32, 3))
        >>> responses = occlusion(net, images, "cat", size=8, stride=8)
        >>> drop = responses.clean_logits[0, 3] - responses.logits[0, :, :, 3]
        >>> responses.by_pixel(drop).shape
        (32, 32)

    Args:
        net: A `Network`, or any model that `zf.network` takes.
        images: Preprocessed images.
        targets: The class whose probability is followed: an index or a class name, one
            for all images or one per image.
        size: Side of the square in pixels, or (height, width).
        stride: Pixels from one position to the next, or (rows, columns). The last
            position of a row or column is moved back to the border of the image.
        fill: Value of covered pixels: a number, or an array that broadcasts to an
            image. In preprocessed images 0 is the mean image.
        units: Feature map of `layer` whose activity is summed: one for all images or
            one per image. None: the map with the strongest activation in each image.
        layer: A layer with feature maps; None: the last convolution.
        progress: Called with the number of positions done and their total.

    Raises:
        ValueError: The arguments do not fit the network, or the square the image.
    """
    net, images = as_network(net, images)
    squares = _place_squares(net.image_shape, size, stride, fill)
    layer = layer or _last_convolution(net)
    if len(net.layer(layer).shape) != 3:
        raise ValueError(f"{layer} has no feature maps")
    chosen = _check_units(units, layer, net.layer(layer).shape[-1], len(images))
    labels = net.targets(targets, len(images))
    stages, count = None, len(squares.corners)
    if net.is_convnet:
        ends = squares.corners + squares.size
        stages = windows.plan_occlusion(net.model.arch, squares.corners, ends)
    responses: list[_Response] = []
    for index, image in _each_image(net, images):

        def report(done: int, start: int = index * count) -> None:
            if progress is not None:
                progress(start + done, len(images) * count)

        unit = None if chosen is None else chosen[index]
        responses.append(_respond(net, stages, image, squares, layer, unit, report))
    x = _Response(*map(np.stack, zip(*responses, strict=True)))
    logits = x.logits.reshape(len(x.unit), len(squares.tops), len(squares.lefts), -1)
    each = np.arange(len(logits))
    return Occlusion(
        targets=labels,
        tops=squares.tops,
        lefts=squares.lefts,
        size=squares.size,
        logits=logits,
        probability=np.asarray(jax.nn.softmax(logits))[each, ..., labels],
        label=logits.argmax(-1).astype(np.int32),
        activity=x.activity.reshape(logits.shape[:3]),
        layer=layer,
        units=x.unit,
        clean_logits=x.clean_logits,
        clean_probability=np.asarray(jax.nn.softmax(x.clean_logits))[each, labels],
        clean_activity=x.clean_activity,
    )


class _Squares(NamedTuple):
    """All positions of a square, and what shows in it."""

    tops: Int32[np.ndarray, " rows"]
    lefts: Int32[np.ndarray, " cols"]
    corners: Int32[np.ndarray, "positions 2"]
    size: Pair
    cover: Float32[np.ndarray, "h w c"]


class _Response(NamedTuple):
    """Responses to one image; with one more axis in front, to several."""

    logits: Any  # [positions, classes]
    activity: Any  # [positions]
    unit: Any
    clean_logits: Any
    clean_activity: Any


def _place_squares(
    image_shape: tuple[int, int, int], size: Any, stride: Any, fill: Any
) -> _Squares:
    height, width, _ = image_shape
    size, stride = _pair("size", size), _pair("stride", stride)
    if size[0] > height or size[1] > width:
        raise ValueError(
            f"size {size}: a square of {size[0]} x {size[1]} pixels does not fit an "
            f"image of {height} x {width}"
        )
    try:
        cover = np.broadcast_to(np.asarray(fill, np.float32), image_shape)
    except ValueError:
        raise ValueError(
            f"fill of shape {np.shape(fill)} does not fit images of {image_shape}"
        ) from None
    tops, lefts = (
        np.minimum(np.arange(-(-(extent - side) // step) + 1) * step, extent - side)
        for extent, side, step in zip((height, width), size, stride, strict=True)
    )
    tops, lefts = tops.astype(np.int32), lefts.astype(np.int32)
    corners = np.stack(np.meshgrid(tops, lefts, indexing="ij"), -1).reshape(-1, 2)
    return _Squares(tops, lefts, corners, size, cover)


def _last_convolution(net: Network) -> str:
    names = [layer.name for layer in net.layers.values() if layer.kind == "conv"]
    if not names:
        raise ValueError("the network has no convolution: name a layer with maps")
    return names[-1]


def _each_image(net: Network, images: Any) -> Iterator[tuple[int, np.ndarray]]:
    """Each image as a batch of one; several devices get several together."""
    for start, batch, real in net.batches(images, 1):
        for i in range(real):
            yield start + i, batch[i : i + 1]


def _respond(
    net: Network,
    stages: Sequence[windows.Stage] | None,
    image: Float[np.ndarray, "1 h w c"],
    squares: _Squares,
    layer: str,
    unit: np.integer | None,
    report: Callable[[int], None],
) -> _Response:
    """Cover an image at all positions; of a ConvNet, `stages` say what to compute."""
    needed = (layer, net.output) if stages is None else tuple(net.layers)
    features = _features(net, image, needed)
    clean, clean_logits = (np.asarray(features[x][0]) for x in (layer, net.output))
    number = np.int32(clean.max((0, 1)).argmax() if unit is None else unit)
    features["image"] = jnp.asarray(image, features[layer].dtype)
    parts, count = [], len(squares.corners)
    for rows in _split(count, _WINDOWS if stages else _IMAGES):
        corners = squares.corners[rows]
        covered = squares.cover, corners, squares.size
        if stages is None:
            part = _cover_images(net, features["image"][0], *covered, layer, number)
        else:
            part = _cover_windows(
                net.model, stages, features, *covered, rows, layer, number
            )
        parts.append(jax.tree.map(np.asarray, part))
        report(int(rows[-1]) + 1)
    logits, activity = (np.concatenate(x)[:count] for x in zip(*parts, strict=True))
    return _Response(
        logits,
        activity,
        number,
        clean_logits.astype(np.float32),
        clean[..., number].sum(dtype=np.float32),
    )


def share_on(values: Float[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"]) -> float:
    """Share of a map's positive values that lies on an object.

    Args:
        values: One number per pixel, such as `Occlusion.by_pixel` of a drop.
        mask: True on the object.

    Returns:
        From 0 to 1; NaN where no value is positive. A constant map has the object's
        share of the image, which is chance.
    """
    positive = np.maximum(values, 0)
    total = positive.sum()
    return float(positive[mask].sum() / total) if total > 0 else math.nan


def drop_on_objects(
    responses: Occlusion, masks: Bool[np.ndarray, "n h w"]
) -> dict[str, Any]:
    """Measure how much of the drop in probability lies on the objects.

    Args:
        responses: Responses to n images.
        masks: True on the object of each image.

    Returns:
        The mean share on an image's own object, with its standard error; "chance", the
        share of a drop that is the same everywhere; and the share on the objects of
        other images, which a drop has that only knows where objects usually are. NaN
        where it cannot be known.
    """
    clean = responses.clean_probability[:, None, None]
    drops = responses.by_pixel(clean - responses.probability)
    shares = np.array([[share_on(drop, mask) for mask in masks] for drop in drops])
    known = ~np.isnan(shares[:, 0])
    own = np.diag(shares)[known]
    other = shares[known][~np.eye(len(masks), dtype=bool)[known]]
    return {
        "images": int(known.sum()),
        "share": own.mean() if len(own) else math.nan,
        "standard_error": spread(own) / math.sqrt(len(own)) if len(own) else math.nan,
        "chance": masks.mean(),
        "on_other_objects": other.mean() if len(other) else math.nan,
    }


def _pair(name: str, value: Any) -> Pair:
    pixels = np.asarray(value)
    if pixels.shape not in ((), (2,)) or not np.issubdtype(pixels.dtype, np.integer):
        raise ValueError(f"{name} is a number of pixels or a pair of them, not {value}")
    if pixels.min() < 1:
        raise ValueError(f"{name} must be at least 1 pixel, not {value}")
    rows, columns = np.broadcast_to(pixels, 2).tolist()
    return rows, columns


def _check_units(
    units: Any, layer: str, width: int, count: int
) -> Int[np.ndarray, " n"] | None:
    if units is None:
        return None
    array = np.asarray(units)
    if array.shape not in {(), (count,)}:
        raise ValueError(f"units of shape {array.shape} for {count} images")
    outside = array[(array < 0) | (array >= width)]
    if outside.size:
        raise ValueError(
            f"unit {outside[0]}: {layer} has {width} units (0 to {width - 1})"
        )
    return np.broadcast_to(array, count)


def _split(count: int, together: int) -> list[Int[np.ndarray, " k"]]:
    """Indices in parts of one size; the last part repeats the last index."""
    parts = -(-count // together)
    return np.split(np.arange(parts * -(-count // parts)).clip(max=count - 1), parts)


@functools.partial(jax.jit, static_argnames="layers")
def _features(net: Network, images: Array, layers: tuple[str, ...]) -> dict[str, Array]:
    return net.features(images, layers)


@functools.partial(jax.jit, static_argnames=("size", "layer"))
def _cover_images(
    net: Network,
    image: Float[Array, "h w c"],
    cover: Array,
    corners: Array,
    size: Pair,
    layer: str,
    unit: Array,
) -> tuple[Array, Array]:
    """Logits and activity of any network, from one covered image per square."""
    boxes = jnp.concatenate([corners, corners + np.array(size)], 1)
    images = jnp.broadcast_to(image, (len(boxes), *image.shape))
    covered = mask_boxes(images, boxes, fill=cover)
    features = net.features(covered, (layer, net.output))
    activity = features[layer][..., unit].astype(jnp.float32).sum((1, 2))
    return features[net.output].astype(jnp.float32), activity


def _cover_windows(
    model: ConvNet,
    stages: Sequence[windows.Stage],
    features: Mapping[str, Array],
    cover: np.ndarray,
    corners: np.ndarray,
    size: Pair,
    rows: np.ndarray,
    layer: str,
    unit: np.int32,
) -> tuple[Array, Array]:
    """Compute the same as `_cover_images`, but only what the squares change."""
    dtype = features["image"].dtype
    patches = _cut_squares(jnp.asarray(cover, dtype), corners, size)
    activity = jnp.zeros(0)
    for stage in stages:
        patches = windows.recompute(model, stage, features, patches, rows)
        if stage.layer is not None and stage.layer.name == layer:
            starts = stage.out.corners[rows]
            activity = _sum_map(features[layer][0], patches, starts, unit)
    return _classify(model, patches), activity


@functools.partial(jax.jit, static_argnames="size")
def _cut_squares(cover: Array, corners: Array, size: Pair) -> Array:
    def cut_one(corner: Array) -> Array:
        return lax.dynamic_slice(
            cover, (*corner, np.int32(0)), (*size, cover.shape[-1])
        )

    return lax.map(cut_one, corners)


@jax.jit
def _sum_map(clean: Array, patches: Array, starts: Array, unit: Array) -> Array:
    """Sum of one map with its changes."""

    def sum_one(item: tuple[Array, Array]) -> Array:
        patch, start = item
        changed = lax.dynamic_update_slice(clean[..., unit], patch, tuple(start))
        return changed.astype(jnp.float32).sum()

    return lax.map(sum_one, (patches[..., unit], starts))


@jax.jit
def _classify(model: ConvNet, flat: Array) -> Array:
    return model.classify(flat).astype(jnp.float32)
