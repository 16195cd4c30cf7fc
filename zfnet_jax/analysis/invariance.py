"""How far features move when an image is shifted, enlarged or turned (Fig. 5).

The paper transforms five images by various degrees and looks at the Euclidean distance
between the feature vectors of the transformed and of the original image, at the first
layer and at the last hidden one, and at the probability of the true class.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Float32, Int

from zfnet_jax.model import ConvNet

Transform = Literal["translate", "scale", "rotate"]
Border = Literal["reflect", "edge", "zero"]

IDENTITY: dict[Transform, float] = {"translate": 0.0, "scale": 1.0, "rotate": 0.0}
_MODES = {"reflect": "reflect", "edge": "nearest", "zero": "constant"}
_TOGETHER = 32


@dataclasses.dataclass(frozen=True, eq=False)
class Invariance:
    """What a transformation does to the features of n images.

    Attributes:
        values: [v], degrees of the transformation.
        distances: Euclidean distances to the features of the untransformed image, by
            layer: [n, v].
        relative: The same over the length of the untransformed image's features.
        probability: [n, v], that of the true class.
    """

    values: Float32[np.ndarray, " v"]
    distances: dict[str, Float32[np.ndarray, "n v"]]
    relative: dict[str, Float32[np.ndarray, "n v"]]
    probability: Float32[np.ndarray, "n v"]


def transformed(
    images: Float[Array | np.ndarray, "n h w c"],
    transform: Transform,
    value: float | Float[Array, ""],
    border: Border = "reflect",
) -> Float[Array, "n h w c"]:
    """Transform images about their centre, by linear interpolation; also under jit.

    Args:
        images: [n, h, w, c].
        transform: "translate" moves the picture down by `value` pixels, as the paper
            does vertically; "scale" enlarges it `value` times; "rotate" turns it
            counter-clockwise by `value` degrees.
        value: How far.
        border: Where the picture is drawn from outside the image: its reflection about
            the edge, the nearest edge, or zeros, the mean image after preprocessing.
    """
    height, width = images.shape[1:3]
    centre = (height - 1) / 2, (width - 1) / 2
    rows, columns = jnp.meshgrid(
        jnp.arange(height, dtype=jnp.float32) - centre[0],
        jnp.arange(width, dtype=jnp.float32) - centre[1],
        indexing="ij",
    )
    if transform == "translate":
        rows = rows - value
    elif transform == "scale":
        rows, columns = rows / value, columns / value
    else:
        angle = jnp.deg2rad(jnp.asarray(value, jnp.float32))
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        rows, columns = cos * rows + sin * columns, cos * columns - sin * rows
    places = [rows + centre[0], columns + centre[1]]

    def plane(picture: Float[Array, "h w"]) -> Float[Array, "h w"]:
        return map_coordinates(picture, places, order=1, mode=_MODES[border])

    planes = jnp.asarray(images).transpose(0, 3, 1, 2)
    return jax.vmap(jax.vmap(plane))(planes).transpose(0, 2, 3, 1)


def invariance(
    model: ConvNet,
    images: Float[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"],
    transform: Transform,
    values: Sequence[float] | Float[np.ndarray, " v"],
    layers: Sequence[str] | None = None,
    *,
    border: Border = "reflect",
    progress: Callable[[int], None] | None = None,
) -> Invariance:
    """Compare the features of transformed images with those of the originals.

    Args:
        model: The network.
        images: Preprocessed images.
        labels: Their classes.
        transform: See `transformed`.
        values: Degrees of it; `IDENTITY` leaves an image as it is.
        layers: Which; the first and the last hidden one if not given.
        border: See `transformed`.
        progress: Called with the number of images done.

    Raises:
        ValueError: there is no such transformation, border, layer or class, no image,
            or the values are not those that `check_values` lets pass.
    """
    for name, choice, known in (
        ("transform", transform, get_args(Transform)),
        ("border", border, get_args(Border)),
    ):
        if choice not in known:
            raise ValueError(f"{name} {choice!r} is not one of {', '.join(known)}")
    degrees = np.asarray(values, np.float32)
    check_values(transform, degrees, model.arch.input_hw[0])
    if not len(images):
        raise ValueError("there are no images to transform")
    arch = model.arch
    if not 0 <= np.min(labels) <= np.max(labels) < arch.num_classes:
        raise ValueError(f"labels must lie in 0 to {arch.num_classes - 1}")
    hidden = [layer.name for layer in arch.layers[:-1]]
    names = (hidden[0], hidden[-1]) if layers is None else tuple(layers)
    names = tuple(arch.layer(name).name for name in names)

    graph, weights = nnx.split(model)
    found: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(images), _TOGETHER):
        part = slice(start, start + _TOGETHER)
        batch, true = np.asarray(images[part]), np.asarray(labels[part])
        before, _ = _seen(graph, weights, batch, names)
        columns = [
            _compared(
                graph,
                weights,
                batch,
                true,
                before,
                np.float32(value),
                transform,
                border,
                names,
            )
            for value in degrees
        ]
        for key in columns[0]:
            rows = np.stack([np.asarray(column[key]) for column in columns], 1)
            found.setdefault(key, []).append(rows)
        if progress is not None:
            progress(start + len(batch))
    whole = {key: np.concatenate(parts) for key, parts in found.items()}
    return Invariance(
        degrees,
        {name: whole[f"distance {name}"] for name in names},
        {name: whole[f"relative {name}"] for name in names},
        whole["probability"],
    )


def check_values(
    transform: Transform, values: Float[np.ndarray, " v"], height: int
) -> None:
    """Refuse degrees of a transformation that leave nothing to compare.

    Args:
        transform: Which.
        values: Shifts of at most the image's height, scales from a tenth to ten times,
            angles of at most ten turns.
        height: Of the image, in pixels.

    Raises:
        ValueError: a value is beyond that or not finite, or there is none.
    """
    if not len(values) or not np.isfinite(values).all():
        raise ValueError("values must be one finite number at least")
    low, high = {
        "translate": (-height, height),
        "scale": (0.1, 10),
        "rotate": (-3600, 3600),
    }[transform]
    # In the precision of the transformation, which not every number can be given in.
    single = values.clip(-1e6, 1e6).astype(np.float32)
    wrong = values[(single < np.float32(low)) | (single > np.float32(high))]
    if len(wrong):
        raise ValueError(
            f"{transform} takes values from {low:g} to {high:g}, not {wrong[0]:g}"
        )


@functools.partial(jax.jit, static_argnums=(0, 3))
def _seen(
    graph, weights, images: Array, names: tuple[str, ...]
) -> tuple[dict[str, Float[Array, "n d"]], Float[Array, "n classes"]]:
    """Feature vectors of layers, and the logits."""
    found = nnx.merge(graph, weights).features(images)
    vectors = {
        name: found.features[name].reshape(len(images), -1).astype(jnp.float32)
        for name in names
    }
    return vectors, found.features["logits"]


@functools.partial(jax.jit, static_argnums=(0, 6, 7, 8))
def _compared(
    graph,
    weights,
    images: Array,
    labels: Array,
    before: dict[str, Array],
    value: Array,
    transform: Transform,
    border: Border,
    names: tuple[str, ...],
) -> dict[str, Float[Array, " n"]]:
    # Interpolation at whole pixels is exact to rounding only; no change is none.
    moved = jnp.where(
        value == IDENTITY[transform],
        images,
        transformed(images, transform, value, border),
    )
    after, logits = _seen(graph, weights, moved, names)
    found = {}
    for name in names:
        distance = jnp.linalg.norm(after[name] - before[name], axis=1)
        length = jnp.linalg.norm(before[name], axis=1)
        found[f"distance {name}"] = distance
        found[f"relative {name}"] = distance / jnp.where(length > 0, length, 1)
    chances = jax.nn.softmax(logits)
    found["probability"] = jnp.take_along_axis(chances, labels[:, None], 1)[:, 0]
    return found


def linearity(
    values: Float[np.ndarray, " v"],
    curve: Float[np.ndarray, " v"],
    identity: float,
    within: float,
) -> float:
    """R² of a line through a curve against how far a value is from the identity.

    The paper calls layer 7 quasi-linear for translation and scaling.

    Args:
        values: Degrees of a transformation.
        curve: A distance at each.
        identity: The value that changes nothing.
        within: Only values that are no further from it than this.

    Returns:
        1 for a line, 0 for what a line explains no better than the mean does; NaN for
        fewer than three values, or a curve that is constant.
    """
    far = np.abs(np.asarray(values, np.float64) - identity)
    kept = far <= within
    x, y = far[kept], np.asarray(curve, np.float64)[kept]
    total = ((y - y.mean()) ** 2).sum() if len(y) else 0.0
    if len(x) < 3 or total == 0:
        return math.nan
    slope, offset = np.polyfit(x, y, 1)
    return float(1 - ((y - slope * x - offset) ** 2).sum() / total)


def periodicity(curve: Float[np.ndarray, " v"], folds: int) -> float:
    """Share of a curve's variance that repeats `folds` times in a full turn.

    For an object with that rotational symmetry the distance curve of a rotation falls
    back at every turn by 360 / folds degrees.

    Args:
        curve: Distances at equal steps of a full turn, the last step left out.
        folds: 2 or more.

    Returns:
        From 0 to 1; NaN for a constant curve.

    Raises:
        ValueError: `folds` is below 2 or beyond what the steps can show.
    """
    y = np.asarray(curve, np.float64)
    if not 2 <= folds <= len(y) // 2:
        raise ValueError(f"folds must be from 2 to {len(y) // 2}, not {folds}")
    power = np.abs(np.fft.fft(y - y.mean())) ** 2
    if power.sum() <= 1e-20 * (y**2).sum():
        return math.nan
    orders = np.minimum(np.arange(len(y)), len(y) - np.arange(len(y)))
    return float(power[(orders > 0) & (orders % folds == 0)].sum() / power.sum())
