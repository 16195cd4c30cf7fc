"""Receptive-field windows: the values of whole maps, computed where they matter.

One activation reaches only the pixels of its receptive field, and a square of pixels
changes only the activations that see it. Either way a layer is a window of one size per
item. To rounding, results are those of `deconvnet.backward` and the model's own pass.
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
    Shape,
    has_relu,
    map_hw,
)
from zfnet_jax.model import Affine, ConvNet
from zfnet_jax.relu_rules import Rule

# Activations share a program while what they compute fits this part of the cache.
_CACHE_BYTES = 1 << 23
# In fewer pixels Winograd's products save less than its transforms cost.
_WINOGRAD_PIXELS = 14 * 14


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
        bounds: Least and greatest row, and least and greatest column, of all corners.
    """

    corners: Any
    size: Pair
    map_hw: Pair
    bounds: tuple[Pair, Pair]

    @classmethod
    def whole(cls, map_hw: Pair, count: int) -> Windows:
        """The whole map for each item."""
        return cls(np.zeros((count, 2), np.int32), map_hw, map_hw, ((0, 0), (0, 0)))

    @classmethod
    def cover(cls, low: np.ndarray, high: np.ndarray, hw: Pair, inside=True) -> Windows:
        """The smallest windows that hold the boxes [low, high)."""
        size = (high - low).max(0)
        corners = (np.minimum(low, hw - size) if inside else low).astype(np.int32)
        rows, columns = np.stack([corners.min(0), corners.max(0)], 1).tolist()
        return cls(corners, tuple(size.tolist()), hw, (tuple(rows), tuple(columns)))

    @property
    def is_whole(self) -> bool:
        """True if every window is the whole map."""
        return self.size == self.map_hw and self.bounds == ((0, 0), (0, 0))

    def see(self, layer: Conv | MaxPool, hw: Pair) -> Windows:
        """The windows of the layer's input, of extent `hw`, that these windows see."""
        rows, columns = (
            ((size - 1) * step + kernel, low * step - before, high * step - before)
            for size, step, kernel, (before, _), (low, high) in zip(
                self.size,
                layer.stride,
                layer.kernel,
                layer.padding,
                self.bounds,
                strict=True,
            )
        )
        before = np.array(layer.padding, np.int32)[:, 0]
        corners = self.corners * np.array(layer.stride, np.int32) - before
        return Windows(corners, (rows[0], columns[0]), hw, (rows[1:], columns[1:]))

    def cut(
        self, maps: Shaped[Array, "b ..."], images: Array, outside: float = 0.0
    ) -> Shaped[Array, "n ..."]:
        """Each window of its image's map; `outside` where it leaves the map."""
        if self.is_whole:
            return maps[images]
        padded, corners = self.pad(maps, outside)
        size = (1, *self.size, maps.shape[-1])

        def cut_one(item: tuple[Array, Array]) -> Array:
            image, corner = item
            return lax.dynamic_slice(padded, (image, *corner, np.int32(0)), size)[0]

        # A loop copies rows; XLA's gather, under `vmap`, places each element anew.
        return lax.map(cut_one, (images, corners))

    def pad(self, maps: Array, outside: float) -> tuple[Array, Any]:
        """Maps that hold all windows, and the corners in them.

        A slice that leaves its map would be moved inside.
        """
        edges = [
            (max(0, -low), max(0, high + size - extent))
            for (low, high), size, extent in zip(
                self.bounds, self.size, self.map_hw, strict=True
            )
        ]
        origin = np.array(edges, np.int32)[:, 0]
        edges = ((0, 0), *edges, (0, 0))
        return jnp.pad(maps, edges, constant_values=outside), self.corners + origin

    def paste(self, patches: Float[Array, "n h w c"]) -> Float[Array, "n H W c"]:
        """Each window in a map of zeros, without what lies outside the map."""
        height, width = self.map_hw
        padded = jnp.pad(patches, ((0, 0), (height, height), (width, width), (0, 0)))

        def paste_one(patch: Array, corner: Array) -> Array:
            start = (height - corner[0], width - corner[1], np.int32(0))
            return lax.dynamic_slice(patch, start, (height, width, patch.shape[-1]))

        return jax.vmap(paste_one)(padded, self.corners)

    def clear_outside(
        self, patches: Float[Array, "n h w c"]
    ) -> Float[Array, "n h w c"]:
        """Set what lies outside the map to zero: padding has no pixels."""
        inside = []
        for axis, extent in enumerate(self.map_hw):
            place = self.corners[:, axis, None] + np.arange(self.size[axis])
            inside.append((place >= 0) & (place < extent))
        rows, columns = inside
        return jnp.where(rows[:, :, None, None] & columns[:, None, :, None], patches, 0)


# Projection: windows grow in the backward pass from one activation.


class Trace(NamedTuple):
    """A forward pass, as far as the backward pass needs it; dicts are by layer name.

    Attributes:
        activations: Output of the layer to project.
        places: Switches as positions in their pooling windows.
        active: True where a ReLU was active, if a rule asks for it.
        inputs: Inputs of contrast normalizations, if a rule differentiates them.
    """

    activations: Float[Array, "b ..."]
    places: dict[str, Array]
    active: dict[str, Array]
    inputs: dict[str, Array]


class Points(NamedTuple):
    """Activations to project: image, unit, position [n, 2] and value of each."""

    images: Any
    units: Any
    positions: Any
    activations: Any


@functools.partial(jax.jit, static_argnames=("layer", "rules"))
def forward(
    model: ConvNet, images: Float[Array, "b h w c"], layer: str, rules: tuple[Rule, ...]
) -> Trace:
    """Activations of `layer`, and what `backward` needs by any of the rules."""
    dtype = jnp.promote_types(model.dtype, jnp.float32)
    features, switches = model.features(images, until=layer)
    trace = Trace(features[layer].astype(dtype), {}, {}, {})
    below = images
    for spec, inputs, _ in _layers(model.arch, layer):
        name = spec.name
        if isinstance(spec, MaxPool):
            width = map_hw(inputs)[1]
            places = cpu.pool.window_places(switches[name], spec, width)
            trace.places[name] = places
        elif isinstance(spec, ContrastNorm) and "gradient" in rules:
            trace.inputs[name] = below.astype(dtype)
        elif has_relu(spec) and rules != ("deconvnet",):
            trace.active[name] = features[name] > 0
        below = features[name]
    return trace


@functools.partial(jax.jit, static_argnames=("layer", "rule"))
def backward(
    model: ConvNet, trace: Trace, points: Points, layer: str, rule: Rule
) -> Float[Array, "n h w c"]:
    """Project a power of two of single activations to their receptive fields.

    A receptive field of as many pixels as the image gives the whole image instead.
    """
    layers = _layers(model.arch, layer)[::-1]
    # Here, since XLA would not move them out of the loops over groups.
    transformed = {
        spec.name: _transform(model, spec)
        for spec, *_ in layers
        if isinstance(spec, Conv)
    }
    step = functools.partial(_step, model, trace, rule, transformed)

    def run_layers(
        layers: Sequence[tuple[Layer, Shape, Shape]],
        signal: Array,
        windows: Windows,
        images: Array,
    ) -> Array:
        for index, (spec, inputs, _) in enumerate(layers):
            below = _below(spec, inputs, windows)
            together = _count_in_cache(spec, inputs[-1], windows, below)
            if len(images) > together:
                # Windows grow towards the pixels, so fewer and fewer share a program.
                groups = jax.tree.map(
                    lambda x, size=together: x.reshape(-1, size, *x.shape[1:]),
                    (signal, windows, images),
                )
                rest = layers[index:]
                pixels = lax.map(
                    lambda group, rest=rest: run_layers(rest, *group), groups
                )
                return pixels.reshape(-1, *pixels.shape[2:])
            signal = step(spec, inputs, signal, windows, below, images)
            windows = below
        return signal

    shape = layers[0][2]
    signal = jax.nn.one_hot(points.units, shape[-1], dtype=points.activations.dtype)
    signal *= points.activations[:, None]
    windows = Windows.whole((1, 1), len(signal))
    if len(shape) == 3:
        bounds = (0, shape[0] - 1), (0, shape[1] - 1)
        windows = Windows(points.positions, (1, 1), map_hw(shape), bounds)
        signal = signal[:, None, None]
    return run_layers(layers, signal, windows, points.images)


def _step(
    model: ConvNet,
    trace: Trace,
    rule: Rule,
    transformed: Mapping[str, Array | None],
    spec: Layer,
    inputs: Shape,
    signal: Array,
    windows: Windows,
    below: Windows,
    images: Array,
) -> Array:
    """One layer of `deconvnet.backward`, from `windows` to those `below`."""
    name = spec.name
    if has_relu(spec) and rule != "gradient":
        signal = jax.nn.relu(signal)
    if has_relu(spec) and rule != "deconvnet":
        signal = jnp.where(windows.cut(trace.active[name], images), signal, 0)
    if isinstance(spec, ContrastNorm):
        if rule != "gradient":
            return signal
        x = windows.cut(trace.inputs[name], images)
        return jax.vjp(lambda x: ops.contrast_norm(x, spec), x)[1](signal)[0]
    if isinstance(spec, Dense):
        kernel = getattr(model, name).kernel[...].astype(signal.dtype)
        return (signal @ kernel.T).reshape(-1, *inputs)
    window, size = spec, below.size
    if not windows.is_whole:
        # A window sees the padding of the map; it has none of its own.
        window = dataclasses.replace(spec, padding=0)
        size = windows.see(spec, below.map_hw).size
    if isinstance(window, Conv):
        weights = transformed[name]
        if weights is not None and math.prod(signal.shape[1:3]) >= _WINOGRAD_PIXELS:
            signal = cpu.conv.winograd_transpose(signal, weights, window, size)
        else:
            kernel = getattr(model, name).kernel[...].astype(signal.dtype)
            signal = ops.conv_transpose(signal, kernel, window, size)
    else:
        places = windows.cut(trace.places[name], images)
        signal = cpu.pool.unpool_windows(signal, places, window, size)
    if not below.is_whole:
        return below.clear_outside(signal)
    if not windows.is_whole:
        return windows.see(spec, below.map_hw).paste(signal)
    return signal


def _transform(model: ConvNet, spec: Conv) -> Array | None:
    """Kernel for Winograd's products, where they are faster."""
    if jax.default_backend() != "cpu":
        return None
    return cpu.conv.transform_transposed(getattr(model, spec.name).kernel[...], spec)


def _layers(arch: Architecture, until: str) -> list[tuple[Layer, Shape, Shape]]:
    layers = list(arch.walk())
    return layers[: [spec.name for spec, *_ in layers].index(until) + 1]


def _below(spec: Layer, inputs: Shape, windows: Windows) -> Windows:
    """Windows of a layer's input; the whole input where that holds no more pixels."""
    if isinstance(spec, ContrastNorm) or len(inputs) == 1:
        return windows
    hw, count = map_hw(inputs), len(windows.corners)
    if isinstance(spec, Dense) or windows.is_whole:
        return Windows.whole(hw, count)
    below = windows.see(spec, hw)
    is_larger = math.prod(below.size) >= math.prod(hw)
    return Windows.whole(hw, count) if is_larger else below


def _count_in_cache(
    spec: Layer, channels: int, windows: Windows, below: Windows
) -> int:
    """Number of activations whose work in a layer fits the cache; a power of two."""
    pixels = math.prod(below.size)
    if isinstance(spec, Conv):
        pixels = max(pixels, math.prod(windows.size) * math.prod(spec.kernel))
    room = _CACHE_BYTES // (4 * pixels * channels)
    return 1 << (max(1, room).bit_length() - 1)


# Occlusion: windows of what a square changes grow in the forward pass.


class Stage(NamedTuple):
    """Plan to recompute one layer where squares change it.

    Attributes:
        layer: The layer; None for the flattening below the first dense layer.
        below: Name of the map below; "image" for the image.
        changed: What changes of the map below.
        inputs: Windows of it that the recomputed outputs depend on.
        canvas: Windows that hold both.
        out: What is recomputed.
    """

    layer: Conv | MaxPool | ContrastNorm | None
    below: str
    changed: Windows
    inputs: Windows
    canvas: Windows
    out: Windows


def plan_occlusion(
    arch: Architecture, low: np.ndarray, high: np.ndarray
) -> list[Stage]:
    """Stages that recompute what changes of the pixels [low, high) change above."""
    below, changed, stages = "image", Windows.cover(low, high, arch.input_hw), []
    for spec, inputs, outputs in arch.walk():
        if isinstance(spec, Dense):
            whole = Windows.whole(map_hw(inputs), len(low))
            stages.append(Stage(None, below, changed, whole, whole, whole))
            break
        if isinstance(spec, ContrastNorm):
            stages.append(Stage(spec, below, changed, changed, changed, changed))
        else:
            out_hw, stride = np.array(map_hw(outputs)), np.array(spec.stride)
            before = np.array(spec.padding)[:, 0]
            low = ((low + before - spec.kernel) // stride + 1).clip(0, out_hw - 1)
            high = ((high - 1 + before) // stride + 1).clip(low + 1, out_hw)
            out = Windows.cover(low, high, map_hw(outputs))
            needed = out.see(spec, map_hw(inputs))
            corners = np.minimum(changed.corners, needed.corners)
            ends = np.maximum(
                changed.corners + changed.size, needed.corners + needed.size
            )
            canvas = Windows.cover(corners, ends, map_hw(inputs), inside=False)
            stages.append(Stage(spec, below, changed, needed, canvas, out))
            changed = out
        below = spec.name
    return stages


def recompute(
    model: ConvNet,
    stage: Stage,
    features: Mapping[str, Any],
    patches: Float[Array, "n h w c"],
    rows: Int[np.ndarray, " n"],
) -> Float[Array, "n ..."]:
    """Outputs of a stage for the items `rows`, from what changes of its input."""
    spec, below, changed, needed, canvas, _ = stage
    if isinstance(spec, ContrastNorm):
        return ops.contrast_norm(patches, spec)
    affine = getattr(model, spec.name) if isinstance(spec, Conv) else None
    offsets = [(each.corners - canvas.corners)[rows] for each in (changed, needed)]
    canvas = dataclasses.replace(canvas, corners=canvas.corners[rows])
    return _apply(affine, features[below], patches, canvas, offsets, needed.size, spec)


# One program per stage: in a larger one XLA would redo slices in the next layer.
@functools.partial(jax.jit, static_argnames=("size", "spec"))
def _apply(
    affine: Affine | None,
    below: Array,
    patches: Array,
    canvas: Windows,
    offsets: list[Array],
    size: Pair,
    spec: Conv | MaxPool | None,
) -> Array:
    outside = -np.inf if isinstance(spec, MaxPool) else 0.0
    padded, corners = canvas.pad(below, outside)
    zero, channels = np.int32(0), below.shape[-1]

    def cut_one(item: tuple[Array, Array, Array, Array]) -> Array:
        patch, corner, changed, needed = item
        pixels = (*canvas.size, channels)
        pixels = lax.dynamic_slice(padded[0], (*corner, zero), pixels)
        pixels = lax.dynamic_update_slice(pixels, patch, (*changed, zero))
        return lax.dynamic_slice(pixels, (*needed, zero), (*size, channels))

    inputs = lax.map(cut_one, (patches, corners, *offsets))
    if spec is None:
        return inputs.reshape(len(inputs), -1)
    spec = dataclasses.replace(spec, padding=0)
    if isinstance(spec, MaxPool):
        return ops.max_pool(inputs, spec)[0]
    assert affine is not None
    kernel, bias = (x[...].astype(inputs.dtype) for x in (affine.kernel, affine.bias))
    is_cpu = jax.default_backend() == "cpu"
    convolve = cpu.conv.conv_windows if is_cpu else ops.conv
    return jax.nn.relu(convolve(inputs, kernel, spec) + bias)
