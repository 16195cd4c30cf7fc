"""Random views of training images, made on the device."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt8


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random views of the training images.

    Attributes:
        margin: Largest shift of a crop in pixels. Reflected pixels fill the border.
        corners: Take only the four corners and the center, as in section 3, instead of
            any shift.
        cutout: Height and width of a random part of the network's input that is set to
            the mean, as a fraction of the input's; 0 for none.
    """

    margin: int
    corners: bool = False
    cutout: float = 0.0


def crop_and_flip(
    images: UInt8[Array, "b h w c"], key: PRNGKeyArray, how: Augmentation
) -> UInt8[Array, "b h w c"]:
    """Cut and flip each image at random, in the size of the images."""
    margin = how.margin
    edges = ((0, 0), (margin, margin), (margin, margin), (0, 0))
    padded = jnp.pad(images, edges, mode="reflect") if margin else images

    def one(image: Array, key: PRNGKeyArray) -> Array:
        shift_key, flip_key = jax.random.split(key)
        if how.corners:
            places = np.array([(0, 0), (0, 2), (2, 0), (2, 2), (1, 1)]) * margin
            shift = jnp.asarray(places)[jax.random.randint(shift_key, (), 0, 5)]
        else:
            shift = jax.random.randint(shift_key, (2,), 0, 2 * margin + 1)
        view = jax.lax.dynamic_slice(image, (shift[0], shift[1], 0), images.shape[1:])
        return jnp.where(jax.random.bernoulli(flip_key), view[:, ::-1], view)

    return jax.vmap(one)(padded, jax.random.split(key, len(images)))


def cut_out(
    inputs: Float[Array, "b h w c"], key: PRNGKeyArray, share: float
) -> Float[Array, "b h w c"]:
    """Set a random part of each preprocessed image to 0, which is the mean.

    Args:
        inputs: Preprocessed images.
        key: Key that decides the position.
        share: Height and width of the part, as a fraction of the image's.
    """
    batch, height, width, _ = inputs.shape

    def inside(key: PRNGKeyArray, extent: int) -> Array:
        side = round(share * extent)
        start = jax.random.randint(key, (batch, 1), 0, extent - side + 1)
        place = jnp.arange(extent)
        return (place >= start) & (place < start + side)

    row_key, column_key = jax.random.split(key)
    rows, columns = inside(row_key, height), inside(column_key, width)
    hole = rows[:, :, None, None] & columns[:, None, :, None]
    return jnp.where(hole, 0, inputs)
