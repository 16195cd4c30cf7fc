"""CIFAR-10 (Krizhevsky 2009), from tensorflow-datasets or the official archive."""

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zfnet_jax.data.dataset import Dataset
from zfnet_jax.download import cache_folder, check, fetch
from zfnet_jax.files import DataNotFoundError

_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
_BATCHES = {
    "train": [f"data_batch_{batch}.bin" for batch in range(1, 6)],
    "test": ["test_batch.bin"],
}
_SIDE = 32
_READ_AT_ONCE = 1000


def load_cifar10(
    split: str,
    data_dir: str | os.PathLike[str] | None = None,
    limit: int | None = None,
) -> Dataset:
    """Decode CIFAR-10 into memory, after fetching it where necessary.

    Args:
        split: `"train"` (50,000 images) or `"test"` (10,000).
        data_dir: A folder with a `cifar10/` that tensorflow-datasets prepared, or with
            the official archive, which is fetched there if it has neither. By default
            $TFDS_DATA_DIR or `~/tensorflow_datasets` if it is prepared there, else the
            archive in the user's cache.
        limit: Read only the first images.

    Returns:
        The images, in the order of the files. `source` says whether their pixels have
        been through JPEG.

    Raises:
        DamagedFileError: The archive is damaged.
        DataNotFoundError: CIFAR-10 is missing and cannot be fetched, or cannot be read.
        ValueError: There is no such split.
    """
    if split not in _BATCHES:
        raise ValueError(f"split must be 'train' or 'test', not {split!r}")
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    root = Path(default if data_dir is None else data_dir).expanduser()
    if (root / "cifar10").is_dir():
        return _read_prepared(root, split, limit)
    return _read_archive(_fetch(None if data_dir is None else root), split, limit)


def _read_prepared(root: Path, split: str, limit: int | None) -> Dataset:
    # Imported on use: it takes a second, and those who train on shapes never need it.
    import tensorflow_datasets as tfds

    encoded = {"image": tfds.decode.SkipDecoding()}
    # A damaged file makes four libraries raise errors that are not documented.
    try:
        builder: Any = tfds.builder("cifar10", data_dir=root)
        source = builder.as_data_source(split=split, decoders=encoded)
        indices = range(len(source))[:limit]
        images = np.empty((len(indices), _SIDE, _SIDE, 3), np.uint8)
        labels = np.empty(len(indices), np.int32)
        formats = set()
        # In parts, so that the encoded images never all stay in memory.
        for start in range(0, len(indices), _READ_AT_ONCE):
            part = indices[start : start + _READ_AT_ONCE]
            for index, example in zip(part, source.__getitems__(part), strict=True):
                with Image.open(io.BytesIO(example["image"])) as image:
                    images[index] = np.asarray(image)
                    formats.add(image.format)
                labels[index] = example["label"]
        names = (Path(builder.data_path) / "label.labels.txt").read_text().split()
    except Exception as error:
        raise DataNotFoundError(
            f"the CIFAR-10 in {root / 'cifar10'} cannot be read "
            f"({first_line(error)}): prepare it with file_format='array_record', or "
            "remove the folder to have the official archive fetched"
        ) from error
    pixels = "re-encoded as JPEG" if "JPEG" in formats else "lossless"
    source = f"CIFAR-10 {builder.version} {split}, tensorflow-datasets, {pixels}"
    return Dataset(images, labels, tuple(names), "cifar10", source=source)


def _fetch(folder: Path | None) -> Path:
    """Path of the official archive, which is fetched and checked if necessary."""
    hint = (
        ", name a folder that has it with --data-dir, or use --dataset shapes, which "
        "needs no files"
    )
    path = fetch(_URL, folder or cache_folder(), hint)
    check(path, "sha256", _SHA256)
    return path


def _read_archive(path: Path, split: str, limit: int | None) -> Dataset:
    with tarfile.open(path) as archive:

        def read(name: str) -> bytes:
            file = archive.extractfile(f"cifar-10-batches-bin/{name}")
            assert file is not None
            return file.read()

        names = read("batches.meta.txt").decode().split()
        content = b"".join(read(name) for name in _BATCHES[split])
    # A byte for the label, then a plane each of red, green and blue.
    records = np.frombuffer(content, np.uint8).reshape(-1, 1 + 3 * _SIDE * _SIDE)
    planes = records[:limit, 1:].reshape(-1, 3, _SIDE, _SIDE)
    return Dataset(
        images=np.ascontiguousarray(planes.transpose(0, 2, 3, 1)),
        labels=records[:limit, 0].astype(np.int32),
        class_names=tuple(names),
        name="cifar10",
        source=f"CIFAR-10 {split}, the official archive, lossless",
    )


def first_line(error: Exception) -> str:
    """Shorten the message of an error to its first line."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
