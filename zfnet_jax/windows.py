"""Receptive-field windows: the values of full maps, computed where they matter.

One activation reaches the pixels of its receptive field and no others, and a square that
covers pixels changes only the activations that see it. Both are windows of one size per
layer: cut out of the maps of one forward pass, recomputed, pasted back. The results equal
those of whole maps to rounding; `deconvnet.backward` and the model's own pass define them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt

from zfnet_jax import cpu, ops
from zfnet_jax.arch import (
    Architecture,
    ContrastNorm,
    Conv,
    Dense,
    Layer,
    MaxPool,
    Pair,
    Shape,
)
from zfnet_jax.model import Affine, ConvNet
from zfnet_jax.relu_rules import Rule

# Activations go down together while what they compute fits this part of the cache.
_CACHE_BYTES = 1 << 23


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["corners"],
    meta_fields=["size", "map_hw", "bounds"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Windows:
    """Windows of one size in the maps of a layer, one per item.

    Attributes:
        corners: int32 [n, 2], first row and column; windows may leave the map.
        size: Rows and columns of every window.
        map_hw: Rows and columns of the map.
        bounds: Least and greatest row, least and greatest column of all corners.
    """

    corners: Int[Array | np.ndarray, "n 2"]
    size: Pair
    map_hw: Pair
    bounds: tuple[Pair, Pair]

    @classmethod
    def whole(cls, map_hw: Pair, count: int) -> Windows:
        """The whole map for each item."""
        corners = np.zeros((count, 2), np.int32)
        return cls(corners, map_hw, map_hw, ((0, 0), (0, 0)))

    @classmethod
    def cover(cls, low: np.ndarray, high: np.ndarray, map_hw: Pair) -> Windows:
        """The smallest windows within the map that hold the boxes [low, high)."""
        size = (high - low).max(0)
        corners = np.minimum(low, np.array(map_hw) - size).astype(np.int32)
        return cls(corners, _pair(size), map_hw, _bounds(corners))

    @property
    def is_whole(self) -> bool:
        """Whether each window is its whole map."""
        return self.size == self.map_hw and self.bounds == ((0, 0), (0, 0))

    def see(self, layer: Conv | MaxPool, map_hw: Pair) -> Windows:
        """Windows of the layer's input, of shape `map_hw`, that these windows see."""
        stride, before = np.array(layer.stride), np.array(layer.padding)[:, 0]
        size = (np.array(self.size) - 1) * stride + layer.kernel
        low, high = np.array(self.bounds).T * stride - before
        corners = self.corners * np.int32(stride) - np.int32(before)
        bounds = _pair((low[0], high[0])), _pair((low[1], high[1]))
        return Windows(corners, _pair(size), map_hw, bounds)

    def inside(self) -> Bool[Array, "n h w 1"]:
        """True at the pixels of each window that lie inside the map."""
        rows, columns = (
            (at >= 0) & (at < extent)
            for at, extent in zip(self._pixels(), self.map_hw, strict=True)
        )
        return rows[:, :, None, None] & columns[:, None, :, None]

    def _pixels(self) -> list[Array]:
        return [
            self.corners[:, axis, None] + np.arange(self.size[axis], dtype=np.int32)
            for axis in (0, 1)
        ]


def _pair(values: Any) -> Pair:
    first, second = values
    return int(first), int(second)


def _bounds(corners: np.ndarray) -> tuple[Pair, Pair]:
    low, high = corners.min(0), corners.max(0)
    return _pair((low[0], high[0])), _pair((low[1], high[1]))


def affect(
    layer: Conv | MaxPool, low: np.ndarray, high: np.ndarray, out_hw: Pair
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [low, high) of the layer's output that see boxes of its input."""
    stride, before = np.array(layer.stride), np.array(layer.padding)[:, 0]
    low = ((low + before - layer.kernel) // stride + 1).clip(0, np.array(out_hw) - 1)
    return low, ((high - 1 + before) // stride + 1).clip(low + 1, out_hw)


def cut(
    maps: Shaped[Array, "b h w c"],
    windows: Windows,
    images: Int[Array, " n"],
    outside: float = 0,
) -> Shaped[Array, "n H W c"]:
    """Each window of its image's map; `outside` where it leaves the map."""
    if windows.is_whole:
        return maps[images]
    padded, origin = _pad(maps, windows, outside)
    size = (1, *windows.size, maps.shape[-1])

    def cut_one(item: tuple[Array, Array]) -> Array:
        image, corner = item
        start = (image, corner[0], corner[1], np.int32(0))
        return lax.dynamic_slice(padded, start, size)[0]

    # A loop copies rows; under `vmap` XLA's gather computes the place of every element.
    return lax.map(cut_one, (images, windows.corners + origin))


def _pad(maps: Array, windows: Windows, outside: float) -> tuple[Array, np.ndarray]:
    """Maps that hold every window, since a slice that leaves its map is moved inside."""
    edges = [
        (max(0, -low), max(0, high + size - extent))
        for (low, high), size, extent in zip(
            windows.bounds, windows.size, windows.map_hw, strict=True
        )
    ]
    padded = jnp.pad(maps, ((0, 0), *edges, (0, 0)), constant_values=outside)
    return padded, np.array([before for before, _ in edges], np.int32)


def paste(
    patches: Float[Array, "n h w c"], windows: Windows
) -> Float[Array, "n H W c"]:
    """Each window at its place in a map of zeros, without what lies outside the map."""
    height, width = windows.map_hw
    padded = jnp.pad(patches, ((0, 0), (height, height), (width, width), (0, 0)))

    def paste_one(patch: Array, corner: Array) -> Array:
        start = (height - corner[0], width - corner[1], np.int32(0))
        return lax.dynamic_slice(patch, start, (height, width, patch.shape[-1]))

    return jax.vmap(paste_one)(padded, windows.corners)


# Projection: windows grow on the way down from one activation.


class Trace(NamedTuple):
    """A forward pass, as far as the way back needs it; by layer name.

    Attributes:
        activations: Output of the layer to project.
        places: Switches, as positions in their pooling windows.
        active: True where a ReLU was active, if the rule asks for it.
        inputs: Input of each contrast normalization, if the rule differentiates it.
    """

    activations: Float[Array, "b ..."]
    places: dict[str, UInt[Array, "b h w c"]]
    active: dict[str, Bool[Array, "b ..."]]
    inputs: dict[str, Float[Array, "b h w c"]]


@functools.partial(jax.jit, static_argnames=("layer", "rule"))
def forward(
    model: ConvNet, images: Float[Array, "b h w c"], layer: str, rule: Rule
) -> Trace:
    """Activations of `layer`, and what `backward` needs."""
    dtype = _precision(model)
    features, switches = model.features(images, until=layer)
    places, active, inputs = {}, {}, {}
    below = images
    for spec, shape, _ in _layers(model, layer):
        if isinstance(spec, MaxPool):
            places[spec.name] = cpu.pool.window_places(
                switches[spec.name], spec, shape[1]
            )
        elif isinstance(spec, ContrastNorm) and rule == "gradient":
            inputs[spec.name] = below.astype(dtype)
        elif has_relu(spec) and rule != "deconvnet":
            active[spec.name] = features[spec.name] > 0
        below = features[spec.name]
    return Trace(below.astype(dtype), places, active, inputs)


class Points(NamedTuple):
    """Activations to project: the image, unit, position and value of each."""

    images: Int[Array | np.ndarray, " n"]
    units: Int[Array | np.ndarray, " n"]
    positions: Int[Array | np.ndarray, "n 2"]
    activations: Float[Array | np.ndarray, " n"]


@functools.partial(jax.jit, static_argnames=("layer", "rule"))
def backward(
    model: ConvNet, trace: Trace, layer: str, rule: Rule, points: Points
) -> Float[Array, "n h w c"]:
    """Project single activations to the pixels of their receptive fields.

    Receptive fields that hold as many pixels as the image give whole images instead.
    The number of points is a power of two.
    """

    def descend(
        layers: Sequence[tuple[Layer, Shape, Shape]],
        signal: Array,
        windows: Windows,
        images: Array,
    ) -> Array:
        for index, (spec, inputs, _) in enumerate(layers):
            below = _below(spec, inputs, windows)
            together = _fit(spec, inputs, windows, below)
            if len(images) > together:
                # Windows grow on the way down, so fewer and fewer go on together.
                groups = jax.tree.map(
                    lambda x, size=together: x.reshape(-1, size, *x.shape[1:]),
                    (signal, windows, images),
                )
                rest = layers[index:]
                pixels = lax.map(lambda group, rest=rest: descend(rest, *group), groups)
                return pixels.reshape(-1, *pixels.shape[2:])
            signal = _layer_backward(
                model, trace, rule, spec, inputs, signal, windows, below, images
            )
            windows = below
        return signal

    layers = _layers(model, layer)[::-1]
    shape = layers[0][2]
    signal = jax.nn.one_hot(points.units, shape[-1], dtype=points.activations.dtype)
    signal *= points.activations[:, None]
    windows = Windows.whole((1, 1), len(signal))
    if len(shape) == 3:
        height, width, _ = shape
        bounds = (0, height - 1), (0, width - 1)
        windows = Windows(points.positions, (1, 1), (height, width), bounds)
        signal = signal[:, None, None]
    return descend(layers, signal, windows, points.images)


def _layers(model: ConvNet, until: str) -> list[tuple[Layer, Shape, Shape]]:
    walked = list(model.arch.walk())
    names = [spec.name for spec, *_ in walked]
    return walked[: names.index(until) + 1]


def _precision(model: ConvNet) -> jnp.dtype:
    return jnp.promote_types(model.dtype, jnp.float32)


def has_relu(spec: Layer) -> bool:
    """Whether a ReLU follows the layer's affine map."""
    return isinstance(spec, Conv) or (isinstance(spec, Dense) and spec.relu)


def _below(spec: Layer, inputs: Shape, windows: Windows) -> Windows:
    """Windows of the layer's input; the whole input where that holds no more pixels."""
    if isinstance(spec, ContrastNorm) or len(inputs) == 1:
        return windows
    hw = inputs[0], inputs[1]
    if isinstance(spec, Dense) or windows.is_whole:
        return Windows.whole(hw, len(windows.corners))
    below = windows.see(spec, hw)
    if math.prod(below.size) >= math.prod(hw):
        return Windows.whole(hw, len(windows.corners))
    return below


def _fit(spec: Layer, inputs: Shape, windows: Windows, below: Windows) -> int:
    """Number of activations whose work fits the cache; a power of two."""
    pixels = math.prod(below.size)
    if isinstance(spec, Conv):
        pixels = max(pixels, math.prod(windows.size) * math.prod(spec.kernel))
    room = _CACHE_BYTES // (4 * pixels * inputs[-1])
    return 1 << (max(1, room).bit_length() - 1)


def _layer_backward(
    model: ConvNet,
    trace: Trace,
    rule: Rule,
    spec: Layer,
    inputs: Shape,
    signal: Array,
    windows: Windows,
    below: Windows,
    images: Array,
) -> Array:
    """One layer of `deconvnet.backward`, from windows of its output to its input."""
    name = spec.name
    if has_relu(spec):
        if rule != "gradient":
            signal = jax.nn.relu(signal)
        if rule != "deconvnet":
            active = trace.active[name]
            active = (
                active[images] if active.ndim == 2 else cut(active, windows, images)
            )
            signal = jnp.where(active, signal, 0)
    if isinstance(spec, ContrastNorm):
        if rule != "gradient":
            return signal
        x = cut(trace.inputs[name], windows, images)
        return jax.vjp(lambda x: ops.contrast_norm(x, spec), x)[1](signal)[0]
    if isinstance(spec, Dense):
        kernel = getattr(model, name).kernel[...].astype(signal.dtype)
        return (signal @ kernel.T).reshape(-1, *inputs)
    seen = below
    if not windows.is_whole:
        # The padding of a window is not that of the map: it is part of what it sees.
        seen = windows.see(spec, below.map_hw)
        spec = dataclasses.replace(spec, padding=0)
    if isinstance(spec, Conv):
        kernel = getattr(model, name).kernel[...].astype(signal.dtype)
        signal = ops.conv_transpose(signal, kernel, spec, seen.size)
    else:
        places = cut(trace.places[name], windows, images)
        signal = cpu.pool.unpool_windows(signal, places, spec, seen.size)
    if not below.is_whole:
        return jnp.where(below.inside(), signal, 0)
    return signal if windows.is_whole else paste(signal, seen)


# Occlusion: windows of what a square changes grow on the way up.


class Stage(NamedTuple):
    """How to recompute one layer where squares change it.

    Attributes:
        layer: The layer; None for the flattening below the first dense layer.
        below: Name of the map below; "image" for the image.
        changed: What changes of the map below.
        seen: What the recomputed outputs see of it.
        canvas: Windows that hold both.
        out: What is recomputed.
    """

    layer: Conv | MaxPool | ContrastNorm | None
    below: str
    changed: Windows
    seen: Windows
    canvas: Windows
    out: Windows


def plan_occlusion(
    arch: Architecture, low: Int[np.ndarray, "n 2"], high: Int[np.ndarray, "n 2"]
) -> list[Stage]:
    """Stages that recompute what a change of the pixels [low, high) changes above."""
    below, changed = "image", Windows.cover(low, high, arch.input_hw)
    stages = []
    for spec, inputs, outputs in arch.walk():
        if isinstance(spec, ContrastNorm):
            stages.append(Stage(spec, below, changed, changed, changed, changed))
        elif isinstance(spec, Dense):
            out = Windows.whole(changed.map_hw, len(low))
            stages.append(Stage(None, below, changed, out, out, out))
            break
        else:
            low, high = affect(spec, low, high, outputs[:2])
            out = Windows.cover(low, high, outputs[:2])
            seen = out.see(spec, inputs[:2])
            corners = np.minimum(changed.corners, seen.corners)
            ends = [each.corners + each.size for each in (changed, seen)]
            size = _pair((np.maximum(*ends) - corners).max(0))
            canvas = Windows(corners, size, inputs[:2], _bounds(corners))
            stages.append(Stage(spec, below, changed, seen, canvas, out))
            changed = out
        below = spec.name
    return stages


def recompute(
    model: ConvNet,
    stage: Stage,
    features: Mapping[str, Float[Array, "1 h w c"]],
    patches: Float[Array, "n h w c"],
    rows: Int[np.ndarray, " n"],
) -> Float[Array, "n ..."]:
    """Outputs of a stage for the squares `rows`, from what they change of its input."""
    spec, below, changed, seen, canvas, _ = stage
    if isinstance(spec, ContrastNorm):
        return _normalize(patches, spec)
    affine = getattr(model, spec.name) if isinstance(spec, Conv) else None
    corners = [windows.corners[rows] for windows in (canvas, changed, seen)]
    canvas = dataclasses.replace(canvas, corners=corners[0])
    seen_at = corners[2] - corners[0]
    changed_at = corners[1] - corners[0]
    return _recompute(
        affine, features[below], patches, canvas, changed_at, seen_at, seen.size, spec
    )


@functools.partial(jax.jit, static_argnames="spec")
def _normalize(patches: Array, spec: ContrastNorm) -> Array:
    return ops.contrast_norm(patches, spec)


@functools.partial(jax.jit, static_argnames=("size", "spec"))
def _recompute(
    affine: Affine | None,
    below: Array,
    patches: Array,
    canvas: Windows,
    changed_at: Array,
    seen_at: Array,
    size: Pair,
    spec: Conv | MaxPool | None,
) -> Array:
    """Cut what a layer sees out of the map below, with its changes, and apply it."""
    outside = -np.inf if isinstance(spec, MaxPool) else 0
    padded, origin = _pad(below, canvas, outside)
    zero, channels = np.int32(0), below.shape[-1]

    def cut_one(item: tuple[Array, Array, Array, Array]) -> Array:
        patch, corner, changed, seen = item
        around = lax.dynamic_slice(padded[0], (*corner, zero), (*canvas.size, channels))
        around = lax.dynamic_update_slice(around, patch, (*changed, zero))
        return lax.dynamic_slice(around, (*seen, zero), (*size, channels))

    corners = canvas.corners + origin
    inputs = lax.map(cut_one, (patches, corners, changed_at, seen_at))
    match spec:
        case None:
            return inputs.reshape(len(inputs), -1)
        case MaxPool():
            return ops.max_pool(inputs, dataclasses.replace(spec, padding=0))[0]
        case Conv():
            assert affine is not None
            kernel, bias = (
                x[...].astype(inputs.dtype) for x in (affine.kernel, affine.bias)
            )
            spec = dataclasses.replace(spec, padding=0)
            return jax.nn.relu(ops.conv(inputs, kernel, spec) + bias)
