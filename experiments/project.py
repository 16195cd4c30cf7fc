"""Project a layer's units back to the pixels of a photograph, by three rules.

    python -m experiments.project --image PHOTO --layer conv5 --units 3,17

With no units given: the nine that answer most strongly. Each unit's strongest
activation is projected by the deconvnet (section 2.1 of the paper), by guided
backpropagation and by the plain gradient, side by side, beside the patch of the image
that it sees. Expected with the shipped weights: ten to twenty seconds, most of them
compilation. The result folder holds the figure and metrics.json, with units, positions,
activations, boxes in pixels and display scales.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np
from flax import nnx

from experiments.common import (
    Results,
    UsageError,
    at_least,
    main,
    named_units,
    silent_decoders,
    weights_digest,
)
from zfnet_jax import viz
from zfnet_jax.arch import ARCHITECTURES
from zfnet_jax.data import DataNotFoundError, fitted, load_photograph
from zfnet_jax.model import ConvNet
from zfnet_jax.projections import project
from zfnet_jax.weights import (
    Pretrained,
    is_described,
    load_pretrained,
    load_weights,
)

RULES = ("deconvnet", "guided", "gradient")

# What torchvision's models take: colours from 0 to 1, less ImageNet's mean, over its
# standard deviation.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Options:
    """Project units of a layer back to the pixels of a photograph."""

    image: Path
    """The photograph: JPEG, PNG, WebP, TIFF, GIF and others, of any size and mode; its
    middle square is resized to the size of the network."""
    layer: str = "conv5"
    """The layer, named as in the paper: conv1 to conv5, pool5, fc6, fc7, logits."""
    units: str | None = None
    """Units of the layer, as in 3,17; if not given, the --top strongest."""
    top: int = 9
    """How many of the strongest units to take."""
    scale: Literal["patch", "unit", "layer"] = "patch"
    """What shares a display scale, within a rule: nothing, a unit, the whole layer."""
    weights: str = "zfnet32-cifar10"
    """A shipped name, or a file: weights.safetensors of a training run, or with --arch
    any safetensors or PyTorch file with PyTorch's names."""
    arch: Literal["zfnet", "zfnet-plain", "alexnet", "zfnet32"] | None = None
    """What a file of bare weights is for. Such a file says nothing of preprocessing:
    that of torchvision's models is taken (ImageNet's mean and deviation)."""
    num_classes: int | None = None
    """Width of the classifier in a file of bare weights, if not the network's own."""
    out: Path = Path("results/project")
    """Folder for results; files of the same names are replaced."""


class Network(NamedTuple):
    """A network, what its images go through, their size, its classes if known."""

    model: ConvNet
    preprocess: Callable[[np.ndarray], np.ndarray]
    input_hw: tuple[int, int]
    class_names: tuple[str, ...]


def run(options: Options) -> None:
    """Project, draw and write everything down."""
    at_least(1, options, "top")
    results = Results(options.out)
    with silent_decoders():
        photograph = load_photograph(options.image)
    network = load(options.weights, options.arch, options.num_classes)
    arch = network.model.arch
    units = named_units(arch, [arch.layer(options.layer).name], options.units)

    picture = fitted(photograph, network.input_hw)
    images = network.preprocess(picture[None])
    chosen = units or strongest(network.model, images, options.layer, options.top)
    by_rule = {
        rule: project(
            network.model, images, options.layer, chosen, rule=rule, crop=True
        )
        for rule in RULES
    }
    shown = by_rule["deconvnet"]
    spatial = len(arch.shapes()[options.layer]) == 3
    captions = []
    for unit, value, (row, column) in zip(
        chosen, shown.values, shown.positions, strict=True
    ):
        name = ""
        if options.layer == "logits" and network.class_names:
            name = f" ({network.class_names[unit]})"
        place = f" at row {row}, column {column}" if spatial else ""
        captions.append(f"unit {unit}{name}: {value:.3g}{place}")
    figure, _ = viz.projection_grid(
        f"{options.layer} of {arch.name}: "
        + (f"units {options.units}" if units else f"its {len(chosen)} strongest units"),
        # A network may resize what it is given.
        fitted(picture, arch.input_hw),
        shown.boxes,
        shown.units,
        captions,
        {rule: projections.pixels for rule, projections in by_rule.items()},
        options.scale,
    )
    results.figure(f"projections_{options.layer}", figure)
    scales = {
        rule: viz.display_projections(x.pixels, x.units, options.scale)[1]
        for rule, x in by_rule.items()
    }
    results.metrics(
        {
            "architecture": arch.name,
            "layer": options.layer,
            "photograph_hw": photograph.shape[:2],
            "input_hw": arch.input_hw,
            "scale": options.scale,
            "projections": [
                {
                    "unit": unit,
                    "position": shown.positions[index],
                    "value": shown.values[index],
                    "box": shown.boxes[index],
                    "scales": {rule: scales[rule][index] for rule in RULES},
                }
                for index, unit in enumerate(chosen)
            ],
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
    print(f"{len(chosen)} units of {options.layer}; figures in {results.path}")


def load(weights: str, arch: str | None, num_classes: int | None) -> Network:
    """The network that `--weights`, `--arch` and `--num-classes` name."""
    if arch is None and num_classes is not None:
        raise UsageError("--num-classes is of bare weights: say --arch too")
    try:
        if arch is None:
            net = _described(weights)
            rows, columns, _ = net.preprocess.mean.shape
            return Network(net.model, net.preprocess, (rows, columns), net.class_names)
        # Its own preprocessing would be lost without a word.
        if is_described(weights):
            raise UsageError(
                f"--weights {weights} says itself what it is for: leave --arch out"
            )
        model = load_weights(weights, ARCHITECTURES[arch], num_classes)
    except FileNotFoundError as error:
        raise DataNotFoundError(str(error)) from error
    return Network(model, as_torchvision, model.arch.input_hw, ())


def _described(weights: str) -> Pretrained:
    try:
        return load_pretrained(weights)
    except ValueError as error:
        if not Path(weights).is_file():
            raise
        raise UsageError(
            f"{error} (of a file of bare weights, say what it is for with --arch)"
        ) from error


def as_torchvision(images: np.ndarray) -> np.ndarray:
    """uint8[b, h, w, 3] as the models of torchvision take it, float32."""
    return ((images / 255 - _MEAN) / _DEVIATION).astype(np.float32)


def strongest(model: ConvNet, images: np.ndarray, layer: str, count: int) -> list[int]:
    """The units of a layer whose maximum over one image is greatest, greatest first."""
    maxima = np.asarray(_maxima(*nnx.split(model), images, layer))
    return np.argsort(-maxima, kind="stable")[:count].tolist()


# One program instead of one for each operation, which would take seconds to compile.
@functools.partial(jax.jit, static_argnums=(0, 3))
def _maxima(
    graph: nnx.GraphDef[ConvNet], weights: nnx.State, images: np.ndarray, layer: str
) -> jax.Array:
    values = nnx.merge(graph, weights).features(images, until=layer).features[layer]
    return values.reshape(-1, values.shape[-1]).max(0)


if __name__ == "__main__":
    sys.exit(main(run, Options))
