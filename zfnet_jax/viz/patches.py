"""Patches of images in the receptive fields of units."""

from __future__ import annotations

import numpy as np
from jaxtyping import Integer, UInt8

# Gray of what is outside the image, and of zero.
GRAY = 128


def cut_patches(
    images: UInt8[np.ndarray, "n h w c"], boxes: Integer[np.ndarray, "n 4"]
) -> UInt8[np.ndarray, "n H W c"]:
    """Cut a box out of each image, all of one size; mid-gray where it is outside."""
    height, width = boxes[0, 2:] - boxes[0, :2]
    shape = (len(images), height, width, images.shape[3])
    patches = np.full(shape, GRAY, np.uint8)
    for patch, image, (top, left, bottom, right) in zip(
        patches, images, boxes.tolist(), strict=True
    ):
        inside = image[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
        y, x = max(-top, 0), max(-left, 0)
        patch[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    return patches
