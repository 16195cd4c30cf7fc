"""Small networks that are trained alike, for Table 3 and Fig. 6 of the paper."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
from flax import nnx

import zfnet_jax as zf
from experiments.harness import Positive, Run, UserError
from experiments.progress import Progress, plural, share
from zfnet_jax.arch import Architecture
from zfnet_jax.augmentation import Augmentation
from zfnet_jax.data import Dataset, load_dataset
from zfnet_jax.networks import Network
from zfnet_jax.recipes import Recipe, warm_up_and_cosine


def _init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Draw layer 1 on the paper's scale, where learned filters stand out, others by He.

    With the paper's scale in all layers, pixels of about -2 to 2 would fade.
    """
    sees_pixels = len(shape) == 4 and shape[2] == 3
    he = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")
    return (nnx.initializers.normal(1e-2) if sees_pixels else he)(key, shape, dtype)


# The paper's dropout, crops and batches on a budget of minutes, within which Adam gets
# further than the paper's SGD.
MINI = Recipe(
    name="mini",
    epochs=12,
    batch_size=64,
    scale=1 / 64,
    init=_init,
    dropout=0.5,
    augmentation=Augmentation(margin=2),
    rate=2e-3,
    schedule=warm_up_and_cosine(0.1),
    optimizer=lambda rate: optax.adamw(rate, weight_decay=1e-2),
)


@dataclasses.dataclass(kw_only=True)
class TrainingRun(Run):
    """A run that trains small networks on a part of a training set.

    Attributes:
        train_images: Training images.
        validation_images: Images of the training set that are only validated on.
        epochs: Passes over the training images; by default 12, or 1 with --limit.
        dataset: Source of the images; shapes are generated and need no download.
        data_dir: Folder of CIFAR-10, by default $TFDS_DATA_DIR.
        limit: Maximum number of training images, and of validation images.
        seed: First seed; it also determines which images are validated on.
    """

    train_images: Positive = 5_000
    validation_images: Positive = 2_000
    epochs: Positive | None = None
    dataset: Literal["cifar10", "shapes"] = "cifar10"
    data_dir: Path | None = None
    limit: Positive | None = None

    @property
    def passes(self) -> int:
        """Epochs of each training."""
        return self.epochs or (MINI.epochs if self.limit is None else 1)

    def split(self) -> tuple[Dataset, Dataset]:
        """Draw training and validation images, both from the training set."""
        dataset = load_dataset(self.dataset, "train", self.data_dir)
        most = self.limit or len(dataset)
        count, others = min(self.train_images, most), min(self.validation_images, most)
        if count + others > len(dataset):
            raise UserError(
                f"--train-images {count} and --validation-images {others}: there are "
                f"{plural(len(dataset), 'image')} in all"
            )
        order = np.random.default_rng(self.seed).permutation(len(dataset))
        parts = order[:count], order[count : count + others]
        train, validation = (dataset.take(np.sort(part)) for part in parts)
        self.digests |= {"train": train.digest(), "validation": validation.digest()}
        return train, validation

    def train(
        self,
        arch: Architecture,
        images: Dataset,
        seed: int,
        progress: Progress,
        done: int,
        total: int,
        recipe: Recipe = MINI,
    ) -> Network:
        """Train a network for all its epochs, the next after `done` of `total`."""
        *_, last = zf.train(
            arch,
            images,
            recipe=recipe,
            epochs=self.passes,
            seed=seed,
            progress=share(progress, done, total),
        )
        return zf.network(last.model, preprocess=last.preprocess)
