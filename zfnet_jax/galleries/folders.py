"""The folders of a gallery, each of which is complete or missing."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from zfnet_jax.files import digest, to_json, write_atomically
from zfnet_jax.processes import broadcast


@dataclasses.dataclass(frozen=True)
class Folders:
    """Folders that process 0 writes, and keeps while their inputs are the same.

    Each is made under a temporary name and then renamed. Its record.json holds a key,
    the digest of all that it was computed from.

    Attributes:
        root: The folder that holds them.
        inputs: Digest of what all of them are computed from.
    """

    root: Path
    inputs: str

    def read(self, name: str) -> dict[str, Any]:
        """Read the record of a folder; empty if there is none."""
        file = self.root / name / "record.json"
        return json.loads(file.read_bytes()) if file.exists() else {}

    def is_new(self, name: str, *inputs: Any) -> bool:
        """Tell all processes whether a folder is to be written."""
        key = digest(self.inputs, *inputs)
        is_first = jax.process_index() == 0
        return broadcast(self.read(name).get("key") != key if is_first else None)

    def remove(self, name: str) -> None:
        """Remove a folder, if it is there."""
        if jax.process_index() == 0:
            shutil.rmtree(self.root / name, ignore_errors=True)

    @contextlib.contextmanager
    def replace(self, name: str, *inputs: Any) -> Iterator[Path]:
        """Make a folder under another name, and rename it once it is complete."""
        home, part, old = self.root / name, self.root / ".part", self.root / ".old"
        for folder in (part, old):
            shutil.rmtree(folder, ignore_errors=True)
        part.mkdir()
        try:
            yield part
            record = json.loads((part / "record.json").read_bytes())
            record["key"] = digest(self.inputs, *inputs)
            write_atomically(part / "record.json", to_json(record))
            home.parent.mkdir(exist_ok=True)
            if home.exists():
                home.rename(old)
            part.rename(home)
        finally:
            for folder in (part, old):
                shutil.rmtree(folder, ignore_errors=True)
