"""The most probable classes of images, and how often they are right.

    python -m experiments.predict --image PHOTO_OR_FOLDER --ten-crop
    python -m experiments.predict --ten-crop
    python -m experiments.predict --weights FILE_1 --weights FILE_2

With --image: the most probable classes of a photograph, or of each in a folder; damaged
files are named and skipped. Without it: those of the test images of the network's own
dataset. Where the true classes are known, top-1 and top-5 accuracy.

With several --weights the probabilities of all networks are averaged, as in the paper's
Table 2. Their classes must be the same; each network's own accuracy is given too.

The paper's ten crops (section 3) are the corners and the center, each also mirrored, of
an image 256/224 times as large as a crop; their probabilities are averaged. Test images
are only as large as a crop, so they are extended by reflection. The paper's errors on
ImageNet: 38.4% top-1 and 16.5% top-5. Expected with the shipped weights: ten seconds
for a folder of 50 photographs; three minutes for the 10,000 test images of CIFAR-10,
with top-1 and top-5 accuracies of 90.00% and 99.59% by one view, 90.85% and 99.72% by
ten crops.

A killed run resumes, losing at most a minute.

The result folder contains a figure, metrics.json, and predictions.json with the classes
of every image.
"""

from __future__ import annotations

import itertools
import operator
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from experiments.harness import Metrics, Positive, UserError, main
from experiments.inputs import (
    Images,
    NetworkRun,
    SharedNetworksRun,
    name_image,
    name_networks,
)
from experiments.prediction_rows import Rows
from experiments.progress import plural, say
from zfnet_jax.data import fit_photograph, ten_crop_size
from zfnet_jax.data.images import reduce_channels, stored_shape
from zfnet_jax.data.photographs import Photographs
from zfnet_jax.files import (
    DamagedFileError,
    DataNotFoundError,
    digest,
    to_json,
    write_atomically,
)
from zfnet_jax.inference import class_probabilities
from zfnet_jax.processes import broadcast, gather

# Folder of what is done, and seconds between two savings.
_PARTIAL, _SAVE_EVERY = ".predict", 60
# Bars beside an image.
_BARS = 10
View = Literal["one_view", "ten_crop"]
VIEWS: dict[View, str] = {"one_view": "one view", "ten_crop": "ten crops"}


class Subject(NamedTuple):
    """A network and the images as it takes them."""

    run: NetworkRun
    images: Images


class Predictions(NamedTuple):
    """The most probable classes of n images, best first, as arrays [n, k]."""

    classes: np.ndarray
    probabilities: np.ndarray


# Of the networks together, and of each alone where there are several.
Accuracies = dict[str, dict[View, dict[str, float]]]


def predict(
    run: SharedNetworksRun,
    k: Positive = 5,
    ten_crop: bool = False,
    limit: Positive | None = None,
    shown: Positive = 20,
    batch_size: Positive = 50,
) -> Metrics:
    """Name the most probable classes of images, and measure how often they are right.

    Args:
        k: Classes per image, at most.
        ten_crop: Average over ten crops; where the true classes are known, in addition
            to one view.
        limit: Images at most, by default all.
        shown: Images to draw, at most.
        batch_size: Images per batch.
    """
    runs = run.split()
    check_classes(run, runs)
    is_folder = run.image is not None
    subjects = [
        Subject(x, x.images(limit) if is_folder else x.labeled_images(limit))
        for x in runs
    ]
    first, images = subjects[0]
    is_known = first.has_labels_for(images)
    view: View = "ten_crop" if ten_crop else "one_view"
    views: set[View] = {view, "one_view"} if is_known else {view}
    names = name_networks(runs)
    if len(runs) > 1:
        names.append(f"the average of {len(runs)} networks")
    skipped: list[dict[str, str]] = []
    accuracies: Accuracies = {name: {} for name in names}
    by_network: dict[str, Predictions] = {}
    for by in sorted(views, key=list(VIEWS).index):
        subjects, best = classify(run, subjects, by, k, batch_size, skipped)
        by_network = dict(zip(names, best, strict=True))
        for name in names if is_known else ():
            accuracies[name][by] = measure(subjects[0], by_network[name])
    if not run.is_first:
        return
    by_network = {
        name: Predictions(*(array[:, :k] for array in best))
        for name, best in by_network.items()
    }
    draw(run, subjects[0], by_network, view, shown, accuracies)
    rows = describe(subjects[0], by_network)
    content = {"images": rows, "skipped": skipped}
    write_atomically(run.path / "predictions.json", f"{to_json(content)}\n")
    shutil.rmtree(run.path / _PARTIAL, ignore_errors=True)
    run.end_progress()
    report(images, rows, accuracies)
    yield from first.describe_data(subjects[0].images)
    yield "network", names[-1]
    yield "view", view
    yield "skipped", len(skipped)
    yield from accuracies.pop(names[-1]).items()
    if len(runs) > 1:
        yield "networks", accuracies


def check_classes(run: SharedNetworksRun, runs: Sequence[NetworkRun]) -> None:
    """Refuse to average networks of different classes."""
    first = runs[0].net
    for weights, part in zip(run.weights, runs, strict=False):
        net, other = part.net, run.weights[0]
        names = [
            x.class_names or ("without a name",) * x.num_classes for x in (net, first)
        ]
        if names[0] == names[1]:
            continue
        difference = f"{net.num_classes} classes, and {first.num_classes} in {other}"
        if net.num_classes == first.num_classes:
            pairs = enumerate(zip(*names, strict=True))
            label, (ours, theirs) = next(x for x in pairs if x[1][0] != x[1][1])
            difference = f"class {label} is {ours}, and {theirs} in {other}"
        raise UserError(
            f"--weights {weights}: {difference}; average networks of the same classes"
        )


def find_file(folder: Path, subjects: Sequence[Subject], view: View, k: int) -> Path:
    """Name the file in which this process keeps its rows, all else being the same."""
    run, images = subjects[0]
    key = None
    if jax.process_index() == 0:  # it may read all files
        networks = [subject.run.net.digest() for subject in subjects]
        key = digest(networks, images.digest(), run.fit, view, k)
    name = broadcast(key)[:16]
    process = f"{jax.process_index()}-of-{jax.process_count()}"
    return folder / f"{name}-{process}.npz"


def classify(
    run: SharedNetworksRun,
    subjects: Sequence[Subject],
    view: View,
    k: int,
    batch_size: int,
    skipped: list[dict[str, str]],
) -> tuple[list[Subject], list[Predictions]]:
    """Find the images that can be read, and their most probable classes.

    Each process classifies a part of the images, and keeps its rows in a file every
    minute. `skipped` gets the name of each damaged file, and the reason.

    Returns:
        The networks with these images, and predictions by each network; of several also
        by the average of their probabilities.
    """
    count = len(subjects[0].images)
    part = np.array_split(np.arange(count), jax.process_count())[jax.process_index()]
    file = find_file(run.path / _PARTIAL, subjects, view, k)
    rows = Rows.load(file)
    rest = part[part > rows.kept[-1]] if rows.kept else part
    pictures = read_pictures(subjects, rest, view, rows)
    progress = run.progress(f"classifying by {VIEWS[view]}")
    last_save = time.monotonic()
    for probabilities in average(subjects, pictures, view, batch_size):
        # The accuracies need five.
        best = np.argsort(-probabilities, kind="stable")[:, : max(k, 5)]
        rows.classes.append(best)
        rows.chances.append(np.take_along_axis(probabilities, best, 1))
        if time.monotonic() - last_save >= _SAVE_EVERY:
            rows.save(file)
            last_save = time.monotonic()
        progress(len(rows.classes), len(part))
    kept, classes, chances = [], [], []
    for share in gather(rows):
        kept += share.kept
        classes += share.classes
        chances += share.chances
        skipped += share.damaged.values()
    if not kept:
        raise DamagedFileError(f"none of the {count} files can be read")
    subjects = [Subject(x.run, x.images.take(np.array(kept))) for x in subjects]
    pairs = zip(np.stack(classes, 1), np.stack(chances, 1), strict=True)
    return subjects, [Predictions(*pair) for pair in pairs]


def average(
    subjects: Sequence[Subject],
    pictures: Iterator[list[np.ndarray]],
    view: View,
    batch_size: int,
) -> Iterator[np.ndarray]:
    """Yield each image's probabilities by every network, [networks, classes].

    A last row is the average of several networks.
    """
    streams = [
        class_probabilities(
            subject.run.net,
            map(operator.itemgetter(number), copies),
            ten_crops=view == "ten_crop",
            batch_size=batch_size,
        )
        for number, (subject, copies) in enumerate(
            zip(subjects, itertools.tee(pictures, len(subjects)), strict=True)
        )
    ]
    for probabilities in zip(*streams, strict=True):
        rows = np.stack(probabilities)
        yield np.concatenate([rows, rows.mean(0)[None]]) if len(rows) > 1 else rows


def read_pictures(
    subjects: Sequence[Subject],
    indices: np.ndarray,
    view: View,
    rows: Rows,
) -> Iterator[list[np.ndarray]]:
    """Yield each image as every network takes it; note its index, or the damage."""
    images = subjects[0].images
    for index in indices.tolist():
        try:
            pictures = [read_picture(subject, index, view) for subject in subjects]
        except (DamagedFileError, DataNotFoundError, OSError) as error:
            if len(images) == 1:
                raise
            say("skipped:", error, file=sys.stderr)
            name = name_image(images, index)
            rows.damaged[index] = {"image": name, "reason": str(error)}
            continue
        rows.kept.append(index)
        yield pictures


def read_picture(subject: Subject, index: int, view: View) -> np.ndarray:
    """Read an image as uint8 pixels of the size that the network or ten crops take."""
    run, images = subject
    picture = images.pictures.convert(index, np.asarray)
    if view == "one_view":
        return picture
    shape = stored_shape(run.net.image_shape, run.net.preprocess)
    large = ten_crop_size(shape[:2])
    if isinstance(images, Photographs):
        # All of the center square, unlike the images' own pictures.
        photograph = fit_photograph(images.load(index), large, run.fit)
        return reduce_channels(photograph, shape[2])
    # Enlarged, objects would no longer have the size at which they were learned.
    borders = [((a - b) // 2,) * 2 for a, b in zip(large, shape, strict=False)]
    return np.pad(picture, (*borders, (0, 0)), "reflect")


def measure(subject: Subject, best: Predictions) -> dict[str, float]:
    """Compute top-1 accuracy and, of at least five classes, top-5 accuracy."""
    run, images = subject
    assert images.labels is not None
    is_right = best.classes == images.labels[:, None]
    ks = [k for k in (1, 5) if k <= run.net.num_classes]
    return {f"top{k}_accuracy": is_right[:, :k].any(1).mean() for k in ks}


def draw(
    run: SharedNetworksRun,
    subject: Subject,
    by_network: dict[str, Predictions],
    view: View,
    shown: int,
    accuracies: Accuracies,
) -> None:
    """Draw the first images."""
    from zfnet_jax.viz.predictions import draw_predictions

    first, images = subject
    *others, name = by_network
    best, what, notes = by_network[name], plural(len(images), "image"), []
    is_known = bool(accuracies[name])
    if is_known:
        what = f"{accuracies[name][view]['top1_accuracy']:.2%} of {what} right"
        notes.append("✓ and bold type mark the true class.")
    if others and is_known:
        shares = (f"{x} {accuracies[x][view]['top1_accuracy']:.2%}" for x in others)
        notes.append(f"Each alone: {', '.join(shares)}.")
    if view == "ten_crop":
        notes.append("Crops are cut out of these pictures.")
    if len(images) > shown:
        notes.append(f"The first {shown} are drawn.")
    indices = range(min(shown, len(images)))
    truth = [] if images.labels is None else images.labels[:shown]
    figure = draw_predictions(
        f"{what} by {VIEWS[view]}, {name}",
        " ".join(notes),
        np.stack([read_picture(subject, index, view) for index in indices]),
        [name_image(images, index) for index in indices],
        [[first.class_name(x) for x in best.classes[i, :_BARS]] for i in indices],
        best.probabilities[:shown, :_BARS],
        [first.class_name(label) for label in truth] if is_known else None,
    )
    run.figure("predictions", figure)


def describe(
    subject: Subject, by_network: dict[str, Predictions]
) -> list[dict[str, Any]]:
    """List the most probable classes of each image for predictions.json."""
    run, images = subject
    *others, name = by_network
    rows: list[dict[str, Any]] = []

    def list_classes(best: Predictions, index: int) -> dict[str, Any]:
        return {
            "classes": [run.class_name(label) for label in best.classes[index]],
            "probabilities": best.probabilities[index],
        }

    for index in range(len(images)):
        image = images.names[index] if isinstance(images, Photographs) else index
        row = {"image": image, **list_classes(by_network[name], index)}
        if images.labels is not None and images.class_names is not None:
            row["true_class"] = images.class_names[images.labels[index]]
        if others:
            row["networks"] = {x: list_classes(by_network[x], index) for x in others}
        rows.append(row)
    return rows


def report(images: Images, rows: list[dict[str, Any]], accuracies: Accuracies) -> None:
    """Print the classes of photographs, and the accuracies."""
    for row in rows if isinstance(images, Photographs) else ():
        say(row["image"])
        for name, chance in zip(row["classes"], row["probabilities"], strict=True):
            say(f"  {chance:7.2%}  {name}")
    for network, by_view in accuracies.items():
        prefix = f"{network}, " if len(accuracies) > 1 else ""
        for view, values in by_view.items():
            numbers = (f"{name[:4]} {value:.2%}" for name, value in values.items())
            say(f"{prefix}{VIEWS[view]}: {', '.join(numbers)}")


if __name__ == "__main__":
    sys.exit(main(predict))
