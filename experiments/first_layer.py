"""First layer and architecture: Fig. 6 of the paper, with numbers for its reasons.

    python -m experiments.first_layer --data-dir FOLDER

The paper turns AlexNet's 11 x 11 filters of stride 4 into 7 x 7 of stride 2 because the
first layer held very high and very low frequencies with few between, because some
filters were dead, and because the stride caused aliasing in layer 2. It scales filters
back to an RMS of 0.1 because one had come to dominate. Here both networks, adapted to
32 x 32 images (ALEXNET_MINI: 7 x 7, stride 2; ZFNET_MINI: 5 x 5, stride 1; 48 filters
each, the same above layer 2), are trained with and without that limit. For each: the
filters before and after scaling to the limit, the distribution of their energy over
three bands of spatial frequency compared with white noise, how many are dead, weak or
dominant, what layer 2 responds to, and how much of the energy in layers 1 and 2 is too
fine for the stride. With a GPU, the paper's own networks are trained, with the same
images enlarged to 224 x 224, which contain nothing finer than 7 pixels.

Expected by default (5,000 training images, 12 epochs, 1 seed), in about ten minutes on
two CPU cores: edges and colors; no filter dead or dominant, none at the limit; middle
frequencies hold 32% and 30% of the energy (of AlexNet's and ZFNet's layer), compared
with 15% for white noise; 17% of the energy that AlexNet's layer 2 receives is too fine
for the strides, and 5% for ZFNet. `--limit 500` takes a minute and a half, of one
epoch.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np
import optax

from experiments.ablation import MINI, Budget, follow, split
from experiments.common import Progress, Results, at_least, counted, main
from zfnet_jax import training
from zfnet_jax.analysis.first_layer import (
    BANDS,
    aliasing,
    band_energy,
    filter_rms,
    limit_filters,
)
from zfnet_jax.analysis.mining import TopActivations, top_activations
from zfnet_jax.arch import ALEXNET, ALEXNET_MINI, ZFNET, ZFNET_MINI, ablate
from zfnet_jax.data import Dataset, Preprocessed
from zfnet_jax.inference import evaluate
from zfnet_jax.networks import network
from zfnet_jax.recipes import limit_kernel_rms

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Section 3 limits the RMS of a filter to this; filters start at a tenth of it.
_LIMIT = 0.1
# A filter with less than a tenth of the largest RMS looks gray among the others.
_WEAK = 0.1
# One above this multiple of the median RMS hides all others on a common scale.
_DOMINANT = 3.0
_LAYERS = ("conv1", "pool1", "conv2")
_CONVOLUTIONS = ("conv1", "conv2")
# Number of images to measure the aliasing on.
_MEASURED = 1_000
# Number of units of layer 2 to draw, that of the small networks' layer 1.
_MOST_DRAWN = 48
_COUNTS = ("weak", "dominant")

_BASES = {
    "mini": {
        "AlexNet": ablate(ALEXNET_MINI, widths={"conv1": 48}),
        "ZFNet": ablate(ZFNET_MINI, widths={"conv1": 48}),
    },
    "full": {"AlexNet": ALEXNET, "ZFNet": ZFNET},
}


_RECIPES = {
    "no limit": MINI,
    "RMS limit": dataclasses.replace(
        MINI,
        name="mini-limited",
        optimizer=lambda rate: optax.chain(
            MINI.optimizer(rate), limit_kernel_rms(_LIMIT)
        ),
    ),
}


@dataclasses.dataclass(frozen=True)
class Options(Budget):
    """Train the two first layers, with and without the RMS limit, and measure them."""

    seeds: int = 1
    """Number of seeds per network, from --seed on."""
    networks: Literal["mini", "full"] | None = None
    """Networks for 32 x 32 images, or the paper's own at 224 x 224, the default with a
    GPU."""
    out: Path = Path("results/first_layer")
    """Folder for results; files of the same names are replaced."""


def run(options: Options) -> None:
    """Train, measure, draw and write the results."""
    at_least(1, options, "seeds")
    results = Results(options.out)
    train, other = split(options)
    epochs = options.passes
    seeds = range(options.seed, options.seed + options.seeds)
    size = options.networks or ("mini" if jax.default_backend() == "cpu" else "full")
    bases = _BASES[size]
    variants = {
        f"{base}, {recipe}": (bases[base], _RECIPES[recipe])
        for base in bases
        for recipe in _RECIPES
    }
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
    banks: dict[str, np.ndarray] = {}
    second: dict[str, np.ndarray] = {}
    done = 0
    with Progress("training", len(variants) * len(seeds), unit="network") as progress:
        for seed in seeds:
            for name, (arch, recipe) in variants.items():
                *_, result = training.train(
                    arch,
                    train,
                    recipe=recipe,
                    epochs=epochs,
                    seed=seed,
                    progress=follow(progress, done, epochs),
                )
                images = Preprocessed(other.images, result.preprocess)
                tops = top_activations(result.model, images, _CONVOLUTIONS, k=1)
                runs[name].append(measure(result, other, tops))
                if seed == seeds[0]:
                    banks[name] = np.asarray(result.model.conv1.kernel[...])
                    second[name] = project_strongest(result, other, tops["conv2"])
                done += 1
                progress.update(done, network=name, error=runs[name][-1]["error"])
    setting = f"{size} networks, {len(train):,} images, {counted(epochs, 'epoch')}"
    for name, figure in draw(runs, banks, second, setting):
        results.figure(name, figure)
    results.metrics(
        {
            "data": train.source,
            "train_images": len(train),
            "other_images": len(other),
            "epochs": epochs,
            "seeds": list(seeds),
            "limit": _LIMIT,
            "trained": size,
            "bands_in_cycles_a_pixel": BANDS,
            "networks": runs,
        }
    )
    results.config(options)
    results.manifest(
        seed=options.seed, digests={"train": train.digest(), "other": other.digest()}
    )
    print(table(runs))
    print(f"figures in {results.path}")


def measure(
    result: training.Epoch, images: Dataset, tops: Mapping[str, TopActivations]
) -> dict[str, Any]:
    """Metrics of one network's first layer."""
    model, preprocess = result.model, result.preprocess
    logits = evaluate(network(model, preprocess=preprocess), images.images)
    kernel = np.asarray(model.conv1.kernel[...])
    rms = filter_rms(kernel)
    inputs = preprocess(images.images[:_MEASURED])
    # A network that has learned nothing may have maps that never vary.
    shares = {layer: aliasing(model, inputs, layer) for layer in _LAYERS}
    return {
        "error": 1 - float((logits.argmax(-1) == images.labels).mean()),
        "rms": rms,
        "largest_over_median": float(rms.max() / np.median(rms)),
        "above_the_limit": int((rms > _LIMIT * 1.001).sum()),
        "dominant": int((rms > _DOMINANT * np.median(rms)).sum()),
        "dead": {layer: int(x.dead.sum()) for layer, x in tops.items()},
        "weak": int((rms < _WEAK * rms.max()).sum()),
        "bands": {name: x.mean() for name, x in band_energy(kernel).items()},
        "aliasing": {
            layer: float(np.nanmean(x)) if np.isfinite(x).any() else None
            for layer, x in shares.items()
        },
    }


def project_strongest(
    result: training.Epoch, dataset: Dataset, top: TopActivations
) -> np.ndarray:
    """Project the strongest activation of each unit, [h, w, 3, unit]."""
    from zfnet_jax import viz

    units = np.arange(min(_MOST_DRAWN, len(top.dead)))
    images = Preprocessed(dataset.images, result.preprocess)
    projections = top.project(result.model, images, units)
    pictures, _ = viz.display_projections(projections.pixels, projections.units)
    return np.moveaxis(2 * pictures - 1, 0, -1)


def draw(
    runs: Mapping[str, list[dict[str, Any]]],
    banks: Mapping[str, np.ndarray],
    second: Mapping[str, np.ndarray],
    setting: str,
) -> Iterator[tuple[str, Figure]]:
    """Figures of both layers of the first seed, the bands and the aliasing, by name."""
    from zfnet_jax import viz

    filters = {}
    for name, kernel in banks.items():
        filters[name] = kernel
        if name.endswith("no limit"):
            base = name.removesuffix(", no limit")
            filters[f"{base}, scaled to {_LIMIT:g}"] = limit_filters(kernel, _LIMIT)
    figure, _ = viz.filter_banks(f"first-layer filters, {setting}", "", filters)
    yield "filters", figure
    figure, _ = viz.filter_banks(
        f"what layer 2 responds to, {setting}",
        "projections of the strongest activation of each unit, each on its own scale; "
        "plain grey: a unit that is never active",
        second,
    )
    yield "layer2", figure

    for key, groups, title, note, reference in (
        (
            "bands",
            list(BANDS),
            "energy of first-layer filters by spatial frequency",
            "low: wavelengths above 8 pixels, mid: 4 to 8, high: below 4",
            {"white noise": [np.pi / 64, 3 * np.pi / 64, 1 - np.pi / 16]},
        ),
        (
            "aliasing",
            list(_LAYERS),
            "energy of feature maps that is too fine for their stride",
            "0 without a stride; what is too fine is folded onto coarser patterns",
            None,
        ),
    ):
        # An unknown share is None, which becomes NaN.
        series = {
            name: np.array([[x[key][group] for x in seeds] for group in groups], float)
            for name, seeds in runs.items()
        }
        figure, _ = viz.shares_chart(
            title, f"{note}; {setting}", groups, series, reference
        )
        yield key, figure


def table(runs: Mapping[str, list[dict[str, Any]]]) -> str:
    """Metrics as text, a line per network: means and total counts over the seeds."""
    dead = [f"dead {layer}" for layer in _CONVOLUTIONS]
    columns = ["error", *BANDS, *_LAYERS, *dead, *_COUNTS, "max/median"]
    lines = [f"{'':20}" + "".join(f"{column:>11}" for column in columns)]
    for name, seeds in runs.items():
        shares = [
            [x["error"], *x["bands"].values(), *x["aliasing"].values()] for x in seeds
        ]
        means = np.ma.masked_invalid(np.array(shares, float)).mean(0)
        cells = [f"{'-' if x is np.ma.masked else f'{x:.1%}':>11}" for x in means]
        counts = [sum(x["dead"][layer] for x in seeds) for layer in _CONVOLUTIONS]
        counts += [sum(x[key] for x in seeds) for key in _COUNTS]
        cells += [f"{count:>11}" for count in counts]
        ratio = np.mean([x["largest_over_median"] for x in seeds])
        lines.append(f"{name:20}" + "".join(cells) + f"{ratio:>11.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(run, Options))
