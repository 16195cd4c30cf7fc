"""Photographs from files of any size, mode and orientation, as images of a network."""

from __future__ import annotations

import copy
import dataclasses
import os
import stat
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int32, UInt8
from PIL import Image, ImageOps

from zfnet_jax.data.dataset import DataNotFoundError
from zfnet_jax.data.preprocessing import Preprocessing, fitted
from zfnet_jax.files import digest

# The formats of cameras, phones and the web. Pillow reads dozens of others, some by
# running other programs (EPS), some by marks so weak that noise passes for one (TGA).
_FORMATS = "AVIF BMP GIF JPEG JPEG2000 MPO PNG PPM TIFF WEBP".split()

# 134 million: the largest of today's common sensors, and 400 MB as RGB.
_MAX_PIXELS = 2**27


class Photographs:
    """A photograph or a folder of them as images of a network, decoded when needed.

    An index is an int for one image, or an integer array, list or slice for a batch.
    Nothing is kept in memory. The center of each photograph is resized to the size of
    the network, and converted to gray for a network of one channel.

    A folder without photographs of its own may have one subfolder per class.

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
    ) -> None:
        """List the photographs.

        Args:
            path: A photograph or a folder.
            image_shape: Rows, columns and channels (1 or 3) of the network's images.
            preprocess: From uint8[b, h, w, c] to the floats that the network takes.

        Raises:
            DataNotFoundError: There is no photograph.
            ValueError: There is no `preprocess`, or the network does not take gray or
                RGB images.
        """
        if preprocess is None:
            raise ValueError(
                "photographs need the network's preprocessing: give `preprocess`, from "
                "uint8[b, h, w, c] to floats"
            )
        if image_shape[2] not in (1, 3):
            raise ValueError(
                f"photographs are gray or RGB, but images {image_shape} have "
                f"{image_shape[2]} channels"
            )
        path = Path(path)
        files, self.class_names = _list_files(path)
        self.folder = path if path.is_dir() else path.parent
        self.names = tuple(x.relative_to(self.folder).as_posix() for x in files)
        self.labels: Int32[np.ndarray, " n"] | None = None
        if self.class_names is not None:
            labels = [self.class_names.index(file.parent.name) for file in files]
            self.labels = np.array(labels, np.int32)
        self.preprocess = preprocess
        resize = preprocess if isinstance(preprocess, Preprocessing) else None
        self.pictures = Pictures(self.folder, self.names, image_shape, resize)

    def __len__(self) -> int:
        """Number of photographs."""
        return len(self.names)

    def __getitem__(self, index: Any) -> Float[np.ndarray, ...]:
        """Decode and preprocess one image [h, w, c] or a batch [b, h, w, c].

        Raises:
            DataNotFoundError: A file is damaged or gone; the message names it.
            IndexError: There is no such photograph.
            ValueError: `preprocess` does not give floats of the network's shape.
        """
        batch, single = self.pictures.read(index)
        images = np.asarray(self.preprocess(batch))
        expected = (len(batch), *self.pictures.image_shape)
        if images.shape != expected or images.dtype.kind in "iub":
            raise ValueError(
                f"preprocess gives {images.dtype}{list(images.shape)}, but the network "
                f"takes floats {list(expected)}"
            )
        return images[0] if single else images

    def take(self, indices: np.ndarray) -> Photographs:
        """Select the photographs at `indices`, in that order."""
        part = copy.copy(self)
        part.names = tuple(self.names[index] for index in indices)
        part.labels = None if self.labels is None else self.labels[indices]
        part.pictures = dataclasses.replace(self.pictures, names=part.names)
        return part

    @property
    def source(self) -> str:
        """Origin of the images, in one line."""
        plural = "" if len(self) == 1 else "s"
        return f"{len(self):,} photograph{plural} of {self.folder.name or '.'}"

    def digest(self) -> str:
        """Compute the sha256, in hex, of the files."""
        return digest(*(self.folder / name for name in self.names))

    def __repr__(self) -> str:
        """One line."""
        shape = " x ".join(map(str, self.pictures.image_shape))
        return f"Photographs({len(self)} of {str(self.folder)!r}, {shape})"


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
    """Photographs as uint8 pixels of a network's size; made by `Photographs`."""

    folder: Path
    names: Sequence[str]
    image_shape: tuple[int, int, int]
    # It takes pictures of the size of its mean image, which it may resize.
    resize: Preprocessing | None

    def __len__(self) -> int:
        """Number of photographs."""
        return len(self.names)

    def __getitem__(self, index: Any) -> UInt8[np.ndarray, ...]:
        """Decode one picture [h, w, c] or a batch [b, h, w, c]."""
        batch, single = self.read(index)
        if self.resize is not None:
            batch = self.resize.pictures(batch)
        return batch[0] if single else batch

    def read(self, index: Any) -> tuple[UInt8[np.ndarray, "b h w c"], bool]:
        """Decode a batch for `preprocess`; also whether the index was of one image."""
        chosen = np.arange(len(self))[index]
        shape = self.image_shape if self.resize is None else self.resize.mean.shape
        batch = np.empty((chosen.size, *shape), np.uint8)
        for row, place in zip(batch, chosen.flat, strict=True):
            photograph = load_photograph(self.folder / self.names[int(place)])
            pixels = fitted(photograph, shape[:2])
            if shape[2] == 1:
                pixels = np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
            row[...] = pixels
        return batch, chosen.ndim == 0


def _list_files(path: Path) -> tuple[list[Path], tuple[str, ...] | None]:
    """Photographs at a path, and the names of their classes if there are any."""
    if not path.is_dir():
        if not path.exists():
            raise DataNotFoundError(f"there is no photograph or folder {path}")
        return [path], None
    folders = [x for x in sorted(path.iterdir()) if x.name[0] != "." and x.is_dir()]
    if not _find(path) and (files := [x for folder in folders for x in _find(folder)]):
        return files, tuple(dict.fromkeys(file.parent.name for file in files))
    return find_photographs(path), None


def load_photograph(path: str | os.PathLike[str]) -> UInt8[np.ndarray, "h w 3"]:
    """Read an image file as upright RGB pixels, 0 to 255.

    The formats are AVIF (if Pillow has it), BMP, GIF, JPEG, JPEG 2000, PNG, PNM, TIFF
    and WebP, up to 134 million (2**27) pixels. EXIF orientation is applied, color
    profiles are not. Transparency becomes white, 16-bit levels are divided by 257, and
    the first frame of an animation is taken.

    Raises:
        DataNotFoundError: There is no such file, or it is not an image, is damaged or
            truncated, has too many pixels, or has values that are not gray levels
            (floats, integers beyond 16 bits). The message names the file.
        OSError: The system refuses to read the file.
    """
    path = Path(path)
    if not path.exists():
        raise DataNotFoundError(f"there is no photograph {path}")
    # Reading a pipe or a device could wait, or go on, forever.
    if not stat.S_ISREG(path.stat().st_mode):
        raise DataNotFoundError(f"{path} is a folder or device, not a photograph")
    with path.open("rb") as file, warnings.catch_warnings():
        # Pillow warns of large pictures, broken EXIF and the like. Such files are read.
        warnings.simplefilter("ignore")
        Image.init()
        formats = [name for name in _FORMATS if name in Image.OPEN]
        try:
            image = Image.open(file, formats=formats)
            width, height = image.size
            if width * height > _MAX_PIXELS:
                raise Image.DecompressionBombError(f"{width} x {height} pixels")
            image.load()
        except Image.UnidentifiedImageError as error:
            raise DataNotFoundError(
                f"{path} is not an image ({', '.join(formats)}), or is truncated or "
                "damaged"
            ) from error
        except Image.DecompressionBombError as error:
            raise DataNotFoundError(
                f"{path} declares too large an image ({error}); the limit is "
                f"{_MAX_PIXELS:,} pixels"
            ) from error
        except MemoryError:
            raise
        # Each of Pillow's decoders has its own errors for damaged files.
        except Exception as error:
            raise DataNotFoundError(
                f"{path} is truncated or damaged: {error or type(error).__name__}"
            ) from error
        try:
            return np.asarray(_to_rgb(_turn_upright(image)))
        except ValueError as error:
            raise DataNotFoundError(
                f"{path} cannot be converted to RGB: {error}"
            ) from error


def find_photographs(folder: str | os.PathLike[str]) -> list[Path]:
    """List the files in a folder whose names are those of readable photographs.

    Subfolders and hidden files are left out. The paths are in the order of their names.

    Raises:
        DataNotFoundError: There is no such folder, or no such file in it.
        OSError: The system refuses to read the folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataNotFoundError(f"there is no folder {folder}")
    files = _find(folder)
    if not files:
        raise DataNotFoundError(
            f"the folder {folder} holds no images ({', '.join(_FORMATS)})"
        )
    return files


def _find(folder: Path) -> list[Path]:
    Image.init()
    extensions = Image.registered_extensions().items()
    suffixes = {suffix for suffix, name in extensions if name in _FORMATS}
    paths = [x for x in sorted(folder.iterdir()) if x.suffix.lower() in suffixes]
    return [x for x in paths if x.name[0] != "." and x.is_file()]


def _turn_upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # The EXIF block is broken; other software ignores it then, too.
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode[0] in "IF":
        levels = np.asarray(image)
        if image.mode == "F" or levels.min() < 0 or levels.max() > 65_535:
            raise ValueError("it has values that are not gray levels of 16 bits")
        # Pillow's own conversion would clip at 255.
        image = Image.fromarray((levels / 257 + 0.5).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
