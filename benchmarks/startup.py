"""Time what a user waits for before anything is computed.

    pip install -e ".[keras]" && KERAS_BACKEND=jax python -m benchmarks.startup

- Importing zfnet_jax, in a process that has imported jax and flax already, each time in
  a new process.
- `python -m experiments.project --help`.
- `zf.network` on Keras' ResNet50 at 224 x 224 with random weights, and its table of
  layers, in this process; left out where there is no Keras on the JAX backend.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import tyro

import zfnet_jax as zf

_IMPORT = """
import time
import jax, flax.nnx
began = time.perf_counter()
import zfnet_jax
print(time.perf_counter() - began)
"""


@dataclasses.dataclass(frozen=True)
class Options:
    """Time imports, the help text and reading a Keras model."""

    turns: int = 5
    """Repetitions of each."""


def time_import() -> float:
    """Seconds to import zfnet_jax after jax and flax."""
    command = [sys.executable, "-c", _IMPORT]
    return float(subprocess.run(command, capture_output=True, check=True).stdout)


def time_help() -> float:
    """Seconds for a command's help text."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "experiments.project", "--help"]
    subprocess.run(command, capture_output=True, check=True)
    return time.perf_counter() - began


def time_keras() -> float:
    """Seconds to read ResNet50 and print it."""
    import keras

    applications: Any = keras.applications
    model = applications.ResNet50(weights=None, classifier_activation=None)
    began = time.perf_counter()
    str(zf.network(model))
    return time.perf_counter() - began


def report(title: str, measure: Callable[[], float], turns: int) -> None:
    """Print median and range."""
    measure()
    seconds = [measure() for _ in range(turns)]
    low, high = min(seconds), max(seconds)
    print(f"{title}: {statistics.median(seconds):.2f} s ({low:.2f}..{high:.2f})")


def main(options: Options) -> None:
    report("import zfnet_jax beyond jax and flax", time_import, options.turns)
    report("python -m experiments.project --help", time_help, options.turns)
    if os.environ.get("KERAS_BACKEND") == "jax":
        title = "zf.network on Keras' ResNet50 at 224, with its table"
        report(title, time_keras, options.turns)


if __name__ == "__main__":
    main(tyro.cli(Options))
