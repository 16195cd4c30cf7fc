"""Photographs, from files or records, as images of a network."""

from __future__ import annotations

import copy
import functools
import itertools
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Int32, UInt8

from zfnet_jax.data.decoding import (
    FORMATS,
    load_photograph,
    photograph_suffixes,
    show_name,
)
from zfnet_jax.data.images import Pictures, crop_share, stored_shape
from zfnet_jax.data.labeled import LabeledImages
from zfnet_jax.data.preprocessing import Fit, fit_photograph
from zfnet_jax.files import DataNotFoundError, digest

# Bytes of decoded pictures to keep, and of files to read for a digest, at most.
_KEPT, _HASHED = 1 << 27, 1 << 30


class Photographs:
    """Photographs in files or records as images of a network, decoded when needed.

    An index is an int for one image, or an integer array, list or slice for a batch.
    The last 128 MiB of pictures stay in memory. The center of each photograph is
    resized to the size of the network (see `fit`), and converted to gray for a network
    of one channel. Where `preprocess` has an attribute `crop`, that share of the center
    square is kept.

    Attributes:
        names: File names; those in subfolders as "class/file", and labeled images as
            "class/image 17".
        pictures: The same images as the network sees them, but as uint8 pixels.
        class_names: Names of the classes or subfolders, in order; None without any.
        labels: The class of each image, an index into `class_names`, or None.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | LabeledImages,
        image_shape: tuple[int, int, int],
        preprocess: Callable[[Any], Any] | None,
        fit: Fit = "crop",
    ) -> None:
        """List the photographs.

        Args:
            source: A photograph, a folder of them, a folder with one folder per class,
                or labeled images.
            image_shape: Rows, columns and channels (1 or 3) of the network's images.
            preprocess: From uint8[b, h, w, c] to the floats that the network takes.
            fit: Treatment of another aspect ratio, as for `fit_photograph`.

        Raises:
            DataNotFoundError: There is no photograph.
            ValueError: There is no `preprocess`, or the network does not take gray or
                RGB images.
        """
        if image_shape[2] not in (1, 3):
            raise ValueError(
                f"photographs are gray or RGB, but images {image_shape} have "
                f"{image_shape[2]} channels"
            )
        shape = stored_shape(image_shape, preprocess)
        is_labeled = isinstance(source, LabeledImages)
        album = _Labeled(source) if is_labeled else _Files(Path(source))
        self._album, self.names = album, album.names
        self.class_names, self.labels = album.class_names, album.labels
        crop = crop_share(preprocess)

        @functools.lru_cache(maxsize=_KEPT // math.prod(shape))
        def read(item: int, size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
            return fit_photograph(album.load(item), size, fit, crop)

        self.pictures = Pictures(range(len(self.names)), read, shape, preprocess)
        self._digest: str | None = None

    def __len__(self) -> int:
        """Number of photographs."""
        return len(self.names)

    def __getitem__(self, index: Any) -> Float[np.ndarray, ...]:
        """Decode and preprocess one image [h, w, c] or a batch [b, h, w, c].

        Raises:
            DamagedFileError: A file or record is damaged; the message names it.
            DataNotFoundError: A file is gone.
        """
        return self.pictures.convert(index, self.pictures.preprocess)

    @property
    def source(self) -> str:
        """Origin of the images, in one line."""
        return self._album.describe(len(self))

    def load(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """Decode a photograph in its own size."""
        return self._album.load(self.pictures.items[index])

    def take(self, indices: Int[np.ndarray, " m"]) -> Photographs:
        """Select the photographs at `indices`, in that order."""
        part = copy.copy(self)
        part._digest = None
        part.names = tuple(self.names[index] for index in indices)
        part.labels = None if self.labels is None else self.labels[indices]
        part.pictures = copy.copy(self.pictures)
        part.pictures.items = [self.pictures.items[index] for index in indices]
        return part

    def relabel(
        self, labels: Int32[np.ndarray, " n"], class_names: tuple[str, ...]
    ) -> Photographs:
        """The same photographs with other labels."""
        same = copy.copy(self)
        same.labels, same.class_names = labels, class_names
        return same

    def digest(self) -> str:
        """Compute the sha256, in hex, of the photographs, once.

        Files are known by their names and contents, those of more than 1 GiB together
        by names and sizes, and labeled images by their own digest.
        """
        if self._digest is None:
            self._digest = self._album.digest(list(self.pictures.items))
        return self._digest

    def __repr__(self) -> str:
        """Number and origin of the photographs."""
        return f"Photographs({self.source})"


class _Files:
    def __init__(self, path: Path) -> None:
        self._paths = find_photographs(path)
        self._folder = path if path.is_dir() else self._paths[0].parent
        self.names = tuple(
            show_name(file.relative_to(self._folder).as_posix()) for file in self._paths
        )
        self.class_names: tuple[str, ...] | None = None
        self.labels: Int32[np.ndarray, " n"] | None = None
        if self._paths[0].parent != self._folder:
            classes = [show_name(file.parent.name) for file in self._paths]
            self.class_names = tuple(dict.fromkeys(classes))
            labels = {name: label for label, name in enumerate(self.class_names)}
            self.labels = np.array([labels[name] for name in classes], np.int32)

    def load(self, item: int) -> UInt8[np.ndarray, "h w 3"]:
        return load_photograph(self._paths[item])

    def describe(self, count: int) -> str:
        plural = "" if count == 1 else "s"
        name = show_name(self._folder.resolve().name)
        return f"{count:,} photograph{plural} of {name}"

    def digest(self, items: Sequence[int]) -> str:
        files = [self._paths[item] for item in items]
        sizes = np.array([file.stat().st_size for file in files])
        contents = files if sizes.sum() <= _HASHED else (sizes,)
        return digest([self.names[item] for item in items], *contents)


class _Labeled:
    def __init__(self, images: LabeledImages) -> None:
        self._images, self.class_names = images, images.class_names
        self.labels = images.labels(np.arange(len(images)))
        self.names = tuple(
            f"{self.class_names[label]}/image {index}"
            for index, label in enumerate(self.labels)
        )

    def load(self, item: int) -> UInt8[np.ndarray, "h w 3"]:
        return self._images.load(item)[0]

    def describe(self, count: int) -> str:
        source = self._images.source
        return source if count == len(self.names) else f"{count:,} of {source}"

    def digest(self, items: Sequence[int]) -> str:
        return digest(self._images.digest(), np.array(items))


def find_photographs(path: str | os.PathLike[str]) -> list[Path]:
    """List the photographs at a path, in the order of their names.

    In a folder these are the files whose suffix is that of a photograph, or else those
    in its subfolders, each of them a class. Hidden files and folders are left out.

    Raises:
        DataNotFoundError: There is no such file or folder, or no photograph in it or
            in one of its classes.
    """
    path = Path(path)
    if not path.is_dir():
        if not path.exists():
            raise DataNotFoundError(f"there is no photograph or folder {path}")
        # Reading a pipe or a device could wait, or go on, forever.
        if not path.is_file():
            raise DataNotFoundError(f"{path} is a pipe or device, not a photograph")
        return [path]
    if files := _list_photographs(path):
        return files
    classes = [x for x in sorted(path.iterdir()) if x.is_dir() and x.name[0] != "."]
    photographs = [_list_photographs(folder) for folder in classes]
    if not any(photographs):
        raise DataNotFoundError(f"{path} holds no images ({', '.join(FORMATS)})")
    for folder, files in zip(classes, photographs, strict=True):
        if not files:
            raise DataNotFoundError(f"{folder} holds no images: add some, or remove it")
    return list(itertools.chain(*photographs))


def _list_photographs(folder: Path) -> list[Path]:
    suffixes = photograph_suffixes()
    return [
        file
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in suffixes and file.name[0] != "." and file.is_file()
    ]
