"""A dataset as images of a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32, UInt8
from PIL import Image

from zfnet_jax.data.dataset import Dataset
from zfnet_jax.data.preprocessing import Preprocessing, fit_photograph


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
        """Take the images of a dataset; nothing is computed yet.

        Args:
            dataset: The dataset.
            image_shape: Rows, columns and channels (1 or 3) of the network's images.
            preprocess: From uint8[b, h, w, c] to the floats that the network takes.

        Raises:
            ValueError: There is no `preprocess`.
        """
        if preprocess is None:
            raise ValueError(
                "images of a dataset need the network's preprocessing: give "
                "`preprocess`, from uint8[b, h, w, c] to floats"
            )
        self.dataset, self._shape, self._preprocess = dataset, image_shape, preprocess
        self.labels: Int32[np.ndarray, " n"] = dataset.labels
        self.class_names = dataset.class_names
        self.source = dataset.source or dataset.name
        self.pictures = Pictures(dataset.images, image_shape, preprocess)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        """Preprocess one image [h, w, c] or a batch [b, h, w, c]."""
        chosen = np.arange(len(self))[index]
        batch = np.asarray(self._preprocess(self.pictures.read(chosen.ravel())))
        return batch if chosen.ndim else batch[0]

    def take(self, indices: np.ndarray) -> DatasetImages:
        """Select the images at `indices`, in that order."""
        return DatasetImages(self.dataset.take(indices), self._shape, self._preprocess)

    def digest(self) -> str:
        """Compute the sha256, in hex, of the dataset."""
        return self.dataset.digest()

    @property
    def masks(self) -> Bool[np.ndarray, "n h w"] | None:
        """Pixels of the objects, resized as the pictures are; None if unknown."""
        if self.dataset.masks is None:
            return None
        gray = np.where(self.dataset.masks[..., None], 255, 0).astype(np.uint8)
        pictures = Pictures(np.repeat(gray, 3, 3), self._shape, self._preprocess)
        return pictures[:][..., 0] > 128

    def __repr__(self) -> str:
        """One line."""
        return f"DatasetImages({len(self)} of {self.source})"


def stored_shape(
    image_shape: tuple[int, int, int], preprocess: Any
) -> tuple[int, int, int]:
    """Shape of the images that a network's preprocessing takes."""
    if isinstance(preprocess, Preprocessing):
        height, width, channels = preprocess.mean.shape
        return height, width, channels
    return image_shape


class Pictures:
    """Images of a dataset as uint8 pixels of a network's size."""

    def __init__(
        self, images: np.ndarray, shape: tuple[int, int, int], preprocess: Any
    ) -> None:
        """Made by `DatasetImages`."""
        self._images = images
        # It takes images of the size of its mean, which it may resize.
        self._own = preprocess if isinstance(preprocess, Preprocessing) else None
        self._shape = stored_shape(shape, preprocess)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._images)

    def __getitem__(self, index: Any) -> UInt8[np.ndarray, ...]:
        """Get one picture [h, w, c] or a batch [b, h, w, c]."""
        chosen = np.arange(len(self))[index]
        batch = self.read(chosen.ravel())
        if self._own is not None:
            batch = self._own.pictures(batch)
        return batch if chosen.ndim else batch[0]

    def read(self, indices: np.ndarray) -> UInt8[np.ndarray, "b h w c"]:
        """Get a batch for `preprocess`."""
        batch = self._images[indices]
        rows, columns, channels = self._shape
        if batch.shape[1:3] != (rows, columns):
            batch = np.stack([fit_photograph(x, (rows, columns)) for x in batch])
        if batch.shape[3] > channels:
            gray = [np.asarray(Image.fromarray(x).convert("L")) for x in batch]
            batch = np.stack(gray)[..., None]
        return batch
