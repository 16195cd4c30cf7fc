"""The operations of the paper: convolve, pool with switches, unpool, normalize.

Each function is the definition (Zeiler & Fergus 2013, section 2.1). On the CPU the
function that it is decorated with computes the same values faster.

    >>> x = jnp.array([[1.0, 5.0], [3.0, 2.0]]).reshape(1, 2, 2, 1)
    >>> pool = MaxPool("pool1", kernel=2)
    >>> pooled, switches = max_pool(x, pool)
    >>> pooled.item(), switches.item()
    (5.0, 1)
    >>> unpool(pooled, switches, pool, (2, 2))[0, :, :, 0].tolist()
    [[0.0, 5.0], [0.0, 0.0]]
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from zfnet_jax import cpu
from zfnet_jax.arch import ContrastNorm, Conv, MaxPool, Pair


@cpu.replace_with(cpu.conv.conv)
def conv(
    x: Float[Array, "b h w c"], kernel: Float[Array, "kh kw i o"], spec: Conv
) -> Float[Array, "b H W o"]:
    """Cross-correlate with the kernel, without a bias."""
    return lax.conv_general_dilated(
        x,
        kernel,
        spec.stride,
        spec.padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=spec.groups,
    )


@cpu.replace_with(cpu.conv.conv_transpose)
def conv_transpose(
    y: Float[Array, "b H W o"],
    kernel: Float[Array, "kh kw i o"],
    spec: Conv,
    out_hw: Pair,
) -> Float[Array, "b h w c"]:
    """Filter with the transposed kernel: the exact adjoint of `conv`.

    Args:
        y: Signal in the shape of the convolution's output.
        kernel: Kernel of the forward convolution.
        spec: The forward convolution.
        out_hw: Height and width of the forward convolution's input.
    """
    inputs = (len(y), *out_hw, kernel.shape[2] * spec.groups)
    transpose = jax.linear_transpose(
        lambda x: conv(x, kernel, spec), jax.ShapeDtypeStruct(inputs, y.dtype)
    )
    return transpose(y)[0]


@cpu.replace_with(cpu.pool.max_pool)
def max_pool(
    x: Float[Array, "b h w c"], spec: MaxPool
) -> tuple[Float[Array, "b H W c"], Int[Array, "b H W c"]]:
    """Take the maximum of every window, and record its position: the "switches".

    The first of equal values in row-major order wins, as in PyTorch. NaN wins over any
    number, and the last NaN over earlier ones. Padding never wins.

    Returns:
        The maxima, and their int32 positions: flat row-major indices into the map
        before pooling. The derivative of the maxima is `unpool`.
    """
    height, width = x.shape[1:3]
    position = jnp.arange(height * width, dtype=jnp.int32).reshape(1, height, width, 1)

    def choose(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        (value, place), (other, other_place) = a, b
        tie = (value == other) & (place < other_place)
        nan = jnp.isnan(value) & (~jnp.isnan(other) | (place > other_place))
        wins = (value > other) & ~jnp.isnan(other) | tie | nan
        return jnp.where(wins, value, other), jnp.where(wins, place, other_place)

    lowest = np.array(-np.inf, x.dtype)
    padding = ((0, 0), *spec.padding, (0, 0))
    windows = (1, *spec.kernel, 1), (1, *spec.stride, 1), padding
    _, switches = lax.reduce_window(
        (lax.stop_gradient(x), jnp.broadcast_to(position, x.shape)),
        (lowest, np.array(np.iinfo(np.int32).max, np.int32)),
        choose,
        *windows,
    )
    return lax.reduce_window(x, lowest, lax.max, *windows), switches


@cpu.replace_with(cpu.pool.unpool)
def unpool(
    y: Float[Array, "b H W c"],
    switches: Int[Array, "b H W c"],
    spec: MaxPool,
    out_hw: Pair,
) -> Float[Array, "b h w c"]:
    """Place each value at its recorded maximum, with zeros elsewhere.

    Windows that share a maximum are summed, which the paper leaves open: this makes
    unpooling the adjoint of pooling.

    Args:
        y: Pooled values.
        switches: Positions of the maxima, from `max_pool`.
        spec: The pooling.
        out_hw: Height and width before pooling.
    """
    batch, *_, channels = y.shape
    image, channel = np.ogrid[:batch, :channels]
    flat = jnp.zeros((batch, out_hw[0] * out_hw[1], channels), y.dtype)
    places = switches.reshape(batch, -1, channels)
    flat = flat.at[image[:, None], places, channel].add(y.reshape(places.shape))
    return flat.reshape(batch, *out_hw, channels)


@functools.partial(jax.jit, static_argnames="spec")
def contrast_norm(
    x: Float[Array, "b h w c"], spec: ContrastNorm
) -> Float[Array, "b h w c"]:
    """Divide by (k + alpha * sum of squares over neighboring channels) ** beta.

    It is jitted so that the ReLU rules recognize it by its name in a jaxpr.
    """
    before, after = spec.size // 2, (spec.size - 1) // 2
    squares = jnp.pad(jnp.square(x), ((0, 0), (0, 0), (0, 0), (before, after)))
    channels = x.shape[-1]
    local = sum(squares[..., i : i + channels] for i in range(spec.size))
    return x / (spec.k + spec.alpha * local) ** spec.beta
