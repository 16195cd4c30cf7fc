"""One Flax module that interprets any architecture (section 3, Fig. 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from zfnet_jax import ops
from zfnet_jax.arch import (
    ALEXNET,
    ZFNET,
    ZFNET32,
    ZFNET_PLAIN,
    Architecture,
    ContrastNorm,
    Conv,
    Dense,
    MaxPool,
)

Initializer = Callable[[Array, tuple[int, ...], DTypeLike], Array]

_he_normal = nnx.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")


class Features(NamedTuple):
    """What a forward pass saw.

    Attributes:
        features: Every layer's output by name, float [b, h, w, c] or [b, features];
            layers with a ReLU after it.
        switches: For every pooling layer the flat row-major index, into the map before
            pooling, of each window's maximum: int32 [b, h, w, c].
        logits: float32 [b, classes], or None when `until` names an earlier layer.
    """

    features: dict[str, Float[Array, "b ..."]]
    switches: dict[str, Int[Array, "b h w c"]]
    logits: Float[Array, "b classes"] | None


class Affine(nnx.Module):
    """The weights of one layer.

    Attributes:
        kernel: HWIO for a convolution, (in, out) for a dense layer; float32.
        bias: float32 [features].
    """

    def __init__(self, shape: tuple[int, ...], init: Initializer, rngs: nnx.Rngs):
        """Draw the kernel by `init`; the bias is zero."""
        self.kernel = nnx.Param(init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(shape[-1], jnp.float32))


class ConvNet(nnx.Module):
    """A convolutional network built from its description.

    Every layer with weights is a submodule of the layer's name: `model.conv1.kernel`.

    Attributes:
        arch: The architecture it was built from, with its number of classes.
        dtype: Type of the computation; weights and logits are float32.
    """

    def __init__(
        self,
        arch: Architecture,
        num_classes: int | None = None,
        *,
        dtype: DTypeLike = jnp.float32,
        init: Initializer = _he_normal,
        rngs: nnx.Rngs,
    ):
        """Build the layers.

        Args:
            arch: What to build.
            num_classes: Width of the classifier; the architecture's own if None.
            dtype: float32 or bfloat16, for the computation.
            init: Draws a kernel from (key, shape, dtype).
            rngs: Source of the `params` stream.

        Raises:
            ValueError: a layer's name is one that the module uses itself.
        """
        self.arch = arch if num_classes is None else arch.with_classes(num_classes)
        self.dtype = jnp.dtype(dtype)
        for name, shape in self.arch.kernel_shapes().items():
            if hasattr(self, name):
                raise ValueError(f"{self.arch.name}: no layer can be named {name!r}")
            setattr(self, name, Affine(shape, init, rngs))

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Affine:
            """Tell type checkers that every layer is an attribute."""
            ...

    def __call__(
        self,
        images: Float[Array | np.ndarray, "b h w c"],
        *,
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b classes"]:
        """Logits.

        This is the fast path: it pools before adding the bias and rectifying, which
        gives the same values with less work, and convolves by `ops.fast_conv`.

        Args:
            images: Preprocessed images of the architecture's size.
            dropout_keys: One key for each image switches dropout on; the mask of an
                image then does not depend on its batch. None switches it off.

        Raises:
            ValueError: images of another shape, or not one key for each.
        """
        x = self._check(images)
        layers = self.arch.layers
        keys = dropout_keys
        if keys is not None and len(keys) != len(x):
            raise ValueError(f"{len(keys)} dropout keys for {len(x)} images")
        for layer, following in zip(layers, (*layers[1:], None), strict=True):
            match layer:
                case Conv():
                    kernel, bias = self._weights(layer.name)
                    x = ops.fast_conv(x, kernel, layer)
                    if isinstance(following, MaxPool):
                        x = ops.max_pool(x, following)
                    x = jax.nn.relu(x + bias)
                case MaxPool() if not self._pooled_early(layer):
                    x = ops.max_pool(x, layer)
                case ContrastNorm():
                    x = ops.contrast_norm(x, layer)
                case Dense():
                    x = self._dense(x, layer)
                    if keys is not None and layer.dropout > 0:
                        keys, here = _split_each(keys)
                        x = _dropout(x, here, layer.dropout)
        return x.astype(jnp.float32)

    def features(
        self, images: Float[Array | np.ndarray, "b h w c"], until: str | None = None
    ) -> Features:
        """Every named feature, and the switches of every pooling.

        Each layer is computed as the paper draws it, in the order of the architecture,
        so the switches are those of the rectified map.

        Args:
            images: Preprocessed images of the architecture's size.
            until: Stop after this layer; None runs to the logits.

        Raises:
            ValueError: no such layer, or images of another shape.
        """
        if until is not None:
            self.arch.layer(until)
        x = self._check(images)
        features: dict[str, Array] = {}
        switches: dict[str, Array] = {}
        for layer in self.arch.layers:
            match layer:
                case Conv():
                    kernel, bias = self._weights(layer.name)
                    x = jax.nn.relu(ops.conv(x, kernel, layer) + bias)
                case MaxPool():
                    x, switches[layer.name] = ops.max_pool_with_switches(x, layer)
                case ContrastNorm():
                    x = ops.contrast_norm(x, layer)
                case Dense():
                    x = self._dense(x, layer)
            features[layer.name] = x
            if layer.name == until:
                break
        logits = features.get("logits")
        if logits is not None:
            logits = logits.astype(jnp.float32)
        return Features(features, switches, logits)

    def classify(
        self, x: Float[Array | np.ndarray, "b ..."]
    ) -> Float[Array, "b classes"]:
        """Logits from what the first dense layer takes, a map or flattened."""
        x = jnp.asarray(x, self.dtype)
        for layer in self.arch.layers:
            if isinstance(layer, Dense):
                x = self._dense(x, layer)
        return x.astype(jnp.float32)

    def _check(self, images: Array | np.ndarray) -> Array:
        expected = (*self.arch.input_hw, self.arch.channels)
        if images.shape[1:] != expected:
            raise ValueError(
                f"{self.arch.name} takes images of shape (batch, "
                f"{', '.join(map(str, expected))}), not {images.shape}"
            )
        return jnp.asarray(images, self.dtype)

    def _weights(self, name: str) -> tuple[Array, Array]:
        affine = getattr(self, name)
        kernel, bias = affine.kernel[...], affine.bias[...]
        return kernel.astype(self.dtype), bias.astype(self.dtype)

    def _dense(self, x: Array, layer: Dense) -> Array:
        kernel, bias = self._weights(layer.name)
        x = x.reshape(x.shape[0], -1) @ kernel + bias
        return jax.nn.relu(x) if layer.relu else x

    def _pooled_early(self, pool: MaxPool) -> bool:
        before = self.arch.layers[self.arch.layers.index(pool) - 1]
        return isinstance(before, Conv)


def _split_each(
    keys: Key[Array, " b"],
) -> tuple[Key[Array, " b"], Key[Array, " b"]]:
    pairs = jax.vmap(jax.random.split)(keys)
    return pairs[:, 0], pairs[:, 1]


def _dropout(
    x: Float[Array, "b features"], keys: Key[Array, " b"], rate: float
) -> Float[Array, "b features"]:
    """Zero units at random and scale the rest, so that nothing changes at test time."""
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(kept, x / (1 - rate), 0)


def ZFNet(
    num_classes: int = 1000, *, contrast_norm: bool = True, rngs: nnx.Rngs
) -> ConvNet:
    """The paper's network for 224 x 224 images (Fig. 3)."""
    return ConvNet(ZFNET if contrast_norm else ZFNET_PLAIN, num_classes, rngs=rngs)


def ZFNet32(num_classes: int = 10, *, rngs: nnx.Rngs) -> ConvNet:
    """The same family for 32 x 32 images."""
    return ConvNet(ZFNET32, num_classes, rngs=rngs)


def AlexNet(num_classes: int = 1000, *, rngs: nnx.Rngs) -> ConvNet:
    """The paper's single-tower comparison (Krizhevsky et al. 2012)."""
    return ConvNet(ALEXNET, num_classes, rngs=rngs)
