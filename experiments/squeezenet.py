"""SqueezeNet v1.0, a network that this project did not write, for `--model`.

    python -m experiments.project --image PHOTO --layers fire5 logits \\
        --model experiments.squeezenet:v1_0 --weights squeezenet_v1_0.safetensors

`squeezenet` is a plain function of weights and images (Iandola et al. 2016, arXiv
1602.07360) that knows nothing of projections.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from zfnet_jax.networks import Network, network
from zfnet_jax.weights import read_safetensors

# Channels that each fire module squeezes to, and that either kernel expands to.
FIRES = {
    "fire2": (16, 64),
    "fire3": (16, 64),
    "fire4": (32, 128),
    "fire5": (32, 128),
    "fire6": (48, 192),
    "fire7": (48, 192),
    "fire8": (64, 256),
    "fire9": (64, 256),
}
LAYERS = (
    *("conv1", "pool1", "fire2", "fire3", "fire4", "pool4", "fire5", "fire6", "fire7"),
    *("fire8", "pool8", "fire9", "conv_final", "logits"),
)
IMAGE_SHAPE = (227, 227, 3)


def v1_0(weights: str) -> Network:
    """Load the network from a safetensors file with Caffe's names."""
    tensors = read_weights(weights)
    # Caffe's network takes blue first; this one takes RGB like all others.
    tensors["conv1.weight"] = tensors["conv1.weight"][:, ::-1]
    return network(squeezenet, IMAGE_SHAPE, params=tensors, preprocess=preprocess)


def squeezenet(weights: Mapping[str, jax.Array], images: jax.Array) -> jax.Array:
    """Compute the logits of float32 [b, h, w, 3] images from `preprocess`."""

    def conv(x: jax.Array, name: str, stride: int = 1, padding: int = 0) -> jax.Array:
        x = lax.conv_general_dilated(
            x,
            weights[f"{name}.weight"],
            (stride, stride),
            [(padding, padding)] * 2,
            dimension_numbers=("NHWC", "OIHW", "NHWC"),
        )
        return jax.nn.relu(x + weights[f"{name}.bias"])

    x = images
    for name in LAYERS:
        if name == "conv1":
            x = conv(x, name, stride=2)
        elif name.startswith("pool"):
            # As in Caffe, the size of the result is rounded up.
            beyond = [(0, (extent - 3) % 2) for extent in x.shape[1:3]]
            edges = ((0, 0), *beyond, (0, 0))
            x = lax.reduce_window(
                x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), edges
            )
        elif name in FIRES:
            x = conv(x, f"{name}/conv1x1_1")
            wide = conv(x, f"{name}/conv3x3_2", padding=1)
            x = jnp.concatenate([conv(x, f"{name}/conv1x1_2"), wide], -1)
        elif name == "conv_final":
            x = conv(x, name, padding=1)
        else:
            x = x.mean((1, 2))
        x = checkpoint_name(x, name)
    return x


def preprocess(pictures: np.ndarray) -> np.ndarray:
    """Subtract ImageNet's mean color from uint8 [..., 3] RGB pictures."""
    return pictures.astype(np.float32) - np.array([123, 117, 104], np.float32)


def weight_shapes() -> dict[str, tuple[int, ...]]:
    """List the shape of every tensor by name; kernels are OIHW."""
    shapes: dict[str, tuple[int, ...]] = {"conv1": (96, 3, 7, 7)}
    channels = 96
    for fire, (squeezed, expanded) in FIRES.items():
        shapes[f"{fire}/conv1x1_1"] = (squeezed, channels, 1, 1)
        shapes[f"{fire}/conv1x1_2"] = (expanded, squeezed, 1, 1)
        shapes[f"{fire}/conv3x3_2"] = (expanded, squeezed, 3, 3)
        channels = 2 * expanded
    shapes["conv_final"] = (1000, channels, 1, 1)
    kernels = {f"{name}.weight": shape for name, shape in shapes.items()}
    return kernels | {f"{name}.bias": shape[:1] for name, shape in shapes.items()}


def read_weights(path: str) -> dict[str, np.ndarray]:
    """Read the tensors from a safetensors file, and check their names and shapes."""
    tensors, expected = read_safetensors(path)[0], weight_shapes()
    shapes = {name: array.shape for name, array in tensors.items()}
    if different := sorted(x for x, _ in shapes.items() ^ expected.items()):
        raise ValueError(f"{path} is not SqueezeNet v1.0: {different[0]} differs")
    return {name: array.astype(np.float32) for name, array in tensors.items()}
