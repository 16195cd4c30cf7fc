"""Labeled images that tensorflow-datasets prepared, read without TensorFlow."""

import contextlib
import functools
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zfnet_jax.data.dataset import Dataset
from zfnet_jax.files import DataNotFoundError

_READ_AT_ONCE = 1000


def find_root(data_dir: str | os.PathLike[str] | None) -> Path:
    """Folder of prepared datasets, by default that of tensorflow-datasets itself."""
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(default if data_dir is None else data_dir).expanduser()


def read_prepared(
    root: Path,
    name: str,
    split: str,
    title: str,
    original: str,
    image_hw: tuple[int, int],
    fit: Callable[[np.ndarray], np.ndarray] = np.asarray,
    limit: int | None = None,
    otherwise: str = "remove the folder",
) -> Dataset:
    """Decode labeled images into memory.

    Args:
        root: Folder of prepared datasets.
        name: Name of the dataset in tensorflow-datasets.
        split: Name of a split, or several joined by "+".
        title: Name of the dataset for readers.
        original: Format of the images where tensorflow-datasets alone prepared them.
        image_hw: Rows and columns of the images.
        fit: Brings RGB pixels to this size.
        limit: Read only the first images.
        otherwise: What to do if the dataset cannot be read and not be prepared again.

    Returns:
        The images, in the order of the files.

    Raises:
        DataNotFoundError: The dataset is damaged.
    """
    # Imported on use: it takes a second, and those who train on shapes never need it.
    import tensorflow_datasets as tfds

    encoded = {"image": tfds.decode.SkipDecoding()}
    name_damage = functools.partial(_name_damage, root / name, otherwise)
    with name_damage():
        builder: Any = tfds.builder(name, data_dir=root)
        examples = builder.as_data_source(split=split, decoders=encoded)
        names = (Path(builder.data_path) / "label.labels.txt").read_text().split()
        indices = range(len(examples))[:limit]
    images = np.empty((len(indices), *image_hw, 3), np.uint8)
    labels = np.empty(len(indices), np.int32)
    formats = set()
    # In parts, so that the encoded images never all stay in memory.
    for start in range(0, len(indices), _READ_AT_ONCE):
        part = indices[start : start + _READ_AT_ONCE]
        with name_damage():
            contents = examples.__getitems__(part)
        for index, example in zip(part, contents, strict=True):
            with name_damage(), Image.open(io.BytesIO(example["image"])) as image:
                pixels = np.asarray(image.convert("RGB"))
            formats.add(image.format)
            labels[index] = example["label"]
            images[index] = fit(pixels)
    source = f"{title} {builder.version} {split}, tensorflow-datasets"
    if other := sorted(formats - {original}):
        source += f", re-encoded as {' and '.join(other)}"
    return Dataset(images, labels, tuple(names), name, source=source)


@contextlib.contextmanager
def _name_damage(folder: Path, otherwise: str) -> Iterator[None]:
    # A damaged file makes four libraries raise errors that are not documented.
    try:
        yield
    except Exception as error:
        raise DataNotFoundError(
            f"{folder} cannot be read ({first_line(error)}): prepare it with "
            f"file_format='array_record', or {otherwise}"
        ) from error


def first_line(error: Exception) -> str:
    """Shorten the message of an error to its first line."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
