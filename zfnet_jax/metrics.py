"""Measures that compare pictures."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Float64


def spearman(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Spearman's rank correlation; equal values share their mean rank.

    Args:
        a: Values.
        b: As many others.

    Returns:
        From -1 to 1; 0 where all values of one side are equal and have no order.

    Example:
        >>> import numpy as np
        >>> spearman(np.array([1.0, 2.0, 4.0]), np.array([3.0, 5.0, 6.0]))
        1.0
    """
    x, y = _ranks(a), _ranks(b)
    spread = math.sqrt((x @ x) * (y @ y))
    return float(x @ y) / spread if spread else 0.0


def _ranks(values: Float[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Ranks minus their mean."""
    order = np.argsort(values)
    ordered = values[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    ends = np.append(starts[1:], len(values))
    ranks = np.empty(len(values))
    ranks[order] = np.repeat((starts + ends - len(values)) / 2, ends - starts)
    return ranks


@jax.jit
def ssim(
    a: Float[Array | np.ndarray, "n h w"], b: Float[Array | np.ndarray, "n h w"]
) -> Float[Array, "n h w"]:
    """Structural similarity at each pixel of pictures with values in [0, 1].

    Wang et al. 2004 ("Image quality assessment"), section III: a Gaussian window of
    11 x 11 pixels, standard deviation 1.5, K1 = 0.01 and K2 = 0.03. Pictures are
    reflected at their border.

    Args:
        a: Pictures.
        b: The pictures to compare them with, one by one.

    Example:
        >>> import numpy as np
        >>> picture = np.eye(8)[None]
        >>> float(ssim(picture, picture).min())
        1.0
    """
    rows, columns = map(_gaussian_weights, a.shape[1:])

    def mean(x: Array) -> Array:
        return jnp.einsum("ih,nhw,jw->nij", rows, x, columns)

    x, y = jnp.asarray(a), jnp.asarray(b)
    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return luminance * structure


def _gaussian_weights(extent: int) -> Float32[np.ndarray, "extent extent"]:
    """Weights of the window at each position of an axis, the border reflected."""
    reach = 5
    bell = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * 1.5**2))
    sources = np.pad(np.arange(extent), reach, "symmetric")
    weights = np.zeros((extent, extent), np.float32)
    for position in range(extent):
        window = sources[position : position + len(bell)]
        np.add.at(weights[position], window, bell / bell.sum())
    return weights
