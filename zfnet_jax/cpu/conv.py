"""Convolution and its adjoint for XLA's CPU backend.

XLA's own convolution is fast, and its gradients are not: here they are matrix products
over patches, or Winograd's minimal filtering.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from zfnet_jax.arch import Conv, Padding, Pair

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")

# With fewer channels the product of one tap is too thin, so all taps are gathered into
# one product, in groups of images whose patches stay in the cache.
_THIN = 16
# With fewer channels Winograd's transforms cost as much as its products save.
_WIDE = 256
_FEW_IMAGES = 4
_PATCH_BYTES = 1 << 21
_PRODUCT_BYTES = 1 << 24


def conv(
    x: Float[Array, "b h w c"], kernel: Float[Array, "kh kw i o"], spec: Conv
) -> Float[Array, "b H W o"]:
    """Equals `ops.conv`; its gradients equal those of `ops.conv` to rounding."""
    if spec.groups > 1 or x.dtype != jnp.float32:
        return _correlate(x, kernel, spec)
    return _float32_conv(x, kernel, spec)


def _correlate(x: Array, kernel: Array, spec: Conv) -> Array:
    # XLA's CPU convolution runs at a third of its speed when nothing at all is padded.
    slow = spec.padding == ((0, 0), (0, 0))
    out = lax.conv_general_dilated(
        x,
        kernel,
        spec.stride,
        ((0, 1), (0, 0)) if slow else spec.padding,
        dimension_numbers=_DIMENSIONS,
        feature_group_count=spec.groups,
    )
    if slow:
        out = out[:, : (x.shape[1] - kernel.shape[0]) // spec.stride[0] + 1]
    return out


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _float32_conv(x: Array, kernel: Array, spec: Conv) -> Array:
    return _correlate(x, kernel, spec)


def _forward(x, kernel, spec):
    trains, x, kernel = kernel.perturbed, x.value, kernel.value
    if not (trains and suits_winograd(spec, x.shape[-1])):
        return _correlate(x, kernel, spec), (x, kernel)

    def winograd(x: Array, kernel: Array) -> Array:
        if spec.stride == (1, 1):
            return _winograd(x, kernel, spec.padding)
        return _winograd(*_fold(x, kernel, spec), ((0, 0), (0, 0)))

    # Slower than XLA by itself, but its gradients reuse what it computes.
    return jax.vjp(winograd, x, kernel)


def _backward(spec, residuals: Any, grad) -> tuple[Array, Array]:
    if not isinstance(residuals, tuple):
        return residuals(grad)
    x, kernel = residuals
    kernel_grad = _kernel_gradient(x, grad, spec)
    return conv_transpose(grad, kernel, spec, x.shape[1:3]), kernel_grad


# With them, a projection of fixed kernels is told from training.
_float32_conv.defvjp(_forward, _backward, symbolic_zeros=True)


def suits_winograd(spec: Conv, channels: int) -> bool:
    """Return whether Winograd's filtering trains faster: kernels of three strides."""
    strides = [-(-k // s) for k, s in zip(spec.kernel, spec.stride, strict=True)]
    return strides == [3, 3] and channels * math.prod(spec.stride) >= _THIN


def _fold(x: Array, kernel: Array, spec: Conv) -> tuple[Array, Array]:
    """Input and 3 x 3 kernel of the same convolution with stride 1 and no padding.

    Each block of stride x stride pixels becomes one pixel with that many more channels.
    """
    (step_h, step_w), channels = spec.stride, x.shape[-1]
    counts, edges = [], []
    for axis, step in enumerate(spec.stride):
        extent, (before, after) = x.shape[axis + 1], spec.padding[axis]
        counts.append((extent + before + after - spec.kernel[axis]) // step + 3)
        edges.append((before, counts[axis] * step - extent - before, 0))
    rows, columns = counts
    zero = jnp.zeros((), x.dtype)
    blocks = lax.pad(x, zero, ((0, 0, 0), *edges, (0, 0, 0)))
    blocks = blocks.reshape(-1, rows, step_h, columns, step_w, channels)
    blocks = blocks.transpose(0, 1, 3, 2, 4, 5).reshape(len(x), rows, columns, -1)
    missing = [
        (0, 3 * step - size)
        for size, step in zip(spec.kernel, spec.stride, strict=True)
    ]
    kernel = jnp.pad(kernel, (*missing, (0, 0), (0, 0)))
    kernel = kernel.reshape(3, step_h, 3, step_w, channels, -1)
    return blocks, kernel.transpose(0, 2, 1, 3, 4, 5).reshape(3, 3, -1, spec.features)


def _kernel_gradient(x: Array, grad: Array, spec: Conv) -> Array:
    """Gradient of `ops.conv` for its kernel, as matrix products over all pixels."""
    batch, *_, channels = x.shape
    window, stride = spec.kernel, spec.stride
    patches = 4 * math.prod(grad.shape[1:3]) * math.prod(window) * channels
    at_once = max(_FEW_IMAGES, _PATCH_BYTES // patches)
    if channels < _THIN and at_once < batch:
        at_once = max(n for n in range(1, at_once + 1) if batch % n == 0)

        def add(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
            return total + _kernel_gradient(*part, spec), None

        x = x.reshape(-1, at_once, *x.shape[1:])
        grad = grad.reshape(-1, at_once, *grad.shape[1:])
        start = jnp.zeros((*window, channels, grad.shape[-1]), grad.dtype)
        return lax.scan(add, start, (x, grad))[0]
    *_, rows, columns, features = grad.shape
    padded = jnp.pad(x, ((0, 0), *spec.padding, (0, 0)))
    pixels = grad.reshape(-1, features)

    def multiply(patch: Array) -> Array:
        patch = patch.reshape(-1, patch.shape[-1])
        return lax.dot_general(pixels, patch, (((0,), (0,)), ((), ()))).T

    if channels < _THIN:
        # Columns first: rows are then gathered in longer runs.
        across = slice_taps(
            padded, (1, window[1]), (1, stride[1]), (padded.shape[1], columns)
        )
        lines = lax.optimization_barrier(jnp.concatenate(across, -1))
        down = slice_taps(lines, (window[0], 1), (stride[0], 1), (rows, columns))
        out = multiply(lax.optimization_barrier(jnp.concatenate(down, -1)))
    else:
        taps = slice_taps(padded, window, stride, (rows, columns))
        out = jnp.stack([*map(multiply, taps)])
    return out.reshape(*window, channels, features)


def slice_taps(padded: Array, window: Pair, stride: Pair, out_hw: Pair) -> list[Array]:
    """Slice what each position of a sliding window reads, in row-major order."""
    return [
        padded[
            :,
            i : i + (out_hw[0] - 1) * stride[0] + 1 : stride[0],
            j : j + (out_hw[1] - 1) * stride[1] + 1 : stride[1],
        ]
        for i in range(window[0])
        for j in range(window[1])
    ]


def conv_transpose(
    y: Float[Array, "b H W o"],
    kernel: Float[Array, "kh kw i o"],
    spec: Conv,
    out_hw: Pair,
) -> Float[Array, "b h w c"]:
    """Equals `ops.conv_transpose` to rounding.

    For few channels, or where it fits the cache, the products of every pixel with the
    whole kernel are formed at once and then added in place. Otherwise each phase of the
    output is one convolution: XLA is slow on dilated inputs and on few output channels.
    """
    (*window, inputs, features), (step_h, step_w) = kernel.shape, spec.stride
    (top, _), (left, _) = spec.padding
    products = math.prod(y.shape[:3]) * math.prod(window) * inputs
    if spec.groups == 1 and (inputs < _THIN or 4 * products <= _PRODUCT_BYTES):
        lines = y @ kernel.swapaxes(0, 1).reshape(-1, features).T
        lines = lines.reshape(*y.shape[:3], window[1], -1)
        columns = _overlap_add(lines, 2, step_w, left, out_hw[1])
        columns = columns.reshape(*columns.shape[:3], window[0], inputs)
        return _overlap_add(columns, 1, step_h, top, out_hw[0])
    groups = spec.groups
    flipped = kernel.reshape(*window, inputs, groups, features // groups)
    flipped = flipped.transpose(0, 1, 4, 3, 2)
    flipped = flipped.reshape(*window, features // groups, groups * inputs)
    reach = -(-(out_hw[0] + top) // step_h), -(-(out_hw[1] + left) // step_w)

    def fill_phase(i: int, j: int) -> Array:
        part = flipped[i::step_h, j::step_w]
        if 0 in part.shape:
            return jnp.zeros((len(y), *reach, groups * inputs), y.dtype)
        edges = [
            (part.shape[axis] - 1, reach[axis] - y.shape[axis + 1]) for axis in (0, 1)
        ]
        return lax.conv_general_dilated(
            y,
            part[::-1, ::-1],
            (1, 1),
            edges,
            dimension_numbers=_DIMENSIONS,
            feature_group_count=groups,
        )

    return interleave_phases(fill_phase, spec.stride, spec.padding, out_hw)


def transform_transposed(
    kernel: Float[Array, "kh kw i o"], spec: Conv
) -> Float[Array, "36 o i"] | None:
    """Transform a kernel for `winograd_transpose`; None if that would not be faster.

    It pays off if one transform serves many signals.
    """
    is_wide = min(kernel.shape[2:]) >= _WIDE and kernel.dtype == jnp.float32
    if not is_wide or spec.groups > 1 or (spec.kernel, spec.stride) != ((3, 3), (1, 1)):
        return None
    return lax.optimization_barrier(
        _transform_kernel(kernel[::-1, ::-1].swapaxes(2, 3))
    )


def winograd_transpose(
    y: Float[Array, "b H W o"],
    weights: Float[Array, "36 o i"],
    spec: Conv,
    out_hw: Pair,
) -> Float[Array, "b h w c"]:
    """Equals `conv_transpose` to rounding, with a kernel by `transform_transposed`."""
    rows, columns = (
        (2 - before, before + extent - size)
        for (before, _), extent, size in zip(
            spec.padding, out_hw, y.shape[1:3], strict=True
        )
    )
    return _filter_tiles(y, weights, (rows, columns))


def _overlap_add(x: Array, axis: int, step: int, before: int, extent: int) -> Array:
    """Add windows [b, h, w, window, ...] where they overlap along one axis of a map.

    Of the result, [b, H, w, ...] or [b, h, W, ...], `extent` pixels are kept after the
    first ones, as many as `before`.
    """
    count, window = x.shape[axis], x.shape[3]
    reach = -(-(extent + before) // step)
    zero = jnp.zeros((), x.dtype)
    total: Array | float = 0.0
    for shift in range(-(-window // step)):
        part = x[:, :, :, shift * step : (shift + 1) * step]
        edges = [(0, 0, 0)] * x.ndim
        edges[3] = (0, step - part.shape[3], 0)
        edges[axis] = (shift, reach - shift - count, 0)
        total += lax.pad(part, zero, edges)
    assert isinstance(total, jax.Array)
    full = jnp.moveaxis(total, 3, axis + 1)
    shape = full.shape
    full = full.reshape(*shape[:axis], reach * step, *shape[axis + 2 :])
    return lax.slice_in_dim(full, before, before + extent, axis=axis)


def interleave_phases(
    fill_phase: Callable[[int, int], Array],
    stride: Pair,
    padding: Padding,
    out_hw: Pair,
) -> Array:
    """Assemble a padded map from its phases (every stride-th pixel) and crop it."""
    # One transposition of the stack: XLA takes far longer to write phases separately.
    phases = jnp.stack([fill_phase(i, j) for i, j in np.ndindex(*stride)])
    _, batch, height, width, channels = phases.shape
    grid = phases.reshape(*stride, *phases.shape[1:]).transpose(2, 3, 0, 4, 1, 5)
    full = grid.reshape(batch, height * stride[0], width * stride[1], channels)
    (top, _), (left, _) = padding
    return full[:, top : top + out_hw[0], left : left + out_hw[1]]


# Winograd's minimal filtering F(4x4, 3x3), Lavin & Gray 2016 (arXiv 1509.09308), with
# interpolation points 0, 1, -1, 2, -2 and infinity: a tile of 6 x 6 inputs gives 4 x 4
# outputs by 36 products for each pair of channels in place of 144.
_TILE = 4
_POINTS = np.array([0, 1, -1, 2, -2])
_SCALES = np.array([np.prod([p - q for q in _POINTS if q != p]) for p in _POINTS])


def _evaluate(size: int) -> np.ndarray:
    """Matrix from a polynomial's `size` coefficients to its values at the points."""
    return np.vstack([np.vander(_POINTS, size, increasing=True), np.eye(size)[-1]])


_KERNEL = _evaluate(3) / np.append(_SCALES, 1)[:, None]
_OUTPUT = _evaluate(4).T
_INPUT = np.rint(np.append(_SCALES, 1)[:, None] * np.linalg.inv(_evaluate(6)).T)


# Tiles of many small maps are transformed in groups that stay in the cache.
_TILE_BYTES = 1 << 22


def conv_windows(
    x: Float[Array, "b h w c"], kernel: Float[Array, "kh kw i o"], spec: Conv
) -> Float[Array, "b H W o"]:
    """Equals `ops.conv` to rounding; faster for many small maps, without gradients."""
    if (
        spec.groups > 1
        or x.dtype != jnp.float32
        or not suits_winograd(spec, x.shape[-1])
    ):
        return conv(x, kernel, spec)
    padding = spec.padding
    if spec.stride != (1, 1):
        x, kernel = _fold(x, kernel, spec)
        padding = ((0, 0), (0, 0))
    batch, height, width, channels = x.shape
    tiles = -(-height // _TILE) * -(-width // _TILE)
    together = max(1, _TILE_BYTES // (4 * 36 * tiles * channels))
    parts = -(-batch // together)
    together = -(-batch // parts)
    x = jnp.pad(x, ((0, parts * together - batch), (0, 0), (0, 0), (0, 0)))
    weights = lax.optimization_barrier(_transform_kernel(kernel))
    y = lax.map(
        lambda part: _filter_tiles(part, weights, padding),
        x.reshape(parts, together, height, width, channels),
    )
    return y.reshape(-1, *y.shape[2:])[:batch]


def _winograd(x: Array, kernel: Array, padding: Padding) -> Array:
    """Equals `ops.conv` to rounding, with a 3 x 3 kernel and stride 1."""
    return _filter_tiles(x, _transform_kernel(kernel), padding)


def _transform_kernel(kernel: Array) -> Array:
    """Weights of the 36 products of a tile: [36, channels, features]."""
    # A Kronecker square transforms both axes of a tile at once.
    matrix = jnp.asarray(np.kron(_KERNEL, _KERNEL), kernel.dtype)
    return (matrix @ kernel.reshape(9, -1)).reshape(36, *kernel.shape[2:])


def _filter_tiles(x: Array, weights: Array, padding: Padding) -> Array:
    batch, height, width, channels = x.shape
    height, width = height + sum(padding[0]) - 2, width + sum(padding[1]) - 2
    rows, columns = -(-height // _TILE), -(-width // _TILE)
    to_tiles, to_pixels = (
        jnp.asarray(np.kron(matrix, matrix), x.dtype) for matrix in (_INPUT, _OUTPUT)
    )
    tiles, order = _tiles(x, padding, rows, columns)
    tiles = (to_tiles[:, np.array(order)] @ tiles).reshape(36, -1, channels)
    out = to_pixels @ jnp.matmul(tiles, weights).reshape(36, -1)
    out = out.reshape(_TILE, _TILE, batch, rows, columns, -1)
    out = out.transpose(2, 3, 0, 4, 1, 5)
    out = out.reshape(batch, _TILE * rows, _TILE * columns, -1)
    return out[:, :height, :width]


def _tiles(
    x: Array, padding: Padding, rows: int, columns: int
) -> tuple[Array, list[int]]:
    """Overlapping 6 x 6 tiles [36, batch * rows * columns * channels].

    The order tells which pixel of the tile, row-major, each of the 36 is.
    """
    batch, height, width, channels = x.shape
    (top, _), (left, _) = padding
    full_h, full_w = _TILE * (rows + 1), _TILE * (columns + 1)
    edges = (top, full_h - height - top), (left, full_w - width - left)
    blocks = jnp.pad(x, ((0, 0), *edges, (0, 0)))
    blocks = blocks.reshape(batch, rows + 1, _TILE, columns + 1, _TILE, channels)
    # Without the barrier XLA would redo this transposition inside each of four copies.
    blocks = lax.optimization_barrier(blocks.transpose(2, 4, 0, 1, 3, 5))
    parts, order = [], []
    # A tile is its own 4 x 4 block, and the edges of those right, below and diagonal.
    for down, right in np.ndindex(2, 2):
        high, wide = (2 if down else _TILE), (2 if right else _TILE)
        part = blocks[:high, :wide, :, down : down + rows, right : right + columns]
        parts.append(part.reshape(high * wide, -1))
        order += [
            6 * (_TILE * down + i) + _TILE * right + j
            for i, j in np.ndindex(high, wide)
        ]
    # Fused into the matrix product that follows, it would be gathered again and again.
    return lax.optimization_barrier(jnp.concatenate(parts)), order
