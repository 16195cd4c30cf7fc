"""The strongest activations of every unit over a dataset (Fig. 2 of the paper).

One pass over the images, in batches: of each image the strongest activations of each
unit, of each batch the strongest of these, merged with what was found before. What is
kept does not grow with the dataset. On several devices each takes its part of a batch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float32, Int, Int32

from zfnet_jax.data import Dataset
from zfnet_jax.deconvnet import Projections, Rule, project
from zfnet_jax.model import ConvNet

_AXIS = "images"
# So many go through the network together, whatever the batch: rounding depends on it.
_TOGETHER = 32
_NEEDS_PREPROCESS = "the images of a Dataset need preprocess"


@dataclasses.dataclass(frozen=True, eq=False)
class TopActivations:
    """The strongest activations of each unit of a layer, and how often it fires.

    Attributes:
        values: [u, k], strongest first; of equal ones first that of the earlier image,
            then that of the earlier position in row-major order.
        images: [u, k], index of the image.
        positions: [u, k, 2], row and column in the map; 0, 0 in a dense layer.
        active: [u], share of the images in which the unit is positive anywhere.
        mean: [u], its strongest activation of an image, on average over all images.
        class_counts: [u, classes], in how many images of each class it is positive
            anywhere; no classes if the images have no labels.
        class_means: [u, classes], its strongest activation of an image, on average over
            the images of each class; 0 for a class without images.
    """

    values: Float32[np.ndarray, "u k"]
    images: Int32[np.ndarray, "u k"]
    positions: Int32[np.ndarray, "u k 2"]
    active: Float32[np.ndarray, " u"]
    mean: Float32[np.ndarray, " u"]
    class_counts: Int32[np.ndarray, "u classes"]
    class_means: Float32[np.ndarray, "u classes"]

    @property
    def dead(self) -> np.ndarray:
        """bool[u]: positive nowhere in any image, so that its list means nothing."""
        return self.active == 0

    @property
    def favourite(self) -> Int[np.ndarray, " u"]:
        """[u], the class of the greatest mean; -1 if dead or without labels."""
        if self.class_means.shape[1] == 0:
            return np.full(len(self.dead), -1)
        return np.where(self.dead, -1, self.class_means.argmax(1))

    @property
    def selectivity(self) -> Float[np.ndarray, " u"]:
        """[u], how far the favourite class stands out from the others, 0 to 1.

        (m - o) / (m + o) of its mean m and of the mean o of the other classes' means
        (Morcos et al. 2018, arXiv 1803.06959). NaN for a dead unit, where a mean is
        negative, and with fewer than two classes.
        """
        means = self.class_means.astype(np.float64)
        classes = means.shape[1]
        if classes < 2:
            return np.full(len(means), np.nan)
        best = means.max(1)
        others = (means.sum(1) - best) / (classes - 1)
        known = ~self.dead & (means.min(1) >= 0) & (best > 0)
        share = (best - others) / np.where(known, best + others, 1)
        return np.where(known, share, np.nan)


def top_activations(
    model: ConvNet,
    dataset: Dataset | Float[np.ndarray, "n h w c"],
    layers: Sequence[str] | str,
    k: int = 9,
    per_image: int = 1,
    *,
    preprocess: Callable[[Any], Array] | None = None,
    batch_size: int = 250,
    devices: Sequence[Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, TopActivations]:
    """Find the strongest activations of every unit of some layers over a dataset.

    Neither `batch_size` nor the number of devices changes what is found.

    Args:
        model: The network.
        dataset: Images with labels, or preprocessed images alone.
        layers: Which layers, up to `logits`.
        k: How many activations of each unit; fewer if the images hold fewer.
        per_image: At most so many of one image, at different positions.
        preprocess: From the images of a `Dataset` to what the network takes; as in
            `Pretrained.preprocess`.
        batch_size: Images in memory at a time, over all devices; rounded up to a
            multiple of 32 for each.
        devices: Of JAX, where to compute; all local ones if not given.
        progress: Is told the number of images done, after every batch.

    Returns:
        What was found, by layer, in the order of `layers`.

    Raises:
        ValueError: there is no such layer, no image, a number below 1, images of
            another shape, or a `Dataset` without `preprocess`.
    """
    for name, number in (
        ("k", k),
        ("per_image", per_image),
        ("batch_size", batch_size),
    ):
        if number < 1:
            raise ValueError(f"{name} must be 1 or more, not {number}")
    names = [layers] if isinstance(layers, str) else list(layers)
    walked = [model.arch.layer(name).name for name in names]
    if not walked:
        raise ValueError("no layer is named")
    if isinstance(dataset, Dataset):
        if preprocess is None:
            raise ValueError(_NEEDS_PREPROCESS)
        images, labels = dataset.images, dataset.labels
        classes = len(dataset.class_names)
    else:
        images, labels, classes = dataset, None, 0
    if not len(images):
        raise ValueError("there are no images to search")

    where = list(jax.local_devices() if devices is None else devices)
    mesh = Mesh(np.array(where), (_AXIS,), axis_types=(AxisType.Auto,))
    least = _TOGETHER * len(where)
    size = -(-min(batch_size, len(images)) // least) * least
    shapes = {name: model.arch.shapes()[name] for name in names}
    at_most = len(images) * per_image
    found = {
        name: _Found.nothing(shape[-1], min(k, at_most, len(images) * _places(shape)))
        for name, shape in shapes.items()
    }
    statistics = {
        name: _Statistics(shape[-1], classes) for name, shape in shapes.items()
    }
    graph, weights = nnx.split(model)
    search = _searched(graph, preprocess, tuple(names), per_image, mesh)
    split = NamedSharding(mesh, PartitionSpec(_AXIS))
    for start in range(0, len(images), size):
        batch = np.asarray(images[start : start + size])
        count = len(batch)
        batch = np.pad(batch, ((0, size - count), *[(0, 0)] * (batch.ndim - 1)))
        numbers = np.arange(start, start + size, dtype=np.int32)
        numbers[count:] = -1
        found, maxima = search(
            weights, jax.device_put(batch, split), jax.device_put(numbers, split), found
        )
        here = None if labels is None else labels[start : start + count]
        for name, values in maxima.items():
            statistics[name].add(np.asarray(values)[:count], here)
        if progress is not None:
            progress(start + count)
    return {
        name: _described(found[name], shapes[name], statistics[name]) for name in names
    }


def project_top(
    model: ConvNet,
    dataset: Dataset | Float[np.ndarray, "n h w c"],
    layer: str,
    top: TopActivations,
    units: Sequence[int] | Int[np.ndarray, " u"],
    *,
    rule: Rule = "deconvnet",
    preprocess: Callable[[Any], Array] | None = None,
) -> Projections:
    """Project the strongest activations of units, each from its own image.

    Args:
        model: The network.
        dataset: The images that were searched.
        layer: The layer that was searched.
        top: What was found in it.
        units: Which units.
        rule: What a ReLU does on the way down, as in `project`.
        preprocess: As for `top_activations`.

    Returns:
        Crops of the receptive field over units, then strength: [u * k, h, w, c].
        `images` are indices into the dataset. An activation of 0 projects to zeros.

    Raises:
        ValueError: what `project` refuses, or a `Dataset` without `preprocess`.
    """
    which = np.asarray(units)
    return project_each(
        model,
        dataset,
        layer,
        np.repeat(which, top.images.shape[1]),
        top.images[which].ravel(),
        top.positions[which].reshape(-1, 2),
        rule=rule,
        preprocess=preprocess,
    )


def project_each(
    model: ConvNet,
    dataset: Dataset | Float[np.ndarray, "m h w c"],
    layer: str,
    units: Int[np.ndarray, " n"],
    images: Int[np.ndarray, " n"],
    positions: Int[np.ndarray, "n 2"],
    *,
    rule: Rule = "deconvnet",
    preprocess: Callable[[Any], Array] | None = None,
) -> Projections:
    """Project single activations of a dataset, each of its own unit and image."""
    if isinstance(dataset, Dataset):
        if preprocess is None:
            raise ValueError(_NEEDS_PREPROCESS)
        seen = np.asarray(preprocess(dataset.images[images]))
    else:
        seen = dataset[images]
    places = positions[:, None]
    found = project(model, seen, layer, units[:, None], places, rule=rule, crop=True)
    return dataclasses.replace(found, images=images)


class _Found(NamedTuple):
    """The strongest so far: [u, k] each; `place` is flat and row-major."""

    value: Float[Array | np.ndarray, "u k"]
    image: Int[Array | np.ndarray, "u k"]
    place: Int[Array | np.ndarray, "u k"]

    @classmethod
    def nothing(cls, units: int, k: int) -> _Found:
        value = np.full((units, k), -np.inf, np.float32)
        return cls(value, *(np.full((units, k), -1, np.int32) for _ in range(2)))

    def strongest(self, k: int) -> _Found:
        """The first k by value; of equal ones those that stand first."""
        _, order = lax.top_k(self.value, min(k, self.value.shape[1]))
        return _Found(*(jnp.take_along_axis(x, order, 1) for x in self))


class _Statistics:
    """What adds up over images, in float64 so that batches make no difference."""

    def __init__(self, units: int, classes: int) -> None:
        self.images = np.zeros(classes, np.int64)
        self.count = 0
        self.active = np.zeros(units, np.int64)
        self.total = np.zeros(units)
        self.class_active = np.zeros((units, classes), np.int64)
        self.class_total = np.zeros((units, classes))

    def add(
        self, maxima: Float[np.ndarray, "n u"], labels: Int[np.ndarray, " n"] | None
    ) -> None:
        """Add images, by each unit's strongest activation."""
        wide = maxima.astype(np.float64)
        self.count += len(wide)
        self.active += (wide > 0).sum(0)
        self.total += wide.sum(0)
        if labels is not None:
            of_class = labels[:, None] == np.arange(len(self.images))
            self.images += of_class.sum(0)
            self.class_active += (wide > 0).T.astype(np.int64) @ of_class
            self.class_total += wide.T @ of_class


def _described(
    found: _Found, shape: tuple[int, ...], statistics: _Statistics
) -> TopActivations:
    width = shape[1] if len(shape) == 3 else 1
    place = np.asarray(found.place)
    return TopActivations(
        np.asarray(found.value, np.float32),
        np.asarray(found.image),
        np.stack(np.divmod(place, width), -1).astype(np.int32),
        (statistics.active / statistics.count).astype(np.float32),
        (statistics.total / statistics.count).astype(np.float32),
        statistics.class_active.astype(np.int32),
        (statistics.class_total / np.maximum(statistics.images, 1)).astype(np.float32),
    )


def _places(shape: tuple[int, ...]) -> int:
    return shape[0] * shape[1] if len(shape) == 3 else 1


@functools.lru_cache(maxsize=8)
def _searched(
    graph,
    preprocess: Callable[[Any], Array] | None,
    names: tuple[str, ...],
    per_image: int,
    mesh: Mesh,
) -> Callable[..., tuple[dict[str, _Found], dict[str, Array]]]:
    """The program that takes a batch; compiled once for each size."""

    def part(
        weights, batch: Array, numbers: Array, found: Mapping[str, _Found]
    ) -> tuple[dict[str, _Found], dict[str, Array]]:
        model = nnx.merge(graph, weights)
        order = [layer.name for layer in model.arch.layers]
        last = max(names, key=order.index)

        def strongest(images: Array) -> dict[str, _OfImages]:
            x = images if preprocess is None else preprocess(images)
            seen = model.features(x, until=last).features
            return {name: _of_images(seen[name], per_image) for name in names}

        groups = lax.map(strongest, batch.reshape(-1, _TOGETHER, *batch.shape[1:]))
        best = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), groups)
        merged = {}
        for name in names:
            k = found[name].value.shape[1]
            here = _among(best[name], numbers).strongest(k)
            gathered = [lax.all_gather(x, _AXIS, axis=1, tiled=True) for x in here]
            # Earlier images stand first, so that they win where values are equal.
            both = zip(found[name], gathered, strict=True)
            joined = _Found(*(jnp.concatenate(pair, 1) for pair in both))
            merged[name] = joined.strongest(k)
        return merged, {name: best[name].value[:, :, 0] for name in names}

    everywhere, split = PartitionSpec(), PartitionSpec(_AXIS)
    return jax.jit(
        jax.shard_map(
            part,
            mesh=mesh,
            in_specs=(everywhere, split, split, everywhere),
            out_specs=(everywhere, split),
            check_vma=False,
        )
    )


class _OfImages(NamedTuple):
    """Of each image the strongest activations of each unit: [n, u, m] each."""

    value: Float[Array, "n u m"]
    place: Int[Array, "n u m"]


def _of_images(features: Float[Array, "n ..."], count: int) -> _OfImages:
    maps = features.reshape(len(features), -1, features.shape[-1]).astype(jnp.float32)
    count = min(count, maps.shape[1])
    if count > 1:
        return _OfImages(*lax.top_k(maps.transpose(0, 2, 1), count))
    value = maps.max(1, keepdims=True)
    # Two plain reductions: XLA's CPU backend is slow on argmax.
    places = jnp.arange(maps.shape[1], dtype=jnp.int32)[:, None]
    place = jnp.where(maps == value, places, maps.shape[1]).min(1)
    return _OfImages(value.transpose(0, 2, 1), place[..., None])


def _among(best: _OfImages, numbers: Int[Array, " n"]) -> _Found:
    """By unit, over images and then places; padding is never found."""
    count, units, each = best.value.shape
    value = jnp.where(numbers[:, None, None] >= 0, best.value, -jnp.inf)
    image = jnp.broadcast_to(numbers[:, None, None], best.value.shape)
    return _Found(
        *(
            x.transpose(1, 0, 2).reshape(units, count * each)
            for x in (value, image, best.place)
        )
    )
