"""Time mining against the bare forward pass, and measure the memory that it takes.

    python -m benchmarks.mining --data-dir FOLDER --photographs FOLDER

Mining finds the nine strongest activations of every unit:

- of every layer of the shipped network over the 10,000 test images of CIFAR-10;
- of every layer of SqueezeNet v1.0, a plain function read by `zf.network`, with random
  weights, over 200 crops of photographs or of noise;
- of every convolution of ZFNET at 224 x 224 over 200 crops of photographs.

The other side sends the same images through the same network, jitted, in batches of the
same size and keeps the logits only. The sides take turns after a warm-up, and the ratio
mining / forward is taken turn by turn. Memory is the peak of a process of its own (on
Linux) that loads all 10,000 images, and mines 1,000 or all.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from flax import nnx

import zfnet_jax as zf
from benchmarks.turns import take_turns
from tests.networks import random_tensors
from zfnet_jax.data import (
    Preprocessed,
    load_cifar10,
    load_photograph,
    resize_shortest_side,
)
from zfnet_jax.imagenet import squeezenet

_BATCH = 256


@dataclasses.dataclass(frozen=True)
class Options:
    """Time mining against the forward pass."""

    data_dir: Path | None = None
    """Folder of prepared tensorflow-datasets."""
    photographs: Path | None = None
    """Folder of JPEG photographs; noise takes their place without it."""
    turns: int = 5
    """Turns of each side."""
    memory_of: int | None = None
    """Only mine this many images of CIFAR-10, and print the peak memory in MB."""


def compare(
    title: str,
    model: Any,
    forward: Callable[[Any, jax.Array], jax.Array],
    weights: Any,
    images: np.ndarray,
    layers: Sequence[str] | None,
    batch_size: int,
    turns: int,
) -> None:
    """Mine `model`, and run `forward`, the same as a function of weights, in turn."""
    logits = jax.jit(forward)

    def run() -> None:
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            batch = np.pad(batch, ((0, batch_size - len(batch)), *[(0, 0)] * 3))
            jax.block_until_ready(logits(weights, batch))

    def mine() -> None:
        zf.top_activations(model, images, layers, batch_size=batch_size)

    # The ratio is of the first side to the second.
    result = take_turns(mine, run, turns)
    print(
        f"{title}: mining {result.theirs:.1f} s, forward {result.ours:.1f} s, "
        f"ratio {result}",
        flush=True,
    )


def crops(folder: Path, count: int) -> np.ndarray:
    """Crops of 224 x 224, of every photograph in turn, uint8."""
    rng = np.random.default_rng(0)
    files = sorted(folder.glob("*.jp*g"))
    photographs = [resize_shortest_side(load_photograph(file)) for file in files]
    parts = []
    for index in range(count):
        picture = photographs[index % len(photographs)]
        top, left = (rng.integers(size - 223) for size in picture.shape[:2])
        parts.append(picture[top : top + 224, left : left + 224])
    return np.stack(parts)


def peak_of_mining(count: int, data_dir: Path | None) -> float:
    """Peak memory of this process in MB, after mining `count` images."""
    net = zf.load("zfnet32-cifar10")
    images = load_cifar10("test", data_dir).images
    assert net.preprocess is not None
    zf.top_activations(net, Preprocessed(images[:count], net.preprocess))
    # Not getrusage: it starts from what the parent process had.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def main(options: Options) -> None:
    if options.memory_of is not None:
        print(f"{peak_of_mining(options.memory_of, options.data_dir):.0f}")
        return
    if options.photographs is None:
        images = np.random.default_rng(0).uniform(-2, 2, (200, 224, 224, 3))
        images = images.astype(np.float32)
    else:
        images = crops(options.photographs, 200).astype(np.float32) / 64 - 2
    plain = squeezenet.V1_0
    params = plain.convert("random", random_tensors(plain.shapes))
    compare(
        "SqueezeNet 224, all layers, 200 crops",
        zf.network(plain.apply, plain.image_shape, params=params),
        plain.apply,
        params,
        images,
        None,
        32,
        options.turns,
    )
    model = zf.ConvNet(zf.ZFNET, rngs=nnx.Rngs(0))
    call = zf.ConvNet.__call__
    layers = [x.name for x in zf.ZFNET.layers if isinstance(x, zf.Conv)]
    title = "ZFNET 224, convolutions, 200 crops"
    compare(title, model, call, model, images, layers, 32, options.turns)

    net = zf.load("zfnet32-cifar10")
    assert net.preprocess is not None
    compare(
        "The shipped network, all layers, 10,000 images of CIFAR-10",
        net,
        call,
        net.model,
        np.asarray(net.preprocess(load_cifar10("test", options.data_dir).images)),
        None,
        _BATCH,
        options.turns,
    )
    peaks = []
    for count in (1_000, 10_000):
        command = [sys.executable, "-m", "benchmarks.mining", "--memory-of", str(count)]
        if options.data_dir is not None:
            command += ["--data-dir", str(options.data_dir)]
        done = subprocess.run(command, capture_output=True, check=True, text=True)
        peaks.append(float(done.stdout))
    print(
        f"peak memory: {peaks[0]:.0f} MB with 1,000 images, {peaks[1]:.0f} MB with "
        f"10,000, ratio {peaks[1] / peaks[0]:.2f}"
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
