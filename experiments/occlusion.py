"""A square slides over an image: Fig. 7 of the paper.

    python -m experiments.occlusion --image PHOTO

Five panels for each image: (a) the image and the square; as a function of the square's
position, (b) the total activity of one feature map, by default the strongest of the
last convolution or block; (c) the projection of that map, in this image and in others
where it is strong; (d) the probability of the true class; (e) the most probable class.
The images that lose most probability are drawn. All logits are stored in logits.npy.
On a dataset whose objects have masks (shapes), metrics.json holds how much of the drop
in probability lies on the object, compared with chance and with the masks of other
images.

The paper: covering what the projection shows lowers the activity, and covering the
object lowers the probability. Expected with the shipped weights and the first 20 test
images of CIFAR-10 that are classified correctly, in a minute on two CPU cores: a rank
correlation of activity and probability of 0.42 (0 if unrelated), and 42% of the drop in
activity on the quarter of the pixels where the projection is strongest.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.harness import Metrics, Positive, UserError, main
from experiments.inputs import (
    Fill,
    Images,
    NetworkRun,
    average_known,
    make_cover,
    name_image,
)
from experiments.progress import say
from zfnet_jax.analysis.mining import top_activations
from zfnet_jax.analysis.occlusion import Occlusion, drop_on_objects, share_on
from zfnet_jax.analysis.occlusion import occlusion as measure
from zfnet_jax.data import DatasetImages, load_dataset
from zfnet_jax.deconvnet import backproject
from zfnet_jax.files import write_atomically
from zfnet_jax.metrics import spearman
from zfnet_jax.networks import Network
from zfnet_jax.viz.contrast import Contrast

# Share of an image's pixels where a projection counts as strong.
_STRONG = 0.25
# Images classified at a time, until enough of them are correct.
_BATCH_SIZE = 500
# Images searched for other strong activations of a map.
_CANDIDATES = 2_000


def occlusion(
    run: NetworkRun,
    target: str | None = None,
    size: Positive | None = None,
    stride: Positive | None = None,
    fill: Fill = "gray",
    layers: tuple[str, ...] = (),
    units: tuple[int, ...] = (),
    indices: tuple[int, ...] = (),
    limit: Positive = 20,
    shown: Positive = 3,
    others: int = 3,
    contrast: Contrast = "99.5",
) -> Metrics:
    """Slide a square over images and draw how the network responds.

    Args:
        target: Name or number of the class whose probability is followed; by default
            each image's own class, or the most probable one if that is unknown.
        size: Side of the square in pixels, by default a quarter of the image.
        stride: Pixels between positions, by default a sixteenth of the image.
        fill: Content of the square: a single gray level, or the mean image.
        layers: Layer of the feature map, by default the last convolution or block.
        units: Feature map to follow, one for all images or one per image; by default
            the one with the strongest activation in each.
        indices: Numbers of the images, by default the first that are classified
            correctly.
        limit: Images at most.
        shown: Images to draw at most, those that lose most probability.
        others: Other images in panel (c), from the same dataset or folder. For a single
            photograph they come from --dataset or --data-dir, if given.
        contrast: Percentile of the magnitudes that is shown as black and white.
    """
    if len(layers) > 1:
        raise UserError(f"--layers {' '.join(layers)}: name a single layer")
    net, pool = run.net, run.images()
    height, width, _ = net.image_shape
    images = pool.take(choose_images(run, pool, indices, limit))
    label = int(target) if target and target.isdecimal() else target
    responses = measure(
        net,
        images,
        run.targets(images) if label is None else label,
        size=size or (max(round(height / 4), 1), max(round(width / 4), 1)),
        stride=stride or (max(round(height / 16), 1), max(round(width / 16), 1)),
        fill=make_cover(net, fill)[0],
        layer=layers[0] if layers else run.default_layers()[-1],
        units=units[0] if len(units) == 1 else units or None,
        progress=run.progress("covering"),
    )
    each = describe(run, images, responses)
    losses = each["probability"] - each["least_probability"]
    drawn = np.argsort(-losses, kind="stable")[:shown]
    candidates, strongest = find_others(run, pool, responses, others)
    for rank, index in enumerate(drawn):
        panels = list_panels(images, index, candidates, strongest[index])
        figure = draw(run, responses, index, fill, panels[: others + 1], contrast)
        run.figure(f"occlusion_{rank}", figure)
    stored = io.BytesIO()
    np.save(stored, responses.logits)
    write_atomically(run.path / "logits.npy", stored.getvalue())

    yield from run.describe_data(images)
    yield "size", responses.size
    yield "fill", fill
    yield "layer", responses.layer
    yield "tops", responses.tops
    yield "lefts", responses.lefts
    rows = zip(*each.values(), strict=True)
    yield "of_each", [dict(zip(each, row, strict=True)) for row in rows]
    yield "drawn", drawn
    keys = ("activity_and_probability", "activity_drop_on_projection")
    yield "mean", {key: average_known(each[key]) for key in keys}
    yield "chance", dict(zip(keys, (0, _STRONG), strict=True))
    if isinstance(images, DatasetImages) and images.masks is not None:
        yield "drop_on_the_object", drop_on_objects(responses, images.masks)


def choose_images(
    run: NetworkRun, pool: Images, indices: Sequence[int], limit: int
) -> np.ndarray:
    """Choose the images to cover: --indices, or the first that are correct."""
    count = len(pool)
    if outside := [index for index in indices if not 0 <= index < count]:
        raise UserError(
            f"--indices {outside[0]}: there are {count:,} images (0 to {count - 1})"
        )
    if indices:
        return np.array(indices)
    if pool.labels is None or not run.has_labels_for(pool):
        return np.arange(min(limit, count))
    correct = np.zeros(0, int)
    for start in range(0, count, _BATCH_SIZE):
        part = np.arange(start, min(start + _BATCH_SIZE, count))
        logits = run.net.activations(pool.take(part), run.net.output)[run.net.output]
        correct = np.append(correct, part[logits.argmax(-1) == pool.labels[part]])
        if len(correct) >= limit:
            break
    if not len(correct):
        raise UserError(
            f"none of the {count:,} images is classified correctly: choose some with "
            "--indices"
        )
    return correct[:limit]


def describe(
    run: NetworkRun, images: Images, responses: Occlusion
) -> dict[str, np.ndarray]:
    """Summarize the responses to each image, and the projection of its feature map."""
    probability, activity = responses.probability, responses.activity
    drops = responses.by_pixel(responses.clean_activity[:, None, None] - activity)
    predictions = responses.clean_logits.argmax(1)
    correlations, shares = [], []
    for index, unit in enumerate(responses.units):
        projection = project_map(run.net, images, index, responses.layer, unit)
        strength = np.abs(projection).max(-1)
        is_strong = strength > np.quantile(strength, 1 - _STRONG)
        shares.append(share_on(drops[index], is_strong))
        pair = activity[index].ravel(), probability[index].ravel()
        correlations.append(spearman(*pair))
    return {
        "target": np.array([run.class_name(label) for label in responses.targets]),
        "probability": responses.clean_probability,
        "least_probability": probability.min((1, 2)),
        "mean_probability": probability.mean((1, 2)),
        "unit": responses.units,
        "activity": responses.clean_activity,
        "least_activity": activity.min((1, 2)),
        "mean_activity": activity.mean((1, 2)),
        "label_changed": (responses.label.T != predictions).mean((0, 1)),
        "activity_and_probability": np.array(correlations),
        "activity_drop_on_projection": np.array(shares),
    }


def project_map(
    net: Network, images: Images, index: int, layer: str, unit: int
) -> np.ndarray:
    """Project a whole feature map of an image to pixels."""
    image = images[np.array([index])]
    maps = net.activations(image, layer)[layer]
    signal = np.where(np.arange(maps.shape[-1]) == unit, maps, 0)
    return np.asarray(backproject(net, image, layer, signal))[0]


def find_others(
    run: NetworkRun, pool: Images, responses: Occlusion, count: int
) -> tuple[Images, np.ndarray]:
    """Find other images where the maps are strong.

    Returns:
        Images, and the indices of the strongest ones for each map, which may include
        the image that is drawn.
    """
    if len(pool) == 1 and not (run.dataset or run.data_dir):
        say("panel (c) shows this image alone: --data-dir gives it others")
        count = 0
    if count < 1:
        return pool, np.zeros((len(responses.units), 0), int)
    if len(pool) == 1:
        dataset = load_dataset(run.dataset_name, "test", run.data_dir, _CANDIDATES)
        pool = run.net.load_images(dataset)
        run.digests["others"] = pool.digest()
    pool = pool.take(np.arange(min(len(pool), _CANDIDATES)))
    k, progress = min(count + 1, len(pool)), run.progress("searching")
    top = top_activations(run.net, pool, responses.layer, k=k, progress=progress)
    return pool, top[responses.layer].images[responses.units]


def list_panels(
    images: Images, index: int, candidates: Images, strongest: np.ndarray
) -> list[tuple[str, Images, int]]:
    """List the images of panel (c): the one that is covered, and others."""
    panels = [("this image", images, index)]
    for other in strongest.tolist():
        if (candidates.pictures[other] != images.pictures[index]).any():
            panels.append((name_other(candidates, other), candidates, other))
    return panels


def name_other(images: Images, index: int) -> str:
    """Name an image by its class, or by its file."""
    if images.labels is None or images.class_names is None:
        return name_image(images, index)
    return images.class_names[images.labels[index]]


def draw(
    run: NetworkRun,
    responses: Occlusion,
    index: int,
    fill: Fill,
    panels: Sequence[tuple[str, Images, int]],
    contrast: Contrast,
) -> Any:
    """Draw an image; `panels` name the images of panel (c), the first of them it."""
    from zfnet_jax.viz.occlusion import occlusion_panels

    layer, unit = responses.layer, responses.units[index]
    probability, label = responses.probability[index], responses.targets[index]
    pictures = [images.pictures[i] for _, images, i in panels]
    row, column = np.unravel_index(probability.argmin(), probability.shape)
    top, left, bottom, right = responses.boxes[row, column]
    covered, (_, cover) = pictures[0].copy(), make_cover(run.net, fill)
    covered[top:bottom, left:right] = cover[top:bottom, left:right]
    kinds, labels = np.unique(responses.label[index], return_inverse=True)
    name = run.class_name(label)
    uncovered = responses.clean_activity[index], responses.clean_probability[index]
    square = "square of the mean image" if fill == "mean" else f"{fill} square"
    return occlusion_panels(
        f"{name[:1].upper()}{name[1:]}: a {square} slides over the image, "
        f"{run.network_name}",
        covered,
        responses.boxes,
        responses.activity[index],
        probability,
        labels.reshape(probability.shape),
        [run.class_name(kind) for kind in kinds],
        (
            "square at the lowest probability",
            f"activity of map {unit}",
            f"{layer}, map {unit}, projected to pixels",
            f"probability of {name}",
            "most probable class",
        ),
        np.array(uncovered),
        [words for words, *_ in panels],
        np.stack(pictures),
        np.stack([project_map(run.net, x, i, layer, unit) for _, x, i in panels]),
        contrast,
    )


if __name__ == "__main__":
    sys.exit(main(occlusion))
