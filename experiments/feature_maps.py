"""The maps that a layer makes of one image.

    python -m experiments.feature_maps --image PHOTO --layers conv1,conv5

Beside the image, the maps of each layer on one scale, which stands below it; those that
are zero everywhere are crossed out. Expected with the shipped weights: five to ten
seconds. The result folder holds a figure for each layer and metrics.json, with each
map's maximum and where it is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from experiments.common import (
    Results,
    UsageError,
    at_least,
    chosen_layers,
    counted,
    main,
    silent_decoders,
    weights_digest,
)
from experiments.project import load
from zfnet_jax import viz
from zfnet_jax.arch import Dense
from zfnet_jax.data import fitted, load_photograph


@dataclasses.dataclass(frozen=True)
class Options:
    """Draw the maps that layers make of one image."""

    image: Path
    """The photograph: JPEG, PNG, WebP, TIFF, GIF and others, of any size and mode; its
    middle square is resized to the size of the network."""
    layers: str | None = None
    """Layers, as in conv1,pool1; if not given, every convolution."""
    count: int = 64
    """How many maps of each layer to draw at most, from the first on."""
    weights: str = "zfnet32-cifar10"
    """A shipped name, or a file: weights.safetensors of a training run, or with --arch
    any safetensors or PyTorch file with PyTorch's names."""
    arch: Literal["zfnet", "zfnet-plain", "alexnet", "zfnet32"] | None = None
    """What a file of bare weights is for, as in `experiments.project`."""
    num_classes: int | None = None
    """Width of the classifier in a file of bare weights, if not the network's own."""
    out: Path = Path("results/feature_maps")
    """Folder for results; files of the same names are replaced."""


def run(options: Options) -> None:
    """Compute, draw and write everything down."""
    at_least(1, options, "count")
    results = Results(options.out)
    with silent_decoders():
        photograph = load_photograph(options.image)
    network = load(options.weights, options.arch, options.num_classes)
    arch = network.model.arch
    layers = chosen_layers(arch, options.layers)
    if flat := [name for name in layers if isinstance(arch.layer(name), Dense)]:
        there = [x.name for x in arch.layers if not isinstance(x, Dense)]
        raise UsageError(
            f"--layers {flat[0]} is dense and has no maps; {', '.join(there)} have"
        )

    picture = fitted(photograph, network.input_hw)
    # One program: operation by operation it would take seconds to compile.
    mapped = jax.jit(lambda x: network.model.features(x, until=layers[-1]).features)
    features = mapped(network.preprocess(picture[None]))
    metrics = {}
    for layer in layers:
        maps = np.asarray(features[layer][0])
        # A network may resize what it is given.
        seen = fitted(picture, arch.input_hw)
        figure, _ = viz.feature_maps(seen, maps, layer, options.count)
        results.figure(f"feature_maps_{layer}", figure)
        flat_maps = maps.reshape(-1, maps.shape[-1])
        metrics[layer] = {
            "maxima": flat_maps.max(0),
            "positions": np.stack(np.divmod(flat_maps.argmax(0), maps.shape[1]), -1),
            "dead": np.flatnonzero(~flat_maps.any(0)),
        }
    results.metrics(
        {
            "architecture": arch.name,
            "photograph_hw": photograph.shape[:2],
            "input_hw": arch.input_hw,
            "layers": metrics,
        }
    )
    results.config(options)
    results.manifest(
        seed=0,  # nothing here is random
        digests={
            "image": hashlib.sha256(options.image.read_bytes()).hexdigest(),
            "weights": weights_digest(options.weights),
        },
    )
    print(f"{counted(len(layers), 'layer')}; figures in {results.path}")


if __name__ == "__main__":
    sys.exit(main(run, Options))
