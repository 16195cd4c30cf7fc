"""Training states on disk: whole and verified, or not there at all.

A checkpoint directory holds one folder for each step:

    step_00000012/
        SHA256SUMS      digest of every other file, as `sha256sum -c` reads it
        metadata.json   what the caller wants to know beside the arrays
        state/          an Orbax checkpoint of the arrays, by path of the leaf

Orbax keeps no digest of the arrays, so a flipped byte would load silently; here every
file of a step is verified before it is believed. A step is written beside its place
and renamed into it, so that being killed at any moment leaves the earlier steps.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from zfnet_jax.files import DamagedFileError

_DIGESTS = "SHA256SUMS"
_METADATA = "metadata.json"
_STATE = "state"
_UNFINISHED = ".unfinished-"


@dataclasses.dataclass(frozen=True)
class Restored:
    """A state read back from disk.

    Attributes:
        step: Number of the step.
        state: Structure, dtypes and shardings of the template, values of the file.
        metadata: What was given to `save`, as JSON gives it back.
        damaged: One line for each newer step that was skipped, newest first.
    """

    step: int
    state: Any
    metadata: dict[str, Any]
    damaged: tuple[str, ...] = ()


def steps(directory: str | os.PathLike[str]) -> list[int]:
    """Numbers of the steps in a directory, ascending, verified or not."""
    directory = Path(directory).absolute()
    if not directory.is_dir():
        return []
    names = (re.fullmatch(r"step_(\d+)", entry.name) for entry in directory.iterdir())
    return sorted(int(name[1]) for name in names if name)


def save(
    directory: str | os.PathLike[str],
    step: int,
    state: PyTree,
    metadata: Mapping[str, Any],
    keep: int | None = 2,
    keep_steps: Collection[int] = (),
) -> None:
    """Write one step, then remove those that are no longer wanted.

    The step appears under its name only once all of it, with its digests, is on the
    disk. A damaged step of the same number is replaced. One process writes to a
    directory at a time.

    Args:
        directory: Where the steps are kept; made if it is not there.
        step: Number of this step.
        state: Pytree of jax or numpy arrays and Python numbers.
        metadata: Anything that JSON can express.
        keep: Of the steps up to this one, how many to keep; all if None.
        keep_steps: Steps that are never removed.

    Raises:
        FileExistsError: the step is there and good; it is left as it is.
        OSError: the directory cannot be written or the disk is full; the steps that
            were there stay as they were.
        TypeError: a leaf is no array or number, or `metadata` is not JSON.
        ValueError: `step` is negative or `keep` is less than 1.
    """
    if step < 0 or (keep is not None and keep < 1):
        raise ValueError(f"a step >= 0 and keep >= 1 are needed, not {step} and {keep}")
    directory = Path(directory).absolute()
    leaves = {name: _to_numpy(name, leaf) for name, leaf in _named(state).items()}
    target = _step_path(directory, step)
    if target.exists() and not _damage(target):
        raise FileExistsError(f"step {step} is already in {directory}, and is good")
    directory.mkdir(parents=True, exist_ok=True)
    # If the disk fills up meanwhile, each of Orbax's threads prints a traceback, some
    # long after the first has failed. What it adds of its own takes less than this.
    needed = 1.1 * sum(leaf.nbytes + 1024 for leaf in leaves.values()) + (1 << 16)
    if shutil.disk_usage(directory).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))
    for leftover in directory.glob(_UNFINISHED + "*step_*"):
        shutil.rmtree(leftover)

    unfinished = directory / f"{_UNFINISHED}{target.name}"
    try:
        unfinished.mkdir()
        text = json.dumps(dict(metadata), indent=1, sort_keys=True)
        (unfinished / _METADATA).write_text(text + "\n", encoding="utf-8")
        _write(unfinished / _STATE, leaves)
        digests = _format(_digests(unfinished))
        (unfinished / _DIGESTS).write_bytes(digests)
        _flush(unfinished)
        if target.exists():
            _remove(target)
        unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    _flush_one(directory)

    if keep is not None:
        past = [number for number in steps(directory) if number <= step]
        for number in past[:-keep]:
            if number not in keep_steps:
                _remove(_step_path(directory, number))


def restore(directory: str | os.PathLike[str], step: int, template: PyTree) -> Restored:
    """Read one step, bit for bit.

    Args:
        directory: Where the steps are kept.
        step: Which of them.
        template: A pytree of the structure that was saved. Leaves are arrays,
            `jax.ShapeDtypeStruct`s or numbers, and say of what type, shape, dtype and
            sharding the restored leaves are; their values are not read.

    Raises:
        DamagedFileError: a file of the step is missing, extra or changed.
        FileNotFoundError: there is no such step.
        ValueError: the template differs from what was saved.
    """
    path = _step_path(Path(directory).absolute(), step)
    if not path.is_dir():
        there = ", ".join(map(str, steps(directory))) or "none"
        raise FileNotFoundError(f"no step {step} in {directory}; there: {there}")
    if problems := _damage(path):
        raise DamagedFileError(f"{directory}: {_describe(step, problems)}")
    return _read(path, step, template)


def restore_latest(
    directory: str | os.PathLike[str],
    template: PyTree,
    check: Callable[[Mapping[str, Any]], None] = lambda metadata: None,
) -> Restored:
    """Read the newest step that is whole.

    Args:
        directory: Where the steps are kept.
        template: As for `restore`.
        check: Called with the step's metadata before its arrays are read; raises to
            refuse it with a better reason than a template that does not fit.

    Returns:
        The state, with one line in `damaged` for each newer step passed over.

    Raises:
        DamagedFileError: there are steps, and every one of them is damaged.
        FileNotFoundError: there is no step.
        ValueError: the template differs from what was saved.
    """
    directory = Path(directory).absolute()
    damaged: list[str] = []
    for step in reversed(steps(directory)):
        path = _step_path(directory, step)
        if problems := _damage(path):
            damaged.append(_describe(step, problems))
            continue
        check(_read_metadata(path))
        return dataclasses.replace(_read(path, step, template), damaged=tuple(damaged))
    if damaged:
        raise DamagedFileError(
            f"every checkpoint in {directory} is damaged: {'; '.join(damaged)}"
        )
    raise FileNotFoundError(f"no checkpoint in {directory}")


def _step_path(directory: Path, step: int) -> Path:
    return directory / f"step_{step:08d}"


def _remove(path: Path) -> None:
    # A folder that is being deleted must not look like a damaged step.
    doomed = path.with_name(f"{_UNFINISHED}removed-{path.name}")
    path.rename(doomed)
    shutil.rmtree(doomed)


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        _flush_one(path)
    _flush_one(folder)


def _flush_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digests(folder: Path) -> dict[str, str]:
    """sha256 of every file but the list of digests."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or name == _DIGESTS:
            continue
        with path.open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _format(digests: Mapping[str, str]) -> bytes:
    return "".join(f"{sha}  {name}\n" for name, sha in digests.items()).encode()


def _damage(path: Path) -> list[str]:
    """What is wrong with the files of a step; empty if it is whole."""
    try:
        listed = (path / _DIGESTS).read_bytes()
        found = _digests(path)
    except FileNotFoundError as error:
        return [f"{Path(error.filename).name} is missing"]
    except OSError as error:
        return [f"{error.filename or 'a file'} cannot be read: {error.strerror}"]
    if listed == _format(found):
        return []
    lines = (
        line.split("  ", 1) for line in listed.decode(errors="replace").split("\n")
    )
    expected = {line[1]: line[0] for line in lines if len(line) == 2}
    problems = []
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            problems.append(f"{name} is missing")
        elif name not in expected:
            problems.append(f"{name} is not listed in {_DIGESTS}")
        elif found[name] != expected[name]:
            problems.append(f"{name} does not match its sha256")
    return problems or [f"{_DIGESTS} has changed"]


def _describe(step: int, problems: list[str]) -> str:
    return f"step {step} is damaged: {_list(problems)}"


def _list(problems: list[str]) -> str:
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    return ", ".join(problems[:3]) + more


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _named(tree: PyTree) -> dict[str, Any]:
    """Leaves by path; those without elements are left out, as Orbax cannot keep them.

    Raises:
        ValueError: two paths read the same.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {_name(path): leaf for path, leaf in leaves}
    if len(named) != len(leaves):
        raise ValueError("two leaves of the state have one path: a key must not have /")
    return {name: leaf for name, leaf in named.items() if np.size(leaf)}


def _to_numpy(name: str, leaf: Any) -> np.ndarray:
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    if not (jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool)):
        raise TypeError(f"{name} has dtype {dtype}; only numbers can be kept")
    return np.asarray(leaf)


def _kind(leaf: Any) -> str:
    """Dtype and shape of an array, of its abstract form, or of a Python number."""
    leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _like(template: Any, value: np.ndarray) -> Any:
    """The same value as a leaf of the template's type, on the template's devices."""
    if isinstance(template, jax.Array | jax.ShapeDtypeStruct):
        # An array that was bound to no device must stay so: jit refuses to mix one
        # bound to a single device with others spread over a mesh.
        bound = getattr(template, "committed", True)
        return jax.device_put(value, template.sharding if bound else None)
    if isinstance(template, np.ndarray):
        return value
    return value[()] if isinstance(template, np.generic) else value.item()


def _write(path: Path, leaves: dict[str, np.ndarray]) -> None:
    try:
        _orbax(lambda ocp: ocp.save(path, leaves))
    except Exception as error:
        # TensorStore reports a write that the system refused as a ValueError.
        if code := re.search(r"os_error_code='(\d+)'", str(error)):
            number = int(code[1])
            raise OSError(number, os.strerror(number), str(path)) from error
        raise


def _read(path: Path, step: int, template: PyTree) -> Restored:
    wanted = _named(template)
    found = _orbax(lambda ocp: ocp.load(path / _STATE))
    problems = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    problems += [f"{name} is not expected" for name in found.keys() - wanted.keys()]
    for name in wanted.keys() & found.keys():
        if _kind(found[name]) != _kind(wanted[name]):
            kinds = _kind(found[name]), _kind(wanted[name])
            problems.append(f"{name} is {kinds[0]} where {kinds[1]} is expected")
    if problems:
        raise ValueError(
            f"{path} is of another architecture or version: {_list(sorted(problems))}"
        )

    def fill(leaf_path: tuple[Any, ...], leaf: Any) -> Any:
        empty = np.size(leaf) == 0
        value = np.empty(leaf.shape, leaf.dtype) if empty else found[_name(leaf_path)]
        return _like(leaf, value)

    state = jax.tree_util.tree_map_with_path(fill, template)
    return Restored(step, state, _read_metadata(path))


def _read_metadata(path: Path) -> dict[str, Any]:
    return json.loads((path / _METADATA).read_text(encoding="utf-8"))


def _orbax(use: Callable[[Any], Any]) -> Any:
    """What `use` makes of Orbax v1, with the process left as it was.

    Orbax gives the root logger a handler when imported, prints each error several
    times before it raises it, and patches asyncio where an event loop runs, as in a
    notebook: so it is imported here, silenced, and kept to a thread of its own.
    """

    def work() -> Any:
        from orbax.checkpoint import v1 as ocp

        log = logging.getLogger("absl")
        level = log.level
        log.setLevel(logging.CRITICAL)
        context = ocp.Context()
        # Weights hardly compress, and trying doubles the time.
        context.array.saving.use_compression = False
        # Otherwise a folder that cannot be made leaves threads waiting for it.
        context.asynchronous.create_directories_asynchronously = False
        try:
            with context:
                return use(ocp)
        finally:
            log.setLevel(level)

    handler = logging.NullHandler()
    logging.root.addHandler(handler)
    try:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(work).result()
    finally:
        logging.root.removeHandler(handler)
