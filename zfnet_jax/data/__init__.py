"""Images in memory and on the disk, and their preprocessing."""

from zfnet_jax.data.caltech101 import load_caltech101
from zfnet_jax.data.cifar10 import load_cifar10
from zfnet_jax.data.dataset import Dataset
from zfnet_jax.data.decoding import load_photograph
from zfnet_jax.data.images import DatasetImages
from zfnet_jax.data.labeled import LabeledImages, mean_image, open_labeled
from zfnet_jax.data.photographs import Photographs, find_photographs
from zfnet_jax.data.pipeline import read_batches
from zfnet_jax.data.preprocessing import (
    CAFFE,
    TORCHVISION,
    Normalization,
    Preprocessed,
    Preprocessing,
    center_crop,
    fit_photograph,
    resize_shortest_side,
    ten_crop,
    ten_crop_size,
)
from zfnet_jax.data.shapes import CORNERS, SHAPES, make_shapes, shape_parts
from zfnet_jax.data.sources import load_dataset

__all__ = [
    "CAFFE",
    "CORNERS",
    "SHAPES",
    "TORCHVISION",
    "Dataset",
    "DatasetImages",
    "LabeledImages",
    "Normalization",
    "Photographs",
    "Preprocessed",
    "Preprocessing",
    "center_crop",
    "find_photographs",
    "fit_photograph",
    "load_caltech101",
    "load_cifar10",
    "load_dataset",
    "load_photograph",
    "make_shapes",
    "mean_image",
    "open_labeled",
    "read_batches",
    "resize_shortest_side",
    "shape_parts",
    "ten_crop",
    "ten_crop_size",
]
