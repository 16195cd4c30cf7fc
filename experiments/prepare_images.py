"""Write the images of ImageNet, or of another folder, once as small JPEG records.

    python -m experiments.prepare_images --images FOLDER --out RECORDS

FOLDER has train/CLASS/*.JPEG and val/CLASS/*.JPEG, or the imagenet2012 that
tensorflow-datasets prepared as array_record. Each image is resized to a shortest side
of 256 pixels and encoded as JPEG of quality 85. An image that is no larger in pixels
and in bytes keeps its own bytes. A damaged image is named and left out. RECORDS can be
read at any index, and replaces FOLDER in experiments.train_imagenet.

To resume an interrupted run, repeat the command. It goes on after the last finished
file of 5,000 images. Finished files that are lost or damaged are written again.

Expected for ImageNet: about 32 GB, at 3.3 s per 1,000 images on one CPU core, which is
ten minutes on eight cores. The result folder contains the records (train-*.array_record
and val-*.array_record), their labels and the sum of the images (train.safetensors and
val.safetensors), the class names (images.json), and the counts in metrics.json.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
import sys
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path

import numpy as np

from experiments.harness import Metrics, Run, UserError, main
from experiments.progress import Progress, plural, say
from zfnet_jax.data.encoding import QUALITY, Chunk, encode_chunk
from zfnet_jax.data.labeled import LabeledImages, open_labeled
from zfnet_jax.data.pipeline import compute_ahead
from zfnet_jax.data.records import (
    DESCRIPTION,
    Index,
    Shard,
    index_path,
    shard_path,
    write_shard,
)
from zfnet_jax.files import DamagedFileError, digest, to_json, write_atomically
from zfnet_jax.results import spell

# Images that a worker returns at a time, and that a shard holds at most.
CHUNK, SHARD = 50, 5_000


@dataclasses.dataclass(kw_only=True)
class PrepareRun(Run):
    """A run without random draws and figures."""

    seed: int = dataclasses.field(default=0, init=False)
    dpi: int = dataclasses.field(default=0, init=False)


def prepare_images(
    run: PrepareRun, images: Path, workers: int | None = None
) -> Metrics:
    """Write the training and validation images as records.

    Args:
        images: Folder with the images.
        workers: Processes that decode and encode, by default one per CPU core. 0 is the
            command's own process alone.
    """
    workers = os.cpu_count() or 1 if workers is None else workers
    splits = {
        "train": open_labeled(images, "train"),
        "val": open_labeled(images, "val"),
    }
    indexes = {
        split: prepare_split(run, split, source, workers)
        for split, source in splits.items()
    }
    train = splits["train"]
    description = {"class_names": train.class_names, "source": train.source}
    write_atomically(run.path / DESCRIPTION, f"{to_json(description)}\n")
    skipped = [line for index in indexes.values() for line in index.skipped]
    yield "data", {split: source.source for split, source in splits.items()}
    yield "classes", len(train.class_names)
    for split, index in indexes.items():
        yield f"{split}_images", len(index.labels)
    yield "skipped_images", len(skipped)
    yield "skipped", skipped
    size = sum(file.stat().st_size for file in run.path.glob("*.array_record"))
    yield "bytes", size
    say(f"{spell(size / 1e6)} MB, {plural(len(skipped), 'damaged image')} left out")


def prepare_split(run: Run, split: str, images: LabeledImages, workers: int) -> Index:
    """Write the shards of a split that are not finished; return the index of all."""
    key = digest(images.digest(), QUALITY, SHARD)
    path, index = index_path(run.path, split), Index(key)
    if path.exists():
        index = Index.read(path)
    if index.key != key:
        raise UserError(
            f"--out {run.path} holds the records of other images: choose another folder"
        )
    first, count = len(index.shards), -(-len(images) // SHARD)
    paths = [shard_path(run.path, split, shard, count) for shard in range(count)]
    for shard in run.track(f"checking {split}", range(first)):
        restore_shard(paths[shard], index.shards[shard], images, shard, workers)
    progress = run.progress(f"preparing {split}")
    with contextlib.closing(encode_ahead(images, first * SHARD, workers)) as chunks:
        for shard in range(first, count):
            part = itertools.islice(chunks, SHARD // CHUNK)
            files = collect(part, index, progress, len(images))
            index.shards.append(write_shard(paths[shard], files))
            index.write(path)
    check_classes(split, images, index)
    return index


def restore_shard(
    path: Path, shard: Shard, images: LabeledImages, number: int, workers: int
) -> None:
    """Write a finished shard again if it is lost or damaged."""
    if path.exists() and digest(path) == shard.digest:
        return
    with contextlib.closing(encode_ahead(images, number * SHARD, workers)) as chunks:
        part = itertools.islice(chunks, SHARD // CHUNK)
        files = itertools.chain.from_iterable(chunk.contents for chunk in part)
        if write_shard(path, files) != shard:
            raise DamagedFileError(
                f"{path} cannot be written again: the images are no longer those it "
                "was made of; choose another --out"
            )


def check_classes(split: str, images: LabeledImages, index: Index) -> None:
    """Refuse a split without images, and training classes without any."""
    counts = np.bincount(index.labels, minlength=len(images.class_names))
    if not counts.any():
        raise DamagedFileError(f"all {len(images):,} {split} images are damaged")
    if split == "train" and not counts.all():
        name = images.class_names[counts.argmin()]
        raise DamagedFileError(
            f"all {split} images of class {name} are damaged: replace them, or remove "
            "the class, and choose another --out"
        )


def encode_ahead(
    images: LabeledImages, first: int, workers: int
) -> Generator[Chunk, None, None]:
    """Encode the images from `first` on, which begins a chunk."""
    count = -(-len(images) // CHUNK)
    encode = functools.partial(encode_chunk, images, CHUNK)
    return compute_ahead(encode, min(first // CHUNK, count), count, workers)


def collect(
    chunks: Iterable[Chunk], index: Index, progress: Progress, total: int
) -> Iterator[bytes]:
    """Yield the JPEG files of chunks, add the rest to an index, and report progress."""
    for chunk in chunks:
        labels = np.array(chunk.labels, np.int32)
        index.labels = np.concatenate([index.labels, labels])
        index.total += chunk.total
        index.skipped += chunk.skipped
        for line in chunk.skipped:
            say(f"left out: {line}", file=sys.stderr)
        progress(len(index.labels) + len(index.skipped), total)
        yield from chunk.contents


if __name__ == "__main__":
    sys.exit(main(prepare_images))
