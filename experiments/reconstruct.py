"""What is left of a photograph on its way back from a deep layer, stage by stage.

    python -m experiments.reconstruct --image PHOTO_OR_FOLDER
    python -m experiments.reconstruct --image PHOTO_OR_FOLDER \\
        --weights squeezenet-v1.0 --weights zfnet32-cifar10

Two signals are sent down from the deepest pooled map by the deconvnet (section 2.1 of
the paper): all of the map, and its strongest activation alone. They are drawn after
every stage: unpool 5, conv5, conv4 and so on, down to the pixels. Several networks
stand under each other. `--norm off` adds each network without its contrast
normalization, with the same weights.

The result folder contains a figure for each photograph and metrics.json, with the five
most probable classes, the display scale of each stage, and the sharpness of pixels and
photograph in cycles per picture. Noise is sharp too, so the rank correlation of their
edges stands beside it. A network that takes larger images than another also gets the
photograph reduced to the smaller size: a picture that stays as sharp does not owe its
sharpness to the photograph.

Expected with these two networks on two CPU cores, in about a minute for 21 photographs
of ImageNet: sharpness 46 by SqueezeNet, 45 from 32 x 32 pixels, and 9 by the shipped
network. A photograph alone takes ten seconds.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float, UInt8

import zfnet_jax as zf
from experiments.harness import Metrics, Positive, UserError, main
from experiments.inputs import (
    Images,
    NetworkRun,
    NetworksRun,
    name_image,
    name_networks,
)
from experiments.progress import say, say_table
from zfnet_jax.analysis.sanity import find_edges
from zfnet_jax.arch import Pair
from zfnet_jax.deconvnet import follow_signal
from zfnet_jax.files import slug
from zfnet_jax.layers import parent
from zfnet_jax.metrics import importance, sharpness, spearman
from zfnet_jax.networks import Network
from zfnet_jax.relu_rules import Rule
from zfnet_jax.results import spell
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
        layer: The layer to start from.
    """

    name: str
    run: NetworkRun
    net: Network
    images: Images
    reduced_to: Pair | None
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
        norm: Contrast normalization; "off" adds each network without it.
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
        title = f"{name}, sent back to its pixels by the rule “{rule}”"
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
    smallest = min((own.net.image_shape[:2] for own in runs), key=math.prod)
    for name, own in zip(name_networks(runs), runs, strict=True):
        variants = {name: own.net}
        if norm == "off":
            variants[f"{name} without contrast normalization"] = remove_norms(own)
        images = own.images(limit)
        for title, net in variants.items():
            top = find_layer(net, layer)
            yield Subject(title, own, net, images, None, top)
            if math.prod(net.image_shape[:2]) > math.prod(smallest):
                yield Subject(title, own, net, images, smallest, top)


def remove_norms(run: NetworkRun) -> Network:
    """Make the network without contrast normalization; it shares the weights."""
    net = run.net
    norms = [name for name, layer in net.layers.items() if layer.kind == "norm"]
    if not norms or not net.is_convnet:
        raise UserError(
            f"--norm off: {run.network_name} has no contrast normalization that can be "
            "left out; omit --norm, or give other --weights"
        )
    model = nnx.clone(net.model)
    model.arch = zf.ablate(model.arch, remove=norms)
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
        return Descent(title, stages, measures | compare(stages[-1].values, picture))

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
    pixels: Float[np.ndarray, "h w c"], picture: UInt8[np.ndarray, "h w c"]
) -> dict[str, float]:
    """Measure a reconstruction beside the photograph that it was made from."""
    pair = pixels[None], picture[None].astype(np.float32)
    own, original = (float(sharpness(x)[0]) for x in pair)
    edges = (np.asarray(importance(find_edges(x))).ravel() for x in pair)
    return {
        "sharpness": own,
        "photograph_sharpness": original,
        "sharpness_ratio": own / original if original else math.nan,
        "edge_correlation": spearman(*edges),
    }


def send_down(
    net: Network, image: np.ndarray, layer: str, signal: np.ndarray, rule: Rule
) -> Iterator[Stage]:
    """Yield the signal in a layer, after every stage below it, and in pixels.

    A module that is a layer is one stage with its parts. Contrast normalization, which
    passes the signal on unchanged, is none.
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
    """Name the stage that undoes a layer, as in "unpool 5"."""
    is_pool = net.layers[layer].kind == "max pool"
    return f"unpool {layer.removeprefix('pool')}" if is_pool else layer


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


def report(subjects: Sequence[Subject], rows: Sequence[Sequence[Any]]) -> None:
    """Print the sharpness of all that comes down, averaged over photographs."""
    table = [["cycles per picture", *_MEASURES.values()]]
    sharp = []
    for subject, own in zip(subjects, zip(*rows, strict=True), strict=True):
        means = {key: float(np.mean([x["all"][key] for x in own])) for key in _MEASURES}
        table.append([describe_input(subject), *(f"{x:.2f}" for x in means.values())])
        sharp.append(means["sharpness"])
    say_table(table)
    least = subjects.index(min(subjects, key=lambda x: math.prod(x.net.image_shape)))
    for index, subject in enumerate(subjects):
        if subject.reduced_to and subject.net is subject.run.net:
            full, reduced = (sharp[i] / sharp[least] for i in (index - 1, index))
            say(
                f"{subject.name}'s pixels are {full:.1f} times as sharp as those of "
                f"{subjects[least].name}; from as few pixels, {reduced:.1f} times"
            )


if __name__ == "__main__":
    sys.exit(main(reconstruct))
