"""Time and peak memory of loading published networks, in a new process each time.

    python -m benchmarks.loading

- zfnet-imagenet from a file of the older format, as pytorchcv publishes it.
- vgg16 from a file of either format; torchvision publishes the zip format.

The files have the published names and sizes, and random weights. Memory is what the
process's peak gains over the state after imports and a first computation, as a multiple
of the file's size. The files come from the memory of the system, not from a disk.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tyro

from tests.torch_writer import write_state
from zfnet_jax.arch import ARCHITECTURES
from zfnet_jax.state_dict import list_weights

CASES = {
    "zfnet-imagenet, older format": ("zfnet-imagenet", False),
    "vgg16, older format": ("vgg16", False),
    "vgg16, zip format": ("vgg16", True),
}
# The modules of torchvision's vgg16 that have weights.
_VGG16 = [f"features.{n}" for n in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)]
_VGG16 += [f"classifier.{n}" for n in (0, 3, 6)]
_ZFNET = [f"features.stage{n}.unit1.conv" for n in (1, 2)]
_ZFNET += [f"features.stage3.unit{n}.conv" for n in (1, 2, 3)]
_ZFNET += ["output.fc1.fc", "output.fc2.fc", "output.fc3"]
MODULES = {"vgg16": _VGG16, "zfnet-imagenet": _ZFNET}

_LOAD = """
import re, sys, time
import jax, jax.numpy as jnp
import zfnet_jax as zf
def peak():
    status = open("/proc/self/status").read()
    return 1024 * int(re.search("VmHWM: *([0-9]+)", status.replace("\\t", " "))[1])
jax.jit(lambda x: x + 1)(jnp.ones(3)).block_until_ready()
before, began = peak(), time.perf_counter()
net = jax.block_until_ready(zf.load(sys.argv[1]))
print(time.perf_counter() - began, peak() - before)
"""


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure how long, and with how much memory, published networks load."""

    turns: int = 3
    """Loads of each file."""


def draw_state(name: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield random weights of a network under the published names."""
    generator = np.random.default_rng(0)
    weights = list_weights(ARCHITECTURES[name])
    for module, (*_, shape) in zip(MODULES[name], weights, strict=True):
        yield f"{module}.weight", 0.01 * generator.standard_normal(shape, np.float32)
        yield f"{module}.bias", np.zeros(shape[0], np.float32)


def measure(path: Path) -> tuple[float, float]:
    """Seconds and bytes of a load in a new process."""
    command = [sys.executable, "-c", _LOAD, str(path)]
    output = subprocess.run(command, capture_output=True, check=True).stdout
    seconds, memory = map(float, output.split())
    return seconds, memory


def summarize(values: list[float]) -> str:
    """Format median and range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}..{max(values):.2f})"


def main(options: Options) -> None:
    for title, (name, is_zip) in CASES.items():
        with tempfile.NamedTemporaryFile(suffix=".pth") as file:
            write_state(file, dict(draw_state(name)), is_zip)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
            runs = [measure(Path(file.name)) for _ in range(options.turns)]
        seconds = summarize([run[0] for run in runs])
        memory = summarize([run[1] / size for run in runs])
        print(
            f"{title}, {size / 2**20:.0f} MiB: {seconds} s, {memory} times its size",
            flush=True,
        )


if __name__ == "__main__":
    main(tyro.cli(Options))
