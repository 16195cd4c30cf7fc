"""Train a network of the paper's family and draw what it learned.

    python -m experiments.train_cifar10 --data-dir FOLDER

By default ZFNET32 is trained on all 50,000 images of CIFAR-10 by the fast recipe; the
expected accuracy and time are in BENCHMARKS.md. The result folder holds metrics.json
(test accuracy, times, history), the weights, checkpoints, training curves, a confusion
matrix, test images with their most probable classes, the filters of the first layer,
and in feature_maps/ the maps of each layer for a few images. With the extra
`tensorboard`, event files are written after every epoch.
"""

from __future__ import annotations

import collections
import dataclasses
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

import zfnet_jax as zf
from experiments.harness import (
    Metrics,
    Positive,
    Run,
    UserError,
    command,
    flag,
    main,
    spell,
)
from experiments.progress import plural, say
from experiments.tensorboard import write_events
from zfnet_jax import checkpoint
from zfnet_jax.arch import ALEXNET, ZFNET, ZFNET32, ZFNET32_WIDE
from zfnet_jax.data import Dataset, load_dataset
from zfnet_jax.files import digest, slug
from zfnet_jax.inference import evaluate, loss_and_accuracy
from zfnet_jax.networks import Network
from zfnet_jax.recipes import RECIPES, Plateau, Recipe
from zfnet_jax.training import Epoch, split_validation

ARCHITECTURES = {x.name: x for x in (ZFNET32, ZFNET32_WIDE, ZFNET, ALEXNET)}
# Test images among the predictions and the feature maps, and maps of a layer.
_DRAWN, _MAP_IMAGES, _MAPS = 20, 3, 64


@dataclasses.dataclass
class Log:
    """A training run so far, as its checkpoints record it.

    Attributes:
        origin: What the run depends on, by the name of the option.
        history: The record of every epoch, with what was measured on validation images.
        seconds: Time in training steps.
        plateau: The annealing rule; it stays as it is for other recipes.
    """

    origin: dict[str, Any]
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    plateau: Plateau = dataclasses.field(default_factory=Plateau)

    @classmethod
    def read(cls, metadata: Mapping[str, Any]) -> Log:
        """Read a log from the metadata of a checkpoint."""
        history, seconds = metadata["history"], metadata["seconds"]
        if not isinstance(seconds, float) or not isinstance(history, list):
            raise TypeError("history and seconds are not those of a run")
        plateau = Plateau(**metadata["plateau"])
        return cls(metadata["origin"], history, seconds, plateau)

    @property
    def accuracy(self) -> float:
        """Accuracy on the validation images after the last epoch."""
        return self.history[-1]["validation_accuracy"]


@dataclasses.dataclass(kw_only=True)
class CifarRun(Run):
    """A training run on small images.

    Attributes:
        arch: Architecture; zfnet and alexnet resize the images to 224 on the device.
        recipe: Training recipe: as in section 3 of the paper, a fast one, that of the
            shipped network, or a modern one with mixup.
        dataset: Source of the images; shapes are generated and need no download.
        data_dir: Folder of CIFAR-10, by default $TFDS_DATA_DIR.
        epochs: Passes over the training images, by default the recipe's number.
        learning_rate: Peak of the learning rate, by default the recipe's.
        batch_size: Images per step, by default the recipe's number.
        dropout: Probability of dropping a unit of a hidden dense layer, by default the
            recipe's.
        label_smoothing: Fraction of the target that is spread over all classes, by
            default the recipe's.
        limit: Maximum number of training images, and of test images.
        validation: Training images set apart to measure each epoch; by default 5,000,
            or a tenth of the images, if something needs them: the paper's recipe,
            --target-accuracy or a sweep.
        target_accuracy: Stop at this accuracy on the validation images, 0 to 1.
        keep_epochs: Epochs whose weights to keep in epochs/, for experiments.evolution.
        resume: Continue from the newest good checkpoint in --out.
    """

    arch: Literal["zfnet32", "zfnet32-wide", "zfnet", "alexnet"] = "zfnet32"
    recipe: Literal["fast", "long", "paper", "modern"] = "fast"
    dataset: Literal["cifar10", "shapes"] = "cifar10"
    data_dir: Path | None = None
    epochs: Positive | None = None
    learning_rate: float | None = None
    batch_size: Positive | None = None
    dropout: float | None = None
    label_smoothing: float | None = None
    limit: Positive | None = None
    validation: int | None = None
    target_accuracy: float | None = None
    keep_epochs: tuple[Positive, ...] = ()
    resume: bool = False

    def __post_init__(self) -> None:
        """Refuse impossible options before any work."""
        super().__post_init__()
        target = self.target_accuracy
        epochs = self.plan.epochs
        check_rate(self.learning_rate)
        for name in ("dropout", "label_smoothing"):
            share = getattr(self, name)
            if share is not None and not 0 <= share < 1:
                raise UserError(f"{flag(name)} {share}: give a number from 0, below 1")
        if self.keep_epochs and max(self.keep_epochs) > epochs:
            last = max(self.keep_epochs)
            raise UserError(f"--keep-epochs {last}: there are epochs 1 to {epochs}")
        if target is not None and not 0 < target <= 1:
            raise UserError(
                f"--target-accuracy {target}: give a number above 0, at most 1"
            )

    @property
    def plan(self) -> Recipe:
        """The recipe, changed by the options."""
        options = {
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "rate": self.learning_rate,
            "dropout": self.dropout,
            "label_smoothing": self.label_smoothing,
        }
        given = {name: value for name, value in options.items() if value is not None}
        return dataclasses.replace(RECIPES[self.recipe], **given)

    def load(self, split: Literal["train", "test"]) -> Dataset:
        """Load the training or test images."""
        return load_dataset(self.dataset, split, self.data_dir, self.limit)

    def split(
        self, images: Dataset, is_compared: bool = False
    ) -> tuple[Dataset, Dataset | None]:
        """Set images apart: --validation, or as many as are needed."""
        needed = is_compared or self.plan.anneals or self.target_accuracy is not None
        count = self.validation
        if count is None:
            count = min(5_000, len(images) // 10) if needed else 0
        if needed and count == 0:
            given, least = "--validation 0", 1
            if self.validation is None:  # a tenth of the images is none
                given, least = f"--limit {self.limit}", 10
            raise UserError(
                f"{given}: --recipe paper, --target-accuracy and sweeps measure on "
                f"validation images; give at least {least}"
            )
        return split_validation(images, count, self.seed)


def check_rate(rate: float | None) -> None:
    """Refuse a --learning-rate that is not positive."""
    if rate is not None and not 0 < rate < np.inf:
        raise UserError(f"--learning-rate {rate}: give a number above 0")


def train_cifar10(run: CifarRun) -> Metrics:
    """Train, measure on the test images once, and draw."""
    test = run.load("test")
    images, held_out = run.split(run.load("train"))
    epochs = train_network(run, images, held_out, run.progress("training"))
    ((epoch, log),) = collections.deque(epochs, maxlen=1)
    yield from report(run, epoch, log, images, test)
    say_next(run, run.data_dir)


def train_network(
    run: CifarRun,
    images: Dataset,
    validation: Dataset | None,
    progress: Callable[..., object],
) -> Iterator[tuple[Epoch, Log]]:
    """Train from a checkpoint or from scratch; measure, log, save and yield epochs."""
    recipe = run.plan
    log, state = open_log(run, describe_origin(run, images, validation), run.resume)
    before = log.seconds
    epochs = zf.train(
        ARCHITECTURES[run.arch],
        images,
        recipe=recipe,
        seed=run.seed,
        plateau=log.plateau,
        resume=state,
        progress=progress,
    )
    for epoch in epochs:
        if epoch.record:  # it is empty for the epoch of the checkpoint
            measured = measure_validation(epoch, validation)
            if measured:
                progress(epoch.number, recipe.epochs, **measured)
            record = {**epoch.record, **measured}
            log.history.append(record)
            log.seconds = before + epoch.train_seconds
            if recipe.anneals:
                log.plateau.update(1 - log.accuracy)
            folder = run.path / "tensorboard"
            write_events(folder, epoch, record, images, recipe.label_smoothing)
            folder = run.path / "checkpoints"
            checkpoint.save(folder, epoch.number, epoch.state, vars(log))
        if epoch.number in run.keep_epochs:
            save_weights(run, f"epochs/epoch_{epoch.number:04d}", epoch, images)
        yield epoch, log
        if run.target_accuracy and log.accuracy >= run.target_accuracy:
            break


def describe_origin(
    run: CifarRun, images: Dataset, validation: Dataset | None
) -> dict[str, Any]:
    """List what a training depends on."""
    recipe = run.plan
    return {
        "--arch": run.arch,
        "--recipe": run.recipe,
        "--dataset": run.dataset,
        "--limit": run.limit,
        "--validation": 0 if validation is None else len(validation),
        "--batch-size": recipe.batch_size,
        "--learning-rate": recipe.rate,
        "--dropout": recipe.dropout,
        "--label-smoothing": recipe.label_smoothing,
        "--seed": run.seed,
        # The rate of a recipe that anneals does not depend on the number of epochs.
        "--epochs": None if recipe.anneals else recipe.epochs,
        "training images": images.digest()[:12],
    }


def open_log(
    run: Run, origin: dict[str, Any], resume: bool
) -> tuple[Log, list[np.ndarray] | None]:
    """Start a log, or read it and its state from the newest good checkpoint."""
    folder = run.path / "checkpoints"
    if not resume:
        if checkpoint.steps(folder):
            raise UserError(
                f"--out {run.path} holds the checkpoints of an earlier run: add "
                "--resume to continue it, or choose another folder"
            )
        return Log(origin), None

    def check(metadata: Mapping[str, Any]) -> None:
        log = Log.read(metadata)
        for name, value in origin.items():
            if (before := log.origin[name]) != value:
                raise UserError(
                    f"{spell(name, value)}: the run in {run.path} has "
                    f"{spell(name, before)}; give that, or choose another --out"
                )

    saved = checkpoint.restore(folder, check)
    if saved is None:
        return Log(origin), None
    for line in saved.damaged:
        say(f"skipped a damaged checkpoint: {line}", file=sys.stderr)
    return Log.read(saved.metadata), saved.state


def measure_validation(epoch: Epoch, validation: Dataset | None) -> dict[str, float]:
    """Measure loss and accuracy on the validation images, if there are any."""
    if validation is None:
        return {}
    net = zf.network(epoch.model, preprocess=epoch.preprocess)
    logits = evaluate(net, validation.images)
    loss, accuracy = loss_and_accuracy(logits, validation.labels)
    return {"validation_loss": loss, "validation_accuracy": accuracy}


def save_weights(
    run: Run, name: str, epoch: Epoch, images: Dataset, **metadata: float
) -> Path:
    """Write the weights of an epoch of training on a dataset, and return the path."""
    return write_weights(
        run,
        name,
        epoch,
        images.class_names,
        dataset=images.name,
        data=images.source,
        **metadata,
    )


def write_weights(
    run: Run,
    name: str,
    epoch: Epoch,
    class_names: tuple[str, ...],
    **metadata: str | float,
) -> Path:
    """Write the weights of an epoch, with their origin, and return the path."""
    path = run.path / f"{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    zf.save(
        path,
        epoch.model,
        preprocess=epoch.preprocess,
        class_names=class_names,
        metadata={
            "command": command(),
            "seed": run.seed,
            "epochs": epoch.number,
            **metadata,
        },
    )
    return path


def report(run: Run, epoch: Epoch, log: Log, images: Dataset, test: Dataset) -> Metrics:
    """Measure on the test images; write weights and figures, and yield the numbers."""
    net = zf.network(
        epoch.model, preprocess=epoch.preprocess, class_names=test.class_names
    )
    run.end_progress()
    logits = evaluate(net, test.images)
    loss, accuracy = loss_and_accuracy(logits, test.labels)
    measured = {"test_accuracy": accuracy, "test_images": len(test)}
    weights = save_weights(run, "weights", epoch, images, **measured)
    run.digests |= {
        "train": images.digest(),
        "test": test.digest(),
        "weights": digest(weights),
    }
    draw(run, net, log.history, test, logits)
    trained_images = log.history[-1]["steps"][-1] * log.origin["--batch-size"]
    yield "test_accuracy", accuracy
    yield "test_loss", loss
    yield "test_images", len(test)
    yield "train_images", len(images)
    yield "train_seconds", log.seconds
    yield "compile_seconds", epoch.compile_seconds
    yield "images_per_second", trained_images / log.seconds
    yield "history", log.history
    yield "data", test.source
    say(
        f"test accuracy {accuracy:.2%} on {len(test):,} images, "
        f"{log.seconds:.0f} s of training"
    )


def draw(
    run: Run,
    net: Network,
    history: list[dict[str, Any]],
    test: Dataset,
    logits: np.ndarray,
) -> None:
    """Draw the curves, the predictions, and what the network sees."""
    from zfnet_jax.viz import training
    from zfnet_jax.viz.predictions import draw_predictions

    labels, names, predictions = test.labels, test.class_names, logits.argmax(-1)
    accuracy = float((predictions == labels).mean())
    run.figure("training_curves", training.training_curves(history, accuracy))
    matrix = np.zeros((len(names), len(names)), np.int64)
    np.add.at(matrix, (labels, predictions), 1)
    run.figure("confusion_matrix", training.confusion_matrix(matrix, names))
    chances = np.asarray(jax.nn.softmax(logits[:_DRAWN]))
    best = np.argsort(-chances, axis=1, kind="stable")[:, :3]
    figure = draw_predictions(
        f"The most probable classes of the first {len(best)} test images",
        "✓ and bold type mark the true class.",
        test.images[:_DRAWN],
        [f"test image {index}" for index in range(len(best))],
        [[names[label] for label in row] for row in best],
        np.take_along_axis(chances, best, 1),
        [names[label] for label in labels[:_DRAWN]],
    )
    run.figure("predictions", figure)
    draw_first_layer(run, net, len(history))
    draw_maps(run, net, test)


def draw_first_layer(run: Run, net: Network, epochs: int) -> None:
    """Draw the filters of the first layer above those of the shipped network."""
    from zfnet_jax.viz.first_layer import filter_banks

    networks = {
        f"after {plural(epochs, 'epoch')}": net,
        "for comparison, the shipped zfnet32-cifar10": zf.load("zfnet32-cifar10"),
    }
    banks = {
        name: np.asarray(getattr(x.model, x.model.arch.layers[0].name).kernel[...])
        for name, x in networks.items()
    }
    figure = filter_banks("Filters of the first layer", banks)
    run.figure("first_layer_filters", figure)


def draw_maps(run: Run, net: Network, test: Dataset) -> None:
    """Draw the strongest feature maps of each layer for a few test images."""
    from zfnet_jax.viz import feature_maps

    layers = [name for name, layer in net.layers.items() if len(layer.shape) == 3]
    images = net.load_images(test.take(np.arange(min(_MAP_IMAGES, len(test)))))
    activations = net.activations(images, layers)
    for layer in run.track("drawing feature maps", layers):
        for index, maps in enumerate(activations[layer]):
            name = test.class_names[test.labels[index]]
            title = f"{layer} on test image {index} ({name})"
            figure = feature_maps.draw_maps(title, images.pictures[index], maps, _MAPS)
            run.figure(f"feature_maps/{slug(layer)}_image{index}", figure)


def say_next(run: Run, data_dir: Path | None = None) -> None:
    """Name three commands that show what the network learned."""
    weights = shlex.join(["--weights", str(run.path / "weights.safetensors")])
    data = shlex.join(["--data-dir", str(data_dir)]) if data_dir else ""
    say("next:")
    say(f"  python -m experiments.gallery {weights} {data}".rstrip())
    say(f"  python -m experiments.top_features {weights} {data}".rstrip())
    say(f"  python -m experiments.project {weights} --image PHOTOGRAPH")


if __name__ == "__main__":
    sys.exit(main(train_cifar10))
