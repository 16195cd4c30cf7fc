"""Measure training, projections, mining and occlusion on a GPU in eight minutes.

    python -m benchmarks.gpu --data-dir FOLDER --out gpu.md

Prints a table for BENCHMARKS.md, each row as soon as it is measured:

- a training step of ZFNET at 224 x 224, with TF32 and in bfloat16, and its share of the
  card's peak;
- the training time to 81.22%, 90% and 94% of the validation images of CIFAR-10, which
  are split off from the training images;
- projections of all units of a layer, and occlusion;
- mining, against the forward pass alone.

Where PyTorch and Captum are installed with CUDA they do the same on the same card, in
turn with ours: PyTorch compiled, channels_last, with TF32 or autocast. A ratio above 1
means that ours is faster. Each part has a budget of seconds; one that fails or runs out
is named under the table, and the others go on.

`--dry` runs every part on tiny networks, on any device and in seconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx

import zfnet_jax as zf
from benchmarks.training_step import jax_side
from benchmarks.turns import take_turns, time_alone
from zfnet_jax.arch import ZFNET32_WIDE
from zfnet_jax.data import load_cifar10, make_shapes
from zfnet_jax.inference import evaluate
from zfnet_jax.recipes import LONG, Recipe
from zfnet_jax.training import split_validation

_SECONDS = 470
# TFLOP/s of dense products with TF32 and bfloat16 inputs, by the vendor's data sheets.
# The first name that a device's contains counts.
PEAKS = {
    "H100 PCIe": (378, 756),
    "H100": (495, 989),
    "H200": (495, 989),
    "A100": (156, 312),
    "L40S": (183, 362),
    "L4": (60, 121),
    "A10": (62, 125),
    "RTX 4090": (83, 165),
    "RTX 3090": (36, 71),
}
_PRECISIONS = {"TF32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure on a GPU."""

    data_dir: Path | None = None
    """Folder of CIFAR-10, by default $TFDS_DATA_DIR."""
    out: Path | None = None
    """File for the table."""
    dry: bool = False
    """Run everything on tiny networks, to know that it runs."""


class Target(NamedTuple):
    """An accuracy to reach on validation images.

    The learning rate is scheduled for so many epochs; training ends with the first one
    after so many seconds, compilation included.
    """

    accuracy: float
    arch: zf.Architecture
    recipe: Recipe
    epochs: int
    seconds: float
    goal: str = ""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured, and how often."""

    arch: zf.Architecture = zf.ZFNET
    plain: zf.Architecture = zf.ZFNET_PLAIN
    batch: int = 256
    steps: int = 20
    turns: int = 5
    layer: str = "conv5"
    neurons: int = 4
    mined: int = 1024
    square: int = 32
    stride: int = 16
    targets: tuple[Target, ...] = (
        Target(0.8122, zf.ZFNET32, zf.FAST, 6, 50, "< 15 s"),
        Target(0.90, ZFNET32_WIDE, LONG, 25, 90, "< 60 s"),
        Target(0.94, ZFNET32_WIDE, LONG, 80, 90),
    )


_TINY = zf.Architecture(
    "TINY",
    (12, 12),
    (
        zf.Conv("conv1", 4, kernel=3, stride=2),
        zf.MaxPool("pool1"),
        zf.Conv("conv2", 3, kernel=2),
        zf.Dense("fc3", 5),
        zf.Dense("logits", 10, relu=False),
    ),
)
DRY = Sizes(
    arch=_TINY,
    plain=_TINY,
    batch=2,
    steps=1,
    turns=1,
    layer="conv2",
    neurons=1,
    mined=2,
    square=6,
    stride=6,
    targets=(
        Target(1.0, _TINY, dataclasses.replace(zf.FAST, optimizer=optax.sgd), 2, 0),
    ),
)


class Row(NamedTuple):
    """A row of the table, as text."""

    what: str
    ours: str
    theirs: str = ""
    ratio: str = ""
    goal: str = ""


class OutOfTime(Exception):
    """The budget of a part is spent."""


class Part(NamedTuple):
    """One part: a generator of rows, and its budget in seconds."""

    name: str
    seconds: float
    run: Callable[[Options, Sizes], Iterator[Row]]


# Training steps.


def measure_training(options: Options, sizes: Sizes) -> Iterator[Row]:
    """Time steps of the large network, and compare with PyTorch compiled."""
    arch, batch = sizes.arch, sizes.batch
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch, *arch.input_hw, arch.channels), np.float32)
    labels = rng.integers(0, arch.num_classes, batch).astype(np.int32)
    flop = count_flop(arch) * batch
    for index, (name, dtype) in enumerate(_PRECISIONS.items()):
        with jax.default_matmul_precision("tensorfloat32"):
            steps = jax_side(arch, images, labels, dtype)
            theirs = None
            if has_torch(options):
                theirs = compile_torch(arch, images, labels, name, options.dry)
            pair = compare(
                lambda run=steps: run(sizes.steps),
                theirs and (lambda run=theirs: run(sizes.steps)),
                sizes.turns,
            )
        rate = sizes.steps / pair.ours
        peak = find_peak(jax.devices()[0].device_kind, index)
        share = f", {rate * flop / peak:.2f} of peak" if peak else ""
        goal = ""
        if dtype == jnp.bfloat16:
            goal = "ratio ≥ 1.0, ≥ 0.35 of peak"
        yield Row(
            f"training step, {arch.name}, {name}, batch {batch}",
            f"{batch * rate:,.0f} images/s{share}",
            f"{batch * sizes.steps / pair.theirs:,.0f} images/s" if pair.theirs else "",
            pair.ratio,
            goal,
        )


def count_flop(arch: zf.Architecture) -> int:
    """Count the operations of a training step for one image.

    Each multiplication and its addition occur three times: in the forward pass, for the
    gradient of the weights, and for that of the inputs, except in the first layer.
    """
    net = zf.network(zf.ConvNet(arch, rngs=nnx.Rngs(0)))
    first = net.layers[arch.layers[0].name].multiply_adds
    return 2 * (3 * net.multiply_adds - first)


def find_peak(kind: str, index: int) -> float | None:
    """Look up the peak of a device in FLOP/s: of TF32 (0) or of bfloat16 (1)."""
    for name, peaks in PEAKS.items():
        if name in kind:
            return 1e12 * peaks[index]
    return None


def compile_torch(
    arch: zf.Architecture,
    images: np.ndarray,
    labels: np.ndarray,
    precision: str,
    dry: bool,
) -> Callable[[int], None]:
    """The same network and step in PyTorch, compiled."""
    import torch
    from torch import nn

    from benchmarks.torch_network import torch_network

    device = "cpu" if dry else "cuda"
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    model = torch_network(arch, inplace=True).to(device)
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, 0.9, fused=not dry)
    compiled = torch.compile(model, backend="eager" if dry else "inductor")
    x = torch.from_numpy(images).permute(0, 3, 1, 2).to(device)
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.from_numpy(labels).long().to(device)
    cast = torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16")

    def steps(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            with cast:
                loss = nn.functional.cross_entropy(compiled(x), y)
            loss.backward()
            optimizer.step()
        if not dry:
            torch.cuda.synchronize()

    return steps


# Time to an accuracy.


def measure_accuracy(options: Options, sizes: Sizes) -> Iterator[Row]:
    """Train on CIFAR-10 until each accuracy is reached on validation images."""
    images = (
        make_shapes(300) if options.dry else load_cifar10("train", options.data_dir)
    )
    images, validation = split_validation(images, len(images) // 10, seed=0)
    assert validation is not None
    for target in sizes.targets:
        best, epoch, began = 0.0, None, time.monotonic()
        how = {"recipe": target.recipe, "epochs": target.epochs, "dtype": jnp.bfloat16}
        for epoch in zf.train(target.arch, images, **how):
            net = zf.network(epoch.model, preprocess=epoch.preprocess)
            logits = evaluate(net, validation.images)
            accuracy = float((logits.argmax(-1) == validation.labels).mean())
            best = max(best, accuracy)
            is_late = time.monotonic() - began > target.seconds
            if accuracy >= target.accuracy or is_late:
                break
        assert epoch is not None
        seconds = f"{epoch.train_seconds:.1f} s, epoch {epoch.number}"
        is_reached = best >= target.accuracy
        answer = seconds if is_reached else f"not reached: {best:.2%} in {seconds}"
        yield Row(
            f"{images.name} to {target.accuracy:.2%}, {target.arch.name}, bfloat16",
            f"{answer} of {target.epochs} (compilation {epoch.compile_seconds:.0f} s)",
            goal=target.goal,
        )


# Projections, mining and occlusion.


def measure_projections(options: Options, sizes: Sizes) -> Iterator[Row]:
    """Project every unit of a layer, and a few of them by Captum."""
    arch, layer = sizes.plain, sizes.layer
    net, image = build(arch), draw_noise(arch, 1)
    rows, columns, units = net.layer(layer).shape

    def project_by_captum() -> Callable[[], None]:
        from captum.attr import NeuronDeconvolution

        model, x = build_torch(arch, image, options.dry)
        x.requires_grad_()
        method = NeuronDeconvolution(model, model.get_submodule(f"{layer}_relu"))

        def run() -> None:
            for unit in range(sizes.neurons):
                with warnings.catch_warnings():
                    # Captum announces its hooks at every call.
                    warnings.simplefilter("ignore")
                    method.attribute(x, (unit, rows // 2, columns // 2)).cpu()

        return run

    theirs = project_by_captum() if has_torch(options, "captum") else None
    pair = compare(
        lambda: zf.project(net, image, layer, [*range(units)]),
        theirs,
        sizes.turns,
        scale=units / sizes.neurons,
    )
    yield Row(
        f"projections, {arch.name}, all {units} units of {layer}, per unit",
        f"{1e3 * pair.ours / units:.3g} ms",
        f"Captum {1e3 * pair.theirs / sizes.neurons:.3g} ms" if pair.theirs else "",
        pair.ratio,
    )


def measure_mining(options: Options, sizes: Sizes) -> Iterator[Row]:
    """Mine all convolutions, and run the forward pass over the same images."""
    arch, batch = sizes.arch, min(sizes.batch, sizes.mined)
    net, images = build(arch), draw_noise(arch, sizes.mined)
    layers = [x.name for x in arch.layers if isinstance(x, zf.Conv)]
    pair = compare(
        lambda: zf.top_activations(net, images, layers, batch_size=batch),
        lambda: net.activations(images, net.output, batch_size=batch),
        sizes.turns,
    )
    assert pair.theirs is not None
    yield Row(
        f"mining, {arch.name}, all convolutions, {sizes.mined:,} images",
        f"{sizes.mined / pair.ours:,.0f} images/s",
        f"forward pass alone {sizes.mined / pair.theirs:,.0f} images/s",
        pair.ratio,
    )


def measure_occlusion(options: Options, sizes: Sizes) -> Iterator[Row]:
    """Slide a square over one image, by ours and by Captum."""
    arch, size, stride = sizes.arch, sizes.square, sizes.stride
    net, image = build(arch), draw_noise(arch, 1)

    def occlude_by_captum() -> Callable[[], object]:
        from captum.attr import Occlusion

        model, x = build_torch(arch, image, options.dry)
        windows = (3, size, size), (3, stride, stride)
        method = functools.partial(Occlusion(model).attribute, x, *windows)
        return lambda: method(target=0, perturbations_per_eval=128).cpu()

    theirs = occlude_by_captum() if has_torch(options, "captum") else None
    pair = compare(
        lambda: zf.occlusion(net, image, 0, size=size, stride=stride),
        theirs,
        sizes.turns,
    )
    yield Row(
        f"occlusion, {arch.name}, {size} pixels in steps of {stride}",
        f"{1e3 * pair.ours:.3g} ms",
        f"Captum {1e3 * pair.theirs:.3g} ms" if pair.theirs else "",
        pair.ratio,
    )


def build(arch: zf.Architecture) -> Any:
    """A network with random weights."""
    return zf.network(zf.ConvNet(arch, rngs=nnx.Rngs(0)))


def draw_noise(arch: zf.Architecture, count: int) -> np.ndarray:
    """Draw float32 images of an architecture's size."""
    shape = (count, *arch.input_hw, arch.channels)
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def build_torch(arch: zf.Architecture, image: np.ndarray, dry: bool) -> tuple[Any, Any]:
    """The same architecture and image in PyTorch."""
    import torch

    from benchmarks.torch_network import torch_network

    device = "cpu" if dry else "cuda"
    model = torch_network(arch).eval().to(device)
    return model, torch.from_numpy(image).permute(0, 3, 1, 2).contiguous().to(device)


# Two sides.


def has_torch(options: Options, *packages: str) -> bool:
    """Tell whether PyTorch is installed with CUDA, and so are other packages.

    A dry run takes PyTorch on the CPU too.
    """
    names = ("torch", *packages)
    if any(importlib.util.find_spec(name) is None for name in names):
        return False
    import torch

    return options.dry or torch.cuda.is_available()


class Pair(NamedTuple):
    """Median seconds of our side, and those of another with the ratio theirs / ours."""

    ours: float
    theirs: float | None = None
    ratio: str = ""


def compare(
    ours: Callable[[], object],
    theirs: Callable[[], object] | None,
    turns: int,
    scale: float = 1.0,
) -> Pair:
    """Time our side, in turn with the other one if there is one.

    Ours does `scale` times as much in a turn, which the ratio takes into account.
    """
    if theirs is None:
        return Pair(time_alone(ours, turns))
    result = take_turns(theirs, ours, turns)
    ratios = [scale * ratio for ratio in result.ratios]
    return Pair(result.ours, result.theirs, str(result._replace(ratios=ratios)))


# All parts.

PARTS = (
    Part("training step", 170, measure_training),
    Part("projections", 60, measure_projections),
    Part("mining", 45, measure_mining),
    Part("occlusion", 45, measure_occlusion),
    Part("CIFAR-10", 240, measure_accuracy),
)


@contextlib.contextmanager
def limit_time(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the block once the seconds have passed.

    It comes as soon as Python runs again, after a compilation or a step in progress.
    """

    def stop(*_: object) -> None:
        raise OutOfTime(f"out of time after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_parts(
    options: Options, sizes: Sizes, parts: tuple[Part, ...] = PARTS
) -> tuple[list[Row], list[str]]:
    """Run all parts within the time; return the rows, and a line for each failure."""
    rows, failures, end = [], [], time.monotonic() + _SECONDS
    for part in parts:
        try:
            with limit_time(min(part.seconds, end - time.monotonic())):
                for row in part.run(options, sizes):
                    rows.append(row)
                    print(format_row(row), flush=True)
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            failures.append(f"{part.name}: {type(error).__name__}: {reason}")
            print(failures[-1], file=sys.stderr, flush=True)
    return rows, failures


def format_row(row: Row) -> str:
    """Write a row of a Markdown table."""
    return f"| {' | '.join(row)} |"


def write_table(rows: list[Row], failures: list[str]) -> str:
    """Write the section for BENCHMARKS.md."""
    device = jax.devices()[0]
    versions = [f"jax {jax.__version__}"]
    if "torch" in sys.modules:
        versions.append(f"PyTorch {sys.modules['torch'].__version__}")
    heading = Row("what", "ours", "PyTorch", "ratio, median (range)", "goal")
    lines = [
        f"Measured on {device.device_kind}, {', '.join(versions)}.",
        "",
        format_row(heading),
        format_row(Row(*["---"] * len(heading))),
        *map(format_row, rows),
    ]
    if failures:
        lines += ["", "Not measured:", "", *(f"- {line}" for line in failures)]
    return "\n".join(lines) + "\n"


def main(options: Options) -> str | None:
    """Print and write the table; what is wrong with the command line."""
    # PyTorch needs memory on the same card.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if not options.dry and jax.default_backend() != "gpu":
        return "error: there is no GPU; --dry tries everything without one"
    rows, failures = run_parts(options, DRY if options.dry else Sizes())
    table = write_table(rows, failures)
    print(f"\n{table}")
    if options.out is not None:
        options.out.write_text(table, encoding="utf-8")
    return f"error: {len(failures)} parts failed" if failures else None


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
