"""Batches of images on the disk, read ahead by worker processes.

The batch of a step is a pure function of seed and step. So the number of the step is
the whole state of a run's input, and a run that stopped goes on with the very next
batch, on any number of processes.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Int, Int32, UInt8

from zfnet_jax.data.labeled import LabeledImages

T = TypeVar("T")
Batch = tuple[UInt8[np.ndarray, "b 256 256 3"], Int32[np.ndarray, " b"]]


def read_batches(
    images: LabeledImages,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    stop: int,
    workers: int = 0,
    process: tuple[int, int] = (0, 1),
) -> Generator[Batch, None, None]:
    """Yield the batches of steps `start` to `stop` of an endless run.

    Every epoch goes through the images in another random order. Images that don't fill
    its last batch are left out.

    Args:
        images: The images.
        batch_size: Images per step, over all processes.
        seed: Seed for the orders.
        start: First step, counted from 0 over all epochs.
        stop: Step before which to stop.
        workers: Processes that read ahead. With 0 a batch is read when it is asked for.
        process: Number of this process, and how many share each batch: each reads its
            own rows.

    Returns:
        An iterator of pixels and labels. It ends the workers when it is closed.

    Raises:
        ValueError: The processes don't divide the batch, or there are fewer images.
        ImportError: grain is not installed.
        DamagedFileError: An image is damaged, once its batch is asked for.
    """
    if batch_size % process[1]:
        raise ValueError(
            f"batch_size {batch_size}: it does not split over {process[1]} processes; "
            "give a multiple of their number"
        )
    if not 0 < batch_size <= len(images):
        raise ValueError(
            f"{len(images)} images do not fill a batch of {batch_size}: choose a "
            "smaller batch size"
        )
    batches = _Batches(images, batch_size, seed, process)
    return compute_ahead(batches.read, start, stop, workers)


@dataclasses.dataclass(frozen=True)
class _Batches:
    images: LabeledImages
    batch_size: int
    seed: int
    process: tuple[int, int]

    def read(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Read the rows of this process of the batch of a step."""
        epoch, place = divmod(step, len(self.images) // self.batch_size)
        number, count = self.process
        size = self.batch_size // count
        first = place * self.batch_size + number * size
        order = _shuffle(len(self.images), self.seed, epoch)
        return self.images.read(order[first : first + size])


# An order of ImageNet takes 10 MB, and tens of milliseconds to draw.
@functools.lru_cache(maxsize=1)
def _shuffle(count: int, seed: int, epoch: int) -> Int[np.ndarray, " n"]:
    return np.random.default_rng([seed, epoch]).permutation(count)


def compute_ahead(
    function: Callable[[int], T], start: int, stop: int, workers: int
) -> Generator[T, None, None]:
    """Yield function(start) to function(stop - 1), computed ahead by worker processes.

    With no workers a value is computed when it is asked for. Arrays in tuples are
    passed through shared memory.

    Raises:
        ValueError: The number of workers is negative.
        ImportError: grain is not installed.
    """
    if workers < 0:
        raise ValueError(f"workers {workers}: give at least 0")
    grain = _import_grain()
    # Threads would share the warnings and stderr that decoding silences.
    alone = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    values = grain.MapDataset.range(start, stop).map(function).to_iter_dataset(alone)
    options = grain.MultiprocessingOptions(num_workers=workers)
    values = values.mp_prefetch(options, worker_init_fn=_start_worker)
    return _iterate(values, range(start, stop), workers)


def _iterate(values: Any, numbers: range, workers: int) -> Generator[Any, None, None]:
    iterator = iter(values)
    try:
        # grain drops values that can't be pickled; that must not go unnoticed.
        for _ in numbers:
            yield next(iterator)
    finally:
        iterator.close()
        if workers:  # grain leaves a value in shared memory in a cycle of references
            gc.collect()


def _import_grain() -> Any:
    try:
        import grain
        from absl import flags
    except ImportError as error:
        raise ImportError(
            'images are read in batches by grain: pip install "zfnet_jax[imagenet]"'
        ) from error
    # Only programs of absl parse the flags that grain's worker processes ask for.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    return grain


def _start_worker(number: int, count: int) -> None:
    """Leave Ctrl-C to the parent, and end with it even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
