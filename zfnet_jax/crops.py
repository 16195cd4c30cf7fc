"""Crops: what one activation sees is a smaller image for the same network.

A network that takes images of any size gives the same activation and projection for a
crop that holds the receptive field, with a fraction of the work. The crop starts at a
multiple of the layer's stride, so that every position keeps its phase, and ends at the
image's border where the field reaches it, so that padding keeps its place.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from zfnet_jax.arch import ReceptiveField
from zfnet_jax.networks import Network

# A crop has its own forward pass: it pays below this share of the image.
_WORTHWHILE = 0.55


class Crop(NamedTuple):
    """The network of a layer's crops.

    Attributes:
        net: The network for images of the size of a crop.
        layer: Name of the layer.
        field: The layer's receptive field in the whole image.
    """

    net: Network
    layer: str
    field: ReceptiveField

    def place(
        self, positions: Int[np.ndarray, "n 2"]
    ) -> tuple[Int[np.ndarray, "n 2"], Int[np.ndarray, "n 2"]]:
        """First pixel of each position's crop, and the position in the crop's map."""
        stride, start = np.array([self.field.stride, self.field.start])
        last = np.array(self.field.input_hw) - self.net.image_shape[:2]
        corners = ((start + stride * positions) // stride * stride).clip(0, last)
        positions = positions - corners // stride
        return corners.astype(np.int32), positions.astype(np.int32)


def find_crop(net: Network, layer: str) -> Crop | None:
    """The crop of a layer; None where it is no use or the network takes one size."""
    field = net.layer(layer).receptive_field
    if field is None:
        return None
    size = [
        extent - max(0, (extent - size - start % stride) // stride) * stride
        for extent, size, stride, start in zip(
            field.input_hw, field.size, field.stride, field.start, strict=True
        )
    ]
    if math.prod(size) > _WORTHWHILE * math.prod(field.input_hw):
        return None
    small = net.resize((size[0], size[1]))
    if small is None or layer not in small.layers:
        return None
    other = small.layer(layer).receptive_field
    if other is None or dataclasses.replace(other, input_hw=field.input_hw) != field:
        return None
    return Crop(small, layer, field)


@functools.partial(jax.jit, static_argnames="size")
def cut_crops(
    images: Float[Array, "b h w c"],
    chosen: Int[Array, " n"],
    corners: Int[Array, "n 2"],
    size: tuple[int, int, int],
) -> Float[Array, "n s t c"]:
    """Cut a crop of one size out of each chosen image, given its first pixel."""

    def cut(image: Array, corner: Array) -> Array:
        start = (image, *corner, jnp.zeros_like(image))
        return lax.dynamic_slice(images, start, (1, *size))[0]

    return jax.vmap(cut)(chosen, corners)
