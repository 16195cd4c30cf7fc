"""Units of layers projected back to the pixels of a photograph, by three rules.

    python -m experiments.project --image PHOTO --layers conv5 --units 3 17
    python -m experiments.project --image PHOTO --layers fire5 fire9 --count 6 \\
        --weights squeezenet_v1_0.safetensors

By default, the nine units of the last convolution with the strongest activations. Each
unit's strongest activation is projected by the deconvnet (section 2.1 of the paper), by
guided backpropagation and by the plain gradient. The unit's receptive field is framed
on the photograph; where it is smaller than the image, its patch is drawn and the
projections show that patch alone. The result folder contains a figure for each layer
and metrics.json, with units, positions, activations, boxes in pixels and display
scales. Expected with the shipped weights: about ten seconds, most of them compilation.

By the rule "deconvnet" a class of a deep network often projects to nothing ("all
zero"): where each of many ReLUs rectifies the signal and no forward mask helps, hardly
a positive value may be left.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np

import zfnet_jax as zf
from experiments.harness import Metrics, Positive, main
from experiments.inputs import Images, NetworkRun, name_image
from zfnet_jax.data.images import stored_shape
from zfnet_jax.data.photographs import Photographs
from zfnet_jax.files import slug
from zfnet_jax.projections import Projections
from zfnet_jax.relu_rules import Rule
from zfnet_jax.results import spell
from zfnet_jax.viz.contrast import Contrast, Scale, display_projections

RULES: tuple[Rule, ...] = get_args(Rule)


def project(
    run: NetworkRun,
    layers: tuple[str, ...] = (),
    units: tuple[int, ...] = (),
    count: Positive = 9,
    scale: Scale = "patch",
    contrast: Contrast = "99.5",
) -> Metrics:
    """Project units of layers back to the pixels of the first image.

    Args:
        layers: Layers, by default the last convolution.
        units: Units of a single layer, by default the strongest.
        count: Strongest units per layer.
        scale: Projections of a rule that share a display scale: none (patch), those of
            a unit, or all of a layer.
        contrast: Percentile of the magnitudes that is shown as black and white.
    """
    net, images = run.net, run.images(1)
    names = net.select(layers or run.default_layers()[-1])
    run.check_units(names, units)
    activations = net.activations(images, names)
    results = {}
    for layer in run.track("projecting", names):
        maxima = activations[layer].reshape(-1, activations[layer].shape[-1]).max(0)
        order = np.argsort(-maxima, kind="stable")[:count]
        chosen = np.array(units) if units else order
        field = net.layer(layer).receptive_field
        crop = field is not None and np.less(field.size, net.image_shape[:2]).any()
        by_rule: dict[Rule, Projections] = {
            rule: zf.project(net, images, layer, chosen, rule=rule, crop=bool(crop))
            for rule in RULES
        }
        draw(run, images, layer, by_rule, scale, contrast)
        results[layer] = describe(by_rule, scale, contrast)
    yield "network", run.network_name
    yield "image", name_image(images, 0)
    yield "photograph_hw", measure_image(images)
    yield "input_hw", net.image_shape[:2]
    yield "scale", scale
    yield "contrast", contrast
    yield "layers", results


def draw(
    run: NetworkRun,
    images: Images,
    layer: str,
    by_rule: Mapping[Rule, Projections],
    scale: Scale,
    contrast: Contrast,
) -> None:
    """Draw the projections of a layer."""
    from zfnet_jax.viz.projections import draw_projections

    top, shape = by_rule["deconvnet"], run.net.layer(layer).shape
    captions = []
    for unit, activation, position in zip(
        top.units, top.activations, top.positions, strict=True
    ):
        name = f"unit {unit}" if layer != run.net.output else run.class_name(unit)
        place = " at row {}, column {}".format(*position) if len(shape) == 3 else ""
        captions.append((name, f"activation {spell(activation)}{place}"))
    figure = draw_projections(
        f"{layer} of {run.network_name}: {len(captions)} of {shape[-1]:,} units on "
        f"{describe_image(run, images)}",
        captions,
        {rule: projections.pixels for rule, projections in by_rule.items()},
        top.units,
        scale,
        contrast,
        images.pictures[0],
        top.boxes,
        describe_sizes(run, images),
    )
    run.figure(f"projections_{slug(layer)}", figure)


def describe(
    by_rule: Mapping[Rule, Projections], scale: Scale, contrast: Contrast
) -> list[dict[str, Any]]:
    """Summarize the projections of a layer for metrics.json."""
    top = by_rule["deconvnet"]
    scales = {
        rule: display_projections(x.pixels, x.units, scale, contrast)[1]
        for rule, x in by_rule.items()
    }
    return [
        {
            "unit": unit,
            "position": top.positions[index],
            "activation": top.activations[index],
            "box": top.boxes[index],
            "scales": {rule: scales[rule][index] for rule in RULES},
        }
        for index, unit in enumerate(top.units)
    ]


def measure_image(images: Images) -> tuple[int, ...]:
    """Rows and columns of the first image before it is fitted to the network."""
    if isinstance(images, Photographs):
        return images.load(0).shape[:2]
    return images.dataset.images.shape[1:3]


def describe_image(run: NetworkRun, images: Images) -> str:
    """Name the first image, with its class or what the network takes it for."""
    is_known = run.has_labels_for(images)
    label = run.class_name(run.targets(images)[0])
    return f"{name_image(images, 0)} ({'' if is_known else 'predicted '}{label})"


def describe_sizes(run: NetworkRun, images: Images) -> str:
    """Tell how the first image was resized on its way to the network."""
    shape = run.net.image_shape
    # A network may enlarge images that were first reduced to its mean image's size.
    stored = stored_shape(shape, run.net.preprocess)
    sizes = dict.fromkeys([measure_image(images), stored[:2], shape[:2]])
    words = [f"{width} x {height}" for height, width in sizes]
    if len(words) == 1:
        return f"The image has {words[0]} pixels."
    return f"The image was resized from {' to '.join(words)} pixels."


if __name__ == "__main__":
    sys.exit(main(project))
