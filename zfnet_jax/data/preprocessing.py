"""Preprocessing as in the paper (Zeiler & Fergus 2013, section 3).

Shortest side to 256, centre crop of 256 x 256, the per-pixel mean over the training
set subtracted, ten crops of 224 x 224. Sizes are (rows, columns) throughout, so that
any rectangle does as well.
"""

from dataclasses import dataclass
from typing import overload

import jax
import numpy as np
from jaxtyping import Array, Float32, Shaped, UInt8
from PIL import Image


@dataclass(frozen=True, eq=False)
class Preprocessing:
    """Subtract the mean image, then scale.

    Attributes:
        mean: Per-pixel mean over the training set, in grey levels, 0 to 255.
        scale: What the difference is multiplied by; 1.0 keeps the paper's range of
            about -128 to 128.
        size: Rows and columns that the result is resized to (bilinear), for a network
            that takes larger images; None keeps the size of the mean image.
    """

    mean: Float32[np.ndarray, "h w 3"]
    scale: float = 1.0
    size: tuple[int, int] | None = None

    @classmethod
    def fit(
        cls,
        images: UInt8[np.ndarray, "n h w 3"],
        scale: float = 1.0,
        size: tuple[int, int] | None = None,
    ) -> "Preprocessing":
        """Take the mean over training images.

        Args:
            images: The training images, of one size, at least one.
            scale: See the attribute.
            size: See the attribute; the size of the images counts as None.

        Raises:
            ValueError: There are no images.
        """
        if len(images) == 0:
            raise ValueError("the mean image needs at least one training image, not 0")
        # Sums of bytes are exact in int64, so that no order of summation shows.
        total = images.sum(axis=0, dtype=np.int64)
        mean = (total / len(images)).astype(np.float32)
        return cls(mean, scale, None if size == mean.shape[:2] else size)

    @overload
    def __call__(
        self, images: UInt8[np.ndarray, "b h w 3"]
    ) -> Float32[np.ndarray, "b H W 3"]: ...
    @overload
    def __call__(
        self, images: UInt8[Array, "b h w 3"]
    ) -> Float32[Array, "b H W 3"]: ...
    def __call__(
        self, images: UInt8[np.ndarray | Array, "b h w 3"]
    ) -> Float32[np.ndarray | Array, "b H W 3"]:
        """Preprocess a batch, of NumPy or of JAX, also under `jax.jit`.

        Args:
            images: uint8[b, h, w, 3], of the size of the mean image.

        Returns:
            float32[b, h, w, 3], (images - mean) * scale, of the same library, resized
            where the attribute `size` says so.

        Raises:
            ValueError: The images differ in size from the mean image.
        """
        if images.shape[1:] != self.mean.shape:
            raise ValueError(
                f"images of {_size(images.shape[1:3])} do not fit the mean image "
                f"of {_size(self.mean.shape[:2])}"
            )
        return self._resized((images.astype(np.float32) - self.mean) * self.scale)

    def pictures(
        self, images: UInt8[np.ndarray, "b h w 3"]
    ) -> UInt8[np.ndarray, "b H W 3"]:
        """Images as the network sees them, to be looked at: resized, and no more."""
        if self.size is None:
            return images
        resized = self._resized(images.astype(np.float32))
        return np.rint(np.asarray(resized)).astype(np.uint8)

    def _resized(
        self, values: Float32[np.ndarray | Array, "b h w 3"]
    ) -> Float32[np.ndarray | Array, "b H W 3"]:
        if self.size is None:
            return values
        resized = jax.image.resize(values, (len(values), *self.size, 3), "bilinear")
        return resized if isinstance(values, jax.Array) else np.asarray(resized)


def resize_shortest_side(
    image: UInt8[np.ndarray, "h w 3"], side: int = 256
) -> UInt8[np.ndarray, "H W 3"]:
    """Resize an image so that its shorter side has `side` pixels.

    Bilinear and antialiased, the longer side rounded down, as the PyTorch pipelines do
    through which most published weights were measured; the paper names no filter.

    Args:
        image: RGB pixels, 0 to 255.
        side: Length of the shorter side afterwards, in pixels.

    Raises:
        ValueError: `side` is not positive.
    """
    if side < 1:
        raise ValueError(f"side must be at least 1 pixel, not {side}")
    height, width = image.shape[:2]
    shorter = min(height, width)
    size = (side * width // shorter, side * height // shorter)
    resized = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(resized)


@overload
def center_crop(
    image: Shaped[np.ndarray, "*b h w c"], size: tuple[int, int]
) -> Shaped[np.ndarray, "*b H W c"]: ...
@overload
def center_crop(
    image: Shaped[Array, "*b h w c"], size: tuple[int, int]
) -> Shaped[Array, "*b H W c"]: ...
def center_crop(
    image: Shaped[np.ndarray | Array, "*b h w c"], size: tuple[int, int]
) -> Shaped[np.ndarray | Array, "*b H W c"]:
    """Cut the middle out of an image or a batch; half a pixel is rounded up and left.

    Args:
        image: [..., h, w, c], of NumPy or of JAX.
        size: Rows and columns to keep, in pixels.

    Returns:
        [..., size[0], size[1], c], in the dtype of `image`.

    Raises:
        ValueError: The image is smaller than the crop.
    """
    rows, cols = _margins(image.shape[-3:-1], size)
    return image[
        ..., rows // 2 : rows // 2 + size[0], cols // 2 : cols // 2 + size[1], :
    ]


def fitted(
    photograph: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "H W 3"]:
    """The middle of a photograph, resized to the size of a network.

    As resizing the shortest side and cropping then, which is the paper's order, but a
    strip a pixel high stays small.

    Args:
        photograph: RGB pixels, 0 to 255.
        size: Rows and columns of the result, in pixels.

    Raises:
        ValueError: `size` is not positive.
    """
    side = min(photograph.shape[:2])
    square = resize_shortest_side(center_crop(photograph, (side, side)), max(size))
    return center_crop(square, size)


def ten_crop_size(size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of an image to cut ten crops of `size` out of, 256 for 224."""
    rows, cols = size
    return round(rows * 256 / 224), round(cols * 256 / 224)


@overload
def ten_crop(
    images: Shaped[np.ndarray, "b h w c"], size: tuple[int, int]
) -> Shaped[np.ndarray, "b 10 H W c"]: ...
@overload
def ten_crop(
    images: Shaped[Array, "b h w c"], size: tuple[int, int]
) -> Shaped[Array, "b 10 H W c"]: ...
def ten_crop(
    images: Shaped[np.ndarray | Array, "b h w c"], size: tuple[int, int]
) -> Shaped[np.ndarray | Array, "b 10 H W c"]:
    """Cut out the four corners and the centre, and mirror each (section 3).

    Args:
        images: [b, h, w, c], of NumPy or of JAX.
        size: Rows and columns of a crop, in pixels.

    Returns:
        [b, 10, size[0], size[1], c], in the dtype of `images`: top left, top right,
        bottom left, bottom right, centre, then the mirror images (left to right) of
        these five in the same order.

    Raises:
        ValueError: The images are smaller than the crop.
    """
    rows, cols = _margins(images.shape[1:3], size)
    crops = [
        images[:, row : row + size[0], col : col + size[1]]
        for row, col in ((0, 0), (0, cols), (rows, 0), (rows, cols))
    ]
    crops.append(center_crop(images, size))
    crops.extend([crop[:, :, ::-1] for crop in crops])
    return images.__array_namespace__().stack(crops, axis=1)


def _margins(have: tuple[int, ...], size: tuple[int, int]) -> tuple[int, int]:
    if min(size) < 1 or have[0] < size[0] or have[1] < size[1]:
        raise ValueError(
            f"cannot cut a crop of {_size(size)} out of an image of {_size(have)}"
        )
    return have[0] - size[0], have[1] - size[1]


def _size(size: tuple[int, ...]) -> str:
    return f"{size[0]} x {size[1]}"
