"""A gray square slides over an image: Fig. 7 of the paper.

    python -m experiments.occlusion --image PHOTO
    python -m experiments.occlusion --data-dir FOLDER

Five panels for each image: (a) the image and the square; as a function of the square's
position, (b) the total activity of one feature map of the last convolution, the one
with the strongest activation in the image; (c) the projection of that map, in this
image and in three others where it is strong; (d) the probability of the true class; (e)
the most probable class. All logits are stored in logits.npy. On a dataset whose objects
have masks (shapes), metrics.json holds how much of the drop in probability lies on the
object, compared with chance and with the masks of other images.

Expected with the shipped weights and the first 20 test images of CIFAR-10 that are
classified correctly: a minute on two CPU cores. The paper: covering what the projection
shows lowers the activity, and covering the object lowers the probability. metrics.json
holds, for each image and on average, the rank correlation of activity and probability
(0.38; 0 if unrelated), and how much of the drop in activity lies on the quarter of the
pixels where the projection is strongest (41%).
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np

from experiments.common import (
    ImageOptions,
    Progress,
    Results,
    UsageError,
    at_least,
    main,
    mean_picture,
    numbers,
    silent_decoders,
    weights_digest,
)
from zfnet_jax.analysis.mining import top_activations
from zfnet_jax.analysis.occlusion import Occlusion, occlusion, share_on
from zfnet_jax.data import Dataset, Preprocessed, fit_photograph, load_photograph
from zfnet_jax.deconvnet import backproject
from zfnet_jax.files import DataNotFoundError
from zfnet_jax.metrics import spearman
from zfnet_jax.weights import Pretrained

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_GRAY = {"grey": 128, "black": 0, "white": 255}
# Share of an image's pixels where a projection counts as strong.
_STRONG = 0.25
# Images classified at a time, until enough of them are correct.
_BATCH_SIZE = 500


@dataclasses.dataclass(frozen=True)
class Options(ImageOptions):
    """Slide a square over images and draw how the network responds."""

    image: Path | None = None
    """A photograph; by default test images of the dataset."""
    target: str | None = None
    """Name or number of the class whose probability is followed; by default an image's
    own class, or for a photograph the most probable one."""
    size: int | None = None
    """Height and width of the square in pixels; by default a quarter of the image."""
    stride: int | None = None
    """Pixels between positions; by default a sixteenth of the image."""
    fill: Literal["grey", "mean", "black", "white"] = "grey"
    """Content of the square: a single gray level, or the mean image."""
    indices: str | None = None
    """Test images, as in 3,17; by default the first --images that are classified
    correctly."""
    images: int = 20
    """Number of test images to take."""
    shown: int = 3
    """Number of them to draw."""
    others: int = 3
    """Number of other images' projections in panel (c)."""
    out: Path = Path("results/occlusion")
    """Folder for results; files of the same names are replaced."""


def run(options: Options) -> None:
    """Cover, draw and write the results."""
    at_least(1, options, "size", "stride", "images", "limit")
    at_least(0, options, "shown", "others")
    if options.image is not None and options.indices is not None:
        raise UsageError("--indices are test images: omit them with --image")
    results = Results(options.out)
    net = options.network()
    arch = net.model.arch
    height = arch.input_hw[0]
    size = options.size or max(round(height / 4), 1)
    stride = options.stride or max(round(height / 16), 1)
    dataset = None
    if options.image is None:
        dataset = options.known_images(net)
        chosen = dataset.take(choose_images(options, net, dataset))
    else:
        with silent_decoders():
            photograph = load_photograph(options.image)
        picture = fit_photograph(photograph, net.preprocess.mean.shape[:2])
        chosen = Dataset(
            picture[None], np.zeros(1, np.int32), net.class_names, options.image.name
        )
        if options.others:
            try:
                dataset = options.images_for(net)
            except DataNotFoundError as error:
                raise DataNotFoundError(
                    f"{error}; --others 0 draws the photograph alone"
                ) from error
    images, count = net.preprocess(chosen.images), len(chosen)
    targets = choose_targets(options, net, chosen, images)
    with Progress("covering", count, unit="image", every=count // 5) as progress:
        responses = occlusion(
            net,
            images,
            targets,
            size=size,
            stride=stride,
            fill=make_cover(options.fill, net)[0],
            progress=lambda done, total: progress.update(done * count / total),
        )
    layer = responses.layer
    shown, rivals = min(options.shown, count), None
    if options.others and shown:
        assert dataset is not None
        total = len(dataset)
        with Progress("searching", total, unit="image", every=total // 5) as progress:
            rivals = top_activations(
                net,
                Preprocessed(dataset.images, net.preprocess),
                layer,
                k=options.others + 1,
                progress=progress.update,
            )[layer].images[responses.units]
    for index in range(shown):
        drawn = [chosen.take(np.array([index]))]
        if rivals is not None and dataset is not None:
            drawn += select_others(dataset, rivals[index], drawn[0], options.others)
        figure = draw(net, options, responses, index, targets[index], drawn)
        results.figure(f"occlusion_{index}", figure)
    stored = io.BytesIO()
    np.save(stored, responses.logits)
    results.write("logits.npy", stored.getvalue())
    of_each = describe(net, responses, images, targets)
    metrics = {
        "architecture": arch.name,
        "data": chosen.source or chosen.name,
        "images": count,
        "size": size,
        "stride": stride,
        "fill": options.fill,
        "layer": layer,
        "tops": responses.tops,
        "lefts": responses.lefts,
        "of_each": of_each,
        "mean": {
            key: _mean(of_each, key)
            for key in ("activity_and_probability", "activity_drop_on_projection")
        },
        "chance": {
            "activity_and_probability": 0,
            "activity_drop_on_projection": _STRONG,
        },
    }
    if chosen.masks is not None:
        masks = chosen.masks.astype(np.float32)
        masks = jax.image.resize(masks, (count, *arch.input_hw), "linear") > 0.5
        metrics["drop_on_the_object"] = measure_drops(
            responses, targets, np.asarray(masks)
        )
    results.metrics(metrics)
    results.config(options)
    digests = {"weights": weights_digest(options.weights)}
    if options.image is not None:
        digests["image"] = hashlib.sha256(options.image.read_bytes()).hexdigest()
    if dataset is not None:
        digests["data"] = dataset.digest()
    results.manifest(seed=0, digests=digests)  # nothing is random
    positions = responses.probability[0].size
    print(f"{count} images, {positions} positions each; figures in {results.path}")


def choose_images(options: Options, net: Pretrained, dataset: Dataset) -> np.ndarray:
    """Indices of the test images to cover."""
    given = numbers("--indices", options.indices)
    if beyond := [index for index in given if index >= len(dataset)]:
        raise UsageError(f"--indices {beyond[0]}: there are {len(dataset)} test images")
    if given:
        return np.array(given)
    correct = np.zeros(0, int)
    for start in range(0, len(dataset), _BATCH_SIZE):
        part = dataset.take(np.arange(start, min(start + _BATCH_SIZE, len(dataset))))
        logits = net.activations(net.preprocess(part.images), net.output)[net.output]
        is_correct = logits.argmax(-1) == part.labels
        correct = np.concatenate([correct, start + np.flatnonzero(is_correct)])
        if len(correct) >= options.images:
            break
    count = f"{len(correct)} of {len(dataset)} test images are classified correctly"
    if len(correct) < options.images:
        if options.limit is None or not len(correct):
            raise UsageError(
                f"--images {options.images}: {count}; name others with --indices"
            )
        print(count, flush=True)
    return correct[: options.images]


def choose_targets(
    options: Options, net: Pretrained, chosen: Dataset, images: np.ndarray
) -> np.ndarray:
    """The class to follow in each image."""
    if options.target is None:
        if options.image is None:
            return chosen.labels
        return np.asarray(net(images)).argmax(-1)
    target = options.target
    return net.targets(int(target) if target.isdecimal() else target, len(chosen))


def make_cover(fill: str, net: Pretrained) -> tuple[np.ndarray, np.ndarray]:
    """The image that shows in the square, preprocessed and as a picture."""
    if fill == "mean":
        picture = mean_picture(net)
        return np.zeros(picture.shape, np.float32), picture
    blank = np.full((1, *net.preprocess.mean.shape), _GRAY[fill], np.uint8)
    return net.preprocess(blank)[0], net.preprocess.pictures(blank)[0]


def select_others(
    dataset: Dataset, indices: np.ndarray, image: Dataset, count: int
) -> list[Dataset]:
    """The first of some images, one by one, except the one that is drawn itself."""
    candidates = (dataset.take(np.array([index])) for index in indices)
    different = (x for x in candidates if (x.images != image.images).any())
    return list(itertools.islice(different, count))


def project_maps(
    net: Pretrained, images: np.ndarray, layer: str, units: np.ndarray
) -> np.ndarray:
    """Project a whole feature map of each image."""
    maps = net.activations(images, layer)[layer]
    is_unit = np.arange(maps.shape[-1]) == units[:, None, None, None]
    return np.asarray(backproject(net, images, layer, np.where(is_unit, maps, 0)))


def draw(
    net: Pretrained,
    options: Options,
    responses: Occlusion,
    index: int,
    target: int,
    drawn: Sequence[Dataset],
) -> Figure:
    """Draw the five panels of an image; panel (c) has all of `drawn`, it first."""
    from zfnet_jax import viz

    layer, unit = responses.layer, responses.units[index]
    probability = responses.probability[index]
    pixels = np.concatenate([x.images for x in drawn])
    pictures = net.preprocess.pictures(pixels)
    units = np.full(len(drawn), unit)
    projections = project_maps(net, net.preprocess(pixels), layer, units)
    row, column = np.unravel_index(probability.argmin(), probability.shape)
    top, left, bottom, right = responses.boxes[row, column]
    covered = pictures[0].copy()
    _, cover = make_cover(options.fill, net)
    covered[top:bottom, left:right] = cover[top:bottom, left:right]
    name = net.class_names[target]
    clean = float(jax.nn.softmax(responses.clean_logits[index])[target])
    figure, _ = viz.occlusion_panels(
        f"{name}: a square of {options.fill} slides over the image, "
        f"{net.model.arch.name}",
        covered,
        responses.tops,
        responses.lefts,
        responses.size[0],
        responses.activity[index],
        probability,
        responses.label[index],
        net.class_names,
        (
            "the square where it hurts most",
            f"activity of map {unit} of {layer} "
            f"({responses.clean_activity[index]:.3g})",
            f"map {unit} of {layer} in pixels",
            f"probability of {name} ({clean:.2f})",
            "most probable class",
        ),
        [
            (
                "this image" if not place else x.class_names[x.labels[0]],
                pictures[place],
                projections[place],
            )
            for place, x in enumerate(drawn)
        ],
    )
    return figure


def describe(
    net: Pretrained, responses: Occlusion, images: np.ndarray, targets: np.ndarray
) -> list[dict[str, Any]]:
    """Metrics of each image, and of the projection of its feature map."""
    projections = project_maps(net, images, responses.layer, responses.units)
    drops = responses.by_pixel(
        responses.clean_activity[:, None, None] - responses.activity
    )
    metrics = []
    for index, target in enumerate(targets):
        strength = np.abs(projections[index]).max(-1)
        is_strong = strength > np.quantile(strength, 1 - _STRONG)
        clean = np.asarray(jax.nn.softmax(responses.clean_logits[index]))
        probability = responses.probability[index]
        activity = responses.activity[index]
        share = share_on(drops[index], is_strong)
        metrics.append(
            {
                "target": net.class_names[target],
                "probability": clean[target],
                "least_probability": probability.min(),
                "mean_probability": probability.mean(),
                "unit": responses.units[index],
                "activity": responses.clean_activity[index],
                "least_activity": activity.min(),
                "mean_activity": activity.mean(),
                "label_changed": (responses.label[index] != clean.argmax()).mean(),
                "activity_and_probability": spearman(
                    activity.ravel(), probability.ravel()
                ),
                "activity_drop_on_projection": None if math.isnan(share) else share,
            }
        )
    return metrics


def _mean(metrics: list[dict[str, Any]], key: str) -> float | None:
    """Mean over the images where the value is known."""
    known = [x[key] for x in metrics if x[key] is not None]
    return float(np.mean(known)) if known else None


def measure_drops(
    responses: Occlusion, targets: np.ndarray, masks: np.ndarray
) -> dict[str, object]:
    """Share of the drop in probability that lies on the objects, and that of chance.

    A drop that is the same everywhere has the object's share of the image. One that
    only knows where objects usually are has its share on other images' objects.
    """
    clean = np.asarray(jax.nn.softmax(responses.clean_logits))
    clean = np.take_along_axis(clean, targets[:, None], 1)
    drops = responses.by_pixel(clean[..., None] - responses.probability)
    shares = np.array([[share_on(drop, mask) for mask in masks] for drop in drops])
    is_known = ~np.isnan(shares[:, 0])
    own = np.diag(shares)[is_known]
    other = shares[is_known][~np.eye(len(masks), dtype=bool)[is_known]]
    return {
        "images": int(is_known.sum()),
        "share": own.mean() if len(own) else None,
        "standard_error": own.std() / math.sqrt(len(own)) if len(own) else None,
        "chance": masks.mean(),
        "on_other_objects": other.mean() if len(other) else None,
    }


if __name__ == "__main__":
    sys.exit(main(run, Options))
