"""A gallery of every unit of a network, to be explored in a browser.

    python -m experiments.gallery
    python -m experiments.gallery --run results/train_cifar10
    python -m experiments.gallery --run results/train_cifar10 --compare 5

Searches images for the strongest activations of every unit of every layer (Fig. 2 of
the paper), projects them to pixels by three backward rules, and writes static pages:
open index.html. One page measures on a few images how much such pictures depend on the
network, as `experiments.sanity` does on many. A page for each class shows which units
speak for it. With --run, the network is that of a training run; if the run kept the
weights of several epochs, each unit's page shows how the unit developed (Fig. 4). The
units most similar to each are named too, and each layer has a map of its units. With
--compare, the units of another network, or of another epoch, are set beside those that
respond to the same images.

Expected with the shipped weights over the 10,000 test images of CIFAR-10: two minutes
on two CPU cores. A second run into the same folder computes only the parts that have
changed, and one after a kill goes on with the search.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, Literal

import zfnet_jax as zf
from experiments.evolution import list_epochs
from experiments.harness import Metrics, Positive, UserError, main
from experiments.inputs import Images, SharedRun
from experiments.progress import say
from zfnet_jax.analysis.sanity import RULES
from zfnet_jax.files import DataNotFoundError
from zfnet_jax.galleries import zip_gallery
from zfnet_jax.galleries.likeness import Layout
from zfnet_jax.networks import Network
from zfnet_jax.relu_rules import Rule


def gallery(
    session: SharedRun,
    layers: tuple[str, ...] = (),
    k: Positive = 9,
    limit: Positive | None = None,
    split: Literal["train", "test"] = "test",
    rules: tuple[Rule, ...] = RULES,
    run: Path | None = None,
    evolution_limit: Positive = 10_000,
    sanity_images: int = 16,
    zip: bool = False,
    layout: Layout = "pca",
    compare: str | None = None,
) -> Metrics:
    """Write pages on which every unit of a network can be explored.

    Args:
        layers: Layers, by default all.
        k: Activations per unit, each of another image.
        limit: Images at most, by default all.
        split: Split of the dataset or records to search.
        rules: Backward rules for ReLUs.
        run: Folder of a training run, instead of --weights. One with --keep-epochs also
            shows how its units developed.
        evolution_limit: Training images to search at each kept epoch, at most.
        sanity_images: Images for the page on how much pictures depend on the network;
            fewer than 2 leave it out.
        zip: Also write the pages as one file, gallery.zip.
        layout: Layout of the maps of similar units; umap needs the extra of that name.
        compare: Another network whose units are matched with these: a name or file as
            for --weights, module:function as for --model, or with --run a kept epoch.
    """
    epochs, files = None, {}
    if run is not None:
        files = find_epochs(session, run)
        networks = {
            epoch: dataclasses.replace(session, weights=str(file)).net
            for epoch, file in files.items()
        }
        if networks:
            training = session.images(evolution_limit, "train", "training data")
            epochs = networks, training
    net, images = session.net, session.images(limit, split)
    result = zf.gallery(
        net,
        images,
        session.path,
        layers=layers or None,
        k=k,
        rules=rules or RULES,
        epochs=epochs,
        sanity_images=sanity_images,
        layout=layout,
        compare=open_other(session, compare, files, limit, split),
        title=f"Units of {name_weights(session, run)}",
        progress=session.progress,
    )
    yield from session.describe_data(images)
    yield (
        "layers",
        {
            layer: {"units": units, "dead": result.dead[layer]}
            for layer, units in result.units.items()
        },
    )
    session.end_progress()
    if zip and session.is_first:
        zip_gallery(result.page.parent)
    say(f"open file://{result.page.resolve()}")


def name_weights(session: SharedRun, run: Path | None) -> str:
    """Name the network, and tell it from others of its architecture."""
    if session.model is not None:
        return session.network_name
    weights = Path(session.weights or session.default_weights)
    if not weights.is_file():
        return weights.name
    own = weights.stem if run is None else run.resolve().name
    return f"{session.network_name} ({own})"


def find_epochs(session: SharedRun, folder: Path) -> dict[int, Path]:
    """Take the weights of a training run; also find those of its kept epochs."""
    if session.weights is not None:
        raise UserError("--run has its own weights: omit --weights")
    if not folder.is_dir():
        raise DataNotFoundError(f"--run {folder}: there is no such folder")
    session.weights = str(folder / "weights.safetensors")
    try:
        return list_epochs(folder)
    except DataNotFoundError as error:
        say(f"without evolution: {error}")
        return {}


def open_other(
    session: SharedRun,
    name: str | None,
    epochs: dict[int, Path],
    limit: int | None,
    split: Literal["train", "test"],
) -> tuple[str, Network, Images] | None:
    """Open the network of --compare, and the images for it."""
    if name is None:
        return None
    change: dict[str, Any] = {"weights": name}
    if name.isdecimal():
        if int(name) not in epochs:
            kept = ", ".join(map(str, epochs)) or "none"
            raise UserError(f"--compare {name}: the kept epochs of --run are {kept}")
        change = {"weights": str(epochs[int(name)])}
    elif ":" in name:
        change = {"model": name, "weights": None}
    if session.image is None:
        change["dataset"] = session.dataset_name
    other = dataclasses.replace(session, **change)
    images = other.images(limit, split)
    session.digests["compared"] = other.digests
    title = f"epoch {name}" if name.isdecimal() else other.network_name
    if title == session.network_name:
        title = Path(name).name
    return title, other.net, images


if __name__ == "__main__":
    sys.exit(main(gallery))
