"""Checkpoints of a training run: the newest good step, or none.

A folder of checkpoints holds one folder per step:

    step_00000012/
        digests.json    sha256 of every other file
        metadata.json   anything the caller wants beside the arrays
        state/          an Orbax checkpoint of the arrays

Orbax keeps no digest of the arrays, so a flipped byte would load silently. A step is
written beside its place and renamed, so a killed run leaves the earlier steps intact.

Of several processes (`jax.distributed`), which all hold the same state, the first
writes and all read.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from zfnet_jax import files
from zfnet_jax.files import DamagedFileError
from zfnet_jax.processes import gather

_DIGESTS, _METADATA, _STATE = "digests.json", "metadata.json", "state"


@dataclasses.dataclass(frozen=True)
class Restored:
    """A step read from disk.

    Attributes:
        step: Number of the step.
        state: Leaves of the state, in the order of `jax.tree.leaves`.
        metadata: The metadata given to `save`.
        damaged: One line for each newer step that was skipped, newest first.
    """

    step: int
    state: list[np.ndarray]
    metadata: dict[str, Any]
    damaged: tuple[str, ...] = ()


def steps(folder: str | os.PathLike[str]) -> list[int]:
    """List the steps of a folder in ascending order, good or damaged."""
    paths = Path(folder).glob("step_*")
    names = (re.fullmatch(r"step_(\d+)", path.name) for path in paths)
    return sorted(int(name[1]) for name in names if name)


def save(
    folder: str | os.PathLike[str],
    step: int,
    state: PyTree,
    metadata: Mapping[str, Any],
    keep: int = 2,
) -> None:
    """Write one step, replacing one of the same number, and remove old ones.

    All but the first of several processes return at once.

    Args:
        folder: Folder of the steps; created if necessary.
        step: Number of the step.
        state: Pytree of numeric arrays.
        metadata: Anything that `files.to_json` takes.
        keep: Number of steps to keep, this one included.

    Raises:
        OSError: The folder cannot be written or the disk is full; the earlier steps are
            intact.
    """
    if jax.process_index():
        return
    folder = Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    part, target = folder / ".unfinished", _path(folder, step)
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir()
        _write_arrays(part / _STATE, leaves)
        files.write_atomically(part / _METADATA, files.to_json(metadata))
        files.write_atomically(part / _DIGESTS, files.to_json(_digests(part)))
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    for old in [number for number in steps(folder) if number <= step][:-keep]:
        shutil.rmtree(_path(folder, old))


def restore(
    folder: str | os.PathLike[str],
    check: Callable[[Mapping[str, Any]], object] = lambda metadata: None,
) -> Restored | None:
    """Read the newest good step; the same in all processes.

    Args:
        folder: Folder of the steps.
        check: Called with the metadata of a step whose digests match. A KeyError or
            TypeError marks the step as damaged; other errors pass through.

    Returns:
        The step, or None if the folder holds none.

    Raises:
        DamagedFileError: Every step is damaged.
        ValueError: Processes read different steps.
    """
    folder = Path(folder).absolute()
    restored = _read_newest(folder, check)
    numbers = gather(None if restored is None else restored.step)
    if len({*numbers}) > 1:
        raise ValueError(
            f"{folder} does not hold the same checkpoints for all processes (steps "
            f"{', '.join(map(str, numbers))}): give a folder that they share"
        )
    return restored


def _read_newest(
    folder: Path, check: Callable[[Mapping[str, Any]], object]
) -> Restored | None:
    damaged: list[str] = []
    for step in reversed(steps(folder)):
        try:
            state, metadata = _read(_path(folder, step), check)
        except DamagedFileError as error:
            damaged.append(f"step {step} is damaged: {error}")
        else:
            return Restored(step, state, metadata, tuple(damaged))
    if damaged:
        raise DamagedFileError(
            f"every checkpoint in {folder} is damaged ({'; '.join(damaged)}): "
            "start again in another folder"
        )
    return None


def _path(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}"


def _digests(path: Path) -> dict[str, str]:
    paths = sorted(file for file in path.rglob("*") if file.is_file())
    names = {file.relative_to(path).as_posix(): file for file in paths}
    return {name: files.digest(names[name]) for name in names if name != _DIGESTS}


def _read(
    path: Path, check: Callable[[Mapping[str, Any]], object]
) -> tuple[list[np.ndarray], dict[str, Any]]:
    try:
        digests = json.loads((path / _DIGESTS).read_bytes())
        current = _digests(path)
        for name in sorted({*digests, *current}):
            if digests.get(name) != current.get(name):
                raise DamagedFileError(f"{name} is not the file that was written")
        metadata = json.loads((path / _METADATA).read_bytes())
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DamagedFileError(f"{_DIGESTS}: {error}") from error
    try:
        check(metadata)
    except (KeyError, TypeError) as error:
        raise DamagedFileError(f"{_METADATA}: {error!r}") from error
    try:
        with _checkpointer() as checkpointer:
            return checkpointer.restore(path / _STATE), metadata
    except Exception as error:  # Orbax raises many kinds
        raise DamagedFileError(f"{_STATE} cannot be read") from error


def _write_arrays(path: Path, leaves: list[np.ndarray]) -> None:
    # When the disk fills up, each of Orbax's threads logs a traceback of its own.
    needed = (1 << 16) + sum(1024 + 1.1 * leaf.nbytes for leaf in leaves)
    if shutil.disk_usage(path.parent).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with _checkpointer() as checkpointer:
            checkpointer.save(path, leaves)
    except ValueError as error:  # how TensorStore reports a failing write
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path)) from error
    finally:
        log.setLevel(level)


def _checkpointer() -> Any:
    # Imported on use: it takes half a second.
    import orbax.checkpoint as ocp

    # Orbax would wait for the other processes.
    index = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=index,
        active_processes={index},
        barrier_sync_key_prefix=f"process{index}",
    )
    # Weights hardly compress, and trying doubles the time.
    handler = ocp.PyTreeCheckpointHandler(
        use_compression=False, multiprocessing_options=alone
    )
    return ocp.Checkpointer(handler, multiprocessing_options=alone)
