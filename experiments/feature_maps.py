"""Feature maps of one image.

    python -m experiments.feature_maps --image PHOTO --layers conv1,conv5

The maps of each layer beside the image, on one scale, which is written below. Maps that
are zero everywhere are crossed out. Expected with the shipped weights: five to ten
seconds. The result folder contains a figure for each layer and metrics.json, with each
map's maximum and its position.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from pathlib import Path
from typing import Literal

import numpy as np

from experiments.common import (
    Results,
    UsageError,
    at_least,
    chosen_layers,
    counted,
    main,
    weights_digest,
)
from experiments.project import load, read_photograph


@dataclasses.dataclass(frozen=True)
class Options:
    """Draw the feature maps of one image."""

    image: Path
    """The photograph: JPEG, PNG, WebP, TIFF, GIF and others, of any size and mode; its
    center is resized to the size of the network."""
    layers: str | None = None
    """Layers, as in conv1,pool1; by default every convolution."""
    count: int = 64
    """Maximum number of maps to draw per layer, from the first on."""
    weights: str = "zfnet32-cifar10"
    """A shipped name, or a file: weights.safetensors of a training run, or with --arch
    any safetensors or PyTorch file with PyTorch's names."""
    arch: Literal["zfnet", "zfnet-plain", "alexnet", "zfnet32"] | None = None
    """Architecture of a file of bare weights, as in `experiments.project`."""
    num_classes: int | None = None
    """Number of classes in a file of bare weights, if not the architecture's own."""
    out: Path = Path("results/feature_maps")
    """Folder for results; files of the same names are replaced."""


def run(options: Options) -> None:
    """Compute, draw and write the results."""
    from zfnet_jax import viz

    at_least(1, options, "count")
    results = Results(options.out)
    net = load(options.weights, options.arch, options.num_classes)
    arch = net.model.arch
    layers = chosen_layers(arch, options.layers)
    has_maps = [name for name, layer in net.layers.items() if len(layer.shape) == 3]
    if dense := [name for name in layers if name not in has_maps]:
        raise UsageError(
            f"--layers {dense[0]} is dense and has no maps; {', '.join(has_maps)} have"
        )

    size, picture, images = read_photograph(net, options.image)
    activations = net.activations(images, layers)
    metrics = {}
    for layer in layers:
        maps = activations[layer][0]
        figure, _ = viz.feature_maps(picture, maps, layer, options.count)
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
            "photograph_hw": size,
            "input_hw": arch.input_hw,
            "layers": metrics,
        }
    )
    results.config(options)
    results.manifest(
        seed=0,  # nothing is random
        digests={
            "image": hashlib.sha256(options.image.read_bytes()).hexdigest(),
            "weights": weights_digest(options.weights),
        },
    )
    print(f"{counted(len(layers), 'layer')}; figures in {results.path}")


if __name__ == "__main__":
    sys.exit(main(run, Options))
