"""Photographs of every mode and orientation; anything else is refused in one line."""

import io
import os
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from zfnet_jax.data import load_photograph
from zfnet_jax.files import DamagedFileError, DataNotFoundError

# Three rows and two columns of one color each: no turn leaves it as it is.
COLORS = np.array(
    [
        [[255, 0, 0], [0, 255, 0]],
        [[0, 0, 255], [255, 255, 0]],
        [[0, 255, 255], [255, 255, 255]],
    ],
    np.uint8,
)


def saved(folder: Path, image: Image.Image, suffix: str = "png", **options) -> Path:
    path = folder / f"photograph.{suffix}"
    image.save(path, **options)
    return path


def random_image(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def refusal(path: Path, error: type[Exception] = DamagedFileError) -> str:
    with pytest.raises(error) as caught:
        load_photograph(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message.removeprefix(str(path))


def test_rgb_comes_back_as_it_is(tmp_path):
    pixels = random_image(40, 31, 3)
    path = saved(tmp_path, Image.fromarray(pixels)).rename(tmp_path / "no suffix")
    np.testing.assert_array_equal(load_photograph(str(path)), pixels, strict=True)


@pytest.mark.parametrize("suffix", ["bmp", "gif", "jp2", "ppm", "tiff", "webp"])
def test_formats_without_loss(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path, Image.fromarray(COLORS), suffix, **options)
    np.testing.assert_array_equal(load_photograph(path), COLORS)


@pytest.mark.parametrize("suffix", ["jpg", "mpo", "avif"])
def test_formats_with_loss(tmp_path, suffix):
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    pixels = COLORS.repeat(40, 0).repeat(40, 1)
    path = saved(tmp_path, Image.fromarray(pixels), suffix, quality=95)
    loaded = load_photograph(path)
    assert loaded.shape == pixels.shape
    inside = np.s_[20::40, 20::40]
    difference = loaded[inside].astype(int) - pixels[inside]
    assert np.abs(difference).max() < 8


# Modes


def test_gray_and_one_bit(tmp_path):
    gray = random_image(5, 7)
    loaded = load_photograph(saved(tmp_path, Image.fromarray(gray)))
    np.testing.assert_array_equal(loaded, gray[..., None].repeat(3, 2))
    bits = gray > 127
    loaded = load_photograph(saved(tmp_path, Image.fromarray(bits)))
    np.testing.assert_array_equal(loaded[..., 1], bits * 255)


@pytest.mark.parametrize("suffix", ["png", "pgm"])
def test_16_bit_gray_keeps_its_range(tmp_path, suffix):
    levels = np.array([[0, 128, 129, 257], [25_700, 32_896, 65_406, 65_535]], np.uint16)
    image = Image.fromarray(levels)
    loaded = load_photograph(saved(tmp_path, image, suffix))
    expected = [[0, 0, 1, 1], [100, 128, 254, 255]]
    for channel in range(3):
        np.testing.assert_array_equal(loaded[..., channel], expected)


def tiff(pixels: np.ndarray, colors: int, planes: int) -> bytes:
    """An uncompressed TIFF of uint16[h, w, c], of which Pillow writes few kinds."""
    height, width, channels = pixels.shape
    parts = [*pixels.transpose(2, 0, 1)] if planes == 2 else [pixels]
    data, sizes = b"".join(part.tobytes() for part in parts), parts[0].nbytes
    starts = range(8, 8 + len(data), sizes)
    entries = b""
    for tag, kind, values in [
        (256, "I", [width]),
        (257, "I", [height]),
        (258, "H", [16] * channels),
        (259, "H", [1]),
        (262, "H", [colors]),
        (273, "I", starts),
        (277, "H", [channels]),
        (279, "I", [sizes] * len(parts)),
        (284, "H", [planes]),
    ]:
        content = struct.pack(f"<{len(values)}{kind}", *values)
        if len(content) > 4:  # elsewhere, with its place here
            data, content = data + content, struct.pack("<I", 8 + len(data))
        code = {"H": 3, "I": 4}[kind]
        entries += struct.pack("<HHI", tag, code, len(values)) + content.ljust(4, b"\0")
    start = struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data
    return start + struct.pack("<H", len(entries) // 12) + entries + bytes(4)


@pytest.mark.parametrize(("channels", "colors"), [(1, 0), (1, 1), (3, 2)])
@pytest.mark.parametrize("planes", [1, 2])
def test_16_bit_tiff(tmp_path, channels, colors, planes):
    pixels = random_image(4, 5, channels).astype(np.uint16) * 257
    path = tmp_path / "photograph.tiff"
    path.write_bytes(tiff(65_535 - pixels if colors == 0 else pixels, colors, planes))
    if planes == 2:
        assert channels == 1 or "separate planes" in refusal(path)
    else:
        expected = np.broadcast_to(pixels // 257, (4, 5, 3))
        np.testing.assert_array_equal(load_photograph(path), expected)


def test_a_transparent_color_of_a_palette_is_white(tmp_path):
    image = Image.new("P", (3, 1))
    image.putpalette([200, 0, 0, 0, 0, 100, 10, 20, 30])
    image.putdata([0, 1, 2])
    loaded = load_photograph(saved(tmp_path, image, "gif", transparency=0))
    assert loaded[0].tolist() == [[255, 255, 255], [0, 0, 100], [10, 20, 30]]
    # 128 parts of 255 of (0, 0, 100) over white.
    loaded = load_photograph(saved(tmp_path, image, transparency=b"\x00\x80"))
    assert loaded[0].tolist() == [[255, 255, 255], [127, 127, 177], [10, 20, 30]]


def test_alpha_is_laid_on_white(tmp_path):
    image = Image.new("RGBA", (3, 1))
    for column, alpha in enumerate((255, 102, 0)):
        image.putpixel((column, 0), (60, 60, 60, alpha))
    # 0.4 * 60 + 0.6 * 255 = 177.
    expected = [[60] * 3, [177] * 3, [255] * 3]
    for mode, suffix in (("RGBA", "png"), ("LA", "tiff")):
        loaded = load_photograph(saved(tmp_path, image.convert(mode), suffix))
        assert loaded[0].tolist() == expected


@pytest.mark.parametrize("suffix", ["jpg", "tiff"])
def test_cmyk(tmp_path, suffix):
    # Cyan, magenta, yellow, key: a pure red, half black; a JPEG is inverted inside.
    image = Image.new("CMYK", (16, 8), (0, 255, 255, 128))
    loaded = load_photograph(saved(tmp_path, image, suffix))
    assert loaded.shape == (8, 16, 3)
    np.testing.assert_allclose(loaded[4, 8], [127, 0, 0], atol=3)


@pytest.mark.parametrize("suffix", ["gif", "tiff"])
def test_the_first_frame_of_several(tmp_path, suffix):
    first, second = Image.fromarray(COLORS), Image.fromarray(255 - COLORS)
    path = saved(tmp_path, first, suffix, save_all=True, append_images=[second])
    with Image.open(path) as image:
        assert getattr(image, "n_frames", 1) == 2
    np.testing.assert_array_equal(load_photograph(path), COLORS)


# Turns

# By the definition of EXIF's tag 0x0112: where the stored first row and first column
# are in the upright picture.
UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: stored.transpose(1, 0, 2)[:, ::-1],
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: stored.transpose(1, 0, 2)[::-1],
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_turns(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(COLORS), exif=exif)
    np.testing.assert_array_equal(load_photograph(path), UPRIGHT[orientation](COLORS))


@pytest.mark.parametrize("exif", [b"no TIFF", b"II*\x00\xff\xff\xff\x7f"])
def test_broken_exif_is_ignored(tmp_path, exif):
    pixels = np.full((8, 16, 3), 90, np.uint8)
    exif = b"Exif\x00\x00" + exif
    path = saved(tmp_path, Image.fromarray(pixels), "jpg", exif=exif)
    np.testing.assert_array_equal(load_photograph(path), pixels)


# Refusals


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize("content", [b"", b"a letter, not a picture", EPS])
def test_not_an_image(tmp_path, content):
    path = tmp_path / "photograph.png"
    path.write_bytes(content)
    assert refusal(path).startswith(" is not an image (")


def test_not_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "nowhere" / "a.jpg", tmp_path, tmp_path / "pipe"):
        assert refusal(path, DataNotFoundError) == f"there is no photograph {path}"


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tiff", "bmp", "jp2"])
def test_truncated(tmp_path, suffix):
    path = saved(tmp_path, Image.fromarray(random_image(64, 64, 3)), suffix)
    content = path.read_bytes()
    for share in (0.02, 0.5, 0.9):
        path.write_bytes(content[: int(len(content) * share)])
        refusal(path)


def test_libtiff_is_silent(tmp_path, capfd):
    image = Image.fromarray(random_image(64, 64, 3))
    path = saved(tmp_path, image, "tiff", compression="tiff_deflate")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8] = bytes(8)
    path.write_bytes(content)
    assert "cannot be read" in refusal(path)
    # It writes to the file descriptor, not to sys.stderr.
    assert capfd.readouterr() == ("", "")


def test_more_pixels_than_pillow_warns_of_are_read_and_twice_as_many_refused(
    tmp_path, monkeypatch
):
    path = saved(tmp_path, Image.fromarray(random_image(3, 5, 3)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_photograph(path).shape == (3, 5, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    assert "exceeds limit" in refusal(path)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_numbers_that_are_no_gray_levels(tmp_path, dtype):
    values = np.array([[0, 70_000]], dtype)
    path = saved(tmp_path, Image.fromarray(values), "tiff")
    assert "16 bits" in refusal(path)


def test_a_damaged_file_never_leaks_another_error(tmp_path):
    """Any damage either leaves pixels or is one clear refusal."""
    rng = np.random.default_rng(0)
    pixels = Image.fromarray(random_image(24, 24, 3))
    path = tmp_path / "photograph"
    for form in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "JPEG2000"):
        buffer = io.BytesIO()
        pixels.save(buffer, form)
        original = np.frombuffer(buffer.getvalue(), np.uint8)
        for _ in range(30):
            content = original.copy()
            # Headers are the front of a file.
            span = rng.choice([32, 200, len(content)])
            places = rng.integers(0, min(span, len(content)), rng.integers(1, 6))
            content[places] = rng.integers(0, 256, len(places))
            path.write_bytes(content.tobytes())
            try:
                loaded = load_photograph(path)
            except DamagedFileError:
                continue
            assert loaded.dtype == np.uint8 and loaded.ndim == 3
