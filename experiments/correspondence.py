"""Correspondence of the same part in different images: Table 1 and Fig. 8 of the paper.

    python -m experiments.correspondence --boxes experiments/boxes/cifar10_dogs.csv

One part is masked in each of several images of the same kind. Δ measures how much the
signs of the feature changes differ between images, at the paper's layers 5 and 7: 0 if
all are the same, 1 if none are. Each part is compared with random boxes of its size, as
in the paper, and with mixed parts, a random one in each image; a permutation test gives
each p-value. A part below the random boxes changes features more alike than other
positions do; the network distinguishes it from the other parts only if it is below the
mixed parts too. Without --boxes: the corners of generated shapes.

Expected with the shipped weights and these ten dogs: 20 to 50 seconds. At fc7 every
part is far below the random boxes (Δ 0.14 to 0.16 against 0.25, p 0.03 at most) and
none below the mixed parts (0.15): hiding any part of a face changes fc7 alike. At pool5
no part is below the random boxes. With so few images only large differences show.

A CSV file of boxes has the header image,part,top,left,bottom,right and a line for each
image and part; every image has all parts. `image` is a file in the folder of the CSV
file or of --image, or the number of a test image of the dataset. Edges are pixels of
that image as it is stored (a photograph upright); bottom and right are exclusive. The
center square of a photograph is resized to the network, and the boxes with it.

experiments/boxes holds the eyes and noses of ten dogs of CIFAR-10, and of ten dogs of
the public sample of ImageNet with one image per class (--image FOLDER); left and right
are the dog's own.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from experiments.harness import Metrics, Positive, UserError, main
from experiments.inputs import NetworkRun, make_cover
from experiments.progress import plural, say_table
from zfnet_jax.analysis.correspondence import Correspondence, draw_boxes, mask_boxes
from zfnet_jax.analysis.correspondence import correspondence as compare
from zfnet_jax.data import (
    SHAPES,
    Dataset,
    DatasetImages,
    fit_photograph,
    load_dataset,
    load_photograph,
    make_shapes,
    shape_parts,
)
from zfnet_jax.data.boxes import convert_box, fit_box, read_boxes
from zfnet_jax.data.images import crop_share, stored_shape
from zfnet_jax.files import DamagedFileError, DataNotFoundError, digest
from zfnet_jax.results import spell_mean, spread

_DRAWN, _SHAPES = 10, 20


class Parts(NamedTuple):
    """Images of one kind, their names, and by part the box in each in pixels."""

    names: list[str]
    images: DatasetImages
    boxes: dict[str, np.ndarray]


def correspondence(
    run: NetworkRun,
    boxes: Path | None = None,
    shape: Literal["arrow", "heart"] = "arrow",
    layers: tuple[str, ...] = (),
    draws: Positive = 200,
    limit: Positive | None = None,
) -> Metrics:
    """Mask parts of images and compare how the features change.

    Args:
        boxes: CSV file of the parts' boxes; by default the corners of generated shapes.
        shape: Shape to use without --boxes.
        layers: Layers, by default the paper's 5 and 7: the last one with feature maps,
            and the last hidden one without.
        draws: Draws of random boxes per part.
        limit: Images at most, by default all of the CSV file, or 20 shapes.
    """
    if boxes is None:
        if run.image is not None or run.dataset == "cifar10":
            raise UserError("give the parts of these images by --boxes")
        parts = make_parts(run, shape, limit or _SHAPES)
    else:
        parts = load_parts(run, boxes, limit)
    by_layer = compare(
        run.net,
        parts.images,
        parts.boxes,
        layers=layers or None,
        draws=draws,
        seed=run.seed,
        progress=run.progress("masking"),
    )
    draw(run, parts, by_layer)
    print_table(by_layer)
    yield from run.describe_data(parts.images)
    yield "draws", draws
    by_part = parts.boxes.items()
    yield "boxes", {x: dict(zip(parts.names, y, strict=True)) for x, y in by_part}
    yield "layers", {layer: describe(x) for layer, x in by_layer.items()}


def load_parts(run: NetworkRun, file: Path, limit: int | None) -> Parts:
    """Load the images that a CSV file names, and convert its boxes."""
    table = dict(list(read_boxes(file).items())[:limit])
    run.digests["boxes"] = digest(file)
    source, dataset = f"boxes of {file.name}", None
    if numbers := [int(image) for image in table if image.isdecimal()]:
        name, count = run.dataset_name, max(numbers) + 1
        dataset = load_dataset(name, "test", run.data_dir, count)
        source += f", {dataset.source}"
    kept = stored_shape(run.net.image_shape, run.net.preprocess)[:2]
    image_hw, crop = run.net.image_shape[:2], crop_share(run.net.preprocess)
    images = []
    boxes: dict[str, list[np.ndarray]] = {}
    for image, rows in table.items():
        place = next(iter(rows.values())).place
        stored = load_image(image, place, run.image or file.parent, dataset)
        images.append(fit_photograph(stored, kept, crop=crop))
        for part, row in rows.items():
            box = fit_box(row, stored.shape[:2], kept, image_hw, crop)
            boxes.setdefault(part, []).append(box)
    labels = np.zeros(len(images), np.int32)
    pixels = Dataset(np.stack(images), labels, ("",), file.name, source=source)
    run.digests["images"] = pixels.digest()
    stacked = {part: np.stack(rows) for part, rows in boxes.items()}
    return Parts(list(table), run.net.load_images(pixels), stacked)


def load_image(
    image: str, place: str, folder: Path, dataset: Dataset | None
) -> np.ndarray:
    """Load an image as it is stored: from a folder, or by its number in a dataset."""
    if dataset is not None and image.isdecimal():
        if int(image) >= len(dataset):
            raise UserError(
                f"{place}: there is no test image {image}, only 0 to {len(dataset) - 1}"
            )
        return dataset.images[int(image)]
    try:
        return load_photograph(folder / image)
    except (DamagedFileError, DataNotFoundError) as error:
        raise type(error)(f"{place}: {error}") from error


def make_parts(run: NetworkRun, shape: str, count: int) -> Parts:
    """Generate shapes of one class, with boxes about their corners."""
    size = stored_shape(run.net.image_shape, run.net.preprocess)[:2]
    total = count * len(SHAPES)
    indices, corners = shape_parts(shape, total, size, seed=1)
    shapes = make_shapes(total, size, seed=1).take(indices)
    shapes = dataclasses.replace(shapes, source=f"{shape}s among {shapes.source}")
    run.digests["images"] = shapes.digest()
    boxes = {
        part: np.stack(
            [convert_box(box, size, size, run.net.image_shape[:2]) for box in rows]
        )
        for part, rows in corners.items()
    }
    return Parts([str(i) for i in indices], run.net.load_images(shapes), boxes)


def draw(run: NetworkRun, parts: Parts, by_layer: Mapping[str, Correspondence]) -> None:
    """Draw the masked images, and how alike features change."""
    from zfnet_jax.viz.correspondence import correspondence_chart, masked_images

    part, boxes = next(iter(parts.boxes.items()))
    random = draw_boxes(boxes, run.net.image_shape[:2], 1, run.seed)[0]
    masks = {**parts.boxes, f"random box, as {part}": random}
    masks = {name: rows[:_DRAWN] for name, rows in masks.items()}
    pictures, mean = parts.images.pictures[:_DRAWN], make_cover(run.net, "mean")[1]
    count = plural(len(parts.images), "image")
    figure = masked_images(
        f"Parts masked in {count}"
        + (f", the first {_DRAWN}" if len(parts.images) > _DRAWN else ""),
        [Path(name).stem for name in parts.names[:_DRAWN]],
        pictures,
        {x: np.asarray(mask_boxes(pictures, masks[x], fill=mean)) for x in masks},
        masks,
    )
    run.figure("masked_images", figure)
    figure = correspondence_chart(
        f"Effect of hiding the same part in {count}, {run.network_name}",
        list(parts.boxes),
        {
            layer: (x.delta, x.spread, x.random, x.mixed, x.p_random, x.p_mixed)
            for layer, x in by_layer.items()
        },
    )
    run.figure("correspondence", figure)


def describe(result: Correspondence) -> dict[str, Any]:
    """Summarize a layer for metrics.json."""
    columns = {
        "delta": result.delta,
        "spread_over_pairs": result.spread,
        "changed": result.changed,
        "random": result.random.mean(1),
        "random_spread_over_draws": spread(result.random, axis=1),
        "random_changed": result.random_changed,
        "p_random": result.p_random,
        "p_mixed": result.p_mixed,
    }
    rows = zip(*columns.values(), strict=True)
    parts = zip(result.parts, rows, strict=True)
    return {
        "parts": {part: dict(zip(columns, row, strict=True)) for part, row in parts},
        "mixed": result.mixed.mean(),
        "mixed_spread_over_draws": spread(result.mixed),
    }


def print_table(by_layer: Mapping[str, Correspondence]) -> None:
    """Print Table 1; ± is the spread over pairs of images or over random draws."""
    heading = "layer,masked,Δ,random boxes,p,mixed parts,p,changed"
    rows = [[str(name) for name in heading.split(",")]]
    for layer, result in by_layer.items():
        mixed = spell_mean(result.mixed.mean(), spread(result.mixed), ".3f")
        for part, x in describe(result)["parts"].items():
            delta = spell_mean(x["delta"], x["spread_over_pairs"], ".3f")
            random = spell_mean(x["random"], x["random_spread_over_draws"], ".3f")
            by_random, by_mixed = f"{x['p_random']:.3f}", f"{x['p_mixed']:.3f}"
            changed = f"{x['changed']:.0%}, random {x['random_changed']:.0%}"
            rows.append(
                [layer, part, delta, random, by_random, mixed, by_mixed, changed]
            )
    say_table(rows)


if __name__ == "__main__":
    sys.exit(main(correspondence))
