"""Time mining against the bare forward pass, and measure the memory that it takes.

    python -m benchmarks.mining --data-dir FOLDER --photographs FOLDER

Mining finds the nine strongest activations of every unit of every layer of ZFNET32 over
the 10,000 test images of CIFAR-10, and of every convolution of ZFNET at 224 x 224 over
200 crops of photographs. The other side sends the same images through the same network
in batches of the same size and keeps the logits only. The sides take turns after a
warm-up, and the ratio mining / forward is taken turn by turn. Memory is the peak of a
process of its own (on Linux) that loads all 10,000 images, and mines 1,000 or all.
"""

from __future__ import annotations

import dataclasses
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import tyro
from flax import nnx

import zfnet_jax as zf
from zfnet_jax.data import Dataset, load_cifar10, load_photograph, resize_shortest_side

_BATCH = 256


@dataclasses.dataclass(frozen=True)
class Options:
    """Time mining against the forward pass."""

    data_dir: Path | None = None
    """Folder of prepared tensorflow-datasets."""
    photographs: Path | None = None
    """Folder of JPEG photographs; without it that row is left out."""
    turns: int = 5
    """How often the two sides take turns."""
    memory_of: int | None = None
    """Only mine so many images of CIFAR-10, and print the peak memory in MB."""


def compared(
    title: str,
    model: zf.ConvNet,
    images: np.ndarray,
    layers: list[str],
    batch_size: int,
    turns: int,
    preprocess: Callable | None = None,
) -> None:
    """Time both sides in turn and print a row."""
    graph, weights = nnx.split(model)

    @jax.jit
    def logits(weights, batch):
        x = batch if preprocess is None else preprocess(batch)
        return nnx.merge(graph, weights)(x)

    def forward() -> None:
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            short = batch_size - len(batch)
            batch = np.pad(batch, ((0, short), *[(0, 0)] * 3))
            jax.block_until_ready(logits(weights, batch))

    labels = np.zeros(len(images), np.int32)
    dataset = images
    if preprocess is not None:
        dataset = Dataset(images, labels, ("all",), "images")

    def mine() -> None:
        zf.top_activations(
            model, dataset, layers, preprocess=preprocess, batch_size=batch_size
        )

    seconds: dict[Callable, list[float]] = {forward: [], mine: []}
    for turn in range(turns + 1):
        for side in (forward, mine) if turn % 2 else (mine, forward):
            start = time.perf_counter()
            side()
            if turn:
                seconds[side].append(time.perf_counter() - start)
    ratios = [m / f for f, m in zip(seconds[forward], seconds[mine], strict=True)]
    print(
        f"{title}: mining {statistics.median(seconds[mine]):.1f} s, forward "
        f"{statistics.median(seconds[forward]):.1f} s, ratio "
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})",
        flush=True,
    )


def crops(folder: Path, count: int) -> np.ndarray:
    """So many crops of 224 x 224, of every photograph in turn, uint8."""
    rng = np.random.default_rng(0)
    files = sorted(folder.glob("*.jp*g"))
    photographs = [resize_shortest_side(load_photograph(file)) for file in files]
    found = []
    for index in range(count):
        picture = photographs[index % len(photographs)]
        top, left = (rng.integers(size - 223) for size in picture.shape[:2])
        found.append(picture[top : top + 224, left : left + 224])
    return np.stack(found)


def peak_of_mining(count: int, data_dir: Path | None) -> float:
    """Peak memory of this process in MB, after mining so many images."""
    net = zf.load_pretrained("zfnet32-cifar10")
    whole = load_cifar10("test", data_dir)
    # A view: a copy would be memory of its own.
    dataset = dataclasses.replace(
        whole, images=whole.images[:count], labels=whole.labels[:count]
    )
    layers = [layer.name for layer in net.model.arch.layers]
    zf.top_activations(net.model, dataset, layers, preprocess=net.preprocess)
    # Not getrusage: it starts from what the parent process had.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def main(options: Options) -> None:
    if options.memory_of is not None:
        print(f"{peak_of_mining(options.memory_of, options.data_dir):.0f}")
        return
    net = zf.load_pretrained("zfnet32-cifar10")
    compared(
        "ZFNET32, all layers, 10,000 images of CIFAR-10",
        net.model,
        load_cifar10("test", options.data_dir).images,
        [layer.name for layer in net.model.arch.layers],
        _BATCH,
        options.turns,
        net.preprocess,
    )
    if options.photographs is not None:
        images = crops(options.photographs, 200).astype(np.float32) / 64 - 2
        model = zf.ConvNet(zf.ZFNET, rngs=nnx.Rngs(0))
        layers = [x.name for x in zf.ZFNET.layers if isinstance(x, zf.Conv)]
        title = "ZFNET 224, convolutions, 200 crops of photographs"
        compared(title, model, images, layers, 32, options.turns)
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
