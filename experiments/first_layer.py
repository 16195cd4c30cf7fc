"""First layer and architecture: Fig. 6 of the paper, with numbers for its reasons.

    python -m experiments.first_layer

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
import itertools
import sys
from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np
import optax

from experiments.harness import Metrics, Positive, main
from experiments.inputs import Images, average_known
from experiments.mini import MINI, TrainingRun
from experiments.progress import plural
from zfnet_jax.analysis.first_layer import (
    BANDS,
    aliasing,
    band_energy,
    filter_rms,
    limit_filters,
)
from zfnet_jax.analysis.mining import TopActivations, top_activations
from zfnet_jax.arch import ALEXNET, ALEXNET_MINI, ZFNET, ZFNET_MINI, ablate
from zfnet_jax.networks import Network
from zfnet_jax.recipes import limit_kernel_rms

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
_SHOWN = 48

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


def first_layer(
    run: TrainingRun,
    seeds: Positive = 1,
    networks: Literal["mini", "full"] | None = None,
) -> Metrics:
    """Train the two first layers, with and without the RMS limit, and measure them.

    Args:
        seeds: Seeds per network, from --seed on.
        networks: Networks for 32 x 32 images, or the paper's own at 224 x 224, the
            default with a GPU.
    """
    train, others = run.split()
    size = networks or ("mini" if jax.default_backend() == "cpu" else "full")
    numbers = [*range(run.seed, run.seed + seeds)]
    work = [*itertools.product(numbers, _BASES[size], _RECIPES)]
    results: dict[str, list[dict[str, Any]]] = {}
    kernels, projections = {}, {}
    progress = run.progress("training")
    for done, (seed, base, limit) in enumerate(work):
        name, arch = f"{base}, {limit}", _BASES[size][base]
        how = done, len(work), _RECIPES[limit]
        net = run.train(arch, train, seed, progress, *how)
        images = net.load_images(others)
        tops = top_activations(net, images, _CONVOLUTIONS, k=1)
        results.setdefault(name, []).append(measure(net, images, tops))
        if seed == run.seed:
            kernels[name] = np.asarray(net.model.conv1.kernel[...])
            top, units = tops["conv2"], np.arange(len(tops["conv2"].dead))
            projections[name] = top.project(net, images, units[:_SHOWN]).pixels
        progress(done + 1, len(work), network=name, error=results[name][-1]["error"])
    setting = f"{len(train):,} images for {plural(run.passes, 'epoch')}"
    draw(run, kernels, projections, setting)
    draw_numbers(run, results, f"{setting}, {plural(seeds, 'seed')}")
    yield "data", train.source
    yield "train_images", len(train)
    yield "other_images", len(others)
    yield "epochs", run.passes
    yield "seeds", numbers
    yield "limit", _LIMIT
    yield "trained", size
    yield "bands_in_cycles_per_pixel", BANDS
    yield "networks", results


def measure(
    net: Network, images: Images, tops: Mapping[str, TopActivations]
) -> dict[str, Any]:
    """Measure the first layer of a network."""
    logits = net.activations(images, net.output, batch_size=500)[net.output]
    kernel = np.asarray(net.model.conv1.kernel[...])
    rms = filter_rms(kernel)
    some = images.take(np.arange(min(_MEASURED, len(images))))
    return {
        "error": 1 - float((logits.argmax(-1) == images.labels).mean()),
        "rms": rms,
        "largest_over_median": rms.max() / np.median(rms),
        "above_the_limit": (rms > _LIMIT * 1.001).sum(),
        "dominant": (rms > _DOMINANT * np.median(rms)).sum(),
        "dead": {layer: x.dead.sum() for layer, x in tops.items()},
        "weak": (rms < _WEAK * rms.max()).sum(),
        "bands": {name: x.mean() for name, x in band_energy(kernel).items()},
        "aliasing": {
            layer: average_known(aliasing(net, some, layer)) for layer in _LAYERS
        },
    }


def draw(
    run: TrainingRun,
    kernels: Mapping[str, np.ndarray],
    projections: Mapping[str, np.ndarray],
    setting: str,
) -> None:
    """Draw both layers of the first seed; once where the limit changes nothing."""
    from zfnet_jax.viz.first_layer import filter_banks, layer_2

    filters, responses = {}, {}
    for name, kernel in kernels.items():
        base, _, limit = name.partition(", ")
        free = kernels[f"{base}, no limit"]
        if filter_rms(free).max() <= _LIMIT:
            if limit == "no limit":
                title = f"{base}, where no filter exceeds an RMS of {_LIMIT:g}"
                filters[title], responses[base] = kernel, projections[name]
            continue
        filters[name], responses[name] = kernel, projections[name]
        if limit == "no limit":
            filters[f"{base}, scaled to {_LIMIT:g}"] = limit_filters(kernel, _LIMIT)
    title = f"Filters of first layers trained on {setting}"
    run.figure("filters", filter_banks(title, filters))
    title = f"Responses of second layers trained on {setting}"
    run.figure("layer2", layer_2(title, responses))


def draw_numbers(
    run: TrainingRun, results: Mapping[str, list[dict[str, Any]]], setting: str
) -> None:
    """Draw the numbers of all networks: means, or counts over all seeds."""
    from zfnet_jax.viz.first_layer import first_layer_numbers

    def shares(key: str, groups: Any) -> dict[str, np.ndarray]:
        return {
            name: np.array([[x[key][group] for x in seeds] for group in groups])
            for name, seeds in results.items()
        }

    headings = ["", "error", "largest / median RMS", "weak filters", "dominant filters"]
    table = [[*headings, *(f"dead units in {layer}" for layer in _CONVOLUTIONS)]]
    for name, seeds in results.items():
        ratio = np.mean([x["largest_over_median"] for x in seeds])
        counts = [sum(x[key] for x in seeds) for key in ("weak", "dominant")]
        counts += [sum(x["dead"][layer] for x in seeds) for layer in _CONVOLUTIONS]
        error = np.mean([x["error"] for x in seeds])
        table.append([name, f"{error:.1%}", f"{ratio:.2f}", *map(str, counts)])
    noise = {
        "white noise": np.array([[np.pi / 64], [3 * np.pi / 64], [1 - np.pi / 16]])
    }
    waves = ["low: above 8 pixels", "mid: 4 to 8 pixels", "high: below 4 pixels"]
    charts = {
        "energy of first-layer filters by wavelength": (
            waves,
            shares("bands", BANDS) | noise,
        ),
        "energy of feature maps that is too fine for their stride": (
            _LAYERS,
            shares("aliasing", _LAYERS),
        ),
    }
    figure = first_layer_numbers(
        f"First layers trained on {setting}",
        table,
        charts,
        "Weak: an RMS below a tenth of the largest. Dominant: above three times the "
        "median. Too fine: folded onto coarser patterns by a stride; 0 without one.",
    )
    run.figure("numbers", figure)


if __name__ == "__main__":
    sys.exit(main(first_layer))
