"""Images per second that the input pipeline reads, beside what a training step takes.

    python -m benchmarks.input_pipeline --folders FOLDER RECORDS

Batches are decoded, resized to a shortest side of 256 and cut out, in random order, by
0 (the process itself), 1, 2 and 4 worker processes. Starting the workers and the first
batches are not counted. The step is forward, backward and update of ZFNET on batches of
the same size in float32, on one device. An image of a folder is decoded at its full
size; records hold images that experiments.prepare_images made small.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from pathlib import Path

import jax
import numpy as np
import tyro

import zfnet_jax as zf
from benchmarks.training_step import jax_side
from zfnet_jax.data import LabeledImages, open_labeled, read_batches


@dataclasses.dataclass(frozen=True)
class Options:
    """Time the input pipeline and a training step."""

    folders: tuple[Path, ...]
    """Folders of images or records, as for experiments.train_imagenet."""
    workers: tuple[int, ...] = (0, 1, 2, 4)
    """Worker processes."""
    batch_size: int = 32
    """Images per batch."""
    batches: int = 16
    """Batches to time."""


def time_reading(images: LabeledImages, workers: int, options: Options) -> float:
    """Images per second."""
    warm_up = 1 + 2 * workers
    batches = read_batches(
        images,
        batch_size=options.batch_size,
        seed=0,
        stop=warm_up + 2 * options.batches,
        workers=workers,
    )
    for _ in range(warm_up):
        next(batches)
    began = time.perf_counter()
    for _ in itertools.islice(batches, options.batches):
        pass
    seconds = time.perf_counter() - began
    batches.close()
    return options.batches * options.batch_size / seconds


def time_step(batch_size: int, steps: int = 3) -> float:
    """Images per second of a training step of ZFNET."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch_size, 224, 224, 3), np.float32)
    labels = rng.integers(0, 1000, batch_size).astype(np.int32)
    run = jax_side(zf.ZFNET, images, labels)
    run(1)
    began = time.perf_counter()
    run(steps)
    return steps * batch_size / (time.perf_counter() - began)


def main(options: Options) -> None:
    """Print images per second: a row for each folder, and one for the step."""
    for folder in options.folders:
        images = open_labeled(folder, "train")
        for workers in options.workers:
            rate = time_reading(images, workers, options)
            print(f"{images.source}, {workers} workers: {rate:.0f}", flush=True)
    device = jax.devices()[0].device_kind
    rate = time_step(options.batch_size)
    print(f"training step of ZFNET, {device}: {rate:.0f}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
