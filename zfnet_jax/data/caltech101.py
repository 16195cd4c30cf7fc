"""Caltech-101 (Fei-Fei et al. 2004), as tensorflow-datasets prepares it."""

import os
from collections.abc import Callable

import numpy as np

from zfnet_jax.data.dataset import Dataset
from zfnet_jax.data.prepared import find_root, read_prepared
from zfnet_jax.files import DataNotFoundError


def load_caltech101(
    data_dir: str | os.PathLike[str] | None,
    image_hw: tuple[int, int],
    fit: Callable[[np.ndarray], np.ndarray],
) -> Dataset:
    """Decode all 9,144 images of 102 classes, one of them background, into memory.

    Args:
        data_dir: A folder with a `caltech101/` that tensorflow-datasets prepared as
            array_record. By default $TFDS_DATA_DIR or `~/tensorflow_datasets`.
        image_hw: Rows and columns of the images.
        fit: Brings a photograph, uint8 [h, w, 3], to this size.

    Raises:
        DataNotFoundError: It is not prepared there, or damaged.
    """
    root = find_root(data_dir)
    command = (
        f"tfds build caltech101 --file_format array_record --data_dir {root} (it needs "
        "TensorFlow)"
    )
    if not (root / "caltech101").is_dir():
        raise DataNotFoundError(
            f"there is no {root / 'caltech101'}: prepare it by {command}, or name a "
            "folder of class folders with --images"
        )
    otherwise = f"remove the folder and run {command}"
    return read_prepared(
        root,
        "caltech101",
        "train+test",
        "Caltech-101",
        "JPEG",
        image_hw,
        fit,
        otherwise=otherwise,
    )
