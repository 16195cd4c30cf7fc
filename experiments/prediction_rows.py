"""The rows that `predict` has done so far, kept in a file while it runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from zfnet_jax.files import read_arrays, write_arrays


@dataclasses.dataclass
class Rows:
    """The most probable classes of the images that one process has done.

    Attributes:
        kept: Index of each image that could be read, also of those read ahead.
        damaged: By index, the name of each damaged file and the reason.
        classes: [networks, k] per image, best first.
        chances: [networks, k] per image, the probabilities of these classes.
    """

    kept: list[int] = dataclasses.field(default_factory=list)
    damaged: dict[int, dict[str, str]] = dataclasses.field(default_factory=dict)
    classes: list[np.ndarray] = dataclasses.field(default_factory=list)
    chances: list[np.ndarray] = dataclasses.field(default_factory=list)

    @classmethod
    def load(cls, file: Path) -> Rows:
        """Read rows; none without such a file, and if it is damaged."""
        arrays = read_arrays(file)
        try:
            kept, damaged = arrays["kept"].tolist(), json.loads(str(arrays["damaged"]))
            classes, chances = [*arrays["classes"]], [*arrays["chances"]]
        except (KeyError, ValueError):
            return cls()
        return cls(kept, dict(damaged), classes, chances)

    def save(self, file: Path) -> None:
        """Write the rows that are done; the file is replaced as a whole."""
        kept = self.kept[: len(self.classes)]
        damaged = [pair for pair in self.damaged.items() if pair[0] < kept[-1]]
        write_arrays(
            file,
            kept=kept,
            damaged=json.dumps(damaged),
            classes=self.classes,
            chances=self.chances,
        )
