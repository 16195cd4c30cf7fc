"""Train a network of the paper's family and draw what it learned.

    python -m experiments.train_cifar10 --data-dir FOLDER

By default ZFNET32 is trained on all 50,000 images of CIFAR-10 by the fast recipe; the
expected accuracy and time are in BENCHMARKS.md. The result folder contains metrics.json
(test accuracy, times, history), the weights, checkpoints, training curves, a confusion
matrix, test images with their predicted classes, the feature maps of each layer for a
few images, and the first layer's filters.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import jax
import numpy as np

import zfnet_jax as zf
from experiments.common import (
    Progress,
    Results,
    UsageError,
    at_least,
    command,
    load_dataset,
    main,
    numbers,
)
from zfnet_jax import checkpoint, training
from zfnet_jax.arch import ALEXNET, ZFNET, ZFNET32
from zfnet_jax.data import Dataset, Preprocessing
from zfnet_jax.model import ConvNet

# Folder in --out with the weights of single epochs.
EPOCHS = "epochs"

MODELS = {"zfnet32": ZFNET32, "zfnet": ZFNET, "alexnet": ALEXNET}

_GRID_IMAGES, _MAP_IMAGES = 40, 3


@dataclasses.dataclass(frozen=True)
class Options:
    """Train a network and draw what it learned; figures go to --out."""

    model: Literal["zfnet32", "zfnet", "alexnet"] = "zfnet32"
    """Architecture; zfnet and alexnet resize the images to 224 on the device."""
    recipe: Literal["fast", "paper"] = "fast"
    """Training recipe: as in section 3 of the paper, or a fast one."""
    dataset: Literal["cifar10", "shapes"] = "cifar10"
    """Source of the images; shapes are generated and need no download."""
    data_dir: Path | None = None
    """Folder of prepared tensorflow-datasets; else $TFDS_DATA_DIR or its default."""
    epochs: int | None = None
    """Passes over the training images; by default the recipe's own number."""
    batch_size: int | None = None
    """Images per step; by default the recipe's own number."""
    limit: int | None = None
    """Use only the first N training images and the first N test images."""
    validation: int | None = None
    """Training images set apart to measure each epoch; by default 5,000, or a tenth of
    the images, if the recipe or --target-accuracy needs them, else none."""
    target_accuracy: float | None = None
    """Stop after the epoch that reaches this accuracy, 0 to 1, on validation images."""
    keep_epochs: str | None = None
    """Epochs whose weights to keep, as in 1,2,5,10: one file each in --out/epochs, for
    `experiments.evolution`."""
    seed: int = 0
    """Seed for weights, split, data order, augmentation and dropout."""
    out: Path = Path("results/train_cifar10")
    """Folder for results and checkpoints."""
    resume: bool = False
    """Continue from the newest intact checkpoint in --out."""


def load(options: Options, split: Literal["train", "test"]) -> Dataset:
    """One split of the dataset that the options name, cut to --limit images."""
    return load_dataset(options.dataset, split, options.data_dir, options.limit)


def run(options: Options) -> None:
    """Train, measure on the test images once, and write the results."""
    check(options)
    recipe = training.RECIPES[options.recipe]
    epochs = recipe.epochs if options.epochs is None else options.epochs
    keep = numbers("--keep-epochs", options.keep_epochs)
    if beyond := [epoch for epoch in keep if not 1 <= epoch <= epochs]:
        raise UsageError(f"--keep-epochs {beyond[0]}: there are epochs 1 to {epochs}")
    results = Results(options.out)
    checkpoints = results.path / "checkpoints"
    if not options.resume and checkpoint.steps(checkpoints):
        raise UsageError(
            f"--out {options.out} contains the checkpoints of an earlier run: add "
            "--resume to continue it, or choose another folder"
        )
    dataset = load(options, "train")
    count = _validation_count(options, recipe, len(dataset))
    if recipe.validation and count == 0:
        raise UsageError(
            f"--recipe {recipe.name} follows the validation error: it needs at least "
            "--validation 1"
        )
    train, validation = training.split_validation(dataset, count, options.seed)
    # Missing test images should be reported before hours of training.
    test = load(options, "test")

    def keep_weights(epoch: int, model: ConvNet, preprocess: Preprocessing) -> None:
        if epoch in keep:
            folder = results.path / EPOCHS
            folder.mkdir(exist_ok=True)
            zf.save(
                folder / f"epoch_{epoch:04d}.safetensors",
                model,
                preprocess=preprocess,
                class_names=train.class_names,
                metadata={
                    "command": command(),
                    "dataset": train.name,
                    "data": train.source,
                    "seed": options.seed,
                    "epochs": epoch,
                },
            )

    with Progress("training", epochs) as progress:
        result = training.train(
            MODELS[options.model],
            train,
            validation,
            recipe=recipe,
            epochs=epochs,
            batch_size=options.batch_size,
            seed=options.seed,
            target_accuracy=options.target_accuracy,
            checkpoints=checkpoints,
            resume=options.resume,
            on_damaged=lambda line: print(
                f"skipped a damaged checkpoint: {line}", file=sys.stderr, flush=True
            ),
            on_progress=show(progress),
            on_epoch=keep_weights if keep else None,
        )
    report(results, options, result, train, test)


def show(progress: Progress) -> Callable[[float, Mapping[str, float]], None]:
    """A callback for `training.train` that shows its running values."""

    def update(done: float, values: Mapping[str, float]) -> None:
        progress.update(done, **{n: v for n, v in values.items() if n != "epoch"})

    return update


def report(
    results: Results,
    options: Options,
    result: training.TrainResult,
    train: Dataset,
    test: Dataset,
) -> float:
    """Measure on the test images; write numbers, weights and figures.

    Returns:
        Test accuracy, 0 to 1.
    """
    logits = training.evaluate(result.model, result.preprocess, test.images)
    loss, accuracy = training.loss_and_accuracy(logits, test.labels)
    results.metrics(
        {
            "test_accuracy": accuracy,
            "test_loss": loss,
            "test_images": len(test),
            "train_images": len(train),
            "train_seconds": result.train_seconds,
            "compile_seconds": result.compile_seconds,
            "images_per_second": result.images_per_second,
            "history": result.history,
            "data": test.source,
        }
    )
    weights = results.path / "weights.safetensors"
    zf.save(
        weights,
        result.model,
        preprocess=result.preprocess,
        class_names=train.class_names,
        metadata={
            "command": command(),
            "dataset": test.name,
            "data": test.source,
            "seed": options.seed,
            "epochs": len(result.history),
            "test_accuracy": accuracy,
            "test_images": len(test),
        },
    )
    _write_figures(results, result, test, logits)
    _write_tensorboard(results.path / "tensorboard", result.history)
    results.config(options)
    results.manifest(
        seed=options.seed,
        digests={
            "train": train.digest(),
            "test": test.digest(),
            "weights": hashlib.sha256(weights.read_bytes()).hexdigest(),
        },
    )
    print(
        f"test accuracy {accuracy:.2%} on {len(test):,} images, "
        f"{result.train_seconds:.0f} s of training; figures in {results.path}",
        flush=True,
    )
    return accuracy


def check(options: Options) -> None:
    """Refuse impossible options before any work."""
    at_least(1, options, "epochs", "batch_size", "limit")
    at_least(0, options, "validation", "seed")
    if options.seed >= 2**32:
        raise UsageError(f"--seed must be below 2 to the 32, not {options.seed}")
    target = options.target_accuracy
    if target is not None and not 0 < target <= 1:
        raise UsageError(f"--target-accuracy must be between 0 and 1, not {target}")


def _validation_count(options: Options, recipe: training.Recipe, images: int) -> int:
    if options.validation is not None:
        return options.validation
    wanted = recipe.validation
    if options.target_accuracy is not None:
        wanted = max(wanted, 5_000)
    return min(wanted, images // 10)


def _write_figures(
    results: Results, result: training.TrainResult, test: Dataset, logits: np.ndarray
) -> None:
    from zfnet_jax import viz
    from zfnet_jax.viz.feature_maps import draw_maps

    predictions = logits.argmax(-1)
    classes = len(test.class_names)
    matrix = np.zeros((classes, classes), np.int64)
    np.add.at(matrix, (test.labels, predictions), 1)
    results.figure("training_curves", viz.training_curves(result.history)[0])
    results.figure(
        "confusion_matrix", viz.confusion_matrix(matrix, test.class_names)[0]
    )
    shown = slice(_GRID_IMAGES)
    probabilities = np.asarray(jax.nn.softmax(logits[shown])).max(-1)
    grid, _ = viz.prediction_grid(
        test.images[shown],
        test.labels[shown],
        predictions[shown],
        probabilities,
        test.class_names,
    )
    results.figure("predictions", grid)
    first = result.model.arch.layers[0].name
    kernels = np.asarray(getattr(result.model, first).kernel[...])
    results.figure("first_layer_filters", viz.first_layer_filters(kernels)[0])

    net, images = zf.network(result.model), test.images[:_MAP_IMAGES]
    layers = [name for name, layer in net.layers.items() if len(layer.shape) == 3]
    activations = net.activations(np.asarray(result.preprocess(images)), layers)
    for layer, maps in activations.items():
        for index, image in enumerate(images):
            name = test.class_names[test.labels[index]]
            title = (
                f"{layer} of {result.model.arch.name} on test image {index} ({name})"
            )
            figure = draw_maps(title, image, maps[index])
            results.figure(f"feature_maps_{layer}_image{index}", figure)


def _write_tensorboard(folder: Path, history: list[training.Record]) -> None:
    """Write the history as event files, if the extra `tensorboard` is installed."""
    if importlib.util.find_spec("tensorboardX") is None:
        return
    from tensorboardX import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for record in history:
            for name, value in record.items():
                if name != "epoch":
                    writer.add_scalar(name, value, int(record["epoch"]))


if __name__ == "__main__":
    sys.exit(main(run, Options))
