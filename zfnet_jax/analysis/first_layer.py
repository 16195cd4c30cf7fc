"""The paper's objections to AlexNet's first layer, as numbers (section 4.1, Fig. 6).

Filters of very high and very low frequency with few between, dead filters, one filter
that dominates, and aliasing in the second layer by the first one's stride of 4.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float32

from zfnet_jax import ops
from zfnet_jax.arch import ContrastNorm, Conv, Dense, MaxPool, receptive_field
from zfnet_jax.model import ConvNet
from zfnet_jax.networks import Network, as_network

Kernel = Float[Array | np.ndarray, "kh kw i o"]

# In cycles per pixel: wavelengths above 8 pixels, of 4 to 8, below 4.
BANDS: dict[str, tuple[float, float]] = {
    "low": (0.0, 1 / 8),
    "mid": (1 / 8, 1 / 4),
    "high": (1 / 4, 1.0),
}
_SPECTRUM = 64
_BATCH_SIZE = 32


def filter_rms(kernel: Kernel) -> Float32[np.ndarray, " o"]:
    """Root mean square of each filter of an HWIO kernel, which section 3 limits."""
    wide = np.asarray(kernel, np.float64)
    return np.sqrt((wide**2).mean((0, 1, 2))).astype(np.float32)


def limit_filters(kernel: Kernel, limit: float) -> Float32[np.ndarray, "kh kw i o"]:
    """Scale filters whose RMS is above a limit back to it."""
    scale = np.minimum(1, limit / filter_rms(kernel).clip(1e-30))
    return (np.asarray(kernel) * scale).astype(np.float32)


def band_energy(kernel: Kernel) -> dict[str, Float32[np.ndarray, " o"]]:
    """Share of each filter's energy in `BANDS` of spatial frequency; 0 without any.

    The filter is padded with zeros to 64 x 64, its squared spectrum summed over the
    input channels and assigned to bands by the length of the frequency vector. White
    noise has shares of 5, 15 and 80%, the bands' shares of the area.
    """
    wide = np.asarray(kernel, np.float64)
    spectrum = np.fft.fft2(wide, (_SPECTRUM, _SPECTRUM), axes=(0, 1))
    energy = (np.abs(spectrum) ** 2).sum(2)
    length = np.hypot(*np.meshgrid(*[np.fft.fftfreq(_SPECTRUM)] * 2))
    total = energy.sum((0, 1))
    shares = energy / np.where(total > 0, total, 1)
    return {
        name: shares[(low <= length) & (length < high)].sum(0).astype(np.float32)
        for name, (low, high) in BANDS.items()
    }


def dense_feature(
    model: ConvNet, images: Float[Array | np.ndarray, "b h w c"], layer: str
) -> Float[Array, "b H W f"]:
    """A layer's feature at every pixel, as it would be without any stride.

    Every stride is replaced by a dilation of the layers after it. With the product T of
    all strides up to the layer, `dense[:, ::T, ::T]` starts with the feature itself.

    Raises:
        ValueError: There is no such layer, or it is a dense one.
    """
    x = jnp.asarray(images, jnp.float32)
    if isinstance(model.arch.layer(layer), Dense):
        raise ValueError(f"{layer} is a dense layer, which has no positions")
    step = np.ones(2, int)
    for spec in model.arch.layers:
        if isinstance(spec, ContrastNorm):
            x = ops.contrast_norm(x, spec)
        if isinstance(spec, Conv | MaxPool):
            dilation = tuple(map(int, step))
            padding = [
                (before * d, after * d)
                for (before, after), d in zip(spec.padding, dilation, strict=True)
            ]
            if isinstance(spec, Conv):
                affine = getattr(model, spec.name)
                x = lax.conv_general_dilated(
                    x,
                    affine.kernel[...],
                    (1, 1),
                    padding,
                    rhs_dilation=dilation,
                    dimension_numbers=("NHWC", "HWIO", "NHWC"),
                    feature_group_count=spec.groups,
                )
                x = jax.nn.relu(x + affine.bias[...])
            else:
                x = lax.reduce_window(
                    x,
                    -jnp.inf,
                    lax.max,
                    (1, *spec.kernel, 1),
                    (1, 1, 1, 1),
                    ((0, 0), *padding, (0, 0)),
                    window_dilation=(1, *dilation, 1),
                )
            step = step * spec.stride
        if spec.name == layer:
            break
    return x


def aliasing(
    net: Network | ConvNet, images: Any, layer: str
) -> Float32[np.ndarray, " f"]:
    """Share of the variation in each map that is too fine for the layer's stride.

    It is the share of the energy of `dense_feature`, without its mean and under a Hann
    window, at frequencies of at least half a cycle per stride in either direction:
    keeping every T-th value folds this onto lower frequencies. It is 0 at stride 1,
    1 - 1/T² for white noise, and NaN for a map that varies in no image.

    Raises:
        ValueError: The network is not a `ConvNet`, the images do not fit it, or as in
            `dense_feature`.
    """
    net, images = as_network(net, images)
    if not net.is_convnet:
        raise ValueError(
            "aliasing needs a ConvNet: the strides of other networks are not known"
        )
    total = np.zeros((3, 1))
    for _, batch, count in net.batches(images, _BATCH_SIZE):
        is_real = np.arange(len(batch)) < count
        total = total + np.asarray(_measure(net.model, batch, is_real, layer))
    fine, whole, still = total
    # Less than this is what rounding leaves of a constant map.
    varies = whole > 1e-9 * (still + 1e-30)
    return np.where(varies, fine / np.where(varies, whole, 1), np.nan).astype("f4")


@functools.partial(jax.jit, static_argnames="layer")
def _measure(
    model: ConvNet, images: Array, is_real: Array, layer: str
) -> Float[Array, "3 f"]:
    """Energy of each map that a stride folds, all of it, and that of the mean."""
    maps = dense_feature(model, images, layer)
    strides = receptive_field(model.arch, layer).stride
    hw = maps.shape[1:3]
    rows, columns = (np.hanning(extent + 2)[1:-1] for extent in hw)
    window = jnp.asarray(np.outer(rows, columns)[..., None], maps.dtype)
    mean = (maps * window).sum((1, 2), keepdims=True) / window.sum()
    spectrum = jnp.fft.fft2((maps - mean) * window, axes=(1, 2))
    energy = jnp.abs(spectrum) ** 2
    rows, columns = (
        np.abs(np.fft.fftfreq(extent)) >= 0.5 / stride
        for extent, stride in zip(hw, strides, strict=True)
    )
    is_fine = rows[:, None] | columns
    if strides == (1, 1):
        is_fine = np.zeros_like(is_fine)
    energies = (energy * is_fine[..., None], energy, (mean * window.sum()) ** 2)
    real = is_real[:, None]
    return jnp.stack([(x.sum((1, 2)) * real).sum(0) for x in energies])
