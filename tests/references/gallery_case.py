"""A gallery of random arrays: without a network, and with every special case.

conv1 has more units than a page shows together. Its unit 7 is dead, and its unit 3 is
active in only two images.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from zfnet_jax import gallery
from zfnet_jax.analysis.evolution import Evolution
from zfnet_jax.analysis.mining import TopActivations
from zfnet_jax.analysis.sanity import Comparison, Similarity
from zfnet_jax.projections import Projections

K, COUNT, IMAGE, CELL = 4, 30, (12, 12), (8, 8)
RULES = ("deconvnet", "guided", "gradient")
AT_ONCE = 20
UNITS = {"conv1": AT_ONCE + 14, "conv2": 6, "wide": 256}
EPOCHS = (1, 2, 10)

_IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, *IMAGE, 3), np.uint8)
SOURCE = gallery.Source(
    lambda which: _IMAGES[which],
    (np.arange(COUNT) % 3).astype(np.int32),
    ("cat", "dog", "ship"),
    "30 images of noise",
)
NETWORK = gallery.Network("A drawn network", {"searched": SOURCE.description})
LAYERS = {
    name: gallery.Layer(name, "3 × 3 convolution", (6, 6, units), CELL)
    for name, units in UNITS.items()
}
NARROW = ("conv1", "conv2")


def top_of(layer: str) -> TopActivations:
    units = UNITS[layer]
    rng = np.random.default_rng(units)
    values = -np.sort(-rng.uniform(0.5, 9, (units, K)), 1).astype(np.float32)
    images = np.stack([rng.permutation(COUNT)[:K] for _ in range(units)])
    positions = rng.integers(0, 6, (units, K, 2))
    counts = rng.integers(1, 11, (units, 3))
    if layer == "conv1":
        values[7], counts[7] = 0, 0
        values[3, 2:], counts[3] = 0, (1, 1, 0)
    means = (counts / 10 * values.mean(1, keepdims=True)).astype(np.float32)
    return TopActivations(
        layer,
        values,
        images.astype(np.int32),
        positions.astype(np.int32),
        (counts.sum(1) / COUNT).astype(np.float32),
        means.mean(1),
        counts.astype(np.int32),
        means,
    )


def boxes_of(positions: np.ndarray) -> np.ndarray:
    corner = 2 * positions - 3
    return np.concatenate([corner, corner + np.array(CELL)], -1).astype(np.int32)


def projections(rule: str, layer: str) -> np.ndarray:
    rng = np.random.default_rng(RULES.index(rule))
    drawn = rng.normal(size=(UNITS[layer], K, *CELL, 3)).astype(np.float32)
    drawn[top_of(layer).activations <= 0] = 0
    return drawn


def pictures_of(
    layer: str,
) -> tuple[TopActivations, np.ndarray, Iterator[gallery.Pictures]]:
    top = top_of(layer)
    boxes = boxes_of(top.positions)
    live = np.flatnonzero(~top.dead)
    by_rule = {rule: projections(rule, layer) for rule in RULES}
    parts = (
        gallery.Pictures(part, boxes[part], {r: x[part] for r, x in by_rule.items()})
        for part in np.array_split(live, 3)
    )
    return top, boxes, parts


def build(folder: Path, layers: Sequence[str] = NARROW) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        if "wide" not in layers:
            patch.setattr(gallery, "UNITS_AT_ONCE", AT_ONCE)
        return _build(folder, layers)


def _build(folder: Path, layers: Sequence[str]) -> Path:
    gallery.claim(folder)
    for name in layers:
        top, _, parts = pictures_of(name)
        gallery.write_layer(folder, LAYERS[name], top, SOURCE, RULES, parts, "key")
    if "conv2" in layers:
        course, course_projections = course_of()
        units = range(UNITS["conv2"])
        gallery.write_course(folder, course, course_projections, units, SOURCE, "key")
    return gallery.render(folder, NETWORK, layers, set(layers) & {"conv2"})


def build_sanity(folder: Path) -> dict[str, float]:
    """Write the sanity check; returns each number in its sentences."""
    stages = ("trained", "logits", "fc6", "conv2", "conv1", "edges")
    kinds = ("unit", "random there", "another unit", "another image", "edges")
    rng = np.random.default_rng(5)
    comparisons: list[Comparison] = []
    for columns in (stages, kinds):
        comparisons.append(
            Comparison(
                columns,
                {"deconvnet": Similarity(*rng.random((3, 6, len(columns))))},
                {"deconvnet": np.zeros((6, len(columns)), bool)},
                {"deconvnet": np.zeros((0, len(columns), *IMAGE, 3), np.float32)},
            )
        )
    figures = {name: b"a picture" for name in gallery.SANITY_FIGURES}
    randomized, replacements = comparisons
    gallery.write_sanity(folder, "conv2", randomized, replacements, figures, "key")
    destroyed, replaced = (
        x.similarity["deconvnet"].signed.mean(0) for x in comparisons
    )
    return {"fc6": destroyed[2], **dict(zip(kinds[1:-1], replaced[1:-1], strict=True))}


def course_of() -> tuple[Evolution, Projections]:
    units, steps = UNITS["conv2"], len(EPOCHS)
    rng = np.random.default_rng(3)
    images = rng.integers(0, 2, (steps, units)).astype(np.int32)
    images[:, 1] = [0, 0, 1]
    positions = rng.integers(0, 6, (steps, units, 2)).astype(np.int32)
    values = rng.uniform(1, 5, (steps, units)).astype(np.float32)
    dead = np.zeros((steps, units), bool)
    dead[0, 2] = True
    values[dead] = 0
    course = Evolution("conv2", EPOCHS, values, images, positions, dead)
    turned = positions.swapaxes(0, 1).reshape(-1, 2)
    projections = Projections(
        rng.normal(size=(units * steps, *CELL, 3)).astype(np.float32),
        boxes_of(turned),
        images.T.ravel(),
        np.repeat(np.arange(units), steps),
        turned,
        values.T.ravel(),
    )
    return course, projections
