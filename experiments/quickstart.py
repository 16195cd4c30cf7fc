"""Train ZFNET32 on generated shapes and draw what it learned, without a download.

    python -m experiments.quickstart

Expected: a test accuracy above 90% (random guessing: 10%) after about a minute of
training on two CPU cores, the figures of `experiments.train_cifar10`, and a gallery of
every unit of the convolutions and of the classifier, to be opened in a browser. In all
it takes under four minutes.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import zfnet_jax as zf
from experiments import train_cifar10
from experiments.common import Progress, Results, main
from zfnet_jax import training


@dataclasses.dataclass(frozen=True)
class Options:
    """Train ZFNET32 on generated shapes in about a minute, and show what it learned."""

    epochs: int = 2
    """Passes over the training images."""
    limit: int | None = None
    """Use only the first N training images and the first N test images."""
    seed: int = 0
    """Seed for weights, data order, augmentation and dropout."""
    out: Path = Path("results/quickstart")
    """Folder for results; files of the same names are replaced."""


# All layers would take longer than four minutes.
_GALLERY_LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "logits")


def run(options: Options) -> None:
    """Train, report as `experiments.train_cifar10` does, and build the gallery."""
    full = train_cifar10.Options(
        dataset="shapes",
        epochs=options.epochs,
        limit=options.limit,
        batch_size=128,
        seed=options.seed,
        out=options.out,
    )
    train_cifar10.check(full)
    results = Results(full.out)
    train = train_cifar10.load(full, "train")
    with Progress("training", options.epochs) as progress:
        result = training.train(
            train_cifar10.MODELS[full.model],
            train,
            recipe=training.RECIPES[full.recipe],
            epochs=full.epochs,
            batch_size=full.batch_size,
            seed=full.seed,
            on_progress=train_cifar10.show(progress),
        )
    test = train_cifar10.load(full, "test")
    train_cifar10.report(results, full, result, train, test)
    net = zf.load(results.path / "weights.safetensors")
    page = zf.gallery(
        net,
        net.load_images(test),
        results.path / "gallery",
        layers=_GALLERY_LAYERS,
        title=f"Units of {net.model.arch.name}",
    ).page
    print(f"open file://{page.resolve()}")


if __name__ == "__main__":
    sys.exit(main(run, Options))
