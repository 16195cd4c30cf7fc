"""The state of a search for the strongest activations, kept in a file while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from zfnet_jax.data.images import digest_images
from zfnet_jax.files import digest, read_arrays, write_arrays
from zfnet_jax.networks import Network

# The strongest so far, [u, k] each: activations, images, and flat row-major places.
Best = tuple[Array | np.ndarray, Array | np.ndarray, Array | np.ndarray]


class SearchState(NamedTuple):
    """A search after its first images.

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


def find_file(folder: str | Path, net: Network, images: Any, *options: Any) -> Path:
    """Name the file of a search by a digest of its network, images and options."""
    key = digest(net.digest(), digest_images(images), *options)
    return Path(folder) / f"search-{key[:16]}.npz"


def save_state(file: Path, state: SearchState) -> None:
    """Write the state of a search; the file is replaced as a whole."""
    arrays: dict[str, Any] = {"done": np.int64(state.done)}
    for name, best in jax.device_get(state.best).items():
        arrays |= {f"best {index} {name}": x for index, x in enumerate(best)}
        arrays[f"sums {name}"] = state.sums[name]
        arrays[f"powers {name}"] = state.powers[name]
    write_arrays(file, **arrays)


def load_state(file: Path, layers: Sequence[str]) -> SearchState | None:
    """Read the state of a search of at least these layers.

    None without such a file, and if it is damaged: the search then starts anew.
    """
    arrays, best, sums, powers = read_arrays(file), {}, {}, {}
    try:
        for name in layers:
            parts = [arrays[f"best {index} {name}"] for index in range(3)]
            best[name] = tuple(parts)
            sums[name] = arrays[f"sums {name}"]
            powers[name] = arrays[f"powers {name}"]
        return SearchState(int(arrays["done"]), best, sums, powers)
    except KeyError:
        return None
