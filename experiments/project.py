"""Project a layer's units back to the pixels of a photograph, by three rules.

    python -m experiments.project --image PHOTO --layer conv5 --units 3,17

By default, the nine units with the strongest activations. Each unit's strongest
activation is projected by the deconvnet (section 2.1 of the paper), by guided
backpropagation and by the plain gradient, beside the patch of the image in its
receptive field. Expected with the shipped weights: ten to twenty seconds, most of them
compilation. The result folder contains the figure and metrics.json, with units,
positions, activations, boxes in pixels and display scales.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from pathlib import Path
from typing import Literal, get_args

import numpy as np

import zfnet_jax as zf
from experiments.common import (
    Results,
    UsageError,
    at_least,
    main,
    named_units,
    silent_decoders,
    weights_digest,
)
from zfnet_jax.arch import ARCHITECTURES
from zfnet_jax.data import load_photograph
from zfnet_jax.files import DataNotFoundError
from zfnet_jax.networks import Network
from zfnet_jax.relu_rules import Rule

RULES: tuple[Rule, ...] = get_args(Rule)

# Torchvision's preprocessing: ImageNet's mean and standard deviation, colors 0 to 1.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Options:
    """Project units of a layer back to the pixels of a photograph."""

    image: Path
    """The photograph: JPEG, PNG, WebP, TIFF, GIF and others, of any size and mode; its
    center is resized to the size of the network."""
    layer: str = "conv5"
    """The layer, named as in the paper: conv1 to conv5, pool5, fc6, fc7, logits."""
    units: str | None = None
    """Units of the layer, as in 3,17; by default the --top strongest."""
    top: int = 9
    """Number of the strongest units to take."""
    scale: Literal["patch", "unit", "layer"] = "patch"
    """Projections of a rule that share a display scale: none, a unit's, the layer's."""
    weights: str = "zfnet32-cifar10"
    """A shipped name, or a file: weights.safetensors of a training run, or with --arch
    any safetensors or PyTorch file with PyTorch's names."""
    arch: Literal["zfnet", "zfnet-plain", "alexnet", "zfnet32"] | None = None
    """Architecture of a file of bare weights. Its images are preprocessed as for
    torchvision's models (ImageNet's mean and standard deviation)."""
    num_classes: int | None = None
    """Number of classes in a file of bare weights, if not the architecture's own."""
    out: Path = Path("results/project")
    """Folder for results; files of the same names are replaced."""


def run(options: Options) -> None:
    """Project, draw and write the results."""
    from zfnet_jax import viz

    at_least(1, options, "top")
    results = Results(options.out)
    net = load(options.weights, options.arch, options.num_classes)
    arch, layer = net.model.arch, net.layer(options.layer)
    units = named_units(arch, [layer.name], options.units)

    size, picture, images = read_photograph(net, options.image)
    chosen = units or strongest_units(net, images, layer.name, options.top)
    by_rule = {
        rule: zf.project(net, images, layer.name, chosen, rule=rule, crop=True)
        for rule in RULES
    }
    projections = by_rule["deconvnet"]
    captions = []
    for unit, activation, (row, column) in zip(
        chosen, projections.activations, projections.positions, strict=True
    ):
        name = ""
        if layer.name == net.output and net.class_names:
            name = f" ({net.class_names[unit]})"
        place = f" at row {row}, column {column}" if len(layer.shape) == 3 else ""
        captions.append(f"unit {unit}{name}: {activation:.3g}{place}")
    figure, _ = viz.projection_grid(
        f"{layer.name} of {arch.name}: "
        + (f"units {options.units}" if units else f"its {len(chosen)} strongest units"),
        picture,
        projections.boxes,
        projections.units,
        captions,
        {rule: x.pixels for rule, x in by_rule.items()},
        options.scale,
    )
    results.figure(f"projections_{layer.name}", figure)
    scales = {
        rule: viz.display_projections(x.pixels, x.units, options.scale)[1]
        for rule, x in by_rule.items()
    }
    results.metrics(
        {
            "architecture": arch.name,
            "layer": layer.name,
            "photograph_hw": size,
            "input_hw": arch.input_hw,
            "scale": options.scale,
            "projections": [
                {
                    "unit": unit,
                    "position": projections.positions[index],
                    "value": projections.activations[index],
                    "box": projections.boxes[index],
                    "scales": {rule: scales[rule][index] for rule in RULES},
                }
                for index, unit in enumerate(chosen)
            ],
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
    print(f"{len(chosen)} units of {layer.name}; figures in {results.path}")


def load(weights: str, arch: str | None, num_classes: int | None) -> Network:
    """The network that `--weights`, `--arch` and `--num-classes` name."""
    if arch is None and num_classes is not None:
        raise UsageError("--num-classes is for bare weights: give --arch too")
    try:
        try:
            net = zf.load(weights)
        except ValueError as error:
            if arch is None and Path(weights).is_file():
                raise UsageError(
                    f"{error} (for a file of bare weights, name its --arch)"
                ) from error
            if arch is None:
                raise
            model = zf.load_weights(weights, ARCHITECTURES[arch], num_classes)
            return zf.network(model, preprocess=preprocess_as_torchvision)
    except FileNotFoundError as error:
        raise DataNotFoundError(str(error)) from error
    if arch is not None:
        # Its own preprocessing would be lost without notice.
        raise UsageError(f"--weights {weights} names its architecture: omit --arch")
    return net


def read_photograph(
    net: Network, path: Path
) -> tuple[tuple[int, ...], np.ndarray, np.ndarray]:
    """Size of a photograph, its picture as the network sees it, and its batch."""
    with silent_decoders():
        size = load_photograph(path).shape[:2]
        photographs = net.load_images(path)
        return size, photographs.pictures[0], photographs[np.array([0])]


def preprocess_as_torchvision(images: np.ndarray) -> np.ndarray:
    """From uint8 [b, h, w, 3] to the float32 that torchvision's models take."""
    return ((images / 255 - _MEAN) / _DEVIATION).astype(np.float32)


def strongest_units(
    net: Network, images: np.ndarray, layer: str, count: int
) -> list[int]:
    """Units of a layer with the greatest maxima over one image, greatest first."""
    activations = net.activations(images, layer)[layer]
    maxima = activations.reshape(-1, activations.shape[-1]).max(0)
    return np.argsort(-maxima, kind="stable")[:count].tolist()


if __name__ == "__main__":
    sys.exit(main(run, Options))
