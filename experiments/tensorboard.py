"""TensorBoard event files of a training run.

Scalars are the numbers in the record of each epoch. Histograms are the weights of each
layer, and its gradients and activations on a fixed batch of training images without
augmentation and dropout. Weights, gradients and activations are those of the network
after the epoch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from zfnet_jax.data import Dataset
from zfnet_jax.model import ConvNet
from zfnet_jax.training import Epoch

# The first feature maps of 32 images of 224 x 224 pixels take 150 MB.
_BATCH = 32


def write_events(
    folder: Path,
    epoch: Epoch,
    record: Mapping[str, Any],
    images: Dataset,
    label_smoothing: float,
) -> None:
    """Write the event file of an epoch, if the extra `tensorboard` is installed.

    Args:
        folder: Folder of the event files.
        epoch: The epoch.
        record: Its numbers.
        images: Training images, of which the first are the batch.
        label_smoothing: Label smoothing of the loss.
    """
    if importlib.util.find_spec("tensorboardX") is None:
        return
    from tensorboardX import SummaryWriter

    # A resumed run may repeat an epoch: the later file hides the earlier one.
    style = {"purge_step": epoch.number, "filename_suffix": f".{epoch.number:04d}"}
    with SummaryWriter(str(folder), **style) as writer:
        for name, value in record.items():
            if isinstance(value, float):
                writer.add_scalar(name, value, epoch.number)
        for name, values in list_values(epoch, images, label_smoothing):
            values = np.asarray(values)
            if np.abs(values).max() < 1e19:  # tensorboardX has no bins beyond 1e20
                writer.add_histogram(name, values, epoch.number)


def list_values(
    epoch: Epoch, images: Dataset, label_smoothing: float
) -> Iterator[tuple[str, Array]]:
    """List the weights, gradients and activations of each layer, with their names."""
    batch = images.take(np.arange(min(_BATCH, len(images))))
    inputs = epoch.preprocess(batch.images)
    gradients, features = _respond(epoch.model, inputs, batch.labels, label_smoothing)
    for layer in epoch.model.arch.kernel_shapes():
        for group, model in (("weights", epoch.model), ("gradients", gradients)):
            affine = getattr(model, layer)
            yield f"{group}/{layer}/kernel", affine.kernel[...]
            yield f"{group}/{layer}/bias", affine.bias[...]
    for layer, values in features.items():
        yield f"activations/{layer}", values


@jax.jit
def _respond(
    model: ConvNet,
    inputs: Float[Array, "b h w c"],
    labels: Int[Array, " b"],
    label_smoothing: float,
) -> tuple[ConvNet, dict[str, Float[Array, "b ..."]]]:
    """Compute the gradients of the loss, and the features of each layer."""

    def loss(model: ConvNet) -> Any:
        features = model.features(inputs).features
        logits = features["logits"]
        targets = jax.nn.one_hot(labels, logits.shape[-1])
        targets = optax.smooth_labels(targets, label_smoothing)
        return optax.softmax_cross_entropy(logits, targets).mean(), features

    return jax.grad(loss, has_aux=True)(model)
