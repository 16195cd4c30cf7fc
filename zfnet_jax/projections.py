"""Projections of single activations: what in an image activated a unit (Fig. 2)."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from zfnet_jax import windows
from zfnet_jax.arch import ReceptiveField, receptive_field
from zfnet_jax.crops import Crop, find_crop, project_crops
from zfnet_jax.deconvnet import pull_back
from zfnet_jax.model import ConvNet
from zfnet_jax.networks import Network, as_network
from zfnet_jax.relu_rules import Rule, check_rule
from zfnet_jax.results import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BATCH_SIZE = 16
# Projections that `show` draws.
_SHOWN = 64
# Activations whose backward passes share a program.
_POINTS = 64
# Numbers of the largest layer that stay in a CPU's cache.
_CACHED = 1 << 18


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Projections(Result):
    """Projections of n activations, and which activations they are.

    `zfnet_jax.viz.contrast.to_display` maps one to gray levels, as `show` does.

    Attributes:
        pixels: [n, h, w, c], signed, in the units of the activation: whole images, or
            crops of the receptive field. A crop is zero where it leaves the image.
        boxes: int32 [n, 4], the receptive fields in pixels: top, left, bottom, right.
            Bottom and right are exclusive; boxes may leave the image.
        images: int32 [n], index of the image.
        units: int32 [n], index of the feature map or dense unit.
        positions: int32 [n, 2], row and column in the map; (0, 0) in a dense layer.
        activations: [n], the activation that was projected.
    """

    pixels: Float[np.ndarray, "n h w c"]
    boxes: Int[np.ndarray, "n 4"]
    images: Int[np.ndarray, " n"]
    units: Int[np.ndarray, " n"]
    positions: Int[np.ndarray, "n 2"]
    activations: Float[np.ndarray, " n"]

    def __len__(self) -> int:
        """Number of projections."""
        return len(self.pixels)

    def show(self) -> Figure:
        """Draw the first projections, at most 64, each on its own scale."""
        from zfnet_jax.viz.projections import draw_projections

        if not len(self):
            raise ValueError("there are no projections to show")
        several = len(np.unique(self.images)) > 1
        rows = zip(self.units, self.activations, self.images, strict=True)
        captions = [
            (f"unit {unit}", f"activation {value:.3g}{f', image {image}' * several}")
            for unit, value, image in itertools.islice(rows, _SHOWN)
        ]
        title = f"{len(self):,} projection{'s' * (len(self) != 1)}"
        more = f" The first {_SHOWN} are drawn." * (len(self) > _SHOWN)
        pixels, units = {"": self.pixels[:_SHOWN]}, self.units[:_SHOWN]
        return draw_projections(title, captions, pixels, units, note=more)


def project(
    net: Network | Any,
    images: Any,
    layer: str,
    units: int | Sequence[int] | np.ndarray | None = None,
    positions: Sequence[int] | np.ndarray | None = None,
    *,
    rule: Rule = "deconvnet",
    strict: bool = True,
    crop: bool = False,
) -> Projections:
    """Project single activations of a layer back to pixels (section 2.1).

    All other activations of the layer are set to zero. The chosen one keeps its value,
    so a projection scales with its activation, and that of an inactive unit is zero.

    Example:
        >>> import numpy as np, zfnet_jax as zf
        >>> from flax import nnx
        >>> model = zf.ConvNet(zf.ZFNET32, rngs=nnx.Rngs(0))
        >>> images = np.random.default_rng(0).normal(size=(2, 32, 32, 3))
        >>> projections = project(model, images, "conv2", units=[3, 17], crop=True)
        >>> projections.pixels.shape, projections.units.tolist()
        ((4, 11, 11, 3), [3, 17, 3, 17])

    Args:
        net: A `Network`, or any model that `zf.network` takes.
        images: Preprocessed images; they are read in batches.
        layer: Name of the layer.
        units: Feature maps or dense units: one, [u] for all images, or [b, u], each
            image's own. None: each image's strongest unit.
        positions: Row and column of the activation: (2,) for all, [b, 2] one per image,
            or [b, u, 2] one per image and unit. None: each unit's strongest position,
            the first in row-major order on a tie.
        rule: Backward rule for ReLUs, as in `backproject`.
        strict: Refuse operations that "deconvnet" and "guided" say nothing about.
        crop: Return the receptive fields instead of whole images.

    Returns:
        Projections over images, then units, as NumPy arrays: float32, or float64 for a
        float64 network.

    Raises:
        ValueError: There is no such layer, unit, position or rule, or the images do not
            fit the network.
    """
    net, images = as_network(net, images)
    check_rule(rule)
    target = net.layer(layer)
    units = _check_units(units, layer, target.shape[-1], len(images))
    per_image = 1 if units is None else units.shape[1]
    positions = _check_positions(positions, layer, target.shape, len(images), per_image)
    *image_hw, channels = net.image_shape
    field = receptive_field(net, layer)
    shape = len(images) * per_image, *(field.size if crop else image_hw), channels
    pixels, parts = np.zeros(0), []
    batch_size = _BATCH_SIZE if net.is_convnet else _fit(net, 1, _BATCH_SIZE)
    for start, batch, count in net.batches(images, batch_size):
        activations, backward = _start(net, batch, layer, rule, strict)
        chosen = slice(start, start + count)
        points = _choose(
            np.asarray(activations)[:count],
            None if units is None else units[chosen],
            None if positions is None else positions[chosen],
        )
        parts.append(points._replace(images=points.images + np.int32(start)))
        if not pixels.size:
            # Pages of zeros that no window touches take no time and no memory.
            pixels = np.zeros(shape, points.activations.dtype)
        corners = _corners(field, points.positions).tolist()
        pictures = pixels[start * per_image :]
        for rows, patches, places in backward(points):
            for row, patch, place in zip(rows, patches, places.tolist(), strict=True):
                _paste(patch, place, pictures[row], corners[row] if crop else (0, 0))
    points = windows.Points(*map(np.concatenate, zip(*parts, strict=True)))
    corners = _corners(field, points.positions)
    boxes = np.concatenate([corners, corners + np.array(field.size, np.int32)], axis=1)
    return Projections(pixels, boxes, *points)


# Points by number, their pixels, and where in the image these begin.
Pixels = Iterator[
    tuple[Int[np.ndarray, " k"], Float[np.ndarray, "k h w c"], Int[np.ndarray, "k 2"]]
]


def _start(
    net: Network, images: np.ndarray, layer: str, rule: Rule, strict: bool
) -> tuple[Array | np.ndarray, Callable[[windows.Points], Pixels]]:
    """Activations of a layer, and a function that projects points, in parts."""
    if net.is_convnet:
        trace = windows.forward(net.model, images, layer, rule)
        backward = functools.partial(_backward_windows, net.model, trace, layer, rule)
        return trace.activations, backward
    if (crop := find_crop(net, layer)) is not None:
        activations = net.activations(images, layer, batch_size=len(images))[layer]
        backward = functools.partial(_backward_crops, net, crop, images, rule, strict)
        return activations, backward
    return _start_whole(net, images, layer, rule, strict)


def _start_whole(
    net: Network, images: np.ndarray, layer: str, rule: Rule, strict: bool
) -> tuple[Array | np.ndarray, Callable[[windows.Points], Pixels]]:
    together = _fit(net, len(images), _POINTS)
    activations, pull = pull_back(net, images, layer, rule, strict)
    return activations, functools.partial(_backward_images, pull, activations, together)


def _backward_windows(
    model: ConvNet,
    trace: windows.Trace,
    layer: str,
    rule: Rule,
    points: windows.Points,
) -> Pixels:
    """Pixels of the receptive fields; powers of two, so that few sizes are compiled."""
    rows = np.arange(len(points.units))
    for part in np.split(rows, rows[_POINTS::_POINTS]):
        padded = np.resize(part, _power_of_two(len(part)))
        chosen = windows.Points(*(array[padded] for array in points))
        pixels = np.asarray(windows.backward(model, trace, chosen, layer, rule))
        whole = pixels.shape[1:3] == model.arch.input_hw
        field = receptive_field(model.arch, layer)
        places = _corners(field, chosen.positions) * (not whole)
        yield part, pixels[: len(part)], places[: len(part)]


def _backward_crops(
    net: Network,
    crop: Crop,
    images: np.ndarray,
    rule: Rule,
    strict: bool,
    points: windows.Points,
) -> Pixels:
    """Crops that hold the receptive fields, a few in one program."""
    together = _fit(crop.net, 1, _POINTS)
    corners, positions = crop.place(points.positions)
    moved = points._replace(positions=positions)
    rows = np.arange(len(points.units))
    for part in np.split(rows, rows[together::together]):
        padded = np.resize(part, min(together, _power_of_two(len(part))))
        chosen = windows.Points(*(array[padded] for array in moved))
        pixels, values = project_crops(
            crop.net, images, corners[padded], chosen, crop.layer, rule, strict
        )
        if not np.allclose(values, chosen.activations, rtol=1e-3, atol=1e-5):
            # The network depends on the position in the image, as a map of
            # coordinates does.
            _, backward = _start_whole(net, images, crop.layer, rule, strict)
            yield from backward(points)
            return
        yield part, np.asarray(pixels)[: len(part)], corners[part]


def _backward_images(
    pull: Callable[[Array], tuple[Array]],
    activations: Array,
    together: int,
    points: windows.Points,
) -> Pixels:
    """Whole images, for a few units of all images in one program."""
    count = int(points.images[-1]) + 1
    rows = np.arange(len(points.units)).reshape(count, -1).T
    for start in range(0, len(rows), _POINTS):
        part = rows[start : start + _POINTS]
        padded = np.resize(part, (_power_of_two(len(part)), count))
        chosen = windows.Points(*(array[padded] for array in points))
        pixels = np.asarray(_pull_points(pull, activations, chosen, together))
        pixels = pixels[: len(part), :count].reshape(-1, *pixels.shape[2:])
        yield part.ravel(), pixels, np.zeros((part.size, 2), np.int32)


@functools.partial(jax.jit, static_argnames="together")
def _pull_points(
    pull: Callable[[Array], tuple[Array]],
    activations: Array,
    points: windows.Points,
    together: int,
) -> Float[Array, "u b h w c"]:
    def pull_one(points: windows.Points) -> Array:
        place = (points.images,)
        if activations.ndim == 4:
            place = points.images, points.positions[:, 0], points.positions[:, 1]
        signal = jnp.zeros_like(activations)
        signal = signal.at[*place, points.units].set(points.activations)
        return pull(signal)[0]

    return lax.map(pull_one, points, batch_size=together)


def _fit(net: Network, images: int, most: int) -> int:
    """Count the signals of one program: on the CPU those that stay in its cache."""
    if jax.default_backend() != "cpu":
        return most
    largest = max(math.prod(layer.shape) for layer in net.layers.values())
    return max(1, min(most, _CACHED // (images * largest)))


def _strongest(
    activations: Float[np.ndarray, "b h w c"], units: Int[np.ndarray, "b u"]
) -> Int[np.ndarray, "b u 2"]:
    """Row and column of each unit's strongest activation, the first on a tie."""
    batch, _, width, _ = activations.shape
    maps = np.take_along_axis(activations, units[:, None, None], axis=-1)
    flat = maps.reshape(batch, -1, units.shape[1]).argmax(axis=1)
    return np.stack(np.divmod(flat, width), axis=-1)


def _choose(
    activations: np.ndarray, units: np.ndarray | None, positions: np.ndarray | None
) -> windows.Points:
    """The points to project, over images and then units."""
    maps = activations[:, None, None] if activations.ndim == 2 else activations
    images = np.arange(len(maps), dtype=np.int32)[:, None]
    if units is None:
        best = maps.max((1, 2))
        if positions is not None:
            best = maps[images[:, 0], *positions[:, 0].T]
        units = np.asarray(best.argmax(1), np.int32)[:, None]
    places = _strongest(maps, units) if positions is None else positions
    images = np.broadcast_to(images, units.shape).ravel()
    places = np.broadcast_to(places, (*units.shape, 2)).reshape(-1, 2)
    values = maps[images, *places.T, units.ravel()]
    return windows.Points(images, units.ravel(), places.astype(np.int32), values)


def _check_units(
    units: Any, layer: str, width: int, batch: int
) -> Int[np.ndarray, "b u"] | None:
    if units is None:
        return None
    array = np.atleast_1d(units)
    shapes = {array.shape[-1:], (batch, array.shape[-1])}
    if not np.issubdtype(array.dtype, np.integer) or array.shape not in shapes:
        raise ValueError(
            f"units are {array.dtype}{list(array.shape)}: give whole numbers, one, "
            f"[units], or each image's own, [{batch}, units]"
        )
    outside = array[(array < 0) | (array >= width)]
    if outside.size or not array.size:
        unit = outside[0] if outside.size else "missing"
        raise ValueError(f"unit {unit}: {layer} has {width} units (0 to {width - 1})")
    return np.broadcast_to(array, (batch, array.shape[-1])).astype(np.int32)


def _check_positions(
    positions: Any, layer: str, shape: tuple[int, ...], batch: int, per_image: int
) -> Int[np.ndarray, "b u 2"] | None:
    """Positions [b, u, 2], or [b, 1, 2] where all units share them."""
    if positions is None:
        return None
    array = np.asarray(positions)
    shapes = {(2,), (batch, 2), (batch, per_image, 2)}
    if not np.issubdtype(array.dtype, np.integer) or array.shape not in shapes:
        raise ValueError(
            f"positions are {array.dtype}{list(array.shape)}: give whole numbers (row, "
            f"column), one, one per image, [{batch}, 2], or one per image and unit, "
            f"[{batch}, {per_image}, 2]"
        )
    height, width = shape[:2] if len(shape) == 3 else (1, 1)
    outside = array[((array < 0) | (array >= (height, width))).any(-1)]
    if outside.size:
        raise ValueError(
            f"position {tuple(outside.reshape(-1, 2)[0].tolist())} is outside the "
            f"{height} x {width} map of {layer}"
        )
    if array.ndim < 3:
        array = np.broadcast_to(array, (batch, 2))[:, None]
    return array.astype(np.int32)


def _power_of_two(count: int) -> int:
    """The least power of two that is no smaller."""
    return 1 << (count - 1).bit_length()


def _corners(field: ReceptiveField, positions: np.ndarray) -> Int[np.ndarray, "n 2"]:
    """First row and column of each position's receptive field; maybe outside."""
    stride, start = np.array([field.stride, field.start], np.int32)
    return positions * stride + start


def _paste(
    source: np.ndarray,
    source_corner: Sequence[int],
    target: np.ndarray,
    target_corner: Sequence[int],
) -> None:
    """Copy one picture into another where they overlap, each placed by its corner."""
    cuts: list[list[slice]] = [[], []]
    for axis in (0, 1):
        starts = source_corner[axis], target_corner[axis]
        ends = starts[0] + source.shape[axis], starts[1] + target.shape[axis]
        low, high = max(starts), max(*starts, min(ends))
        for cut, start in zip(cuts, starts, strict=True):
            cut.append(slice(low - start, high - start))
    target[tuple(cuts[1])] = source[tuple(cuts[0])]
