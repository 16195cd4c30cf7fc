"""First layer and architecture: Fig. 6 of the paper, with numbers for its reasons.

    python -m experiments.first_layer --data-dir FOLDER

The paper turns AlexNet's 11 x 11 filters of stride 4 into 7 x 7 of stride 2 because the
first layer held very high and very low frequencies with little between, because some
filters were dead, and because the stride caused aliasing in layer 2; and it scales
filters back to an RMS of 0.1 because one had come to dominate. Here both networks in a
form for 32 x 32 images (ALEXNET_MINI: 7 x 7, stride 2; ZFNET_MINI: 5 x 5, stride 1; 48
filters each, alike above layer 2) are trained alike, with and without that limit. Of
each: the filters before and after scaling to the limit, how their energy is spread over
three bands of spatial frequency beside white noise, how many are dead, weak or
dominant, what layer 2 responds to, and how much of the energy in layers 1 and 2 is too
fine for the stride. Where there is a GPU, the paper's own networks are trained, with
the same images enlarged to 224 x 224, which have nothing finer than 7 pixels.

Expected with no other option (5,000 training images, 12 epochs, 1 seed), in about ten
minutes on two CPU cores: edges and colours; no filter dead or dominant, none at the
limit; middle frequencies hold 32% and 30% of the energy (AlexNet's, ZFNet's layer), and
white noise's 15%; 17% of what AlexNet's layer 2 is given is too fine for the strides,
5% of what ZFNet's is. --limit 500 takes a minute and a half, of one epoch.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
from matplotlib.figure import Figure

from experiments.ablation import MINI, Budget, apart, part_of
from experiments.common import Progress, Results, at_least, counted, main
from zfnet_jax import training, viz
from zfnet_jax.analysis import (
    BANDS,
    TopActivations,
    aliasing,
    band_energy,
    filter_rms,
    limited,
    project_top,
    top_activations,
)
from zfnet_jax.arch import ALEXNET, ALEXNET_MINI, ZFNET, ZFNET_MINI, ablate
from zfnet_jax.data import Dataset

# What section 3 limits the RMS of a filter to; filters start at a tenth of it.
_LIMIT = 0.1
# A filter with less than a tenth of the largest RMS shows as grey among the others.
_WEAK = 0.1
# One of more than this many times the median RMS hides all others on a common scale.
_DOMINANT = 3.0
_LAYERS = ("conv1", "pool1", "conv2")
_CONVOLUTIONS = ("conv1", "conv2")
_MEASURED = 1_000
# Units of layer 2 that are drawn, as many as the small networks' layer 1 has.
_DRAWN = 48
_COUNTS = ("weak", "dominant")

_BASES = {
    "mini": {
        "AlexNet": ablate(ALEXNET_MINI, widths={"conv1": 48}),
        "ZFNet": ablate(ZFNET_MINI, widths={"conv1": 48}),
    },
    "full": {"AlexNet": ALEXNET, "ZFNet": ZFNET},
}


def _limited_optimizer(
    total: int, steps_per_epoch: int
) -> optax.GradientTransformationExtraArgs:
    return optax.with_extra_args_support(
        optax.chain(
            MINI.optimizer(total, steps_per_epoch), training.limit_kernel_rms(_LIMIT)
        )
    )


_RECIPES = {
    "no limit": MINI,
    "RMS limit": dataclasses.replace(
        MINI, name="mini-limited", optimizer=_limited_optimizer
    ),
}


@dataclasses.dataclass(frozen=True)
class Options(Budget):
    """Train the two first layers, with and without the RMS limit, and measure them."""

    seeds: int = 1
    """How many seeds each network is trained from, counted from --seed on."""
    networks: Literal["mini", "full"] | None = None
    """Networks for 32 x 32 images, or the paper's own at 224 x 224; if not given, these
    where there is a GPU."""
    out: Path = Path("results/first_layer")
    """Folder for results; files of the same names are replaced."""


def run(options: Options) -> None:
    """Train, measure, draw and write everything down."""
    at_least(1, options, "seeds")
    results = Results(options.out)
    train, other = apart(options)
    epochs = options.passes
    seeds = range(options.seed, options.seed + options.seeds)
    size = options.networks or ("mini" if jax.default_backend() == "cpu" else "full")
    bases = _BASES[size]
    variants = [(base, how) for base in bases for how in _RECIPES]
    found: dict[str, list[dict[str, Any]]] = {
        f"{base}, {how}": [] for base, how in variants
    }
    banks: dict[str, np.ndarray] = {}
    second: dict[str, np.ndarray] = {}
    done = 0
    with Progress("training", len(variants) * len(seeds), unit="network") as progress:
        for seed in seeds:
            for base, how in variants:
                result = training.train(
                    bases[base],
                    train,
                    recipe=_RECIPES[how],
                    epochs=epochs,
                    seed=seed,
                    on_progress=part_of(progress, done, epochs),
                )
                name = f"{base}, {how}"
                top = top_activations(
                    result.model, other, _CONVOLUTIONS, 1, preprocess=result.preprocess
                )
                found[name].append(measured(result, other, top))
                if seed == seeds[0]:
                    banks[name] = np.asarray(result.model.conv1.kernel[...])
                    second[name] = projected(result, other, top["conv2"])
                done += 1
                progress.update(done, network=name, error=found[name][-1]["error"])
    setting = f"{size} networks, {len(train):,} images, {counted(epochs, 'epoch')}"
    for name, figure in figures(found, banks, second, setting):
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
            "networks": found,
        }
    )
    results.config(options)
    results.manifest(
        seed=options.seed, digests={"train": train.digest(), "other": other.digest()}
    )
    print(table(found))
    print(f"figures in {results.path}")


def measured(
    result: training.TrainResult, images: Dataset, top: Mapping[str, TopActivations]
) -> dict[str, Any]:
    """What is asked of a first layer, of one network."""
    model, preprocess = result.model, result.preprocess
    logits = training.evaluate(model, preprocess, images.images)
    kernel = np.asarray(model.conv1.kernel[...])
    rms = filter_rms(kernel)
    inputs = np.asarray(preprocess(images.images[:_MEASURED]))
    # A network that learned nothing may have maps that never vary.
    shares = {layer: aliasing(model, inputs, layer) for layer in _LAYERS}
    return {
        "error": 1 - float((logits.argmax(-1) == images.labels).mean()),
        "rms": rms,
        "largest_over_median": float(rms.max() / np.median(rms)),
        "above_the_limit": int((rms > _LIMIT * 1.001).sum()),
        "dominant": int((rms > _DOMINANT * np.median(rms)).sum()),
        "dead": {layer: int(x.dead.sum()) for layer, x in top.items()},
        "weak": int((rms < _WEAK * rms.max()).sum()),
        "bands": {name: x.mean() for name, x in band_energy(kernel).items()},
        "aliasing": {
            layer: float(np.nanmean(x)) if np.isfinite(x).any() else None
            for layer, x in shares.items()
        },
    }


def projected(
    result: training.TrainResult, images: Dataset, top: TopActivations
) -> np.ndarray:
    """The strongest activation of each unit of layer 2 as pixels, [h, w, 3, unit]."""
    units = np.arange(min(_DRAWN, len(top.dead)))
    down = project_top(
        result.model, images, "conv2", top, units, preprocess=result.preprocess
    )
    shown, _ = viz.display_projections(down.pixels, down.units)
    return np.moveaxis(2 * shown - 1, 0, -1)


def figures(
    found: Mapping[str, list[dict[str, Any]]],
    banks: Mapping[str, np.ndarray],
    second: Mapping[str, np.ndarray],
    setting: str,
) -> Iterator[tuple[str, Figure]]:
    """Both layers of the first seed, the bands of layer 1, the aliasing, by name."""
    drawn = {}
    for name, kernel in banks.items():
        drawn[name] = kernel
        if name.endswith("no limit"):
            base = name.removesuffix(", no limit")
            drawn[f"{base}, scaled to {_LIMIT:g}"] = limited(kernel, _LIMIT)
    figure, _ = viz.filter_banks(f"first-layer filters, {setting}", "", drawn)
    yield "filters", figure
    figure, _ = viz.filter_banks(
        f"what layer 2 responds to, {setting}",
        "projections of the strongest activation of each unit, each on its own scale; "
        "plain grey: a unit that is never active",
        second,
    )
    yield "layer2", figure

    def runs(key: str, group: str) -> dict[str, list[float]]:
        return {
            name: [np.nan if x[key][group] is None else x[key][group] for x in several]
            for name, several in found.items()
        }

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
        series = {
            name: np.array([runs(key, group)[name] for group in groups])
            for name in found
        }
        figure, _ = viz.shares_chart(
            title, f"{note}; {setting}", groups, series, reference
        )
        yield key, figure


def table(found: Mapping[str, list[dict[str, Any]]]) -> str:
    """What was measured, a line for each network: means, and counts of all seeds."""
    dead = [f"dead {layer}" for layer in _CONVOLUTIONS]
    columns = ["error", *BANDS, *_LAYERS, *dead, *_COUNTS, "max/median"]
    lines = [f"{'':20}" + "".join(f"{column:>11}" for column in columns)]
    for name, several in found.items():
        shares = [
            [x["error"], *x["bands"].values()]
            + [np.nan if y is None else y for y in x["aliasing"].values()]
            for x in several
        ]
        means = np.ma.masked_invalid(shares).mean(0)
        cells = [f"{'-' if x is np.ma.masked else f'{x:.1%}':>11}" for x in means]
        counts = [sum(x["dead"][layer] for x in several) for layer in _CONVOLUTIONS]
        counts += [sum(x[key] for x in several) for key in _COUNTS]
        cells += [f"{count:>11}" for count in counts]
        ratio = np.mean([x["largest_over_median"] for x in several])
        lines.append(f"{name:20}" + "".join(cells) + f"{ratio:>11.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(run, Options))
