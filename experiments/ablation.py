"""Depth and width: every row of Table 3 of the paper, at the size of CIFAR-10.

    python -m experiments.ablation --data-dir FOLDER

Both of the paper's networks, adapted to 32 x 32 images (ZFNET_MINI, ALEXNET_MINI: a
quarter of the widths, layer 1 with half the stride), are trained with layers removed or
resized as in the table. All are trained alike from several seeds: Adam, dropout 0.5,
random crops and flips. For each row: the training error, without augmentation and
dropout, and the error on validation images, next to the paper's numbers, with the rank
correlation of the two orders.

Expected by default (5,000 training images, 12 epochs, 3 seeds), in 60 to 90 minutes on
two CPU cores: ZFNet 47% validation error and AlexNet 49%; wider layers are better and
narrower ones worse, as in the paper. Removed layers help, since so short a training
favors shallow networks. Finished trainings are kept in --out/runs, and a second run of
the same code continues from there. `--limit 500` takes about two minutes, of one epoch
and one seed: it shows that the command runs, and no more.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
from flax import nnx

from experiments.common import (
    Progress,
    Results,
    UsageError,
    at_least,
    code_digest,
    counted,
    load_dataset,
    main,
)
from zfnet_jax import training
from zfnet_jax.arch import ALEXNET_MINI, ZFNET_MINI, Architecture, ablate
from zfnet_jax.data import Dataset
from zfnet_jax.inference import evaluate
from zfnet_jax.metrics import spearman
from zfnet_jax.networks import network
from zfnet_jax.recipes import Augmentation, Recipe

_RATE, _DECAY = 2e-3, 1e-2


def _schedule(total: int) -> optax.Schedule:
    warm_up = max(total // 10, 1)
    return optax.warmup_cosine_decay_schedule(
        _RATE / warm_up, _RATE, warm_up, max(total, warm_up + 1)
    )


def _init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """The paper's scale for layer 1, where learned filters then stand out; He's above.

    With the paper's scale in all layers, pixels of about -2 to 2 would fade.
    """
    sees_pixels = len(shape) == 4 and shape[2] == 3
    he = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")
    return (nnx.initializers.normal(1e-2) if sees_pixels else he)(key, shape, dtype)


# The paper's dropout, crops and batches on a budget of minutes: in so short a training
# Adam gets further than the paper's SGD.
MINI = Recipe(
    name="mini",
    epochs=12,
    batch_size=64,
    scale=1 / 64,
    init=_init,
    dropout=0.5,
    augmentation=Augmentation(margin=2),
    schedule=_schedule,
    optimizer=lambda rate: optax.adamw(rate, weight_decay=_DECAY),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of Table 3 from one of the two networks.

    Attributes:
        change: The paper's name for the change.
        base: The network that is changed.
        paper: Training top-1, validation top-1 and validation top-5 error in percent.
        remove: Layers to remove.
        widths: Layers to resize, to a quarter of the paper's widths.
    """

    change: str
    base: Architecture
    paper: tuple[float, float, float]
    remove: tuple[str, ...] = ()
    widths: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def arch(self) -> Architecture:
        """The network of the row."""
        return ablate(self.base, self.remove, self.widths)

    @property
    def name(self) -> str:
        """Short and unique name."""
        return f"{self.base.name.removesuffix('-mini')}: {self.change}"


_NARROW = {"fc6": 512, "fc7": 512}
_WIDE = {"fc6": 2048, "fc7": 2048}
_MAPS = {"conv3": 128, "conv4": 256, "conv5": 128}

TABLE_3 = (
    Row("none", ALEXNET_MINI, (35.1, 40.5, 18.1)),
    Row("layers 3, 4 removed", ALEXNET_MINI, (41.8, 45.4, 22.1), ("conv3", "conv4")),
    Row("layer 7 removed", ALEXNET_MINI, (27.4, 40.0, 18.4), ("fc7",)),
    Row("layers 6, 7 removed", ALEXNET_MINI, (27.4, 44.8, 22.4), ("fc6", "fc7")),
    Row(
        "layers 3, 4, 6, 7 removed",
        ALEXNET_MINI,
        (71.1, 71.3, 50.1),
        ("conv3", "conv4", "fc6", "fc7"),
    ),
    Row("layers 6, 7 of half the width", ALEXNET_MINI, (40.3, 41.7, 18.8), (), _NARROW),
    Row("layers 6, 7 of twice the width", ALEXNET_MINI, (26.8, 40.0, 18.1), (), _WIDE),
    Row("none", ZFNET_MINI, (33.1, 38.4, 16.5)),
    Row("layers 6, 7 of half the width", ZFNET_MINI, (38.2, 40.2, 17.6), (), _NARROW),
    Row("layers 6, 7 of twice the width", ZFNET_MINI, (22.0, 38.8, 17.0), (), _WIDE),
    Row("layers 3 to 5 wider", ZFNET_MINI, (18.8, 37.5, 16.0), (), _MAPS),
    Row("both of the last two", ZFNET_MINI, (10.0, 38.3, 16.9), (), {**_WIDE, **_MAPS}),
)


@dataclasses.dataclass(frozen=True)
class Budget:
    """Number of images and epochs to train on."""

    train_images: int = 5_000
    """Number of training images."""
    validation_images: int = 2_000
    """Number of images of the training set that are only validated on."""
    epochs: int | None = None
    """Passes over the training images; by default 12, or 1 with --limit."""
    dataset: Literal["cifar10", "shapes"] = "cifar10"
    """Source of the images; shapes are generated and need no download."""
    data_dir: Path | None = None
    """Folder of prepared tensorflow-datasets; else $TFDS_DATA_DIR or its default."""
    limit: int | None = None
    """Use at most N training images and N validation images."""
    seed: int = 0
    """The first seed; it also determines which images are validated on."""

    @property
    def passes(self) -> int:
        """Epochs of each training."""
        return self.epochs or (MINI.epochs if self.limit is None else 1)


@dataclasses.dataclass(frozen=True)
class Options(Budget):
    """Train every row of Table 3 and compare its errors with the paper's."""

    seeds: int | None = None
    """Number of seeds per row, from --seed on; by default 3, or 1 with --limit."""
    out: Path = Path("results/ablation")
    """Folder for results; finished trainings in it are not repeated."""


def run(options: Options) -> None:
    """Train, measure, draw and write the results."""
    from zfnet_jax import viz

    at_least(1, options, "seeds")
    results = Results(options.out)
    train, validation = split(options)
    epochs = options.passes
    runs = results.path / "runs"
    runs.mkdir(exist_ok=True)
    count = options.seeds or (3 if options.limit is None else 1)
    seeds = range(options.seed, options.seed + count)
    work = [(row, seed) for seed in seeds for row in TABLE_3]
    errors: dict[str, list[dict[str, float]]] = {row.name: [] for row in TABLE_3}
    with Progress("training", len(work), unit="network") as progress:
        for done, (row, seed) in enumerate(work, 1):
            origin = {
                "architecture": repr(row.arch),
                "data": train.digest() + validation.digest(),
                "code": code_digest(__file__),
                "epochs": epochs,
                "seed": seed,
            }
            key = hashlib.sha256(json.dumps(origin).encode()).hexdigest()[:16]
            measured = _read_errors(runs / f"{key}.json")
            if measured is None:
                measured = measure_errors(
                    row.arch,
                    train,
                    validation,
                    epochs,
                    seed,
                    follow(progress, done - 1, epochs),
                )
                results.json(f"runs/{key}.json", {"errors": measured, "row": row.name})
            errors[row.name].append(measured)
            progress.update(done, row=row.name, validation_error=measured["validation"])
    rows = {row.name: describe(row, errors[row.name]) for row in TABLE_3}
    figure, _ = viz.ablation_chart(
        f"Table 3 at {train.images.shape[1]} x {train.images.shape[2]}: "
        f"{len(train):,} images, {counted(epochs, 'epoch')}, "
        f"{counted(len(seeds), 'seed')}",
        "top-1 errors; bars: one standard deviation over seeds",
        list(rows),
        {
            "the paper, 224 x 224": {
                column: np.array([[row.paper[place]] for row in TABLE_3])
                for place, column in enumerate(_COLUMNS[:2])
            },
            "here": {
                column: np.array(
                    [[x[column] for x in errors[row.name]] for row in TABLE_3]
                )
                for column in _COLUMNS[:2]
            },
        },
    )
    results.figure("ablation", figure)
    order = {
        base.name: correlate([row for row in TABLE_3 if row.base is base], rows)
        for base in (ALEXNET_MINI, ZFNET_MINI)
    }
    results.metrics(
        {
            "data": train.source,
            "train_images": len(train),
            "validation_images": len(validation),
            "epochs": epochs,
            "seeds": list(seeds),
            "rows": rows,
            "rank_correlation_with_the_paper": order,
        }
    )
    results.config(options)
    results.manifest(
        seed=options.seed,
        digests={"train": train.digest(), "validation": validation.digest()},
    )
    print(table(rows))
    print(f"figure in {results.path}")


def split(options: Budget) -> tuple[Dataset, Dataset]:
    """Training and validation images, both from the training set."""
    at_least(1, options, "epochs", "train_images", "validation_images")
    at_least(1, options, "limit")
    at_least(0, options, "seed")
    dataset = load_dataset(options.dataset, "train", options.data_dir)
    count = min(options.train_images, options.limit or options.train_images)
    held = min(options.validation_images, options.limit or options.validation_images)
    if count + held > len(dataset):
        raise UsageError(
            f"--train-images {count} and --validation-images {held}: there are "
            f"{len(dataset)} in total"
        )
    if count < MINI.batch_size:
        raise UsageError(f"training needs at least {MINI.batch_size} images")
    chosen = np.random.default_rng(options.seed).permutation(len(dataset))
    return (
        dataset.take(np.sort(chosen[:count])),
        dataset.take(np.sort(chosen[count : count + held])),
    )


def follow(progress: Progress, finished: int, epochs: int) -> Callable[..., None]:
    """A callback for `training.train` that moves a bar of networks."""

    def show(done: float, total: int, **values: float) -> None:
        # A network counts as finished once it is measured.
        progress.update(finished + min(done / epochs, 0.99), **values)

    return show


def measure_errors(
    arch: Architecture,
    train: Dataset,
    validation: Dataset,
    epochs: int,
    seed: int,
    progress: Callable[..., None],
) -> dict[str, float]:
    """Train a network; its top-1 errors, and top-5 on validation, in percent."""
    *_, last = training.train(
        arch, train, recipe=MINI, epochs=epochs, seed=seed, progress=progress
    )
    # One program for both.
    images = np.concatenate([train.images, validation.images])
    logits = evaluate(network(last.model, preprocess=last.preprocess), images)
    parts = np.split(logits, [len(train)])

    def error(logits: np.ndarray, data: Dataset, top: int) -> float:
        best = np.argsort(-logits, axis=1, kind="stable")[:, :top]
        return 100 * float(1 - (best == data.labels[:, None]).any(1).mean())

    return {
        "train": error(parts[0], train, 1),
        "validation": error(parts[1], validation, 1),
        "validation_top5": error(parts[1], validation, 5),
    }


def _read_errors(file: Path) -> dict[str, float] | None:
    """Errors that an earlier run wrote; None if the file is missing or damaged."""
    try:
        errors = json.loads(file.read_text())["errors"]
        return {name: float(errors[name]) for name in _COLUMNS}
    except (OSError, ValueError, KeyError, TypeError):
        return None


_COLUMNS = ("train", "validation", "validation_top5")


def describe(row: Row, errors: list[dict[str, float]]) -> dict[str, object]:
    """Metrics of a row: the paper's errors, and ours with a value per seed."""
    return {
        "paper": dict(zip(_COLUMNS, row.paper, strict=True)),
        "errors": {name: [x[name] for x in errors] for name in _COLUMNS},
    }


def correlate(rows: list[Row], metrics: Mapping[str, Any]) -> dict[str, float]:
    """Spearman's rank correlation of the paper's errors and our means, by column."""
    return {
        column: spearman(
            np.array([metrics[row.name]["paper"][column] for row in rows]),
            np.array([np.mean(metrics[row.name]["errors"][column]) for row in rows]),
        )
        for column in _COLUMNS
    }


def table(rows: Mapping[str, Any]) -> str:
    """Training and validation errors, mean and spread, next to the paper's."""
    lines = [f"{'':40}  {'train':>12}  paper  {'validation':>12}  paper"]
    for name, row in rows.items():
        cells = []
        for column in _COLUMNS[:2]:
            ours = np.array(row["errors"][column])
            cells.append(f"{f'{ours.mean():.1f} ± {ours.std():.1f}':>12}")
            cells.append(f"{row['paper'][column]:>5.1f}")
        lines.append(f"{name:40}  " + "  ".join(cells))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(run, Options))
