"""Photographs as JPEG files with a shortest side of 256 pixels, for records."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
from PIL import Image

from zfnet_jax.data.decoding import decode_photograph
from zfnet_jax.data.labeled import LabeledImages
from zfnet_jax.data.preprocessing import fit_photograph, resize_shortest_side
from zfnet_jax.data.records import SIDE
from zfnet_jax.files import DamagedFileError

QUALITY = 85  # of JPEG, 0 to 100


class Chunk(NamedTuple):
    """Encoded images in a row.

    Attributes:
        contents: JPEG files.
        labels: The class of each.
        total: Sum of the images, as the center 256 x 256.
        skipped: What is wrong with each image that is left out.
    """

    contents: list[bytes]
    labels: list[int]
    total: np.ndarray
    skipped: list[str]


def encode_chunk(images: LabeledImages, size: int, number: int) -> Chunk:
    """Encode the images of a chunk of this size."""
    chunk = Chunk([], [], np.zeros((SIDE, SIDE, 3), np.int64), [])
    first = number * size
    for index in range(first, min(first + size, len(images))):
        name = images.items.name(index)
        try:
            content, label = images.items.fetch(index)
            content = encode(content, name)
        except (DamagedFileError, OSError) as error:
            chunk.skipped.append(str(error))
            continue
        chunk.contents.append(content)
        chunk.labels.append(label)
        pixels = decode_photograph(io.BytesIO(content), name)
        chunk.total[...] += fit_photograph(pixels, (SIDE, SIDE))
    return chunk


def encode(content: bytes, name: str) -> bytes:
    """Encode an image with a shortest side of at most 256 pixels; it may stay as it is.

    Raises:
        DamagedFileError: The image is damaged; the message has its name.
    """
    pixels = decode_photograph(io.BytesIO(content), name)
    is_small = min(pixels.shape[:2]) <= SIDE
    resized = pixels if is_small else resize_shortest_side(pixels, SIDE)
    buffer = io.BytesIO()
    Image.fromarray(resized).save(buffer, "JPEG", quality=QUALITY)
    encoded = buffer.getvalue()
    return content if is_small and len(content) <= len(encoded) else encoded
