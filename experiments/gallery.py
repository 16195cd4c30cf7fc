"""A gallery of every unit of a network, to be explored in a browser.

    python -m experiments.gallery
    python -m experiments.gallery --run results/train_cifar10

Searches images for the strongest activations of every unit of every layer (Fig. 2 of
the paper), projects them to pixels by three backward rules, and writes static pages:
open index.html. One page measures on a few images how much such pictures depend on the
network, as `experiments.sanity` does on many. With --run, the network is that of a
training run; if the run kept the weights of several epochs, each unit's page shows how
the unit developed (Fig. 4).

Expected with the shipped weights over the 10,000 test images of CIFAR-10: two to three
minutes on two CPU cores. A second run into the same folder computes only the layers
that have changed, and one after a kill goes on with the search.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Literal

import zfnet_jax as zf
from experiments.evolution import list_epochs
from experiments.harness import Metrics, Positive, UserError, main
from experiments.inputs import SharedRun
from experiments.progress import say
from zfnet_jax.analysis.sanity import RULES
from zfnet_jax.files import DataNotFoundError
from zfnet_jax.galleries import zip_gallery
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
    """
    epochs = None
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
        title=f"Units of {session.network_name}",
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


if __name__ == "__main__":
    sys.exit(main(gallery))
