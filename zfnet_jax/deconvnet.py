"""The deconvnet: from activations back to pixels (Zeiler & Fergus 2013, section 2.1).

`forward` runs a `ConvNet` and keeps what the backward pass needs. `backward` sends a
signal back through the layers: unpool, rectify, filter with the transposed kernels.
Guided backpropagation and the gradient differ only in `rectify`. `windows.backward`
computes the same for single activations, `relu_rules` for other networks.
`follow_signal` shows the signal on its way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from zfnet_jax import ops
from zfnet_jax.arch import ContrastNorm, Conv, Dense, Layer, MaxPool, has_relu
from zfnet_jax.model import ConvNet
from zfnet_jax.networks import Network, as_network
from zfnet_jax.relu_rules import Rule, check_rule, with_relu_rule


class Step(NamedTuple):
    """One layer of a forward pass: its input, its output and its switches."""

    layer: Layer
    below: Float[Array, "b ..."]
    above: Float[Array, "b ..."]
    switches: Int[Array, "b h w c"] | None


def forward(
    model: ConvNet, images: Float[Array, "b h w c"], layer: str
) -> tuple[Float[Array, "b ..."], list[Step]]:
    """Activations of `layer`, and the trace of the layers up to it."""
    features, switches = model.features(images, until=layer)
    trace, below = [], images
    for spec in model.arch.layers:
        above = features[spec.name]
        trace.append(Step(spec, below, above, switches.get(spec.name)))
        below = above
        if spec.name == layer:
            break
    return below, trace


def backward(
    model: ConvNet, trace: list[Step], signal: Float[Array, "b ..."], rule: Rule
) -> Iterator[Float[Array, "b ..."]]:
    """Yield the signal below each layer, down to pixels: unpool, rectify, filter."""
    for layer, below, above, switches in reversed(trace):
        if has_relu(layer):
            signal = rectify(signal, above, rule)
        match layer:
            case MaxPool():
                assert switches is not None
                hw = below.shape[1], below.shape[2]
                signal = ops.unpool(signal, switches, layer, hw)
            case Conv():
                hw = below.shape[1], below.shape[2]
                kernel = getattr(model, layer.name).kernel[...].astype(signal.dtype)
                signal = ops.conv_transpose(signal, kernel, layer, hw)
            case Dense():
                kernel = getattr(model, layer.name).kernel[...].astype(signal.dtype)
                signal = (signal @ kernel.T).reshape(below.shape)
            case ContrastNorm() if rule == "gradient":  # else it passes unchanged
                x = below.astype(signal.dtype)
                normalize = functools.partial(ops.contrast_norm, spec=layer)
                (signal,) = jax.vjp(normalize, x)[1](signal)
        yield signal


def rectify(signal: Array, above: Array, rule: Rule) -> Array:
    """Pass a signal through a ReLU whose output was `above`."""
    match rule:
        case "deconvnet":  # the signal is rectified itself
            return jnp.maximum(signal, 0)
        case "gradient":  # where the forward ReLU was active
            return jnp.where(above > 0, signal, 0)
        case "guided":  # both
            return jnp.where(above > 0, jnp.maximum(signal, 0), 0)


def backproject(
    net: Network | Any,
    images: Any,
    layer: str,
    signal: Float[Array | np.ndarray, "b ..."],
    *,
    rule: Rule = "deconvnet",
    strict: bool = True,
) -> Float[Array, "b h w c"]:
    """Project a signal in a layer back to pixels; also under `jax.jit`.

    The signal takes the place of the layer's activations: a whole map, the activations
    above a threshold, or anything else in the layer's shape. By the rule "gradient" the
    result is the derivative of `(activations * signal).sum()`.

    Example:
        >>> import jax.numpy as jnp, numpy as np, zfnet_jax as zf
        >>> from flax import nnx
        >>> model = zf.ConvNet(zf.ZFNET32, rngs=nnx.Rngs(0))
        >>> images = np.random.default_rng(0).normal(size=(2, 32, 32, 3))
        >>> maps = model.features(images, until="conv3").features["conv3"]
        >>> backproject(model, images, "conv3", jnp.where(maps > 1, maps, 0)).shape
        (2, 32, 32, 3)

    Args:
        net: A `Network`, or any model that `zf.network` takes.
        images: Preprocessed images.
        layer: Name of the layer.
        signal: One number per activation of the layer: [b, h, w, c] or [b, units].
        rule: Backward rule for ReLUs, as in `with_relu_rule`.
        strict: Refuse operations that "deconvnet" and "guided" say nothing about.

    Returns:
        Whole images, float32, or float64 for a float64 network.

    Raises:
        ValueError: There is no such layer or rule, the images do not fit the network,
            or the signal does not fit the layer.
    """
    net, images, signal = _check(net, images, layer, signal, rule)
    return _backproject(net, images, signal, layer, rule, strict)


def _check(
    net: Any, images: Any, layer: str, signal: Any, rule: Rule
) -> tuple[Network, Any, Array]:
    net, images = as_network(net, images)
    check_rule(rule)
    if not isinstance(images, Tracer):
        images = net.images(images)
    shape = len(images), *net.layer(layer).shape
    if np.shape(signal) != shape:
        raise ValueError(f"signal of shape {np.shape(signal)}: {layer} takes {shape}")
    return net, images, jnp.asarray(signal)


@functools.partial(jax.jit, static_argnames=("layer", "rule", "strict"))
def _backproject(
    net: Network, images: Array, signal: Array, layer: str, rule: Rule, strict: bool
) -> Array:
    if net.is_convnet:
        *_, pixels = _descend(net.model, images, signal, layer, rule)
        return pixels
    activations, pull = pull_back(net, images, layer, rule, strict)
    return pull(signal.astype(activations.dtype))[0]


def _descend(
    model: ConvNet, images: Array, signal: Array, layer: str, rule: Rule
) -> Iterator[Array]:
    _, trace = forward(model, images, layer)
    signal = signal.astype(jnp.promote_types(model.dtype, jnp.float32))
    return backward(model, trace, signal, rule)


@functools.partial(jax.jit, static_argnames=("layer", "rule", "strict"))
def pull_back(
    net: Network, images: Array, layer: str, rule: Rule, strict: bool = True
) -> tuple[Array, Callable[[Array], tuple[Array]]]:
    """Activations of any network's layer, and the function from a signal to pixels."""

    def activate(images: Array) -> Array:
        activations = net.features(images, (layer,))[layer]
        return activations.astype(jnp.promote_types(activations.dtype, jnp.float32))

    # The gradient is defined for any operation.
    strict = strict and rule != "gradient"
    return jax.vjp(with_relu_rule(activate, rule, strict=strict), jnp.asarray(images))


def follow_signal(
    net: Network | Any,
    images: Any,
    layer: str,
    signal: Float[Array | np.ndarray, "b ..."],
    *,
    rule: Rule = "deconvnet",
    strict: bool = True,
) -> tuple[dict[str, Float[Array, "b ..."]], Float[Array, "b h w c"]]:
    """Project a signal as `backproject` does, and keep it at the layers on its way.

    These are the layers of `Network.trunk`, where no branch carries a part of it.

    Example:
        >>> import jax.numpy as jnp, numpy as np, zfnet_jax as zf
        >>> from flax import nnx
        >>> model = zf.ConvNet(zf.ZFNET32, rngs=nnx.Rngs(0))
        >>> images = np.random.default_rng(0).normal(size=(1, 32, 32, 3))
        >>> maps = model.features(images, until="pool2").features["pool2"]
        >>> signals, pixels = follow_signal(model, images, "pool2", maps)
        >>> list(signals), signals["conv1"].shape, pixels.shape
        (['conv2', 'pool1', 'conv1'], (1, 32, 32, 48), (1, 32, 32, 3))

    Args:
        net: A `Network`, or any model that `zf.network` takes.
        images: Preprocessed images.
        layer: Name of the layer.
        signal: One number per activation of the layer: [b, h, w, c] or [b, units].
        rule: Backward rule for ReLUs, as in `with_relu_rule`.
        strict: Refuse operations that "deconvnet" and "guided" say nothing about.

    Returns:
        The signal that arrives at the output of each layer below, from the top down,
        before the layer's own ReLU; and the pixels.

    Raises:
        ValueError: As for `backproject`.
    """
    net, images, signal = _check(net, images, layer, signal, rule)
    trunk = net.trunk(layer)
    below, pixels = _follow(net, images, signal, layer, trunk, rule, strict)
    # Under `jax.jit` a dict is sorted by name.
    return {name: below[name] for name in reversed(trunk)}, pixels


@functools.partial(jax.jit, static_argnames=("layer", "trunk", "rule", "strict"))
def _follow(
    net: Network,
    images: Array,
    signal: Array,
    layer: str,
    trunk: tuple[str, ...],
    rule: Rule,
    strict: bool,
) -> tuple[dict[str, Array], Array]:
    if net.is_convnet:
        *below, pixels = _descend(net.model, images, signal, layer, rule)
        return dict(zip(reversed(trunk), below, strict=True)), pixels
    dtype = jnp.promote_types(images.dtype, jnp.float32)

    def activate(offsets: dict[str, Array], images: Array) -> Array:
        return net.features(images, (layer,), offsets)[layer].astype(dtype)

    zeros = {
        name: jnp.zeros((len(images), *net.layers[name].shape), dtype) for name in trunk
    }
    rewritten = with_relu_rule(activate, rule, strict=strict and rule != "gradient")
    # A signal that arrives somewhere is the derivative by what is added there.
    return jax.vjp(rewritten, zeros, images)[1](signal.astype(dtype))
