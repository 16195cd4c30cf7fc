"""The deconvnet: activations of any layer back to pixels (section 2.1).

One forward pass gives activations and switches. A projection then keeps some
activations of one layer and goes down through the layers by unpooling, rectification
and filtering with the transposed kernels: a pure function of what the forward pass saw,
so a further unit costs no further forward pass. A single activation goes down inside
its receptive field only, as a window that grows from layer to layer.

Guided backpropagation and the gradient are the same way down with another rule at the
ReLUs (docs/fidelity.md).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int, Shaped

from zfnet_jax import cpu, ops
from zfnet_jax.arch import (
    Architecture,
    ContrastNorm,
    Conv,
    Dense,
    Layer,
    MaxPool,
    Pair,
    ReceptiveField,
    Shape,
    map_hw,
    receptive_field,
)
from zfnet_jax.model import ConvNet

Mode = Literal["unit", "map", "threshold"]
Rule = Literal["deconvnet", "guided", "gradient"]
Norm = Literal["skip", "backprop"]
Overlap = Literal["sum"]

_IMAGES_AT_ONCE = 16
# So many activations go down in one program, and from each layer on as many together as
# keep what it computes in a part of a processor's cache.
_AT_ONCE = 64
_CACHE_BYTES = 1 << 23


@dataclasses.dataclass(frozen=True, eq=False)
class Projections:
    """Projections of n activations, and which they are.

    Attributes:
        pixels: [n, h, w, c]: whole images, or crops of the receptive field's size.
        boxes: int32 [n, 4]: top, left, bottom, right of what the activation sees,
            exclusive and not clipped; a crop is 0 where it leaves the image.
        images: int32 [n], index of the image.
        units: int32 [n], index of the feature map or dense unit.
        positions: int32 [n, 2], row and column in the map; 0, 0 in a dense layer.
        values: [n], the activation.
    """

    pixels: Float[np.ndarray, "n h w c"]
    boxes: Int[np.ndarray, "n 4"]
    images: Int[np.ndarray, " n"]
    units: Int[np.ndarray, " n"]
    positions: Int[np.ndarray, "n 2"]
    values: Float[np.ndarray, " n"]

    def __len__(self) -> int:
        """Number of projections."""
        return len(self.pixels)


def project(
    model: ConvNet,
    images: Float[Array | np.ndarray, "b h w c"],
    layer: str,
    units: int | Sequence[int] | Int[np.ndarray, " u"] | Int[np.ndarray, "b u"],
    positions: Sequence[Sequence[int]] | np.ndarray | None = None,
    *,
    mode: Mode = "unit",
    rule: Rule = "deconvnet",
    overlap: Overlap = "sum",
    norm: Norm = "skip",
    threshold: float = 0.0,
    local: bool = True,
    crop: bool = False,
) -> Projections:
    """Project activations of a layer back to pixels (section 2.1).

    What is kept keeps its value, so a projection scales with its activation, and that
    of a unit that is not active is zero.

    Args:
        model: The network.
        images: Preprocessed images of the network's size.
        layer: Any layer, up to `logits`.
        units: Feature maps or dense units: one, the same for all images, or each
            image's own, [b, u].
        positions: Row and column of the activations to keep: [p, 2] for all images and
            units, or [b, u, p, 2]. None: each unit's strongest, the first in row-major
            order on a tie.
        mode: "unit" keeps one activation and zeros all others; "map" keeps the unit's
            whole map; "threshold" keeps what is greater than `threshold` in the map.
        rule: What a ReLU does on the way down: "deconvnet" rectifies what comes down,
            "gradient" passes it where the forward ReLU was active, "guided" does both.
        overlap: What pooling windows that share a maximum do: "sum" or "last", as in
            `ops.unpool`.
        norm: Contrast normalisation on the way down: "skip" passes, "backprop" sends
            through its derivative.
        threshold: For mode "threshold" only.
        local: Compute inside the receptive field only; equal to rounding, and faster.
        crop: Give the receptive fields only, not whole images.

    Returns:
        Projections over images, then units, then positions, as NumPy arrays: float32,
        or float64 for a float64 network. In modes "map" and "threshold" the position
        and value are the strongest activation's, and the box is the whole image.

    Raises:
        ValueError: the images do not fit the network, or there is no such layer, unit,
            position, mode, rule, overlap or norm.
    """
    _check_choices(mode=mode, rule=rule, overlap=overlap, norm=norm)
    if mode != "unit" and positions is not None:
        raise ValueError(f"mode {mode!r} keeps a whole map and takes no positions")
    if mode != "threshold" and threshold:
        raise ValueError(f"mode {mode!r} takes no threshold")
    arch = model.arch
    shape = arch.shapes()[arch.layer(layer).name]
    chosen = _check_units(units, layer, shape, len(images))
    places = _check_positions(positions, layer, shape, chosen.shape)

    plan = _Plan(arch, layer, mode, rule, overlap, norm, local and mode == "unit")
    kernels = _kernels(plan, model)
    graph, weights = nnx.split(model)
    field = receptive_field(arch, layer) if mode == "unit" else _whole(arch.input_hw)
    shown_hw = field.size if crop else arch.input_hw
    each = chosen.shape[1] * (1 if places is None else places.shape[2])
    dtype = _precision(model)
    pixels = np.zeros((len(images) * each, *shown_hw, arch.channels), dtype)
    found: list[tuple[_Points, np.ndarray]] = []
    for first in range(0, len(images) or 1, _IMAGES_AT_ONCE):
        batch = np.asarray(images[first : first + _IMAGES_AT_ONCE])
        count = len(batch)
        missing = min(len(images), _IMAGES_AT_ONCE) - count
        batch = np.pad(batch, ((0, missing), *[(0, 0)] * (batch.ndim - 1)))
        trace = _forward(graph, weights, batch, layer, plan.masked, overlap, norm)
        here = slice(first, first + count)
        points, values = _points(
            np.asarray(trace.target)[:count],
            chosen[here],
            None if places is None else places[here],
        )
        rows = pixels[first * each :]
        for start, patches in _send_down(plan, kernels, trace, threshold, points):
            corners = _corners(field, points.position[start : start + len(patches)])
            whole = patches.shape[1:3] == arch.input_hw
            for i, corner in enumerate(corners.tolist()):
                seen_at = (0, 0) if whole else corner
                shown_at = corner if crop else (0, 0)
                _paste(patches[i], seen_at, rows[start + i], shown_at)
        found.append((points._replace(image=points.image + first), values))
    points = _Points(*map(np.concatenate, zip(*(p for p, _ in found), strict=True)))
    corners = _corners(field, points.position)
    return Projections(
        pixels,
        np.concatenate([corners, corners + np.array(field.size, np.int32)], axis=1),
        np.asarray(points.image),
        np.asarray(points.unit),
        np.asarray(points.position),
        np.concatenate([values for _, values in found]),
    )


def project_activations(
    model: ConvNet,
    images: Float[Array | np.ndarray, "b h w c"],
    layer: str,
    activations: Float[Array | np.ndarray, "b ..."],
    *,
    rule: Rule = "deconvnet",
    overlap: Overlap = "sum",
    norm: Norm = "skip",
) -> Float[Array, "b h w c"]:
    """Project given activations in place of a layer's own.

    They go down by the switches of the images and, where the rule asks, through the
    ReLUs that were active in them, the layer's own included. By the rule "gradient"
    that is the derivative of the sum of the layer's output times `activations`.

    Args:
        model: The network.
        images: Preprocessed images of the network's size.
        layer: Any layer, up to `logits`.
        activations: One for each of the layer's, in the shape of `ConvNet.features`.
        rule: As for `project`.
        overlap: As for `project`.
        norm: As for `project`.

    Returns:
        Whole images, float32, or float64 for a float64 network.

    Raises:
        ValueError: images or activations do not fit the network, or there is no such
            layer, rule, overlap or norm.
    """
    _check_choices(rule=rule, overlap=overlap, norm=norm)
    arch = model.arch
    shape = len(images), *arch.shapes()[arch.layer(layer).name]
    if activations.shape != shape:
        raise ValueError(
            f"activations of {layer} are of shape {shape}, not {activations.shape}"
        )
    plan = _Plan(arch, layer, "map", rule, overlap, norm, local=False)
    return _all_down(plan, *nnx.split(model), images, activations)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _all_down(
    plan: _Plan, graph, weights, images: Array, signal: Array
) -> Float[Array, "b h w c"]:
    """From whole maps to whole images, all of them together."""
    trace = _forward(
        graph, weights, images, plan.layer, plan.masked, plan.overlap, plan.norm
    )
    model = nnx.merge(graph, weights)
    kernels = _kernels(plan, model)
    each = np.arange(len(images), dtype=np.int32)
    points = _Points(each, np.zeros_like(each), np.zeros((len(each), 2), np.int32))
    signal = jnp.asarray(signal, _precision(model))
    for step in plan.steps:
        signal = _step_down(plan, step, kernels, trace, signal, points)
    return signal


def _check_choices(**choices: str) -> None:
    known = {"mode": Mode, "rule": Rule, "overlap": Overlap, "norm": Norm}
    for name, value in choices.items():
        if value not in get_args(known[name]):
            there = ", ".join(get_args(known[name]))
            raise ValueError(f"{name} {value!r} is not one of {there}")


def _check_units(
    units: int | Sequence[int] | np.ndarray, layer: str, shape: Shape, batch: int
) -> np.ndarray:
    """int32 [b, u]."""
    chosen = np.atleast_1d(np.asarray(units))
    if chosen.ndim == 1:
        chosen = np.broadcast_to(chosen, (batch, len(chosen)))
    if (
        chosen.ndim != 2
        or len(chosen) != batch
        or not chosen.shape[1]
        or not np.issubdtype(chosen.dtype, np.integer)
    ):
        raise ValueError(
            f"units of {layer} are whole numbers, [units] or each image's own, "
            f"[{batch}, units], not {chosen.dtype}{list(np.shape(units))}"
        )
    outside = chosen[(chosen < 0) | (chosen >= shape[-1])]
    if outside.size:
        raise ValueError(f"{layer} has units 0 to {shape[-1] - 1}, not {outside[0]}")
    return chosen.astype(np.int32)


def _check_positions(
    positions: object, layer: str, shape: Shape, counts: Pair
) -> np.ndarray | None:
    """int32 [b, u, p, 2], or None."""
    if positions is None:
        return None
    places = np.asarray(positions)
    if places.ndim == 2:
        places = np.broadcast_to(places, (*counts, *places.shape))
    if (
        places.ndim != 4
        or places.shape[:2] != counts
        or places.shape[2] < 1
        or places.shape[3] != 2
        or not np.issubdtype(places.dtype, np.integer)
    ):
        raise ValueError(
            f"positions are whole numbers of shape (p, 2) or ({counts[0]}, "
            f"{counts[1]}, p, 2), not {np.asarray(positions).shape}"
        )
    extent = (1, 1) if len(shape) == 1 else map_hw(shape)
    outside = ((places < 0) | (places >= extent)).any(-1)
    if outside.any():
        row, column = places[outside][0]
        raise ValueError(
            f"position ({row}, {column}) is outside the {extent[0]} x {extent[1]} "
            f"map of {layer}"
        )
    return places.astype(np.int32)


class _Points(NamedTuple):
    """Which activations to keep: int32 arrays."""

    image: Int[Array | np.ndarray, " n"]
    unit: Int[Array | np.ndarray, " n"]
    position: Int[Array | np.ndarray, "n 2"]


def _points(
    target: np.ndarray, units: np.ndarray, places: np.ndarray | None
) -> tuple[_Points, np.ndarray]:
    """The points over images, units and positions, and their activations."""
    maps = target[:, None, None] if target.ndim == 2 else target
    maps = np.take_along_axis(maps, units[:, None, None], -1)
    batch, height, width, count = maps.shape
    if places is None:
        strongest = maps.reshape(batch, height * width, count).argmax(1)
        places = np.stack(np.divmod(strongest, width), -1)[:, :, None]
    image, which, _ = np.indices(places.shape[:3], np.int32).reshape(3, -1)
    position = places.reshape(len(image), 2).astype(np.int32)
    values = maps[image, position[:, 0], position[:, 1], which]
    return _Points(image, units[image, which], position), values


def _corners(field: ReceptiveField, positions: Any) -> Any:
    """Top left pixel that each position sees; it may lie outside the map."""
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


# The way down.


class _Step(NamedTuple):
    """One layer of the way down.

    Attributes:
        spec: The layer.
        inputs: Shape of what goes into it.
        above: What each activation sees of the layer's output.
        below: What it sees of the layer's input; all of it where that is no larger.
    """

    spec: Layer
    inputs: Shape
    above: ReceptiveField
    below: ReceptiveField

    @property
    def activations_at_once(self) -> int:
        """As many as keep what is computed in the cache; a power of two."""
        pixels = math.prod(self.below.size)
        if isinstance(self.spec, Conv):
            products = math.prod(self.above.size) * math.prod(self.spec.kernel)
            pixels = max(pixels, products)
        room = _CACHE_BYTES // (4 * pixels * self.inputs[-1])
        return 1 << (max(1, room).bit_length() - 1)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What a projection compiles for."""

    arch: Architecture
    layer: str
    mode: Mode
    rule: Rule
    overlap: Overlap
    norm: Norm
    local: bool

    @functools.cached_property
    def target_hw(self) -> Pair:
        """Extent of the map in which positions are; a dense layer is one pixel."""
        shape = self.arch.shapes()[self.layer]
        return (1, 1) if len(shape) == 1 else map_hw(shape)

    @functools.cached_property
    def steps(self) -> tuple[_Step, ...]:
        """From the layer projected down to the image."""
        walked = list(self.arch.walk())
        names = [spec.name for spec, *_ in walked]
        field = _whole(self.target_hw)
        if self.local and self.target_hw != (1, 1):
            field = ReceptiveField((1, 1), (1, 1), (0, 0), self.target_hw)
        steps = []
        for spec, inputs, _ in walked[names.index(self.layer) :: -1]:
            above = field
            if len(inputs) == 3 and not isinstance(spec, ContrastNorm):
                hw = map_hw(inputs)
                if isinstance(spec, Dense) or above == _whole(above.input_hw):
                    field = _whole(hw)
                else:
                    field = above.through(spec, hw)
                    if math.prod(field.size) >= math.prod(hw):
                        field = _whole(hw)
            steps.append(_Step(spec, inputs, above, field))
        return tuple(steps)

    @property
    def masked(self) -> bool:
        """Whether only what each ReLU let through may come down."""
        return self.rule != "deconvnet"


def _precision(model: ConvNet) -> jnp.dtype:
    return jnp.promote_types(model.dtype, jnp.float32)


def _kernels(plan: _Plan, model: ConvNet) -> dict[str, Array]:
    return {
        spec.name: jnp.asarray(getattr(model, spec.name).kernel[...], _precision(model))
        for spec, *_ in plan.steps
        if isinstance(spec, Conv | Dense)
    }


def _whole(hw: Pair) -> ReceptiveField:
    """All of a map, wherever the activation lies."""
    return ReceptiveField(hw, (0, 0), (0, 0), hw)


def _has_relu(spec: Layer) -> bool:
    return isinstance(spec, Conv) or (isinstance(spec, Dense) and spec.relu)


class _Trace(NamedTuple):
    """What the way down needs of the forward pass, by layer name.

    Attributes:
        target: Activations of the layer projected.
        places: Each pooling's switches, as positions in their windows.
        last: Of each pooling the windows that overwrite what others put at the same
            place, if that is asked for.
        active: Where each ReLU was active, if the rule asks for it.
        inputs: What went into each contrast normalisation, if it is sent through.
    """

    target: Float[Array, "b ..."]
    places: dict[str, Array]
    last: dict[str, Array]
    active: dict[str, Array]
    inputs: dict[str, Array]


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5, 6))
def _forward(
    graph,
    weights,
    images: Array,
    layer: str,
    masked: bool,
    overlap: Overlap,
    norm: Norm,
) -> _Trace:
    model = nnx.merge(graph, weights)
    dtype = _precision(model)
    seen = model.features(images, until=layer)
    places, last, active, inputs = {}, {}, {}, {}
    entering = images
    for spec, shape, _ in model.arch.walk():
        if spec.name not in seen.features:
            break
        if isinstance(spec, MaxPool):
            switches, hw = seen.switches[spec.name], map_hw(shape)
            places[spec.name] = cpu.pool.window_places(switches, spec, hw[1])
        elif isinstance(spec, ContrastNorm) and norm == "backprop":
            inputs[spec.name] = entering.astype(dtype)
        elif masked and _has_relu(spec):
            active[spec.name] = seen.features[spec.name] > 0
        entering = seen.features[spec.name]
    return _Trace(entering.astype(dtype), places, last, active, inputs)


def _send_down(
    plan: _Plan,
    kernels: Mapping[str, Array],
    trace: _Trace,
    threshold: float,
    points: _Points,
) -> Iterator[tuple[int, np.ndarray]]:
    """Pictures of the points, part by part, each with the number of its first.

    Only powers of two go down at once, so that few sizes are compiled.
    """
    for start in range(0, len(points.unit), _AT_ONCE):
        part = _Points(*(array[start : start + _AT_ONCE] for array in points))
        count = len(part.unit)
        missing = (1 << (count - 1).bit_length()) - count
        filled = _Points(
            *(np.pad(a, ((0, missing), *[(0, 0)] * (a.ndim - 1))) for a in part)
        )
        yield (
            start,
            np.asarray(_descend(plan, kernels, trace, threshold, filled))[:count],
        )


@functools.partial(jax.jit, static_argnums=0)
def _descend(
    plan: _Plan,
    kernels: Mapping[str, Array],
    trace: _Trace,
    threshold: float | Array,
    points: _Points,
) -> Float[Array, "n h w c"]:
    """Pixels of the receptive field, or of the image where that is no larger.

    Windows grow on the way down, so that fewer and fewer go on together.
    """

    def down(steps: Sequence[_Step], signal: Array, points: _Points) -> Array:
        for index, step in enumerate(steps):
            together = step.activations_at_once
            if len(points.unit) > together:
                parts = jax.tree.map(
                    lambda x, size=together: x.reshape(-1, size, *x.shape[1:]),
                    (signal, points),
                )
                rest = steps[index:]
                pixels = lax.map(lambda part, rest=rest: down(rest, *part), parts)
                return pixels.reshape(-1, *pixels.shape[2:])
            signal = _step_down(plan, step, kernels, trace, signal, points)
        return signal

    return down(plan.steps, _kept(plan, trace.target, threshold, points), points)


def _step_down(
    plan: _Plan,
    step: _Step,
    kernels: Mapping[str, Array],
    trace: _Trace,
    signal: Array,
    points: _Points,
) -> Array:
    """From what a layer gives to what it gets."""
    spec, inputs, above, below = step

    def window(maps: Array) -> Array:
        return _cut(maps, above, points, plan.target_hw)

    if _has_relu(spec):
        if plan.rule != "gradient":
            signal = jax.nn.relu(signal)
        if plan.masked:
            signal = jnp.where(window(trace.active[spec.name]), signal, 0)
    match spec:
        case Dense():
            return (signal @ kernels[spec.name].T).reshape(-1, *inputs)
        case ContrastNorm() if plan.norm == "backprop":
            entered = window(trace.inputs[spec.name])
            _, vjp = jax.vjp(lambda x: ops.contrast_norm(x, spec), entered)
            return vjp(signal)[0]
        case ContrastNorm():
            return signal
    reached = below
    if above != _whole(above.input_hw):
        reached = above.through(spec, below.input_hw)
        spec = dataclasses.replace(spec, padding=0)
    if isinstance(spec, Conv):
        signal = ops.conv_transpose(signal, kernels[spec.name], spec, reached.size)
    else:
        places = window(trace.places[spec.name])
        signal = cpu.pool.unpool_windows(signal, places, spec, reached.size)
    if reached != below:
        return _placed(signal, reached, points)
    if below != _whole(below.input_hw):
        return _inside(signal, below, points)
    return signal


def _kept(
    plan: _Plan, target: Array, threshold: float | Array, points: _Points
) -> Array:
    """The kept activations at their place, zeros elsewhere."""
    row, column = points.position.T
    own = jax.nn.one_hot(points.unit, target.shape[-1], dtype=target.dtype)
    if target.ndim == 2:
        kept = target[points.image] * own
    elif plan.local:
        value = target[points.image, row, column, points.unit]
        kept = (value[:, None] * own)[:, None, None]
    else:
        kept = target[points.image] * own[:, None, None]
    if plan.mode == "threshold":
        kept = jnp.where(kept > threshold, kept, 0)
    if plan.mode == "unit" and kept.ndim == 4 and not plan.local:
        here = jnp.zeros(kept.shape[:3], bool)
        here = here.at[jnp.arange(len(kept)), row, column].set(True)
        kept = jnp.where(here[..., None], kept, 0)
    return kept


def _cut(
    maps: Shaped[Array, "b ..."],
    field: ReceptiveField,
    points: _Points,
    target_hw: Pair,
) -> Shaped[Array, "n ..."]:
    """Each activation's window of its image's map; zeros outside the map."""
    if field == _whole(field.input_hw):
        return maps[points.image]
    # Slices that leave the map would be moved into it, silently.
    edges = [
        (max(0, -start), max(0, start + stride * (count - 1) + size - extent))
        for start, stride, count, size, extent in zip(
            field.start,
            field.stride,
            target_hw,
            field.size,
            field.input_hw,
            strict=True,
        )
    ]
    padded = jnp.pad(maps, ((0, 0), *edges, (0, 0)))
    size = (1, *field.size, maps.shape[-1])

    def cut(place: tuple[Array, Array]) -> Array:
        image, corner = place
        start = (image, corner[0], corner[1], np.int32(0))
        return lax.dynamic_slice(padded, start, size)[0]

    origin = np.array([before for before, _ in edges], np.int32)
    corners = _corners(field, points.position) + origin
    # Not by `vmap`: XLA's gather computes the place of every element anew.
    return lax.map(cut, (jnp.asarray(points.image), corners))


def _inside(signal: Array, field: ReceptiveField, points: _Points) -> Array:
    """Zero what lies outside the map: padding has no pixels."""
    rows, columns = (
        (place >= 0) & (place < extent)
        for place, extent in zip(
            (
                _corners(field, points.position)[:, axis, None]
                + np.arange(field.size[axis])
                for axis in (0, 1)
            ),
            field.input_hw,
            strict=True,
        )
    )
    return jnp.where(rows[:, :, None, None] & columns[:, None, :, None], signal, 0)


def _placed(signal: Array, field: ReceptiveField, points: _Points) -> Array:
    """Each window at its place in a map of zeros, without what lies outside it."""
    height, width = field.input_hw
    padded = jnp.pad(signal, ((0, 0), (height, height), (width, width), (0, 0)))

    def place(window: Array, corner: Array) -> Array:
        start = (height - corner[0], width - corner[1], np.int32(0))
        return lax.dynamic_slice(window, start, (height, width, window.shape[-1]))

    return jax.vmap(place)(padded, _corners(field, points.position))
