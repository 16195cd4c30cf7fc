"""A grey square slides over an image: Fig. 7 of the paper.

    python -m experiments.occlusion --image PHOTO
    python -m experiments.occlusion --data-dir FOLDER

Five panels for each image: (a) the image and the square; as a function of where the
square is, (b) the total activity of the map of the last convolution that answers most
strongly to the image; (c) what that map projects to, in this image and in three others
where it is strong; (d) the probability of the true class; (e)
the most probable class. All logits are stored in logits.npy. On a dataset whose objects
have masks (shapes), metrics.json says how much of the drop in probability lies on the
object, against chance and against the masks of other images.

Expected with the shipped weights and the first 20 test images of CIFAR-10 that they
classify right: a minute on two CPU cores. The paper: covering what the projection shows
lowers the activity, and covering the object lowers the probability. metrics.json holds,
for each image and on average, the rank correlation of activity and probability (0.38;
0 if unrelated), and how much of the drop in activity lies on the quarter of the pixels
where the projection is strongest (41%).
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
from typing import Any, Literal

import jax
import numpy as np
from matplotlib.figure import Figure

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
from zfnet_jax import viz
from zfnet_jax.analysis import (
    Occlusion,
    occlusion,
    share_on,
    spearman,
    top_activations,
)
from zfnet_jax.data import DataNotFoundError, Dataset, fitted, load_photograph
from zfnet_jax.projections import project
from zfnet_jax.training import evaluate
from zfnet_jax.weights import Pretrained

_GREY = {"grey": 128, "black": 0, "white": 255}
# The share of an image's pixels where a projection counts as strong.
_STRONG = 0.25
# So many images are classified at a time, until enough of them are right.
_SEARCHED = 500


@dataclasses.dataclass(frozen=True)
class Options(ImageOptions):
    """Slide a square over images and draw what the network makes of the rest."""

    image: Path | None = None
    """A photograph; if not given, test images of the dataset."""
    target: str | None = None
    """Name or number of the class whose probability is followed; if not given, an
    image's own class, or for a photograph the most probable one."""
    size: int | None = None
    """Height and width of the square in pixels; a quarter of the image if not given."""
    stride: int | None = None
    """Pixels between positions; a sixteenth of the image if not given."""
    fill: Literal["grey", "mean", "black", "white"] = "grey"
    """What the square is filled with: one grey level, or the mean image."""
    indices: str | None = None
    """Test images, as in 3,17; if not given, the first --images that are classified
    right."""
    images: int = 20
    """How many test images to take."""
    shown: int = 3
    """How many of them are drawn, as in the paper."""
    others: int = 3
    """How many other images' projections stand in panel (c)."""
    out: Path = Path("results/occlusion")
    """Folder for results; files of the same names are replaced."""


def run(options: Options) -> None:
    """Cover, draw and write everything down."""
    at_least(1, options, "size", "stride", "images", "limit")
    at_least(0, options, "shown", "others")
    if options.image is not None and options.indices is not None:
        raise UsageError("--indices are of test images: leave them out with --image")
    results = Results(options.out)
    net = options.network()
    arch = net.model.arch
    height = arch.input_hw[0]
    size = options.size or max(round(height / 4), 1)
    stride = options.stride or max(round(height / 16), 1)
    dataset = None
    if options.image is None:
        dataset = options.known_images(net)
        chosen = dataset.take(_chosen(options, net, dataset))
    else:
        with silent_decoders():
            photograph = load_photograph(options.image)
        picture = fitted(photograph, net.preprocess.mean.shape[:2])
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
    images = np.asarray(net.preprocess(chosen.images))
    targets = _targets(options, net, chosen, images)
    cover, _ = _filler(options.fill, net)

    found: list[Occlusion] = []
    with Progress(
        "covering", len(chosen), unit="image", every=max(len(chosen) // 5, 1)
    ) as progress:
        for image, target in zip(images, targets, strict=True):
            found.append(occlusion(net.model, image, target, size, stride, cover))
            progress.update(len(found))
    layer = found[0].layer
    top = None
    if options.others and options.shown:
        assert dataset is not None
        with Progress(
            "searching", len(dataset), unit="image", every=len(dataset) // 5
        ) as progress:
            top = top_activations(
                net.model,
                dataset,
                [layer],
                options.others + 1,
                preprocess=net.preprocess,
                progress=progress.update,
            )[layer]
    for index in range(min(options.shown, len(chosen))):
        alike = [chosen.take(np.array([index]))]
        if top is not None and dataset is not None:
            strongest = top.images[found[index].unit]
            alike += others(dataset, strongest, alike[0], options.others)
        results.figure(
            f"occlusion_{index}",
            drawn(net, options, found[index], targets[index], alike),
        )
    units = np.array([[x.unit] for x in found])
    down = np.asarray(project(net.model, images, layer, units, mode="map").pixels)
    stored = io.BytesIO()
    np.save(stored, np.stack([x.logits for x in found]))
    results.write("logits.npy", stored.getvalue())
    of_each = [
        _described(x, target, net.class_names[target], picture)
        for x, target, picture in zip(found, targets, down, strict=True)
    ]
    metrics = {
        "architecture": arch.name,
        "data": chosen.source or chosen.name,
        "images": len(chosen),
        "size": size,
        "stride": stride,
        "fill": options.fill,
        "layer": layer,
        "tops": found[0].tops,
        "lefts": found[0].lefts,
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
        seen = (len(chosen), *arch.input_hw)
        masks = jax.image.resize(chosen.masks.astype(np.float32), seen, "linear") > 0.5
        metrics["drop_on_the_object"] = on_objects(found, targets, np.asarray(masks))
    results.metrics(metrics)
    results.config(options)
    digests = {"weights": weights_digest(options.weights)}
    if options.image is not None:
        digests["image"] = hashlib.sha256(options.image.read_bytes()).hexdigest()
    if dataset is not None:
        digests["data"] = dataset.digest()
    results.manifest(seed=0, digests=digests)  # nothing here is random
    positions = found[0].probability.size
    print(f"{len(found)} images, {positions} positions each; figures in {results.path}")


def _chosen(options: Options, net: Pretrained, dataset: Dataset) -> np.ndarray:
    """Which test images."""
    given = numbers("--indices", options.indices)
    if beyond := [index for index in given if index >= len(dataset)]:
        raise UsageError(f"--indices {beyond[0]}: there are {len(dataset)} test images")
    if given:
        return np.array(given)
    right = np.zeros(0, int)
    for start in range(0, len(dataset), _SEARCHED):
        part = dataset.take(np.arange(start, min(start + _SEARCHED, len(dataset))))
        logits = evaluate(net.model, net.preprocess, part.images, _SEARCHED)
        found = start + np.flatnonzero(logits.argmax(-1) == part.labels)
        right = np.concatenate([right, found])
        if len(right) >= options.images:
            break
    there = f"{len(right)} of {len(dataset)} test images are classified right"
    if len(right) < options.images and (options.limit is None or not len(right)):
        raise UsageError(
            f"--images {options.images}: {there}; name others with --indices"
        )
    if len(right) < options.images:
        print(there, flush=True)
    return right[: options.images]


def _targets(
    options: Options, net: Pretrained, chosen: Dataset, images: np.ndarray
) -> list[int]:
    """The class to follow in each image."""
    if options.target is None:
        if options.image is None:
            return chosen.labels.tolist()
        return [int(x) for x in jax.jit(net.model)(images).argmax(-1)]
    names = list(net.class_names)
    if options.target in names:
        target = names.index(options.target)
    else:
        target = int(options.target) if options.target.isdecimal() else -1
    if not 0 <= target < len(names):
        few = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
        raise UsageError(
            f"--target {options.target} is no class: there are 0 to {len(names) - 1}, "
            f"{few}"
        )
    return [target] * len(chosen)


def _filler(fill: str, net: Pretrained) -> tuple[np.ndarray, np.ndarray]:
    """The image that a square shows, preprocessed, and as a picture."""
    if fill == "mean":
        picture = mean_picture(net)
        return np.zeros(picture.shape, np.float32), picture
    blank = np.full((1, *net.preprocess.mean.shape), _GREY[fill], np.uint8)
    return np.asarray(net.preprocess(blank))[0], net.preprocess.pictures(blank)[0]


def others(
    dataset: Dataset, strongest: np.ndarray, image: Dataset, count: int
) -> list[Dataset]:
    """Images where a map is strongest, each alone, without the one that is drawn."""
    candidates = (dataset.take(np.array([x])) for x in strongest if x >= 0)
    different = (x for x in candidates if (x.images != image.images).any())
    return list(itertools.islice(different, count))


def drawn(
    net: Pretrained,
    options: Options,
    found: Occlusion,
    target: int,
    alike: Sequence[Dataset],
) -> Figure:
    """The five panels of the first of some images; all are projected in panel (c)."""
    pictures = net.preprocess.pictures(np.concatenate([x.images for x in alike]))
    images = np.concatenate([np.asarray(net.preprocess(x.images)) for x in alike])
    projections = project(net.model, images, found.layer, [found.unit], mode="map")
    row, column = np.unravel_index(found.probability.argmin(), found.probability.shape)
    top, left, bottom, right = found.boxes[row, column]
    covered = pictures[0].copy()
    _, filler = _filler(options.fill, net)
    covered[top:bottom, left:right] = filler[top:bottom, left:right]
    name = net.class_names[target]
    clean = float(jax.nn.softmax(found.clean_logits)[target])
    figure, _ = viz.occlusion_panels(
        f"{name}: a square of {options.fill} slides over the image, "
        f"{net.model.arch.name}",
        covered,
        found.tops,
        found.lefts,
        found.size,
        found.activity,
        found.probability,
        found.label,
        net.class_names,
        (
            "the square where it hurts most",
            f"activity of map {found.unit} of {found.layer} "
            f"({found.clean_activity:.3g})",
            f"map {found.unit} of {found.layer} in pixels",
            f"probability of {name} ({clean:.2f})",
            "most probable class",
        ),
        [
            (
                "this image" if not index else x.class_names[x.labels[0]],
                pictures[index],
                projections.pixels[index],
            )
            for index, x in enumerate(alike)
        ],
    )
    return figure


def _described(
    found: Occlusion, target: int, name: str, projection: np.ndarray
) -> dict[str, Any]:
    """What the metrics say of an image, and of its map's projection."""
    strength = np.abs(projection).max(-1)
    strong = strength > np.quantile(strength, 1 - _STRONG)
    clean = np.asarray(jax.nn.softmax(found.clean_logits))
    return {
        "target": name,
        "probability": clean[target],
        "least_probability": found.probability.min(),
        "mean_probability": found.probability.mean(),
        "unit": found.unit,
        "activity": found.clean_activity,
        "least_activity": found.activity.min(),
        "mean_activity": found.activity.mean(),
        "label_changed": (found.label != clean.argmax()).mean(),
        "activity_and_probability": spearman(
            found.activity.ravel(), found.probability.ravel()
        ),
        "activity_drop_on_projection": _known(
            share_on(found.by_pixel(found.clean_activity - found.activity), strong)
        ),
    }


def _known(share: float) -> float | None:
    return None if math.isnan(share) else share


def _mean(found: list[dict[str, Any]], key: str) -> float | None:
    """Over the images where it is known."""
    known = [x[key] for x in found if x[key] is not None]
    return float(np.mean(known)) if known else None


def on_objects(
    found: Sequence[Occlusion], targets: Sequence[int], masks: np.ndarray
) -> dict[str, object]:
    """Shares of the drop in probability that lie on the objects, and what chance has.

    A drop that is the same everywhere has the object's share of the image. One that
    only knows where objects usually are has what it has on other images' objects.
    """
    drops = [
        x.by_pixel(np.asarray(jax.nn.softmax(x.clean_logits))[target] - x.probability)
        for x, target in zip(found, targets, strict=True)
    ]
    shares = np.array([[share_on(drop, mask) for mask in masks] for drop in drops])
    known = ~np.isnan(shares[:, 0])
    own = np.diag(shares)[known]
    alien = shares[known][~np.eye(len(masks), dtype=bool)[known]]
    return {
        "images": int(known.sum()),
        "share": own.mean() if known.any() else None,
        "standard_error": own.std() / math.sqrt(len(own)) if known.any() else None,
        "chance": masks.mean(),
        "on_other_objects": alien.mean() if len(alien) else None,
    }


if __name__ == "__main__":
    sys.exit(main(run, Options))
