"""Photographs of every mode and orientation; anything else is refused in one line."""

import io
import os
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from zfnet_jax.data import (
    Photographs,
    Preprocessing,
    find_photographs,
    fit_photograph,
    load_photograph,
    photographs,
)
from zfnet_jax.data.images import translate_labels
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


# Folders


def test_a_folder_gives_its_images_by_name(tmp_path):
    (tmp_path / "below.png").mkdir()
    for name in ("b.JPG", "a.tiff", "c.webp", "B.jpeg", ".hidden.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"not read yet")
    files = find_photographs(str(tmp_path))
    assert files == [tmp_path / x for x in ("B.jpeg", "a.tiff", "b.JPG", "c.webp")]


def test_a_name_that_is_not_utf8(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    Image.fromarray(COLORS).save(path.with_name("a.png"))
    path.with_name("a.png").rename(path)
    images = Photographs(tmp_path, (2, 2, 3), unit)
    assert images.names == ("caf\\xe9.png",) and images[0].shape == (2, 2, 3)
    assert len(images.digest()) == 64


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
    expected = [
        fit_photograph(load_photograph(folder / x), (16, 12)) for x in images.names
    ]
    for index in (1, -1, np.array([2, 0, 2]), [0], slice(None, 2), np.array([], int)):
        chosen = np.stack(expected)[index]
        np.testing.assert_array_equal(images.pictures[index], chosen, strict=True)
        np.testing.assert_array_equal(images[index], unit(chosen), strict=True)
    with pytest.raises(IndexError):
        images[np.array([3])]
    assert repr(images) == "Photographs(3 photographs of photographs)"
    one = Photographs(str(folder / "c.png"), (16, 12, 3), unit)
    assert one.names == ("c.png",)
    np.testing.assert_array_equal(one.pictures[0], expected[2])


def test_photographs_are_cut_to_the_mean_image_then_resized(folder):
    mean = np.random.default_rng(0).uniform(0, 255, (8, 8, 3)).astype(np.float32)
    preprocess = Preprocessing(mean, 0.5, (16, 16))
    images = Photographs(folder, (16, 16, 3), preprocess)
    pixels = fit_photograph(load_photograph(folder / "b.png"), (8, 8))[None]
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
    for name, count in (("dog", 1), ("cat", 2), (".hidden", 1)):
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
    # A class would be lost without notice.
    (folder / "classes" / "bird").mkdir()
    with pytest.raises(DataNotFoundError, match=r"bird holds no images: add some"):
        find_photographs(folder / "classes")


def test_labels_are_those_of_a_network_that_has_the_classes_by_name(folder):
    for name, file in (("cat", "a"), ("dog", "b"), ("n02012849", "c")):
        (folder / "classes" / name).mkdir(parents=True)
        (folder / f"{file}.png").rename(folder / "classes" / name / f"{file}.png")
    images = Photographs(folder / "classes", (8, 8, 3), unit)
    names = ("dog", "crane", "cat", "crane")  # a bird and a machine
    assert translate_labels(images, names) is images
    assert translate_labels(images, names, {"n02": 1}) is images
    assert translate_labels(images, (*names, "cat"), {"n02012849": 1}) is images
    own = translate_labels(images, names, {"n02012849": 1})
    assert own.labels.tolist() == [2, 0, 1] and own.class_names == names
    np.testing.assert_array_equal(own[:], images[:])
    assert own.take(np.array([2, 0])).labels.tolist() == [1, 2]
    assert images.labels is not None and images.labels.tolist() == [0, 1, 2]


def test_the_digest_is_of_names_and_contents(folder):
    images = Photographs(folder, (8, 8, 3), unit)
    digests = {images.digest(), Photographs(folder, (9, 9, 3), unit).digest()}
    assert len(digests) == 1
    digests.add(images.take(np.array([1, 0])).digest())
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes())
    digests.add(Photographs(folder, (8, 8, 3), unit).digest())
    (folder / "b.png").rename(folder / "bb.png")
    digests.add(Photographs(folder, (8, 8, 3), unit).digest())
    assert len(digests) == 4


def test_many_files_are_known_by_names_and_sizes(folder, monkeypatch):
    monkeypatch.setattr(photographs, "_HASHED", 1)
    known = Photographs(folder, (8, 8, 3), unit).digest()
    content = bytearray((folder / "b.png").read_bytes())
    content[-1] ^= 1
    (folder / "b.png").write_bytes(content)
    assert Photographs(folder, (8, 8, 3), unit).digest() == known
    (folder / "b.png").write_bytes(content[:-1])
    assert Photographs(folder, (8, 8, 3), unit).digest() != known


def test_a_damaged_photograph_is_named_when_it_is_read(folder):
    content = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(content[:100])
    images = Photographs(folder, (8, 8, 3), unit)
    assert images[np.array([0, 2])].shape == (2, 8, 8, 3)
    with pytest.raises(DamagedFileError, match=rf"^{folder}/b\.png cannot be read"):
        images[np.arange(3)]


def test_photographs_that_no_network_takes(folder, tmp_path):
    with pytest.raises(ValueError, match="give `preprocess`"):
        Photographs(folder, (8, 8, 3), None)
    with pytest.raises(ValueError, match="have 4 channels"):
        Photographs(folder, (8, 8, 4), unit)
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "nowhere", tmp_path / "empty"):
        with pytest.raises(DataNotFoundError, match=str(path)):
            Photographs(path, (8, 8, 3), unit)
