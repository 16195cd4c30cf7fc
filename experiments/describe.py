"""The layers of a network: outputs, parameters, receptive fields and multiply-adds.

    python -m experiments.describe --weights vgg16

Parameters are the weights and biases that a layer takes; in the total, layers that
share a weight count it once. Batch normalization that is folded into a convolution
leaves one bias per channel. Multiply-adds are the multiplications of convolutions and
products for one image, those with padding included. A receptive field is the square of
pixels that an activation depends on, and the stride the pixels between two of them.

The weights of a published network need not be fetched. Expected: three seconds. The
result folder contains metrics.json, with the same numbers.
"""

from __future__ import annotations

import sys
from typing import Any

from experiments.harness import Metrics, main
from experiments.inputs import NetworkRun
from experiments.progress import say
from zfnet_jax.imagenet.registry import PUBLIC
from zfnet_jax.layers import Layer
from zfnet_jax.networks import Network


def describe(run: NetworkRun) -> Metrics:
    """Print the table of a network's layers."""
    net = describe_network(run)
    say(net)
    yield "network", run.weights if run.weights in PUBLIC else run.network_name
    yield "image_shape", net.image_shape
    yield "layers", [describe_layer(layer) for layer in net.layers.values()]
    yield "parameters", net.parameters
    yield "multiply_adds", net.multiply_adds


def describe_network(run: NetworkRun) -> Network:
    """The network of the command line; a published one without its weights."""
    is_alone = run.model is None and run.arch is None and run.num_classes is None
    if is_alone and run.weights in PUBLIC:
        return PUBLIC[run.weights].network()
    return run.net


def describe_layer(layer: Layer) -> dict[str, Any]:
    """Describe a layer for metrics.json."""
    field = layer.receptive_field
    return {
        "name": layer.name,
        "kind": layer.kind,
        "output": layer.shape,
        "rectified": layer.rectified,
        "parameters": layer.parameters,
        "receptive_field": field.size if field else None,
        "stride": field.stride if field else None,
        "multiply_adds": layer.multiply_adds,
    }


if __name__ == "__main__":
    sys.exit(main(describe))
