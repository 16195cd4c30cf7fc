"""Development of features during training (Fig. 4 of the paper).

The paper shows, at several epochs, each unit's strongest activation over the training
set; where its source image changes, the picture jumps. `motion` adds a number: how much
a layer's features still change between two checkpoints.
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
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from zfnet_jax.analysis.mining import project_strongest, top_activations
from zfnet_jax.networks import Network, as_network
from zfnet_jax.projections import Projections
from zfnet_jax.relu_rules import Rule


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Evolution:
    """The strongest activation of each unit of a layer, at each checkpoint.

    Attributes:
        layer: Name of the layer.
        epochs: Epochs of the checkpoints, in order.
        activations: [e, u], the unit's strongest activation over the images.
        images: [e, u], index of its image.
        positions: [e, u, 2], row and column in the map; (0, 0) in a dense layer.
        dead: [e, u], the unit is positive nowhere.
    """

    layer: str
    epochs: tuple[int, ...]
    activations: Float32[np.ndarray, "e u"]
    images: Int32[np.ndarray, "e u"]
    positions: Int32[np.ndarray, "e u 2"]
    dead: Bool[np.ndarray, "e u"]

    def __repr__(self) -> str:
        """Layer, size and epochs."""
        units = self.images.shape[1]
        epochs = ", ".join(map(str, self.epochs))
        return f"Evolution({self.layer}: {units} units, epochs {epochs})"

    @property
    def jumps(self) -> Bool[np.ndarray, "e u"]:
        """The image differs from that of the checkpoint before."""
        first = np.zeros((1, self.images.shape[1]), bool)
        return np.concatenate([first, self.images[1:] != self.images[:-1]])

    def project(
        self,
        networks: Mapping[int, Network | Any],
        images: Any,
        units: int | Sequence[int] | Int[np.ndarray, " n"] | None = None,
        *,
        rule: Rule = "deconvnet",
    ) -> Projections:
        """Project each unit's strongest activation at each checkpoint.

        The arguments are those of `evolution`, and some units, or None for all.

        Returns:
            Crops of the receptive field over units, then checkpoints. A dead unit's is
            zero.
        """
        parts = []
        for row, epoch in enumerate(self.epochs):
            top = (
                self.images[row, :, None],
                self.positions[row, :, None],
                self.activations[row, :, None],
            )
            net, layer = networks[epoch], self.layer
            parts += project_strongest(net, images, layer, units, *top, (rule,))

        def interleave(name: str) -> np.ndarray:
            stacked = np.stack([getattr(part, name) for part in parts], 1)
            return stacked.reshape(-1, *stacked.shape[2:])

        names = [field.name for field in dataclasses.fields(Projections)]
        return Projections(*map(interleave, names))


def evolution(
    networks: Mapping[int, Network | Any],
    images: Any,
    layers: Sequence[str] | str | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Evolution]:
    """Find each unit's strongest activation over some images at each checkpoint.

    Args:
        networks: The network at each checkpoint, by epoch.
        images: As in `top_activations`; the paper takes the training set.
        layers: Names of layers; all if None.
        progress: Called with the number of checkpoints done and their total.

    Returns:
        The result for each layer, in the order of the forward pass.

    Raises:
        ValueError: There are fewer than two checkpoints, their networks differ, or as
            in `top_activations`.

    Example:
        >>> import numpy as np, zfnet_jax as zf
        >>> from flax import nnx
        >>> models = {e: zf.ConvNet(zf.ZFNET32, rngs=nnx.Rngs(e)) for e in (1, 5)}
        >>> images = np.ones((2, 32, 32, 3))
        >>> result = evolution(models, images, "conv5")["conv5"]
        >>> result
        Evolution(conv5: 96 units, epochs 1, 5)
        >>> result.project(models, images, units=[3]).pixels.shape
        (2, 39, 39, 3)
    """
    nets = _sort(networks, images)
    tops = []
    for net in nets.values():
        tops.append(top_activations(net, images, layers, k=1))
        if progress is not None:
            progress(len(tops), len(nets))

    def stack(layer: str, name: str) -> np.ndarray:
        return np.stack([getattr(top[layer], name) for top in tops])

    return {
        layer: Evolution(
            layer,
            tuple(nets),
            activations=stack(layer, "activations")[:, :, 0],
            images=stack(layer, "images")[:, :, 0],
            positions=stack(layer, "positions")[:, :, 0],
            dead=stack(layer, "dead"),
        )
        for layer in tops[0]
    }


def motion(
    networks: Mapping[int, Network | Any],
    images: Any,
    layers: Sequence[str] | str | None = None,
) -> dict[str, Float[np.ndarray, "e u"]]:
    """Measure how far each unit's activations move from one checkpoint to the next.

    One minus the correlation (Pearson's r) of a unit's activations, over all positions
    of all images, at two checkpoints: 0 for a unit that was only scaled or shifted, 1
    for one that is unrelated to its former self.

    The arguments and errors are those of `evolution`.

    Returns:
        For each layer one row per step from a checkpoint to the next; NaN for a unit
        that does not vary at one of the two.
    """
    nets = _sort(networks, images)
    rows: dict[str, list[np.ndarray]] = {}
    for before, after in itertools.pairwise(nets.values()):
        names = before.select(layers)
        _, source = as_network(before, images)
        sums = dict.fromkeys(names, np.zeros(()))
        for _, batch, count in before.batches(source, 32):
            parts = _moments(before, after, batch, np.int32(count), names)
            for name in names:
                sums[name] = sums[name] + np.asarray(parts[name], np.float64)
        for name, (count, x, y, xx, yy, xy) in sums.items():
            covariance = xy / count - x / count * y / count
            variance_x = np.maximum(xx / count - (x / count) ** 2, 0)
            variance_y = np.maximum(yy / count - (y / count) ** 2, 0)
            scale = np.sqrt(variance_x * variance_y)
            # Less than rounding is no variation.
            still = scale <= 1e-6 * np.sqrt(xx * yy) / count
            r = covariance / np.where(still, 1, scale)
            row = np.where(still, np.nan, 1 - np.clip(r, -1, 1))
            rows.setdefault(name, []).append(row)
    return {name: np.stack(row) for name, row in rows.items()}


@functools.partial(jax.jit, static_argnames="layers")
def _moments(
    before: Network, after: Network, batch: Array, count: Array, layers: tuple[str, ...]
) -> dict[str, Float[Array, "6 u"]]:
    """Sums over the first `count` images: 1, x, y, x², y² and xy."""
    pair = [net.features(batch, layers) for net in (before, after)]
    sums = {}
    for name in layers:
        flat = [x[name].reshape(len(batch), -1, x[name].shape[-1]) for x in pair]
        is_real = (jnp.arange(len(batch)) < count)[:, None, None]
        x, y = (jnp.where(is_real, maps.astype(float), 0) for maps in flat)
        positions = jnp.full(x.shape[-1], count * x.shape[1], x.dtype)
        terms = (x, y, x * x, y * y, x * y)
        sums[name] = jnp.stack([positions, *(term.sum((0, 1)) for term in terms)])
    return sums


def _sort(networks: Mapping[int, Any], images: Any) -> dict[int, Network]:
    if len(networks) < 2:
        raise ValueError(f"two checkpoints are needed, not {len(networks)}")
    nets = {epoch: as_network(networks[epoch], images)[0] for epoch in sorted(networks)}
    first, *others = (dict(net.layers) for net in nets.values())
    if any(layers != first for layers in others):
        raise ValueError("the checkpoints are of different architectures")
    return nets
