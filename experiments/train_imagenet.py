"""Train a network of the paper on ImageNet, on one device or many.

    python -m experiments.train_imagenet --data-dir FOLDER --recipe modern

FOLDER has train/CLASS/*.JPEG and val/CLASS/*.JPEG, records of
experiments.prepare_images, or the imagenet2012 of tensorflow-datasets. A batch is split
over all devices; docs/howto/cluster.md has the commands for several hosts.

The recipe of the paper (section 3) lowers the learning rate when the error on the
validation images stalls. Its result there: 38.4% top-1 and 16.5% top-5 error, by ten
crops. The modern recipe adds normalization while training, warm-up, cosine, label
smoothing and mixup. Neither was run to its end here. For comparison, the ZFNet of
osmr/imgclsmob, with contrast normalization and a recipe of its own, has 39.21% top-1
and 16.78% top-5 error by one view (its Gluon model).

The result folder contains metrics.json (errors by one view and by ten crops, beside
Table 2 of the paper), the weights, checkpoints and training curves.
"""

from __future__ import annotations

import dataclasses
import functools
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import zfnet_jax as zf
from experiments.distributed import DistributedRun
from experiments.harness import Metrics, Positive, UserError, main
from experiments.progress import say, say_table
from experiments.train_cifar10 import Log, check_rate, open_log, write_weights
from zfnet_jax import checkpoint
from zfnet_jax.arch import ALEXNET, ZFNET, ZFNET_PLAIN
from zfnet_jax.data import Preprocessing, center_crop
from zfnet_jax.data.labeled import LabeledImages, mean_image, open_labeled
from zfnet_jax.data.pipeline import compute_ahead, read_batches
from zfnet_jax.files import digest
from zfnet_jax.imagenet.classes import CLASS_NAMES, WORDNET_IDS
from zfnet_jax.inference import class_probabilities
from zfnet_jax.networks import Network
from zfnet_jax.processes import gather
from zfnet_jax.recipes import RECIPES, Recipe
from zfnet_jax.train_step import check_batch_size
from zfnet_jax.training import Epoch, train_batches

ARCHITECTURES = {arch.name: arch for arch in (ZFNET, ZFNET_PLAIN, ALEXNET)}
# Validation images that are read at a time.
_CHUNK = 32
# Top-1 and top-5 error on the validation images in Table 2.
TABLE_2 = {
    "Krizhevsky et al. 2012, one network": (0.407, 0.182),
    "the paper's copy of it": (0.405, 0.181),
    "the paper, one network": (0.384, 0.165),
    "the paper, five networks": (0.367, 0.153),
    "the paper, layers 3 to 5 of 512, 1024 and 512": (0.375, 0.160),
    "the paper, six networks of both kinds": (0.360, 0.147),
}
ACCURACIES = "accuracy", "top5_accuracy"
VIEWS = {"one view": False, "ten crops": True}


@dataclasses.dataclass(frozen=True)
class Data:
    """The images of a run.

    Attributes:
        train: Training images.
        validation: Validation images.
        measured: Indices of those to measure.
        workers: Processes that read them.
    """

    train: LabeledImages
    validation: LabeledImages
    measured: np.ndarray
    workers: int

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; those of ImageNet where folders are WordNet ids."""
        known = dict(zip(WORDNET_IDS, CLASS_NAMES, strict=True))
        return tuple(known.get(name, name) for name in self.train.class_names)


def train_imagenet(
    run: DistributedRun,
    data_dir: Path,
    model: Literal["zfnet", "zfnet-plain", "alexnet"] = "zfnet",
    recipe: Literal["paper", "modern"] = "paper",
    epochs: Positive | None = None,
    batch_size: Positive | None = None,
    learning_rate: float | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    validation: Positive | None = None,
    workers: int = 8,
    save_every: Positive = 1_000,
    resume: bool = False,
) -> Metrics:
    """Train, measure as the paper does, and draw the curves.

    Args:
        data_dir: Folder of the images.
        model: Architecture.
        recipe: Training recipe: as in section 3 of the paper, or a modern one.
        epochs: Passes over the training images, by default the recipe's number.
        batch_size: Images per step over all devices, by default the recipe's number.
        learning_rate: Peak of the learning rate, by default the recipe's, which fits
            its batch size.
        precision: Type of the computation.
        validation: Validation images to measure, evenly spread; by default all.
        workers: Processes that read images, for each process of the run; with 0 the
            run's own.
        save_every: Steps between two checkpoints. Each epoch ends with one too.
        resume: Continue from the newest good checkpoint in --out.
    """
    check_rate(learning_rate)
    options = {"epochs": epochs, "batch_size": batch_size, "rate": learning_rate}
    given = {name: value for name, value in options.items() if value is not None}
    plan = dataclasses.replace(RECIPES[recipe], **given)
    data = open_data(data_dir, validation, workers)
    if plan.batch_size > len(data.train):
        raise UserError(
            f"--batch-size {plan.batch_size}: there are {len(data.train)} training "
            "images; give at most as many"
        )
    # Before the mean image, which takes minutes.
    check_batch_size(plan, plan.batch_size, jax.device_count())
    origin = {
        "--model": model,
        "--recipe": recipe,
        "--batch-size": plan.batch_size,
        "--learning-rate": plan.rate,
        "--precision": precision,
        "--validation": len(data.measured),
        "--seed": run.seed,
        # The rate of a recipe that anneals does not depend on the number of epochs.
        "--epochs": None if plan.anneals else plan.epochs,
        "training images": data.train.digest()[:12],
        "validation images": data.validation.digest()[:12],
    }
    log, state = open_log(run, origin, resume)
    epoch = train(run, plan, data, log, state, save_every)
    yield from report(run, epoch, data, log)


def open_data(folder: Path, validation: int | None, workers: int) -> Data:
    """Open the images, and choose those to measure."""
    train, images = (open_labeled(folder, split) for split in ("train", "val"))
    count = min(validation or len(images), len(images))
    measured = np.arange(count) * len(images) // count
    return Data(train, images, measured, workers)


def train(
    run: DistributedRun,
    recipe: Recipe,
    data: Data,
    log: Log,
    state: list[np.ndarray] | None,
    save_every: int,
) -> Epoch:
    """Train from a state or from scratch; measure and save. Return the last epoch."""
    arch, batch_size = ARCHITECTURES[log.origin["--model"]], recipe.batch_size
    side = arch.input_hw[0]
    mean = mean_image(data.train)
    preprocess = Preprocessing(mean, recipe.scale, crop=side / len(mean))

    def read(start: int, stop: int) -> Iterator[Any]:
        return read_batches(
            data.train,
            batch_size=batch_size,
            seed=run.seed,
            start=start,
            stop=stop,
            workers=data.workers,
            process=(jax.process_index(), jax.process_count()),
        )

    before, progress = log.seconds, run.progress("training")
    epoch = None
    for epoch in train_batches(
        arch,
        read,
        preprocess=preprocess,
        class_count=len(data.class_names),
        steps=len(data.train) // batch_size,
        recipe=recipe,
        seed=run.seed,
        dtype=jnp.dtype(log.origin["--precision"]),
        plateau=log.plateau,
        resume=state,
        progress=progress,
        save_every=save_every,
    ):
        if epoch.record:
            measured = measure(data, build_network(epoch, data))
            progress(epoch.number, recipe.epochs, **measured)
            log.history.append({**epoch.record, **measured})
            if recipe.anneals:
                log.plateau.update(1 - log.accuracy)
        log.seconds = before + epoch.train_seconds
        if epoch.train_seconds:  # it is 0 for the state of the checkpoint
            folder, step = run.path / "checkpoints", int(epoch.state.step)
            checkpoint.save(folder, step, epoch.state, vars(log))
    assert epoch is not None
    return epoch


def build_network(epoch: Epoch, data: Data) -> Network:
    """Make a network of an epoch."""
    return zf.network(
        epoch.model, preprocess=epoch.preprocess, class_names=data.class_names
    )


def measure(data: Data, net: Network, ten_crops: bool = False) -> dict[str, float]:
    """Measure loss and accuracies on validation images.

    Each process of the run takes a part of them.
    """
    part = data.measured[jax.process_index() :: jax.process_count()]
    chunks = np.split(part, range(_CHUNK, len(part), _CHUNK)) if len(part) else []
    read = functools.partial(read_chunk, data.validation, chunks)
    labels: list[int] = []

    def pictures() -> Iterator[np.ndarray]:
        for pixels, chunk_labels in compute_ahead(read, 0, len(chunks), data.workers):
            labels.extend(chunk_labels.tolist())
            yield from pixels if ten_crops else center_crop(pixels, net.image_shape[:2])

    sums = np.zeros(4)
    size = _CHUNK // 4 if ten_crops else _CHUNK
    views = class_probabilities(net, pictures(), ten_crops=ten_crops, batch_size=size)
    for index, chances in enumerate(views):
        label = labels[index]
        ranks = np.argsort(-chances, kind="stable").tolist()
        loss = -np.log(max(chances[label], np.finfo(np.float32).tiny))
        sums += 1, loss, label == ranks[0], label in ranks[:5]
    count, *totals = np.sum(gather(sums), axis=0).tolist()
    names = "loss", *ACCURACIES
    return {f"validation_{x}": y / count for x, y in zip(names, totals, strict=True)}


def read_chunk(
    images: LabeledImages, chunks: Sequence[np.ndarray], number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Read images and labels; a worker process calls it."""
    return images.read(chunks[number])


def report(run: DistributedRun, epoch: Epoch, data: Data, log: Log) -> Metrics:
    """Measure as the paper does; write the weights and the curves."""
    from zfnet_jax.viz.training import training_curves

    net, model = build_network(epoch, data), log.origin["--model"]
    errors = {}
    for view, ten_crops in VIEWS.items():
        run.end_progress()
        say(f"measuring by {view}")
        measured = measure(data, net, ten_crops)
        top1, top5 = (1 - measured[f"validation_{x}"] for x in ACCURACIES)
        errors[f"this {model}, {view}"] = top1, top5
    run.figure("training_curves", training_curves(log.history))
    run.digests |= {"train": data.train.digest(), "val": data.validation.digest()}
    if run.is_first:
        (one_view, ten_crops) = errors.values()
        weights = write_weights(
            run,
            "weights",
            epoch,
            data.class_names,
            dataset="imagenet",
            data=data.train.source,
            top1_error=one_view[0],
            top5_error=one_view[1],
            ten_crop_top1_error=ten_crops[0],
            ten_crop_top5_error=ten_crops[1],
        )
        run.digests["weights"] = digest(weights)
    errors |= TABLE_2
    cells = [[x, *(f"{error:.1%}" for error in row)] for x, row in errors.items()]
    say_table([["", "top-1 error", "top-5 error"], *cells])
    images = log.history[-1]["steps"][-1] * log.origin["--batch-size"]
    names = "top1_error", "top5_error"
    yield "errors", {x: dict(zip(names, y, strict=True)) for x, y in errors.items()}
    yield "validation_images", len(data.measured)
    yield "train_images", len(data.train)
    yield "train_seconds", log.seconds
    yield "compile_seconds", epoch.compile_seconds
    yield "images_per_second", images / log.seconds
    yield "devices", jax.device_count()
    yield "processes", jax.process_count()
    yield "history", log.history
    yield "data", data.train.source
    say("next:")
    weights = shlex.join(["--weights", str(run.path / "weights.safetensors")])
    say(f"  python -m experiments.predict {weights} --ten-crop --image PHOTOGRAPHS")
    say(f"  python -m experiments.project {weights} --image PHOTOGRAPH")


if __name__ == "__main__":
    sys.exit(main(train_imagenet))
