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
from zfnet_jax.arch import Architecture, ContrastNorm, Conv, Dense, MaxPool

Initializer = Callable[[Array, tuple[int, ...], DTypeLike], Array]
Normalize = Callable[[str, Array], Array]

_he_normal = nnx.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")


class Features(NamedTuple):
    """The named results of a forward pass.

    Attributes:
        features: Output of every layer by name, float [b, h, w, c] or [b, features],
            after the ReLU where the layer has one. `logits` are at least float32.
        switches: Positions of the maxima by pooling layer: flat row-major indices into
            the map before pooling, int32 [b, h, w, c].
    """

    features: dict[str, Float[Array, "b ..."]]
    switches: dict[str, Int[Array, "b h w c"]]


class Affine(nnx.Module):
    """The weights of one layer.

    Attributes:
        kernel: HWIO for a convolution, (in, out) for a dense layer; float32.
        bias: float32 [features].
    """

    def __init__(self, shape: tuple[int, ...], init: Initializer, rngs: nnx.Rngs):
        """Draw the kernel from `init`; the bias is zero."""
        self.kernel = nnx.Param(init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(shape[-1], jnp.float32))


class ConvNet(nnx.Module):
    """A convolutional network built from its description.

    Each layer with weights is a submodule named like the layer. The network is a
    pytree: `jax.jit`, `jax.grad` and `jax.tree.map` take it as it is.

        >>> from zfnet_jax.arch import ZFNET32
        >>> model = ConvNet(ZFNET32, rngs=nnx.Rngs(0))
        >>> model.conv1.kernel.shape
        (5, 5, 3, 48)
        >>> images = np.zeros((2, 32, 32, 3), np.float32)
        >>> jax.jit(lambda model, images: model(images))(model, images).shape
        (2, 10)
        >>> model.features(images, until="pool1").switches["pool1"].shape
        (2, 16, 16, 48)

    Attributes:
        arch: The architecture, with the network's number of classes.
        dtype: Type of the computation. Weights are float32.
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
            arch: The architecture to build.
            num_classes: Number of classes, if not that of `arch`.
            dtype: float32 or bfloat16, for the computation.
            init: Function from (key, shape, dtype) to a kernel.
            rngs: Source of the `params` stream.

        Raises:
            ValueError: A layer has a name that the module uses itself.
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
        normalize: Normalize | None = None,
    ) -> Float[Array, "b classes"]:
        """Compute logits: the last of `features`, which describes the arguments."""
        return self.features(
            images, dropout_keys=dropout_keys, normalize=normalize
        ).features["logits"]

    def features(
        self,
        images: Float[Array | np.ndarray, "b h w c"],
        until: str | None = None,
        *,
        dropout_keys: Key[Array, " b"] | None = None,
        normalize: Normalize | None = None,
    ) -> Features:
        """Compute every layer in the paper's order, with the switches of the pooling.

        Under `jax.jit` only what is used is computed.

        Args:
            images: Preprocessed images of the architecture's size.
            until: Name of the last layer to compute; None means `logits`.
            dropout_keys: One key per image, which switches dropout on. The mask of an
                image then doesn't depend on its batch. None switches dropout off.
            normalize: Applied to the output of each convolution before the bias, with
                the layer's name. Training may normalize there.

        Raises:
            ValueError: There is no such layer, the images have another shape, or the
                number of keys is not the number of images.
        """
        if until is not None:
            self.arch.layer(until)
        x = self._check(images)
        keys = dropout_keys
        if keys is not None and len(keys) != len(x):
            raise ValueError(f"{len(keys)} dropout keys for {len(x)} images")
        features: dict[str, Array] = {}
        switches: dict[str, Array] = {}
        for layer in self.arch.layers:
            match layer:
                case Conv():
                    kernel, bias = self._weights(layer.name)
                    x = ops.conv(x, kernel, layer)
                    if normalize is not None:
                        x = normalize(layer.name, x)
                    x = jax.nn.relu(x + bias)
                case MaxPool():
                    x, switches[layer.name] = ops.max_pool(x, layer)
                case ContrastNorm():
                    x = ops.contrast_norm(x, layer)
                case Dense():
                    x = self._dense(x, layer)
                    if keys is not None and layer.dropout > 0:
                        keys, layer_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
                        x = _drop_units(x, layer_keys, layer.dropout)
            features[layer.name] = x
            if layer.name == until:
                break
        return Features(features, switches)

    def classify(
        self, x: Float[Array | np.ndarray, "b ..."]
    ) -> Float[Array, "b classes"]:
        """Compute logits from the input of the first dense layer, flat or as a map."""
        x = jnp.asarray(x, self.dtype)
        for layer in self.arch.layers:
            if isinstance(layer, Dense):
                x = self._dense(x, layer)
        return x

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
        if layer.relu:
            return jax.nn.relu(x)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _drop_units(
    x: Float[Array, "b features"], keys: Key[Array, " b"], rate: float
) -> Float[Array, "b features"]:
    """Zero units at random and scale the rest, so that the expectation stays."""
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(kept, x / (1 - rate), 0)
