"""The same images from folders, records and tensorflow-datasets; damage is named."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import prepare_images as command
from experiments.harness import main
from tests.data.labeled_case import CLASSES, SIZES, prepare_tfds, write_folders
from zfnet_jax.data import LabeledImages, fit_photograph, mean_image, open_labeled
from zfnet_jax.files import DamagedFileError, DataNotFoundError


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    return write_folders(tmp_path_factory.mktemp("folders"))


@pytest.fixture(scope="module")
def prepared(folders, tmp_path_factory) -> Path:
    return prepare_tfds(folders, tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def records(folders, tmp_path_factory) -> Path:
    """Records of the folders, in shards of five images."""
    out = tmp_path_factory.mktemp("records")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "CHUNK", 5)
        patch.setattr(command, "SHARD", 5)
        argv = ["--images", str(folders), "--out", str(out), "--workers", "0"]
        assert main(command.prepare_images, argv) == 0
    return out


@pytest.fixture
def copy(tmp_path) -> Callable[[Path], Path]:
    return lambda folder: shutil.copytree(folder, tmp_path / "copy")


def read_all(images: LabeledImages) -> tuple[np.ndarray, np.ndarray]:
    return images.read(np.arange(len(images)))


def refusal(error: type[Exception], folder: Path, split: str = "train") -> str:
    with pytest.raises(error) as caught:
        read_all(open_labeled(folder, split))  # pyright: ignore[reportArgumentType]
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_folder_is_read_in_the_order_of_its_names(folders, split):
    images = open_labeled(folders, split)
    files = sorted((folders / split).glob("*/*"))
    pixels, labels = read_all(images)
    assert images.class_names == CLASSES and len(images) == len(files)
    for image, label, file in zip(pixels, labels, files, strict=True):
        photograph = np.asarray(Image.open(file))
        np.testing.assert_array_equal(image, fit_photograph(photograph, (256, 256)))
        assert CLASSES[label] == file.parent.name
    some = np.array([2, 0])
    np.testing.assert_array_equal(images.read(some)[0], pixels[some])
    np.testing.assert_array_equal(images.labels(some), labels[some])


def test_records_are_the_same_images(folders, records):
    assert len(list(records.glob("train-*-of-00003.array_record"))) == 3
    for split in ("train", "val"):
        pixels, labels = read_all(open_labeled(folders, split))
        images = pickle.loads(pickle.dumps(open_labeled(records, split)))
        recorded, recorded_labels = read_all(images)
        np.testing.assert_array_equal(recorded_labels, labels)
        np.testing.assert_array_equal(images.labels(np.arange(len(labels))), labels)
        assert images.class_names == CLASSES
        for index, (image, other) in enumerate(zip(recorded, pixels, strict=True)):
            if min(SIZES[index % 4 if split == "train" else 0]) <= 256:
                np.testing.assert_array_equal(image, other)  # it keeps its bytes
            else:
                difference = image.astype(int) - other
                assert 0 < np.abs(difference).mean() < 2


def test_imagenet2012_is_the_same_images(folders, prepared):
    for split in ("train", "val"):
        images = pickle.loads(pickle.dumps(open_labeled(prepared, split)))
        expected, actual = (
            sorted((x.tobytes(), int(y)) for x, y in zip(*read_all(each), strict=True))
            for each in (open_labeled(folders, split), images)
        )
        assert actual == expected
        indices = np.arange(len(images))
        np.testing.assert_array_equal(images.labels(indices), read_all(images)[1])
        assert images.class_names[:3] == CLASSES and len(images.class_names) == 1000


def test_the_mean_image_of_records_is_that_of_what_is_read(folders, records):
    pixels, _ = read_all(open_labeled(records, "train"))
    for split in ("train", "val"):
        mean = mean_image(open_labeled(records, split))
        np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-6)
    images = open_labeled(folders, "train")
    pixels, _ = read_all(images)
    np.testing.assert_allclose(mean_image(images), pixels.mean(0), rtol=1e-6)
    sample = mean_image(images, count=1, seed=3)
    assert any(np.array_equal(sample, image) for image in pixels)


def test_a_digest_tells_other_images_apart(folders, records, prepared, copy):
    roots = (folders, records, prepared, copy(folders))
    file = next(roots[3].glob("train/*/*"))
    assert (
        open_labeled(roots[3], "train").digest()
        == open_labeled(folders, "train").digest()
    )
    file.write_bytes(file.read_bytes() + b"0")
    digests = {open_labeled(x, y).digest() for x in roots for y in ("train", "val")}
    assert len(digests) == 7  # the validation images of the copy are the same


# What is refused.


def test_folders_that_are_not_as_usual(folders, copy):
    folder = copy(folders)
    shutil.rmtree(folder / "val" / CLASSES[0])
    images = open_labeled(folder, "val")
    assert images.labels(np.arange(2)).tolist() == [1, 2]
    (folder / "val" / CLASSES[1]).rename(folder / "val" / "unknown")
    assert "unknown is a class without training" in refusal(
        DataNotFoundError, folder, "val"
    )
    shutil.rmtree(folder / "val")
    assert "no folder val" in refusal(DataNotFoundError, folder, "val")
    (folder / "val").mkdir()
    assert "no images in subfolders" in refusal(DataNotFoundError, folder, "val")
    shutil.copy(next(folder.glob("train/*/*")), folder / "val")
    assert "into a subfolder" in refusal(DataNotFoundError, folder, "val")
    for file in (folder / "train" / CLASSES[2]).iterdir():
        file.rename(file.with_suffix(".txt"))
    message = refusal(DataNotFoundError, folder)
    assert f"{CLASSES[2]} holds no images" in message
    assert "imagenet2012" in refusal(DataNotFoundError, folder / "nothing")


def test_a_damaged_file_is_named(folders, copy):
    folder = copy(folders)
    file = folder / "train" / CLASSES[1] / f"{CLASSES[1]}_02.JPEG"
    file.write_bytes(file.read_bytes()[:900])
    message = refusal(DamagedFileError, folder)
    assert str(file) in message and "prepare_images" in message


def test_a_damaged_record_is_named(records, copy):
    folder = copy(records)
    shard = folder / "train-00001-of-00003.array_record"
    content = open_labeled(folder, "train").items.fetch(9)[0]
    start = shard.read_bytes().index(content)
    damaged = bytearray(shard.read_bytes())
    damaged[start + 100] ^= 1
    shard.write_bytes(damaged)
    images = open_labeled(folder, "train")
    images.read(np.array([5, 7]))
    message = refusal(DamagedFileError, folder)
    assert f"{shard}, record 4, is damaged: run experiments.prepare_images" in message
    shard.write_bytes(damaged[:-1000])
    assert f"{shard} is missing, truncated" in refusal(DamagedFileError, folder)
    shard.unlink()
    assert f"{shard} is missing" in refusal(DamagedFileError, folder)


def test_shards_that_were_swapped_are_refused(records, copy):
    """They have as many records, so that every image would get another's label."""
    folder = copy(records)
    first, second = (folder / f"train-0000{x}-of-00003.array_record" for x in (0, 1))
    content = first.read_bytes()
    second.rename(first)
    second.write_bytes(content)
    assert f"{first} is not the file that was" in refusal(DamagedFileError, folder)


@pytest.mark.parametrize("name", ["images.json", "train.safetensors"])
def test_a_damaged_index_is_named(records, copy, name):
    folder = copy(records)
    file = folder / name
    content = bytearray(file.read_bytes())
    content[-1 if name == "train.safetensors" else 0] ^= 1
    file.write_bytes(content)
    assert str(file) in refusal(DamagedFileError, folder)
    file.unlink()
    error = DataNotFoundError if name == "images.json" else DamagedFileError
    assert "prepare" in refusal(error, folder)


def test_damage_to_imagenet2012_is_one_line(prepared, copy):
    folder = copy(prepared)
    (file,) = folder.glob("imagenet2012/*/*train.array_record*")
    content = bytearray(file.read_bytes())
    content[content.index(b"JFIF") + 100] ^= 1
    file.write_bytes(content)
    assert "train image" in refusal(DamagedFileError, folder)
    (file.parent / "dataset_info.json").unlink()
    assert "file_format='array_record'" in refusal(DataNotFoundError, folder)
