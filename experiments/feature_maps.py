"""Feature maps of an image, the strongest first.

    python -m experiments.feature_maps --image PHOTO --layers conv1 conv5

The maps of each layer beside the image, on one scale. Maps that are zero everywhere are
left out, and counted. The result folder contains a figure for each layer and
metrics.json, with each map's maximum and its position. Expected with the shipped
weights: five seconds.
"""

from __future__ import annotations

import sys

import numpy as np

from experiments.harness import (
    Images,
    Metrics,
    NetworkRun,
    Positive,
    UserError,
    main,
)
from experiments.project import (
    describe_image,
    describe_sizes,
    measure_image,
    name_image,
)


def feature_maps(
    run: NetworkRun, layers: tuple[str, ...] = (), count: Positive = 64
) -> Metrics:
    """Draw the feature maps of the first image.

    Args:
        layers: Layers, by default every convolution.
        count: Maps per layer at most.
    """
    net, images = run.net, run.images(1)
    names = net.select(layers or run.convolutions())
    has_maps = [name for name, layer in net.layers.items() if len(layer.shape) == 3]
    for name in names:
        if name not in has_maps:
            raise UserError(
                f"--layers {name}: it has no maps; give some of {' '.join(has_maps)}"
            )
    activations = net.activations(images, names, progress=run.progress("reading"))
    results = {}
    for layer in names:
        maps = activations[layer][0]
        flat = maps.reshape(-1, maps.shape[-1])
        dead = np.flatnonzero(~flat.any(0))
        order = np.argsort(-np.abs(flat).max(0), kind="stable")
        draw(run, images, layer, maps, order[: len(order) - len(dead)][:count])
        results[layer] = {
            "maxima": flat.max(0),
            "positions": np.stack(np.divmod(flat.argmax(0), maps.shape[1]), -1),
            "dead": dead,
        }
    yield "network", run.network_name
    yield "image", name_image(images)
    yield "photograph_hw", measure_image(images)
    yield "input_hw", net.image_shape[:2]
    yield "layers", results


def draw(
    run: NetworkRun, images: Images, layer: str, maps: np.ndarray, order: np.ndarray
) -> None:
    """Draw some maps of a layer."""
    from zfnet_jax.viz.feature_maps import draw_maps

    height, width, channels = maps.shape
    dead = int((~maps.any((0, 1))).sum())
    kept = order if order.size else np.array([0])
    which = "the strongest" if len(order) + dead < channels else "strongest first"
    figure = draw_maps(
        f"{layer} of {run.network_name}: {len(order)} of {channels:,} maps on "
        f"{describe_image(run, images)}, {which}",
        images.pictures[0],
        np.moveaxis(maps, -1, 0)[kept],
        [f"unit {unit}" for unit in kept],
        f"{describe_sizes(run, images)} Maps are {height} x {width}; {dead} of "
        f"{channels:,} are zero everywhere.",
    )
    run.figure(f"feature_maps_{layer}", figure)


if __name__ == "__main__":
    sys.exit(main(feature_maps))
