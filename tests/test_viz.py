import io
import subprocess
import sys
from typing import Any

import jax.numpy as jnp
import jaxtyping
import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage, imread
from matplotlib.text import Annotation

from zfnet_jax import viz

NAMES = "airplane automobile bird cat deer dog frog horse ship truck".split()
LONG_NAMES = [f"Staffordshire bullterrier number {index}" for index in range(10)]


@pytest.fixture
def unhooked(monkeypatch):
    """What users see: the functions' own errors, without the tests' shape checks."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def pictures(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def predictions(n: int, *hw: int, names=NAMES):
    rng = np.random.default_rng(n)
    labels = np.arange(n) % len(names)
    guesses = np.where(np.arange(n) % 3 == 2, (labels + 1) % len(names), labels)
    chances = rng.uniform(0, 1, n).astype(np.float32)
    return pictures(n, *hw, 3), labels, guesses, chances, names


def rendered(fig: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def box(picture: AxesImage) -> tuple[int, int, int, int]:
    """Left, top, right and bottom in screen pixels."""
    left, right, bottom, top = (round(edge) for edge in picture.get_extent())
    return left, top, right, bottom


def seen(screen: np.ndarray, picture: AxesImage) -> np.ndarray:
    left, top, right, bottom = box(picture)
    return screen[top:bottom, left:right]


def enlarged(picture: np.ndarray, factor: int) -> np.ndarray:
    return picture.repeat(factor, 0).repeat(factor, 1)


def labels(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


def history(epochs: int, validation: bool = True) -> list[dict[str, Any]]:
    rows = []
    for epoch in range(1, epochs + 1):
        row = {
            "epoch": epoch,
            "train_loss": 2 / epoch,
            "train_accuracy": 1 - 1 / (epoch + 1),
            "learning_rate": 0.1 / epoch,
        }
        if validation:
            row["validation_loss"] = 3 / epoch
            row["validation_accuracy"] = 0.25 + 0.5 / (1 + abs(epoch - 3))
        rows.append(row)
    return rows


# Display of signed values


def test_display_by_hand():
    shown, scale = viz.display(np.array([[-2.0, 0.0], [1.0, 4.0]]))
    assert scale == 4.0
    assert shown.dtype == np.float32
    np.testing.assert_array_equal(shown, [[0.25, 0.5], [0.625, 1.0]])


def test_display_mirrors_about_mid_grey():
    x = np.random.default_rng(0).normal(size=(5, 7, 3)).astype(np.float32)
    shown, scale = viz.display(x)
    mirrored, same = viz.display(-x)
    assert scale == same == np.abs(x).max()
    np.testing.assert_allclose(shown + mirrored, 1, rtol=1e-6)
    np.testing.assert_allclose((shown - 0.5) * 2 * scale, x, rtol=1e-5, atol=1e-6)


def test_display_clips_at_a_given_scale():
    shown, scale = viz.display(np.array([-3.0, -1.0, 0.0, 0.5, 2.0]), 1.0)
    assert scale == 1.0
    np.testing.assert_array_equal(shown, [0, 0, 0.5, 0.75, 1])


@pytest.mark.parametrize("scale", [None, 0.0])
def test_display_of_zeros_is_mid_grey(scale):
    shown, used = viz.display(np.zeros((2, 3)), scale)
    assert used == 0.0
    np.testing.assert_array_equal(shown, np.full((2, 3), 0.5))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_display_holds_the_ends_of_narrow_floats(dtype):
    top = float(jnp.finfo(dtype).max)
    shown, scale = viz.display(jnp.array([-top, 0, top], dtype))
    assert scale == top
    np.testing.assert_array_equal(shown, [0, 0.5, 1])


@pytest.mark.parametrize(
    ("x", "scale", "named"),
    [
        (np.array([1.0, np.nan]), None, "x"),
        (np.array([1.0, np.inf]), None, "x"),
        (np.zeros((0, 3)), None, "x"),
        (np.array([1, 2]), None, "x"),
        (np.array([1.0]), 0.0, "scale"),
        (np.array([1.0]), -1.0, "scale"),
        (np.array([1.0]), np.nan, "scale"),
    ],
)
def test_display_refuses(unhooked, x, scale, named):
    with pytest.raises(ValueError, match=rf"^{named} "):
        viz.display(x, scale)


# Training curves


def test_curves_draw_the_history():
    rows = history(5)
    fig, axes = viz.training_curves(rows)
    loss, accuracy, rate = axes
    for ax, quantity, factor in ((loss, "loss", 1), (accuracy, "accuracy", 100)):
        assert [line.get_label() for line in ax.lines] == ["training", "validation"]
        for line, split in zip(ax.lines, ("train", "validation"), strict=True):
            np.testing.assert_array_equal(line.get_xdata(), range(1, 6))
            expected = [factor * row[f"{split}_{quantity}"] for row in rows]
            np.testing.assert_allclose(line.get_ydata(), expected)
        styles = {(line.get_linestyle(), line.get_marker()) for line in ax.lines}
        assert len(styles) == 2
    np.testing.assert_allclose(
        rate.lines[0].get_ydata(), [row["learning_rate"] for row in rows]
    )
    assert [ax.get_title(loc="left") for ax in axes] == [
        "loss",
        "accuracy (%)",
        "learning rate",
    ]
    assert fig.get_suptitle() == (
        "5 epochs: validation accuracy 41.67% at the end, 75.00% at best (epoch 3)"
    )


def test_curves_skip_what_was_not_measured():
    rows = history(4, validation=False)
    fig, axes = viz.training_curves(rows)
    assert [len(ax.lines) for ax in axes] == [1, 1, 1]
    assert fig.get_suptitle() == "4 epochs: training accuracy 80.00% at the end"
    rows[1] |= {"validation_accuracy": 0.5, "validation_loss": 1.0}
    # As JSON's null.
    rows[3] |= {"validation_accuracy": None, "validation_loss": None}
    fig, axes = viz.training_curves(rows)
    np.testing.assert_array_equal(axes[1].lines[1].get_xdata(), [2])
    np.testing.assert_array_equal(axes[1].lines[1].get_ydata(), [50])
    assert fig.get_suptitle() == "4 epochs: validation accuracy 50.00% at the end"


@pytest.mark.parametrize(
    ("rates", "scale"),
    [
        ([0.01] * 4 + [0.001] * 4 + [0.0001] * 2, "log"),
        ([0.01] * 4 + [0.005] * 4, "linear"),
        ([0.1, 0.08, 0.06, 0.04, 0.02, 0.001], "linear"),
        ([0.1, 0.1, 0.1, 0.0], "linear"),
        ([0.0], "linear"),
    ],
)
def test_curves_show_every_learning_rate(rates, scale):
    rows = [
        row | {"learning_rate": rate}
        for row, rate in zip(history(len(rates)), rates, strict=True)
    ]
    fig, axes = viz.training_curves(rows)
    rendered(fig)
    assert axes[2].get_yscale() == scale
    low, high = axes[2].get_ylim()
    assert low <= min(rates) and max(rates) <= high
    if scale == "log":
        written = [tick.get_text() for tick in axes[2].get_yticklabels()]
        assert {"0.01", "0.001", "0.0001"} <= set(written)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_loss": float("nan")}, r"history\[1\]\['train_loss'\] must be finite"),
        ({"train_accuracy": 83.9}, r"history\[1\]\['train_accuracy'\] .* fraction"),
        ({"validation_accuracy": -0.1}, r"history\[1\]\['validation_accuracy'\]"),
        ({"learning_rate": -1.0}, r"history\[1\]\['learning_rate'\] is negative"),
        ({"learning_rate": None}, r"history\[1\] has no 'learning_rate'"),
    ],
)
def test_curves_refuse(change, message):
    rows = history(3)
    rows[1] |= change
    with pytest.raises(ValueError, match=message):
        viz.training_curves(rows)


def test_curves_refuse_an_empty_history():
    with pytest.raises(ValueError, match="history holds no epoch"):
        viz.training_curves([])


# Confusions


def test_confusion_rows_are_true_classes():
    matrix = np.array([[6, 2, 0], [0, 5, 0], [0, 0, 0]])
    fig, ax = viz.confusion_matrix(matrix, ["cat", "automobile", "dog"])
    screen = rendered(fig)
    shares = ax.collections[0].get_array()
    assert shares is not None
    np.testing.assert_allclose(
        shares.reshape(3, 3), [[0.75, 0.25, 0], [0, 1, 0], [0, 0, 0]]
    )
    names = ["cat", "automobile", "dog"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == names
    assert [tick.get_text() for tick in ax.get_xticklabels()] == names
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("true class", "predicted class")
    assert ax.get_title(loc="left") == "11 of 13 right (84.62%)"
    written = {text.get_position(): text.get_text() for text in ax.texts}
    for (row, column), count in np.ndenumerate(matrix):
        assert written[column, row] == str(count)

    # On screen: off the number, a quarter cell up; row 0 on top, darker with the share.
    def darkness(row, column):
        x, y = ax.transData.transform((column, row - 0.35))
        return 255 - int(screen[screen.shape[0] - round(y), round(x)].mean())

    assert ax.transData.transform((0, 0))[1] > ax.transData.transform((0, 2))[1]
    assert darkness(1, 1) > darkness(0, 0) > darkness(0, 1) > darkness(1, 0)
    assert darkness(1, 0) == darkness(2, 2)


def test_confusion_numbers_stand_out_from_their_cells():
    share = np.arange(0, 101, 10)
    matrix = np.stack([share, 100 - share])
    matrix = np.pad(matrix, ((0, 9), (0, 0)))
    _, ax = viz.confusion_matrix(matrix.T, [str(index) for index in range(11)])
    mesh = ax.collections[0]
    mesh.update_scalarmappable()
    cells = np.asarray(mesh.get_facecolor())[:, :3]

    def luminance(color):
        color = np.asarray(color)
        linear = np.where(
            color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4
        )
        return linear @ [0.2126, 0.7152, 0.0722]

    for text, cell in zip(ax.texts, cells, strict=True):
        bright, dark = sorted(
            (luminance(cell), luminance(to_rgb(text.get_color()))), reverse=True
        )
        assert (bright + 0.05) / (dark + 0.05) > 4


@pytest.mark.parametrize("classes", [1, 10, 30, 120])
def test_confusion_fits_its_figure(classes):
    matrix = np.random.default_rng(0).integers(0, 5000, (classes, classes))
    names = [f"automobile with a long name {index}" for index in range(classes)]
    fig, ax = viz.confusion_matrix(matrix, names)
    screen = rendered(fig)
    tight = fig.get_tightbbox()
    assert tight.x0 >= 0 and tight.y0 >= 0
    assert tight.x1 * fig.dpi <= screen.shape[1]
    assert tight.y1 * fig.dpi <= screen.shape[0]
    assert len(ax.texts) == (classes**2 if classes <= 25 else 0)


@pytest.mark.parametrize(
    ("matrix", "names", "named"),
    [
        (np.ones((2, 3), int), ["a", "b"], "matrix"),
        (np.ones((2, 2)), ["a", "b"], "matrix"),
        (np.array([[1, -1], [0, 0]]), ["a", "b"], "matrix"),
        (np.zeros((0, 0), int), [], "matrix"),
        (np.ones((2, 2), int), ["a", "b", "c"], "class_names"),
    ],
)
def test_confusion_refuses(unhooked, matrix, names, named):
    with pytest.raises(ValueError, match=rf"^{named} "):
        viz.confusion_matrix(matrix, names)


# Predictions


def test_predictions_stand_below_their_pictures():
    images = pictures(3, 32, 32, 3)
    fig, ax = viz.prediction_grid(
        images,
        np.array([1, 3, 0]),
        np.array([1, 5, 0]),
        np.array([0.92, 0.614, 1.0000001], np.float32),
        NAMES,
    )
    screen = rendered(fig)
    assert labels(ax)[0] == "2 of 3 right"
    expected = [
        ("automobile", "✓ automobile 92%"),
        ("cat", "✗ dog 61%"),
        ("airplane", "✓ airplane 100%"),
    ]
    vermillion = np.round(np.array(to_rgb("#D55E00")) * 255)
    assert len(ax.images) == 3
    for index, picture in enumerate(ax.images):
        left, top, right, bottom = box(picture)
        np.testing.assert_array_equal(seen(screen, picture), enlarged(images[index], 3))
        below = [
            text
            for text in ax.texts
            if text.get_position()[0] == (left + right) / 2
            and text.get_position()[1] > bottom
        ]
        below.sort(key=lambda text: text.get_position()[1])
        assert tuple(text.get_text() for text in below) == expected[index]
        frame = vermillion if index == 1 else (255, 255, 255)
        middle = (top + bottom) // 2, (left + right) // 2
        for edge in (
            screen[top - 3 : top, middle[1]],
            screen[bottom : bottom + 3, middle[1]],
            screen[middle[0], left - 3 : left],
            screen[middle[0], right : right + 3],
        ):
            np.testing.assert_array_equal(edge, np.broadcast_to(frame, (3, 3)))


def test_long_names_are_cut_short():
    fig, ax = viz.prediction_grid(*predictions(3, 8, 8, names=LONG_NAMES))
    rendered(fig)
    names = [text for text in ax.texts if text.get_text().startswith("Staff")]
    assert len(names) == 3
    for text in names:
        assert text.get_text().endswith("…")
        assert LONG_NAMES[0].startswith(text.get_text()[:-1])
        assert 100 < text.get_window_extent().width < 132


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"images": pictures(4, 8, 8, 1)}, "images"),
        ({"images": pictures(4, 8, 8, 3) / 255}, "images"),
        ({"images": pictures(0, 8, 8, 3)}, "images"),
        ({"labels": np.zeros(3, int)}, "labels"),
        ({"labels": np.array([0, 1, 2, 10])}, "labels"),
        ({"predictions": np.array([0, 1, 2, -1])}, "predictions"),
        ({"predictions": np.zeros(4)}, "predictions"),
        ({"probabilities": np.zeros((4, 10))}, "probabilities"),
        ({"probabilities": np.array([0, 0, 0, 1.5])}, "probabilities"),
        ({"probabilities": np.array([0, 0, 0, np.nan])}, "probabilities"),
    ],
)
def test_predictions_refuse(unhooked, change, named):
    arguments = {
        "images": pictures(4, 8, 8, 3),
        "labels": np.arange(4),
        "predictions": np.arange(4),
        "probabilities": np.full(4, 0.5),
    } | change
    with pytest.raises(ValueError, match=rf"^{named} "):
        viz.prediction_grid(**arguments, class_names=NAMES)


# First-layer filters


def test_filters_show_their_display_values():
    kernels = np.random.default_rng(0).normal(0, 0.1, (5, 7, 3, 14))
    kernels[..., 3] *= 3
    fig, ax = viz.first_layer_filters(kernels)
    screen = rendered(fig)
    scale = np.abs(kernels).max()
    assert labels(ax)[0] == "14 filters of 5 x 7 x 3"
    assert f"black is {-scale:.3g}" in " ".join(labels(ax)[:3])
    assert f"white {scale:.3g}" in " ".join(labels(ax)[:3])
    assert len(ax.images) == 14
    for index, picture in enumerate(ax.images):
        expected = 0.5 + kernels[..., index] / (2 * scale)
        np.testing.assert_allclose(np.asarray(picture.get_array()), expected, atol=1e-6)
        np.testing.assert_allclose(
            seen(screen, picture).astype(float), enlarged(expected, 9) * 255, atol=1
        )
        rms = np.sqrt((kernels[..., index] ** 2).mean())
        left, _, _, bottom = box(picture)
        number, written = (
            text.get_text()
            for text in ax.texts
            if bottom < text.get_position()[1] < bottom + 10
            and left <= text.get_position()[0] < left + 70
        )
        assert number == str(index)
        assert float(written) == pytest.approx(rms, rel=0.06)


@pytest.mark.parametrize(
    "kernels",
    [
        np.ones((3, 3, 4, 2)),
        np.ones((3, 3, 3)),
        np.ones((3, 3, 3, 0)),
        np.full((3, 3, 3, 2), np.nan),
    ],
)
def test_filters_refuse(unhooked, kernels):
    with pytest.raises(ValueError, match=r"^kernels "):
        viz.first_layer_filters(kernels)


# Projections


def projected(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# Signed maps


def test_a_heat_map_is_symmetric_about_zero():
    values = np.array([[-2.0, 0.0], [1.0, 0.5]])
    fig, ax = viz.heat_map(values, "saliency of cat")
    screen = rendered(fig)
    colormap = matplotlib.colormaps["PuOr_r"]
    picture, bar = ax.images
    expected = colormap((values + 2) / 4, bytes=True)[..., :3]
    np.testing.assert_array_equal(seen(screen, picture), enlarged(expected, 128))
    ends = seen(screen, bar)[0, [0, -1]]
    np.testing.assert_array_equal(ends, colormap([0.0, 1.0], bytes=True)[:, :3])
    assert labels(ax)[0] == "saliency of cat"
    assert labels(ax)[-3:] == ["0", "-2", "2"]
    # Above zero is orange, more red than blue; below it is purple.
    red, _, blue = seen(screen, picture).astype(int).transpose(2, 0, 1)
    assert blue[0, 0] > red[0, 0] and red[-1, 0] > blue[-1, 0]
    zero = seen(screen, picture)[0, -1].astype(int)
    assert np.ptp(zero) < 5


def test_a_heat_map_sums_its_channels():
    values = projected(5, 4, 3)
    _, ax = viz.heat_map(jnp.asarray(values), "saliency")
    shown = np.asarray(ax.images[0].get_array())
    np.testing.assert_allclose(shown, values.sum(2), rtol=1e-5)
    assert "summed over 3 channels" in labels(ax)[1]


def test_a_heat_map_cut_at_a_scale_says_so():
    _, ax = viz.heat_map(np.array([[-3.0, 1.0]]), "saliency", 2.0)
    assert ax.images[0].norm.vmin == -2 and ax.images[0].norm.vmax == 2
    assert labels(ax)[-2:] == ["-2", "2"]
    assert "up to 3 in magnitude, cut at 2" in labels(ax)[1]
    _, ax = viz.heat_map(np.array([[-1.5, 1.0]]), "saliency", 2.0)
    assert "cut" not in labels(ax)[1]


def test_a_heat_map_of_zeros_is_neutral_and_says_so():
    fig, ax = viz.heat_map(np.zeros((3, 3)), "saliency")
    assert np.ptp(seen(rendered(fig), ax.images[0]).astype(int)) < 5
    assert "all 0" in labels(ax)[1]


def test_an_overlay_covers_in_proportion_to_magnitude():
    image = pictures(4, 4, 3)
    values = np.array([[1.0, -0.5], [0.0, 0.25]])
    fig, ax = viz.overlay(image, values, "saliency")
    screen = rendered(fig).astype(float)
    original, grey, covering, _ = ax.images
    np.testing.assert_array_equal(seen(screen, original), enlarged(image, 64))
    assert box(grey) == box(covering)
    luma = 0.4 + 0.6 * (image @ np.array([0.299, 0.587, 0.114])) / 255
    luma = np.round(luma * 255).repeat(64, 0).repeat(64, 1)[..., None]
    colors = matplotlib.colormaps["PuOr_r"]((values + 1) / 2)[..., :3] * 255
    alpha = enlarged(np.abs(values)[..., None], 128)
    expected = luma * (1 - alpha) + enlarged(colors, 128) * alpha
    np.testing.assert_allclose(seen(screen, covering), expected, atol=2)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"values": np.zeros(4)}, "values"),
        ({"values": np.zeros((2, 2, 2, 2))}, "values"),
        ({"values": np.zeros((0, 2))}, "values"),
        ({"values": np.array([[1, 2]])}, "values"),
        ({"values": np.array([[1.0, np.nan]])}, "values"),
        ({"scale": 0.0}, "scale"),
        ({"scale": -1.0}, "scale"),
        ({"scale": np.inf}, "scale"),
        ({"scale": np.nan}, "scale"),
    ],
)
def test_heat_maps_refuse(unhooked, change, named):
    arguments = {"values": np.ones((2, 2)), "title": "saliency"} | change
    with pytest.raises(ValueError, match=rf"^{named} "):
        viz.heat_map(**arguments)
    with pytest.raises(ValueError, match=rf"^{named} "):
        viz.overlay(pictures(4, 4, 3), **arguments)


def test_overlay_refuses_what_is_no_picture(unhooked):
    for image in (pictures(4, 4), np.zeros((4, 4, 3))):
        with pytest.raises(ValueError, match=r"^image "):
            viz.overlay(image, np.ones((2, 2)), "saliency")


# Layout of every sheet

SHEETS = {
    "one picture": lambda: viz.prediction_grid(*predictions(1, 32, 32)),
    "pictures": lambda: viz.prediction_grid(*predictions(33, 32, 32)),
    "long names": lambda: viz.prediction_grid(*predictions(9, 8, 8, names=LONG_NAMES)),
    "large rectangles": lambda: viz.prediction_grid(*predictions(5, 300, 450)),
    "tall": lambda: viz.prediction_grid(*predictions(5, 40, 10)),
    "filters": lambda: viz.first_layer_filters(
        np.random.default_rng(0).normal(0, 1e-5, (7, 7, 3, 96))
    ),
    "a filter": lambda: viz.first_layer_filters(np.zeros((3, 3, 3, 1))),
    "evolution": lambda: course(4, 6, 15),
    "large evolution": lambda: course(1, 2, 224),
    "motion": lambda: viz.motion_chart(
        [1, 2, 5], {f"conv{i}": np.array([0.5, 0.3 + i / 1e3]) for i in range(5)}
    ),
    "heat map": lambda: viz.heat_map(projected(14, 14), "saliency"),
    "large heat map": lambda: viz.heat_map(projected(300, 500), "saliency"),
    "narrow heat map": lambda: viz.heat_map(projected(60, 2) * 1e-5, "saliency"),
    "overlay": lambda: viz.overlay(pictures(224, 224, 3), projected(7, 7), "saliency"),
    "narrow overlay": lambda: viz.overlay(
        pictures(60, 2, 3), projected(60, 2, 3) * 1e5, "saliency " * 9, 1.0
    ),
}


@pytest.mark.parametrize("name", SHEETS)
def test_sheets_keep_everything_apart_and_inside(name):
    fig, ax = SHEETS[name]()
    height, width = rendered(fig).shape[:2]
    # What is translucent is meant to cover something.
    boxes: list[tuple[float, ...]] = [
        box(picture) for picture in ax.images if picture.get_alpha() is None
    ]
    for text in ax.texts:
        extent = text.get_window_extent()
        boxes.append((extent.x0, height - extent.y1, extent.x1, height - extent.y0))
    left, top, right, bottom = np.array(boxes).T
    assert left.min() >= 0 and top.min() >= 0
    assert right.max() <= width and bottom.max() <= height
    # A line of text is taller than its letters, so lines may touch by a pixel or two.
    overlap = (
        (np.minimum.outer(right, right) - np.maximum.outer(left, left) > 1)
        & (np.minimum.outer(bottom, bottom) - np.maximum.outer(top, top) > 3)
        & ~np.eye(len(boxes), dtype=bool)
    )
    assert not overlap.any(), np.argwhere(overlap)[:3]


# Units over a dataset, and over training


def course(units: int, steps: int, side: int, **changed: Any) -> tuple[Figure, Axes]:
    arguments = {
        "title": "conv3",
        "epochs": [2**step for step in range(steps)],
        "captions": [f"unit {unit}" for unit in range(units)],
        "projections": projected(units, steps, side, side, 3),
        "patches": pictures(units, steps, side, side, 3),
        "jumps": np.zeros((units, steps), bool),
    }
    return viz.evolution_grid(**{**arguments, **changed})


def pixels_of(screen: np.ndarray, picture: AxesImage, side: int) -> np.ndarray:
    """An enlarged picture, a pixel for each of its squares."""
    enlarged = seen(screen, picture)
    factor = len(enlarged) // side
    assert enlarged.shape[:2] == (side * factor, side * factor)
    return enlarged[factor // 2 :: factor, factor // 2 :: factor]


def test_evolution_has_a_column_for_each_epoch_and_marks_jumps():
    values, patches = projected(2, 3, 5, 5, 3), pictures(2, 3, 5, 5, 3)
    jumps = np.zeros((2, 3), bool)
    jumps[1, 2] = True
    fig, ax = course(2, 3, 5, projections=values, patches=patches, jumps=jumps)
    screen = rendered(fig)
    for unit in range(2):
        for step in range(3):
            above, below = ax.images[6 * unit + 2 * step : 6 * unit + 2 * step + 2]
            expected, _ = viz.display(values[unit, step])
            shown = pixels_of(screen, above, 5)
            np.testing.assert_allclose(shown / 255, expected, atol=5e-3)
            np.testing.assert_array_equal(
                pixels_of(screen, below, 5), patches[unit, step]
            )
    (bar,) = ax.lines
    x, y = np.asarray(bar.get_xydata())[0]
    left, upper, *_ = box(ax.images[6 + 4])
    assert left - 8 < x < left and y == upper


def test_motion_lines_hold_the_numbers():
    motion = {"conv1": np.array([0.4, 0.1]), "conv2": np.array([0.5, 0.1])}
    _, ax = viz.motion_chart([1, 2, 5], motion)
    for line, values in zip(ax.lines, motion.values(), strict=True):
        np.testing.assert_array_equal(line.get_data(), [[2, 5], values])
    names = {x.get_text(): x.xy[1] for x in ax.texts if isinstance(x, Annotation)}
    assert names["conv1"] == 0.1 < names["conv2"], "names of equal ends overlap"


def test_patches_are_cut_where_boxes_lie():
    images = pictures(2, 4, 5, 3)
    boxes = np.array([[1, 1, 3, 4], [-1, 3, 1, 6]])
    patches = viz.image_patches(images, boxes)
    np.testing.assert_array_equal(patches[0], images[0, 1:3, 1:4])
    np.testing.assert_array_equal(patches[1, 1, :2], images[1, 0, 3:])
    assert (patches[1, 0] == 128).all() and (patches[1, :, 2] == 128).all()
    assert viz.outside(boxes, (4, 5)).tolist() == [[0, 0, 0, 0], [1, 0, 0, 1]]


@pytest.mark.parametrize(
    ("draw", "changed", "named"),
    [
        (course, {"epochs": [1]}, "epochs"),
        (course, {"captions": []}, "captions"),
        (course, {"jumps": np.zeros((2, 3), bool)}, "jumps"),
    ],
)
def test_grids_of_units_refuse(unhooked, draw, changed, named):
    with pytest.raises(ValueError, match=named):
        draw(2, 4, 5, **changed)


@pytest.mark.parametrize("motion", [{}, {"conv1": np.zeros(3)}])
def test_motion_refuses(unhooked, motion):
    with pytest.raises(ValueError, match="motion"):
        viz.motion_chart([1, 2, 5], motion)


# Files

FIGURES = {
    "motion": lambda: viz.motion_chart([1, 2, 3], {"conv1": np.array([0.2, 0.1])})[0],
    "curves": lambda: viz.training_curves(history(7))[0],
    "confusion": lambda: viz.confusion_matrix(np.eye(10, dtype=int) * 9, NAMES)[0],
    "predictions": lambda: viz.prediction_grid(*predictions(4, 8, 8))[0],
    "overlay": lambda: viz.overlay(pictures(9, 9, 3), projected(3, 3), "saliency")[0],
}


@pytest.mark.parametrize("name", FIGURES)
def test_saved_bytes_are_the_same_and_undated(tmp_path, name):
    saved = []
    for run in ("first", "second"):
        folder = tmp_path / run
        folder.mkdir()
        fig = FIGURES[name]()
        paths = viz.save_figure(fig, folder / f"{name}.png")
        assert sorted(folder.iterdir()) == sorted(paths)
        saved.append({path.name: path.read_bytes() for path in paths})
    assert saved[0] == saved[1]
    pdf = {f"{name}.pdf"} if name in ("curves", "confusion", "motion") else set()
    assert set(saved[0]) == {f"{name}.png"} | pdf
    for content in saved[0].values():
        for word in (
            b"Date",
            b"Software",
            b"Producer",
            matplotlib.__version__.encode(),
        ):
            assert word not in content
    np.testing.assert_array_equal(
        np.round(imread(io.BytesIO(saved[0][f"{name}.png"]))[..., :3] * 255),
        rendered(fig),
    )


def test_save_refuses_other_formats(tmp_path):
    with pytest.raises(ValueError, match=r"path must end in \.png, got .*\.jpg"):
        viz.save_figure(Figure(), tmp_path / "figure.jpg")
    with pytest.raises(OSError):
        viz.save_figure(Figure(), tmp_path / "missing" / "figure.png")


def test_names_are_not_read_as_mathematics():
    names = ["$x_1$", "a $ b $ c", "c_1^"]
    fig, ax = viz.confusion_matrix(np.eye(3, dtype=int), names)
    rendered(fig)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == names
    assert not any(tick.get_parse_math() for tick in ax.get_xticklabels())
    _, ax = viz.prediction_grid(*predictions(3, 8, 8, names=names))
    assert not any(text.get_parse_math() for text in ax.texts)


def test_drawing_sets_no_global_state():
    code = """
import sys, matplotlib, numpy as np
def settings():  # reading the backend would itself load pyplot
    return {key: matplotlib.rcParams[key] for key in matplotlib.rcParams
            if key != "backend"}
before = settings()
from zfnet_jax import viz
viz.confusion_matrix(np.eye(2, dtype=int), ["a", "b"])
viz.first_layer_filters(np.ones((3, 3, 3, 2)))
assert settings() == before
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
