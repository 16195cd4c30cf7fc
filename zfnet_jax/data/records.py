"""Labeled images as records: JPEG files in a few large files with random access.

A folder of records has for each split the shards, such as
train-00000-of-00257.array_record, and an index of them, train.safetensors. images.json
describes the whole, and is written last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
from jaxtyping import Int, Int32, Int64
from safetensors.numpy import save

from zfnet_jax.files import DamagedFileError, digest, write_atomically

SIDE = 256
DESCRIPTION = "images.json"

# JPEG doesn't compress any further, and a group is what one access reads.
_OPTIONS = "group_size:1,uncompressed"
_ERRORS = OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError
_REMEDY = "remove the folder and prepare the images again"
RESTORE = "run experiments.prepare_images again, which writes it anew"


class Shard(NamedTuple):
    """Digests by which a shard is recognized.

    Attributes:
        digest: Its sha256, in hex.
        start: The same of its first 4 KiB, which are checked when it is opened.
    """

    digest: str
    start: str


@dataclasses.dataclass
class Index:
    """Index of the finished shards of a split.

    Attributes:
        key: Digest of everything that determines the records.
        labels: The class of each record.
        total: Sum of the images, as the center 256 x 256.
        shards: The finished shards.
        skipped: What is wrong with each image that is left out.
    """

    key: str
    labels: Int32[np.ndarray, " n"] = dataclasses.field(
        default_factory=lambda: np.zeros(0, np.int32)
    )
    total: Int64[np.ndarray, "256 256 3"] = dataclasses.field(
        default_factory=lambda: np.zeros((SIDE, SIDE, 3), np.int64)
    )
    shards: list[Shard] = dataclasses.field(default_factory=list)
    skipped: list[str] = dataclasses.field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Index:
        """Read an index.

        Raises:
            DamagedFileError: It is missing or damaged.
        """
        try:
            with safetensors.safe_open(path, "numpy") as file:
                texts = json.loads(file.metadata()["index"])
                arrays = {name: file.get_tensor(name) for name in ("labels", "total")}
            if texts.pop("sum") != digest(*arrays.values()):
                raise ValueError("its arrays are not those that were written")
            texts["shards"] = [Shard(*shard) for shard in texts["shards"]]
            return cls(**texts, **arrays)
        except _ERRORS as error:
            raise DamagedFileError(
                f"{path} is missing or damaged: {_REMEDY}"
            ) from error

    def write(self, path: Path) -> None:
        """Write the index so that it appears complete or not at all."""
        texts = {name: getattr(self, name) for name in ("key", "shards", "skipped")}
        arrays = {"labels": self.labels, "total": self.total}
        texts["sum"] = digest(*arrays.values())
        write_atomically(path, save(arrays, {"index": json.dumps(texts)}))


def shard_path(folder: Path, split: str, shard: int, count: int) -> Path:
    """Path of a shard of a split."""
    return folder / f"{split}-{shard:05d}-of-{count:05d}.array_record"


def index_path(folder: Path, split: str) -> Path:
    """Path of the index of a split."""
    return folder / f"{split}.safetensors"


def write_shard(path: Path, contents: Iterable[bytes]) -> Shard:
    """Write a shard so that it appears complete or not at all.

    Raises:
        OSError: It cannot be written.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    part = path.with_name(f".{path.name}.part")
    try:
        with contextlib.closing(ArrayRecordWriter(str(part), _OPTIONS)) as writer:
            for content in contents:
                writer.write(content)
    except RuntimeError as error:  # as array_record says that the disk is full
        raise OSError(str(error)) from error
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)
    return Shard(digest(path), _digest_start(path))


def _digest_start(path: Path) -> str:
    with path.open("rb") as file:
        return digest(file.read(1 << 12))


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """The records of a split.

    Attributes:
        paths: Its shards.
        index: Index of the shards.
        shards: The same shards, opened.
        ends: Number of records up to and with each shard.
    """

    paths: list[Path]
    index: Index
    shards: list[Any]
    ends: Int[np.ndarray, " shards"]

    @classmethod
    def open(cls, folder: Path, split: str) -> Records:
        """Open the records of a split.

        Raises:
            DamagedFileError: A shard is missing, truncated or another than was written,
                or the index is damaged.
        """
        index = Index.read(index_path(folder, split))
        count = len(index.shards)
        paths = [shard_path(folder, split, shard, count) for shard in range(count)]
        shards = [
            _open_shard(path, shard.start)
            for path, shard in zip(paths, index.shards, strict=True)
        ]
        ends = np.cumsum([len(shard) for shard in shards])
        return cls(paths, index, shards, ends)

    def __len__(self) -> int:
        """Number of records."""
        return len(self.index.labels)

    def fetch(self, index: int) -> tuple[bytes, int]:
        """Read the content and the label of a record.

        Raises:
            DamagedFileError: It is damaged.
        """
        shard, place = self._locate(index)
        try:
            return self.shards[shard][place], int(self.index.labels[index])
        except RuntimeError as error:
            raise DamagedFileError(f"{self.name(index)} is damaged") from error

    def labels(self, indices: Int[np.ndarray, " b"]) -> Int32[np.ndarray, " b"]:
        """Labels of records."""
        return self.index.labels[indices]

    def name(self, index: int) -> str:
        """Name a record by its shard and its place there."""
        shard, place = self._locate(index)
        return f"{self.paths[shard]}, record {place},"

    def digest(self) -> str:
        """Compute the sha256, in hex, of the labels and of all shards."""
        return digest(self.index.labels, self.index.shards)

    def _locate(self, index: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self.ends, index, side="right"))
        return shard, index - int(self.ends[shard - 1] if shard else 0)


def _open_shard(path: Path, start: str) -> Any:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    try:
        if _digest_start(path) != start:
            raise DamagedFileError(
                f"{path} is not the file that was written under this name: {RESTORE}"
            )
        return ArrayRecordDataSource([path])
    except (OSError, RuntimeError) as error:
        raise DamagedFileError(
            f"{path} is missing, truncated or damaged: {RESTORE}"
        ) from error
