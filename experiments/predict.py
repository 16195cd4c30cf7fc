"""The most probable classes of images, and how often they are right.

    python -m experiments.predict --image PHOTO_OR_FOLDER --ten-crop
    python -m experiments.predict --ten-crop

With --image: the most probable classes of a photograph, or of each in a folder; damaged
files are named and skipped. Without it: those of the test images of the network's own
dataset. Where the true classes are known, top-1 and top-5 accuracy.

The paper's ten crops (section 3) are the corners and the center, each also mirrored, of
an image 256/224 times as large as a crop; their probabilities are averaged. Test images
are only as large as a crop, so they are extended by reflection. The paper's errors on
ImageNet: 38.4% top-1 and 16.5% top-5. Expected with the shipped weights: ten seconds
for a folder of 50 photographs; two minutes for the 10,000 test images of CIFAR-10, with
top-1 and top-5 accuracies of 87.13% and 99.54% by one view, 88.37% and 99.61% by ten
crops.

The result folder contains a figure, metrics.json, and predictions.json with the classes
of every image.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from experiments.harness import Metrics, Positive, main
from experiments.inputs import Images, NetworkRun, name_image
from experiments.progress import plural, say
from zfnet_jax.data import ten_crop_size
from zfnet_jax.data.images import stored_shape
from zfnet_jax.data.photographs import Photographs
from zfnet_jax.files import DataNotFoundError, to_json, write_atomically
from zfnet_jax.inference import class_probabilities

# Bars beside an image.
_BARS = 10
View = Literal["one_view", "ten_crop"]
VIEWS: dict[View, str] = {"one_view": "one view", "ten_crop": "ten crops"}


class Predictions(NamedTuple):
    """The most probable classes of n images, best first, as arrays [n, k]."""

    classes: np.ndarray
    probabilities: np.ndarray


def predict(
    run: NetworkRun,
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
    images = run.labeled_images(limit) if run.image is None else run.images(limit)
    is_known = run.has_labels_for(images)
    view: View = "ten_crop" if ten_crop else "one_view"
    views: set[View] = {view, "one_view"} if is_known else {view}
    skipped: list[dict[str, str]] = []
    by_view = {}
    for name in sorted(views, key=list(VIEWS).index):
        images, by_view[name] = classify(run, images, name, k, batch_size, skipped)
    accuracies = {}
    if is_known:
        accuracies = {name: measure(run, images, x) for name, x in by_view.items()}
    best = Predictions(*(x[:, :k] for x in by_view[view]))
    draw(run, images, best, view, shown, accuracies)
    rows = describe(run, images, best)
    content = {"images": rows, "skipped": skipped}
    write_atomically(run.path / "predictions.json", f"{to_json(content)}\n")
    run.end_progress()
    report(images, rows, accuracies)
    yield from run.describe_data(images)
    yield "view", view
    yield "skipped", len(skipped)
    yield from accuracies.items()


def classify(
    run: NetworkRun,
    images: Images,
    view: View,
    k: int,
    batch_size: int,
    skipped: list[dict[str, str]],
) -> tuple[Images, Predictions]:
    """Find the images that can be read, and their most probable classes.

    `skipped` gets the name of each damaged file, and the reason.
    """
    kept: list[int] = []

    def read() -> Iterator[np.ndarray]:
        for index in range(len(images)):
            try:
                picture = read_picture(run, images, index, view)
            except (DataNotFoundError, OSError) as error:
                if len(images) == 1:
                    raise
                say("skipped:", error, file=sys.stderr)
                name = name_image(images, index)
                skipped.append({"image": name, "reason": str(error)})
                continue
            kept.append(index)
            yield picture

    progress = run.progress(f"classifying by {VIEWS[view]}")
    classes, chances = [], []
    for probabilities in class_probabilities(
        run.net, read(), ten_crops=view == "ten_crop", batch_size=batch_size
    ):
        # The accuracies need five.
        best = np.argsort(-probabilities, kind="stable")[: max(k, 5)]
        classes.append(best)
        chances.append(probabilities[best])
        progress(len(classes), len(images))
    if not kept:
        raise DataNotFoundError(f"none of the {len(images)} files can be read")
    best = Predictions(np.array(classes), np.array(chances))
    return images.take(np.array(kept)), best


def read_picture(run: NetworkRun, images: Images, index: int, view: View) -> np.ndarray:
    """Read an image as uint8 pixels of the size that the network or ten crops take."""
    picture = images.pictures.convert(index, np.asarray)
    if view == "one_view":
        return picture
    shape = stored_shape(run.net.image_shape, run.net.preprocess)
    large = ten_crop_size(shape[:2])
    if isinstance(images, Photographs):
        file, size = images.pictures.items[index], (*large, shape[2])
        # Its pictures are all of the center square, and not preprocessed.
        return Photographs(file, size, np.float32, run.fit).pictures[0]
    # Enlarged, objects would no longer have the size at which they were learned.
    borders = [((a - b) // 2,) * 2 for a, b in zip(large, shape, strict=False)]
    return np.pad(picture, (*borders, (0, 0)), "reflect")


def measure(run: NetworkRun, images: Images, best: Predictions) -> dict[str, float]:
    """Compute top-1 accuracy and, of at least five classes, top-5 accuracy."""
    assert images.labels is not None
    is_right = best.classes == images.labels[:, None]
    ks = [k for k in (1, 5) if k <= run.net.num_classes]
    return {f"top{k}_accuracy": is_right[:, :k].any(1).mean() for k in ks}


def draw(
    run: NetworkRun,
    images: Images,
    best: Predictions,
    view: View,
    shown: int,
    accuracies: Mapping[View, Mapping[str, float]],
) -> None:
    """Draw the first images."""
    from zfnet_jax.viz.predictions import draw_predictions

    what = plural(len(images), "image")
    notes = ["✓ and bold type mark the true class."] if accuracies else []
    if accuracies:
        what = f"{accuracies[view]['top1_accuracy']:.2%} of {what} right"
    if view == "ten_crop":
        notes.append("Crops are cut out of these pictures.")
    if len(images) > shown:
        notes.append(f"The first {shown} are drawn.")
    drawn = range(min(shown, len(images)))
    truth = [] if images.labels is None else images.labels[:shown]
    figure = draw_predictions(
        f"{what} by {VIEWS[view]}, {run.network_name}",
        " ".join(notes),
        np.stack([read_picture(run, images, index, view) for index in drawn]),
        [name_image(images, index) for index in drawn],
        [[run.class_name(x) for x in best.classes[i, :_BARS]] for i in drawn],
        best.probabilities[:shown, :_BARS],
        [run.class_name(label) for label in truth] if accuracies else None,
    )
    run.figure("predictions", figure)


def describe(
    run: NetworkRun, images: Images, best: Predictions
) -> list[dict[str, Any]]:
    """List the most probable classes of each image for predictions.json."""
    rows: list[dict[str, Any]] = []
    for index, (classes, chances) in enumerate(zip(*best, strict=True)):
        name = images.names[index] if isinstance(images, Photographs) else index
        rows.append({"image": name})
        if images.labels is not None and images.class_names is not None:
            rows[-1]["true_class"] = images.class_names[images.labels[index]]
        rows[-1]["classes"] = [run.class_name(label) for label in classes]
        rows[-1]["probabilities"] = chances
    return rows


def report(
    images: Images,
    rows: list[dict[str, Any]],
    accuracies: Mapping[View, Mapping[str, float]],
) -> None:
    """Print the classes of photographs, and the accuracies."""
    for row in rows if isinstance(images, Photographs) else ():
        say(row["image"])
        for name, chance in zip(row["classes"], row["probabilities"], strict=True):
            say(f"  {chance:7.2%}  {name}")
    for view, values in accuracies.items():
        numbers = (f"{name[:4]} {value:.2%}" for name, value in values.items())
        say(f"{VIEWS[view]}: {', '.join(numbers)}")


if __name__ == "__main__":
    sys.exit(main(predict))
