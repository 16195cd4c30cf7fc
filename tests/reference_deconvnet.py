"""The deconvnet in NumPy: float64, one image, plain loops (Zeiler & Fergus 2013, 2.1).

Written from the paper and the articles on the other two rules, apart from the package:
it reads an `Architecture` and shares no code with what it checks.

- "deconvnet": Zeiler & Fergus 2013, section 2.1, rectifies what comes down.
- "gradient": Simonyan et al. 2013, section 4, keeps what the forward ReLU let through.
- "guided": Springenberg et al. 2014, section 3.4, does both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from zfnet_jax.arch import Architecture, ContrastNorm, Conv, Dense, Layer, MaxPool

Weights = Mapping[str, tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass
class Step:
    """A layer as it was computed; `switches` are flat places in the map below."""

    layer: Layer
    below: np.ndarray
    out: np.ndarray
    switches: np.ndarray | None = None


def weights_of(model) -> Weights:
    """Kernel and bias of every layer that has them, as the model holds them."""
    return {
        name: (
            np.asarray(getattr(model, name).kernel[...]),
            np.asarray(getattr(model, name).bias[...]),
        )
        for name in model.arch.kernel_shapes()
    }


def forward(
    arch: Architecture, weights: Weights, image: np.ndarray, until: str
) -> list[Step]:
    """Every layer up to `until`, from the image up."""
    x = np.asarray(image, np.float64)
    steps = []
    for layer in arch.layers:
        below, switches = x, None
        match layer:
            case Conv():
                x = np.maximum(convolve(x, *weights[layer.name], layer), 0)
            case MaxPool():
                x, switches = pool(x, layer)
            case ContrastNorm():
                x = x / divisor(x, layer) ** layer.beta
            case Dense():
                kernel, bias = weights[layer.name]
                x = x.ravel() @ kernel.astype(np.float64) + bias
                x = np.maximum(x, 0) if layer.relu else x
        steps.append(Step(layer, below, x, switches))
        if layer.name == until:
            break
    return steps


def keep(feature: np.ndarray, unit: int, position: tuple[int, int]) -> np.ndarray:
    """A layer's output with all but one activation set to zero."""
    place = (*position, unit) if feature.ndim == 3 else (unit,)
    signal = np.zeros(feature.shape)
    signal[place] = feature[place]
    return signal


def strongest(feature: np.ndarray, unit: int) -> tuple[int, int]:
    """The first place, in row-major order, of a unit's largest activation."""
    best = (0, 0)
    if feature.ndim == 3:
        for place in np.ndindex(*feature.shape[:2]):
            if feature[(*place, unit)] > feature[(*best, unit)]:
                best = place
    return best


def descend(
    steps: list[Step],
    weights: Weights,
    signal: np.ndarray,
    rule: str = "deconvnet",
    overlap: str = "sum",
    norm: str = "skip",
) -> np.ndarray:
    """Take a signal in the last step's output down to the pixels."""
    for step in reversed(steps):
        layer = step.layer
        if isinstance(layer, Conv) or (isinstance(layer, Dense) and layer.relu):
            if rule != "gradient":
                signal = np.maximum(signal, 0)
            if rule != "deconvnet":
                signal = np.where(step.out > 0, signal, 0)
        match layer:
            case Conv():
                kernel = weights[layer.name][0]
                signal = convolve_down(signal, kernel, layer, step.below.shape)
            case MaxPool():
                assert step.switches is not None
                signal = unpool(signal, step.switches, step.below.shape, overlap)
            case ContrastNorm() if norm == "backprop":
                signal = normalize_down(signal, step.below, layer)
            case Dense():
                kernel = weights[layer.name][0].astype(np.float64)
                signal = (kernel @ signal).reshape(step.below.shape)
    return signal


def convolve(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray, layer: Conv):
    padded = np.pad(x, (*layer.padding, (0, 0)))
    (step_h, step_w), inputs = layer.stride, kernel.shape[2]
    # [rows, columns, channels, kernel rows, kernel columns]
    patches = sliding_window_view(padded, layer.kernel, (0, 1))[::step_h, ::step_w]
    outputs = layer.features // layer.groups
    maps = []
    for group in range(layer.groups):
        patch = patches[:, :, group * inputs : (group + 1) * inputs]
        part = kernel[..., group * outputs : (group + 1) * outputs].astype(np.float64)
        maps.append(np.tensordot(patch, part, ((2, 3, 4), (2, 0, 1))))
    return np.concatenate(maps, -1) + bias


def convolve_down(signal: np.ndarray, kernel: np.ndarray, layer: Conv, below_shape):
    """Every output adds its copy of the filter where its window was."""
    (rows, columns, _), inputs = signal.shape, kernel.shape[2]
    (top, bottom), (left, right) = layer.padding
    height, width, channels = below_shape
    padded = np.zeros((top + height + bottom, left + width + right, channels))
    outputs = layer.features // layer.groups
    for group in range(layer.groups):
        source = signal[..., group * outputs : (group + 1) * outputs]
        target = padded[..., group * inputs : (group + 1) * inputs]
        part = kernel[..., group * outputs : (group + 1) * outputs].astype(np.float64)
        copies = np.tensordot(
            source, part, (2, 3)
        )  # [rows, columns, *kernel, channels]
        for a, b in np.ndindex(*layer.kernel):
            target[
                a : a + rows * layer.stride[0] : layer.stride[0],
                b : b + columns * layer.stride[1] : layer.stride[1],
            ] += copies[:, :, a, b]
    return padded[top : top + height, left : left + width]


def pool(x: np.ndarray, layer: MaxPool) -> tuple[np.ndarray, np.ndarray]:
    height, width, channels = x.shape
    padded = np.pad(x, (*layer.padding, (0, 0)), constant_values=-np.inf)
    places = np.pad(np.arange(height * width).reshape(height, width), layer.padding)
    rows, columns = (
        (extent - size) // step + 1
        for extent, size, step in zip(
            places.shape, layer.kernel, layer.stride, strict=True
        )
    )
    out = np.empty((rows, columns, channels))
    switches = np.empty(out.shape, int)
    for i, j in np.ndindex(rows, columns):
        top, left = i * layer.stride[0], j * layer.stride[1]
        window = slice(top, top + layer.kernel[0]), slice(left, left + layer.kernel[1])
        values = padded[window].reshape(-1, channels)
        first = values.argmax(0)  # NumPy takes the first of equals
        out[i, j] = values[first, np.arange(channels)]
        switches[i, j] = places[window].ravel()[first]
    return out, switches


def unpool(signal: np.ndarray, switches: np.ndarray, below_shape, overlap: str):
    height, width, channels = below_shape
    flat = np.zeros((height * width, channels))
    every = np.arange(channels)
    for i, j in np.ndindex(*signal.shape[:2]):
        if overlap == "sum":
            flat[switches[i, j], every] += signal[i, j]
        else:
            flat[switches[i, j], every] = signal[i, j]
    return flat.reshape(below_shape)


def neighbors(channels: int, layer: ContrastNorm) -> np.ndarray:
    """[i, j] is 1 where channel j counts in the divisor of channel i."""
    before = layer.size // 2  # as PyTorch centers an even size
    apart = np.arange(channels) - np.arange(channels)[:, None]
    return ((apart >= -before) & (apart < layer.size - before)).astype(np.float64)


def divisor(x: np.ndarray, layer: ContrastNorm) -> np.ndarray:
    return layer.k + layer.alpha * x**2 @ neighbors(x.shape[-1], layer).T


def normalize_down(
    signal: np.ndarray, x: np.ndarray, layer: ContrastNorm
) -> np.ndarray:
    """The derivative of x_i / base_i ** beta, with base_i = k + alpha sum x_j ** 2."""
    base = divisor(x, layer)
    through_base = signal * x * base ** (-layer.beta - 1)
    shared = through_base @ neighbors(x.shape[-1], layer)
    return signal * base**-layer.beta - 2 * layer.alpha * layer.beta * x * shared
