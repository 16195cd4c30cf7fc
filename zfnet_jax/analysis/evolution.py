"""How features come about in training (Fig. 4 of the paper).

The paper shows, over training, the strongest activation of a unit across the training
set; where its source image changes, the picture jumps. Beside that, a number: how much
a layer's features still move between two checkpoints.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from zfnet_jax.analysis.mining import project_each, top_activations
from zfnet_jax.data import Dataset
from zfnet_jax.deconvnet import Projections, Rule
from zfnet_jax.model import ConvNet

_TOGETHER = 32


@dataclasses.dataclass(frozen=True, eq=False)
class Evolution:
    """What became of the units of a layer.

    Attributes:
        epochs: Epochs of the checkpoints, in order.
        values: [e, u], each unit's strongest activation over the images.
        images: [e, u], the image that it is of.
        positions: [e, u, 2], row and column in the map; 0, 0 in a dense layer.
        dead: [e, u], whether the unit is positive nowhere.
    """

    epochs: tuple[int, ...]
    values: Float32[np.ndarray, "e u"]
    images: Int32[np.ndarray, "e u"]
    positions: Int32[np.ndarray, "e u 2"]
    dead: Bool[np.ndarray, "e u"]

    @property
    def jumps(self) -> Bool[np.ndarray, "e u"]:
        """Whether the image is another than at the checkpoint before."""
        first = np.zeros((1, self.images.shape[1]), bool)
        return np.concatenate([first, self.images[1:] != self.images[:-1]])


def evolution(
    networks: Mapping[int, ConvNet],
    dataset: Dataset | Float[np.ndarray, "n h w c"],
    layers: Sequence[str],
    *,
    preprocess: Callable[[Any], Array] | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Evolution]:
    """Each unit's strongest activation over a dataset at each checkpoint.

    Args:
        networks: The network at each checkpoint, by epoch.
        dataset: Images, as for `top_activations`; the paper takes the training set.
        layers: Which layers.
        preprocess: As for `top_activations`.
        progress: Is told how many checkpoints are done.

    Raises:
        ValueError: fewer than two checkpoints, networks of different architectures, or
            what `top_activations` refuses.
    """
    epochs = _ordered(networks)
    found = []
    for done, epoch in enumerate(epochs, 1):
        found.append(
            top_activations(
                networks[epoch], dataset, layers, k=1, preprocess=preprocess
            )
        )
        if progress is not None:
            progress(done)
    return {
        layer: Evolution(
            tuple(epochs),
            np.stack([top[layer].values[:, 0] for top in found]),
            np.stack([top[layer].images[:, 0] for top in found]),
            np.stack([top[layer].positions[:, 0] for top in found]),
            np.stack([top[layer].dead for top in found]),
        )
        for layer in layers
    }


def project_course(
    networks: Mapping[int, ConvNet],
    dataset: Dataset | Float[np.ndarray, "n h w c"],
    layer: str,
    course: Evolution,
    units: Sequence[int] | Int[np.ndarray, " u"],
    *,
    rule: Rule = "deconvnet",
    preprocess: Callable[[Any], Array] | None = None,
) -> Projections:
    """Project units' strongest activations at each checkpoint, each by its network.

    Args:
        networks: The network at each checkpoint, by epoch.
        dataset: The images that were searched.
        layer: The layer.
        course: What was found in it.
        units: Which units.
        rule: What a ReLU does on the way down, as in `project`.
        preprocess: As for `top_activations`.

    Returns:
        Crops of the receptive field over units, then checkpoints: [u * e, h, w, c].
        `images` are indices into the dataset. A dead unit's is zeros.

    Raises:
        ValueError: what `project` refuses, or a `Dataset` without `preprocess`.
    """
    which = np.asarray(units)
    found = [
        project_each(
            networks[epoch],
            dataset,
            layer,
            which,
            course.images[row, which],
            course.positions[row, which],
            rule=rule,
            preprocess=preprocess,
        )
        for row, epoch in enumerate(course.epochs)
    ]

    def in_turn(*parts: np.ndarray) -> np.ndarray:
        return np.stack(parts, 1).reshape(-1, *parts[0].shape[1:])

    fields = [field.name for field in dataclasses.fields(Projections)]
    return Projections(*(in_turn(*(getattr(x, n) for x in found)) for n in fields))


def motion(
    networks: Mapping[int, ConvNet],
    images: Float[np.ndarray, "n h w c"],
    layers: Sequence[str],
) -> dict[str, Float[np.ndarray, "e u"]]:
    """How far each unit's activations move from one checkpoint to the next.

    One minus the correlation (Pearson's r) of a unit's activations, over all positions
    of all images, at two checkpoints: 0 for a unit that has only been scaled or
    shifted, 1 for one that has nothing to do with its former self.

    Args:
        networks: The network at each checkpoint, by epoch.
        images: Preprocessed images.
        layers: Which layers.

    Returns:
        By layer, a row for each step from a checkpoint to the next; NaN where a unit
        does not vary at one of the two.

    Raises:
        ValueError: fewer than two checkpoints, networks of different architectures, no
            such layer, or no image.
    """
    epochs = _ordered(networks)
    if not len(images):
        raise ValueError("there are no images to compare on")
    arch = networks[epochs[0]].arch
    names = tuple(arch.layer(name).name for name in layers)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for before, after in itertools.pairwise(epochs):
        pair = [nnx.split(networks[epoch]) for epoch in (before, after)]
        run = _moments(pair[0][0], names)
        sums: dict[str, np.ndarray] = {}
        for start in range(0, len(images), _TOGETHER):
            batch = images[start : start + _TOGETHER]
            parts = run(pair[0][1], pair[1][1], np.asarray(batch, np.float32))
            for name, part in parts.items():
                sums[name] = sums.get(name, 0) + np.asarray(part, np.float64)
        for name, (count, x, y, xx, yy, xy) in sums.items():
            covariance = xy / count - x / count * y / count
            variances = xx / count - (x / count) ** 2, yy / count - (y / count) ** 2
            scale = np.sqrt(np.maximum(variances[0], 0) * np.maximum(variances[1], 0))
            # Less than rounding is no variation.
            still = scale <= 1e-6 * np.sqrt(xx * yy) / count
            r = covariance / np.where(still, 1, scale)
            rows[name].append(np.where(still, np.nan, 1 - np.clip(r, -1, 1)))
    return {name: np.stack(row) for name, row in rows.items()}


@functools.lru_cache(maxsize=8)
def _moments(graph, names: tuple[str, ...]) -> Callable[..., dict[str, Array]]:
    """The program that sums a batch: [6, u] of count, x, y, x², y² and xy."""

    @jax.jit
    def sums(first, second, batch: Array) -> dict[str, Array]:
        model = nnx.merge(graph, first)
        order = [layer.name for layer in model.arch.layers]
        last = max(names, key=order.index)
        seen = [
            nnx.merge(graph, weights).features(batch, until=last).features
            for weights in (first, second)
        ]
        out = {}
        for name in names:
            x, y = (
                maps[name].astype(jnp.float32).reshape(-1, maps[name].shape[-1])
                for maps in seen
            )
            count = jnp.full(x.shape[-1], len(x), jnp.float32)
            products = (x, y, x * x, y * y, x * y)
            out[name] = jnp.stack([count, *(p.sum(0) for p in products)])
        return out

    return sums


def _ordered(networks: Mapping[int, ConvNet]) -> list[int]:
    epochs = sorted(networks)
    if len(epochs) < 2:
        raise ValueError(f"two checkpoints are needed, and there are {len(epochs)}")
    if len({network.arch for network in networks.values()}) > 1:
        raise ValueError("the checkpoints are of different architectures")
    return epochs
