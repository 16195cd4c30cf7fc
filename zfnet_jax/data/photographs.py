"""A photograph from a file, whatever its size, mode and turn, as RGB pixels."""

import os
import stat
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image

from zfnet_jax.data.dataset import DataNotFoundError

# What cameras, phones and the web write. Pillow reads dozens of others, some by running
# other programs (EPS), some by marks so weak that noise passes for a picture (TGA).
_FORMATS = "AVIF BMP GIF JPEG JPEG2000 MPO PNG PPM TIFF WEBP".split()

# 134 million: the largest of today's common sensors, and 400 MB as RGB.
_MAX_PIXELS = 2**27

# How to turn what a camera stored, by its EXIF tag.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_photograph(path: str | os.PathLike[str]) -> UInt8[np.ndarray, "h w 3"]:
    """Read an image file as RGB, upright.

    AVIF (where Pillow has it), BMP, GIF, JPEG, JPEG 2000, PNG, PNM, TIFF and WebP are
    read, of any size up to 134 million (2**27) pixels and of any mode: grey levels of
    1, 8 or 16 bits, a palette, CMYK, YCbCr. The turn that EXIF asks for is carried out.
    What is transparent is laid on white. Of an animation the first frame is taken.
    16-bit levels are divided by 257. Colour profiles are not applied.

    Args:
        path: The file.

    Returns:
        RGB pixels, 0 to 255.

    Raises:
        DataNotFoundError: There is no such file, or it holds no image, a damaged or
            truncated one, one of too many pixels, or numbers that are no grey levels
            (floats, integers beyond 16 bits); the message says which.
        OSError: The system refuses to read the file.
    """
    path = Path(path)
    if not path.exists():
        raise DataNotFoundError(f"there is no photograph {path}")
    # Reading a pipe or a device could wait, or go on, for ever.
    if not stat.S_ISREG(path.stat().st_mode):
        raise DataNotFoundError(f"{path} is a folder or device, not a photograph")
    with path.open("rb") as file, warnings.catch_warnings():
        # Pillow warns of large pictures, of broken EXIF and the like. What can be read
        # is read, and what cannot is an error.
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
                f"{path} is no image of a kind that is read ({', '.join(formats)}), "
                "or truncated or damaged"
            ) from error
        except Image.DecompressionBombError as error:
            raise DataNotFoundError(
                f"{path} declares too large an image to be read ({error}); up to "
                f"{_MAX_PIXELS:,} pixels are"
            ) from error
        # Damage makes Pillow's decoders fail in as many ways as there are decoders.
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
                f"{path} cannot be shown as RGB: {error}"
            ) from error
        turn = _TURNS.get(_orientation(image))
    return np.asarray(rgb if turn is None else rgb.transpose(turn))


def find_photographs(folder: str | os.PathLike[str]) -> list[Path]:
    """Files in a folder that are named as images that `load_photograph` reads.

    Args:
        folder: The folder; folders below it and hidden files are left out.

    Returns:
        At least one path, in the order of their names.

    Raises:
        DataNotFoundError: There is no such folder, or no such file in it.
        OSError: The system refuses to read the folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataNotFoundError(f"there is no folder {folder}")
    Image.init()
    suffixes = {
        suffix
        for suffix, name in Image.registered_extensions().items()
        if name in _FORMATS
    }
    files = [
        path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in suffixes
        and not path.name.startswith(".")
        and path.is_file()
    ]
    if not files:
        raise DataNotFoundError(
            f"the folder {folder} holds no images ({', '.join(_FORMATS)}); folders "
            "below it are not searched"
        )
    return files


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode[0] in "IF":
        levels = np.asarray(image)
        if image.mode == "F" or levels.min() < 0 or levels.max() > 65_535:
            raise ValueError("it holds numbers beyond grey levels of 16 bits")
        # Pillow's own conversion would cut all above 255 off.
        image = Image.fromarray((levels / 257 + 0.5).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """The EXIF tag; 1, upright, where it is broken, as other software does."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1
