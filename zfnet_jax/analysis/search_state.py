"""The state of a search over images, kept in a file while it runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Array

from zfnet_jax.data.images import digest_images
from zfnet_jax.files import digest, read_arrays, write_arrays
from zfnet_jax.networks import Network
from zfnet_jax.processes import broadcast, gather

T = TypeVar("T")
# Seconds between two savings of a search.
_SAVE_EVERY = 60
# The strongest so far, [u, k] each: activations, images, and flat row-major places.
Best = tuple[Array | np.ndarray, Array | np.ndarray, Array | np.ndarray]


class SearchState(NamedTuple):
    """A search for the strongest activations after its first images.

    Attributes:
        done: Number of images so far.
        best: The strongest activations so far, by layer.
        sums: By layer, float64 [classes, 2, u]: over the images of each class, how many
            activate a unit, and the sum of its strongest activations.
        powers: By layer, float64 [2, u]: the sum of those activations that are
            positive, and of their squares.
    """

    done: int
    best: dict[str, Best]
    sums: dict[str, np.ndarray]
    powers: dict[str, np.ndarray]


def start_search(
    net: Network, layers: Sequence[str], k: int, classes: int
) -> SearchState:
    """Return the state before the first image."""
    best, sums, powers = {}, {}, {}
    for name in layers:
        units = net.layer(name).shape[-1]
        weakest = np.full((units, k), -np.inf, np.float32)
        nowhere = np.zeros(weakest.shape, np.int32)
        best[name] = weakest, nowhere, nowhere
        # In float64 and image by image, so that the batch size makes no difference.
        sums[name] = np.zeros((classes, 2, units))
        powers[name] = np.zeros((2, units))
    return SearchState(0, best, sums, powers)


class SearchFile:
    """A file that keeps the state of a search; none without a folder.

    All processes of a run make it and resume. Process 0 reads and writes.
    """

    def __init__(
        self, folder: str | Path | None, net: Network, images: Any, *options: Any
    ) -> None:
        """Name the file by a digest of the search's network, images and options."""
        self._folder, self._file, self._saved = folder, None, time.monotonic()
        if folder is None:
            return
        gather(None)  # at the first exchange Gloo waits for only 30 s
        if jax.process_index() == 0:
            key = digest(net.digest(), digest_images(images), *options)
            self._file = Path(folder) / f"search-{key[:16]}.npz"

    def resume(self, start: T) -> T:
        """Read the state of a search of at least the layers of a first state.

        Without such a file, and if it is damaged, this is the first state itself.
        """
        saved = None
        if self._file is not None:
            arrays = read_arrays(self._file)
            leaves, tree = jax.tree.flatten_with_path(start)
            names = [jax.tree_util.keystr(path) for path, _ in leaves]
            if arrays.keys() >= {*names}:
                saved = tree.unflatten(arrays[name] for name in names)
        return start if self._folder is None else broadcast(saved) or start

    def save(self, state: Any) -> None:
        """Write a state, at most every minute; the file is replaced as a whole."""
        if self._file is None or time.monotonic() - self._saved < _SAVE_EVERY:
            return
        leaves, _ = jax.tree.flatten_with_path(jax.device_get(state))
        names = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
        write_arrays(self._file, **names)
        self._saved = time.monotonic()
