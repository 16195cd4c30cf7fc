"""Labeled images in memory, the form of every source of data."""

import dataclasses
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Int32, UInt8

from zfnet_jax.files import digest


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labeled images of one size, decoded, in memory.

    Attributes:
        images: Pixels of one channel (gray) or three (RGB), 0 to 255.
        labels: The class of each image, an index into `class_names`.
        class_names: One name per class, in the order of the labels.
        name: Short name of the dataset, as on the command line.
        masks: Pixels whose center is inside the object, if that is known.
        source: Origin of the pixels, in one line.

    Raises:
        ValueError: The fields do not fit each other.

    Example:
        >>> import numpy as np
        >>> from zfnet_jax.data import Dataset
        >>> images, labels = np.zeros((3, 8, 8, 1), np.uint8), np.array([0, 1, 0], "i4")
        >>> dataset = Dataset(images, labels, ("cat", "dog"), "pets")
        >>> dataset.take(np.array([1, 2])).labels.tolist()
        [1, 0]
    """

    images: UInt8[np.ndarray, "n h w c"]
    labels: Int32[np.ndarray, " n"]
    class_names: tuple[str, ...]
    name: str
    masks: Bool[np.ndarray, "n h w"] | None = None
    source: str = ""

    def __post_init__(self) -> None:
        """Check that the fields fit each other."""
        shape = self.images.shape
        valid = len(shape) == 4 and shape[-1] in (1, 3)
        if not valid or self.images.dtype != np.uint8:
            raise ValueError(
                f"images must be uint8[n, h, w, 3] or [n, h, w, 1], not "
                f"{self.images.dtype}{list(shape)}"
            )
        for name, fit in (
            ("labels", (np.int32, shape[:1])),
            ("masks", (np.bool_, shape[:3])),
        ):
            array = getattr(self, name)
            if array is not None and (array.dtype, array.shape) != fit:
                raise ValueError(
                    f"{name} must be {np.dtype(fit[0])}{fit[1]} to fit the images, "
                    f"not {array.dtype}{array.shape}"
                )
        if len(self) and not (
            0 <= self.labels.min() and self.labels.max() < len(self.class_names)
        ):
            raise ValueError(
                f"labels run from {self.labels.min()} to {self.labels.max()}, "
                f"but there are {len(self.class_names)} class names"
            )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def take(self, indices: Int[np.ndarray, " m"]) -> "Dataset":
        """Select the images at `indices`, in that order, with labels and masks."""
        return dataclasses.replace(
            self,
            images=self.images[indices],
            labels=self.labels[indices],
            masks=None if self.masks is None else self.masks[indices],
        )

    def digest(self) -> str:
        """Compute the sha256, in hex, of the images, labels, masks and class names."""
        return digest(self.images, self.labels, self.masks, self.class_names)
