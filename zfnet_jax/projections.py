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
from zfnet_jax.crops import Crop, cut_crops, find_crop
from zfnet_jax.deconvnet import pull_back
from zfnet_jax.model import ConvNet
from zfnet_jax.networks import Network, as_network
from zfnet_jax.relu_rules import Rule, check_rule
from zfnet_jax.results import Result, spell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Images whose projections share a program.
BATCH_SIZE = 16
# Projections that `show` draws, and the most pixels that it draws side by side.
_SHOWN, _ACROSS = 64, 1024
# Activations whose backward passes share a program.
_POINTS = 64
# Numbers of the largest layer that stay in a CPU's cache.
_CACHED = 1 << 19


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

    def show(self, images: Any = None) -> Figure:
        """Draw the first projections, at most 64, each on its own scale.

        Args:
            images: The images that `load_images` opened, to draw the patch in the
                receptive field beside each projection.
        """
        from zfnet_jax.viz.patches import cut_patches
        from zfnet_jax.viz.projections import draw_projections

        if not len(self):
            raise ValueError("there are no projections to show")
        several = len(np.unique(self.images)) > 1
        rows = zip(self.units, self.activations, self.images, strict=True)
        captions = [
            (f"unit {unit}", f"activation {spell(value)}{f', image {image}' * several}")
            for unit, value, image in itertools.islice(rows, _SHOWN)
        ]
        title = f"{len(self):,} projection{'s' * (len(self) != 1)}"
        more = f" The first {_SHOWN} are drawn." * (len(self) > _SHOWN)
        pixels, units = {"": self.pixels[:_SHOWN]}, self.units[:_SHOWN]
        patches = None
        if images is not None:
            pictures = images.pictures[self.images[:_SHOWN]]
            patches = cut_patches(pictures, self.boxes[:_SHOWN])
        return draw_projections(
            title, captions, pixels, units, note=more, patches=patches, width=_ACROSS
        )


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
        Projections over images, then units, as NumPy arrays in float32, or in float64
        for a float64 network.

    Raises:
        ValueError: There is no such layer, unit, position or rule, or the images do not
            fit the network.
    """
    net, images = as_network(net, images)
    check_rule(rule)
    shape, count = net.layer(layer).shape, len(images)
    units = _check_units(units, layer, shape[-1], count)
    per_image = 1 if units is None else units.shape[1]
    positions = _check_positions(positions, layer, shape, count, per_image)

    def choose(rows: slice, activate: Activate) -> windows.Points:
        return _choose(
            np.asarray(activate())[: rows.stop - rows.start],
            None if units is None else units[rows],
            None if positions is None else positions[rows],
        )

    return project_by_rules(
        net, images, layer, per_image, choose, (rule,), strict=strict, crop=crop
    )[0]


# Gives the activations of a batch.
Activate = Callable[[], Array | np.ndarray]


def project_by_rules(
    net: Network,
    images: Any,
    layer: str,
    per_image: int,
    choose: Callable[[slice, Activate], windows.Points],
    rules: tuple[Rule, ...],
    *,
    strict: bool,
    crop: bool,
) -> list[Projections]:
    """Project as `project` does, by several rules that share a forward pass.

    `choose` gives the points of some images; only some need the activations for it.
    """
    *image_hw, channels = net.image_shape
    field = receptive_field(net, layer)
    shape = len(images) * per_image, *(field.size if crop else image_hw), channels
    pixels, parts = np.zeros((len(rules), 0)), []
    batch_size = max(1, min(BATCH_SIZE, _POINTS // per_image))
    for start, batch, count in net.batches(images, batch_size):
        activate, backward = _start(net, batch, layer, rules, strict)
        points = choose(slice(start, start + count), activate)
        parts.append(points._replace(images=points.images + np.int32(start)))
        if not pixels.size:
            # Pages of zeros that no window touches take no time and no memory.
            pixels = np.zeros((len(rules), *shape), points.activations.dtype)
        corners = _corners(field, points.positions).tolist()
        pictures = pixels[:, start * per_image :]
        for rows, patches, places in backward(points):
            for row, patch, place in zip(rows, patches, places.tolist(), strict=True):
                corner = corners[row] if crop else (0, 0)
                _paste(patch, place, pictures[:, row], corner)
    points = windows.Points(*map(np.concatenate, zip(*parts, strict=True)))
    corners = _corners(field, points.positions)
    boxes = np.concatenate([corners, corners + np.array(field.size, np.int32)], axis=1)
    return [Projections(by_rule, boxes, *points) for by_rule in [*pixels]]


# Points by number, their pixels by each rule, and where in the image these begin.
Pixels = Iterator[
    tuple[Int[np.ndarray, " k"], Float[np.ndarray, "k r h w c"], Int[np.ndarray, "k 2"]]
]


def _start(
    net: Network,
    images: np.ndarray,
    layer: str,
    rules: tuple[Rule, ...],
    strict: bool,
) -> tuple[Activate, Callable[[windows.Points], Pixels]]:
    """Functions that give the activations of a layer, and project points in parts."""
    if net.is_convnet:
        trace = windows.forward(net.model, images, layer, rules)
        backward = functools.partial(_backward_windows, net.model, trace, layer, rules)
        return lambda: trace.activations, backward

    def activate() -> np.ndarray:
        return net.activations(images, layer, batch_size=len(images))[layer]

    backward, crop = _backward_images, find_crop(net, layer)
    if crop is not None:
        backward = functools.partial(_backward_crops, crop)
    return activate, functools.partial(backward, net, images, layer, rules, strict)


def _backward_windows(
    model: ConvNet,
    trace: windows.Trace,
    layer: str,
    rules: tuple[Rule, ...],
    points: windows.Points,
) -> Pixels:
    """Pixels of the receptive fields; powers of two, so that few sizes are compiled."""
    rows = np.arange(len(points.units))
    for part in np.split(rows, rows[_POINTS::_POINTS]):
        padded = np.resize(part, _power_of_two(len(part)))
        chosen = windows.Points(*(array[padded] for array in points))
        by_rule = [windows.backward(model, trace, chosen, layer, x) for x in rules]
        pixels = np.stack(by_rule, 1)
        whole = pixels.shape[2:4] == model.arch.input_hw
        field = receptive_field(model.arch, layer)
        places = _corners(field, chosen.positions) * (not whole)
        yield part, pixels[: len(part)], places[: len(part)]


def _backward_crops(
    crop: Crop,
    net: Network,
    images: np.ndarray,
    layer: str,
    rules: tuple[Rule, ...],
    strict: bool,
    points: windows.Points,
) -> Pixels:
    """Crops that hold the receptive fields, each with its own forward pass."""
    together, size = _fit(crop.net), crop.net.image_shape
    corners, positions = crop.place(points.positions)
    moved = points._replace(positions=positions)
    rows = np.arange(len(points.units))
    for part in np.split(rows, rows[_POINTS::_POINTS]):
        padded = np.resize(part, _power_of_two(max(len(part), len(images))))
        crops = cut_crops(images, points.images[padded], corners[padded], size)
        chosen = windows.Points(*(array[padded, None] for array in moved))
        pixels, values = _pull_points(
            crop.net, crops, chosen, layer, rules, strict, together
        )
        if not np.allclose(values, chosen.activations, rtol=1e-3, atol=1e-5):
            # The network depends on the position in the image, as a map of
            # coordinates does.
            yield from _backward_images(net, images, layer, rules, strict, points)
            return
        yield part, np.asarray(pixels)[: len(part), 0], corners[part]


def _backward_images(
    net: Network,
    images: np.ndarray,
    layer: str,
    rules: tuple[Rule, ...],
    strict: bool,
    points: windows.Points,
) -> Pixels:
    """Whole images, each with one forward pass for some of its units."""
    together, count = _fit(net), int(points.images[-1]) + 1
    rows = np.arange(len(points.units)).reshape(count, -1)
    for start in range(0, rows.shape[1], _POINTS):
        part = rows[:, start : start + _POINTS]
        padded = part[:, np.arange(_power_of_two(part.shape[1])) % part.shape[1]]
        padded = np.resize(padded, (len(images), padded.shape[1]))
        chosen = windows.Points(*(array[padded] for array in points))
        pixels, _ = _pull_points(net, images, chosen, layer, rules, strict, together)
        pixels = np.asarray(pixels)[:count, : part.shape[1]]
        pixels = pixels.reshape(-1, *pixels.shape[2:])
        yield part.ravel(), pixels, np.zeros((part.size, 2), np.int32)


@functools.partial(jax.jit, static_argnames=("layer", "rules", "strict", "together"))
def _pull_points(
    net: Network,
    images: Float[Array, "b h w c"],
    points: windows.Points,
    layer: str,
    rules: tuple[Rule, ...],
    strict: bool,
    together: int,
) -> tuple[Float[Array, "b u r h w c"], Float[Array, "b u"]]:
    """Projections of u points of each image by each rule, and their activations."""

    def pull_image(item: tuple[Array, windows.Points]) -> tuple[Array, Array]:
        image, points = item
        # XLA merges their forward passes.
        pulls = [pull_back(net, image[None], layer, rule, strict) for rule in rules]
        activations = pulls[0][0]

        def pull_one(point: windows.Points) -> tuple[Array, Array]:
            place = (0, *point.positions, point.units)
            if activations.ndim == 2:
                place = (0, point.units)
            signal = jnp.zeros_like(activations).at[place].set(point.activations)
            by_rule = [pull(signal)[0] for _, pull in pulls]
            return jnp.concatenate(by_rule), activations[place]

        return lax.map(pull_one, points, batch_size=together)

    return lax.map(pull_image, (images, points), batch_size=together)


def _fit(net: Network) -> int:
    """Count the signals to batch: on the CPU those that stay in its cache."""
    if jax.default_backend() != "cpu":
        return _POINTS
    largest = max(math.prod(layer.shape) for layer in net.layers.values())
    fitting = min(_POINTS, max(1, _CACHED // largest))
    return 1 << (fitting.bit_length() - 1)


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
    """Copy pictures [n, h, w, c] into others where they overlap, placed by corners."""
    cuts: list[list[slice]] = [[slice(None)], [slice(None)]]
    for axis in (0, 1):
        starts = source_corner[axis], target_corner[axis]
        ends = [
            start + picture.shape[1 + axis]
            for start, picture in zip(starts, (source, target), strict=True)
        ]
        low, high = max(starts), max(*starts, min(ends))
        for cut, start in zip(cuts, starts, strict=True):
            cut.append(slice(low - start, high - start))
    target[tuple(cuts[1])] = source[tuple(cuts[0])]
