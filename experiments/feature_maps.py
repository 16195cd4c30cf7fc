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

from experiments.harness import Metrics, Positive, UserError, main
from experiments.inputs import NetworkRun, name_image
from experiments.project import describe_image, describe_sizes, measure_image
from zfnet_jax.files import slug


def feature_maps(
    run: NetworkRun, layers: tuple[str, ...] = (), count: Positive = 64
) -> Metrics:
    """Draw the feature maps of the first image.

    Args:
        layers: Layers, by default every convolution.
        count: Maps per layer at most.
    """
    from zfnet_jax.viz.feature_maps import draw_maps

    net, images = run.net, run.images(1)
    names = net.select(layers or run.default_layers())
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
        figure = draw_maps(
            f"{layer} of {run.network_name} on {describe_image(run, images)}",
            images.pictures[0],
            maps,
            count,
            describe_sizes(run, images),
        )
        run.figure(f"feature_maps_{slug(layer)}", figure)
        flat = maps.reshape(-1, maps.shape[-1])
        results[layer] = {
            "maxima": flat.max(0),
            "positions": np.stack(np.divmod(flat.argmax(0), maps.shape[1]), -1),
            "dead": np.flatnonzero(~flat.any(0)),
        }
    yield "network", run.network_name
    yield "image", name_image(images, 0)
    yield "photograph_hw", measure_image(images)
    yield "input_hw", net.image_shape[:2]
    yield "layers", results


if __name__ == "__main__":
    sys.exit(main(feature_maps))
