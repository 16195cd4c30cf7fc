"""Similarity of the changes when a part is hidden in several images (Table 1, Fig. 8).

Section 4.3 masks one part, such as the left eye, in each image. With x_i the features
of image i at a layer, x̃_i those of the masked image and ε_i = x_i - x̃_i, the paper
sums Hamming distances: Δ = Σ_{i≠j} H(sign ε_i, sign ε_j). Lower means more alike. Here
Δ is the mean over pairs and dimensions, from 0 to 1. A sign is -1, 0 or 1, so a mask
that changes nothing has Δ = 0 too: the share of features that change is reported.

The paper's control is random boxes. A second one, a random part in each image, tells
whether it matters which part is hidden.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int, Int8, Int64, Shaped

from zfnet_jax.data.boxes import check_box
from zfnet_jax.networks import Network, as_network
from zfnet_jax.results import Result, spread

_BATCH_SIZE = 32


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Correspondence(Result):
    """Consistency of the changes of one layer's features when a part is hidden.

    Attributes:
        parts: Names of the p parts.
        delta: [p], the paper's Δ: mean over pairs of images and dimensions, 0 to 1.
        spread: [p], its standard deviation over pairs of images.
        changed: [p], the share of the features that change, mean over images.
        random: [p, r], Δ of r draws of random boxes of the part's size.
        random_changed: [p], `changed` of these, mean over draws.
        mixed: [r], Δ of r draws of a random part per image.
    """

    parts: tuple[str, ...]
    delta: Float64[np.ndarray, " p"]
    spread: Float64[np.ndarray, " p"]
    changed: Float64[np.ndarray, " p"]
    random: Float64[np.ndarray, "p r"]
    random_changed: Float64[np.ndarray, " p"]
    mixed: Float64[np.ndarray, " r"]

    @property
    def p_random(self) -> Float64[np.ndarray, " p"]:
        """P-values of a one-sided permutation test against random boxes.

        Null hypothesis: a part's boxes are random boxes too. The p-value is (1 + number
        of draws with Δ no higher) / (1 + r).
        """
        return self._rank(self.random)

    @property
    def p_mixed(self) -> Float64[np.ndarray, " p"]:
        """P-values of the same test against `mixed`; 1 with a single part.

        Null hypothesis: within an image the parts may exchange their names.
        """
        return self._rank(self.mixed[None])

    def _rank(self, draws: Float64[np.ndarray, "_ r"]) -> Float64[np.ndarray, " p"]:
        # Rounding must not break a tie; steps of Δ are far larger.
        lower = (draws <= self.delta[:, None] + 1e-12).sum(1)
        return (1 + lower) / (1 + draws.shape[1])


def correspondence(
    net: Network | Any,
    images: Any,
    boxes: Mapping[str, Int[np.ndarray, "n 4"]],
    *,
    layers: Sequence[str] | str | None = None,
    draws: int = 200,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Correspondence]:
    """Mask each part in every image and compare how features change (section 4.3).

    Masked pixels become 0, the mean image after preprocessing. The control is
    `draw_boxes` of each part's size.

    Example:
        >>> import numpy as np, zfnet_jax as zf
        >>> net, images = zf.load("zfnet32-cifar10"), np.ones((2, 32, 32, 3))
        >>> boxes = {"eye": np.array([[4, 4, 12, 12], [8, 6, 16, 14]])}
        >>> results = correspondence(net, images, boxes, draws=3)
        >>> list(results), results["fc7"].random.shape
        (['pool5', 'fc7'], (1, 3))

    Args:
        net: A `Network`, or any model that `zf.network` takes.
        images: At least two preprocessed images of one kind of object.
        boxes: By the part's name, its box in each image in pixels: top, left, bottom,
            right; bottom and right are exclusive.
        layers: Names of layers. None: the last map and `net.embedding`, as the paper's
            layers 5 and 7.
        draws: Random draws of boxes per part, and of mixed parts.
        seed: Seed for the random draws.
        progress: Called with the number of sets of boxes done and their total.

    Returns:
        Results by layer, in the order of the forward pass.

    Raises:
        ValueError: There are fewer than two images, there is no such layer, or a box is
            empty, leaves its image or covers all of it.
    """
    net, images = as_network(net, images)
    image_hw = net.image_shape[:2]
    boxes = {part: np.asarray(rows) for part, rows in dict(boxes).items()}
    _check(len(images), boxes, image_hw)
    names = net.select(layers or _find_layers_5_and_7(net))
    batches = list(net.batches(images, _BATCH_SIZE))
    whole = _read(net, batches, np.zeros((len(images), 4), np.int64), names)
    signs: dict[str, list[np.ndarray]] = {name: [] for name in names}
    control: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    done, total = 0, len(boxes) * (1 + draws)
    for rows in boxes.values():
        for step, masks in enumerate((rows, *draw_boxes(rows, image_hw, draws, seed))):
            for name, features in _read(net, batches, masks, names).items():
                sign = np.sign(whole[name] - features).astype(np.int8)
                if step == 0:
                    signs[name].append(sign)
                else:
                    means = sign_distances(sign).mean(), (sign != 0).mean()
                    control[name].append(means)
            done += 1
            if progress is not None:
                progress(done, total)
    # The same mixtures for all layers.
    rng = np.random.default_rng((seed, 1))
    mixtures = rng.integers(len(boxes), size=(draws, len(images)))
    return {
        name: _summarize(tuple(boxes), np.stack(signs[name]), control[name], mixtures)
        for name in names
    }


def _check(
    count: int, boxes: Mapping[str, np.ndarray], image_hw: tuple[int, int]
) -> None:
    if count < 2:
        raise ValueError(f"correspondence compares at least two images, not {count}")
    for part, rows in boxes.items():
        if len(rows) != count:
            raise ValueError(f"{part}: {len(rows)} boxes for {count} images")
        for index, box in enumerate(rows.tolist()):
            try:
                check_box(box, image_hw)
            except ValueError as error:
                raise ValueError(f"{part} in image {index}: {error}") from None


def _find_layers_5_and_7(net: Network) -> list[str]:
    spatial = [name for name, layer in net.layers.items() if len(layer.shape) == 3]
    return [*spatial[-1:], net.embedding]


def _read(
    net: Network,
    batches: Sequence[tuple[int, np.ndarray, int]],
    boxes: Int[np.ndarray, "n 4"],
    layers: tuple[str, ...],
) -> dict[str, np.ndarray]:
    """Features of all images with a box masked in each."""
    # x and x̃ come from one program, an image in the same place of its batch: a feature
    # that does not depend on the masked pixels is equal to the last bit.
    parts = []
    for start, batch, real in batches:
        padding = (0, len(batch) - real), (0, 0)
        chosen = np.pad(boxes[start : start + real], padding, "edge")
        features = _features(net, batch, chosen, layers)
        parts.append({name: np.asarray(x)[:real] for name, x in features.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in layers}


def _summarize(
    parts: tuple[str, ...],
    signs: Int8[np.ndarray, "p n d"],
    control: Sequence[tuple[float, float]],
    mixtures: Int[np.ndarray, "r n"],
) -> Correspondence:
    distances = np.stack([sign_distances(sign) for sign in signs])
    random = np.reshape(control, (len(parts), len(mixtures), 2))
    each = np.arange(signs.shape[1])
    mixed = [sign_distances(signs[mixture, each]).mean() for mixture in mixtures]
    return Correspondence(
        parts=parts,
        delta=distances.mean(1),
        spread=spread(distances, axis=1),
        changed=(signs != 0).mean((1, 2)),
        random=random[..., 0],
        random_changed=random[..., 1].mean(1),
        mixed=np.array(mixed),
    )


@functools.partial(jax.jit, static_argnames="layers")
def _features(
    net: Network, images: Array, boxes: Array, layers: tuple[str, ...]
) -> dict[str, Float[Array, "n d"]]:
    features = net.features(mask_boxes(images, boxes), layers)
    return {name: x.reshape(len(images), -1) for name, x in features.items()}


def sign_distances(signs: Int8[np.ndarray, "n d"]) -> Float64[np.ndarray, " pairs"]:
    """Share of dimensions in which vectors of -1, 0 and 1 differ, per pair i < j."""
    # Sums of ones, exact in float32 up to 2**24 dimensions, by fast products.
    same = sum(
        (ones := (signs == value).astype(np.float32)) @ ones.T for value in (-1, 0, 1)
    )
    upper = np.triu_indices(len(signs), 1)
    return 1 - np.asarray(same, np.float64)[upper] / signs.shape[1]


def mask_boxes(
    images: Shaped[Array | np.ndarray, "n h w c"],
    boxes: Int[Array | np.ndarray, "n 4"],
    *,
    fill: float | Shaped[Array | np.ndarray, "h w c"] = 0.0,
) -> Shaped[Array, "n h w c"]:
    """Fill a box (top, left, bottom, right) in each image; also under jit.

    Bottom and right are exclusive. An image as `fill` shows in the box.
    """
    images = jnp.asarray(images)
    rows = jnp.arange(images.shape[1])[:, None]
    columns = jnp.arange(images.shape[2])
    top, left, bottom, right = (edge[:, None, None] for edge in jnp.asarray(boxes).T)
    inside = (top <= rows) & (rows < bottom) & (left <= columns) & (columns < right)
    return jnp.where(inside[..., None], jnp.asarray(fill, images.dtype), images)


def draw_boxes(
    boxes: Int[np.ndarray, "n 4"],
    image_hw: tuple[int, int],
    draws: int,
    seed: int = 0,
) -> Int64[np.ndarray, "draws n 4"]:
    """Draw boxes of the same sizes at random positions, the paper's control.

    Every position inside the image is equally likely, including the part's own:
    otherwise the permutation test would not be exact. One seed gives parts of one size
    the same boxes.
    """
    sizes = boxes[:, 2:] - boxes[:, :2]
    shares = np.random.default_rng(seed).random((draws, len(boxes), 2))
    corners = np.floor(shares * (np.array(image_hw) - sizes + 1)).astype(np.int64)
    return np.concatenate([corners, corners + sizes], 2)
