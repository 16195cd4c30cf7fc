"""The deconvnet of a model that this project did not write: SqueezeNet v1.0.

    python -m experiments.any_model --image PHOTO --weights squeezenet_v1_0.safetensors

`squeezenet` below is a plain function of weights and images (Iandola et al. 2016, arXiv
1602.07360) which knows nothing of projections; `project` gives its ReLUs another
backward rule and goes down. The same two steps serve any JAX model, of Flax, Equinox or
plain functions:

    features, down = jax.vjp(with_relu_rule(model, "deconvnet"), images)
    pixels = down(signal)[0]  # `features`, zero but for the activation of interest

Expected with weights trained on ImageNet: the photograph's class among the first, in
half a minute, most of it compilation. By the deconvnet's rule a class often comes to
nothing ("all 0") or to next to nothing in a corner: where each of many ReLUs rectifies
what comes down and no forward mask helps, hardly a positive value may be left. The
result folder holds a figure of the strongest classes and one of the strongest units of
an inner layer, each projected by the three rules, and metrics.json.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.common import Results, UsageError, main, silent_decoders
from zfnet_jax import viz
from zfnet_jax.data import (
    DataNotFoundError,
    center_crop,
    load_photograph,
    resize_shortest_side,
)
from zfnet_jax.relu_rules import Rule, with_relu_rule
from zfnet_jax.weights import read_safetensors

RULES: tuple[Rule, ...] = ("deconvnet", "guided", "gradient")

# Channels that each fire module squeezes to, and expands to by either kernel.
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
    """Project what SqueezeNet v1.0 sees in a photograph back to its pixels."""

    image: Path
    """The photograph, of any size and mode."""
    weights: Path
    """A safetensors file with the weights of SqueezeNet v1.0, named as in Caffe."""
    layer: str = "fire5"
    """The inner layer: conv1, pool1, fire2 to fire9, pool4, pool8 or conv_final."""
    classes: int = 2
    """How many of the strongest classes to project."""
    units: int = 6
    """How many of the layer's strongest units to project."""
    out: Path = Path("results/any_model")
    """Folder for results; files of the same names are replaced."""


def squeezenet(
    weights: Mapping[str, jax.Array], images: jax.Array, layer: str = "logits"
) -> jax.Array:
    """What a layer of SqueezeNet v1.0 makes of float32[b, h, w, 3] images.

    The images are `preprocessed`. Pooling rounds the size of its result up, as Caffe.
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
        if name == layer:
            break
    return x


class Projections(NamedTuple):
    """The strongest units of a layer, each one's greatest activation sent down alone.

    Attributes:
        units: int32[n], strongest first.
        positions: Row and column of each activation, int32[n, 2]; (0, 0) for logits.
        values: The activations, float32[n].
        pixels: By rule, what each comes to: float32[n, h, w, 3], red first.
    """

    units: jax.Array
    positions: jax.Array
    values: jax.Array
    pixels: dict[str, jax.Array]


@functools.partial(jax.jit, static_argnames=("layer", "count"))
def project(
    weights: Mapping[str, jax.Array], image: jax.Array, layer: str, count: int
) -> Projections:
    """Project the strongest units of a layer for one `preprocessed` image."""
    model = functools.partial(squeezenet, weights, layer=layer)
    features = model(image[None])
    maps = features.reshape(-1, features.shape[-1])
    _, units = lax.top_k(maps.max(0), count)
    places = maps.argmax(0)[units]
    values = maps[places, units]

    def by(rule: Rule) -> jax.Array:
        _, down = jax.vjp(with_relu_rule(model, rule), image[None])

        def pixels(kept: tuple[jax.Array, ...]) -> jax.Array:
            place, unit, value = kept
            signal = jnp.zeros_like(maps).at[place, unit].set(value)
            return down(signal.reshape(features.shape))[0][0, ..., ::-1]

        return lax.map(pixels, (places, units, values))

    columns = features.shape[2] if features.ndim == 4 else 1
    positions = jnp.stack(jnp.divmod(places, columns), -1)
    return Projections(units, positions, values, {rule: by(rule) for rule in RULES})


def boxes(pixels: Mapping[str, np.ndarray]) -> np.ndarray:
    """The parts of the image that projections reach by any rule, of one size.

    Returns:
        Top, left, bottom, right, the last two exclusive: int[n, 4], in pixels.
    """
    reached = np.any([(x != 0).any(-1) for x in pixels.values()], 0)
    edges = []
    for axis in (2, 1):
        line = reached.any(axis)
        first = line.argmax(1)
        last = line.shape[1] - line[:, ::-1].argmax(1)
        size = (last - first).max()
        start = np.clip((first + last - size) // 2, 0, line.shape[1] - size)
        edges.append((start, start + size))
    (top, bottom), (left, right) = edges
    return np.stack([top, left, bottom, right], 1)


def preprocessed(picture: np.ndarray) -> np.ndarray:
    """uint8[227, 227, 3], red first, as SqueezeNet v1.0 takes it."""
    return picture[..., ::-1].astype(np.float32) - _MEAN_BGR


def fitted(photograph: np.ndarray) -> np.ndarray:
    """The middle of a photograph at the size of the network, uint8[227, 227, 3]."""
    # The square first: a strip one pixel high would become a very long one.
    shorter = min(photograph.shape[:2])
    long = tuple(min(extent, 2 * shorter) for extent in photograph.shape[:2])
    return center_crop(resize_shortest_side(center_crop(photograph, long), 256), _SIZE)


def shapes() -> dict[str, tuple[int, ...]]:
    """Every convolution's weight, OIHW, by name."""
    table: dict[str, tuple[int, ...]] = {"conv1": (96, 3, 7, 7)}
    channels = 96
    for fire, (squeezed, expanded) in FIRES.items():
        table[f"{fire}/conv1x1_1"] = (squeezed, channels, 1, 1)
        table[f"{fire}/conv1x1_2"] = (expanded, squeezed, 1, 1)
        table[f"{fire}/conv3x3_2"] = (expanded, squeezed, 3, 3)
        channels = 2 * expanded
    return table | {"conv_final": (1000, channels, 1, 1)}


def width(layer: str) -> int:
    """How many units a layer has."""
    weights = {}
    for name, shape in shapes().items():
        weights[f"{name}.weight"] = jax.ShapeDtypeStruct(shape, np.float32)
        weights[f"{name}.bias"] = jax.ShapeDtypeStruct(shape[:1], np.float32)
    image = jax.ShapeDtypeStruct((1, *_SIZE, 3), np.float32)
    model = functools.partial(squeezenet, layer=layer)
    return jax.eval_shape(model, weights, image).shape[-1]


def load(path: Path) -> dict[str, np.ndarray]:
    """The weights in a safetensors file, every one of which must fit."""
    if not path.is_file():
        raise DataNotFoundError(f"there is no weight file {path}")
    weights, _ = read_safetensors(path)
    expected = {}
    for name, shape in shapes().items():
        expected |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in sorted(expected.keys() | weights.keys()):
        found = weights[name].shape if name in weights else "missing"
        wanted = expected.get(name, "no tensor")
        if found != wanted:
            raise UsageError(
                f"--weights {path} is not SqueezeNet v1.0: {name} is {found}, where "
                f"{wanted} is expected"
            )
        array = weights[name]
        if not (jnp.issubdtype(array.dtype, jnp.floating) and np.isfinite(array).all()):
            raise UsageError(f"--weights {path}: {name} holds what is no finite float")
    return {name: array.astype(np.float32) for name, array in weights.items()}


def run(options: Options) -> None:
    """Project, draw and write everything down."""
    if options.layer not in LAYERS[:-1]:
        raise UsageError(
            f"--layer must be one of {', '.join(LAYERS[:-1])}, not {options.layer}"
        )
    for name, layer in (("classes", "logits"), ("units", options.layer)):
        count, there = getattr(options, name), width(layer)
        if not 1 <= count <= there:
            raise UsageError(
                f"--{name} must be from 1 to the {there} of {layer}, not {count}"
            )
    results = Results(options.out)
    with silent_decoders():
        photograph = load_photograph(options.image)
    weights = load(options.weights)
    picture = fitted(photograph)
    metrics = {
        layer: _draw(results, weights, picture, layer, count)
        for layer, count in (
            ("logits", options.classes),
            (options.layer, options.units),
        )
    }
    results.metrics(metrics)
    results.config(options)
    results.manifest(
        seed=0,  # nothing here is random
        digests={
            "image": hashlib.sha256(options.image.read_bytes()).hexdigest(),
            "weights": hashlib.sha256(options.weights.read_bytes()).hexdigest(),
        },
    )
    best = metrics["logits"][0]["unit"]
    print(f"class {best} is the strongest; figures in {results.path}")


def _draw(
    results: Results,
    weights: Mapping[str, np.ndarray],
    picture: np.ndarray,
    layer: str,
    count: int,
) -> list[dict[str, object]]:
    """One figure of a layer's strongest units, and what was measured for it."""
    image = preprocessed(picture)
    model = functools.partial(squeezenet, layer=layer)
    shape = jax.eval_shape(model, weights, image[None]).shape
    noun = "class" if layer == "logits" else "unit"
    found = jax.tree.map(np.asarray, project(weights, image, layer, count))
    captions = [
        f"{noun} {unit}: {value:.3g}"
        + (f" at row {row}, column {column}" if len(shape) == 4 else "")
        for unit, (row, column), value in zip(*found[:3], strict=True)
    ]
    corners = boxes(found.pixels)
    cut = {
        rule: [
            x[top:bottom, left:right]
            for x, (top, left, bottom, right) in zip(
                found.pixels[rule], corners, strict=True
            )
        ]
        for rule in RULES
    }
    figure, _ = viz.projection_grid(
        f"{layer} of SqueezeNet v1.0: the strongest of {shape[-1]}",
        picture,
        corners,
        found.units,
        captions,
        {rule: np.stack(pixels) for rule, pixels in cut.items()},
    )
    results.figure(f"projections_{layer}", figure)
    return [
        {
            "unit": found.units[index],
            "position": found.positions[index],
            "value": found.values[index],
            "box": corners[index],
            "scales": {
                rule: np.abs(pixels[index]).max()
                for rule, pixels in found.pixels.items()
            },
        }
        for index in range(count)
    ]


if __name__ == "__main__":
    sys.exit(main(run, Options))
