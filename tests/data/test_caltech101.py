"""Caltech-101 as tensorflow-datasets prepares it, with a few images."""

import functools
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.prepared_case import prepare
from zfnet_jax.data import fit_photograph, load_caltech101
from zfnet_jax.files import DataNotFoundError

SIZE = (12, 12)
FIT = functools.partial(fit_photograph, size=SIZE)


@pytest.fixture(scope="module")
def truth() -> dict[str, list[tuple[np.ndarray, str]]]:
    """Images of several sizes, one of them gray, and their classes."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.integers(0, 256, shape, np.uint8)

    train = [(draw(20, 31, 3), "panda"), (draw(15, 15), "accordion")]
    return {"train": train, "test": [(draw(40, 12, 3), "wrench")]}


@pytest.fixture(scope="module")
def prepared(truth, tmp_path_factory) -> Path:
    """These as tensorflow-datasets prepares them, but without loss."""

    def examples(split):
        for index, (pixels, name) in enumerate(truth[split]):
            png = io.BytesIO()
            Image.fromarray(pixels).convert("RGB").save(png, "PNG")
            png.seek(0)
            file = {"image/file_name": f"{index}.png", "label": name}
            yield index, {"image": png, **file}

    def split_generators(self, dl_manager):
        del self, dl_manager
        return {split: examples(split) for split in truth}

    return prepare("caltech101", tmp_path_factory.mktemp("prepared"), split_generators)


def test_both_splits_are_read_at_the_networks_size(prepared, truth):
    dataset = load_caltech101(prepared, SIZE, FIT)
    assert len(dataset.class_names) == 102 and dataset.name == "caltech101"
    expected = {
        FIT(np.asarray(Image.fromarray(pixels).convert("RGB"))).tobytes(): name
        for pixels, name in (*truth["train"], *truth["test"])
    }
    labels = [dataset.class_names[label] for label in dataset.labels]
    images = [image.tobytes() for image in dataset.images]
    assert dict(zip(images, labels, strict=True)) == expected


def test_what_is_missing_or_damaged_is_one_line(prepared, tmp_path):
    def refuse(folder: Path) -> str:
        with pytest.raises(DataNotFoundError) as error:
            load_caltech101(folder, SIZE, FIT)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert f"--data_dir {tmp_path}" in refuse(tmp_path)
    (tmp_path / "caltech101").mkdir()
    assert "tfds build caltech101 --file_format array_record" in refuse(tmp_path)


def test_a_fault_of_the_callers_fit_is_not_taken_for_damage(prepared):
    def fail(pixels):
        raise KeyError("size")

    with pytest.raises(KeyError, match="size"):
        load_caltech101(prepared, SIZE, fail)
