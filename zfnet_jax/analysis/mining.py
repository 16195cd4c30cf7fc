"""The strongest activations of every unit over a set of images (Fig. 2 of the paper).

One pass over the images: each image's strongest activation of each unit is merged into
the strongest so far, so the memory needed does not grow with the number of images. Each
device of each process takes a part of every batch. Its activations go to all processes,
which merge them in the order of the images.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float32, Int, Int32

from zfnet_jax.analysis.search_state import (
    Best,
    SearchFile,
    SearchState,
    start_search,
)
from zfnet_jax.layers import Layer
from zfnet_jax.networks import ImageSource, Network, as_network
from zfnet_jax.projections import Projections, project_by_rules
from zfnet_jax.relu_rules import Rule, check_rule
from zfnet_jax.windows import Points

# Images that go through the network together, whatever the batch size and the number of
# devices: rounding depends on it.
_GROUP = 32
_WHOLE, _SPLIT = PartitionSpec(), PartitionSpec("images")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TopActivations:
    """The strongest activations of each unit of a layer, one per image.

    Attributes:
        layer: Name of the layer.
        activations: [u, k], strongest first; ties go to the earlier image, then to the
            earlier position in row-major order.
        images: [u, k], index of the image.
        positions: [u, k, 2], row and column in the map; (0, 0) in a dense layer.
        active: [u], share of the images in which the unit is positive anywhere.
        mean: [u], the unit's strongest activation, averaged over all images.
        sparsity: [u], how few images a unit responds to: 1 if a single one activates
            it, 0 if all do equally, NaN if it is dead. It is lifetime sparseness,
            (1 - mean(r)² / mean(r²)) / (1 - 1 / n) over n images (Treves & Rolls 1991;
            Vinje & Gallant 2000). r is the unit's strongest activation in an image, or
            0 if that is negative.
        class_counts: [u, classes], number of images of each class in which the unit is
            positive anywhere; no classes without labels.
        class_means: [u, classes], the unit's strongest activation, averaged over the
            images of each class; NaN for a class without images.
    """

    layer: str
    activations: Float32[np.ndarray, "u k"]
    images: Int32[np.ndarray, "u k"]
    positions: Int32[np.ndarray, "u k 2"]
    active: Float32[np.ndarray, " u"]
    mean: Float32[np.ndarray, " u"]
    sparsity: Float32[np.ndarray, " u"]
    class_counts: Int32[np.ndarray, "u classes"]
    class_means: Float32[np.ndarray, "u classes"]

    def __repr__(self) -> str:
        """Layer and sizes."""
        units, k = self.activations.shape
        dead = int(self.dead.sum())
        return f"TopActivations({self.layer}: {units} units, k={k}, {dead} dead)"

    @property
    def dead(self) -> np.ndarray:
        """Units that no image activates, as bool [u]."""
        return self.active == 0

    @property
    def favorite(self) -> Int[np.ndarray, " u"]:
        """[u], the class with the greatest mean; -1 if dead or without labels."""
        if self.class_means.shape[1] == 0:
            return np.full(len(self.dead), -1)
        means = np.where(np.isnan(self.class_means), -np.inf, self.class_means)
        return np.where(self.dead, -1, means.argmax(1))

    @property
    def selectivity(self) -> Float[np.ndarray, " u"]:
        """[u], how far the favorite class stands out from the others, 0 to 1.

        (m - o) / (m + o), where m is the favorite's mean and o the average mean of the
        other classes that have images (Morcos et al. 2018, arXiv 1803.06959). NaN for a
        dead unit, where a mean is negative, and with fewer than two classes.
        """
        has_images = ~np.isnan(self.class_means).any(0)
        means = self.class_means[:, has_images].astype(np.float64)
        classes = means.shape[1]
        if classes < 2:
            return np.full(len(means), np.nan)
        best = means.max(1)
        others = (means.sum(1) - best) / (classes - 1)
        known = ~self.dead & (means.min(1) >= 0) & (best > 0)
        share = (best - others) / np.where(known, best + others, 1)
        return np.where(known, share, np.nan)

    def project(
        self,
        net: Network | Any,
        images: Any,
        units: int | Sequence[int] | Int[np.ndarray, " u"] | None = None,
        *,
        rule: Rule = "deconvnet",
    ) -> Projections:
        """Project the strongest activations back to pixels, each from its own image.

        Args:
            net: The network that was searched.
            images: The images that were searched.
            units: Units of the layer; all if None.
            rule: Backward rule for ReLUs, as in `zfnet_jax.project`.

        Returns:
            Crops of the receptive field over units, then from the strongest on. An
            activation of zero projects to zeros.

        Raises:
            ValueError: There is no such unit or rule, or the images do not fit.
        """
        top = self.images, self.positions, self.activations
        return project_strongest(net, images, self.layer, units, *top, (rule,))[0]


def project_strongest(
    net: Network | Any,
    images: Any,
    layer: str,
    units: int | Sequence[int] | Int[np.ndarray, " n"] | None,
    indices: Int32[np.ndarray, "u k"],
    positions: Int32[np.ndarray, "u k 2"],
    activations: Float32[np.ndarray, "u k"],
    rules: tuple[Rule, ...],
) -> list[Projections]:
    """Project k known activations of some units by several rules."""
    net, images = as_network(net, images)
    for rule in rules:
        check_rule(rule)
    count, k = indices.shape
    chosen = np.arange(count) if units is None else np.atleast_1d(units)
    for unit in chosen.tolist():
        if not 0 <= unit < count:
            raise ValueError(f"no unit {unit}: {layer} has {count} (0 to {count - 1})")
    selection = _Selection(images, indices[chosen].ravel())
    top = Points(
        np.zeros(chosen.size * k, np.int32),
        np.repeat(chosen, k).astype(np.int32),
        positions[chosen].reshape(-1, 2),
        activations[chosen].ravel(),
    )

    def choose(rows: slice, activate: Any) -> Points:
        del activate
        some = Points(*(array[rows] for array in top))
        return some._replace(images=np.arange(len(some.units), dtype=np.int32))

    parts = project_by_rules(
        net, selection, layer, 1, choose, rules, strict=True, crop=True
    )
    return [dataclasses.replace(part, images=selection.indices) for part in parts]


@dataclasses.dataclass(frozen=True)
class _Selection:
    """Some images of a source, in another order."""

    source: np.ndarray | Array | ImageSource
    indices: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, rows: Any) -> Any:
        return self.source[self.indices[rows]]


def top_activations(
    net: Network | Any,
    images: Any,
    layers: Sequence[str] | str | None = None,
    *,
    k: int = 9,
    labels: Sequence[int] | np.ndarray | Array | None = None,
    batch_size: int = 256,
    partial: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, TopActivations]:
    """Find the strongest activations of every unit over a set of images.

    The result depends neither on the batch size nor on the number of devices and
    processes. Under `jax.distributed` all processes call it with the same arguments.
    Each reads its part of the images, and each gets the result.

    Args:
        net: A `Network`, or any model that `zf.network` takes.
        images: Preprocessed images [n, h, w, c], a source of them, or a path.
        layers: Names of layers; all if None.
        k: Activations per unit, each of another image; at most n.
        labels: Class of each image. There are as many classes as the network has
            outputs, or more if a label is greater.
        batch_size: Images in memory at once, in all processes; rounded up to 32 per
            device.
        partial: Folder that keeps the search every minute: the same search, if it was
            killed, goes on from there. Delete the folder when it is no longer needed. A
            source should have a method `digest`, or it is read once more to know it.
        progress: Called with the number of images done and their total.

    Returns:
        The result for each layer, in the order of the forward pass.

    Raises:
        ValueError: There is no such layer, `k` or `batch_size` is below 1, there is not
            one label for each image, or the images do not fit the network.

    Example:
        >>> import numpy as np, zfnet_jax as zf
        >>> net = zf.load("zfnet32-cifar10")
        >>> images = np.random.default_rng(0).normal(size=(20, 32, 32, 3))
        >>> top = zf.top_activations(net, images, ["conv2", "conv5"], k=4)
        >>> top["conv5"].positions[17, 0].shape  # of unit 17's strongest activation
        (2,)
        >>> top["conv5"].project(net, images, units=[17, 3]).pixels.shape
        (8, 35, 35, 3)
    """
    net, images = as_network(net, images)
    names = net.select(layers)
    for option, value in (("k", k), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{option} must be at least 1, not {value}")
    total = len(images)
    if not total:
        raise ValueError("there are no images: the batch is empty")
    has_labels = labels is not None
    classes = _check_labels(labels, total) if has_labels else np.zeros(total, int)
    outputs = net.num_classes if has_labels else 1
    images_by_class = np.bincount(classes, minlength=outputs)
    file = SearchFile(partial, net, images, k, images_by_class, classes)
    start = start_search(net, names, min(k, total), len(images_by_class))
    state = file.resume(start)
    state = _search(net, images, classes, state, batch_size, file, progress)
    return {
        name: _summarize(
            net.layer(name),
            state.best[name],
            state.sums[name],
            state.powers[name],
            images_by_class,
            has_labels,
        )
        for name in names
    }


def _check_labels(labels: Any, count: int) -> Int[np.ndarray, " n"]:
    labels = np.asarray(labels)
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels are {labels.dtype}{list(labels.shape)}, not int[{count}]: one "
            "class per image"
        )
    if labels.min(initial=0) < 0:
        raise ValueError(f"label {labels.min()} is negative; classes start at 0")
    return labels


def _search(
    net: Network,
    images: Any,
    classes: Int[np.ndarray, " n"],
    state: SearchState,
    batch_size: int,
    file: SearchFile,
    progress: Callable[[int, int], None] | None,
) -> SearchState:
    """Search the images from a state on; keep the state in a file every minute."""
    mesh = Mesh(np.array(jax.devices()), ("images",), (AxisType.Auto,))
    whole, split = NamedSharding(mesh, _WHOLE), NamedSharding(mesh, _SPLIT)
    weights, best = jax.device_put((net, state.best), whole)
    layers, step, done = tuple(best), _GROUP * mesh.size, int(state.done)
    for start, part in read_parts(net, images, done, batch_size, step):
        group = jax.make_array_from_process_local_data(split, part)
        labels = classes[start : start + step]
        span = np.int32(start), np.int32(len(labels))
        best, peaks = _merge(weights, group, *span, best, layers, mesh)
        for name, values in jax.device_get(peaks).items():
            terms = np.stack([values > 0, values], 1)[: len(labels)]
            np.add.at(state.sums[name], labels, terms)
            positive = np.maximum(values[: len(labels)], 0, dtype=np.float64)
            terms = np.stack([positive, positive**2], 1)
            np.add.at(state.powers[name][None], np.zeros_like(labels), terms)
        state = SearchState(start + len(labels), best, state.sums, state.powers)
        file.save(state)
        if progress is not None:
            progress(state.done, len(images))
    return state


def read_parts(
    net: Network, images: Any, start: int, batch_size: int, step: int
) -> Iterator[tuple[int, Float[np.ndarray, "b h w c"]]]:
    """Yield each group's first image, and the part that this process reads of it.

    A group is `step` images, in as many parts as there are processes. In the last one
    parts are filled with any images.
    """
    process, processes = jax.process_index(), jax.process_count()
    share, total = step // processes, len(images)
    size = -(-batch_size // step) * step
    batch = np.zeros((0, *net.image_shape), np.float32)
    for first in range(start, total, size):
        indices = np.arange(first, first + size).reshape(-1, processes, share)
        indices = indices[:, process].ravel()
        indices = indices[indices < total]
        batch = net.read(images, indices) if indices.size else batch[:0]
        for offset in range(0, min(size, total - first), step):
            part = batch[offset // processes :][:share]
            yield first + offset, np.resize(part, (share, *net.image_shape))


@functools.partial(jax.jit, static_argnames=("layers", "mesh"))
def _merge(
    net: Network,
    batch: Array,
    start: Array,
    count: Array,
    best: dict[str, Best],
    layers: tuple[str, ...],
    mesh: Mesh,
) -> tuple[dict[str, Best], dict[str, Array]]:
    """Merge a batch into the best; also each image's peaks by layer, [n, u]."""

    def search_part(net: Network, images: Array) -> dict[str, tuple[Array, Array]]:
        features = net.features(images, layers)
        return {name: find_peaks(maps) for name, maps in features.items()}

    # Not `check_vma`: it puts operations into the program that layers are read from.
    peaks = jax.shard_map(
        search_part,
        mesh=mesh,
        in_specs=(_WHOLE, _SPLIT),
        out_specs=_SPLIT,
        check_vma=False,
    )(net, batch)
    merged = {
        name: merge_best(best[name], *pair, start, count)
        for name, pair in peaks.items()
    }
    values = {name: activations for name, (activations, _) in peaks.items()}
    return lax.with_sharding_constraint((merged, values), NamedSharding(mesh, _WHOLE))


def merge_best(
    best: Best,
    values: Float32[Array, "n u"],
    places: Int32[Array, "n u"],
    start: Array,
    count: Array,
) -> Best:
    """Merge the values of `count` images, from number `start` on, into the best."""
    order = jnp.arange(len(values), dtype=jnp.int32)
    values = jnp.where(order[:, None] < count, values, -jnp.inf).T
    images = jnp.broadcast_to(start + order, values.shape)
    # Earlier images come first, so that `top_k` prefers them on a tie.
    pairs = zip(best, (values, images, places.T), strict=True)
    joined = [jnp.concatenate(pair, 1) for pair in pairs]
    _, chosen = lax.top_k(joined[0], best[0].shape[1])
    activations, images, places = (jnp.take_along_axis(x, chosen, 1) for x in joined)
    return activations, images, places


def find_peaks(
    maps: Float[Array, "n ..."],
) -> tuple[Float32[Array, "n u"], Int32[Array, "n u"]]:
    """Each unit's strongest activation, and its first place in row-major order.

    The position is searched in rows of maxima, then in a single row: a search of the
    whole map would take ten times as long as the maximum.
    """
    maps = maps.astype(jnp.float32)
    if maps.ndim == 2:
        return maps, jnp.zeros(maps.shape, jnp.int32)
    # The barriers keep XLA from computing the maxima again for each use.
    rows = lax.optimization_barrier(maps.max(2))
    peaks = lax.optimization_barrier(rows.max(1))
    row = lax.optimization_barrier(_first(rows, peaks))
    line = jnp.take_along_axis(maps, row[:, None, None], 1)[:, 0]
    line = lax.optimization_barrier(line)
    # Its own maximum: XLA may compute the row again, and round it differently.
    column = _first(line, line.max(1))
    return peaks, row * maps.shape[2] + column


def _first(
    values: Float[Array, "n m u"], maximum: Float[Array, "n u"]
) -> Int32[Array, "n u"]:
    """Position of the first maximum; XLA's CPU backend is slow on `argmax`."""
    places = jnp.arange(values.shape[1], dtype=jnp.int32)[:, None]
    # Not `==`: a NaN that the network makes has a position too.
    return jnp.where(values < maximum[:, None], values.shape[1], places).min(1)


def _summarize(
    layer: Layer,
    best: Best,
    sums: np.ndarray,
    powers: np.ndarray,
    count: np.ndarray,
    has_labels: bool,
) -> TopActivations:
    """The result of a layer, from the sums of a search and each class's images."""
    activations, images, places = map(np.asarray, best)
    width = layer.shape[1] if len(layer.shape) == 3 else 1
    active, mean = (sums.sum(0) / count.sum()).astype(np.float32)
    class_means = sums[:, 1] / np.where(count, count, np.nan)[:, None]
    shown = slice(None) if has_labels else slice(0)
    return TopActivations(
        layer.name,
        activations,
        images,
        np.stack(np.divmod(places, width), -1).astype(np.int32),
        active,
        mean,
        _measure_sparsity(powers, int(count.sum())),
        sums[shown, 0].T.astype(np.int32),
        class_means[shown].T.astype(np.float32),
    )


def _measure_sparsity(
    powers: Float[np.ndarray, "2 u"], images: int
) -> Float32[np.ndarray, " u"]:
    """Lifetime sparseness from the sums of the activations and of their squares."""
    first, second = np.where(powers[1] > 0, powers, np.nan)
    share = first**2 / second / images
    return ((1 - share) * images / max(1, images - 1)).astype(np.float32)
