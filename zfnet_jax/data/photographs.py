"""Photographs from files of any size, mode and orientation, as images of a network."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import itertools
import math
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Int32, UInt8
from PIL import Image, ImageOps

from zfnet_jax.data.images import Pictures, crop_share, stored_shape
from zfnet_jax.data.preprocessing import Fit, fit_photograph
from zfnet_jax.files import DamagedFileError, DataNotFoundError, digest

# The formats of cameras, phones and the web. Pillow reads dozens of others, some by
# running other programs (EPS), some by marks so weak that noise passes for one (TGA).
_FORMATS = "AVIF BMP GIF JPEG JPEG2000 MPO PNG PPM TIFF WEBP".split()
# Bytes of decoded pictures to keep, and of files to read for a digest, at most.
_KEPT, _HASHED = 1 << 27, 1 << 30
_BITS, _COLORS, _PLANES = 258, 262, 284  # tags of TIFF


class Photographs:
    """A photograph or a folder of them as images of a network, decoded when needed.

    An index is an int for one image, or an integer array, list or slice for a batch.
    The last 128 MiB of pictures stay in memory. The center of each photograph is
    resized to the size of the network (see `fit`), and converted to gray for a network
    of one channel. Where `preprocess` has an attribute `crop`, that share of the center
    square is kept.

    Attributes:
        names: File names; those in subfolders as "class/file".
        pictures: The same images as the network sees them, but as uint8 pixels.
        class_names: Names of the subfolders, in order; None without subfolders.
        labels: The class of each image, an index into `class_names`, or None.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        image_shape: tuple[int, int, int],
        preprocess: Callable[[Any], Any] | None,
        fit: Fit = "crop",
    ) -> None:
        """List the photographs.

        Args:
            path: A photograph, a folder of them, or a folder with one folder per class.
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
        files = find_photographs(path)
        folder = Path(path) if Path(path).is_dir() else files[0].parent
        self.names = tuple(
            show_name(file.relative_to(folder).as_posix()) for file in files
        )
        self._folder = show_name(folder.resolve().name)
        self.class_names: tuple[str, ...] | None = None
        self.labels: Int32[np.ndarray, " n"] | None = None
        if files[0].parent != folder:
            classes = [show_name(file.parent.name) for file in files]
            self.class_names = tuple(dict.fromkeys(classes))
            labels = {name: label for label, name in enumerate(self.class_names)}
            self.labels = np.array([labels[name] for name in classes], np.int32)

        crop = crop_share(preprocess)

        @functools.lru_cache(maxsize=_KEPT // math.prod(shape))
        def read(file: Path, size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
            return fit_photograph(load_photograph(file), size, fit, crop)

        self.pictures = Pictures(files, read, shape, preprocess)
        self._digest: str | None = None

    def __len__(self) -> int:
        """Number of photographs."""
        return len(self.names)

    def __getitem__(self, index: Any) -> Float[np.ndarray, ...]:
        """Decode and preprocess one image [h, w, c] or a batch [b, h, w, c].

        Raises:
            DamagedFileError: A file is damaged; the message names it.
            DataNotFoundError: A file is gone.
        """
        return self.pictures.convert(index, self.pictures.preprocess)

    @property
    def source(self) -> str:
        """Origin of the images, in one line."""
        plural = "" if len(self) == 1 else "s"
        return f"{len(self):,} photograph{plural} of {self._folder}"

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
        """Compute the sha256, in hex, of the names and contents of the files, once.

        Files of more than 1 GiB together are known by their names and sizes.
        """
        if self._digest is None:
            files = self.pictures.items
            sizes = np.array([file.stat().st_size for file in files])
            contents = files if sizes.sum() <= _HASHED else (sizes,)
            self._digest = digest(self.names, *contents)
        return self._digest

    def __repr__(self) -> str:
        """Number of photographs and name of the folder."""
        return f"Photographs({self.source})"


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
        raise DataNotFoundError(f"{path} holds no images ({', '.join(_FORMATS)})")
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


def photograph_suffixes() -> set[str]:
    """List the suffixes of photographs, in lower case."""
    Image.init()
    extensions = Image.registered_extensions().items()
    return {suffix for suffix, name in extensions if name in _FORMATS}


def load_photograph(path: str | os.PathLike[str]) -> UInt8[np.ndarray, "h w 3"]:
    """Read an image file as upright RGB pixels, 0 to 255.

    The formats are AVIF, BMP, GIF, JPEG, JPEG 2000, PNG, PNM, TIFF and WebP. EXIF
    orientation is applied, color profiles are not. Transparency becomes white, 16-bit
    levels are divided by 257, and the first frame of an animation is taken.

    Raises:
        DataNotFoundError: There is no such file.
        DamagedFileError: It is not an image, is damaged or truncated, has too many
            pixels for Pillow, or has values that are not gray levels (floats, integers
            beyond 16 bits). The message names the file.
    """
    path = Path(path)
    # Reading a pipe or a device could wait, or go on, forever.
    if not path.is_file():
        raise DataNotFoundError(f"there is no photograph {path}")
    with path.open("rb") as file:
        return decode_photograph(file, str(path))


def decode_photograph(
    file: io.BufferedReader | io.BytesIO, name: str
) -> UInt8[np.ndarray, "h w 3"]:
    """Decode an open image file as `load_photograph` does; errors have this name.

    Raises:
        DamagedFileError: As for `load_photograph`.
    """
    with warnings.catch_warnings(), _quiet_stderr():
        # Pillow warns of large pictures, broken EXIF and the like, and reads them.
        warnings.simplefilter("ignore")
        try:
            return _decode(file)
        except MemoryError:
            raise
        except Image.UnidentifiedImageError as error:
            formats = ", ".join(_FORMATS)
            raise DamagedFileError(
                f"{name} is not an image ({formats}), or is damaged"
            ) from error
        # Each of Pillow's decoders has its own errors for damaged files.
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DamagedFileError(f"{name} cannot be read: {reason}") from error


def _decode(file: io.BufferedReader | io.BytesIO) -> UInt8[np.ndarray, "h w 3"]:
    Image.init()
    image = Image.open(file, formats=[x for x in _FORMATS if x in Image.OPEN])
    image.load()
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS, ())
    # Pillow would read them as if they were interleaved.
    if len(bits) > 1 and max(bits) > 8 and tags.get(_PLANES) == 2:
        raise ValueError("its 16-bit channels are in separate planes")
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":
        levels = np.asarray(image)
        if image.mode == "F" or levels.min() < 0 or levels.max() > 65_535:
            raise ValueError("its values are not gray levels of 16 bits")
        if tags.get(_COLORS) == 0:  # white is zero
            levels = 65_535 - levels
        # Pillow's own conversion would clip at 255.
        image = Image.fromarray((levels / 257 + 0.5).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.asarray(image.convert("RGB"))


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Suppress what libtiff itself writes about a damaged file."""
    stderr = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def show_name(name: str) -> str:
    """Write a file name as text, with the bytes that are not UTF-8 escaped."""
    return os.fsencode(name).decode(errors="backslashreplace")
