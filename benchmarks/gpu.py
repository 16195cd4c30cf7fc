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
is named under the table, and the others go on. Training that runs out gives its best
accuracy so far, and the epoch of the schedule in which it stopped.

`--dry` runs every part on tiny networks, on any device and in seconds.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
import sys
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
from benchmarks.parts import OutOfTime, Part, Row, run_parts, write_table
from benchmarks.peaks import Precision, share_of_peak
from benchmarks.training_step import draw_batch, jax_side, torch_side
from benchmarks.turns import take_turns, time_alone
from zfnet_jax.arch import ZFNET32_WIDE
from zfnet_jax.data import Dataset, load_cifar10, make_shapes
from zfnet_jax.files import DamagedFileError, DataNotFoundError
from zfnet_jax.inference import evaluate
from zfnet_jax.recipes import LONG, Recipe
from zfnet_jax.training import split_validation

# Seconds for all parts, and for a dry run, which busy machines run too.
_SECONDS, _DRY_SECONDS = 470, 3600
_PRECISIONS: dict[Precision, Any] = {"TF32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure on a GPU."""

    data_dir: Path | None = None
    """Folder of CIFAR-10, by default $TFDS_DATA_DIR."""
    out: Path | None = None
    """File for the table."""
    dry: bool = False
    """Run everything on tiny networks, to check that it runs."""

    @property
    def device(self) -> str:
        """PyTorch's name of the device."""
        return "cpu" if self.dry else "cuda"


class Target(NamedTuple):
    """An accuracy to reach on validation images.

    Attributes:
        accuracy: The accuracy.
        arch: The architecture.
        recipe: The recipe.
        epochs: Epochs of the schedule of the learning rate.
        seconds: Budget, compilation included.
        goal: Training time to stay below.
    """

    accuracy: float
    arch: zf.Architecture
    recipe: Recipe
    epochs: int
    seconds: float
    goal: str = ""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Networks, sizes and repetitions of the measurements."""

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
        Target(0.8122, zf.ZFNET32, zf.FAST, 6, 60, "< 15 s"),
        Target(0.90, ZFNET32_WIDE, LONG, 25, 80, "< 60 s"),
        Target(0.94, ZFNET32_WIDE, LONG, 40, 90),
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
        Target(1.0, _TINY, dataclasses.replace(zf.FAST, optimizer=optax.sgd), 2, 60),
    ),
)


# Training steps.


def measure_training(options: Options, sizes: Sizes) -> Iterator[Row]:
    """Time steps of the large network, and compare with PyTorch compiled."""
    arch, batch = sizes.arch, sizes.batch
    data, kind = draw_batch(arch, batch), jax.devices()[0].device_kind
    compiled = options.device, "eager" if options.dry else "inductor"
    for name, dtype in _PRECISIONS.items():
        with jax.default_matmul_precision("tensorfloat32"):
            steps, theirs = jax_side(arch, *data, dtype), None
            if has_torch(options):
                theirs = torch_side(arch, *data, *compiled, name == "bfloat16")
            pair = compare(
                lambda run=steps: run(sizes.steps),
                theirs and (lambda run=theirs: run(sizes.steps)),
                sizes.turns,
            )
        rate = batch * sizes.steps / pair.ours
        share = share_of_peak(arch, rate, kind, name)
        yield Row(
            f"training step, {arch.name}, {name}, batch {batch}",
            f"{rate:,.0f} images/s{f', {share:.2f} of peak' if share else ''}",
            f"{batch * sizes.steps / pair.theirs:,.0f} images/s" if pair.theirs else "",
            pair.ratio,
            "ratio ≥ 1.0, ≥ 0.35 of peak" if name == "bfloat16" else "",
        )


# Time to an accuracy.


def measure_accuracy(options: Options, target: Target) -> Iterator[Row]:
    """Train until an accuracy is reached on validation images, or time is over."""
    images, validation = load_images(options)
    best, epoch = 0.0, None
    how = {"recipe": target.recipe, "epochs": target.epochs, "dtype": jnp.bfloat16}
    try:
        for epoch in zf.train(target.arch, images, **how):
            net = zf.network(epoch.model, preprocess=epoch.preprocess)
            logits = evaluate(net, validation.images)
            best = max(best, float((logits.argmax(-1) == validation.labels).mean()))
            if best >= target.accuracy:
                break
    except OutOfTime:
        pass
    yield Row(
        f"{images.name} to {target.accuracy:.2%}, {target.arch.name}, bfloat16",
        describe_training(target, best, epoch),
        goal=target.goal,
    )


def describe_training(target: Target, best: float, epoch: Any) -> str:
    """Say when the accuracy was reached, or which one in the last epoch that ended."""
    if epoch is None:
        return f"not reached: no epoch ended within {target.seconds:.0f} s"
    seconds = f"{epoch.train_seconds:.1f} s"
    compilation = f"(compilation {epoch.compile_seconds:.0f} s)"
    place = f"epoch {epoch.number} of a schedule of {target.epochs} {compilation}"
    if best >= target.accuracy:
        return f"{seconds}, {place}"
    return f"not reached: best {best:.2%} in {seconds}, {place}"


@functools.cache
def load_images(options: Options) -> tuple[Dataset, Dataset]:
    """Load training images, and a tenth of them as validation images."""
    images = (
        make_shapes(300) if options.dry else load_cifar10("train", options.data_dir)
    )
    images, validation = split_validation(images, len(images) // 10, seed=0)
    assert validation is not None
    return images, validation


# Projections, mining and occlusion.


def measure_projections(options: Options, sizes: Sizes) -> Iterator[Row]:
    """Project every unit of a layer, and a few of them by Captum."""
    arch, layer, count = sizes.plain, sizes.layer, sizes.neurons
    net, (image, _) = build(arch), draw_batch(arch, 1)
    shape, theirs = net.layer(layer).shape, None
    units = shape[-1]
    if has_torch(options, "captum"):
        from captum.attr import NeuronDeconvolution

        from benchmarks.captum_sides import captum_projections

        model, x = build_torch(arch, image, options)
        method = NeuronDeconvolution(model, model.get_submodule(f"{layer}_relu"))
        theirs = captum_projections([method], x, shape, count)
    pair = compare(
        lambda: zf.project(net, image, layer, [*range(units)]),
        theirs,
        sizes.turns,
        scale=units / count,
    )
    yield Row(
        f"projections, {arch.name}, all {units} units of {layer}, per unit",
        f"{1e3 * pair.ours / units:.3g} ms",
        f"Captum {1e3 * pair.theirs / count:.3g} ms" if pair.theirs else "",
        pair.ratio,
    )


def measure_mining(sizes: Sizes) -> Iterator[Row]:
    """Mine all convolutions, and run the forward pass over the same images."""
    arch, batch = sizes.arch, min(sizes.batch, sizes.mined)
    net, (images, _) = build(arch), draw_batch(arch, sizes.mined)
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
    net, (image, _), theirs = build(arch), draw_batch(arch, 1), None
    if has_torch(options, "captum"):
        from benchmarks.captum_sides import captum_occlusion

        slide = captum_occlusion(*build_torch(arch, image, options), 0, size, stride)
        theirs = functools.partial(slide, 128)
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


def build_torch(
    arch: zf.Architecture, image: np.ndarray, options: Options
) -> tuple[Any, Any]:
    """The same architecture and image in PyTorch."""
    from benchmarks.torch_network import torch_images, torch_network

    model = torch_network(arch).eval().to(options.device)
    return model, torch_images(image, options.device)


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
    return Pair(result.ours, result.theirs, str(result.scale(scale)))


# All parts.


def list_parts(options: Options, sizes: Sizes) -> list[Part]:
    """List the parts; their budgets fit the time in all."""
    parts = [
        Part("training step", 130, lambda: measure_training(options, sizes)),
        Part("projections", 45, lambda: measure_projections(options, sizes)),
        Part("mining", 35, lambda: measure_mining(sizes)),
        Part("occlusion", 30, lambda: measure_occlusion(options, sizes)),
    ]
    for target in sizes.targets:
        run = functools.partial(measure_accuracy, options, target)
        parts.append(Part(f"training to {target.accuracy:.2%}", target.seconds, run))
    if options.dry:
        return [part._replace(seconds=_DRY_SECONDS) for part in parts]
    return parts


def check(options: Options) -> str | None:
    """Say what is missing: the GPU, CIFAR-10, or a place for the table."""
    if not options.dry and jax.default_backend() != "gpu":
        return "error: there is no GPU; --dry tries everything without one"
    if options.out is not None:
        try:
            options.out.touch()
        except OSError as error:
            return f"error: --out {options.out} cannot be written ({error.strerror})"
    if not options.dry:
        try:
            load_cifar10("train", options.data_dir, limit=1)
        except (DataNotFoundError, DamagedFileError) as error:
            return f"error: {error}"
    return None


def main(options: Options) -> int:
    """Print and write the table; return the exit code, 2 for a wrong command line."""
    # PyTorch needs memory on the same card.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if (error := check(options)) is not None:
        print(error, file=sys.stderr)
        return 2
    parts = list_parts(options, DRY if options.dry else Sizes())
    rows, failures = run_parts(parts, _DRY_SECONDS if options.dry else _SECONDS)
    versions = [f"jax {jax.__version__}"]
    if "torch" in sys.modules:
        versions.append(f"PyTorch {sys.modules['torch'].__version__}")
    kind = jax.devices()[0].device_kind
    title = f"Measured on {kind}, {', '.join(versions)}."
    table = write_table(rows, failures, title)
    print(f"\n{table}")
    if options.out is not None:
        options.out.write_text(table, encoding="utf-8")
    return 1 if failures else 0


if __name__ == "__main__":
    config = tyro.conf.DisallowNone, tyro.conf.FlagCreatePairsOff
    prog = "python -m benchmarks.gpu"
    sys.exit(main(tyro.cli(Options, prog=prog, description=__doc__, config=config)))
