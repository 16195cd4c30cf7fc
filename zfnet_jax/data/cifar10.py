"""CIFAR-10 (Krizhevsky 2009), from tensorflow-datasets or the official archive."""

import os
import tarfile
from pathlib import Path

import numpy as np

from zfnet_jax.data.dataset import Dataset
from zfnet_jax.data.prepared import find_root, read_prepared
from zfnet_jax.download import cache_folder, check, fetch

_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
_BATCHES = {
    "train": [f"data_batch_{batch}.bin" for batch in range(1, 6)],
    "test": ["test_batch.bin"],
}
_SIDE = 32


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
    root = find_root(data_dir)
    if (root / "cifar10").is_dir():
        return read_prepared(
            root,
            "cifar10",
            split,
            "CIFAR-10",
            "PNG",
            (_SIDE, _SIDE),
            limit=limit,
            otherwise="remove it to have the archive fetched",
        )
    return _read_archive(_fetch(None if data_dir is None else root), split, limit)


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
