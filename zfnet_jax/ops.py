"""The operations of the network: convolution, max pooling with switches, normalisation.

Each exists in the plain form that XLA runs best on an accelerator. On the CPU, XLA's
own gradients of convolution and pooling are several times slower than they need to be,
so convolution there has a form with its own vjp, chosen in one place (`fast_conv`).
"""

from __future__ import annotations

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt

from zfnet_jax.arch import ContrastNorm, Conv, MaxPool, Padding, Pair

Overlap = Literal["sum", "last"]

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def conv(
    x: Float[Array, "b h w c"], kernel: Float[Array, "kh kw i o"], spec: Conv
) -> Float[Array, "b H W o"]:
    """Cross-correlate with the kernel, without bias: XLA's own convolution."""
    return _correlate(x, kernel, spec.stride, spec.padding, spec.groups)


def _correlate(
    x: Array, kernel: Array, stride: Pair, padding: Padding, groups: int = 1
) -> Array:
    # XLA's CPU convolution runs at a third of its speed when nothing at all is padded.
    slow = padding == ((0, 0), (0, 0)) and jax.default_backend() == "cpu"
    out = lax.conv_general_dilated(
        x,
        kernel,
        stride,
        ((0, 1), (0, 0)) if slow else padding,
        dimension_numbers=_DIMENSIONS,
        feature_group_count=groups,
    )
    if slow:
        out = out[:, : (x.shape[1] - kernel.shape[0]) // stride[0] + 1]
    return out


def fast_conv(
    x: Float[Array, "b h w c"], kernel: Float[Array, "kh kw i o"], spec: Conv
) -> Float[Array, "b H W o"]:
    """`conv` in the form that trains fastest here; equal to it to rounding.

    On the CPU a kernel of three strides goes by Winograd's F(4x4, 3x3), any other
    ungrouped float32 kernel by a convolution whose gradients are matrix products. On
    other platforms it is `conv`.
    """
    if jax.default_backend() != "cpu" or spec.groups > 1 or x.dtype != jnp.float32:
        return conv(x, kernel, spec)
    strides = [-(-k // s) for k, s in zip(spec.kernel, spec.stride, strict=True)]
    if strides == [3, 3] and x.shape[-1] * math.prod(spec.stride) >= 16:
        if spec.stride == (1, 1):
            return _winograd(x, kernel, spec.padding)
        return _winograd(*_fold(x, kernel, spec), ((0, 0), (0, 0)))
    return _direct(x, kernel, spec.stride, spec.padding)


def _fold(x: Array, kernel: Array, spec: Conv) -> tuple[Array, Array]:
    """Input and kernel of the same convolution with stride 1.

    Each stride x stride block of pixels becomes one pixel of that many more channels.
    """
    (step_h, step_w), channels = spec.stride, x.shape[-1]
    rows, columns = (
        (extent + sum(edges) - size) // step + 3
        for extent, edges, size, step in zip(
            x.shape[1:3], spec.padding, spec.kernel, spec.stride, strict=True
        )
    )
    edges = [
        (before, count * step - extent - before, 0)
        for extent, (before, _), count, step in zip(
            x.shape[1:3], spec.padding, (rows, columns), spec.stride, strict=True
        )
    ]
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _direct(x: Array, kernel: Array, stride: Pair, padding: Padding) -> Array:
    return _correlate(x, kernel, stride, padding)


def _direct_forward(x, kernel, stride, padding):
    return _direct(x, kernel, stride, padding), (x, kernel)


def _direct_backward(stride, padding, residuals, grad):
    x, kernel = residuals
    kernel_grad = _kernel_gradient(x, grad, kernel.shape[:2], stride, padding)
    return _transpose(grad, kernel, stride, padding, x.shape[1:3]), kernel_grad


_direct.defvjp(_direct_forward, _direct_backward)


# With fewer channels each tap's product is too thin, and all taps are gathered into
# one: of a few images at a time, or of more while their patches stay in the cache.
_THIN = 16
_FEW_IMAGES = 4
_PATCH_BYTES = 1 << 21
_PRODUCT_BYTES = 1 << 24


def _kernel_gradient(
    x: Array, grad: Array, kernel_hw: Pair, stride: Pair, padding: Padding
) -> Array:
    """Gradient of a convolution for its kernel, as matrix products over all pixels."""
    batch, *_, channels = x.shape
    patches = 4 * math.prod(grad.shape[1:3]) * math.prod(kernel_hw) * channels
    at_once = max(_FEW_IMAGES, _PATCH_BYTES // patches)
    if channels < _THIN and at_once < batch:
        at_once = max(n for n in range(1, at_once + 1) if batch % n == 0)

        def add(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
            return total + _kernel_gradient(*part, kernel_hw, stride, padding), None

        x = x.reshape(-1, at_once, *x.shape[1:])
        grad = grad.reshape(-1, at_once, *grad.shape[1:])
        start = jnp.zeros((*kernel_hw, channels, grad.shape[-1]), grad.dtype)
        return lax.scan(add, start, (x, grad))[0]
    *_, rows, columns, features = grad.shape
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    pixels = grad.reshape(-1, features)

    def product(patch: Array) -> Array:
        patch = patch.reshape(-1, patch.shape[-1])
        return lax.dot_general(pixels, patch, (((0,), (0,)), ((), ()))).T

    if channels < _THIN:
        # Columns first: rows are then gathered in longer runs.
        across = _taps(
            padded, (1, kernel_hw[1]), (1, stride[1]), (padded.shape[1], columns)
        )
        lines = lax.optimization_barrier(jnp.concatenate(across, -1))
        down = _taps(lines, (kernel_hw[0], 1), (stride[0], 1), (rows, columns))
        out = product(lax.optimization_barrier(jnp.concatenate(down, -1)))
    else:
        taps = _taps(padded, kernel_hw, stride, (rows, columns))
        out = jnp.stack([*map(product, taps)])
    return out.reshape(*kernel_hw, channels, features)


def _taps(padded: Array, window: Pair, stride: Pair, out_hw: Pair) -> list[Array]:
    """What each position of a sliding window sees, in row-major order."""
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
    grad: Float[Array, "b H W o"],
    kernel: Float[Array, "kh kw i o"],
    spec: Conv,
    out_hw: Pair,
) -> Float[Array, "b h w c"]:
    """The exact adjoint of `conv`: filtering with the transposed, tied kernel.

    "Filtering" of section 2.1, for any stride, padding and number of groups.

    Args:
        grad: What to send back, in the shape of the convolution's output.
        kernel: The kernel of the forward convolution, HWIO.
        spec: The forward convolution.
        out_hw: Height and width of the forward convolution's input.
    """
    return _transpose(grad, kernel, spec.stride, spec.padding, out_hw, spec.groups)


def _transpose(
    grad: Array,
    kernel: Array,
    stride: Pair,
    padding: Padding,
    out_hw: Pair,
    groups: int = 1,
) -> Array:
    """A strided convolution's adjoint.

    While they fit the cache, and to few channels always, all products of a pixel and
    the kernel are formed at once and then added up in place. Otherwise it is one
    convolution for each phase of the output: XLA's CPU backend is slow on dilated
    inputs, and on few output channels.
    """
    *window, inputs, features = kernel.shape
    products = math.prod(grad.shape[:3]) * math.prod(window) * inputs
    if groups == 1 and (inputs < _THIN or 4 * products <= _PRODUCT_BYTES):
        lines = grad @ kernel.swapaxes(0, 1).reshape(-1, features).T
        lines = lines.reshape(*grad.shape[:3], window[1], -1)
        columns = _overlap_add(lines, 2, stride[1], padding[1][0], out_hw[1])
        columns = columns.reshape(*columns.shape[:3], window[0], inputs)
        return _overlap_add(columns, 1, stride[0], padding[0][0], out_hw[0])
    flipped = kernel.reshape(*window, inputs, groups, features // groups)
    flipped = flipped.transpose(0, 1, 4, 3, 2)
    flipped = flipped.reshape(*window, features // groups, groups * inputs)
    reach = [
        -(-(extent + before) // step)
        for extent, (before, _), step in zip(out_hw, padding, stride, strict=True)
    ]

    def phase(i: int, j: int) -> Array:
        part = flipped[i :: stride[0], j :: stride[1]]
        if 0 in part.shape:
            return jnp.zeros((len(grad), *reach, groups * inputs), grad.dtype)
        edges = [
            (part.shape[axis] - 1, reach[axis] - grad.shape[axis + 1])
            for axis in (0, 1)
        ]
        return lax.conv_general_dilated(
            grad,
            part[::-1, ::-1],
            (1, 1),
            edges,
            dimension_numbers=_DIMENSIONS,
            feature_group_count=groups,
        )

    return _interleave(phase, stride, padding, out_hw)


def _overlap_add(x: Array, axis: int, step: int, before: int, extent: int) -> Array:
    """Add windows up where they overlap along one axis of a map.

    Args:
        x: [b, h, w, window, ...].
        axis: 1 or 2: the windows are of rows or of columns.
        step: Distance between windows.
        before: Pixels to leave out before the first one kept.
        extent: Pixels to keep.

    Returns:
        [b, H, w, ...] or [b, h, W, ...]: `extent` pixels along `axis`.
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


def _interleave(phase, stride: Pair, padding: Padding, out_hw: Pair) -> Array:
    """Assemble a padded map from its phases (every stride-th pixel) and crop it."""
    # Phases first, then one transposition: to write them apart takes XLA far longer.
    phases = jnp.stack([phase(i, j) for i, j in np.ndindex(*stride)])
    _, batch, height, width, channels = phases.shape
    grid = phases.reshape(*stride, *phases.shape[1:]).transpose(2, 3, 0, 4, 1, 5)
    full = grid.reshape(batch, height * stride[0], width * stride[1], channels)
    (top, _), (left, _) = padding
    return full[:, top : top + out_hw[0], left : left + out_hw[1]]


# Winograd's minimal filtering F(4x4, 3x3), Lavin & Gray 2016 (arXiv 1509.09308), with
# interpolation points 0, 1, -1, 2, -2: a tile of 6 x 6 inputs gives 4 x 4 outputs by 36
# products for each pair of channels in place of 144.
_TILE = 4
_INPUT = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
_KERNEL = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)
_OUTPUT = np.array(
    [
        [1, 1, 1, 1, 1, 0],
        [0, 1, -1, 2, -2, 0],
        [0, 1, 1, 4, 4, 0],
        [0, 1, -1, 8, -8, 1],
    ]
)
# The order in which `_tiles` lists the 36 pixels of a tile: those in the tile's own
# 4 x 4 block, then those in the blocks to its right, below it, and diagonally below.
_BLOCKS = ((range(4), range(4)), (range(4), (4, 5)), ((4, 5), range(4)), ((4, 5),) * 2)
_TILE_ORDER = [6 * i + j for rows, cols in _BLOCKS for i in rows for j in cols]


def _matrices(dtype) -> tuple[Array, Array, Array]:
    """Both axes of a tile at once: Kronecker squares [36, 36], [36, 9] and [16, 36]."""
    squares = (np.kron(m, m) for m in (_INPUT, _KERNEL, _OUTPUT))
    inputs, kernel, output = (jnp.asarray(square, dtype) for square in squares)
    return inputs[:, np.array(_TILE_ORDER)], kernel, output


def _grid(extent: int, padding: Pair) -> int:
    """Tiles along an axis."""
    return -(-(extent + sum(padding) - 2) // _TILE)


def _tiles(x: Array, padding: Padding) -> Array:
    """Overlapping 6 x 6 tiles: [36, batch * rows * columns * channels]."""
    batch, height, width, channels = x.shape
    rows, columns = _grid(height, padding[0]), _grid(width, padding[1])
    edges = [
        (before, _TILE * (count + 1) - extent - before)
        for extent, count, (before, _) in zip(
            (height, width), (rows, columns), padding, strict=True
        )
    ]
    blocks = jnp.pad(x, ((0, 0), *edges, (0, 0)))
    blocks = blocks.reshape(batch, rows + 1, _TILE, columns + 1, _TILE, channels)
    # Without the barrier XLA would redo this transposition inside each of four copies.
    blocks = lax.optimization_barrier(blocks.transpose(2, 4, 0, 1, 3, 5))
    parts = (
        blocks[:, :, :, :rows, :columns],
        blocks[:, :2, :, :rows, 1:],
        blocks[:2, :, :, 1:, :columns],
        blocks[:2, :2, :, 1:, 1:],
    )
    return jnp.concatenate([p.reshape(p.shape[0] * p.shape[1], -1) for p in parts])


def _tiles_adjoint(tiles: Array, shape: tuple[int, ...], padding: Padding) -> Array:
    """Adjoint of `_tiles`: add each tile's pixels back where they came from."""
    batch, height, width, channels = shape
    rows, columns = _grid(height, padding[0]), _grid(width, padding[1])
    total: Array | float = 0.0
    start = 0
    for block_rows, block_columns in _BLOCKS:
        down, right = int(block_rows[0] == 4), int(block_columns[0] == 4)
        n, m = len(block_rows), len(block_columns)
        part = tiles[start : start + n * m]
        part = part.reshape(n, m, batch, rows, columns, channels)
        start += n * m
        edges = ((0, 4 - n), (0, 4 - m), (0, 0), (down, 1 - down), (right, 1 - right))
        total += jnp.pad(part, (*edges, (0, 0)))
    assert isinstance(total, jax.Array)
    full = total.transpose(2, 3, 0, 4, 1, 5)
    full = full.reshape(batch, _TILE * (rows + 1), _TILE * (columns + 1), channels)
    (top, _), (left, _) = padding
    return full[:, top : top + height, left : left + width]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _winograd(x: Array, kernel: Array, padding: Padding) -> Array:
    return _winograd_forward(x, kernel, padding)[0]


def _winograd_forward(x, kernel, padding):
    batch, height, width, channels = x.shape
    features = kernel.shape[-1]
    rows, columns = _grid(height, padding[0]), _grid(width, padding[1])
    inputs, kernels, output = _matrices(x.dtype)
    tiles = (inputs @ _tiles(x, padding)).reshape(36, -1, channels)
    weights = (kernels @ kernel.reshape(9, -1)).reshape(36, channels, features)
    out = output @ jnp.matmul(tiles, weights).reshape(36, -1)
    out = out.reshape(_TILE, _TILE, batch, rows, columns, features)
    out = out.transpose(2, 3, 0, 4, 1, 5)
    out = out.reshape(batch, _TILE * rows, _TILE * columns, features)
    out = out[:, : height + sum(padding[0]) - 2, : width + sum(padding[1]) - 2]
    return out, (tiles, weights)


def _winograd_backward(padding, residuals, grad):
    tiles, weights = residuals
    batch, height, width, features = grad.shape
    channels = tiles.shape[-1]
    shape = (batch, height + 2 - sum(padding[0]), width + 2 - sum(padding[1]), channels)
    inputs, kernels, output = _matrices(grad.dtype)
    rows, columns = -(-height // _TILE), -(-width // _TILE)
    edges = ((0, 0), (0, _TILE * rows - height), (0, _TILE * columns - width), (0, 0))
    grad = jnp.pad(grad, edges)
    grad = grad.reshape(batch, rows, _TILE, columns, _TILE, features)
    grad = grad.transpose(2, 4, 0, 1, 3, 5).reshape(_TILE * _TILE, -1)
    grad = (output.T @ grad).reshape(36, -1, features)
    to_tiles = lax.dot_general(grad, weights, (((2,), (2,)), ((0,), (0,))))
    to_weights = lax.dot_general(tiles, grad, (((1,), (1,)), ((0,), (0,))))
    kernel_grad = kernels.T @ to_weights.reshape(36, -1)
    x_grad = _tiles_adjoint(inputs.T @ to_tiles.reshape(36, -1), shape, padding)
    return x_grad, kernel_grad.reshape(3, 3, channels, features)


_winograd.defvjp(_winograd_forward, _winograd_backward)


def max_pool_with_switches(
    x: Float[Array, "b h w c"], spec: MaxPool
) -> tuple[Float[Array, "b H W c"], Int[Array, "b H W c"]]:
    """Max pooling that also says where each maximum was (section 2.1, "switches").

    On a tie the first position in row-major order wins, as in PyTorch: a position must
    be strictly greater to replace an earlier one; NaN wins. Padding never wins over a
    finite value.

    Args:
        x: Maps to pool.
        spec: Window, stride and padding.

    Returns:
        The maxima, and their positions as flat row-major indices (int32) into the map
        `h * w` before pooling.
    """
    return _pool(x, spec)


def max_pool(x: Float[Array, "b h w c"], spec: MaxPool) -> Float[Array, "b H W c"]:
    """The maxima of `max_pool_with_switches`, with the same gradient."""
    return max_pool_with_switches(x, spec)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _pool(x, spec):
    return _pool_forward(x, spec)[0]


def _pool_forward(x, spec):
    padded = jnp.pad(x, ((0, 0), *spec.padding, (0, 0)), constant_values=-jnp.inf)
    out_hw = tuple(
        (extent - window) // step + 1
        for extent, window, step in zip(
            padded.shape[1:3], spec.kernel, spec.stride, strict=True
        )
    )
    best, *others = _taps(padded, spec.kernel, spec.stride, out_hw)
    place = jnp.zeros(best.shape, _place_dtype(spec))
    for index, value in enumerate(others, 1):
        # What is not a number wins and stays, so that it is not lost unseen.
        better = (value > best) | jnp.isnan(value)
        best = jnp.where(better, value, best)
        place = jnp.where(better, place.dtype.type(index), place)
    offset_h, offset_w = jnp.divmod(place.astype(jnp.int32), spec.kernel[1])
    top, left = _corners(spec, out_hw)
    # An empty slice carries the unpooled shape: residuals must be arrays.
    switches = (top + offset_h) * x.shape[2] + left + offset_w
    return (best, switches), (place, x[:0])


def _pool_backward(spec, residuals, cotangents):
    place, empty = residuals
    return (unpool_windows(cotangents[0], place, spec, empty.shape[1:3]),)


_pool.defvjp(_pool_forward, _pool_backward)


def _place_dtype(spec: MaxPool) -> np.dtype:
    return np.min_scalar_type(math.prod(spec.kernel))  # one more, for no place at all


def _corners(spec: MaxPool, out_hw: tuple[int, ...]) -> tuple[Array, Array]:
    """First row and column of each window: [H, 1, 1] and [W, 1]."""
    top, left = (
        jnp.arange(count) * step - before
        for count, step, (before, _) in zip(
            out_hw, spec.stride, spec.padding, strict=True
        )
    )
    return top[:, None, None], left[:, None]


def window_places(
    switches: Int[Array, "b H W c"], spec: MaxPool, width: int
) -> Int[Array, "b H W c"] | UInt[Array, "b H W c"]:
    """Where in its own window each maximum lies: flat row-major, 0 for the first.

    Args:
        switches: As from `max_pool_with_switches`.
        spec: The pooling.
        width: Width of the map before pooling.

    Returns:
        The positions, in the smallest unsigned integer type that holds them and one
        more number, which `unpool_windows` takes for no place at all.
    """
    top, left = _corners(spec, switches.shape[1:3])
    row, column = jnp.divmod(switches, width)
    place = (row - top) * spec.kernel[1] + column - left
    return place.astype(_place_dtype(spec))


def unpool(
    x: Float[Array, "b H W c"],
    switches: Int[Array, "b H W c"],
    spec: MaxPool,
    out_hw: Pair,
    overlap: Overlap = "sum",
) -> Float[Array, "b h w c"]:
    """Place each value at its recorded maximum; zeros elsewhere (section 2.1).

    Args:
        x: Pooled values.
        switches: Flat row-major index, into the unpooled map, of each maximum.
        spec: The pooling.
        out_hw: Height and width before pooling.
        overlap: What windows that share a maximum do, which the paper leaves open:
            "sum" adds, the adjoint of max pooling; "last" lets the later window in
            row-major order overwrite, zeros included, as torch.nn.MaxUnpool2d does.

    Returns:
        The unpooled map, in the dtype of `x`.
    """
    places = window_places(switches, spec, out_hw[1])
    return unpool_windows(x, places, spec, out_hw, overlap)


def last_windows(
    switches: Int[Array, "b H W c"], spec: MaxPool, out_hw: Pair
) -> Bool[Array, "b H W c"]:
    """Whether no later window has the same maximum: whose value `unpool` "last" keeps.

    Args:
        switches: As from `max_pool_with_switches`.
        spec: The pooling.
        out_hw: Height and width before pooling.
    """
    batch, rows, columns, channels = switches.shape
    # Floats hold whole numbers up to 2 ** 24.
    order = jnp.arange(rows * columns, dtype=jnp.float32).reshape(rows, columns, 1)
    order = jnp.broadcast_to(order, switches.shape)
    winner = unpool(order, switches, spec, out_hw, "last")
    winner = winner.reshape(batch, -1, channels)
    at_switch = jnp.take_along_axis(winner, switches.reshape(batch, -1, channels), 1)
    return at_switch.reshape(switches.shape) == order


def unpool_windows(
    x: Float[Array, "b H W c"],
    places: UInt[Array, "b H W c"],
    spec: MaxPool,
    out_hw: Pair,
    overlap: Overlap = "sum",
) -> Float[Array, "b h w c"]:
    """`unpool` by the position of each maximum inside its own window.

    Args:
        x: Pooled values.
        places: As from `window_places`.
        spec: The pooling.
        out_hw: Height and width before pooling.
        overlap: As for `unpool`.
    """
    (kernel_h, kernel_w), (step_h, step_w) = spec.kernel, spec.stride
    reach = [
        -(-(extent + before) // step)
        for extent, (before, _), step in zip(
            out_hw, spec.padding, spec.stride, strict=True
        )
    ]
    shifts = [
        (size - 1) // step for size, step in zip(spec.kernel, spec.stride, strict=True)
    ]
    edges = [
        (shift, max(0, pixels - count))
        for shift, pixels, count in zip(shifts, reach, x.shape[1:3], strict=True)
    ]
    edges = ((0, 0), *edges, (0, 0))
    x = jnp.pad(x, edges)
    places = jnp.pad(places, edges, constant_values=kernel_h * kernel_w)

    def phase(i: int, j: int) -> Array:
        """Pixels whose padded position is (i, j) modulo the stride."""
        total = jnp.zeros((len(x), *reach, x.shape[-1]), x.dtype)
        # A window further on sees the pixel nearer to its own start.
        for a in reversed(range(i, kernel_h, step_h)):
            for b in reversed(range(j, kernel_w, step_w)):
                top, left = shifts[0] - a // step_h, shifts[1] - b // step_w
                seen = (
                    slice(None),
                    slice(top, top + reach[0]),
                    slice(left, left + reach[1]),
                )
                won = places[seen] == a * kernel_w + b
                value = x[seen] + total if overlap == "sum" else x[seen]
                total = jnp.where(won, value, total)
        return total

    return _interleave(phase, spec.stride, spec.padding, out_hw)


def contrast_norm(
    x: Float[Array, "b h w c"], spec: ContrastNorm
) -> Float[Array, "b h w c"]:
    """Contrast normalisation across neighbouring feature maps (Fig. 3)."""
    return x / contrast_scale(x, spec)


def contrast_scale(
    x: Float[Array, "b h w c"], spec: ContrastNorm
) -> Float[Array, "b h w c"]:
    """The divisor of `contrast_norm`: (k + alpha * local sum of squares) ** beta."""
    before = (spec.size - 1) // 2
    edges = ((0, 0), (0, 0), (0, 0), (before, spec.size - 1 - before))
    squares = jnp.pad(jnp.square(x), edges)
    channels = x.shape[-1]
    local = sum(squares[..., i : i + channels] for i in range(spec.size))
    return (spec.k + spec.alpha * local) ** spec.beta
