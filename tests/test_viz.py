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
from matplotlib.figure import Figure
from matplotlib.image import AxesImage, imread

from zfnet_jax import viz
from zfnet_jax.projections import Projections
from zfnet_jax.viz.projections import Scale

NAMES = "airplane automobile bird cat deer dog frog horse ship truck".split()
LONG_NAMES = [f"Staffordshire bullterrier number {index}" for index in range(10)]


@pytest.fixture
def unhooked(monkeypatch):
    """What users see: the functions' own errors, without the tests' shape checks."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def pictures(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def maps(*shape: int, seed: int = 0) -> np.ndarray:
    normal = np.random.default_rng(seed).normal(size=shape)
    return np.maximum(normal, 0).astype(np.float32)


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


# Confusions


# Predictions


# Feature maps


def test_maps_lie_in_order_on_one_scale():
    image, values = pictures(32, 32, 3), maps(13, 13, 9)
    values[..., 4] = 0
    fig, ax = viz.feature_maps(image, jnp.asarray(values), "conv3")
    screen = rendered(fig)
    assert labels(ax)[:2] == [
        "conv3: 9 maps of 13 x 13",
        "1 of 9 dead here: zero everywhere, crossed out",
    ]
    first, *shown, bar = ax.images
    np.testing.assert_array_equal(seen(screen, first), enlarged(image, 6))
    colormap = matplotlib.colormaps["inferno"]
    assert len(shown) == 9
    corners = [box(picture)[:2] for picture in shown]
    assert corners == sorted(corners, key=lambda corner: corner[::-1])
    for channel, picture in enumerate(shown):
        np.testing.assert_array_equal(picture.get_array(), values[..., channel])
        expected = colormap(values[..., channel] / values.max(), bytes=True)[..., :3]
        if channel != 4:
            np.testing.assert_array_equal(seen(screen, picture), enlarged(expected, 4))
    ends = seen(screen, bar)[:, [0, -1]]
    np.testing.assert_array_equal(ends[0], colormap([0.0, 1.0], bytes=True)[:, :3])
    assert labels(ax)[-2:] == ["0", f"{values.max():.3g}"]

    left, top, right, bottom = box(shown[4])
    assert len(ax.lines) == 2
    for line in ax.lines:
        assert set(np.asarray(line.get_xdata())) == {left, right}
        assert set(np.asarray(line.get_ydata())) == {top, bottom}


def test_maps_beyond_the_limit_are_counted():
    values = maps(4, 4, 70)
    values[..., [3, 69]] = 0
    values[0, 0, 68] = 100
    _, ax = viz.feature_maps(pictures(32, 32, 3), values, "conv5", max_maps=16)
    assert labels(ax)[0] == "conv5: 16 of 70 maps of 4 x 4"
    assert labels(ax)[1].startswith("2 of 70 dead here")
    assert len(ax.images) == 18
    assert len(ax.lines) == 2
    # The scale is of what is shown.
    assert labels(ax)[-1] == f"{values[..., :16].max():.3g}"
    assert [text for text in labels(ax) if text.isdigit()][:16] == [
        str(channel) for channel in range(16)
    ]


@pytest.mark.parametrize("sign", [1, -1])
def test_maps_below_zero_have_a_symmetric_scale(sign):
    values = sign * np.array([[[-1.0, 0.5], [0.0, 0.25]]])
    _, ax = viz.feature_maps(pictures(8, 8, 3), values, "edges")
    for picture in ax.images[1:]:
        assert (picture.norm.vmin, picture.norm.vmax) == (-1.0, 1.0)
    assert labels(ax)[-2:] == ["-1", "1"]


def test_maps_of_zeros_are_all_dead():
    fig, ax = viz.feature_maps(pictures(8, 8, 3), np.zeros((1, 1, 3)), "fc6")
    screen = rendered(fig)
    assert labels(ax)[1].startswith("3 of 3 dead here")
    assert len(ax.lines) == 6
    assert not seen(screen, ax.images[-1])[:, :, 0].any()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"image": pictures(8, 8, 4)}, "image"),
        ({"image": np.zeros((8, 8, 3))}, "image"),
        ({"maps": maps(4, 4)}, "maps"),
        ({"maps": maps(4, 4, 0)}, "maps"),
        ({"maps": np.full((4, 4, 2), np.inf)}, "maps"),
        ({"max_maps": 0}, "max_maps"),
    ],
)
def test_maps_refuse(unhooked, change, named):
    arguments = {"image": pictures(8, 8, 3), "maps": maps(4, 4, 2), "layer": "conv1"}
    with pytest.raises(ValueError, match=rf"^{named} "):
        viz.feature_maps(**(arguments | change))


# First-layer filters


# Projections


def projected(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_projections_by_hand_on_each_scale():
    pixels = np.array([[2.0, -1.0], [-4.0, 0.0], [1.0, 8.0], [0.0, 0.0]])
    units = np.array([7, 7, 3, 9])
    by_hand: dict[Scale, list[float]] = {
        "patch": [2.0, 4.0, 8.0, 0.0],
        "unit": [4.0, 4.0, 8.0, 0.0],
        "layer": [8.0, 8.0, 8.0, 8.0],
    }
    for scale, scales in by_hand.items():
        shown, used = viz.display_projections(pixels, units, scale)
        assert used.tolist() == scales
        assert shown.dtype == np.float32
        safe = np.where(used == 0, 1, used)[:, None]
        np.testing.assert_allclose(shown, 0.5 + pixels / (2 * safe), rtol=1e-6)


def test_projections_have_their_own_scale_unless_told():
    pixels = projected(3, 5, 4, 3) * np.array([1, 10, 100.0])[:, None, None, None]
    shown, scales = viz.display_projections(pixels, np.zeros(3, int))
    for index in range(3):
        alone, scale = viz.display(pixels[index])
        assert scales[index] == scale
        np.testing.assert_array_equal(shown[index], alone)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"pixels": np.full((2, 3, 3, 3), np.nan)}, "pixels"),
        ({"pixels": np.zeros((0, 3, 3, 3))}, "pixels"),
        ({"pixels": np.ones((2, 3, 3, 3), int)}, "pixels"),
        ({"pixels": np.float32(1)}, "pixels"),
        ({"units": np.zeros(3, int)}, "units"),
        ({"units": np.zeros(2)}, "units"),
        ({"scale": "filter"}, "scale"),
    ],
)
def test_display_of_projections_refuses(unhooked, change, named):
    arguments = {"pixels": projected(2, 3, 3, 3), "units": np.zeros(2, int)} | change
    with pytest.raises(ValueError, match=rf"^{named} "):
        viz.display_projections(**arguments)


def grid(rows: int = 3, height: int = 9, width: int = 7, **changes: Any):
    """Rows of one unit each, whose boxes walk out of a picture of 12 x 10."""
    place = np.arange(rows)
    arguments: dict[str, Any] = {
        "title": "conv3 of a network",
        "image": pictures(12, 10, 3),
        "boxes": np.stack(
            [place - 2, 3 * place - 4, place - 2 + height, 3 * place - 4 + width], 1
        ),
        "units": place,
        "captions": [f"unit {index}: {index / 7:.3g}" for index in range(rows)],
        "projections": {
            rule: projected(rows, height, width, 3, seed=seed) * 10.0 ** (-3 * seed)
            for seed, rule in enumerate(("deconvnet", "guided", "gradient"))
        },
    } | changes
    return viz.projection_grid(**arguments), arguments


@pytest.mark.parametrize("scale", ["patch", "unit", "layer"])
def test_projections_lie_beside_what_they_see(scale):
    (fig, ax), given = grid(units=np.array([5, 2, 5]), scale=scale)
    screen = rendered(fig)
    image, *shown = ax.images
    np.testing.assert_array_equal(seen(screen, image), enlarged(given["image"], 16))
    assert len(shown) == 3 * 4
    padded = np.pad(given["image"], ((2, 9), (4, 9), (0, 0)), constant_values=128)
    corners = np.array([box(picture)[:2] for picture in shown]).reshape(3, 4, 2)
    # Columns and rows are straight, from left to right and from top to bottom.
    assert (corners[..., 0] == corners[:1, :, 0]).all()
    assert (corners[..., 1] == corners[:, :1, 1]).all()
    assert (np.diff(corners[0, :, 0]) > 0).all() and (
        np.diff(corners[:, 0, 1]) > 0
    ).all()
    written = {text.get_position(): text.get_text() for text in ax.texts}
    for row in range(3):
        patch, *projections = shown[4 * row : 4 * row + 4]
        expected = padded[row : row + 9, 3 * row : 3 * row + 7]
        np.testing.assert_array_equal(seen(screen, patch), enlarged(expected, 14))
        x, y = corners[row, 0]
        assert written[x, y - 16] == given["captions"][row]
        for column, rule in enumerate(given["projections"]):
            pixels = given["projections"][rule]
            colors, scales = viz.display_projections(pixels, given["units"], scale)
            np.testing.assert_allclose(
                seen(screen, projections[column]).astype(float),
                enlarged(colors[row], 14) * 255,
                atol=1,
            )
            left, _, _, bottom = box(projections[column])
            assert written[left, bottom + 4] == f"± {scales[row]:.3g}"
    headings = {written[x, corners[0, 0, 1] - 36] for x in corners[0, :, 0]}
    assert headings == {"image", "deconvnet", "guided", "gradient"}
    assert labels(ax)[0] == "conv3 of a network"
    assert "outside the image" in " ".join(labels(ax)[1:4])


def test_a_projection_of_zeros_is_mid_grey_and_says_so():
    (fig, ax), _ = grid(
        boxes=np.array([[0, 0, 9, 7]] * 3),
        projections={"deconvnet": np.zeros((3, 9, 7, 3))},
    )
    screen = rendered(fig)
    for picture in ax.images[2::2]:
        assert np.unique(seen(screen, picture)).tolist() in ([127], [128])
    assert labels(ax).count("all 0") == 3
    assert "outside" not in " ".join(labels(ax))


@pytest.mark.parametrize(
    ("corner", "kept"),
    [
        ((-9, 0), 0),
        ((12, 0), 0),
        ((0, 10), 0),
        ((0, -7), 0),
        ((11, 9), 1),
        ((-8, -6), 1),
    ],
)
def test_boxes_may_leave_the_image_altogether(corner, kept):
    image = np.full((12, 10, 3), 255, np.uint8)
    (_, ax), _ = grid(
        1, image=image, boxes=np.array([[*corner, corner[0] + 9, corner[1] + 7]])
    )
    patch = np.asarray(ax.images[1].get_array())
    assert patch.shape == (9, 7, 3)
    assert (patch == 255).sum() == 3 * kept and (patch == 128).sum() == 3 * (63 - kept)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"image": pictures(12, 10, 4)}, "image"),
        ({"image": np.zeros((12, 10, 3))}, "image"),
        ({"boxes": np.zeros((3, 4))}, "boxes"),
        ({"boxes": np.array([[0, 0, 9, 7], [0, 0, 9, 7], [0, 0, 9, 8]])}, "boxes"),
        ({"boxes": np.array([[9, 7, 0, 0]] * 3)}, "boxes"),
        ({"units": np.arange(4)}, "units"),
        ({"captions": ["one"]}, "captions"),
        ({"projections": {}}, "projections"),
        (
            {"projections": {"guided": projected(3, 9, 8, 3)}},
            r"projections\['guided'\]",
        ),
        (
            {"projections": {"guided": np.full((3, 9, 7, 3), np.inf)}},
            r"projections\['guided'\]",
        ),
        ({"scale": "image"}, "scale"),
    ],
)
def test_projections_refuse(unhooked, change, named):
    with pytest.raises(ValueError, match=rf"^{named} "):
        grid(**change)


# Signed maps


def projections_of(pixels: np.ndarray, images=None) -> Projections:
    """Projections of units 10, 11 ... with activations 0.5, 1.5 ..."""
    count = len(pixels)
    zeros = np.zeros((count, 4), np.int32)
    images = zeros[:, 0] if images is None else np.asarray(images, np.int32)
    units = np.arange(10, 10 + count, dtype=np.int32)
    activations = np.arange(count, dtype=np.float32) + 0.5
    return Projections(pixels, zeros, images, units, zeros[:, :2], activations)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_shown_projections_are_clipped_at_a_percentile(channels):
    pixels = np.zeros((3, 40, 30, channels), np.float32)
    pixels[0, :20] = np.random.default_rng(0).normal(size=(20, 30, channels))
    pixels[0, 0, 0], pixels[1, 3, 4] = 100, -2
    fig = projections_of(pixels, [0, 0, 1]).show()
    (ax,) = fig.axes
    (first, second, third) = ax.images
    size = np.subtract(box(first)[2:], box(first)[:2])
    assert size[0] >= 90 and size[1] >= 120 and not (size % (30, 40)).any()
    values = pixels if channels == 3 else pixels.sum(3)
    magnitudes = np.sort(np.abs(values[0][values[0] != 0]))
    scale = np.percentile(magnitudes, 99.5)
    assert scale < 10
    drawn = np.asarray(first.get_array())
    np.testing.assert_allclose(
        drawn, np.clip(0.5 + values[0] / (2 * scale), 0, 1), atol=1e-6
    )
    one = np.asarray(second.get_array()).reshape(40, 30, -1)
    assert (one[3, 4] == 0).all() and (np.delete(one.ravel(), 0) == 0.5).sum() > 1000
    assert (np.asarray(third.get_array()) == 0.5).all()
    pixel = size // (30, 40)
    screen = seen(rendered(fig), second)[3 * pixel[1] : 5 * pixel[1]]
    dark = (screen < 3).all(-1)
    assert dark.sum() == pixel.prod()
    text = labels(ax)
    assert "unit 12, activation 2.5" in text and "image 1, all zero" in text
    assert f"image 0, scale ± {scale:.3g}" in text
    assert ("summed over 2 channels" in " ".join(text)) == (channels == 2)


def test_many_shown_projections_are_counted():
    fig = projections_of(np.ones((70, 3, 3, 3), np.float32)).show()
    (ax,) = fig.axes
    assert len(ax.images) == 64 and labels(ax)[0] == "70 projections"
    assert any("6 more are not drawn" in line for line in labels(ax))
    assert "scale ± 1" in labels(ax)
    with pytest.raises(ValueError, match="no projections"):
        projections_of(np.ones((0, 3, 3, 3), np.float32)).show()


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
    "maps": lambda: viz.feature_maps(pictures(32, 32, 3), maps(16, 16, 96), "conv2"),
    "512 maps": lambda: viz.feature_maps(
        pictures(32, 32, 3), maps(3, 3, 512), "conv5", max_maps=512
    ),
    "1 x 1": lambda: viz.feature_maps(pictures(32, 32, 3), maps(1, 1, 20), "fc6"),
    "one map": lambda: viz.feature_maps(pictures(2, 2, 3), maps(4, 4, 1), "conv1"),
    "narrow maps": lambda: viz.feature_maps(
        pictures(40, 10, 3), maps(24, 2, 120), "conv1", max_maps=120
    ),
    "large maps": lambda: viz.feature_maps(
        pictures(224, 224, 3), maps(110, 110, 12), "conv1"
    ),
    "long layer": lambda: viz.feature_maps(
        pictures(8, 8, 3), maps(4, 4, 2), "a layer with a long name " * 3
    ),
    "projections": lambda: grid(9, 37, 37)[0],
    "large projections": lambda: grid(3, 224, 224, image=pictures(224, 224, 3))[0],
    "projections of one pixel": lambda: grid(40, 1, 1)[0],
    "projections of a strip": lambda: grid(5, 3, 100)[0],
    "one projection": lambda: grid(1, image=pictures(2, 90, 3))[0],
    "long captions": lambda: grid(4, captions=LONG_NAMES[:4])[0],
    "top features": lambda: top(7, 9, 39),
    "top features of a pixel": lambda: top(3, 4, 1),
    "large top features": lambda: top(1, 2, 224),
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


def top(units: int, k: int, side: int, **changed: Any) -> tuple[Figure, Axes]:
    arguments = {
        "title": "conv3",
        "captions": [f"unit {unit}: 5.1 to 4.2" for unit in range(units)],
        "projections": projected(units, k, side, side, 3),
        "patches": pictures(units, k, side, side, 3),
        "outside": np.zeros((units, k, 4), int),
    }
    return viz.top_features(**{**arguments, **changed})


def pixels_of(screen: np.ndarray, picture: AxesImage, side: int) -> np.ndarray:
    """An enlarged picture, a pixel for each of its squares."""
    enlarged = seen(screen, picture)
    factor = len(enlarged) // side
    assert enlarged.shape[:2] == (side * factor, side * factor)
    return enlarged[factor // 2 :: factor, factor // 2 :: factor]


def test_top_features_stand_in_squares_in_order():
    values, patches = projected(2, 4, 5, 5, 3), pictures(2, 4, 5, 5, 3)
    fig, ax = top(2, 4, 5, projections=values, patches=patches)
    screen = rendered(fig)
    assert len(ax.images) == 16
    for unit in range(2):
        for rank in range(4):
            left, right = (ax.images[8 * unit + 2 * rank + side] for side in (0, 1))
            expected, _ = viz.display(values[unit, rank])
            shown = pixels_of(screen, left, 5)
            np.testing.assert_allclose(shown / 255, expected, atol=5e-3)
            np.testing.assert_array_equal(
                pixels_of(screen, right, 5), patches[unit, rank]
            )
            # The square of patches lies to the right, each at the same place in it.
            first = ax.images[8 * unit], ax.images[8 * unit + 1]
            steps = [
                np.subtract(box(picture)[:2], box(start)[:2]).tolist()
                for picture, start in zip((left, right), first, strict=True)
            ]
            assert steps[0] == steps[1]
            assert steps[0] == [47 * (rank % 2), 47 * (rank // 2)]
            assert box(left)[0] < box(right)[0]


def test_a_line_marks_where_the_image_ends():
    outside = np.zeros((1, 1, 4), int)
    outside[0, 0] = [2, 0, 0, 1]
    _, ax = top(1, 1, 8, outside=outside)
    left, upper, right, lower = box(ax.images[1])
    pixel = (lower - upper) / 8
    lines = [np.asarray(line.get_xydata()).tolist() for line in ax.lines]
    end = right - pixel
    assert lines == [
        [[left, upper + 2 * pixel], [end, upper + 2 * pixel]],
        [[end, upper + 2 * pixel], [end, lower]],
    ]
    _, ax = top(1, 1, 8)
    assert not ax.lines


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
        (top, {"captions": ["one"]}, "captions"),
        (top, {"patches": pictures(2, 3, 5, 5, 3)}, "patches"),
        (top, {"outside": np.zeros((2, 4, 3), int)}, "outside"),
        (top, {"scale": "none"}, "scale"),
        (top, {"projections": np.full((2, 4, 5, 5, 3), np.nan)}, "projections"),
    ],
)
def test_grids_of_units_refuse(unhooked, draw, changed, named):
    with pytest.raises(ValueError, match=named):
        draw(2, 4, 5, **changed)


# Files

FIGURES = {
    "projections": lambda: grid()[0][0],
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
    assert set(saved[0]) == {f"{name}.png"}
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


def test_drawing_sets_no_global_state():
    code = """
import sys, matplotlib, numpy as np
def settings():  # reading the backend would itself load pyplot
    return {key: matplotlib.rcParams[key] for key in matplotlib.rcParams
            if key != "backend"}
before = settings()
from zfnet_jax.viz.training import confusion_matrix
confusion_matrix(np.eye(2, dtype=int), ["a", "b"])
assert settings() == before
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
