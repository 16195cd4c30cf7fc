"""Similarity of pictures as layers are randomized: curves, and the pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure

from zfnet_jax.results import spell_mean, summarize
from zfnet_jax.viz.charts import legend, line_chart
from zfnet_jax.viz.contrast import Contrast, display_projections
from zfnet_jax.viz.layout import (
    FAINT,
    GAP,
    column,
    picture,
    row,
    sheet,
    shorten,
    space,
    table,
    text,
)

EMPTY = "\N{EN DASH}"  # for similarities to an empty picture
# Steps that are named and drawn, of many.
_SIDE, _MOST_STEPS = 112, 14
_MEASURES = (
    "rank correlation of signed values",
    "rank correlation of magnitudes",
    "SSIM of magnitudes",
)


def similarity_curves(
    title: str,
    steps: Sequence[str],
    similarity: Mapping[str, tuple[Float[np.ndarray, "n steps"], ...]],
) -> Figure:
    """Draw how alike pictures still are after each of some steps.

    `similarity` has three measures for each backward rule. The last step is the edges
    of the image, which owe nothing to the others and stand apart.
    """
    last = len(steps)
    places = np.arange(last + 1)
    ticks = {float(x): steps[x] for x in _select_steps(last)[:-1]}
    ticks[last] = steps[-1]

    def split(values: np.ndarray) -> np.ndarray:
        return np.insert(values.astype(float), last - 1, np.nan)

    charts, counts = [], []
    for index, measure in enumerate(_MEASURES):
        summaries = {rule: summarize(x[index]) for rule, x in similarity.items()}
        counts += [x.known for x in summaries.values()]
        chart = line_chart(
            places,
            {rule: split(x.mean) for rule, x in summaries.items()},
            bands={rule: split(x.spread) for rule, x in summaries.items()},
            title=measure,
            x_ticks=ticks,
            marks=True,
            size=(400, 280),
        )
        charts.append(chart)
    least, most = np.min(counts), np.max(counts)
    number = f"{most:,}" if least == most else f"{least:,} to {most:,}"
    return sheet(
        title,
        column(legend(list(similarity), marks=True), row(*charts), gap=GAP),
        f"Mean of {number} images whose pictures are not empty, and one standard "
        "deviation. Each step adds to those before it; the edges of the image depend "
        "on no network.",
    )


def _select_steps(count: int) -> list[int]:
    """Select the first and last steps, the one before, and some between."""
    between = np.linspace(0, count - 2, min(count - 1, _MOST_STEPS))
    return [*between.round().astype(int).tolist(), count - 1]


def spell_means(similarity: Float[np.ndarray, "n columns"]) -> list[str]:
    """Write the mean of each column, and of how many pictures where some are empty."""
    return [
        spell_mean(mean, error, "z.2f")
        + ("" if count == len(similarity) else f" of {count:,}")
        if count
        else EMPTY
        for mean, error, count in zip(*summarize(similarity), strict=True)
    ]


def spell_similarity(value: float) -> str:
    """Write a similarity, if neither picture is empty."""
    return EMPTY if np.isnan(value) else f"{value:z.2f}"


def compared_pictures(
    title: str,
    images: UInt8[np.ndarray, "shown h w c"],
    names: Sequence[str],
    columns: Sequence[str],
    pictures: Mapping[str, Float[np.ndarray, "shown columns h w c"]],
    similarity: Mapping[str, Float[np.ndarray, "n columns"]],
    contrast: Contrast = "99.5",
) -> Figure:
    """Draw signed pictures of some images, each beside what it is compared with.

    `pictures` are by backward rule, and so is `similarity` to the first picture in a
    row, which may be known of more images than are drawn.
    """
    drawn = _select_steps(len(columns))
    heads = [text(columns[step], color=FAINT) for step in drawn]
    rows = [[space(), space(), *heads]]
    for index, (image, name) in enumerate(zip(images, names, strict=True)):
        head = column(picture(image, _SIDE), text(shorten(name, _SIDE)), gap=2)
        for rule, by_image in pictures.items():
            flat, each = by_image[index][drawn], np.arange(len(drawn))
            shown, _ = display_projections(flat, each, contrast=contrast)
            numbers = similarity[rule][index, drawn]
            notes = ["", *(f"correlation {spell_similarity(x)}" for x in numbers[1:])]
            cells = [
                column(picture(pixels, _SIDE), text(note, color=FAINT), gap=2)
                for pixels, note in zip(shown, notes, strict=True)
            ]
            rows.append([head, text(rule), *cells])
            head = space()
    count = len(next(iter(similarity.values())))
    head = text(f"mean of {count:,}")
    for rule, values in similarity.items():
        cells = [text(mean) for mean in spell_means(values[:, drawn])[1:]]
        rows.append([head, text(rule), space(), *cells])
        head = space()
    return sheet(
        title,
        table(rows),
        "Below each picture: its correlation with the first of its row, if neither is "
        "empty. Every picture has its own scale; zero is mid-gray.",
    )
