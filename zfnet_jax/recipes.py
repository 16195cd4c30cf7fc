"""Recipes for training as data: the paper's (section 3), and later ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from flax import nnx
from jaxtyping import Array, PyTree

from zfnet_jax.augmentation import Augmentation
from zfnet_jax.model import Initializer

_MOMENTUM = 0.9


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides how a network is trained.

    Attributes:
        name: Name on the command line.
        epochs: Default number of passes over the training data.
        batch_size: Default number of images per step.
        scale: Factor of the pixels after the mean is subtracted.
        init: Draws the kernels. Biases start at 0.
        dropout: Probability of dropping a unit of a hidden dense layer.
        augmentation: Random views of the images.
        rate: Peak of the learning rate.
        schedule: Builds the learning rate per step from its peak and the total number
            of steps.
        optimizer: Builds the optax transformation from the learning rate per step.
        normalize: Whether the outputs of convolutions are normalized by batch
            statistics before bias and ReLU (Ioffe & Szegedy 2015, arXiv 1502.03167).
            The result has this folded into kernels and biases, so the network that is
            evaluated and kept has no normalization.
        label_smoothing: Fraction of the target that is spread over all classes.
        mixup: Alpha of the Beta distribution of the share with which each image and its
            target are mixed with another's (Zhang et al. 2017, arXiv 1710.09412); 0 for
            no mixing.
        average: Decay of the running average of the weights that is evaluated and
            kept; 0 keeps the last weights.
        anneals: Whether a `Plateau` of the validation error lowers the learning rate.
    """

    name: str
    epochs: int
    batch_size: int
    scale: float
    init: Initializer
    dropout: float
    augmentation: Augmentation
    rate: float
    schedule: Callable[[float, int], optax.Schedule]
    optimizer: Callable[[optax.Schedule], optax.GradientTransformation]
    normalize: bool = False
    label_smoothing: float = 0.0
    mixup: float = 0.0
    average: float = 0.0
    anneals: bool = False


@dataclasses.dataclass
class Plateau:
    """Divides the learning rate by 10 when the validation error stalls (section 3).

    Attributes:
        factor: Factor of the learning rate at each stall.
        patience: Number of epochs without a better error that make a stall.
        least: Smallest scale.
        scale: Current factor of the learning rate, read by `train`.
        best: Lowest error so far.
        waited: Number of epochs since then or since the last stall.

    Example:
        >>> plateau = Plateau(patience=2)
        >>> for error in (0.5, 0.4, 0.4, 0.41):
        ...     plateau.update(error)
        >>> plateau.scale
        0.1
    """

    factor: float = 0.1
    patience: int = 5
    least: float = 1e-3
    scale: float = 1.0
    best: float = 1.0
    waited: int = 0

    def update(self, error: float) -> None:
        """Take the validation error after an epoch, 0 to 1, into account."""
        if error < (1 - 1e-4) * self.best:
            self.best, self.waited = error, 0
        else:
            self.waited += 1
        if self.waited == self.patience:
            self.scale = max(self.scale * self.factor, self.least)
            self.waited = 0


def limit_kernel_rms(limit: float = 0.1) -> optax.GradientTransformation:
    """Scale convolution filters whose RMS passes `limit` back to it (section 3).

    The last transformation of a chain: it changes the update so that the weights after
    the step obey the limit. A filter is one output channel of an HWIO kernel.

    Args:
        limit: Largest root mean square of a filter.
    """

    def limit_kernel(change: Array, weight: Array) -> Array:
        if weight.ndim != 4:
            return change
        after = weight + change
        rms = jnp.sqrt(jnp.mean(jnp.square(after), axis=(0, 1, 2)))
        factor = limit / jnp.maximum(rms, limit)
        # Exact where nothing is scaled: weight + change - weight would round.
        return jnp.where(factor < 1, after * factor - weight, change)

    return optax.stateless(
        lambda updates, params: jax.tree.map(limit_kernel, updates, params)
    )


def _sgd_with_limit(rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.chain(optax.sgd(rate, _MOMENTUM), limit_kernel_rms())


def _warm_up_and_decay(peak: float, total: int) -> optax.Schedule:
    """Build a rate that rises for 15% of all steps, then falls to 0."""
    warm_up = max(1, round(0.15 * total))
    return optax.join_schedules(
        [
            optax.linear_schedule(peak / warm_up, peak, warm_up),
            optax.linear_schedule(peak, 0.0, max(1, total - warm_up)),
        ],
        [warm_up],
    )


def warm_up_and_cosine(share: float) -> Callable[[float, int], optax.Schedule]:
    """Return a schedule that rises, then falls to 0 as a cosine does.

    Args:
        share: Part of all steps during which the rate rises, 0 to 1.
    """

    def schedule(peak: float, total: int) -> optax.Schedule:
        warm_up = max(1, int(share * total))
        return optax.warmup_cosine_decay_schedule(
            peak / warm_up, peak, warm_up, max(total, warm_up + 1)
        )

    return schedule


def _nesterov_with_decay(rate: optax.Schedule) -> optax.GradientTransformation:
    """Build SGD whose gradients include a decay of all weights but the biases."""

    def is_kernel(params: PyTree) -> PyTree:
        return jax.tree.map(lambda weight: weight.ndim > 1, params)

    return optax.chain(
        optax.add_decayed_weights(5e-4, is_kernel),
        optax.sgd(rate, _MOMENTUM, nesterov=True),
    )


def _muon_and_sgd(rate: optax.Schedule) -> optax.GradientTransformation:
    """Build Muon (Jordan 2024) for hidden kernels, Nesterov SGD for all other weights.

    Orthogonalized updates learn every direction of a kernel at the same pace.
    """

    def kind(path: tuple[Any, ...], weight: Array) -> str:
        return "muon" if weight.ndim > 1 and path[0].name != "logits" else "sgd"

    def as_matrix(weight: Array) -> optax.contrib.MuonDimensionNumbers:
        last = weight.ndim - 1
        return optax.contrib.MuonDimensionNumbers(tuple(range(last)), last)

    muon = optax.chain(
        optax.contrib.scale_by_muon(
            beta=_MOMENTUM,
            weight_dimension_numbers=lambda params: jax.tree.map(as_matrix, params),
        ),
        optax.add_decayed_weights(0.05),
        optax.scale_by_learning_rate(rate),
    )
    sgd = optax.chain(
        optax.clip_by_global_norm(2.0),
        optax.sgd(lambda step: rate(step) * 4 / 3, _MOMENTUM, nesterov=True),
    )

    def kinds(params: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(kind, params)

    return optax.partition({"muon": muon, "sgd": sgd}, kinds)


PAPER = Recipe(
    name="paper",
    epochs=70,
    batch_size=128,
    scale=1.0,
    init=nnx.initializers.normal(1e-2),
    dropout=0.5,
    augmentation=Augmentation(margin=2, corners=True),
    rate=1e-2,
    schedule=lambda rate, total: optax.constant_schedule(rate),
    optimizer=_sgd_with_limit,
    anneals=True,
)

FAST = Recipe(
    name="fast",
    epochs=6,
    batch_size=256,
    scale=1 / 64,
    init=nnx.initializers.variance_scaling(1.0, "fan_in", "normal"),
    dropout=0.0,
    augmentation=Augmentation(margin=4),
    rate=0.03,
    schedule=_warm_up_and_decay,
    optimizer=_muon_and_sgd,
    normalize=True,
    label_smoothing=0.1,
    average=0.99,
)

LONG = dataclasses.replace(
    FAST,
    name="long",
    epochs=60,
    dropout=0.5,
    augmentation=Augmentation(margin=4, cutout=3 / 8),
    average=0.999,
)

# He et al. 2018 (arXiv 1812.01187): Nesterov momentum, warm-up, cosine, label
# smoothing, mixup, no decay of biases. Rate and decay are those of Krizhevsky et al.
# 2012, the rate doubled with the batch.
MODERN = Recipe(
    name="modern",
    epochs=90,
    batch_size=256,
    scale=1 / 64,
    init=nnx.initializers.variance_scaling(1.0, "fan_in", "normal"),
    dropout=0.5,
    augmentation=Augmentation(margin=4),
    rate=0.02,
    schedule=warm_up_and_cosine(0.05),
    optimizer=_nesterov_with_decay,
    normalize=True,
    label_smoothing=0.1,
    mixup=0.2,
)

RECIPES: Mapping[str, Recipe] = {x.name: x for x in (PAPER, FAST, LONG, MODERN)}
