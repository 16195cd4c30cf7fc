"""Figures of how alike pictures are: what they show, and what they refuse."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from zfnet_jax import viz

RULES = ("deconvnet", "guided", "gradient")


def curves_of(rng, steps=3, n=5):
    measures = ("signed", "SSIM")
    curves = {m: {r: rng.random((steps, n)) for r in RULES} for m in measures}
    levels = {m: {r: rng.random(n) for r in RULES} for m in measures}
    return ["trained", "logits", "conv1"], curves, levels


def test_curves_are_means_and_references_lie_beside_them():
    steps, curves, levels = curves_of(np.random.default_rng(0))
    fig, axes = viz.similarity_curves("a title", steps, curves, levels)
    FigureCanvasAgg(fig).draw()
    assert [ax.get_title(loc="left") for ax in axes] == ["signed", "SSIM"]
    for ax, measure in zip(axes, curves, strict=True):
        assert [tick.get_text() for tick in ax.get_xticklabels()] == steps
        lines = [x for x in ax.lines if len(x.get_xdata()) == len(steps)]
        dotted = [x for x in ax.lines if x.get_linestyle() == ":"]
        assert len(lines) == len(dotted) == len(RULES)
        for rule, line, level in zip(RULES, lines, dotted, strict=True):
            np.testing.assert_allclose(line.get_ydata(), curves[measure][rule].mean(1))
            expected = levels[measure][rule].mean()
            np.testing.assert_allclose(level.get_ydata(), [expected] * 2)
            assert level.get_marker() == line.get_marker()
        # Told apart without colour.
        assert len({x.get_marker() for x in lines}) == len(RULES)
        assert len({x.get_linestyle() for x in lines}) == len(RULES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, c, r: (s[:2], c, r), r"curves\['signed'\]\['deconvnet'\]"),
        (lambda s, c, r: (s, {}, r), "1 to 3 rules"),
        (lambda s, c, r: (s, {"signed": dict.fromkeys("abcd")}, r), "1 to 3 rules"),
        (
            lambda s, c, r: (
                s,
                c,
                {"signed": dict.fromkeys(RULES, np.full(4, np.nan))},
            ),
            r"references\['signed'\]\['deconvnet'\] .* not finite",
        ),
    ],
)
def test_curves_refuse(change, message, monkeypatch):
    import jaxtyping

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    arguments = change(*curves_of(np.random.default_rng(0)))
    with pytest.raises(ValueError, match=message):
        viz.similarity_curves("a title", *arguments)


def pictures_of(rng, shown=2, n=4):
    columns = ["unit", "random", "edges"]
    return {
        "images": rng.integers(0, 256, (shown, 8, 6, 3), np.uint8),
        "names": ["cat", "a very long name of a class"][:shown],
        "columns": columns,
        "pictures": {
            r: rng.normal(size=(len(columns), shown, 8, 6, 3)) for r in RULES[:2]
        },
        "similarity": {r: rng.uniform(-1, 1, (len(columns), n)) for r in RULES[:2]},
    }


def test_every_picture_stands_by_its_number():
    given = pictures_of(np.random.default_rng(1))
    given["similarity"]["guided"][1, 0] = -0.001  # not to be written as -0.00
    fig, ax = viz.compared_pictures("a title", "likeness", **given)
    FigureCanvasAgg(fig).draw()
    pictures = [np.asarray(image.get_array()) for image in ax.images]
    expected, numbers = [], []
    for i in range(2):
        expected.append(given["images"][i])
        for rule in RULES[:2]:
            values = given["pictures"][rule][:, i]
            expected += [viz.display(x)[0] for x in values]
            numbers += [f"{x:z.2f}" for x in given["similarity"][rule][1:, i]]
    assert len(pictures) == len(expected)
    for got, wanted in zip(pictures, expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-6)
    texts = [text.get_text() for text in ax.texts]
    written = [x for x in texts if x.lstrip("-").replace(".", "").isdecimal()]
    assert written == numbers and "0.00" in numbers
    for rule in RULES[:2]:
        for values in given["similarity"][rule][1:]:
            assert f"{values.mean():z.2f} ± {values.std():z.2f}" in texts
    # All of it lies on the sheet, and no text on another one.
    boxes = [text.get_window_extent() for text in ax.texts]
    assert all(box.x0 >= 0 and box.x1 <= fig.bbox.x1 for box in boxes)
    assert all(box.y0 >= 0 and box.y1 <= fig.bbox.y1 for box in boxes)
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[number + 1 :])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ["cat"]}, "names must be 2"),
        ({"columns": ["unit", "random"]}, r"pictures\['deconvnet'\]"),
        ({"pictures": {}}, "one rule at least"),
        (
            {"similarity": dict.fromkeys(RULES, np.zeros((3, 1)))},
            r"similarity\['deconvnet'\] must be of 2 images",
        ),
        ({"images": np.zeros((0, 8, 6, 3), np.uint8)}, "images"),
    ],
)
def test_pictures_refuse(change, message, monkeypatch):
    import jaxtyping

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    given = pictures_of(np.random.default_rng(1)) | change
    with pytest.raises(ValueError, match=message):
        viz.compared_pictures("a title", "likeness", **given)
