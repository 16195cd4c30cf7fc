"""Image files of any size, mode and orientation, decoded to RGB pixels."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from zfnet_jax.files import DamagedFileError, DataNotFoundError

# The formats of cameras, phones and the web. Pillow reads dozens of others, some by
# running other programs (EPS), some by marks so weak that noise passes for one (TGA).
FORMATS = "AVIF BMP GIF JPEG JPEG2000 MPO PNG PPM TIFF WEBP".split()
_BITS, _COLORS, _PLANES = 258, 262, 284  # tags of TIFF


def photograph_suffixes() -> set[str]:
    """List the suffixes of photographs, in lower case."""
    Image.init()
    extensions = Image.registered_extensions().items()
    return {suffix for suffix, name in extensions if name in FORMATS}


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
            formats = ", ".join(FORMATS)
            raise DamagedFileError(
                f"{name} is not an image ({formats}), or is damaged"
            ) from error
        # Each of Pillow's decoders has its own errors for damaged files.
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DamagedFileError(f"{name} cannot be read: {reason}") from error


def _decode(file: io.BufferedReader | io.BytesIO) -> UInt8[np.ndarray, "h w 3"]:
    Image.init()
    image = Image.open(file, formats=[x for x in FORMATS if x in Image.OPEN])
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
