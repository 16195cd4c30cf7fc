"""Which units speak for a class: activation times gradient, summed over positions.

The relevance of a unit for a class of an image is the sum over its map of a · ∂y/∂a,
where a is an activation and y the logit of the class, before any softmax (Shrikumar et
al. 2016, arXiv 1605.01713). In a network of ReLUs and poolings without biases, the
relevances of all units of a layer sum to the logit, if every path leads through the
layer. One forward and one backward pass give the relevances in all layers.

Over a set of images, the most relevant ones show how a unit is used, where the
strongest activations show what it responds to (Achtibat et al. 2023, arXiv 2206.03208,
who take another backward rule).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float32, Int32

from zfnet_jax import deconvnet
from zfnet_jax.analysis.mining import find_peaks, merge_best, read_parts
from zfnet_jax.analysis.search_state import Best, SearchFile
from zfnet_jax.attribution import Targets
from zfnet_jax.networks import Network, as_network
from zfnet_jax.relu_rules import with_relu_rule

# Units of a layer that count as the most relevant of an image.
MOST = 10
# Images that go through the network together, whatever the batch size.
_GROUP = 16
_WHOLE, _SPLIT = PartitionSpec(), PartitionSpec("images")
# Stands for the class that the network predicts.
_PREDICTED = -1


def relevance(
    net: Network | Any,
    images: Any,
    targets: Targets | None = None,
    *,
    layers: Sequence[str] | str | None = None,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Float[np.ndarray, "n u"]]:
    """Compute how much each unit speaks for the class of each image.

    The relevance is the activation times the derivative of the class's logit, summed
    over the positions of the map. A negative one speaks against the class. All layers
    share one forward and one backward pass.

    Args:
        net: A `Network`, or any model that `zf.network` takes.
        images: Preprocessed images [n, h, w, c], a source of them, or a path.
        targets: A label or a class name for all images, or one per image. None: the
            class that the network predicts.
        layers: Names of layers; all if None.
        batch_size: Images per batch.
        progress: Called with the number of images done and their total.

    Returns:
        For each layer an array over images and units, in units of the logit. It is
        float32, or float64 for a float64 network. In the layer of the logits, only the
        class itself is not zero. An array of a model that returns a dict has relevance
        only if the logits are computed from that very array.

    Raises:
        ValueError: There is no such layer or class, the network gives no logits, or the
            images do not fit it.

    Example:
        >>> import numpy as np, zfnet_jax as zf
        >>> net = zf.load("zfnet32-cifar10")
        >>> images = np.random.default_rng(0).normal(size=(5, 32, 32, 3))
        >>> by_layer = zf.relevance(net, images, "ship", layers=["conv4", "conv5"])
        >>> by_layer["conv5"].shape == (5, *net.layers["conv5"].shape[-1:])
        True
        >>> strongest = by_layer["conv5"].argsort(1)[:, :-4:-1]  # three units per image
        >>> zf.project(net, images, "conv5", strongest, crop=True).pixels.shape
        (15, 35, 35, 3)
    """
    net, images = as_network(net, images)
    names, count = net.select(layers), len(images)
    labels = net.targets(0 if targets is None else targets, count)
    if targets is None:
        labels[:] = _PREDICTED
    results: dict[str, np.ndarray] = {}
    for start, batch, real in net.batches(images, batch_size):
        # The last batch is padded; its padding takes any label.
        batch_labels = np.resize(labels[start : start + real], len(batch))
        for name, part in _sum_relevance(net, batch, batch_labels, names).items():
            if name not in results:
                results[name] = np.empty((count, part.shape[1]), part.dtype)
            results[name][start : start + real] = np.asarray(part)[:real]
        if progress is not None:
            progress(start + real, count)
    return {name: results[name] for name in names}


@functools.partial(jax.jit, static_argnames="layers")
def _sum_relevance(
    net: Network, images: Array, labels: Array, layers: tuple[str, ...]
) -> dict[str, Float[Array, "b u"]]:
    maps, _ = _map_relevance(net, images, labels, layers)
    return {name: _sum_positions(x) for name, x in maps.items()}


def _sum_positions(maps: Float[Array, "b ..."]) -> Float[Array, "b u"]:
    return maps if maps.ndim == 2 else maps.sum((1, 2))


def _map_relevance(
    net: Network, images: Array, labels: Int32[Array, " b"], layers: tuple[str, ...]
) -> tuple[dict[str, Float[Array, "b ..."]], Float[Array, "b classes"]]:
    """Activation times gradient at each position by layer; also the logits."""

    def start(logits: Array) -> Array:
        classes = jnp.where(labels == _PREDICTED, logits.argmax(1), labels)
        return jax.nn.one_hot(classes, net.num_classes, dtype=logits.dtype)

    if net.is_convnet:
        logits, trace = deconvnet.forward(net.model, images, net.output)
        below = deconvnet.backward(net.model, trace, start(logits), "gradient")
        signals = [start(logits), *below]
        maps = {
            step.layer.name: step.above.astype(signal.dtype) * signal
            for step, signal in zip(reversed(trace), signals, strict=False)
        }
        return {name: maps[name] for name in layers}, logits
    dtype = jnp.promote_types(images.dtype, jnp.float32)
    names = tuple({*layers, net.output})
    zeros = {
        name: jnp.zeros((len(images), *net.layers[name].shape), dtype) for name in names
    }

    def activate(offsets: dict[str, Array]) -> dict[str, Array]:
        features = net.features(images, names, offsets)
        return {name: x.astype(dtype) for name, x in features.items()}

    # The gradient by what is added to an activation is that by the activation.
    rewritten = with_relu_rule(activate, "gradient", strict=False)
    features, pull = jax.vjp(rewritten, zeros)
    logits = features[net.output]
    (gradients,) = pull(zeros | {net.output: start(logits)})
    return {name: features[name] * gradients[name] for name in layers}, logits


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TopRelevance:
    """Relevance of the units of a layer for the classes of images.

    Attributes:
        layer: Name of the layer.
        relevances: [u, k], each unit's greatest relevances, one per image; ties go to
            the earlier image.
        images: [u, k], index of the image.
        classes: [u, k], the class that the image was taken for.
        positions: [u, k, 2], row and column of the greatest relevance in the map;
            (0, 0) in a dense layer.
        class_sizes: [classes], number of images of each class.
        class_counts: [u, classes], number of images of each class in which the unit is
            one of the ten most relevant of the layer, and its relevance is positive.
        class_shares: [u, classes], the unit's share of the positive relevance of the
            layer, averaged over the images of each class; 0 for a class without images.
        class_means: [u, classes], the unit's relevance, averaged over the images of
            each class; 0 for a class without images.
        example_images: [classes, e], the images of each class with the greatest logit
            of that class; -1 where there are fewer. They are the same in all layers.
        example_units: [classes, e, m], the most relevant units of each, at most ten.
        example_relevances: [classes, e, m], their relevances.
        example_positions: [classes, e, m, 2], row and column of the greatest relevance.
    """

    layer: str
    relevances: Float32[np.ndarray, "u k"]
    images: Int32[np.ndarray, "u k"]
    classes: Int32[np.ndarray, "u k"]
    positions: Int32[np.ndarray, "u k 2"]
    class_sizes: Int32[np.ndarray, " classes"]
    class_counts: Int32[np.ndarray, "u classes"]
    class_shares: Float32[np.ndarray, "u classes"]
    class_means: Float32[np.ndarray, "u classes"]
    example_images: Int32[np.ndarray, "classes e"]
    example_units: Int32[np.ndarray, "classes e m"]
    example_relevances: Float32[np.ndarray, "classes e m"]
    example_positions: Int32[np.ndarray, "classes e m 2"]

    def __repr__(self) -> str:
        """Layer and sizes."""
        units, k = self.relevances.shape
        classes = len(self.class_sizes)
        return f"TopRelevance({self.layer}: {units} units, k={k}, {classes} classes)"


def top_relevance(
    net: Network | Any,
    images: Any,
    layers: Sequence[str] | str | None = None,
    *,
    k: int = 9,
    labels: Targets | None = None,
    examples: int = 3,
    batch_size: int = 256,
    partial: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, TopRelevance]:
    """Find the images for whose class each unit speaks most, and the units of classes.

    One pass over the images; only the best are kept, and sums by class and unit. The
    result depends on neither the batch size nor the number of devices and processes.
    Under `jax.distributed` all processes call it with the same arguments.

    Args:
        net: A `Network`, or any model that `zf.network` takes.
        images: Preprocessed images [n, h, w, c], a source of them, or a path.
        layers: Names of layers; all if None.
        k: Images per unit; at most n.
        labels: Class of each image. None: the class that the network predicts.
        examples: Images per class, those with the greatest logit.
        batch_size: Images in memory at once, in all processes; rounded up to 16 per
            device.
        partial: Folder that keeps the search every minute, as in `zf.top_activations`.
        progress: Called with the number of images done and their total.

    Returns:
        The result for each layer, in the order of the forward pass.

    Raises:
        ValueError: There is no such layer or class, the network gives no logits, `k` is
            below 1, or the images do not fit the network.

    Example:
        >>> import numpy as np, zfnet_jax as zf
        >>> from zfnet_jax.analysis.relevance import top_relevance
        >>> net = zf.load("zfnet32-cifar10")
        >>> images = np.random.default_rng(0).normal(size=(20, 32, 32, 3))
        >>> top = top_relevance(net, images, "conv5", k=4)["conv5"]
        >>> top.images[17].shape  # images for whose class unit 17 speaks most
        (4,)
        >>> top.class_counts.argmax(0).shape  # the unit that most often speaks for each
        (10,)
    """
    net, images = as_network(net, images)
    names, total = net.select(layers), len(images)
    for option, value in (("k", k), ("batch_size", batch_size), ("examples", examples)):
        if value < 1:
            raise ValueError(f"{option} must be at least 1, not {value}")
    if not total:
        raise ValueError("there are no images: the batch is empty")
    classes = net.targets(0 if labels is None else labels, total)
    if labels is None:
        classes[:] = _PREDICTED
    search = _Search(net, names, min(k, total), examples)
    file = SearchFile(partial, net, images, "relevance", names, k, examples, classes)
    start = 0, search.start(), classes, search.arrays
    done, best, classes, search.arrays = file.resume(start)
    mesh = Mesh(np.array(jax.devices()), ("images",), (AxisType.Auto,))
    whole, split = NamedSharding(mesh, _WHOLE), NamedSharding(mesh, _SPLIT)
    weights, best = jax.device_put((net, best), whole)
    step = _GROUP * mesh.size
    for start, part in read_parts(net, images, int(done), batch_size, step):
        group = jax.make_array_from_process_local_data(split, part)
        count = min(step, total - start)
        targets = np.resize(classes[start : start + count], step)
        span = np.int32(start), np.int32(count)
        best, batch = _merge(weights, group, targets, *span, best, names, mesh)
        classes[start : start + count] = search.add(start, count, batch)
        file.save((start + count, best, classes, search.arrays))
        if progress is not None:
            progress(start + count, total)
    return {
        name: search.summarize(net, name, jax.device_get(best[name]), classes)
        for name in names
    }


class _Part(NamedTuple):
    """Relevances of a batch in a layer, and the most relevant units of each image."""

    values: Float32[Array | np.ndarray, "n u"]
    units: Int32[Array | np.ndarray, "n m"]
    relevances: Float32[Array | np.ndarray, "n m"]
    places: Int32[Array | np.ndarray, "n m"]


@functools.partial(jax.jit, static_argnames=("layers", "mesh"))
def _merge(
    net: Network,
    batch: Array,
    labels: Array,
    start: Array,
    count: Array,
    best: dict[str, Best],
    layers: tuple[str, ...],
    mesh: Mesh,
) -> tuple[dict[str, Best], tuple[dict[str, _Part], Array, Array]]:
    """Merge a batch into the best; also its relevances, classes and their logits."""

    def search_part(net: Network, images: Array, labels: Array) -> Any:
        maps, logits = _map_relevance(net, images, labels, layers)
        classes = jnp.where(labels == _PREDICTED, logits.argmax(1), labels)
        own = jnp.take_along_axis(logits, classes[:, None], 1)[:, 0]
        sums = {
            name: (_sum_positions(x).astype(jnp.float32), find_peaks(x)[1])
            for name, x in maps.items()
        }
        return sums, classes.astype(jnp.int32), own.astype(jnp.float32)

    sums, classes, logits = jax.shard_map(
        search_part,
        mesh=mesh,
        in_specs=(_WHOLE, _SPLIT, _SPLIT),
        out_specs=_SPLIT,
        check_vma=False,
    )(net, batch, labels)
    merged, parts = {}, {}
    for name, (values, places) in sums.items():
        merged[name] = merge_best(best[name], values, places, start, count)
        most, units = lax.top_k(values, min(MOST, values.shape[1]))
        where = jnp.take_along_axis(places, units, 1)
        parts[name] = _Part(values, units, most, where)
    result = merged, (parts, classes, logits)
    return lax.with_sharding_constraint(result, NamedSharding(mesh, _WHOLE))


class _Search:
    """Sums and examples that a search keeps beside the best images of each unit.

    Attributes:
        sizes: [classes], number of images.
        images: [classes, e], those with the greatest logits.
        logits: [classes, e], these logits.
        sums: By layer, [classes, 3, u]: how often a unit is one of the most relevant,
            and the sums of its share and of its relevance.
        examples: By layer, [classes, e, 3, m]: of these images the most relevant units,
            their relevances and their flat row-major places.
    """

    def __init__(
        self, net: Network, layers: Sequence[str], k: int, examples: int
    ) -> None:
        classes, self.k = net.num_classes, k
        self.units = {name: net.layer(name).shape[-1] for name in layers}
        self.sizes = np.zeros(classes, np.int32)
        self.images = np.full((classes, examples), -1, np.int32)
        self.logits = np.full((classes, examples), -np.inf, np.float32)
        self.sums, self.examples = {}, {}
        for name, units in self.units.items():
            self.sums[name] = np.zeros((classes, 3, units), np.float32)
            shape = classes, examples, 3, min(MOST, units)
            self.examples[name] = np.zeros(shape)

    @property
    def arrays(self) -> dict[str, Any]:
        names = "sizes", "images", "logits", "sums", "examples"
        return {name: getattr(self, name) for name in names}

    @arrays.setter
    def arrays(self, arrays: dict[str, Any]) -> None:
        vars(self).update(arrays)

    def start(self) -> dict[str, Best]:
        """Return the best of no images."""
        best = {}
        for name, units in self.units.items():
            least = np.full((units, self.k), -np.inf, np.float32)
            nowhere = np.zeros(least.shape, np.int32)
            best[name] = least, nowhere, nowhere
        return best

    def add(
        self, start: int, count: int, batch: tuple[dict[str, _Part], Array, Array]
    ) -> Int32[np.ndarray, " count"]:
        """Add the first images of a batch, and return their classes."""
        parts, classes, logits = jax.tree.map(
            lambda x: np.asarray(x)[:count], jax.device_get(batch)
        )
        np.add.at(self.sizes, classes, 1)
        for name, part in parts.items():
            positive = np.maximum(part.values, 0)
            total = positive.sum(1, keepdims=True)
            is_most = np.zeros_like(positive)
            np.put_along_axis(is_most, part.units, part.relevances > 0, 1)
            terms = is_most, positive / np.where(total > 0, total, 1), part.values
            np.add.at(self.sums[name], classes, np.stack(terms, 1))
        for row, pair in enumerate(zip(classes.tolist(), logits.tolist(), strict=True)):
            self._rank(start + row, *pair, row, parts)
        return classes

    def _rank(
        self, image: int, label: int, logit: float, row: int, parts: dict[str, _Part]
    ) -> None:
        """Insert an image where it ranks among the examples of its class."""
        rank = int((self.logits[label] >= logit).sum())
        if rank == self.logits.shape[1]:
            return
        new = [(self.logits, logit), (self.images, image)]
        for name, part in parts.items():
            rows = part.units[row], part.relevances[row], part.places[row]
            new.append((self.examples[name], np.stack(rows)))
        for array, value in new:
            array[label, rank + 1 :] = array[label, rank:-1].copy()
            array[label, rank] = value

    def summarize(
        self,
        net: Network,
        name: str,
        best: Best,
        classes: Int32[np.ndarray, " n"],
    ) -> TopRelevance:
        """Build the result of a layer from the best, and the class of each image."""
        shape = net.layer(name).shape
        width = shape[1] if len(shape) == 3 else 1
        relevances, images, places = map(np.asarray, best)
        sums, count = (
            self.sums[name],
            np.maximum(self.sizes, 1)[:, None].astype(np.float32),
        )
        units, values, where = np.moveaxis(self.examples[name], 2, 0)
        return TopRelevance(
            name,
            relevances,
            images,
            classes[images],
            _unflatten(places, width),
            self.sizes,
            sums[:, 0].T.astype(np.int32),
            (sums[:, 1] / count).T,
            (sums[:, 2] / count).T,
            self.images,
            units.astype(np.int32),
            values.astype(np.float32),
            _unflatten(where, width),
        )


def _unflatten(places: np.ndarray, width: int) -> Int32[np.ndarray, "... 2"]:
    return np.stack(np.divmod(places, width), -1).astype(np.int32)
