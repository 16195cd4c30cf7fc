"""What the paper holds against AlexNet's first layer, as numbers (section 4.1, Fig. 6).

Filters that are of very high and very low frequency with little between, filters that
are dead, one filter that dominates, and a second layer that shows the aliasing of a
stride of 4 in the first.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Float32

from zfnet_jax import ops
from zfnet_jax.arch import ContrastNorm, Conv, Dense, MaxPool
from zfnet_jax.model import ConvNet

Kernel = Float[Array | np.ndarray, "kh kw i o"]

# Ends of the bands in cycles a pixel: wavelengths above 8 pixels, of 4 to 8, below 4.
BANDS: dict[str, tuple[float, float]] = {
    "low": (0.0, 1 / 8),
    "mid": (1 / 8, 1 / 4),
    "high": (1 / 4, 1.0),
}
_SPECTRUM = 64
_BATCH = 32


def filter_rms(kernel: Kernel) -> Float32[np.ndarray, " o"]:
    """Root mean square of each filter of a convolution, which section 3 limits."""
    wide = np.asarray(kernel, np.float64)
    return np.sqrt((wide**2).mean((0, 1, 2))).astype(np.float32)


def limited(kernel: Kernel, limit: float) -> Float32[np.ndarray, "kh kw i o"]:
    """A kernel whose filters of an RMS above `limit` are scaled back to it.

    Raises:
        ValueError: the limit is not above 0.
    """
    if not limit > 0:
        raise ValueError(f"the limit of an RMS must be above 0, not {limit}")
    return np.asarray(kernel * np.minimum(1, limit / filter_rms(kernel).clip(1e-30)))


def band_energy(kernel: Kernel) -> dict[str, Float32[np.ndarray, " o"]]:
    """How the energy of each filter is spread over bands of spatial frequency.

    The squared spectrum of a filter, padded by zeros and summed over its input
    channels, by the length of the frequency vector. White noise has shares of 5, 15 and
    80%, the bands' shares of the area.

    Args:
        kernel: HWIO; each side at most 64.

    Returns:
        By the name of the band in `BANDS`, shares that add up to 1; of a filter of
        zeros all are 0.

    Raises:
        ValueError: the kernel is too large.
    """
    if max(kernel.shape[:2]) > _SPECTRUM:
        raise ValueError(f"a kernel of {kernel.shape[:2]} exceeds {_SPECTRUM} pixels")
    wide = np.asarray(kernel, np.float64)
    spectrum = np.fft.fft2(wide, (_SPECTRUM, _SPECTRUM), axes=(0, 1))
    energy = (np.abs(spectrum) ** 2).sum(2)
    length = np.hypot(*np.meshgrid(*[np.fft.fftfreq(_SPECTRUM)] * 2))
    total = energy.sum((0, 1))
    return {
        name: (
            energy[(low <= length) & (length < high)].sum(0)
            / np.where(total > 0, total, 1)
        ).astype(np.float32)
        for name, (low, high) in BANDS.items()
    }


def dense_feature(
    model: ConvNet, images: Float[Array | np.ndarray, "b h w c"], layer: str
) -> Float[Array, "b H W f"]:
    """A layer's feature at every pixel: what it would be without any stride.

    Every stride is replaced by a dilation of what follows. With the product T of all
    strides up to the layer, `dense[:, ::T, ::T]` starts with the feature itself.

    Args:
        model: The network.
        images: Preprocessed images.
        layer: A layer below the dense ones.

    Raises:
        ValueError: no such layer, or it is a dense one.
    """
    x = jnp.asarray(images, jnp.float32)
    if isinstance(model.arch.layer(layer), Dense):
        raise ValueError(f"{layer} has no place in the image: it is a dense layer")
    step = np.ones(2, int)
    for spec in model.arch.layers:
        if isinstance(spec, ContrastNorm):
            x = ops.contrast_norm(x, spec)
        if isinstance(spec, Conv | MaxPool):
            dilation = tuple(map(int, step))
            edges = [
                (before * d, after * d)
                for (before, after), d in zip(spec.padding, dilation, strict=True)
            ]
            if isinstance(spec, Conv):
                affine = getattr(model, spec.name)
                x = lax.conv_general_dilated(
                    x,
                    affine.kernel[...],
                    (1, 1),
                    edges,
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
                    ((0, 0), *edges, (0, 0)),
                    window_dilation=(1, *dilation, 1),
                )
            step = step * spec.stride
        if spec.name == layer:
            break
    return x


def aliasing(
    model: ConvNet, images: Float[np.ndarray, "n h w c"], layer: str
) -> Float32[np.ndarray, " f"]:
    """How much of what varies in each map is too fine for the layer's stride.

    The share of the energy of `dense_feature`, less its mean and under a Hann window,
    at frequencies of half a cycle a stride or more in either direction: keeping every
    T-th value folds this onto lower frequencies. It is 0 at stride 1 but for the very
    last frequency, and 1 - 1/T² for white noise.

    Args:
        model: The network.
        images: Preprocessed images, one at least.
        layer: A layer below the dense ones.

    Returns:
        A share for each map, over all images; NaN for a map that varies in none.

    Raises:
        ValueError: as `dense_feature`, or there are no images.
    """
    if not len(images):
        raise ValueError("aliasing is measured over one image at least, not 0")
    graph, weights = nnx.split(model)
    folded, total, still = 0.0, 0.0, 0.0
    for start in range(0, len(images), _BATCH):
        part = images[start : start + _BATCH]
        missing = _BATCH - len(part)
        # Constant images have no energy.
        part = np.pad(part, ((0, missing), (0, 0), (0, 0), (0, 0)))
        valid = np.arange(_BATCH) < _BATCH - missing
        found = _energies(graph, weights, part, valid, layer)
        fine, whole, constant = map(np.asarray, found)
        folded, total, still = folded + fine, total + whole, still + constant
    # Less than this is what rounding leaves of a constant map.
    varies = total > 1e-9 * (still + 1e-30)
    return np.where(varies, folded / np.where(varies, total, 1), np.nan).astype("f4")


@functools.partial(jax.jit, static_argnums=(0, 4))
def _energies(
    graph, weights, images: Array, valid: Array, layer: str
) -> tuple[Float[Array, " f"], Float[Array, " f"], Float[Array, " f"]]:
    """Of each map the energy that a stride folds, all of it, and that of the mean."""
    model = nnx.merge(graph, weights)
    maps = dense_feature(model, images, layer)
    step = np.ones(2, int)
    for spec in model.arch.layers:
        if isinstance(spec, Conv | MaxPool):
            step = step * spec.stride
        if spec.name == layer:
            break
    hw = maps.shape[1:3]
    rows, columns = (np.hanning(extent + 2)[1:-1] for extent in hw)
    window = jnp.asarray(np.outer(rows, columns)[..., None], maps.dtype)
    mean = (maps * window).sum((1, 2), keepdims=True) / window.sum()
    spectrum = jnp.fft.fft2((maps - mean) * window, axes=(1, 2))
    energy = jnp.abs(spectrum) ** 2 * valid[:, None, None, None]
    rows, columns = (
        np.abs(np.fft.fftfreq(extent)) >= 0.5 / stride
        for extent, stride in zip(hw, step, strict=True)
    )
    fine = rows[:, None] | columns
    if (step == 1).all():
        fine = np.zeros_like(fine)
    still = ((mean * window.sum()) ** 2 * valid[:, None, None, None]).sum((0, 1, 2))
    return (energy * fine[..., None]).sum((0, 1, 2)), energy.sum((0, 1, 2)), still
