"""Files: written whole or not at all, as strict JSON, with digests, out of a zip."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

_WEIGHTS = (".pth", ".pt", ".safetensors")
_ZIP_ERRORS = (struct.error, zipfile.BadZipFile, zlib.error)
# A zip of weights is not much smaller than they are, even where most are zero.
_MOST_PACKED = 50


class DataNotFoundError(Exception):
    """Data is missing and could not be fetched; the message says what to do."""


class DamagedFileError(Exception):
    """A file is not what was written: truncated, altered, or of another format."""


def write_atomically(
    path: str | os.PathLike[str], content: bytes | str | Iterator[bytes]
) -> Path:
    """Write a file so that it appears complete or not at all, and return its path.

    Text is written as UTF-8; what is not Unicode is escaped. Parts are joined.

    Raises:
        OSError: The file cannot be written; the error names it.
    """
    path = Path(path)
    if isinstance(content, str):
        content = content.encode(errors="backslashreplace")
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink()
        if isinstance(error, OSError):
            error.filename = str(path)  # a failing write does not name its file
        raise
    return path


def write_arrays(path: Path, **arrays: Any) -> None:
    """Write arrays by name as NumPy's .npz, atomically; create the folder."""
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getvalue())


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read what `write_arrays` wrote, for what can be computed again.

    Without such a file, and if it is damaged, there are no arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile):
        return {}


@contextlib.contextmanager
def unpack(path: Path) -> Iterator[Path]:
    """Give a file itself, or the one in a zip around it, unpacked for the context.

    Raises:
        DamagedFileError: It is a zip that `extract_single` refuses.
    """
    if not _is_wrapper(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        yield extract_single(path, Path(folder) / "weights")


def _is_wrapper(path: Path) -> bool:
    """Return whether a file is a zip that `torch.save` did not write."""
    if not zipfile.is_zipfile(path):
        return False
    with _open_zip(path) as archive:
        return not any(name.endswith("/data.pkl") for name in archive.namelist())


def extract_single(path: Path, target: Path) -> Path:
    """Extract the only weight file of a zip so that it appears complete or not at all.

    Raises:
        DamagedFileError: The zip is damaged, has no weight file or several, or unpacks
            to far more than its size.
        OSError: The target cannot be written.
    """
    with _open_zip(path) as archive:
        # macOS puts a file of attributes beside every file.
        members = [
            member
            for member in archive.infolist()
            if member.filename.endswith(_WEIGHTS)
            and not Path(member.filename).name.startswith("._")
        ]
        if len(members) != 1:
            raise DamagedFileError(
                f"{path} contains {len(members)} weight files, expected one "
                f"({', '.join(_WEIGHTS)})"
            )
        # zipfile bounds what it holds for these two alone.
        methods = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
        (member,) = members
        is_bomb = member.file_size > _MOST_PACKED * member.compress_size
        if is_bomb or member.compress_type not in methods:
            raise DamagedFileError(
                f"{path} has {member.file_size} bytes packed into "
                f"{member.compress_size}, which is not how weights are published"
            )
        with archive.open(member) as content:
            return write_atomically(target, iter(lambda: content.read(2**20), b""))


@contextlib.contextmanager
def _open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (*_ZIP_ERRORS, EOFError, OSError, RuntimeError, ValueError) as error:
        if getattr(error, "filename", None):  # it cannot be opened, or not written to
            raise
        raise DamagedFileError(f"{path} is truncated or damaged: {error}") from error


def to_json(value: object) -> str:
    """Format a value as strict JSON with sorted keys.

    It takes mappings, sequences, dataclasses, arrays, paths, text, numbers and None,
    nested in any way. A number that is not finite becomes null.
    """
    return json.dumps(
        _plain(value), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False
    )


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        value = np.asarray(value).tolist()
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def digest(*parts: object) -> str:
    """Compute the sha256, in hex, of files, bytes, arrays, or values for `to_json`."""
    sha256 = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            with part.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
        elif isinstance(part, np.ndarray):
            little = np.ascontiguousarray(part, part.dtype.newbyteorder("<"))
            header = f"{little.dtype.str} {little.shape}".encode()
            content = hashlib.sha256(header + little.tobytes()).digest()
        else:
            raw = part if isinstance(part, bytes) else to_json(part).encode()
            content = hashlib.sha256(raw).digest()
        sha256.update(content)
    return sha256.hexdigest()


def slug(name: str) -> str:
    """Turn any name into that of a file in the same folder, distinct for each name."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip(".")[:80] or "-"
    return plain if plain == name else f"{plain}-{digest(name)[:8]}"
