"""Labeled photographs on the disk, read as the center 256 x 256 (section 3).

They are too many to fit in memory: ImageNet has 1.28 million. `read` gives the images
at any indices as pixels, in any process.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int, Int32, UInt8

from zfnet_jax.data.decoding import (
    decode_photograph,
    photograph_suffixes,
    show_name,
)
from zfnet_jax.data.prepared import first_line
from zfnet_jax.data.preprocessing import fit_photograph
from zfnet_jax.data.records import (
    DESCRIPTION,
    RESTORE,
    SIDE,
    Index,
    Records,
    index_path,
)
from zfnet_jax.files import DamagedFileError, DataNotFoundError, digest

Split = Literal["train", "val"]

_TFDS = "imagenet2012"
_LEAVE_OUT = (
    "remove it, or run experiments.prepare_images, which leaves damaged images out"
)


@runtime_checkable
class Items(Protocol):
    """Encoded images with labels, which can be pickled."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def fetch(self, index: int) -> tuple[bytes, int]:
        """Read the content of an image file, and its label."""
        ...

    def labels(self, indices: Int[np.ndarray, " b"]) -> Int32[np.ndarray, " b"]:
        """Labels of images."""
        ...

    def name(self, index: int) -> str:
        """Name an image for messages."""
        ...

    def digest(self) -> str:
        """Compute the sha256, in hex, that tells other images apart."""
        ...


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LabeledImages:
    """Labeled images on the disk, which worker processes can read too.

    Attributes:
        class_names: One name per class, in the order of the labels.
        source: Origin of the images, in one line.
        items: The encoded images.
        mean: Mean image over the training images, if the records have it.
    """

    class_names: tuple[str, ...]
    source: str
    items: Items
    mean: Float32[np.ndarray, "256 256 3"] | None = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.items)

    def digest(self) -> str:
        """Compute the sha256, in hex, of the class names, the labels and the images.

        Files are known by name and size, tensorflow-datasets by its description.
        """
        return digest(self.class_names, self.items.digest())

    def labels(self, indices: Int[np.ndarray, " b"]) -> Int32[np.ndarray, " b"]:
        """Read the labels of images."""
        return self.items.labels(indices)

    def load(self, index: int) -> tuple[UInt8[np.ndarray, "h w 3"], int]:
        """Decode an image of any size, and give its label.

        Raises:
            DamagedFileError: It is damaged; the message names it.
        """
        content, label = self.items.fetch(index)
        return decode_photograph(io.BytesIO(content), self.items.name(index)), label

    def read(
        self, indices: Int[np.ndarray, " b"]
    ) -> tuple[UInt8[np.ndarray, "b 256 256 3"], Int32[np.ndarray, " b"]]:
        """Read images with the shortest side resized to 256, and the center cut out.

        Returns:
            Pixels and labels.

        Raises:
            DamagedFileError: An image is damaged; the message names it.
        """
        pixels = np.empty((len(indices), SIDE, SIDE, 3), np.uint8)
        labels = np.empty(len(indices), np.int32)
        for row, index in enumerate(indices.tolist()):
            try:
                photograph, labels[row] = self.load(index)
            except DamagedFileError as error:
                remedy = RESTORE if isinstance(self.items, Records) else _LEAVE_OUT
                raise DamagedFileError(f"{error}: {remedy}") from error
            pixels[row] = fit_photograph(photograph, (SIDE, SIDE))
        return pixels, labels

    def __repr__(self) -> str:
        """One line."""
        return f"LabeledImages({self.source})"


def open_labeled(folder: str | os.PathLike[str], split: Split) -> LabeledImages:
    """Open the training or validation images of a folder.

    Args:
        folder: One of three: train/CLASS/*.JPEG and val/CLASS/*.JPEG (or other
            photographs); records that `experiments.prepare_images` wrote; an
            imagenet2012/ that tensorflow-datasets prepared as array_record.
        split: The part, "train" or "val".

    Raises:
        DataNotFoundError: The folder is none of these, or a class has no images.
        DamagedFileError: The records are damaged.
    """
    folder = Path(folder)
    if holds_records(folder):
        return _open_records(folder, split)
    if (folder / _TFDS).is_dir():
        return _open_prepared(folder, split)
    return _open_files(folder, split)


def holds_records(folder: Path) -> bool:
    """Tell whether a folder is one that `experiments.prepare_images` wrote."""
    is_complete = (folder / DESCRIPTION).is_file()
    return is_complete or next(folder.glob("*.array_record"), None) is not None


def mean_image(
    images: LabeledImages, count: int = 4096, seed: int = 0
) -> Float32[np.ndarray, "256 256 3"]:
    """Get the mean of the training images: that of the records, or over a sample.

    Args:
        images: Training images.
        count: Images to sample; a level of the mean of 4,096 is uncertain by 1.1.
        seed: Seed for the sample.
    """
    if images.mean is not None:
        return images.mean
    sample = np.random.default_rng(seed).permutation(len(images))[:count]
    total = np.zeros((SIDE, SIDE, 3), np.int64)
    for index in np.sort(sample):
        total += images.read(np.array([index]))[0][0]
    return (total / len(sample)).astype(np.float32)


# Folders.


@dataclasses.dataclass(frozen=True, eq=False)
class _Files:
    folder: Path
    names: tuple[str, ...]  # "CLASS/FILE"
    classes: Int32[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.names)

    def fetch(self, index: int) -> tuple[bytes, int]:
        return (self.folder / self.names[index]).read_bytes(), int(self.classes[index])

    def labels(self, indices: Int[np.ndarray, " b"]) -> Int32[np.ndarray, " b"]:
        return self.classes[indices]

    def name(self, index: int) -> str:
        return str(self.folder / self.names[index])

    def digest(self) -> str:
        sizes = [os.stat(self.folder / name).st_size for name in self.names]
        return digest([show_name(name) for name in self.names], np.array(sizes))


def _open_files(folder: Path, split: Split) -> LabeledImages:
    for part in ("train", split):
        if not (folder / part).is_dir():
            raise DataNotFoundError(
                f"{folder} has no folder {part}: it needs train/CLASS/*.JPEG and "
                "val/CLASS/*.JPEG, records of experiments.prepare_images, or the "
                f"{_TFDS} of tensorflow-datasets"
            )
    classes = _subfolders(folder / "train")
    names: list[str] = []
    labels: list[int] = []
    for kind in _subfolders(folder / split):
        files = sorted(_list_images(folder / split / kind))
        if kind not in classes:
            raise DataNotFoundError(
                f"{folder / split / kind} is a class without training images: it has "
                f"no folder in {folder / 'train'}"
            )
        if not files:
            raise DataNotFoundError(
                f"{folder / split / kind} holds no images: add some, or remove it"
            )
        names += [f"{kind}/{file}" for file in files]
        labels += [classes[kind]] * len(files)
    if not names:
        raise DataNotFoundError(_explain_no_classes(folder / split))
    return LabeledImages(
        tuple(show_name(kind) for kind in classes),
        f"{len(names):,} {split} images of {show_name(folder.resolve().name)}",
        _Files(folder / split, tuple(names), np.array(labels, np.int32)),
    )


def _subfolders(folder: Path) -> dict[str, int]:
    """Number the classes of a folder in the order of their names."""
    with os.scandir(folder) as entries:
        names = [x.name for x in entries if x.is_dir() and x.name[0] != "."]
    return {name: number for number, name in enumerate(sorted(names))}


def _list_images(folder: Path) -> Iterator[str]:
    suffixes = photograph_suffixes()
    with os.scandir(folder) as entries:
        for entry in entries:
            is_photograph = os.path.splitext(entry.name)[1].lower() in suffixes
            if is_photograph and entry.name[0] != "." and entry.is_file():
                yield entry.name


def _explain_no_classes(folder: Path) -> str:
    if next(_list_images(folder), None):
        return (
            f"the images of {folder} are in no class: move each into a subfolder named "
            "after its class"
        )
    return f"{folder} has no images in subfolders named after their classes"


# Records and tensorflow-datasets.


def _open_records(folder: Path, split: Split) -> LabeledImages:
    if not (folder / DESCRIPTION).is_file():
        raise DataNotFoundError(
            f"the records in {folder} are not complete: run experiments.prepare_images "
            "again, which goes on where it stopped"
        )
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
        names, source = tuple(description["class_names"]), str(description["source"])
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(
            f"{folder / DESCRIPTION} is damaged: prepare the images again"
        ) from error
    records = Records.open(folder, split)
    train = Index.read(index_path(folder, "train"))
    mean = (train.total / len(train.labels)).astype(np.float32)
    source = f"{len(records):,} {split} images, prepared from {source}"
    return LabeledImages(names, source, records, mean)


@dataclasses.dataclass(frozen=True, eq=False)
class _Prepared:
    folder: Path
    split: str
    description: str
    examples: Any

    def __len__(self) -> int:
        return len(self.examples)

    def fetch(self, index: int) -> tuple[bytes, int]:
        # tensorflow-datasets passes on the errors of several libraries.
        try:
            example = self.examples[index]
        except Exception as error:
            raise DamagedFileError(f"{self.name(index)} is damaged") from error
        return example["image"], int(example["label"])

    def labels(self, indices: Int[np.ndarray, " b"]) -> Int32[np.ndarray, " b"]:
        return np.array([self.fetch(index)[1] for index in indices.tolist()], np.int32)

    def name(self, index: int) -> str:
        return f"{self.folder}, {self.split} image {index},"

    def digest(self) -> str:
        return digest(self.description, self.split)


def _open_prepared(root: Path, split: Split) -> LabeledImages:
    # Imported on use: it takes a second, and few need it.
    import tensorflow_datasets as tfds

    folder, part = root / _TFDS, {"train": "train", "val": "validation"}[split]
    encoded = {"image": tfds.decode.SkipDecoding()}
    # A damaged file makes four libraries raise errors that are not documented.
    try:
        builder: Any = tfds.builder(_TFDS, data_dir=root)
        examples = builder.as_data_source(split=part, decoders=encoded)
        data = Path(builder.data_path)
        names = (data / "label.labels.txt").read_text().split()
        description = (data / "dataset_info.json").read_text()
        count = len(examples)
    except Exception as error:
        raise DataNotFoundError(
            f"the {_TFDS} in {folder} cannot be read ({first_line(error)}): prepare "
            "it with file_format='array_record'"
        ) from error
    source = f"{count:,} {split} images of {_TFDS} {builder.version}"
    return LabeledImages(
        tuple(names),
        f"{source}, tensorflow-datasets",
        _Prepared(folder, part, description, examples),
    )
