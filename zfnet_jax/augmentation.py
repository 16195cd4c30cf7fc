"""Random views of training images, made on the device."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Shaped


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random views of the training images.

    Attributes:
        margin: Largest shift of a crop in pixels, for images no larger than the crop.
            Reflected pixels fill the border.
        corners: Take only the four corners and the center, as in section 3, instead of
            any shift.
        cutout: Height and width of a random part of the network's input that is set to
            the mean, as a fraction of the input's; 0 for none.
    """

    margin: int
    corners: bool = False
    cutout: float = 0.0


def crop_and_flip(
    images: Shaped[Array, "b h w c"],
    key: PRNGKeyArray,
    how: Augmentation,
    size: tuple[int, int] | None = None,
) -> Shaped[Array, "b H W c"]:
    """Cut and flip each image at random.

    Args:
        images: The images.
        key: Key that decides the views.
        how: The kind of views. Of images larger than the crop it decides only between
            `corners` and any place inside.
        size: Rows and columns of a crop, by default those of the images.
    """
    height, width = size or images.shape[1:3]
    margin = how.margin if (height, width) == images.shape[1:3] else 0
    edges = ((0, 0), (margin, margin), (margin, margin), (0, 0))
    padded = jnp.pad(images, edges, mode="reflect") if margin else images
    room = np.subtract(padded.shape[1:3], (height, width))

    def one(image: Array, key: PRNGKeyArray) -> Array:
        shift_key, flip_key = jax.random.split(key)
        if how.corners:
            places = np.array([(0, 0), (0, 2), (2, 0), (2, 2), (1, 1)]) * room // 2
            shift = jnp.asarray(places)[jax.random.randint(shift_key, (), 0, 5)]
        else:
            shift = jax.random.randint(shift_key, (2,), 0, jnp.asarray(room + 1))
        shape = (height, width, images.shape[3])
        view = jax.lax.dynamic_slice(image, (shift[0], shift[1], 0), shape)
        return jnp.where(jax.random.bernoulli(flip_key), view[:, ::-1], view)

    return jax.vmap(one)(padded, jax.random.split(key, len(images)))


def mix_neighbors(
    x: Float[Array, "b ..."], share: Float[Array, ""]
) -> Float[Array, "b ..."]:
    """Mix each image or target of a batch with its neighbor (Zhang et al. 2017).

    The batch is in random order, so a neighbor is as good a partner as any. It lies on
    the same device, unless that has an odd number of images.

    Args:
        x: An even number of images, or of their targets.
        share: Weight of the image itself, 0 to 1; its neighbor has the rest.
    """
    pairs = x.reshape(-1, 2, *x.shape[1:])
    return (share * pairs + (1 - share) * pairs[:, ::-1]).reshape(x.shape)


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
