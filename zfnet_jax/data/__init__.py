"""Images in memory: CIFAR-10, generated shapes, photographs, and preprocessing."""

from zfnet_jax.data.cifar10 import Archive, load_cifar10
from zfnet_jax.data.dataset import DataNotFoundError, Dataset
from zfnet_jax.data.photographs import load_photograph
from zfnet_jax.data.preprocessing import (
    Preprocessing,
    center_crop,
    resize_shortest_side,
    ten_crop,
)
from zfnet_jax.data.shapes import SHAPES, make_shapes

__all__ = [
    "SHAPES",
    "Archive",
    "DataNotFoundError",
    "Dataset",
    "Preprocessing",
    "center_crop",
    "load_cifar10",
    "load_photograph",
    "make_shapes",
    "resize_shortest_side",
    "ten_crop",
]
