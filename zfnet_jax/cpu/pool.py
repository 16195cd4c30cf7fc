"""Max pooling and unpooling by the position of each maximum inside its own window.

A window has few positions, so that a byte holds one; and the pixels with one position
modulo the stride (a phase) are filled by comparisons of whole maps, without a scatter.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt

from zfnet_jax.arch import MaxPool, Pair
from zfnet_jax.cpu.conv import interleave_phases, slice_taps


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool(
    x: Float[Array, "b h w c"], spec: MaxPool
) -> tuple[Float[Array, "b H W c"], Int[Array, "b H W c"]]:
    """Equals `ops.max_pool` for maps without -inf, and so does its derivative."""
    return _max_pool_forward(x, spec)[0]


def _max_pool_forward(x, spec):
    padded = jnp.pad(x, ((0, 0), *spec.padding, (0, 0)), constant_values=-jnp.inf)
    out_hw = tuple(
        (extent - window) // step + 1
        for extent, window, step in zip(
            padded.shape[1:3], spec.kernel, spec.stride, strict=True
        )
    )
    best, *others = slice_taps(padded, spec.kernel, spec.stride, out_hw)
    place = jnp.zeros(best.shape, _place_dtype(spec))
    for index, value in enumerate(others, 1):
        better = (value > best) | jnp.isnan(value)
        best = jnp.where(better, value, best)
        place = jnp.where(better, place.dtype.type(index), place)
    row, column = jnp.divmod(place.astype(jnp.int32), spec.kernel[1])
    top, left = _corners(spec, out_hw)
    switches = (top + row) * x.shape[2] + left + column
    # An empty slice carries the unpooled shape: residuals must be arrays.
    return (best, switches), (place, x[:0])


def _max_pool_backward(spec, residuals, cotangents):
    places, empty = residuals
    return (unpool_windows(cotangents[0], places, spec, empty.shape[1:3]),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def unpool(
    y: Float[Array, "b H W c"],
    switches: Int[Array, "b H W c"],
    spec: MaxPool,
    out_hw: Pair,
) -> Float[Array, "b h w c"]:
    """Equals `ops.unpool` for the switches of `max_pool`."""
    return unpool_windows(y, window_places(switches, spec, out_hw[1]), spec, out_hw)


def window_places(
    switches: Int[Array, "b H W c"], spec: MaxPool, width: int
) -> Int[Array, "b H W c"] | UInt[Array, "b H W c"]:
    """Return the position of each maximum in its own window, flat and row-major.

    Positions are of the smallest unsigned integer type that holds them and one more
    number, the size of the window, which `unpool_windows` takes for none.
    """
    top, left = _corners(spec, switches.shape[1:3])
    row, column = jnp.divmod(switches, width)
    place = (row - top) * spec.kernel[1] + column - left
    return place.astype(_place_dtype(spec))


def unpool_windows(
    y: Float[Array, "b H W c"],
    places: UInt[Array, "b H W c"],
    spec: MaxPool,
    out_hw: Pair,
) -> Float[Array, "b h w c"]:
    """Equals `ops.unpool`, by the positions that `window_places` gives."""
    (kernel_h, kernel_w), (step_h, step_w) = spec.kernel, spec.stride
    (before_h, _), (before_w, _) = spec.padding
    reach = -(-(out_hw[0] + before_h) // step_h), -(-(out_hw[1] + before_w) // step_w)
    shifts = (kernel_h - 1) // step_h, (kernel_w - 1) // step_w
    edges = [
        (shift, max(0, pixels - count))
        for shift, pixels, count in zip(shifts, reach, y.shape[1:3], strict=True)
    ]
    edges = ((0, 0), *edges, (0, 0))
    y = jnp.pad(y, edges)
    places = jnp.pad(places, edges, constant_values=kernel_h * kernel_w)

    def fill_phase(i: int, j: int) -> Array:
        """Fill the pixels whose padded position is (i, j) modulo the stride."""
        total = jnp.zeros((len(y), *reach, y.shape[-1]), y.dtype)
        # A window further on sees the pixel nearer to its own start.
        for a in reversed(range(i, kernel_h, step_h)):
            for b in reversed(range(j, kernel_w, step_w)):
                top, left = shifts[0] - a // step_h, shifts[1] - b // step_w
                windows = (
                    slice(None),
                    slice(top, top + reach[0]),
                    slice(left, left + reach[1]),
                )
                won = places[windows] == a * kernel_w + b
                total = jnp.where(won, y[windows] + total, total)
        return total

    return interleave_phases(fill_phase, spec.stride, spec.padding, out_hw)


def _place_dtype(spec: MaxPool) -> np.dtype:
    return np.min_scalar_type(math.prod(spec.kernel))  # one more, for no place at all


def _corners(spec: MaxPool, out_hw: tuple[int, ...]) -> tuple[Array, Array]:
    """Return the first row and column of each window: int32 [H, 1, 1] and [W, 1]."""
    (step_h, step_w), ((top, _), (left, _)) = spec.stride, spec.padding
    rows = jnp.arange(out_hw[0], dtype=jnp.int32) * step_h - top
    columns = jnp.arange(out_hw[1], dtype=jnp.int32) * step_w - left
    return rows[:, None, None], columns[:, None]
