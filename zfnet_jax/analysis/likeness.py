"""Likeness of units: how far they respond to the same images.

A unit's response to an image is its strongest activation anywhere in its map. Two units
are as alike as the cosine of their responses, each less its mean over the images: the
measure by which units of different networks are matched in Li et al. 2015, "Convergent
learning" (arXiv 1511.07543). With the mean, all units of an early layer would be alike,
because they all respond to images of high contrast: in conv1 of zfnet32-cifar10 half of
all pairs would have a cosine above 0.94.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
import scipy.cluster.hierarchy
import scipy.linalg
import scipy.optimize
import scipy.spatial.distance
from jaxtyping import Array, Bool, Float32, Int, Int32

from zfnet_jax.files import digest
from zfnet_jax.networks import Network, as_network
from zfnet_jax.results import Result

# Images that go through the network together: rounding depends on it.
_GROUP = 32
# Units whose cosines with all others are in memory at once.
_BLOCK = 512


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Neighbors(Result):
    """The most similar units of each unit of a layer, from the most similar on.

    Attributes:
        layers: Names of layers.
        places: [u, k], index into `layers`.
        units: [u, k], number of the unit in that layer; -1 where there is no other.
        cosines: [u, k], cosine of the responses; NaN where there is no other.
    """

    layers: tuple[str, ...]
    places: Int32[np.ndarray, "u k"]
    units: Int32[np.ndarray, "u k"]
    cosines: Float32[np.ndarray, "u k"]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Match(Result):
    """Units of another network that respond as those of a layer do.

    Attributes:
        units: [u], unit of the same layer, each taken once, so that the sum of all
            cosines is greatest; -1 where there is none.
        cosines: [u], cosine of the responses; NaN where there is none.
        best: The most similar unit of any layer, k = 1, whether or not it is taken.
    """

    units: Int32[np.ndarray, " u"]
    cosines: Float32[np.ndarray, " u"]
    best: Neighbors


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Likeness:
    """Responses of the units of a network to some images, to be compared.

    Attributes:
        images: Index of each image that was used.
        directions: By layer [u, n], each unit's response to each image, less its mean
            and scaled to length 1. Zero for a unit that no image activates, or that
            responds to all alike: it is similar to none.
        copies: By layer [u], the unit responds exactly as one of an earlier layer, as
            after a pooling or in a concatenation.
    """

    images: Int[np.ndarray, " n"]
    directions: Mapping[str, Float32[np.ndarray, "u n"]]
    copies: Mapping[str, Bool[np.ndarray, " u"]]

    def __repr__(self) -> str:
        """Sizes."""
        units = sum(map(len, self.directions.values()))
        return (
            f"Likeness({units} units, {len(self.directions)} layers, "
            f"{len(self.images)} images)"
        )

    def nearest(self, layer: str, k: int = 8, *, elsewhere: bool = False) -> Neighbors:
        """Find the most similar units of each unit of a layer.

        Args:
            layer: Name of the layer.
            k: Similar units per unit; fewer where the layer has fewer.
            elsewhere: Search all other layers instead of this one, except their
                `copies`.

        Returns:
            Neighbors with the leading axis of this layer's units.
        """
        if not elsewhere:
            return self._search(layer, self, (layer,), k, is_same=True)
        names = tuple(name for name in self.directions if name != layer)
        return self._search(layer, self, names, k)

    def groups(self, layer: str, threshold: float = 0.9) -> list[list[int]]:
        """Find groups of near duplicates in a layer, by complete linkage.

        The cosine of every two units of a group exceeds the threshold. The most similar
        groups are joined first, and each unit is in one group at most.

        Returns:
            The units of each group of at least two, the largest group first.
        """
        directions = self.directions[layer]
        live = np.flatnonzero(_is_live(directions))
        if len(live) < 2:
            return []
        # Rounding may leave a cosine slightly above 1.
        distances = np.maximum(1 - directions[live] @ directions[live].T, 0)
        pairs = scipy.spatial.distance.squareform(distances, checks=False)
        tree = scipy.cluster.hierarchy.linkage(pairs, "complete")
        labels = scipy.cluster.hierarchy.fcluster(tree, 1 - threshold, "distance")
        parts = (live[labels == label] for label in np.unique(labels))
        groups = [part.tolist() for part in parts if len(part) > 1]
        return sorted(groups, key=lambda group: (-len(group), group))

    def map(
        self, layer: str, method: Literal["pca", "umap"] = "pca", *, seed: int = 0
    ) -> Float32[np.ndarray, "u 2"]:
        """Place the units of a layer in a plane, similar ones close to each other.

        Args:
            layer: Name of the layer.
            method: "pca" for the first two principal components of the directions, the
                greatest coordinate of each positive; or "umap", which needs the extra
                of that name.
            seed: Seed of UMAP.

        Returns:
            Coordinates; NaN for a unit that is similar to none.
        """
        directions = self.directions[layer]
        live = _is_live(directions)
        points = np.full((len(directions), 2), np.nan, np.float32)
        if live.any():
            place = _analyze if method == "pca" else functools.partial(_embed, seed)
            points[live] = place(directions[live])
        return points

    def match(self, other: Likeness, layer: str) -> Match:
        """Find the units of another network, or epoch, that a layer's units match.

        Args:
            other: The likeness of the units of the other network over the same images.
            layer: Name of the layer; the other network needn't have it.

        Raises:
            ValueError: The images differ.
        """
        if not np.array_equal(self.images, other.images):
            raise ValueError("the two networks saw different images")
        own = self.directions[layer]
        units = np.full(len(own), -1, np.int32)
        cosines = np.full(len(own), np.nan, np.float32)
        theirs = other.directions.get(layer, own[:0])
        live, candidates = (np.flatnonzero(_is_live(x)) for x in (own, theirs))
        table = np.clip(own[live] @ theirs[candidates].T, -1, 1)
        rows, columns = scipy.optimize.linear_sum_assignment(table, maximize=True)
        units[live[rows]] = candidates[columns]
        cosines[live[rows]] = table[rows, columns]
        best = self._search(layer, other, tuple(other.directions), 1)
        return Match(units, cosines, best)

    def _search(
        self,
        layer: str,
        other: Likeness,
        names: tuple[str, ...],
        k: int,
        *,
        is_same: bool = False,
    ) -> Neighbors:
        """Find the most similar units in some layers of this or another network."""
        own = self.directions[layer]
        parts = [other.directions[name] for name in names] or [own[:0]]
        columns = np.concatenate(parts)
        places = np.repeat(np.arange(len(parts), dtype=np.int32), [*map(len, parts)])
        numbers = np.concatenate(
            [np.arange(len(part), dtype=np.int32) for part in parts]
        )
        hidden = ~_is_live(columns)
        if not is_same and names:
            hidden |= np.concatenate([other.copies[name] for name in names])
        chosen, cosines = _take_best(own, columns, hidden, k, is_same)
        is_none = np.isnan(cosines)
        return Neighbors(
            names,
            np.where(is_none, 0, places[chosen]).astype(np.int32),
            np.where(is_none, -1, numbers[chosen]).astype(np.int32),
            cosines,
        )


def _is_live(directions: Float32[np.ndarray, "u n"]) -> Bool[np.ndarray, " u"]:
    return np.asarray(directions.any(1))


def _take_best(
    rows: Float32[np.ndarray, "u n"],
    columns: Float32[np.ndarray, "m n"],
    hidden: Bool[np.ndarray, " m"],
    k: int,
    is_same: bool,
) -> tuple[Int[np.ndarray, "u k"], Float32[np.ndarray, "u k"]]:
    """The columns of the greatest cosines with each row; NaN for none."""
    k = min(k, len(columns) - is_same)
    chosen = np.zeros((len(rows), k), int)
    cosines = np.full((len(rows), k), np.nan, np.float32)
    if k < 1:
        return chosen, cosines
    dead = ~_is_live(rows)
    for start in range(0, len(rows), _BLOCK):
        block = slice(start, start + _BLOCK)
        table = np.clip(rows[block] @ columns.T, -1, 1)
        table[:, hidden] = -np.inf
        table[dead[block]] = -np.inf
        if is_same:
            own = np.arange(len(table))
            table[own, start + own] = -np.inf
        best = np.sort(np.argpartition(table, -k, 1)[:, -k:], 1)
        values = np.take_along_axis(table, best, 1)
        order = np.argsort(-values, 1, kind="stable")
        chosen[block] = np.take_along_axis(best, order, 1)
        values = np.take_along_axis(values, order, 1)
        cosines[block] = np.where(np.isinf(values), np.nan, values)
    return chosen, cosines


def _analyze(points: Float32[np.ndarray, "u n"]) -> Float32[np.ndarray, "u 2"]:
    """The first two principal components, by the smaller of the two Gram matrices."""
    centered = points.astype(np.float64) - points.mean(0, dtype=np.float64)
    count, size = centered.shape
    is_wide = count < size
    gram = centered @ centered.T if is_wide else centered.T @ centered
    first = max(0, len(gram) - 2)
    values, vectors = scipy.linalg.eigh(gram, subset_by_index=(first, len(gram) - 1))
    if is_wide:
        components = vectors * np.sqrt(np.maximum(values, 0))
    else:
        components = centered @ vectors
    components = components[:, ::-1]
    extremes = np.take_along_axis(components, np.abs(components).argmax(0)[None], 0)
    components = components * np.where(extremes < 0, -1, 1)
    return np.pad(components, ((0, 0), (0, 2 - components.shape[1]))).astype(np.float32)


def likeness(
    net: Network | Any,
    images: Any,
    layers: Sequence[str] | str | None = None,
    *,
    limit: int = 2048,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Likeness:
    """Compare units by the images to which they respond.

    Args:
        net: A `Network`, or any model that `zf.network` takes.
        images: Preprocessed images [n, h, w, c], a source of them, or a path.
        layers: Names of layers; all if None.
        limit: Images at most: of more images a random sample is taken. Memory grows
            with their number times that of all units.
        seed: Seed of the sample.
        progress: Called with the number of images done and their total.

    Returns:
        The responses, with methods for the most similar units, groups of near
        duplicates, a map of a layer, and the units of another network that match.

    Raises:
        ValueError: There is no such layer or no image, or the images do not fit.

    Example:
        >>> import numpy as np, zfnet_jax as zf
        >>> net = zf.load("zfnet32-cifar10")
        >>> images = np.random.default_rng(0).normal(size=(20, 32, 32, 3))
        >>> like = zf.likeness(net, images)
        >>> like.nearest("conv5", k=4).units[17].shape  # those most like unit 17
        (4,)
        >>> like.map("conv5").shape
        (192, 2)
        >>> like.match(like, "conv5").units[17]  # itself
        np.int32(17)
    """
    net, images = as_network(net, images)
    names = net.select(layers)
    total = len(images)
    if not total:
        raise ValueError("there are no images: the batch is empty")
    count = min(limit, total)
    chosen = np.sort(np.random.default_rng(seed).choice(total, count, replace=False))
    directions = {
        name: np.empty((net.layer(name).shape[-1], count), np.float32) for name in names
    }
    for start in range(0, count, _GROUP):
        batch = net.read(images, chosen[start : start + _GROUP])
        real = len(batch)
        # Of the same size as the others, whatever is in the rest.
        batch = np.resize(batch, (_GROUP, *batch.shape[1:]))
        for name, responses in jax.device_get(_respond(net, batch, names)).items():
            directions[name][:, start : start + real] = responses[:real].T
        if progress is not None:
            progress(start + real, count)
    for responses in directions.values():
        _normalize(responses)
    return Likeness(chosen, directions, _find_copies(directions))


@functools.partial(jax.jit, static_argnames="layers")
def _respond(
    net: Network, batch: Array, layers: tuple[str, ...]
) -> dict[str, Float32[Array, "n u"]]:
    features = net.features(batch, layers)
    return {
        name: x.astype(np.float32).max((1, 2)) if x.ndim == 4 else x.astype(np.float32)
        for name, x in features.items()
    }


def _normalize(responses: Float32[np.ndarray, "u n"]) -> None:
    """Subtract each unit's mean and scale to length 1, in place; 0 for a dead unit."""
    dead = responses.max(1) <= 0
    lengths = np.linalg.norm(responses, axis=1)
    responses -= responses.mean(1, keepdims=True)
    rest = np.linalg.norm(responses, axis=1)
    # Less than rounding is no variation.
    dead |= rest <= 1e-6 * lengths
    responses[dead] = 0
    responses /= np.where(dead, 1, rest)[:, None]


def _find_copies(
    directions: Mapping[str, Float32[np.ndarray, "u n"]],
) -> dict[str, Bool[np.ndarray, " u"]]:
    earlier: set[str] = set()
    copies = {}
    for name, rows in directions.items():
        keys = [digest(row) for row in rows]
        copies[name] = np.array([key in earlier for key in keys])
        earlier.update(keys)
    return copies


def import_umap() -> Any:
    """Import UMAP.

    Raises:
        ImportError: It is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImportWarning)  # a part needs TensorFlow
            import umap  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            'maps by UMAP need umap-learn: pip install "zfnet_jax[umap]"'
        ) from error
    return umap


def _embed(seed: int, points: Float32[np.ndarray, "u n"]) -> Float32[np.ndarray, "u 2"]:
    """UMAP of cosine distances; too few units for it are analyzed instead."""
    if len(points) < 4:
        return _analyze(points)
    return (
        import_umap()
        .UMAP(
            n_neighbors=min(15, len(points) - 1),
            metric="cosine",
            init="random" if len(points) < 6 else "spectral",
            random_state=seed,
            n_jobs=1,
        )
        .fit_transform(points)
    )
