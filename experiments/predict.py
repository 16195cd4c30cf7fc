"""Classify photographs, or measure a network on test images, by one view or ten crops.

    python -m experiments.predict --image PHOTOGRAPH_OR_FOLDER --ten-crop
    python -m experiments.predict --ten-crop

With --image: the most probable classes of a photograph, or of each in a folder. Without
it: top-1 and top-5 accuracy over the test images of the network's own dataset. The
paper's ten crops (section 3) are the corners and the center, each also mirrored, of an
image 256/224 times as large as a crop; their probabilities are averaged. Test images
are only as large as a crop, so they are extended by reflection. The paper's errors on
ImageNet: 38.4% top-1 and 16.5% top-5. Expected with the shipped weights: ten seconds
for a folder of 50 photographs; two minutes for the 10,000 test images of CIFAR-10, with
top-1 and top-5 accuracies of 87.13% and 99.54% by one view, 88.37% and 99.61% by ten
crops.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    main,
    silent_decoders,
    weights_digest,
)
from zfnet_jax.data import (
    Dataset,
    find_photographs,
    fit_photograph,
    load_photograph,
    ten_crop_size,
)
from zfnet_jax.files import DataNotFoundError
from zfnet_jax.training import class_probabilities
from zfnet_jax.weights import Pretrained

# The most images in the figure, and bars beside each.
_SHOWN, _BARS = 20, 10
View = Literal["one_view", "ten_crop"]
_VIEWS: dict[View, str] = {"one_view": "one view", "ten_crop": "ten crops"}
_NOTES: dict[View, str] = {
    "one_view": "pictures as the network sees them",
    "ten_crop": "crops are cut out of these pictures",
}


@dataclasses.dataclass(frozen=True)
class Options(ImageOptions):
    """Name the most probable classes of photographs, or measure how often they hold."""

    image: Path | None = None
    """A photograph, or a folder of them: JPEG, PNG, WebP, TIFF, GIF and others, of any
    size and mode. By default the test images of a dataset are classified."""
    ten_crop: bool = False
    """Average over ten crops; for test images in addition to one view."""
    top: int | None = None
    """Number of the most probable classes; by default 5, or all if there are fewer."""
    batch_size: int = 50
    """Images per batch; memory grows with this, not with the number of files."""
    out: Path = Path("results/predict")
    """Folder for results; files of the same names are replaced."""


class Ranked(NamedTuple):
    """The k most probable classes of n images, best first: two arrays [n, k]."""

    classes: np.ndarray
    probabilities: np.ndarray

    def accuracy(self, labels: np.ndarray, k: int) -> float:
        """Fraction of images whose true class is among the first `k`."""
        return float((self.classes[:, :k] == labels[:, None]).any(1).mean())


class Photographs:
    """Photographs that are read one by one, at the network's size.

    Attributes:
        names: Names of those read so far.
        shown: The first of these, as pictures.
        skipped: Name of each damaged file, and the reason.
        digest: sha256 of the files read, one after the other.
    """

    def __init__(self, files: Sequence[Path], size: tuple[int, int]) -> None:
        """Remember the files; nothing is read yet."""
        self._files, self._size = files, size
        self.names: list[str] = []
        self.shown: list[np.ndarray] = []
        self.skipped: list[dict[str, str]] = []
        self.digest = hashlib.sha256()

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the center of each photograph; report damaged files on stderr."""
        for file in self._files:
            # Not every name is UTF-8.
            name = os.fsencode(file).decode(errors="replace")
            try:
                with silent_decoders():
                    view = fit_photograph(load_photograph(file), self._size)
                content = file.read_bytes()
            except (DataNotFoundError, OSError) as error:
                if len(self._files) == 1:
                    raise
                reason = " ".join(str(error).split())
                print(f"skipped: {reason}", file=sys.stderr, flush=True)
                self.skipped.append({"image": name, "reason": reason})
                continue
            self.digest.update(content)
            self.names.append(name)
            if len(self.shown) < _SHOWN:
                self.shown.append(view)
            yield view


def run(options: Options) -> None:
    """Classify, draw and write the results."""
    at_least(1, options, "top", "batch_size", "limit")
    if options.image is not None and options.dataset is not None:
        raise UsageError("--dataset is for test images: omit it with --image")
    results = Results(options.out)
    net = options.network()
    classes = len(net.class_names)
    top = min(5, classes) if options.top is None else options.top
    if top > classes:
        raise UsageError(f"--top {top}: the network has {classes} classes")
    if options.image is None:
        digest = evaluate(options, net, top, results)
    else:
        digest = predict(options, options.image, net, top, results)
    results.config(options)
    results.manifest(
        seed=0,  # nothing is random
        digests={"data": digest, "weights": weights_digest(options.weights)},
    )


def predict(
    options: Options, image: Path, net: Pretrained, top: int, results: Results
) -> str:
    """Classify a photograph or a folder of them, and return their digest."""
    files = find_photographs(image) if image.is_dir() else [image]
    enough("limit", options.limit, len(files))
    files = files[: options.limit]
    view: View = "ten_crop" if options.ten_crop else "one_view"
    rows, columns, _ = net.preprocess.mean.shape
    size = ten_crop_size((rows, columns)) if options.ten_crop else (rows, columns)
    photographs = Photographs(files, size)
    ranked = classify(options, net, view, photographs, len(files), top)
    names = photographs.names
    if not names:
        raise DataNotFoundError(
            f"none of the {counted(len(files), 'file')} in {image} can be read"
        )
    pictures = np.stack(photographs.shown)
    if not options.ten_crop:
        pictures = net.preprocess.pictures(pictures)
    title = counted(len(names), "photograph")
    captions = [Path(name).name for name in names]
    draw(results, net, title, view, captions, pictures, ranked)
    write_predictions(
        results, net, [{"image": x} for x in names], ranked, photographs.skipped
    )
    results.metrics(
        {
            "architecture": net.model.arch.name,
            "view": view,
            "images": len(names),
            "skipped": len(photographs.skipped),
        }
    )
    for name, classes, chances in zip(names, *ranked, strict=True):
        print(name)
        for index, chance in zip(classes, chances, strict=True):
            print(f"  {chance:7.2%}  {net.class_names[index]}")
    left_out = len(photographs.skipped)
    print(
        counted(len(names), "photograph")
        + (f", {left_out} skipped" if left_out else "")
        + f"; figure in {results.path}"
    )
    return photographs.digest.hexdigest()


def evaluate(options: Options, net: Pretrained, top: int, results: Results) -> str:
    """Classify test images, measure the accuracy, and return their digest."""
    dataset = options.known_images(net)
    images: dict[View, np.ndarray] = {"one_view": dataset.images}
    pictures = net.preprocess.pictures(dataset.images[:_SHOWN])
    if options.ten_crop:
        images["ten_crop"] = extend(dataset)
        pictures = images["ten_crop"][:_SHOWN]
    ks = [k for k in (1, 5) if k <= len(net.class_names)]
    # The accuracies may need more classes than --top asks for.
    count = max(top, *ks)
    by_view: dict[View, Ranked] = {
        view: classify(options, net, view, batch, len(dataset), count)
        for view, batch in images.items()
    }
    accuracies: dict[View, dict[str, float]] = {
        view: {f"top{k}_accuracy": ranked.accuracy(dataset.labels, k) for k in ks}
        for view, ranked in by_view.items()
    }
    view: View = "ten_crop" if options.ten_crop else "one_view"
    ranked = Ranked(*(x[:, :top] for x in by_view[view]))
    right = accuracies[view]["top1_accuracy"]
    title = f"{right:.2%} of {counted(len(dataset), 'image')} right"
    numbered = [f"test image {index}" for index in range(len(pictures))]
    draw(results, net, title, view, numbered, pictures, ranked, dataset.labels)
    rows = [
        {"image": index, "true_class": dataset.class_names[label]}
        for index, label in enumerate(dataset.labels)
    ]
    write_predictions(results, net, rows, ranked, [])
    results.metrics(
        {
            "architecture": net.model.arch.name,
            "data": dataset.source,
            "images": len(dataset),
            **accuracies,
        }
    )
    print(" " * 9, *(f"{f'top-{k}':>8}" for k in ks))
    for name, values in accuracies.items():
        print(f"{_VIEWS[name]:9}", *(f"{value:8.2%}" for value in values.values()))
    shown_images = f"{counted(len(dataset), 'image')} of {dataset.name}"
    print(f"{shown_images}; figure in {results.path}")
    return dataset.digest()


def extend(dataset: Dataset) -> np.ndarray:
    """Extend images by reflection, so that ten crops of their size can be cut out.

    Enlarged, objects would no longer have the size at which the network learned them.
    """
    size = dataset.images.shape[1:3]
    borders = [
        ((large - side) // 2,) * 2
        for large, side in zip(ten_crop_size(size), size, strict=True)
    ]
    return np.pad(dataset.images, ((0, 0), *borders, (0, 0)), "reflect")


def classify(
    options: Options,
    net: Pretrained,
    view: View,
    images: Iterable[np.ndarray],
    count: int,
    k: int,
) -> Ranked:
    """The `k` most probable classes of each of `count` images."""
    classes, chances = [], []
    with Progress(
        f"classifying by {_VIEWS[view]}", count, unit="image", every=-(-count // 10)
    ) as progress:
        for done, probabilities in enumerate(
            class_probabilities(
                net.model,
                net.preprocess,
                images,
                ten_crops=view == "ten_crop",
                batch_size=options.batch_size,
            ),
            1,
        ):
            best = np.argsort(-probabilities, kind="stable")[:k]
            classes.append(best)
            chances.append(probabilities[best])
            if done % options.batch_size == 0:
                progress.update(done)
        progress.update(count)
    return Ranked(np.array(classes), np.array(chances))


def draw(
    results: Results,
    net: Pretrained,
    title: str,
    view: View,
    captions: Sequence[str],
    pictures: np.ndarray,
    ranked: Ranked,
    labels: np.ndarray | None = None,
) -> None:
    """Write the figure of the first few images."""
    from zfnet_jax import viz

    count, classes = len(ranked.classes), ranked.classes[:_SHOWN, :_BARS]
    notes = [_NOTES[view]]
    if count > _SHOWN:
        notes.append(f"the first {_SHOWN} of {count:,} images")
    if ranked.classes.shape[1] > _BARS:
        notes.append(f"the {_BARS} most probable classes")
    if labels is not None:
        notes.append("✓ and bold type mark the true class")
    figure, _ = viz.top_classes(
        f"{title} by {_VIEWS[view]}, {net.model.arch.name}",
        "; ".join(notes),
        pictures,
        captions[:_SHOWN],
        classes,
        ranked.probabilities[:_SHOWN, :_BARS],
        net.class_names,
        None if labels is None else labels[:_SHOWN],
    )
    results.figure("predictions", figure)


def write_predictions(
    results: Results,
    net: Pretrained,
    images: Sequence[Mapping[str, object]],
    ranked: Ranked,
    skipped: Sequence[Mapping[str, str]],
) -> None:
    """Write predictions.json, the most probable classes of each image."""
    predicted = [
        {
            **known,
            "classes": [net.class_names[index] for index in classes],
            "probabilities": chances,
        }
        for known, classes, chances in zip(images, *ranked, strict=True)
    ]
    results.json("predictions.json", {"images": predicted, "skipped": skipped})


if __name__ == "__main__":
    sys.exit(main(run, Options))
