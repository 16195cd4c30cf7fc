"""A photograph on its way back from a deep layer to the pixels, stage by stage.

    python -m experiments.reconstruct --image PHOTO_OR_FOLDER
    python -m experiments.reconstruct --image PHOTO_OR_FOLDER \\
        --weights squeezenet-v1.0 --weights zfnet32-cifar10

Two signals are sent down from the deepest pooled map by the deconvnet (section 2.1 of
the paper): all of the map, and its strongest activation alone. They are drawn after
every stage: unpool 5, conv5, conv4 and so on, down to the pixels. Several networks
stand one above the other. `--norm off` adds each network that has contrast
normalization without it, with the same weights.

The result folder contains a figure for each photograph and metrics.json, with the five
most probable classes, the display scale of each stage, and the sharpness of pixels and
photograph in cycles per picture. Noise is sharp too, so the rank correlation of their
edges stands beside it.

A picture of more pixels can be sharper. Where a network takes images of at least twice
the rows of the smallest network, its pixels are also measured after they are reduced
to the smaller size. It also gets the photograph reduced to that size.

Expected with these two networks and the first 21 photographs of a sample of ImageNet,
in a minute or two on two CPU cores: sharpness 46 by SqueezeNet, 45 from 32 x 32 pixels,
and 9.2 by the shipped network. But reduced to 32 x 32, SqueezeNet's pixels have 8.8,
about as much. A photograph alone takes ten seconds.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float

import zfnet_jax as zf
from experiments.harness import Metrics, Positive, UserError, main
from experiments.inputs import (
    Images,
    NetworkRun,
    NetworksRun,
    name_image,
    name_networks,
)
from experiments.progress import say_table
from zfnet_jax.analysis.sanity import find_edges
from zfnet_jax.arch import Pair
from zfnet_jax.deconvnet import follow_signal
from zfnet_jax.files import slug
from zfnet_jax.layers import parent
from zfnet_jax.metrics import importance, sharpness, spearman
from zfnet_jax.networks import Network
from zfnet_jax.relu_rules import Rule
from zfnet_jax.results import spell, spell_mean, spread
from zfnet_jax.viz.contrast import Contrast, measure_scale
from zfnet_jax.viz.reconstruct import (
    Descent,
    Reconstruction,
    Stage,
    draw_reconstructions,
)

_CLASSES = 5
_MEASURES = {
    "photograph_sharpness": "photograph",
    "sharpness": "pixels",
    "sharpness_ratio": "ratio",
    "edge_correlation": "edges",
}


class Subject(NamedTuple):
    """A network and what it is shown.

    Attributes:
        name: Name of the network.
        run: The run that it comes from.
        net: The network of that run, or without its contrast normalization.
        images: The photographs.
        reduced_to: Rows and columns that they are reduced to first.
        smaller: Rows and columns of a network of at most half as many, where its pixels
            are measured too.
        layer: The layer to start from.
    """

    name: str
    run: NetworkRun
    net: Network
    images: Images
    reduced_to: Pair | None
    smaller: Pair | None
    layer: str


def reconstruct(
    run: NetworksRun,
    layer: str | None = None,
    norm: Literal["on", "off"] = "on",
    rule: Rule = "deconvnet",
    contrast: Contrast = "99.5",
    limit: Positive = 3,
) -> Metrics:
    """Send the deepest pooled map of photographs down, and show it after every stage.

    Args:
        layer: Layer to start from, by default the last max pooling. Where there is none
            in the upper half of the network, it is the last map.
        norm: Contrast normalization; "off" adds each network that has it without it.
        rule: Backward rule for ReLUs.
        contrast: Percentile of the magnitudes that is shown in full color.
        limit: Photographs at most.
    """
    subjects = [*list_subjects(run, layer, norm, limit)]
    images = subjects[0].images
    results = {}
    for index in run.track("reconstructing", range(len(images))):
        name = name_image(images, index)
        reconstructions = [examine(subject, index, rule) for subject in subjects]
        title = f"{name}, reconstructed by the rule “{rule}”"
        figure = draw_reconstructions(title, reconstructions, contrast)
        run.figure(f"reconstruction_{slug(name.replace('.', '-'))}", figure)
        pairs = zip(subjects, reconstructions, strict=True)
        results[name] = [describe(*pair, contrast) for pair in pairs]
    run.end_progress()
    report(subjects, [*results.values()])
    yield "data", images.source
    yield "rule", rule
    yield "contrast", contrast
    yield "photographs", results


def list_subjects(
    run: NetworksRun, layer: str | None, norm: str, limit: int
) -> Iterator[Subject]:
    """Yield each network, also without normalization and with photographs reduced."""
    runs = run.split()
    names = name_networks(runs)
    if norm == "off" and not any(list_norms(part.net) for part in runs):
        raise UserError(
            f"--norm off: no contrast normalization can be left out of "
            f"{' or '.join(names)}; omit --norm, or give other --weights"
        )
    smallest = min(part.net.image_shape[:2] for part in runs)
    for name, part in zip(names, runs, strict=True):
        variants = {name: part.net}
        if norm == "off" and list_norms(part.net):
            variants[f"{name} without contrast normalization"] = remove_norms(part.net)
        images = part.images(limit)
        is_larger = part.net.image_shape[0] >= 2 * smallest[0]
        smaller = smallest if is_larger else None
        for title, net in variants.items():
            for reduced_to in dict.fromkeys([None, smaller]):
                top = find_layer(net, layer)
                yield Subject(title, part, net, images, reduced_to, smaller, top)


def list_norms(net: Network) -> list[str]:
    """List the layers of contrast normalization that can be left out."""
    norms = [name for name, layer in net.layers.items() if layer.kind == "norm"]
    return norms if net.is_convnet else []


def remove_norms(net: Network) -> Network:
    """Make the network without contrast normalization; it shares the weights."""
    model = nnx.clone(net.model)
    model.arch = zf.ablate(model.arch, remove=list_norms(net))
    return zf.network(model, preprocess=net.preprocess, class_names=net.class_names)


def find_layer(net: Network, name: str | None) -> str:
    """Find the deepest pooled map, or check that a layer has maps."""
    maps = [x for x in net.layers.values() if len(x.shape) == 3]
    if name is not None:
        if net.layer(name) not in maps:
            names = " ".join(x.name for x in maps)
            raise UserError(f"--layer {name}: it has no maps; give one of {names}")
        return name
    pools = [x for x in maps[len(maps) // 2 :] if x.kind == "max pool"]
    return (pools or maps)[-1].name


def examine(subject: Subject, index: int, rule: Rule) -> Reconstruction:
    """Send down what a photograph excites: all of a layer, and its strongest unit."""
    net, layer, pictures = subject.net, subject.layer, subject.images.pictures
    if subject.reduced_to is not None:
        pictures = pictures.coarsen(subject.reduced_to)
    picture, image = pictures[index], pictures.convert([index], pictures.preprocess)
    activations = net.activations(image, [layer, net.output])
    maps, logits = activations[layer], activations[net.output][0]
    place = np.unravel_index(maps.argmax(), maps.shape)
    _, row, column, unit = map(int, place)
    alone = np.zeros_like(maps)
    alone[place] = maps[place]
    field = net.layer(layer).receptive_field

    def descend(title: str, signal: np.ndarray, **measures: Any) -> Descent:
        stages = [*send_down(net, image, layer, signal, rule)]
        pair = stages[-1].values, picture.astype(np.float32)
        measures |= compare(*pair)
        if subject.smaller is not None:
            measures["reduced"] = compare(*(reduce(x, subject.smaller) for x in pair))
        return Descent(title, stages, measures)

    return Reconstruction(
        describe_input(subject),
        picture,
        rank_classes(subject.run, logits),
        descend(f"All of {layer}", maps),
        descend(
            f"Only the strongest activation of {layer}: {spell(maps[place])}, unit "
            f"{unit} at row {row}, column {column}",
            alone,
            unit=unit,
            position=(row, column),
            activation=maps[place],
        ),
        None if field is None else field.box(row, column),
    )


def describe_input(subject: Subject) -> str:
    """Name the network and the pixels that it gets."""
    words = "{}, {} x {} pixels".format(subject.name, *subject.net.image_shape)
    if subject.reduced_to is None:
        return words
    return "{} enlarged from {} x {}".format(words, *subject.reduced_to)


def rank_classes(run: NetworkRun, logits: np.ndarray) -> list[tuple[str, float]]:
    """List the most probable classes with their probabilities."""
    labels = np.argsort(-logits, kind="stable")[:_CLASSES]
    chances = np.asarray(jax.nn.softmax(logits))[labels].tolist()
    return [*zip(map(run.class_name, labels), chances, strict=True)]


def compare(
    pixels: Float[np.ndarray, "h w c"], photograph: Float[np.ndarray, "h w c"]
) -> dict[str, float]:
    """Measure a reconstruction beside the photograph that it was made from."""
    pair = pixels[None], photograph[None]
    of_pixels, of_photograph = (float(sharpness(x)[0]) for x in pair)
    edges = (np.asarray(importance(find_edges(x))).ravel() for x in pair)
    return {
        "sharpness": of_pixels,
        "photograph_sharpness": of_photograph,
        "sharpness_ratio": of_pixels / of_photograph if of_photograph else math.nan,
        "edge_correlation": spearman(*edges),
    }


def reduce(pixels: Float[np.ndarray, "H W c"], hw: Pair) -> Float[np.ndarray, "h w c"]:
    """Reduce signed pixels to rows and columns, with antialiasing."""
    return np.asarray(jax.image.resize(pixels, (*hw, pixels.shape[2]), "bilinear"))


def send_down(
    net: Network, image: np.ndarray, layer: str, signal: np.ndarray, rule: Rule
) -> Iterator[Stage]:
    """Yield the signal in a layer, after every stage below it, and in pixels.

    A module that is a layer is one stage with its parts. Contrast normalization is part
    of the stage of the layer above it.
    """
    signals, pixels = follow_signal(net, image, layer, signal, rule=rule)
    yield Stage("start", signal.shape[1:], signal[0].sum(-1))
    name, above = layer, {layer}
    for below, arriving in signals.items():
        if net.layers[below].kind != "norm" and parent(below) not in above:
            maps = np.asarray(arriving[0])
            yield Stage(name_stage(net, name), maps.shape, maps.sum(-1))
            name = below
        above.add(below)
    values = np.asarray(pixels[0])
    yield Stage(f"{name_stage(net, name)} = pixels", values.shape, values)


def name_stage(net: Network, layer: str) -> str:
    """Name the stage that undoes a layer, as in "unpool 5" or "conv5"."""
    if net.layers[layer].kind != "max pool":
        return layer
    return f"unpool {layer.removeprefix('max').removeprefix('pool')}".rstrip()


def describe(
    subject: Subject, reconstruction: Reconstruction, contrast: Contrast
) -> dict[str, Any]:
    """Summarize a reconstruction for metrics.json."""
    classes, probabilities = zip(*reconstruction.classes, strict=True)
    parts = {"all": reconstruction.whole, "strongest": reconstruction.strongest}
    return {
        "network": subject.name,
        "norm": "on" if subject.net is subject.run.net else "off",
        "input_hw": subject.net.image_shape[:2],
        "reduced_to": subject.reduced_to,
        "classes": classes,
        "probabilities": probabilities,
        "layer": subject.layer,
    } | {
        key: {
            **part.measures,
            "stages": [
                {"name": x.name, "scale": measure_scale(x.values, contrast)}
                for x in part.stages
            ],
        }
        for key, part in parts.items()
    }


def report(subjects: Sequence[Subject], results: Sequence[Sequence[Any]]) -> None:
    """Print what was measured of all that comes down, and differences at one size."""
    table, reduced = {}, {}
    for subject, entries in zip(subjects, zip(*results, strict=True), strict=True):
        name, parts = describe_input(subject), [entry["all"] for entry in entries]
        table[name] = collect(parts)
        if subject.smaller is not None:
            name = "{}, reduced to {} x {}".format(name, *subject.smaller)
            table[name] = reduced[name] = collect([part["reduced"] for part in parts])
    say_means("cycles per picture", table)
    if reduced:
        smallest = describe_input(min(subjects, key=lambda x: x.net.image_shape))
        differences = {name: x - table[smallest] for name, x in reduced.items()}
        say_means(f"difference to {smallest}", differences)


def collect(parts: Sequence[Mapping[str, float]]) -> Float[np.ndarray, "n measures"]:
    """Make a row of measures for each photograph."""
    return np.array([[part[key] for key in _MEASURES] for part in parts])


def say_means(title: str, rows: Mapping[str, Float[np.ndarray, "n measures"]]) -> None:
    """Print the means over photographs, with their standard errors."""
    cells = []
    for name, values in rows.items():
        errors = spread(values) / math.sqrt(len(values))
        pairs = zip(values.mean(0), errors, strict=True)
        cells.append([name, *(spell_mean(*pair, "z.2f") for pair in pairs)])
    say_table([[title, *_MEASURES.values()], *cells])


if __name__ == "__main__":
    sys.exit(main(reconstruct))
