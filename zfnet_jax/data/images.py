"""Datasets as images of a network, and pixels of its size."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32, UInt8
from PIL import Image

from zfnet_jax.data.dataset import Dataset
from zfnet_jax.data.preprocessing import Preprocessing, fit_photograph
from zfnet_jax.files import digest

_BATCH = 64


class DatasetImages:
    """Images of a dataset, preprocessed for a network when needed.

    An index is an int for one image, or an integer array, list or slice for a batch.

    Attributes:
        dataset: The dataset.
        labels: The class of each image.
        class_names: Names of the classes, in the order of the labels.
        source: Origin of the images, in one line.
        pictures: The same images as the network sees them, but as uint8 pixels.
    """

    def __init__(
        self,
        dataset: Dataset,
        image_shape: tuple[int, int, int],
        preprocess: Callable[[Any], Any] | None,
    ) -> None:
        """Take the images of a dataset, and a network's image shape and preprocessing.

        Raises:
            ValueError: There is no `preprocess`.
        """
        self._shape = stored_shape(image_shape, preprocess)
        self.dataset, self._preprocess = dataset, preprocess
        self.labels: Int32[np.ndarray, " n"] = dataset.labels
        self.class_names = dataset.class_names
        self.source = dataset.source or dataset.name
        self.pictures = Pictures(dataset.images, self._fit, self._shape, preprocess)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        """Preprocess one image [h, w, c] or a batch [b, h, w, c]."""
        return self.pictures.convert(index, self.pictures.preprocess)

    def take(self, indices: np.ndarray) -> DatasetImages:
        """Select the images at `indices`, in that order."""
        return DatasetImages(self.dataset.take(indices), self._shape, self._preprocess)

    def relabel(
        self, labels: np.ndarray, class_names: tuple[str, ...]
    ) -> DatasetImages:
        """The same images with other labels."""
        dataset = dataclasses.replace(
            self.dataset, labels=labels, class_names=class_names
        )
        return DatasetImages(dataset, self._shape, self._preprocess)

    def digest(self) -> str:
        """Compute the sha256, in hex, of the dataset."""
        return self.dataset.digest()

    @property
    def masks(self) -> Bool[np.ndarray, "n h w"] | None:
        """Pixels of the objects, resized as the pictures are; None if unknown."""
        if self.dataset.masks is None:
            return None
        gray = np.where(self.dataset.masks[..., None], 255, 0).astype(np.uint8)
        color = np.repeat(gray, 3, 3)
        pictures = Pictures(color, self._fit, self._shape, self._preprocess)
        return pictures[:][..., 0] > 128

    def _fit(self, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        if image.shape[:2] == size:
            return image
        return fit_photograph(image, size, crop=crop_share(self._preprocess))

    def __repr__(self) -> str:
        """One line."""
        return f"DatasetImages({len(self)} of {self.source})"


def translate_labels(
    images: Any, class_names: Sequence[str], aliases: Mapping[str, int] | None = None
) -> Any:
    """Give images the labels of a network that knows all their classes by name.

    Args:
        images: Images with or without labels.
        class_names: The network's names, by label. One that occurs twice is not known.
        aliases: Labels by other names, such as WordNet ids.

    Returns:
        The images with the network's labels and names, or unchanged.
    """
    if images.labels is None:
        return images
    counts = collections.Counter(class_names)
    labels = {x: i for i, x in enumerate(class_names) if counts[x] == 1}
    labels |= aliases or {}
    if not labels.keys() >= {*images.class_names}:
        return images
    table = np.array([labels[name] for name in images.class_names], np.int32)
    return images.relabel(table[images.labels], tuple(class_names))


def digest_images(images: Any) -> str:
    """Compute the sha256, in hex, of preprocessed images or a source of them.

    A source with a method `digest` is not read, except its first images.
    """
    digest_source = getattr(images, "digest", None)
    if digest_source is not None:  # and the first images, for their preprocessing
        first = np.arange(min(_BATCH, len(images)))
        return digest(digest_source(), np.asarray(images[first]))
    starts = range(0, len(images), _BATCH)
    batches = (np.arange(x, min(x + _BATCH, len(images))) for x in starts)
    return digest(*(digest(np.asarray(images[batch])) for batch in batches))


def crop_share(preprocess: Any) -> float:
    """Share of a photograph's center square that a network sees: `crop`, or all."""
    return getattr(preprocess, "crop", 1.0)


def stored_shape(
    image_shape: tuple[int, int, int], preprocess: Any
) -> tuple[int, int, int]:
    """Shape of the images that a network's preprocessing takes.

    Raises:
        ValueError: There is no `preprocess`.
    """
    if preprocess is None:
        raise ValueError(
            "images need the network's preprocessing: give `preprocess`, from "
            "uint8[b, h, w, c] to floats"
        )
    if isinstance(preprocess, Preprocessing):
        height, width, channels = preprocess.center.shape
        return height, width, channels
    return image_shape


def reduce_channels(
    pixels: UInt8[np.ndarray, "h w c"], channels: int
) -> UInt8[np.ndarray, "h w C"]:
    """Convert colors to gray if there is to be one channel."""
    if pixels.shape[2] <= channels:
        return pixels
    return np.asarray(Image.fromarray(pixels).convert("L"))[..., None]


class Pictures:
    """Images as uint8 pixels of a network's size, read when needed.

    An index is an int for one image, or an integer array, list or slice for a batch.
    """

    def __init__(
        self,
        items: Sequence[Any] | np.ndarray,
        read: Callable[[Any, tuple[int, int]], np.ndarray],
        shape: tuple[int, int, int],
        preprocess: Any,
    ) -> None:
        """Keep images of any form, and how to read one at a size (rows, columns)."""
        self.items, self.preprocess = items, preprocess
        self._read, self._shape = read, shape
        # It takes pictures of the size of its mean image, and may resize them.
        is_own = isinstance(preprocess, Preprocessing)
        self._resize = preprocess.pictures if is_own else np.asarray

    def __len__(self) -> int:
        """Number of images."""
        return len(self.items)

    def __getitem__(self, index: Any) -> UInt8[np.ndarray, ...]:
        """Get one picture [h, w, c] or a batch [b, h, w, c]."""
        return self.convert(index, self._resize)

    def convert(self, index: Any, function: Callable[[Any], Any]) -> np.ndarray:
        """Apply a function to a batch; an int as index is a batch of one."""
        chosen = np.arange(len(self))[index]
        batch = np.empty((chosen.size, *self._shape), np.uint8)
        for row, number in zip(batch, chosen.flat, strict=True):
            pixels = self._read(self.items[int(number)], self._shape[:2])
            row[...] = reduce_channels(pixels, row.shape[2])
        images = np.asarray(function(batch))
        return images if chosen.ndim else images[0]

    def coarsen(self, hw: tuple[int, int]) -> Pictures:
        """Reduce the images to rows and columns `hw`, and enlarge them again."""

        def read(item: Any, size: tuple[int, int]) -> np.ndarray:
            small = fit_photograph(self._read(item, size), hw, "stretch")
            return fit_photograph(small, size, "stretch")

        return Pictures(self.items, read, self._shape, self.preprocess)
