"""Features on classes they were not trained on: Tables 4, 5 and Fig. 9.

    python -m experiments.transfer --dataset cifar10 --weights WEIGHTS --per-class 5 20

A network stays as it is, and a linear SVM and a softmax are trained on the features of
one of its layers with a few images per class. The same architecture is trained from
scratch on the same images. All are tested on other images, on the same ones whatever
the number of training images. An accuracy is the mean over classes of the share that is
classified correctly.

Only training images select the penalty of a classifier. A network from scratch takes
the same number of steps for every number of images, by the fast recipe in batches of
64. More steps make it better. There is none for networks other than a ConvNet. Images
of CIFAR-10 and of shapes are those of the test set, which the shipped networks have not
been trained on.

What to expect is in docs/paper/transfer.md. With images of 32 x 32 a network from
scratch takes one minute or two on two CPU cores, the classifiers a minute in all.
Caltech-101 needs to be prepared (tfds build caltech101 --file_format array_record);
Caltech-256 and any other images are a folder with a folder per class (--images FOLDER).
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

import zfnet_jax as zf
from experiments.harness import Metrics, Positive, UserError, main
from experiments.inputs import Images, NetworkRun, open_folder
from experiments.progress import plural, say, say_table
from zfnet_jax.analysis.probe import PENALTIES, Classifier
from zfnet_jax.analysis.transfer import Transfer, train_from_scratch
from zfnet_jax.analysis.transfer import transfer as transfer_features
from zfnet_jax.data import fit_photograph, load_caltech101, load_dataset
from zfnet_jax.data.images import crop_share, stored_shape
from zfnet_jax.results import spell_mean, spread

SCRATCH = dataclasses.replace(zf.FAST, batch_size=64)
NAMES: dict[Classifier, str] = {"svm": "SVM", "softmax": "softmax"}
_SCRATCH = "from scratch"

# Percent correct in Tables 4 and 5, by training images per class, of a softmax on a
# network trained on ImageNet and of one from scratch; and the folders that the archives
# of the two datasets unpack to.
PAPER = {
    "Caltech-101": {
        "softmax": {15: 83.8, 30: 86.5},
        _SCRATCH: {15: 22.8, 30: 46.5},
    },
    "Caltech-256": {
        "softmax": {15: 65.7, 30: 70.6, 45: 72.7, 60: 74.2},
        _SCRATCH: {15: 9.0, 30: 22.5, 45: 31.2, 60: 38.8},
    },
}
_FOLDERS = {
    "101_ObjectCategories": "Caltech-101",
    "256_ObjectCategories": "Caltech-256",
}


@dataclasses.dataclass(kw_only=True)
class TransferRun(NetworkRun):
    """A run of a network on images of classes other than its own.

    Attributes:
        image: Folder with a folder of photographs per class, or validation images that
            experiments.prepare_images wrote, instead of a dataset.
        dataset: Source of the images; shapes by default.
        data_dir: Folder of the dataset, by default $TFDS_DATA_DIR.
    """

    image: Annotated[Path | None, tyro.conf.arg(name="images")] = None
    dataset: Literal["caltech101", "cifar10", "shapes"] | None = None  # pyright: ignore[reportIncompatibleVariableOverride]

    def open_images(self) -> Images:
        """Open all images of --images or of a dataset; record their digest."""
        net = self.net
        if self.image is not None and self.dataset is not None:
            raise UserError("--images and --dataset both name the images: give one")
        source: Any = self.image and open_folder(self.image)
        if self.dataset == "caltech101":
            size = stored_shape(net.image_shape, net.preprocess)[:2]
            how = {"fit": self.fit, "crop": crop_share(net.preprocess)}
            fit = functools.partial(fit_photograph, size=size, **how)
            source = load_caltech101(self.data_dir, size, fit)
        elif source is None:
            source = load_dataset(self.dataset or "shapes", "test", self.data_dir)
        images = net.load_images(source, self.fit)
        if images.labels is None:
            raise UserError(
                f"{images.source} have no classes: give a subfolder for each"
            )
        self.digests["data"] = images.digest()
        return images

    @property
    def paper_dataset(self) -> str | None:
        """Name of the images in the paper, if they are a dataset of the paper's."""
        if self.dataset == "caltech101":
            return "Caltech-101"
        return None if self.image is None else _FOLDERS.get(self.image.resolve().name)


def transfer(
    run: TransferRun,
    per_class: tuple[Positive, ...] = (15, 30),
    draws: Positive = 5,
    layer: str | None = None,
    test_per_class: Positive | None = None,
    penalties: tuple[float, ...] = PENALTIES,
    scratch_steps: int = 300,
) -> Metrics:
    """Train new classifiers on frozen features with few images per class.

    Args:
        per_class: Training images per class.
        draws: Draws of training and test images.
        layer: Layer of the features, by default the last hidden one without positions.
        test_per_class: Test images per class at most (the paper takes 50 of
            Caltech-101); by default all that do not train.
        penalties: Penalties to select from.
        scratch_steps: Steps of each network trained from scratch; 0 trains none.
    """
    if scratch_steps < 0:
        raise UserError(f"--scratch-steps {scratch_steps}: give 0 or more")
    counts = tuple(sorted(per_class))
    images = run.open_images()
    labels = read_labels(images, counts)
    how: Any = {"per_class": counts, "draws": draws, "seed": run.seed}
    how |= {"test_per_class": test_per_class}
    result = transfer_features(
        run.net,
        images,
        labels,
        layer=layer,
        penalties=penalties,
        progress=run.progress("training classifiers on the features"),
        **how,
    )
    # In this order the colors are those of the paper's curves beside them.
    accuracies = {NAMES["softmax"]: result.accuracies["softmax"]}
    if scratch_steps and run.net.is_convnet:
        accuracies[_SCRATCH] = measure_scratch(run, images, labels, scratch_steps, how)
    accuracies[NAMES["svm"]] = result.accuracies["svm"]
    run.end_progress()
    if scratch_steps and not run.net.is_convnet:
        say(f"{run.network_name} is not a ConvNet: none is trained from scratch")
    draw(run, result, accuracies, images.source)
    say_accuracies(accuracies, counts, run.paper_dataset)
    yield "network", run.network_name
    yield "data", images.source
    yield "layer", result.layer
    yield "classes", len(result.test_images)
    yield "per_class", counts
    yield "draws", draws
    yield "test_images", int(result.test_images.sum())
    yield "test_images_of_each_class", result.test_images
    yield "chance", 1 / len(result.test_images)
    yield "scratch_steps", scratch_steps if _SCRATCH in accuracies else None
    yield "accuracy", describe(accuracies, counts)
    yield "penalties", {name: result.penalties[key] for key, name in NAMES.items()}
    if run.paper_dataset is not None:
        yield "paper_percent", PAPER[run.paper_dataset]


def read_labels(images: Images, counts: tuple[int, ...]) -> np.ndarray:
    """Return the labels; refuse more training images than a class has besides one."""
    labels, names = images.labels, images.class_names
    if labels is None or names is None:
        raise UserError(f"{images.source} have no classes: give a subfolder for each")
    sizes, most = np.bincount(labels, minlength=len(names)), max(counts, default=0)
    small = int(sizes.argmin())
    if sizes[small] <= most:
        raise UserError(
            f"--per-class {most}: {names[small]} has "
            f"{plural(int(sizes[small]), 'image')}, and at least one has to test; ask "
            "for fewer"
        )
    return labels


def measure_scratch(
    run: TransferRun, images: Images, labels: np.ndarray, steps: int, how: Any
) -> np.ndarray:
    """Train the network's architecture on the training images alone, and test it."""
    return train_from_scratch(
        run.net.model.arch,
        images.pictures,
        labels,
        recipe=SCRATCH,
        steps=steps,
        progress=run.progress("training networks from scratch"),
        **how,
    )


def draw(
    run: TransferRun,
    result: Transfer,
    accuracies: Mapping[str, np.ndarray],
    source: str,
) -> None:
    """Draw the curves, and the paper's beside them."""
    from zfnet_jax.viz.transfer import accuracy_by_count

    draws = len(accuracies["SVM"])
    shown = "mean and standard deviation" if draws > 1 else "values"
    panels = {f"Classifiers on {result.layer}": (result.per_class.tolist(), accuracies)}
    if (dataset := run.paper_dataset) is not None:
        rows = PAPER[dataset]
        curves = {
            name: np.array([[*values.values()]]) / 100 for name, values in rows.items()
        }
        panels[f"{dataset} in the paper"] = ([*rows[_SCRATCH]], curves)
    figure = accuracy_by_count(
        f"Transfer of {run.network_name} to other classes",
        f"{source}. Mean of the classes' accuracies on "
        f"{int(result.test_images.sum()):,} test images; {shown} of "
        f"{plural(draws, 'draw')}. Dotted: chance.",
        panels,
        1 / len(result.test_images),
    )
    run.figure("transfer", figure)


def say_accuracies(
    accuracies: Mapping[str, np.ndarray], counts: tuple[int, ...], dataset: str | None
) -> None:
    """Print a table with a row for each number of images."""
    paper = PAPER.get(dataset or "", {})
    rows = [["images per class", *accuracies, *(f"paper, {name}" for name in paper)]]
    for column, count in enumerate(counts):
        cells = [
            spell_mean(each[:, column].mean(), spread(each[:, column]), ".1%")
            for each in accuracies.values()
        ]
        theirs = [
            f"{values[count]}%" if count in values else "" for values in paper.values()
        ]
        rows.append([str(count), *cells, *theirs])
    say_table(rows)


def describe(
    accuracies: Mapping[str, np.ndarray], counts: tuple[int, ...]
) -> dict[str, dict[str, Any]]:
    """Summarize the accuracies for metrics.json, by classifier and number of images."""
    return {
        name: {
            str(count): {
                "mean": values.mean(),
                "spread": spread(values),
                "accuracy_of_each": values,
            }
            for count, values in zip(counts, each.T, strict=True)
        }
        for name, each in accuracies.items()
    }


if __name__ == "__main__":
    sys.exit(main(transfer))
