"""The datasets that commands know by name."""

import os
from typing import Literal

from zfnet_jax.data.cifar10 import load_cifar10
from zfnet_jax.data.dataset import Dataset
from zfnet_jax.data.shapes import make_shapes

_SIZES = {
    "cifar10": {"train": 50_000, "test": 10_000},
    "shapes": {"train": 10_000, "test": 2_000},
}


def load_dataset(
    name: Literal["cifar10", "shapes"],
    split: Literal["train", "test"],
    data_dir: str | os.PathLike[str] | None = None,
    limit: int | None = None,
) -> Dataset:
    """Load the training or test images of a dataset, at most `limit`.

    CIFAR-10 has 50,000 and 10,000 images, in `data_dir` as for `load_cifar10`; shapes
    are 10,000 and 2,000.

    Raises:
        DataNotFoundError: CIFAR-10 is missing or damaged.
        ValueError: There is no such dataset or split, or `limit` is below 1.

    Example:
        >>> load_dataset("shapes", "test", limit=20).images.shape
        (20, 32, 32, 3)
    """
    if split not in _SIZES.get(name, ()):
        raise ValueError(f"there is no dataset {name!r} with a split {split!r}")
    count = _SIZES[name][split]
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")
    count = min(count, limit or count)
    if name == "cifar10":
        return load_cifar10(split, data_dir, count)
    return make_shapes(count, seed=0 if split == "train" else 1)
