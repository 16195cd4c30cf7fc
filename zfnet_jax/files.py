"""Files: written whole or not at all, as strict JSON, with digests."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np


class DataNotFoundError(Exception):
    """Data is missing and could not be fetched; the message says what to do."""


class DamagedFileError(Exception):
    """A file is not what was written: truncated, altered, or of another format."""


def write_atomically(path: str | os.PathLike[str], content: bytes | str) -> Path:
    """Write a file so that it appears complete or not at all, and return its path.

    Text is written as UTF-8; what is not Unicode is escaped.

    Raises:
        OSError: The file cannot be written; the error names it.
    """
    path = Path(path)
    if isinstance(content, str):
        content = content.encode(errors="backslashreplace")
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
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
