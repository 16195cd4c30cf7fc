"""Photographs from files of any size, mode and orientation, as images of a network."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int32, UInt8
from PIL import ExifTags, Image

from zfnet_jax.data.dataset import DataNotFoundError
from zfnet_jax.data.preprocessing import Preprocessing, fitted

# The formats of cameras, phones and the web. Pillow reads dozens of others, some by
# running other programs (EPS), some by marks so weak that noise passes for one (TGA).
_FORMATS = "AVIF BMP GIF JPEG JPEG2000 MPO PNG PPM TIFF WEBP".split()

# 134 million: the largest of today's common sensors, and 400 MB as RGB.
_MAX_PIXELS = 2**27

# The transposition that makes a photograph upright, by its EXIF tag.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Photographs:
    """A photograph or a folder of them as images of a network, decoded when needed.

    An index is an int for one image, or an integer array, list or slice for a batch.
    Nothing is kept in memory, so a folder of any size can be used. The center of each
    photograph is resized to the size of the network, and converted to gray for a
    network of one channel.

    A folder without photographs of its own may have one subfolder per class.

    Attributes:
        names: File names; those in subfolders as "class/file".
        pictures: The same images as the network sees them, but as uint8 pixels.
        class_names: Names of the subfolders, in order; None without subfolders.
        labels: The class of each image, an index into `class_names`, or None.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from PIL import Image
        >>> from zfnet_jax.data import Photographs
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("a.png", "b.png"):
        ...         Image.new("RGB", (60, 40)).save(pathlib.Path(folder, name))
        ...     images = Photographs(folder, (32, 32, 3), lambda x: x / np.float32(255))
        ...     images.names, images[np.array([1])].shape, images.pictures[0].shape
        (('a.png', 'b.png'), (1, 32, 32, 3), (32, 32, 3))
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
        self.folder = Path(path)
        files, self.class_names = _list_files(self.folder)
        if self.folder.is_dir():
            names = [file.relative_to(self.folder).as_posix() for file in files]
        else:
            self.folder, names = self.folder.parent, [self.folder.name]
        self.names = tuple(names)
        self.labels: Int32[np.ndarray, " n"] | None = None
        if self.class_names is not None:
            labels = [self.class_names.index(file.parent.name) for file in files]
            self.labels = np.array(labels, np.int32)
        self.preprocess = preprocess
        self.pictures = Pictures(self.folder, self.names, image_shape, preprocess)

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

    def __repr__(self) -> str:
        """One line."""
        shape = " x ".join(map(str, self.pictures.image_shape))
        return f"Photographs({len(self)} of {str(self.folder)!r}, {shape})"


class Pictures:
    """Photographs as uint8 pixels of a network's size; made by `Photographs`."""

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        image_shape: tuple[int, int, int],
        preprocess: Callable[[Any], Any],
    ) -> None:
        """Keep the arguments; see `Photographs`."""
        self.folder = folder
        self.names = names
        self.image_shape = image_shape
        # Ours may resize what it is given, from the size of its mean image.
        self.resize = preprocess if isinstance(preprocess, Preprocessing) else None

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
        """Decode a batch at the size that `preprocess` takes.

        Returns:
            The pixels, and whether the index was that of one image.
        """
        chosen = np.arange(len(self))[index]
        height, width, channels = self.image_shape
        size = (height, width)
        if self.resize is not None:
            size = self.resize.mean.shape[:2]
        batch = np.empty((chosen.size, *size, channels), np.uint8)
        for row, place in zip(batch, chosen.flat, strict=True):
            pixels = fitted(load_photograph(self.folder / self.names[int(place)]), size)
            if channels == 1:
                pixels = np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
            row[...] = pixels
        return batch, chosen.ndim == 0


def _list_files(path: Path) -> tuple[list[Path], tuple[str, ...] | None]:
    """Photographs at a path, and the names of their classes if there are any."""
    if not path.is_dir():
        if not path.exists():
            raise DataNotFoundError(f"there is no photograph or folder {path}")
        return [path], None
    try:
        return find_photographs(path), None
    except DataNotFoundError:
        files: list[Path] = []
        for folder in sorted(path.iterdir()):
            if folder.is_dir() and not folder.name.startswith("."):
                files += _find(folder)
        if not files:
            raise
    return files, tuple(dict.fromkeys(file.parent.name for file in files))


def load_photograph(path: str | os.PathLike[str]) -> UInt8[np.ndarray, "h w 3"]:
    """Read an image file as upright RGB pixels.

    The formats are AVIF (if Pillow has it), BMP, GIF, JPEG, JPEG 2000, PNG, PNM, TIFF
    and WebP, up to 134 million (2**27) pixels. The mode may be gray of 1, 8 or 16 bits,
    a palette, CMYK or YCbCr. EXIF orientation is applied, color profiles are not.
    Transparency becomes white, 16-bit levels are divided by 257, and the first frame of
    an animation is taken.

    Args:
        path: The file.

    Returns:
        RGB pixels, 0 to 255.

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
        # Each of Pillow's decoders has its own errors for damaged files.
        except Exception as error:
            if isinstance(error, MemoryError):
                raise
            raise DataNotFoundError(
                f"{path} is truncated or damaged: {error or type(error).__name__}"
            ) from error
        try:
            rgb = _rgb(image)
        except ValueError as error:
            raise DataNotFoundError(
                f"{path} cannot be converted to RGB: {error}"
            ) from error
        turn = _TURNS.get(_orientation(image))
    return np.asarray(rgb if turn is None else rgb.transpose(turn))


def find_photographs(folder: str | os.PathLike[str]) -> list[Path]:
    """List the files in a folder whose names are those of readable photographs.

    Args:
        folder: The folder; its subfolders and hidden files are left out.

    Returns:
        At least one path, in the order of their names.

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
    suffixes = {
        suffix
        for suffix, name in Image.registered_extensions().items()
        if name in _FORMATS
    }
    return [
        path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in suffixes
        and not path.name.startswith(".")
        and path.is_file()
    ]


def _rgb(image: Image.Image) -> Image.Image:
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


def _orientation(image: Image.Image) -> int:
    """The EXIF tag; 1, upright, if it is broken, as in other software."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1
