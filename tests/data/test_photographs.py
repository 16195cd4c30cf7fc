"""Photographs of a folder or of records, as images of a network."""

import os

import numpy as np
import pytest
from PIL import Image

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


def random_image(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


# Folders


def test_a_folder_gives_its_images_by_name(tmp_path):
    (tmp_path / "below.png").mkdir()
    for name in ("b.JPG", "a.tiff", "c.webp", "B.jpeg", ".hidden.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"not read yet")
    files = find_photographs(str(tmp_path))
    assert files == [tmp_path / x for x in ("B.jpeg", "a.tiff", "b.JPG", "c.webp")]


def test_a_name_that_is_not_utf8(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    Image.fromarray(random_image(3, 2, 3)).save(path.with_name("a.png"))
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
