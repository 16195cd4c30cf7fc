"""Preprocessing as in the paper (Zeiler & Fergus 2013, section 3).

Shortest side to 256, center crop of 256 x 256, the per-pixel mean over the training
set subtracted, ten crops of 224 x 224. Published networks take the center 224 of the
256 and a mean per channel. Sizes are (rows, columns) and may be rectangles. Images have
one channel or three.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Array, Float32, Int, Shaped, UInt8
from PIL import Image, ImageOps

# Treatment of a photograph of another aspect ratio than the network's.
Fit = Literal["crop", "pad", "stretch"]

_Images = Shaped[np.ndarray | Array, "..."]


@dataclass(frozen=True, eq=False)
class Preprocessing:
    """Subtract the mean image, then scale.

    Attributes:
        mean: Per-pixel mean over the training set, in gray levels, 0 to 255.
        scale: Factor of the difference. 1.0 keeps the paper's range of about -128 to
            128.
        size: Rows and columns of the result (bilinear), for a network that takes larger
            images. None keeps the size of the images.
        crop: Share of the mean image's center that the network sees, along each side:
            224/256 for the paper's.

    Example:
        >>> import numpy as np
        >>> from zfnet_jax.data import Preprocessing
        >>> preprocess = Preprocessing(np.full((2, 2, 1), 100, np.float32), scale=0.1)
        >>> preprocess(np.full((1, 2, 2, 1), 110, np.uint8)).ravel().tolist()
        [1.0, 1.0, 1.0, 1.0]
    """

    mean: Float32[np.ndarray, "h w c"]
    scale: float = 1.0
    size: tuple[int, int] | None = None
    crop: float = 1.0

    @property
    def center(self) -> Float32[np.ndarray, "h w c"]:
        """The part of the mean image that the network sees."""
        height, width = (round(self.crop * side) for side in self.mean.shape[:2])
        return center_crop(self.mean, (height, width))

    @classmethod
    def fit(
        cls,
        images: UInt8[np.ndarray, "n h w c"],
        scale: float = 1.0,
        size: tuple[int, int] | None = None,
    ) -> "Preprocessing":
        """Compute the mean image of at least one training image.

        Raises:
            ValueError: There are no images.
        """
        if len(images) == 0:
            raise ValueError("the mean image needs at least one training image, not 0")
        # Sums of bytes are exact in int64, in any order of summation.
        total = images.sum(axis=0, dtype=np.int64)
        mean = (total / len(images)).astype(np.float32)
        return cls(mean, scale, None if size == mean.shape[:2] else size)

    def __call__(self, images: _Images) -> Any:
        """Preprocess uint8[b, h, w, c] of NumPy or of JAX, also under `jax.jit`.

        Returns:
            float32[b, H, W, c] of the same library: (images - center) * scale, resized
            to the attribute `size`.

        Raises:
            ValueError: The images are not uint8 or not of the shape of `center`.
        """
        self._check(images, self.center)
        return self._resize((images.astype(np.float32) - self.center) * self.scale)

    def subtract_mean(self, images: _Images) -> Any:
        """Subtract the whole mean image and scale: what crops are cut from (section 3).

        Takes and returns what `__call__` does, but all of each image.
        """
        self._check(images, self.mean)
        return (images.astype(np.float32) - self.mean) * self.scale

    def pictures(
        self, images: UInt8[np.ndarray, "b h w c"]
    ) -> UInt8[np.ndarray, "b H W c"]:
        """Resize images to what the network sees, without subtracting the mean."""
        self._check(images, self.center)
        if self.size is None:
            return images
        resized = self._resize(images.astype(np.float32))
        return np.rint(np.asarray(resized)).astype(np.uint8)

    def _check(self, images: _Images, mean: np.ndarray) -> None:
        _check_pixels(images)
        if images.shape == mean.shape:
            raise ValueError("preprocessing takes a batch: for one image, image[None]")
        if images.shape[1:] != mean.shape:
            raise ValueError(
                f"images of {_size(images.shape[1:])} do not fit the mean image of "
                f"{_size(mean.shape)} (rows x columns x channels)"
            )

    def _resize(self, values: _Images) -> Any:
        if self.size is None:
            return values
        shape = (len(values), *self.size, values.shape[-1])
        resized = jax.image.resize(values, shape, "bilinear")
        return resized if isinstance(values, jax.Array) else np.asarray(resized)


@dataclass(frozen=True)
class Normalization:
    """Subtract a mean color, and divide by a deviation per channel.

    Attributes:
        mean: Mean of red, green and blue, in levels of 0 to 255.
        deviation: Divisors of the differences.
        crop: Share of a photograph's center square that the network sees, along each
            side: 224/256 for most published networks.

    Example:
        >>> import numpy as np
        >>> from zfnet_jax.data import Normalization
        >>> normalize = Normalization((100.0, 110.0, 120.0), (2.0, 2.0, 4.0))
        >>> normalize(np.full((1, 1, 1, 3), 120, np.uint8)).ravel().tolist()
        [10.0, 5.0, 0.0]
    """

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    crop: float = 0.875

    def __call__(self, images: _Images) -> Any:
        """Normalize uint8[b, h, w, 3] of NumPy or of JAX, also under `jax.jit`.

        Returns:
            float32[b, h, w, 3] of the same library.

        Raises:
            ValueError: The images are not uint8.
        """
        _check_pixels(images)
        mean, deviation = (np.array(x, np.float32) for x in (self.mean, self.deviation))
        return (images.astype(np.float32) - mean) / deviation


# For the networks of torchvision and pytorchcv, and for those of Caffe.
TORCHVISION = Normalization(
    (255 * 0.485, 255 * 0.456, 255 * 0.406), (255 * 0.229, 255 * 0.224, 255 * 0.225)
)
CAFFE = Normalization((123.0, 117.0, 104.0), (1.0, 1.0, 1.0), crop=227 / 256)


def _check_pixels(images: _Images) -> None:
    if images.dtype != np.uint8:
        raise ValueError(
            f"preprocessing takes uint8 pixels, 0 to 255, not {images.dtype}"
        )


@dataclass(frozen=True, eq=False)
class Preprocessed:
    """Images that are preprocessed as they are needed.

    Every tool takes them in place of an array of floats, which takes four times as much
    memory as the pixels.

    Attributes:
        images: Pixels, or anything with `len` that an integer array indexes.
        preprocess: From a batch of them to what the network takes.

    Example:
        >>> pixels = np.zeros((50, 8, 8, 3), np.uint8)
        >>> images = Preprocessed(pixels, lambda x: x / np.float32(255))
        >>> len(images), images[np.array([4, 2])].dtype
        (50, dtype('float32'))
    """

    images: Any
    preprocess: Callable[[Any], Any]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, indices: Int[np.ndarray, " b"]) -> Any:
        """Preprocessed images at an integer array of indices."""
        return self.preprocess(self.images[indices])


def resize_shortest_side(
    image: UInt8[np.ndarray, "h w c"], side: int = 256
) -> UInt8[np.ndarray, "H W c"]:
    """Resize an image so that its shorter side has `side` pixels.

    Bilinear and antialiased, with the longer side rounded down, like the PyTorch
    pipelines that most published weights were measured with. The paper names no filter.
    """
    height, width = image.shape[:2]
    shorter = min(height, width)
    size = (side * width // shorter, side * height // shorter)
    # Pillow's gray images have no axis of channels.
    pixels = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    resized = np.asarray(pixels.resize(size, Image.Resampling.BILINEAR))
    return resized.reshape(*resized.shape[:2], image.shape[2])


def center_crop(image: _Images, size: tuple[int, int]) -> Any:
    """Cut the center out of [..., h, w, c], half a pixel up and left if uneven.

    Raises:
        ValueError: The image is smaller than the crop.
    """
    rows, cols = (margin // 2 for margin in _margins(image.shape[-3:-1], size))
    return image[..., rows : rows + size[0], cols : cols + size[1], :]


def fit_photograph(
    photograph: UInt8[np.ndarray, "h w c"],
    size: tuple[int, int],
    fit: Fit = "crop",
    crop: float = 1.0,
) -> UInt8[np.ndarray, "H W c"]:
    """Bring a photograph to the rows and columns of a network.

    Of another aspect ratio, "crop" cuts the center out, "pad" adds gray, and "stretch"
    distorts; the last two take three channels and all of the photograph. "crop" equals
    the paper's order, to resize the shortest side and then to crop, but a strip one
    pixel high takes no more memory than any photograph.

    Args:
        photograph: Pixels.
        size: Rows and columns of the result.
        fit: Treatment of another aspect ratio.
        crop: Share of the center square to keep, along each side.
    """
    if fit != "crop":
        image, bilinear = Image.fromarray(photograph), Image.Resampling.BILINEAR
        shape = size[1], size[0]
        if fit == "pad":
            return np.asarray(ImageOps.pad(image, shape, bilinear, (128,) * 3))
        return np.asarray(image.resize(shape, bilinear))
    side = min(photograph.shape[:2])
    square = center_crop(photograph, (side, side))
    return center_crop(resize_shortest_side(square, square_side(size, crop)), size)


def square_side(size: tuple[int, int], crop: float) -> int:
    """Side of the square that an image of `size` is cut from: 256 for 224 and 0.875."""
    return round(max(size) / crop)


def ten_crop_size(size: tuple[int, int]) -> tuple[int, int]:
    """Size of an image to cut ten crops of `size` from: 256 for 224."""
    rows, cols = size
    return round(rows * 256 / 224), round(cols * 256 / 224)


def ten_crop(
    images: Shaped[np.ndarray | Array, "b h w c"], size: tuple[int, int]
) -> Any:
    """Cut out the four corners and the center, and mirror each (section 3).

    Returns:
        [b, 10, size[0], size[1], c], of the library and dtype of `images`. The order is
        top left, top right, bottom left, bottom right, center, then the mirror images
        (left to right) of these five.

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
            f"cannot cut a crop of {_size(size)} from an image of {_size(have)}"
        )
    return have[0] - size[0], have[1] - size[1]


def _size(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))
