"""How alike pictures are: curves as layers are destroyed, and the pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zfnet_jax.viz.sheet import (
    FAINT,
    GAP,
    INK,
    LINE,
    MARGIN,
    PALETTE,
    SMALL,
    AnyArray,
    blank_sheet,
    chart,
    checked,
    display,
    enlarged,
    place,
    points,
    shortened,
    text_width,
    write,
)

_STYLES: tuple[dict[str, Any], ...] = (
    {"color": PALETTE[0], "linestyle": "-", "marker": "o"},
    {"color": PALETTE[1], "linestyle": "--", "marker": "s"},
    {"color": PALETTE[2], "linestyle": "-.", "marker": "^"},
)


def similarity_curves(
    title: str,
    steps: Sequence[str],
    curves: Mapping[str, Mapping[str, Float[AnyArray, "steps n"]]],
    references: Mapping[str, Mapping[str, Float[AnyArray, " n"]]],
) -> tuple[Figure, np.ndarray]:
    """Draw how alike pictures still are after each of some steps.

    Args:
        title: What the figure shows.
        steps: What was done at each, all before it included.
        curves: By measure, and by the backward rule, the similarity of each image's
            picture; the mean is drawn in a band of one standard deviation.
        references: By measure and rule, the similarity of a picture that owes nothing
            to the steps; its mean is a dotted line.

    Returns:
        The figure and the axes of the measures.

    Raises:
        ValueError: An argument is empty, not finite or does not fit the others.
    """
    rules = list(next(iter(curves.values()), ()))
    if not 0 < len(rules) <= len(_STYLES):
        raise ValueError(f"curves must be of 1 to {len(_STYLES)} rules")
    plot, foot = (300, 240), 56
    fig, sheet, top = blank_sheet(
        title,
        "each step adds to those before it; lines and bands: mean and one standard "
        "deviation over images; dotted, with the rule's mark at its end: a reference, "
        "the edges of the image",
        SMALL + 2 * GAP + plot[1] + foot + GAP,
        len(curves) * (plot[0] + 32),
    )
    for index, rule in enumerate(rules):
        x, y = MARGIN + index * 150, top + SMALL // 2
        sheet.plot(
            [x, x + 20, x + 40],
            [y, y, y],
            markevery=[1],
            markersize=4,
            **_STYLES[index],
        )
        write(sheet, rule, x + 48, top, SMALL)
    axes = []
    for column, (measure, by_rule) in enumerate(curves.items()):
        left = MARGIN + 32 + column * (plot[0] + 32)
        above = top + 2 * SMALL + 2 * GAP
        ax = chart(sheet, left, above + SMALL, plot[0] - 32, plot[1] - SMALL)
        ax.set_title(measure, loc="left", color=INK, fontsize=points(SMALL))
        x = np.arange(len(steps))
        for rule, style in zip(rules, _STYLES, strict=False):
            name = f"curves[{measure!r}][{rule!r}]"
            y = checked(name, by_rule[rule], (len(steps), None), "float")
            mean, spread = y.mean(1), y.std(1)
            ax.fill_between(
                x, mean - spread, mean + spread, color=style["color"], alpha=0.15, lw=0
            )
            ax.plot(x, mean, linewidth=1.4, markersize=3.5, **style)
            name = f"references[{measure!r}][{rule!r}]"
            level = checked(name, references[measure][rule], (None,), "float").mean()
            ends = [0, len(steps) - 0.5]
            style = {**style, "linestyle": ":", "markevery": [1], "clip_on": False}
            ax.plot(ends, [level, level], linewidth=1, markersize=3.5, **style)
        ax.set_xticks(x, steps, rotation=45, ha="right", rotation_mode="anchor")
        ax.set_xlim(-0.2, len(steps) - 0.5)
        low, high = ax.get_ylim()
        ax.set_ylim(min(low, -0.05), max(high, 1.05))
        ax.axhline(0, color=LINE, linewidth=0.5, zorder=0)
        axes.append(ax)
    return fig, np.array(axes)


def compared_pictures(
    title: str,
    measure: str,
    images: UInt8[AnyArray, "shown h w 3"],
    names: Sequence[str],
    columns: Sequence[str],
    pictures: Mapping[str, Float[AnyArray, "columns shown h w 3"]],
    similarity: Mapping[str, Float[AnyArray, "columns n"]],
) -> tuple[Figure, Axes]:
    """Draw signed pictures of some images, each beside what it is compared with.

    Every image has a row for each backward rule. Below a picture stands how alike it is
    to the first of its row, and below all the mean over all images.

    Args:
        title: What the figure shows.
        measure: What `similarity` is.
        images: The RGB pictures that the network saw.
        names: What these are called.
        columns: What each picture of a row is.
        pictures: By rule. Each is shown on its own scale, zero at mid-grey.
        similarity: By rule, of these images and perhaps more.

    Returns:
        The figure and its axes, which hold image by image the image, then row by row
        its pictures.

    Raises:
        ValueError: An argument is empty, not finite or does not fit the others.
    """
    seen = checked("images", images, (None, None, None, 3), "uint8")
    count, height, width, _ = seen.shape
    if len(names) != count:
        raise ValueError(f"names must be {count}, as the images, got {len(names)}")
    if not pictures:
        raise ValueError("pictures must hold those of one rule at least")
    shape = (len(columns), *seen.shape)
    shown, numbers = {}, {}
    for rule, values in pictures.items():
        shown[rule] = checked(f"pictures[{rule!r}]", values, shape, "float")
        numbers[rule] = checked(
            f"similarity[{rule!r}]", similarity[rule], (len(columns), None), "float"
        )
        if numbers[rule].shape[1] < count:
            raise ValueError(f"similarity[{rule!r}] must be of {count} images at least")
    total = min(values.shape[1] for values in numbers.values())

    size = enlarged(height, width, 64)
    step = GAP + max(
        size[1], *(text_width(text, SMALL) for text in (*columns, "-0.00 ± 0.00"))
    )
    line = SMALL + 6
    label = GAP + max(text_width(rule, SMALL) for rule in pictures)
    left = MARGIN + size[1] + GAP
    row = size[0] + line + 2
    block = len(pictures) * row + GAP
    fig, ax, top = blank_sheet(
        title,
        f"below each picture, and in the mean of {total:,} images with its standard "
        f"deviation: {measure}, between it and the first of its row; every picture has "
        "its own scale, zero is mid-grey",
        line + count * block + (1 + len(pictures)) * line,
        size[1] + GAP + label + len(columns) * step - GAP,
    )
    for index, column in enumerate(columns):
        write(ax, column, left + label + index * step, top, SMALL, color=FAINT)
    for image, name in enumerate(names):
        y = top + line + image * block
        place(ax, seen[image], MARGIN, y, size)
        text = shortened(name, size[1] + GAP, SMALL)
        write(ax, text, MARGIN, y + size[0] + 2, SMALL)
        for number, rule in enumerate(shown):
            y = top + line + image * block + number * row
            write(ax, rule, left, y, SMALL, color=FAINT)
            for index in range(len(columns)):
                x = left + label + index * step
                place(ax, display(shown[rule][index, image])[0], x, y, size)
                if index:
                    text = f"{numbers[rule][index, image]:z.2f}"
                    write(ax, text, x, y + size[0] + 2, SMALL, color=FAINT)
    y = top + line + count * block
    write(ax, f"mean of {total:,} images", MARGIN, y, SMALL)
    for number, rule in enumerate(shown, 1):
        write(ax, rule, left, y + number * line, SMALL, color=FAINT)
        for index in range(1, len(columns)):
            values = numbers[rule][index]
            text = f"{values.mean():z.2f} ± {values.std():z.2f}"
            x = left + label + index * step
            write(ax, text, x, y + number * line, SMALL)
    return fig, ax
