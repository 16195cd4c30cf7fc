"""Does hiding the same part change features alike? Table 1 and Fig. 8 of the paper.

    python -m experiments.correspondence --boxes experiments/boxes/cifar10_dogs.csv

One part is masked in each of several images of the same kind. Δ measures how much the
signs of the feature changes differ between images, at the paper's layers 5 and 7: 0 if
all are the same, 1 if none are. Each part is compared with random boxes of its size, as
in the paper, and with mixed parts, a random one in each image; a permutation test gives
each p-value. A part below the random boxes changes features more alike than other
positions do; the network distinguishes it from the other parts only if it is below the
mixed parts too. Without --boxes: the corners of generated shapes.

Expected with the shipped weights and these ten dogs: 20 to 50 seconds. At fc7 every
part is far below the random boxes (Δ 0.24 against 0.31, p 0.005) and none below the
mixed parts (0.24): hiding any part of a face changes fc7 alike. At pool5 no part is
below the random boxes. With so few images only large differences show.

A CSV file of boxes has the header image,part,top,left,bottom,right and a line for each
image and part; every image has all parts. `image` is a file in the folder of the CSV
file or of --images, or the number of a test image of the dataset. Edges are pixels of
that image as it is stored (a photograph upright), counted from its upper left corner;
bottom and right are exclusive. The center square of a photograph is resized to the
network, and the boxes with it.

experiments/boxes holds the eyes and noses of ten dogs of CIFAR-10, and of ten dogs of
the public sample of ImageNet with one image per class (--images FOLDER); left and right
are the dog's own.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from experiments.common import (
    ImageOptions,
    Progress,
    Results,
    UsageError,
    at_least,
    counted,
    enough,
    load_dataset,
    main,
    mean_picture,
    named_layers,
    silent_decoders,
    trained_on,
    weights_digest,
)
from zfnet_jax.analysis.correspondence import (
    Correspondence,
    check_box,
    correspondence,
    draw_boxes,
    mask_boxes,
)
from zfnet_jax.data import (
    SHAPES,
    fit_photograph,
    load_photograph,
    make_shapes,
    shape_parts,
)
from zfnet_jax.files import DataNotFoundError
from zfnet_jax.weights import Pretrained

_COLUMNS = ("image", "part", "top", "left", "bottom", "right")
_MOST_DRAWN, _SHAPES = 10, 20


@dataclasses.dataclass(frozen=True)
class Options(ImageOptions):
    """Mask parts of images and compare how the features change."""

    boxes: Path | None = None
    """CSV file of the parts' boxes, with the header image,part,top,left,bottom,right
    (image: a file or the number of a test image; pixels as stored, bottom and right
    exclusive); by default the corners of generated shapes."""
    images: Path | None = None
    """Folder of the images that the CSV file names; by default its own."""
    shape: Literal["arrow", "heart"] | None = None
    """Shape to use without --boxes; arrow by default."""
    layers: str | None = None
    """Layers, as in conv5,fc7; by default the paper's 5 and 7: the input of the first
    dense layer, and the last hidden layer."""
    draws: int = 200
    """Draws of random boxes per part."""
    dataset: Literal["cifar10", "shapes"] | None = None
    """Source of the test images that the CSV file numbers; by default what the network
    was trained on."""
    limit: int | None = None
    """Use only the first N images of the CSV file, or N shapes instead of 20."""
    seed: int = 0
    """Seed for the random boxes."""
    out: Path = Path("results/correspondence")
    """Folder for results; files of the same names are replaced."""


class Annotated(NamedTuple):
    """Images of one size and the boxes of their parts.

    Attributes:
        names: Name of each image.
        images: Pixels, before preprocessing.
        boxes: By the part's name, its box in each image, in pixels of the network.
        source: Origin of the images.
    """

    names: list[str]
    images: np.ndarray
    boxes: dict[str, np.ndarray]
    source: str


class Row(NamedTuple):
    """A line of a CSV file."""

    line: int
    box: tuple[int, int, int, int]


def run(options: Options) -> None:
    """Mask, compare, draw and write the results."""
    at_least(1, options, "draws")
    at_least(2, options, "limit")
    at_least(0, options, "seed")
    if options.boxes is None:
        if options.images is not None:
            raise UsageError("--images is the folder of a CSV file: give --boxes too")
        if options.dataset == "cifar10":
            raise UsageError("the parts of cifar10 are not known: give them by --boxes")
    elif options.shape is not None:
        raise UsageError("--shape is for generated shapes: omit it with --boxes")
    results = Results(options.out)
    table = None if options.boxes is None else read_boxes(options.boxes)
    net = options.network()
    annotated = (
        make_annotated(net, options.shape or "arrow", options.limit or _SHAPES)
        if table is None
        else load_annotated(net, table, options)
    )
    arch, names, parts = net.model.arch, annotated.names, annotated.boxes
    with Progress(
        "masking",
        len(parts) * (1 + options.draws),
        unit="set of boxes",
        every=1 + options.draws,
    ) as progress:
        by_layer = correspondence(
            net,
            net.preprocess(annotated.images),
            parts,
            layers=options.layers and named_layers(arch, options.layers),
            draws=options.draws,
            seed=options.seed,
            progress=progress.update,
        )
    draw(results, net, annotated, by_layer, options.seed)
    results.metrics(
        {
            "architecture": arch.name,
            "data": annotated.source,
            "images": len(names),
            "draws": options.draws,
            "boxes": {
                part: dict(zip(names, boxes, strict=True))
                for part, boxes in parts.items()
            },
            "layers": {
                layer: {
                    "parts": describe(x),
                    "mixed": x.mixed.mean(),
                    "mixed_spread_over_draws": x.mixed.std(),
                }
                for layer, x in by_layer.items()
            },
        }
    )
    results.config(options)
    digests = {
        "images": hashlib.sha256(annotated.images.tobytes()).hexdigest(),
        "weights": weights_digest(options.weights),
    }
    if options.boxes is not None:
        digests["boxes"] = hashlib.sha256(options.boxes.read_bytes()).hexdigest()
    results.manifest(seed=options.seed, digests=digests)
    print(as_text(by_layer))
    print(
        f"{len(names)} images, {counted(options.draws, 'draw')}; "
        f"figures in {results.path}"
    )


def read_boxes(file: Path) -> dict[str, dict[str, Row]]:
    """Read the boxes of a CSV file, by image and then by part.

    Raises:
        DataNotFoundError: There is no such file.
        UsageError: The file is malformed, an image has a part twice or not at all, or
            there are fewer than two images; the message names the line.
    """
    if not file.is_file():
        raise DataNotFoundError(f"there is no file {file} of boxes")
    data = file.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{file}, line {line}: not UTF-8") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    table: dict[str, dict[str, Row]] = {}
    header: list[str] | None = None
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            where = f"{file}, line {reader.line_num}"
            if header is None:
                header = cells
                if sorted(header) != sorted(_COLUMNS):
                    raise UsageError(
                        f"{where}: the header must be {','.join(_COLUMNS)}, "
                        f"not {','.join(header)}"
                    )
                continue
            if len(cells) != len(header):
                raise UsageError(f"{where}: {len(cells)} fields, not {len(header)}")
            values = dict(zip(header, cells, strict=True))
            image, part = values["image"], values["part"]
            if not image or not part:
                raise UsageError(f"{where}: no {'part' if image else 'image'} is named")
            # An image may have several names.
            image = str(int(image) if is_number(image) else Path(image))
            rows = table.setdefault(image, {})
            if part in rows:
                raise UsageError(
                    f"{where}: {part} of {image} is also in line {rows[part].line}"
                )
            rows[part] = Row(reader.line_num, _edges(values, where))
    except csv.Error as error:
        raise UsageError(f"{file}, line {reader.line_num}: {error}") from error
    if not table:
        raise UsageError(f"{file}, line {reader.line_num + 1}: there are no boxes")
    parts = dict.fromkeys(part for rows in table.values() for part in rows)
    for image, rows in table.items():
        if missing := [part for part in parts if part not in rows]:
            line = next(iter(rows.values())).line
            raise UsageError(f"{file}, line {line}: {image} has no {missing[0]}")
    if len(table) < 2:
        raise UsageError(
            f"{file}, line {reader.line_num}: at least two images are needed, not 1"
        )
    return {
        image: {part: rows[part] for part in parts} for image, rows in table.items()
    }


def is_number(image: str) -> bool:
    """Whether the name of an image is a number and not a file."""
    return image.isascii() and image.isdecimal() and len(image) < 10


def _edges(values: Mapping[str, str], where: str) -> tuple[int, int, int, int]:
    edges = []
    for name in _COLUMNS[2:]:
        try:
            edges.append(int(values[name]))
        except ValueError:
            raise UsageError(
                f"{where}: {name} must be a whole number, not {values[name]!r}"
            ) from None
    top, left, bottom, right = edges
    return top, left, bottom, right


def load_annotated(
    net: Pretrained, table: Mapping[str, Mapping[str, Row]], options: Options
) -> Annotated:
    """The images that a CSV file names, and its boxes in pixels of the network.

    Raises:
        DataNotFoundError: There is no such image.
        UsageError: A box is not in its image, or outside the part that the network
            sees.
    """
    assert options.boxes is not None
    file, folder = options.boxes, options.images or options.boxes.parent
    enough("limit", options.limit, len(table))
    table = dict(list(table.items())[: options.limit])
    kept = net.preprocess.mean.shape[:2]
    input_hw = net.model.arch.input_hw
    source = f"boxes of {file.name}"
    stored: dict[str, np.ndarray] = {}
    numbers = [int(image) for image in table if is_number(image)]
    if numbers:
        name = options.dataset or trained_on(net)
        dataset = load_dataset(name, "test", options.data_dir, max(numbers) + 1)
        source += f", {dataset.source}"
        for number in numbers:
            if number >= len(dataset):
                line = next(iter(table[str(number)].values())).line
                raise UsageError(
                    f"{file}, line {line}: there is no test image {number}, only 0 to "
                    f"{len(dataset) - 1}"
                )
            stored[str(number)] = dataset.images[number]
    images = []
    boxes: dict[str, list[np.ndarray]] = {}
    for image, rows in table.items():
        line = next(iter(rows.values())).line
        if image not in stored:
            try:
                with silent_decoders():
                    stored[image] = load_photograph(folder / image)
            except DataNotFoundError as error:
                raise DataNotFoundError(f"{file}, line {line}: {error}") from error
        size = stored[image].shape[:2]
        images.append(fit_photograph(stored[image], kept))
        for part, row in rows.items():
            where = f"{file}, line {row.line}"
            try:
                check_box(row.box, size)
            except ValueError as error:
                raise UsageError(f"{where}: {error}") from error
            box = convert_box(row.box, size, kept, input_hw)
            try:
                check_box(box.tolist(), input_hw)
            except ValueError as error:
                raise UsageError(
                    f"{where}: in the center square, at the network's "
                    f"{input_hw[0]} x {input_hw[1]} pixels, {error}"
                ) from error
            boxes.setdefault(part, []).append(box)
    return Annotated(
        list(table),
        np.stack(images),
        {part: np.stack(rows) for part, rows in boxes.items()},
        source,
    )


def make_annotated(net: Pretrained, name: str, count: int) -> Annotated:
    """Generated shapes of one class, and their corners."""
    hw = net.preprocess.mean.shape[:2]
    total = count * len(SHAPES)
    indices, corners = shape_parts(name, total, hw, seed=1)
    shapes = make_shapes(total, hw, seed=1).take(indices)
    input_hw = net.model.arch.input_hw
    boxes = {
        part: np.stack([convert_box(box, hw, hw, input_hw) for box in rows])
        for part, rows in corners.items()
    }
    return Annotated(
        [str(index) for index in indices],
        shapes.images,
        boxes,
        f"{name}s among {shapes.source}",
    )


def convert_box(
    box: Sequence[int] | np.ndarray,
    stored: tuple[int, int],
    kept: tuple[int, int],
    input_hw: tuple[int, int],
) -> np.ndarray:
    """Convert a box from pixels of a stored image to pixels of the network.

    The center square of the image is resized, its center of size `kept` cut out, as by
    `fit_photograph`, and that is resized to `input_hw`. A pixel belongs to the box if
    its center does. The arithmetic is in whole numbers, without rounding.
    """
    side, large = min(stored), max(kept)
    edges = []
    for index, edge in enumerate(box):
        axis = index % 2
        inside = (int(edge) - (stored[axis] - side) // 2) * large
        inside -= (large - kept[axis]) // 2 * side
        numerator, denominator = inside * input_hw[axis], side * kept[axis]
        # The first center at or after the edge: ceil(edge - 1/2).
        first = -((denominator - 2 * numerator) // (2 * denominator))
        edges.append(min(max(first, 0), input_hw[axis]))
    return np.array(edges)


def draw(
    results: Results,
    net: Pretrained,
    annotated: Annotated,
    by_layer: Mapping[str, Correspondence],
    seed: int,
) -> None:
    """Draw the masked images, and how alike features change."""
    from zfnet_jax import viz

    arch, count = net.model.arch, len(annotated.names)
    shown = slice(_MOST_DRAWN)
    pictures = net.preprocess.pictures(annotated.images[shown])
    mean = mean_picture(net)
    part, boxes = next(iter(annotated.boxes.items()))
    random = draw_boxes(boxes, arch.input_hw, 1, seed)[0]
    masks = {
        name: places[shown]
        for name, places in {**annotated.boxes, f"random, as {part}": random}.items()
    }
    of = f"{len(pictures)} of " if len(pictures) < count else ""
    figure, _ = viz.masked_images(
        f"What is masked: {of}{count} images",
        [Path(name).stem for name in annotated.names[shown]],
        pictures,
        {
            name: np.asarray(mask_boxes(pictures, places, fill=mean))
            for name, places in masks.items()
        },
        masks,
    )
    results.figure("masked_images", figure)
    figure, _ = viz.correspondence_chart(
        f"How alike hiding a part changes {count} images, {arch.name}",
        list(annotated.boxes),
        {layer: x.delta for layer, x in by_layer.items()},
        {layer: x.spread for layer, x in by_layer.items()},
        {layer: x.random for layer, x in by_layer.items()},
        {layer: x.mixed for layer, x in by_layer.items()},
        {layer: (x.p_random, x.p_mixed) for layer, x in by_layer.items()},
    )
    results.figure("correspondence", figure)


def describe(result: Correspondence) -> dict[str, dict[str, float]]:
    """Metrics of a layer, by part."""
    columns = {
        "delta": result.delta,
        "spread_over_pairs": result.spread,
        "changed": result.changed,
        "random": result.random.mean(1),
        "random_spread_over_draws": result.random.std(1),
        "random_changed": result.random_changed,
        "p_random": result.p_random,
        "p_mixed": result.p_mixed,
    }
    return {
        part: {name: float(column[index]) for name, column in columns.items()}
        for index, part in enumerate(result.parts)
    }


def as_text(by_layer: Mapping[str, Correspondence]) -> str:
    """Table 1 as text; ± is the spread over pairs of images or over random draws."""
    rows: list[Sequence[str]] = [
        ("layer", "masked", "Δ", "random boxes", "p", "mixed parts", "p", "changed")
    ]
    for layer, result in by_layer.items():
        mixed = f"{result.mixed.mean():.3f} ± {result.mixed.std():.3f}"
        for part, x in describe(result).items():
            delta = f"{x['delta']:.3f} ± {x['spread_over_pairs']:.3f}"
            random = f"{x['random']:.3f} ± {x['random_spread_over_draws']:.3f}"
            by_random, by_mixed = f"{x['p_random']:.3f}", f"{x['p_mixed']:.3f}"
            changed = f"{x['changed']:.0%}, random {x['random_changed']:.0%}"
            cells = [layer, part, delta, random, by_random, mixed, by_mixed, changed]
            rows.append(cells)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


if __name__ == "__main__":
    sys.exit(main(run, Options))
