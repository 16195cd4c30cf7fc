"""Photographs of every mode and orientation; anything else is named in one line."""

import io
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from zfnet_jax.data import (
    Photographs,
    Preprocessing,
    find_photographs,
    fitted,
    load_photograph,
    photographs,
)
from zfnet_jax.files import DataNotFoundError

# Three rows and two columns of one colour each: no turn leaves it as it is.
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


def refusal(path: Path) -> str:
    with pytest.raises(DataNotFoundError) as caught:
        load_photograph(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message.removeprefix(str(path))


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (299, 2), (40, 31)])
def test_rgb_comes_back_as_it_is(tmp_path, size):
    pixels = random_image(*size, 3)
    loaded = load_photograph(saved(tmp_path, Image.fromarray(pixels)))
    np.testing.assert_array_equal(loaded, pixels, strict=True)


def test_a_path_may_be_a_string(tmp_path):
    path = saved(tmp_path, Image.fromarray(COLORS))
    np.testing.assert_array_equal(load_photograph(str(path)), COLORS)


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("bmp", {}),
        ("gif", {}),
        ("jp2", {}),
        ("ppm", {}),
        ("tiff", {}),
        ("tiff", {"compression": "tiff_lzw"}),
        ("webp", {"lossless": True}),
    ],
)
def test_formats_without_loss(tmp_path, suffix, options):
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


def test_the_suffix_does_not_matter(tmp_path):
    path = saved(tmp_path, Image.fromarray(COLORS))
    np.testing.assert_array_equal(load_photograph(path.rename(tmp_path / "a")), COLORS)


# Modes


def test_grey_and_one_bit(tmp_path):
    grey = random_image(5, 7)
    loaded = load_photograph(saved(tmp_path, Image.fromarray(grey)))
    np.testing.assert_array_equal(loaded, grey[..., None].repeat(3, 2))
    bits = grey > 127
    loaded = load_photograph(saved(tmp_path, Image.fromarray(bits)))
    np.testing.assert_array_equal(loaded[..., 1], bits * 255)


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_16_bit_grey_keeps_its_range(tmp_path, suffix):
    levels = np.array([[0, 128, 129, 257], [25_700, 32_896, 65_406, 65_535]], np.uint16)
    image = Image.fromarray(levels)
    loaded = load_photograph(saved(tmp_path, image, suffix))
    expected = [[0, 0, 1, 1], [100, 128, 254, 255]]
    for channel in range(3):
        np.testing.assert_array_equal(loaded[..., channel], expected)


def test_palette(tmp_path):
    image = Image.fromarray(COLORS).convert("P", palette=Image.Palette.ADAPTIVE)
    assert image.mode == "P"
    np.testing.assert_array_equal(load_photograph(saved(tmp_path, image)), COLORS)


@pytest.mark.parametrize(
    ("suffix", "transparency", "second"),
    [
        ("png", 0, [0, 0, 100]),
        ("gif", 0, [0, 0, 100]),
        # 128 parts of 255 of (0, 0, 100) over white.
        ("png", b"\x00\x80", [127, 127, 177]),
    ],
)
def test_a_transparent_colour_of_a_palette_is_white(
    tmp_path, suffix, transparency, second
):
    image = Image.new("P", (3, 1))
    image.putpalette([200, 0, 0, 0, 0, 100, 10, 20, 30])
    image.putdata([0, 1, 2])
    path = saved(tmp_path, image, suffix, transparency=transparency)
    expected = [[255, 255, 255], second, [10, 20, 30]]
    np.testing.assert_array_equal(load_photograph(path)[0], expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_alpha_is_laid_on_white(tmp_path, mode, suffix):
    color = (60,) if mode == "LA" else (60, 60, 60)
    image = Image.new(mode, (3, 1))
    for column, alpha in enumerate((255, 102, 0)):
        image.putpixel((column, 0), (*color, alpha))
    loaded = load_photograph(saved(tmp_path, image, suffix))
    # 0.4 * 60 + 0.6 * 255 = 177.
    assert loaded[0].tolist() == [[60] * 3, [177] * 3, [255] * 3]


@pytest.mark.parametrize(("mode", "color"), [("L", 7), ("RGB", (1, 2, 3))])
def test_a_colour_named_transparent_is_white(tmp_path, mode, color):
    image = Image.new(mode, (2, 1), color)
    image.putpixel((1, 0), 9 if mode == "L" else (9, 9, 9))
    path = saved(tmp_path, image, transparency=color)
    assert load_photograph(path)[0].tolist() == [[255] * 3, [9] * 3]


@pytest.mark.parametrize("suffix", ["jpg", "tiff"])
def test_cmyk(tmp_path, suffix):
    # Cyan, magenta, yellow, key: a pure red, half black; a JPEG is inverted inside.
    image = Image.new("CMYK", (16, 8), (0, 255, 255, 128))
    loaded = load_photograph(saved(tmp_path, image, suffix))
    assert loaded.shape == (8, 16, 3)
    np.testing.assert_allclose(loaded[4, 8], [127, 0, 0], atol=3)


def test_ycbcr(tmp_path):
    image = Image.fromarray(COLORS.repeat(8, 0).repeat(8, 1)).convert("YCbCr")
    loaded = load_photograph(saved(tmp_path, image, "tiff"))
    np.testing.assert_allclose(loaded[::8, ::8], COLORS, atol=3)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_the_first_frame_of_several(tmp_path, suffix):
    first, second = Image.fromarray(COLORS), Image.fromarray(255 - COLORS)
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(
        tmp_path, first, suffix, save_all=True, append_images=[second], **options
    )
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
@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
def test_exif_turns(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path, Image.fromarray(COLORS), suffix, exif=exif, **options)
    np.testing.assert_array_equal(load_photograph(path), UPRIGHT[orientation](COLORS))


def test_a_turned_grey_jpeg(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: row 0 is on the right
    pixels = np.zeros((16, 32), np.uint8)
    pixels[:, :16] = 255
    path = saved(tmp_path, Image.fromarray(pixels), "jpg", exif=exif)
    loaded = load_photograph(path)
    assert loaded.shape == (32, 16, 3)
    assert loaded[:14].min() > 240 and loaded[18:].max() < 15


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\x00\x00",
        b"Exif\x00\x00garbage that is no TIFF",
        b"Exif\x00\x00II*\x00\xff\xff\xff\x7f",
        # Orientation 6, but then a second entry that points out of the block.
        b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x02"
        b"\x01\x12\x00\x03\x00\x00\x00\x01\x00\x09\x00\x00"
        b"\x01\x0f\x00\x02\x00\x00\xff\xff\x7f\xff\xff\xff",
    ],
)
def test_broken_exif_is_no_reason_to_fail(tmp_path, exif):
    pixels = np.full((8, 16, 3), 90, np.uint8)
    path = saved(tmp_path, Image.fromarray(pixels), "jpg", exif=exif)
    np.testing.assert_array_equal(load_photograph(path), pixels)


# What is none


def test_a_missing_file_and_a_folder(tmp_path):
    path = tmp_path / "nowhere" / "photograph.jpg"
    assert refusal(path) == f"there is no photograph {path}"
    assert "is a folder" in refusal(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"a letter, not a picture",
        bytes(4096),
        random_image(5000).tobytes(),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    ],
)
def test_what_is_no_image(tmp_path, content):
    path = tmp_path / "photograph.png"
    path.write_bytes(content)
    assert refusal(path).startswith(" is not an image (")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tiff", "bmp", "jp2"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated(tmp_path, suffix, share):
    path = saved(tmp_path, Image.fromarray(random_image(64, 64, 3)), suffix)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    message = refusal(path)
    assert "truncated or damaged" in message
    if share == 0.9:
        assert message.startswith(" is truncated or damaged: ")


def test_a_flipped_byte_of_a_png(tmp_path):
    path = saved(tmp_path, Image.fromarray(random_image(64, 64, 3)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    assert refusal(path).startswith(" is truncated or damaged: ")


def chunk(kind: bytes, data: bytes) -> bytes:
    crc = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + crc


@pytest.mark.parametrize("size", [(11_586, 11_586), (30_000, 30_000), (2**31 - 1, 1)])
def test_a_huge_declared_size_is_refused_at_once(tmp_path, size):
    path = tmp_path / "bomb.png"
    header = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )
    message = refusal(path)
    assert "declares too large an image" in message
    assert "134,217,728 pixels" in message


def test_the_limit_itself_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(photographs, "_MAX_PIXELS", 20)
    path = saved(tmp_path, Image.fromarray(random_image(4, 5, 3)))
    assert load_photograph(path).shape == (4, 5, 3)
    path = saved(tmp_path, Image.fromarray(random_image(3, 7, 3)))
    assert "7 x 3 pixels" in refusal(path)


def test_what_pillow_only_warns_of_is_read_in_silence(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    path = saved(tmp_path, Image.fromarray(random_image(3, 5, 3)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_photograph(path).shape == (3, 5, 3)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_numbers_that_are_no_grey_levels(tmp_path, dtype):
    values = np.array([[0, 70_000]], dtype)
    path = saved(tmp_path, Image.fromarray(values), "tiff")
    assert "16 bits" in refusal(path)


def test_a_file_that_may_not_be_read_is_the_systems_error(tmp_path):
    path = saved(tmp_path, Image.fromarray(COLORS))
    path.chmod(0)
    try:
        path.open("rb").close()
    except PermissionError:
        with pytest.raises(PermissionError):
            load_photograph(path)
    else:
        pytest.skip("this user may read everything")


def test_a_pipe_is_not_waited_for(tmp_path):
    code = (
        "import os, sys; from zfnet_jax.data import load_photograph\n"
        "os.mkfifo(sys.argv[1])\n"
        "try: load_photograph(sys.argv[1])\n"
        "except Exception as error: print(type(error).__name__)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "pipe")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert answer.stdout == "DataNotFoundError\n"


def test_a_damaged_file_never_leaks_another_error(tmp_path):
    """Any damage either leaves pixels or is one clear refusal."""
    rng = np.random.default_rng(0)
    pixels = Image.fromarray(random_image(24, 24, 3))
    path = tmp_path / "photograph"
    for form in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000"):
        buffer = io.BytesIO()
        pixels.save(buffer, form)
        original = np.frombuffer(buffer.getvalue(), np.uint8)
        for _ in range(40):
            content = original.copy()
            # Headers are the front of a file.
            span = rng.choice([32, 200, len(content)])
            places = rng.integers(0, min(span, len(content)), rng.integers(1, 6))
            content[places] = rng.integers(0, 256, len(places))
            path.write_bytes(content.tobytes())
            try:
                loaded = load_photograph(path)
            except DataNotFoundError:
                continue
            assert loaded.dtype == np.uint8 and loaded.ndim == 3


# Folders


def test_a_folder_gives_its_images_by_name(tmp_path):
    (tmp_path / "below.png").mkdir()
    for name in ("b.JPG", "a.tiff", "c.webp", "B.jpeg", ".hidden.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"not read yet")
    (tmp_path / "below.png" / "deep.png").write_bytes(b"")
    files = find_photographs(str(tmp_path))
    assert files == [tmp_path / x for x in ("B.jpeg", "a.tiff", "b.JPG", "c.webp")]


def test_every_kind_that_is_read_is_found(tmp_path):
    suffixes = "bmp gif jpeg jpg jp2 jpe mpo pbm pgm png pnm ppm tif tiff webp".split()
    for suffix in suffixes:
        (tmp_path / f"x.{suffix}").touch()
    assert [file.suffix[1:] for file in find_photographs(tmp_path)] == sorted(suffixes)


def test_a_folder_without_images_is_named(tmp_path):
    (tmp_path / "notes.txt").touch()
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataNotFoundError, match=str(folder)):
            find_photographs(folder)


# As images of a network


def unit(images):
    """A user's own preprocessing."""
    return images / np.float32(255)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name, height in (("c.png", 20), ("a.png", 33), ("b.png", 8)):
        Image.fromarray(random_image(height, 40, 3)).save(folder / name)
    return folder


def test_photographs_equal_those_that_are_read_one_by_one(folder):
    images = Photographs(folder, (16, 12, 3), unit)
    assert images.names == ("a.png", "b.png", "c.png") and len(images) == 3
    assert images.class_names is None and images.labels is None
    expected = [fitted(load_photograph(folder / x), (16, 12)) for x in images.names]
    for index in (1, -1, np.array([2, 0, 2]), [0], slice(None, 2), np.array([], int)):
        chosen = np.stack(expected)[index]
        np.testing.assert_array_equal(images.pictures[index], chosen, strict=True)
        np.testing.assert_array_equal(images[index], unit(chosen), strict=True)
    with pytest.raises(IndexError):
        images[np.array([3])]
    assert repr(images) == f"Photographs(3 of {str(folder)!r}, 16 x 12 x 3)"
    one = Photographs(str(folder / "c.png"), (16, 12, 3), unit)
    assert one.names == ("c.png",)
    np.testing.assert_array_equal(one.pictures[0], expected[2])


def test_photographs_are_cut_to_the_mean_image_then_resized(folder):
    mean = np.random.default_rng(0).uniform(0, 255, (8, 8, 3)).astype(np.float32)
    preprocess = Preprocessing(mean, 0.5, (16, 16))
    images = Photographs(folder, (16, 16, 3), preprocess)
    pixels = fitted(load_photograph(folder / "b.png"), (8, 8))[None]
    np.testing.assert_array_equal(images[np.array([1])], preprocess(pixels))
    np.testing.assert_array_equal(images.pictures[[1]], preprocess.pictures(pixels))


def test_photographs_in_gray(folder):
    gray = Photographs(folder, (16, 16, 1), unit)
    color = Photographs(folder, (16, 16, 3), unit).pictures[:].astype(float)
    assert gray[0].shape == (16, 16, 1)
    # ITU-R 601, as in Pillow.
    expected = color @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(gray.pictures[:][..., 0], expected, atol=0.6)


def test_subfolders_are_classes(folder):
    for name, count in (("dog", 1), ("cat", 2), (".hidden", 1), ("empty", 0)):
        (folder / "classes" / name).mkdir(parents=True)
        for i in range(count):
            content = (folder / "a.png").read_bytes()
            (folder / "classes" / name / f"{i}.png").write_bytes(content)
    images = Photographs(folder / "classes", (8, 8, 3), unit)
    assert images.names == ("cat/0.png", "cat/1.png", "dog/0.png")
    assert images.class_names == ("cat", "dog")
    assert images.labels is not None and images.labels.tolist() == [0, 0, 1]
    assert images[0].shape == (8, 8, 3)
    # Photographs of the folder itself come first.
    assert Photographs(folder, (8, 8, 3), unit).class_names is None


def test_a_damaged_photograph_is_named_when_it_is_read(folder):
    content = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(content[:100])
    images = Photographs(folder, (8, 8, 3), unit)
    assert images[np.array([0, 2])].shape == (2, 8, 8, 3)
    with pytest.raises(
        DataNotFoundError, match=f"^{folder / 'b.png'} is trunc"
    ) as caught:
        images[np.arange(3)]
    assert "\n" not in str(caught.value)


def test_what_no_network_can_look_at(folder, tmp_path):
    with pytest.raises(ValueError, match="give `preprocess`"):
        Photographs(folder, (8, 8, 3), None)
    with pytest.raises(ValueError, match="have 4 channels"):
        Photographs(folder, (8, 8, 4), unit)
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "nowhere", tmp_path / "empty"):
        with pytest.raises(DataNotFoundError, match=str(path)):
            Photographs(path, (8, 8, 3), unit)
    for preprocess, message in [
        (lambda x: x, r"uint8\[1, 8, 8, 3\]"),
        (lambda x: unit(x).transpose(0, 3, 1, 2), r"float32\[1, 3, 8, 8\], but"),
    ]:
        with pytest.raises(ValueError, match=f"preprocess gives {message}"):
            Photographs(folder, (8, 8, 3), preprocess)[[0]]
