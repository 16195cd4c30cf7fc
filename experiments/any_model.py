"""Project a model that this project did not write: SqueezeNet v1.0.

    python -m experiments.any_model --image PHOTO --weights squeezenet_v1_0.safetensors

`squeezenet` below is a plain function of weights and images (Iandola et al. 2016, arXiv
1602.07360) that knows nothing of projections. `network` reads it as named layers, and
`project` projects any of them. The same two calls serve any JAX model: Flax, Equinox,
Keras or plain functions.

    net = network(squeezenet, (227, 227, 3), params=weights)
    projections = project(net, images, "fire5", [3, 17], rule="deconvnet")

Expected with weights trained on ImageNet: the photograph's class among the strongest,
in half a minute, most of it compilation. By the rule "deconvnet" a class often comes to
nothing ("all 0") or to next to nothing in a corner: where each of many ReLUs rectifies
the signal and no forward mask helps, hardly a positive value may be left. The result
folder holds one figure of the strongest classes and one of the strongest units of an
inner layer, each projected by the three rules, and metrics.json.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from experiments.common import Results, UsageError, main, silent_decoders
from zfnet_jax import viz
from zfnet_jax.data import center_crop, load_photograph, resize_shortest_side
from zfnet_jax.files import DataNotFoundError
from zfnet_jax.networks import Network, network
from zfnet_jax.projections import project
from zfnet_jax.relu_rules import Rule
from zfnet_jax.weights import read_safetensors

RULES: tuple[Rule, ...] = ("deconvnet", "guided", "gradient")

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

_SIZE = (227, 227)
_MEAN_BGR = np.array([104, 117, 123], np.float32)


@dataclasses.dataclass(frozen=True)
class Options:
    """Project units of SqueezeNet v1.0 back to the pixels of a photograph."""

    image: Path
    """Photograph of any size and mode."""
    weights: Path
    """Safetensors file with the weights of SqueezeNet v1.0, named as in Caffe."""
    layer: str = "fire5"
    """Inner layer: conv1, pool1, fire2 to fire9, pool4, pool8 or conv_final."""
    classes: int = 2
    """Number of the strongest classes to project."""
    units: int = 6
    """Number of the layer's strongest units to project."""
    out: Path = Path("results/any_model")
    """Folder for results; files of the same names are replaced."""


def squeezenet(weights: Mapping[str, jax.Array], images: jax.Array) -> jax.Array:
    """Logits of SqueezeNet v1.0 for float32 [b, h, w, 3] images from `preprocess`.

    Pooling rounds the size of its result up, as in Caffe.
    """

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
    """Preprocess uint8 [..., 3] RGB pictures as SqueezeNet v1.0 takes them."""
    return pictures[..., ::-1].astype(np.float32) - _MEAN_BGR


def crop(photograph: np.ndarray) -> np.ndarray:
    """Middle of a photograph at the size of the network, uint8 [227, 227, 3]."""
    # The square first: a strip one pixel high would become a very long one.
    shorter = min(photograph.shape[:2])
    long = tuple(min(extent, 2 * shorter) for extent in photograph.shape[:2])
    return center_crop(resize_shortest_side(center_crop(photograph, long), 256), _SIZE)


def shapes() -> dict[str, tuple[int, ...]]:
    """Shape of every convolution's weight, OIHW, by name."""
    table: dict[str, tuple[int, ...]] = {"conv1": (96, 3, 7, 7)}
    channels = 96
    for fire, (squeezed, expanded) in FIRES.items():
        table[f"{fire}/conv1x1_1"] = (squeezed, channels, 1, 1)
        table[f"{fire}/conv1x1_2"] = (expanded, squeezed, 1, 1)
        table[f"{fire}/conv3x3_2"] = (expanded, squeezed, 3, 3)
        channels = 2 * expanded
    return table | {"conv_final": (1000, channels, 1, 1)}


def load(path: Path) -> dict[str, np.ndarray]:
    """Read the weights from a safetensors file, and check each of them."""
    if not path.is_file():
        raise DataNotFoundError(f"there is no weight file {path}")
    weights, _ = read_safetensors(path)
    expected = {}
    for name, shape in shapes().items():
        expected |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in sorted(expected.keys() | weights.keys()):
        shape = weights[name].shape if name in weights else "missing"
        wanted = expected.get(name, "no tensor")
        if shape != wanted:
            raise UsageError(
                f"--weights {path} is not SqueezeNet v1.0: {name} is {shape}, where "
                f"{wanted} is expected"
            )
        array = weights[name]
        if not (jnp.issubdtype(array.dtype, jnp.floating) and np.isfinite(array).all()):
            raise UsageError(
                f"--weights {path}: {name} holds a value that is not a finite float"
            )
    return {name: array.astype(np.float32) for name, array in weights.items()}


def run(options: Options) -> None:
    """Project, draw and write the results."""
    if options.layer not in LAYERS[:-1]:
        raise UsageError(
            f"--layer must be one of {', '.join(LAYERS[:-1])}, not {options.layer}"
        )
    with silent_decoders():
        picture = crop(load_photograph(options.image))
    net = network(squeezenet, (*_SIZE, 3), params=load(options.weights))
    for name, layer in (("classes", "logits"), ("units", options.layer)):
        count, width = getattr(options, name), net.layer(layer).shape[-1]
        if not 1 <= count <= width:
            raise UsageError(
                f"--{name} must be from 1 to the {width} of {layer}, not {count}"
            )
    results = Results(options.out)
    metrics = {
        layer: _draw(results, net, picture, layer, count)
        for layer, count in (
            ("logits", options.classes),
            (options.layer, options.units),
        )
    }
    results.metrics(metrics)
    results.config(options)
    results.manifest(
        seed=0,  # nothing is random
        digests={
            "image": hashlib.sha256(options.image.read_bytes()).hexdigest(),
            "weights": hashlib.sha256(options.weights.read_bytes()).hexdigest(),
        },
    )
    best = metrics["logits"][0]["unit"]
    print(f"class {best} is the strongest; figures in {results.path}")


def _draw(
    results: Results, net: Network, picture: np.ndarray, layer: str, count: int
) -> list[dict[str, object]]:
    """Draw a layer's strongest units and return what was measured."""
    images = preprocess(picture[None])
    shape = net.layer(layer).shape
    maxima = net.activations(images, layer)[layer].reshape(-1, shape[-1]).max(0)
    units = np.argsort(-maxima, kind="stable")[:count]
    by_rule = {
        rule: project(net, images, layer, units, rule=rule, crop=True) for rule in RULES
    }
    top = by_rule[RULES[0]]
    noun = "class" if layer == "logits" else "unit"
    captions = [
        f"{noun} {unit}: {activation:.3g}"
        + (f" at row {row}, column {column}" if len(shape) == 3 else "")
        for unit, activation, (row, column) in zip(
            units, top.activations, top.positions, strict=True
        )
    ]
    figure, _ = viz.projection_grid(
        f"{layer} of SqueezeNet v1.0: the strongest of {shape[-1]}",
        picture,
        top.boxes,
        units,
        captions,
        # The network takes blue first.
        {rule: shown.pixels[..., ::-1] for rule, shown in by_rule.items()},
    )
    results.figure(f"projections_{layer}", figure)
    return [
        {
            "unit": units[index],
            "position": top.positions[index],
            "value": top.activations[index],
            "box": top.boxes[index],
            "scales": {
                rule: np.abs(shown.pixels[index]).max()
                for rule, shown in by_rule.items()
            },
        }
        for index in range(count)
    ]


if __name__ == "__main__":
    sys.exit(main(run, Options))
