"""The network and the images of an experiment, as its command line names them."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

import zfnet_jax as zf
from experiments.distributed import DistributedRun
from experiments.harness import Metrics, Positive, Run, UserError
from experiments.progress import say
from zfnet_jax.arch import ARCHITECTURES
from zfnet_jax.data import (
    TORCHVISION,
    Dataset,
    DatasetImages,
    LabeledImages,
    Normalization,
    Photographs,
    Preprocessing,
    load_dataset,
    open_labeled,
)
from zfnet_jax.data.images import stored_shape, translate_labels
from zfnet_jax.data.labeled import holds_records
from zfnet_jax.data.preprocessing import Fit
from zfnet_jax.files import digest
from zfnet_jax.imagenet.classes import CLASS_NAMES, WORDNET_IDS
from zfnet_jax.imagenet.registry import PUBLIC
from zfnet_jax.layers import parent
from zfnet_jax.networks import Network
from zfnet_jax.weights import BareWeightsError, find_weights

Images = DatasetImages | Photographs
Fill = Literal["gray", "mean", "black", "white"]

_LEVELS = {"gray": 128, "mean": 128, "black": 0, "white": 255}


@dataclasses.dataclass(kw_only=True)
class NetworkRun(Run):
    """A run on a network and images.

    Attributes:
        weights: Trained network: a name, such as zfnet32-cifar10 (the default),
            zfnet-imagenet, vgg16 or resnet50, or a weight file.
        arch: Architecture of a file of bare weights with PyTorch's names, such as
            zfnet, alexnet or vgg16. Its images are normalized as for torchvision's
            models.
        num_classes: Classes in a file of bare weights, for those of a published network
            without --arch. By default the architecture's.
        model: Any JAX model, as module:function. The function returns a network, or a
            model and its preprocessing; it is called with --weights if it takes an
            argument.
        image: Photograph, folder of photographs, or records that
            experiments.prepare_images wrote, instead of a dataset. Subfolders are
            classes, matched to those of the network by name. Of records, the validation
            images are taken, or those that a command's --split names.
        fit: How to bring a photograph to the network's shape: crop to the center, pad
            with gray, or stretch.
        dataset: Source of the images, by default the one the network was trained on.
        data_dir: Folder of CIFAR-10, by default $TFDS_DATA_DIR.
    """

    weights: str | None = None
    arch: str | None = None
    num_classes: Positive | None = None
    model: str | None = None
    image: Annotated[Path | None, tyro.conf.arg(aliases=["--images"])] = None
    fit: Fit = "crop"
    dataset: Literal["cifar10", "shapes"] | None = None
    data_dir: Path | None = None

    default_weights = "zfnet32-cifar10"

    @functools.cached_property
    def net(self) -> Network:
        """The network of --model or --weights."""
        if self.model is not None:
            return self._call_model(self.model)
        weights = self.default_weights if self.weights is None else self.weights
        return self._load(weights)

    def _load(self, weights: str) -> Network:
        """Load a known network, or bare weights as the options describe them."""
        self.digests["weights"] = digest(find_weights(weights))
        try:
            net = zf.load(weights)
        except BareWeightsError as error:
            if self.arch is not None:
                return self._load_bare(weights)
            if self.num_classes is None:
                raise UserError(
                    f"--weights {weights} has weights alone: give --arch, or for a "
                    "published network with other classes --num-classes"
                ) from error
            names = [f"class {label}" for label in range(self.num_classes)]
            return zf.load(weights, class_names=names)
        if self.arch is not None or self.num_classes is not None:
            # Its own preprocessing would be lost without notice.
            raise UserError(
                f"--weights {weights} describes its network: omit --arch and "
                "--num-classes"
            )
        return net

    def _load_bare(self, weights: str) -> Network:
        if self.arch not in ARCHITECTURES:
            raise UserError(
                f"--arch {self.arch}: give one of {', '.join(ARCHITECTURES)}"
            )
        model = zf.load_weights(weights, ARCHITECTURES[self.arch], self.num_classes)
        return zf.network(model, preprocess=TORCHVISION)

    def _call_model(self, name: str) -> Network:
        module, _, function = name.partition(":")
        try:
            build = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(
                f"--model {name}: {error}; give module:function, importable from here"
            ) from error
        if not callable(build):
            raise UserError(f"--model {name}: {function} is not a function")
        takes_weights = bool(inspect.signature(build).parameters)
        if takes_weights and self.weights is None:
            raise UserError(f"--model {name} takes weights: give --weights")
        if self.weights is not None:
            if not takes_weights:
                raise UserError(f"--model {name} takes no weights: omit --weights")
            self.digests["weights"] = digest(find_weights(self.weights))
        built = build(self.weights) if takes_weights else build()
        model, preprocess = built if isinstance(built, tuple) else (built, None)
        return zf.network(model, preprocess=preprocess)

    @property
    def network_name(self) -> str:
        """Name of the network for titles."""
        if (name := self._metadata.get("name")) is not None:
            return str(name)
        arch = getattr(self.net.model, "arch", None)
        return arch.name if arch is not None else str(self.model).rpartition(".")[2]

    @property
    def _metadata(self) -> Mapping[str, Any]:
        return getattr(self.net, "metadata", {})

    @property
    def dataset_name(self) -> Literal["cifar10", "shapes"]:
        """Name of the dataset: --dataset, or the one the network was trained on."""
        if self.dataset is not None:
            return self.dataset
        is_public = self._metadata.get("name") in PUBLIC
        if is_public or self._metadata.get("dataset") == "imagenet":
            raise UserError(
                f"{self.network_name} was trained on photographs: give --image, or "
                "--dataset for small images"
            )
        return "shapes" if self._metadata.get("dataset") == "shapes" else "cifar10"

    def images(
        self,
        limit: int | None = None,
        split: Literal["train", "test"] = "test",
        record_as: str = "data",
    ) -> Images:
        """Open the first images of --image or of a dataset; record their digest.

        Where the network has all their classes by name, their labels are its own.
        """
        if self.image is not None and self.dataset is not None:
            raise UserError("--image and --dataset both name the images: give one")
        source: Any = self.image and open_folder(self.image, split)
        if source is None:
            source = load_dataset(self.dataset_name, split, self.data_dir, limit)
        images = self.net.load_images(source, self.fit)
        if limit is not None and limit < len(images):
            images = images.take(np.arange(limit))
        if jax.process_index() == 0:  # it may read all files
            self.digests[record_as] = images.digest()
        names = self.net.class_names
        if names is None:
            return images
        known = zip(WORDNET_IDS, CLASS_NAMES, strict=True)
        ids = {x: names.index(name) for x, name in known if names.count(name) == 1}
        unknown = set(images.class_names or ()) - {*names, *ids}
        if unknown and len(unknown) < len(images.class_names or ()):
            say(
                f"the folders are not taken for labels: {self.network_name} has no "
                f"class {min(unknown)!r}"
            )
        return translate_labels(images, names, ids)

    def labeled_images(self, limit: int | None) -> Images:
        """Open images as `images` does; their classes must be those of the network."""
        images = self.images(limit)
        if not self.has_labels_for(images):
            raise UserError(
                f"the classes of {images.source} are not those of {self.network_name}: "
                "choose another --dataset, or an --image folder whose subfolders are "
                "named after its classes"
            )
        return images

    def has_labels_for(self, images: Images) -> bool:
        """Tell whether some images have labels, which are classes of the network."""
        if images.labels is None or images.class_names is None:
            return False
        if self.net.class_names is None:
            return len(images.class_names) == self.net.num_classes
        return images.class_names == self.net.class_names

    def targets(self, images: Images) -> np.ndarray:
        """Find each image's class: its label, or the prediction if that is unknown."""
        if images.labels is not None and self.has_labels_for(images):
            return images.labels
        output = self.net.output
        return self.net.activations(images, output)[output].argmax(-1).astype(np.int32)

    def class_name(self, label: int) -> str:
        """Name of a class of the network, or "class 7"."""
        names = self.net.class_names
        return names[label] if names is not None else f"class {label}"

    def default_layers(self) -> tuple[str, ...]:
        """Names of the layers that most say what a network does; its output at least.

        These are its convolutions and, instead of those inside a block, the block.
        """
        layers = self.net.layers
        # Where the result is the mean of a map per class, that map is no feature.
        is_average = layers[self.net.output].kind == "mean pool"
        names = tuple(
            name
            for name, layer in layers.items()
            if layer.kind in ("conv", "named", "relu")
            and len(layer.shape) == 3
            and parent(name) not in layers
            and (layer.shape[2] != self.net.num_classes or not is_average)
        )
        return names or (self.net.output,)

    def check_units(self, layers: Sequence[str], units: Sequence[int]) -> None:
        """Refuse --units that are not of a single layer."""
        if units and len(layers) != 1:
            raise UserError("--units needs exactly one --layers")
        for unit in units:
            width = self.net.layer(layers[0]).shape[-1]
            if not 0 <= unit < width:
                raise UserError(
                    f"--units {unit}: {layers[0]} has {width} units (0 to {width - 1})"
                )

    def select_units(
        self, units: Sequence[int], count: int, layer: str, candidates: np.ndarray
    ) -> np.ndarray:
        """Choose the units of a layer to draw: --units, or random live candidates."""
        if units:
            return np.array(units)
        if not candidates.size:
            raise UserError(f"all units of {layer} are dead: give other --layers")
        return np.sort(self.rng.permutation(candidates)[:count])

    def describe_data(self, images: Images) -> Metrics:
        """Name the network and the images in metrics.json."""
        yield "network", self.network_name
        yield "data", images.source
        yield "images", len(images)


def open_folder(
    path: Path, split: Literal["train", "test"] = "test"
) -> Path | LabeledImages:
    """Open the records of a split; other folders and files are known by their paths."""
    if not holds_records(path):
        return path
    return open_labeled(path, "train" if split == "train" else "val")


@dataclasses.dataclass(kw_only=True)
class NetworksRun(NetworkRun):
    """A run on several networks and the same images.

    Attributes:
        weights: Trained networks: names or weight files, one per --weights. By default
            zfnet32-cifar10.
    """

    weights: tyro.conf.UseAppendAction[tuple[str, ...]] = ()  # pyright: ignore[reportIncompatibleVariableOverride]

    def split(self) -> list[NetworkRun]:
        """Make a run for each network; they share the options and the images."""
        options: dict[str, Any] = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(NetworkRun)
        }
        runs = []
        for number, weights in enumerate(self.weights or (None,), 1):
            run = NetworkRun(**{**options, "weights": weights})
            if len(self.weights) > 1:
                self.digests[f"network {number}"] = run.digests
            else:
                run.digests = self.digests
            runs.append(run)
        if self.image is None:
            for run in runs:
                run.dataset = runs[0].dataset_name
        return runs


@dataclasses.dataclass(kw_only=True)
class SharedRun(NetworkRun, DistributedRun):
    """A run on a network and images that several processes may share."""


@dataclasses.dataclass(kw_only=True)
class SharedNetworksRun(NetworksRun, DistributedRun):
    """A run on several networks that several processes may share."""


def name_networks(runs: Sequence[NetworkRun]) -> list[str]:
    """Name networks for titles, and number those of the same name."""
    names = [run.network_name for run in runs]
    return [
        f"{name} ({names[: index + 1].count(name)})" if names.count(name) > 1 else name
        for index, name in enumerate(names)
    ]


def name_image(images: Images, index: int) -> str:
    """Name an image: its file, or its place in the dataset."""
    if isinstance(images, Photographs):
        return images.names[index]
    return f"test image {index}"


def average_known(values: np.ndarray) -> float:
    """Average the finite values; NaN if there are none."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")


def make_cover(net: Network, fill: Fill) -> tuple[np.ndarray, np.ndarray]:
    """Make the image that covers others: preprocessed, and as a picture."""
    shape = stored_shape(net.image_shape, net.preprocess)
    picture = np.full(shape, _LEVELS[fill], np.uint8)
    if fill == "mean" and isinstance(net.preprocess, Normalization | Preprocessing):
        mean = getattr(net.preprocess, "center", net.preprocess.mean)
        picture[...] = np.rint(mean)
    blank = Dataset(picture[None], np.zeros(1, np.int32), ("cover",), "cover")
    image = net.load_images(blank)
    # After preprocessing the mean image is 0.
    cover = np.zeros(net.image_shape, np.float32) if fill == "mean" else image[0]
    return cover, image.pictures[0]
