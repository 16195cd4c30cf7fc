"""Published networks as plain JAX functions of their parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

# By layer: "kernel", HWIO or (in, out), and "bias".
Params = dict[str, dict[str, Array]]


class PlainNetwork(NamedTuple):
    """A published network as a function of its parameters.

    Attributes:
        apply: From parameters and float [b, h, w, 3] images to logits [b, 1000].
        image_shape: Height, width and channels of the images that it was evaluated on.
        shapes: Shape of every tensor of its file, by PyTorch's name; kernels are OIHW.
        convert: From the source of these tensors, for messages, and the tensors, as for
            `state_dict.build`, to parameters with batch normalization folded.
    """

    apply: Callable[[Any, Any], Any]
    image_shape: tuple[int, int, int]
    shapes: Mapping[str, tuple[int, ...]]
    convert: Callable[[str, Mapping[str, Any]], Params]

    @property
    def classifier(self) -> str:
        """Name of the first tensor with an entry per class."""
        return next(name for name, shape in self.shapes.items() if shape[0] == 1000)

    def with_classes(self, count: int) -> PlainNetwork:
        """The same network with another number of classes."""
        shapes = {
            name: (count, *shape[1:]) if shape[0] == 1000 else shape
            for name, shape in self.shapes.items()
        }
        return self._replace(shapes=shapes)


def convolve(
    x: Float[Array, "b h w c"],
    layer: Mapping[str, Any],
    stride: int = 1,
    padding: int = 0,
) -> Float[Array, "b H W d"]:
    """Convolve, and add the bias."""
    y = lax.conv_general_dilated(
        x,
        layer["kernel"],
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y + layer["bias"]


def max_pool(
    x: Float[Array, "b h w c"], padding: Sequence[tuple[int, int]]
) -> Float[Array, "b H W c"]:
    """Take the maximum of 3 x 3 windows, 2 apart; padding never wins a window."""
    edges = ((0, 0), *padding, (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), edges)


def convert_layer(
    kernel: Float[np.ndarray, "out ..."], bias: Float[np.ndarray, " out"]
) -> dict[str, Array]:
    """Convert a kernel of PyTorch, OIHW or (out, in), and its bias."""
    order = (2, 3, 1, 0) if kernel.ndim == 4 else (1, 0)
    arrays = {"kernel": kernel.transpose(order), "bias": bias}
    return {name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()}
