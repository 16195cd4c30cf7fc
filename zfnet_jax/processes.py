"""Values that the processes of one run exchange (`jax.distributed`)."""

from __future__ import annotations

import pickle
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")


def gather(value: T) -> list[T]:
    """Collect a value of every process, in their order; all processes must call it."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(data.size))
    padded = np.resize(data, sizes.max())
    rows = multihost_utils.process_allgather(padded)
    pairs = zip(rows, sizes, strict=True)
    return [pickle.loads(row[:size].tobytes()) for row, size in pairs]


def broadcast(value: T | None) -> T:
    """Return the value of process 0; all processes must call it."""
    return gather(value if jax.process_index() == 0 else None)[0]  # pyright: ignore[reportReturnType]
