"""Inference: logits, class probabilities by one view or ten, accuracy."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Int, UInt8

from zfnet_jax.data import Preprocessed, Preprocessing, ten_crop
from zfnet_jax.data.images import stored_shape
from zfnet_jax.networks import Network


def evaluate(
    net: Network, images: Any, batch_size: int = 500
) -> Float32[np.ndarray, "n classes"]:
    """Compute the logits of one view of each image.

    Args:
        net: The network.
        images: Pixels, uint8 [n, h, w, c], or a source of them; preprocessed images for
            a network without `preprocess`.
        batch_size: Images per batch.

    Example:
        >>> import zfnet_jax as zf
        >>> net = zf.load("zfnet32-cifar10")
        >>> evaluate(net, np.zeros((2, 32, 32, 3), np.uint8)).shape
        (2, 10)
    """
    if net.preprocess is not None:
        images = Preprocessed(images, net.preprocess)
    return net.activations(images, net.output, batch_size=batch_size)[net.output]


def class_probabilities(
    net: Network,
    images: Iterable[UInt8[np.ndarray, "h w c"]],
    *,
    ten_crops: bool = False,
    batch_size: int = 50,
) -> Iterator[Float32[np.ndarray, " classes"]]:
    """Yield the softmax probabilities of each image, from one view or ten.

    Ten views are the corners and the center, each also mirrored. Their probabilities
    are averaged (Krizhevsky et al. 2012, section 4.1). A mean image of the larger size
    is subtracted before they are cut.

    Args:
        net: The network, with its `preprocess`.
        images: Pixels. Ten crops take images larger than a crop, see `ten_crop_size`.
            They are read as needed, at most one batch ahead.
        ten_crops: Average over ten views.
        batch_size: Images per batch.
    """
    crop = stored_shape(net.image_shape, net.preprocess)[:2]
    images, size = iter(images), 0
    while batch := list(itertools.islice(images, batch_size)):
        views = np.stack(batch)
        if ten_crops:
            views = _cut_views(views, net.preprocess, crop)
        # A last batch of another size would be compiled anew.
        size = size or len(views)
        padded = np.resize(views, (size, *views.shape[1:]))
        if padded.dtype == np.uint8:
            logits = evaluate(net, padded, batch_size)
        else:
            logits = net.activations(padded, net.output, batch_size=batch_size)
            logits = logits[net.output]
        probabilities = np.asarray(jax.nn.softmax(logits[: len(views)]))
        yield from probabilities.reshape(len(batch), -1, logits.shape[-1]).mean(1)


def _cut_views(
    images: np.ndarray, preprocess: Any, crop: tuple[int, int]
) -> np.ndarray:
    """Cut ten crops of each image; preprocessed, if the mean image has their size."""
    if isinstance(preprocess, Preprocessing) and preprocess.crop < 1:
        images = preprocess.subtract_mean(images)
    return ten_crop(images, crop).reshape(-1, *crop, images.shape[-1])


def loss_and_accuracy(
    logits: Float32[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]
) -> tuple[float, float]:
    """Compute the mean cross-entropy in nats, and the fraction classified correctly."""
    chances = np.asarray(jax.nn.log_softmax(logits))
    loss = -chances[np.arange(len(labels)), labels].mean()
    return float(loss), float((logits.argmax(-1) == labels).mean())
