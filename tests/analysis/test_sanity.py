"""Comparisons of pictures with known answers."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import skimage.filters

import zfnet_jax as zf
from tests.comparison import assert_close
from tests.networks import SMALL, residual_form, residual_images
from tests.references.deconvnet_cases import draw_state
from zfnet_jax.analysis.sanity import (
    cascade,
    controls,
    find_edges,
    sanity,
    similarity,
)
from zfnet_jax.arch import Architecture, Conv, Dense
from zfnet_jax.attribution import attribute
from zfnet_jax.networks import network
from zfnet_jax.results import summarize
from zfnet_jax.viz.sanity import EMPTY, spell_means

RULES = ("deconvnet", "guided", "gradient")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(7, 16, 16, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    state = draw_state(SMALL)
    state["conv2.bias"] += 1  # several units are active at a place
    return zf.load_weights(state, SMALL)


def build(*layers, hw=16) -> zf.ConvNet:
    arch = Architecture("tiny", (hw, hw), layers)
    return zf.load_weights(draw_state(arch), arch)


def features(model: zf.ConvNet, images, layer: str) -> np.ndarray:
    return network(model).activations(images, layer)[layer]


# Measures


def test_edges_are_scikit_images(images):
    for image, contours in zip(images, np.asarray(find_edges(images)), strict=True):
        expected = np.stack([skimage.filters.sobel(x) for x in image.T], -1)
        # It divides by 4, and by the root of the number of directions.
        expected = 4 * np.sqrt(2) * expected.swapaxes(0, 1)
        np.testing.assert_allclose(contours, expected, atol=1e-4)
    assert not np.asarray(find_edges(np.ones((1, 5, 6, 3), np.float32))).any()


def test_a_picture_is_like_itself_whatever_its_scale(images):
    same = similarity(images, 3 * images)
    np.testing.assert_allclose(same, 1, atol=1e-5)
    turned = similarity(images, -images)
    np.testing.assert_allclose(turned.signed, -1, atol=1e-6)
    np.testing.assert_allclose(turned.magnitude, 1, atol=1e-6)
    np.testing.assert_allclose(turned.ssim, 1, atol=1e-5)
    empty = similarity(images, 0 * images)
    assert np.isnan(empty).all()


def test_empty_pictures_are_left_out_of_means(images):
    """A class with negative weights alone has no picture by the deconvnet."""
    net = build(Conv("conv1", 4, kernel=3), Dense("logits", 2, relu=False))
    kernel = jnp.abs(net.logits.kernel[...])
    net.logits.kernel[...] = kernel * jnp.array([1, -1])
    result = sanity(net, images[:3], [0, 1, 1], rules=["deconvnet"])
    signed = result.similarity["deconvnet"].signed
    assert result.empty["deconvnet"][:, 0].tolist() == [False, True, True]
    assert np.isnan(signed[:, 0]).tolist() == [False, True, True]
    assert spell_means(signed)[0] == "1.00 of 1"
    assert spell_means(signed[1:]) == [EMPTY] * len(result.columns)
    summary = summarize(np.array([[1, np.nan], [3, np.nan], [np.nan, 5]]))
    np.testing.assert_allclose(summary.mean, [2, 5])
    np.testing.assert_allclose(summary.spread, [np.sqrt(2), np.nan])
    assert summary.known.tolist() == [2, 1]


def test_only_pixels_inside_count(images):
    inside = np.zeros((7, 16, 16), bool)
    inside[:, 2:9, 3:] = True
    other = np.where(inside[..., None], images, images[::-1])
    np.testing.assert_allclose(similarity(images, other, inside), 1, atol=1e-5)
    cut = similarity(images, images[::-1], inside)
    expected = scipy.stats.spearmanr(
        images[0, 2:9, 3:].ravel(), images[-1, 2:9, 3:].ravel()
    )[0]
    assert cut.signed[0] == pytest.approx(expected)


# Layers that are destroyed


def weights(net, layer: str) -> list[np.ndarray]:
    arrays = []
    net.map_weights(layer, lambda array: arrays.append(np.asarray(array)) or array)
    return arrays


def test_the_cascade_redraws_layers_from_the_top_and_nothing_else(model):
    net = network(model)
    names = ["logits", "fc3", "conv2", "conv1"]
    before = {name: weights(net, name) for name in names}
    stages = list(cascade(net, 3))
    assert [name for name, _ in stages] == names
    for count, (_, stage) in enumerate(stages, 1):
        for name in names:
            # A layer is drawn once and stays as it is at later stages.
            first = weights(stages[names.index(name)][1], name)
            own = weights(stage, name)
            assert len(own) == 2
            for new, old, then in zip(own, before[name], first, strict=True):
                assert (new == old).all() == (name not in names[:count])
                assert name not in names[:count] or (new == then).all()
    for name in names:
        for new, old in zip(weights(net, name), before[name], strict=True):
            np.testing.assert_array_equal(new, old)
    last, other = (
        weights(list(cascade(net, seed))[-1][1], "conv1")[1] for seed in (3, 4)
    )
    assert (last != other).all()


def test_variances_stay_positive():
    """A residual network's normalization is shuffled, and no picture is NaN."""
    arguments, keywords, _ = residual_form("function")
    net = network(*arguments, **keywords)
    images = residual_images()
    result = sanity(net, images, 3, rules=["gradient"], shown=2)
    assert result.columns[:3] == ("trained", "fc", "block2.shortcut")
    assert "stem.pool" not in result.columns and result.columns[-2] == "stem"
    assert np.isfinite(result.pictures["gradient"]).all()
    # Each array is either drawn anew, or it keeps its values, none of them negative.
    last = list(cascade(net))[-1][1]
    for layer in result.columns[1:-1]:
        for old, new in zip(weights(net, layer), weights(last, layer), strict=True):
            assert (old < 0).any() != (np.sort(old, None) == np.sort(new, None)).all()


def test_pictures_are_attributions_of_the_class_at_each_stage(model, images):
    classes = np.array([0, 1, 2, 3, 4, 5, 6])
    result = sanity(model, images, classes, seed=5, shown=2)
    assert result.columns == ("trained", "logits", "fc3", "conv2", "conv1", "edges")
    net = network(model)
    stages = [net, *(stage for _, stage in cascade(net, 5))]
    contours = np.asarray(find_edges(images))
    for rule in RULES:
        assert result.pictures[rule].shape == (2, 6, 16, 16, 3)
        maps = [attribute(stage, images, classes, rule=rule) for stage in stages]
        for column, expected in enumerate([*maps, contours]):
            np.testing.assert_allclose(
                result.pictures[rule][:, column], expected[:2], rtol=1e-4, atol=1e-5
            )
            known = similarity(maps[0], expected)
            for ours, theirs in zip(result.similarity[rule], known, strict=True):
                np.testing.assert_allclose(ours[:, column], theirs, atol=0.01)
            np.testing.assert_array_equal(
                result.empty[rule][:, column], ~expected.any((1, 2, 3))
            )


def test_batches_do_not_matter(model, images, monkeypatch):
    done = []
    options = {"rules": RULES[:1], "shown": 5, "progress": lambda *x: done.append(x)}
    whole = controls(model, images, "conv2", **options)
    assert done == [(7, 7)]
    done.clear()
    monkeypatch.setattr("zfnet_jax.analysis.sanity._BATCH_SIZE", 3)
    parts = controls(model, images, "conv2", **options)
    assert done == [(3, 7), (6, 7), (7, 7)]
    assert_close(parts, whole, rtol=1e-3, atol=1e-3)


def test_upper_layers_that_do_not_matter_change_nothing(images):
    """One positive number goes down through a single map, whatever its size."""
    model = build(
        Conv("conv1", 3, 3, padding=1),
        Conv("conv2", 1, 16),
        Dense("logits", 4, relu=False),
    )
    model.conv2.bias[...] = jnp.full(1, 100.0)  # active in every image
    kernel = model.logits.kernel
    kernel[...] = jnp.asarray(1 + 0.01 * np.asarray(kernel[...]))
    result = sanity(model, images, np.arange(7) % 4, shown=1)
    assert result.columns[1:3] == ("logits", "conv2")
    for rule in RULES:
        trained, logits = result.pictures[rule][0, :2]
        assert (trained != logits).any()
        measures = np.stack(result.similarity[rule])
        np.testing.assert_allclose(measures[..., 1], 1, atol=1e-4)
        assert (measures[0, :, 2] < 0.9).all()


# What takes a unit's place


def test_controls_are_what_they_are_called(model, images):
    layer, rule = "conv2", "guided"
    result = controls(model, images, layer, seed=2, rules=[rule], shown=7)
    others = ("random there", "random everywhere", "another unit", "another image")
    assert result.columns == ("unit", *others, "edges")
    maps = features(model, images, layer)
    assert ((maps > 0).sum(-1).max((1, 2)) > 1).all()
    for i in range(3):
        position = np.unravel_index(maps[i].argmax(), maps.shape[1:])
        row, column, unit = (int(x) for x in position)
        rivals = maps[:, row, column, unit].copy()
        rivals[i] = -1
        pictures = result.pictures[rule][i]
        place = layer, range(maps.shape[-1]), (row, column)
        own, others = (
            zf.project(model, images[j][None], *place, rule=rule)
            for j in (i, int(rivals.argmax()))
        )
        value = own.activations[unit]
        np.testing.assert_allclose(pictures[0], own.pixels[unit] / value, atol=1e-5)
        value = others.activations[unit] or 1
        np.testing.assert_allclose(pictures[4], others.pixels[unit] / value, atol=1e-5)
        candidates = [
            np.abs(pictures[3] - own.pixels[u] / own.activations[u]).max()
            for u in np.flatnonzero(own.activations > 0)
            if u != unit
        ]
        assert min(candidates) < 1e-5
        top, left, bottom, right = zf.receptive_field(SMALL, layer).box(row, column)
        outside = np.ones((16, 16), bool)
        outside[top:bottom, left:right] = False
        beyond = pictures[:, outside]
        assert not beyond[[0, 1, 3, 4]].any() and beyond[2].any()


def test_without_switches_a_deconvnet_picture_knows_no_image(images):
    """By the deconvnet's rule only pooling depends on the image."""
    model = build(
        Conv("conv1", 4, 3, padding=1),
        Conv("conv2", 5, 3, padding=1),
        Dense("logits", 4, relu=False),
    )
    result = controls(model, images, "conv2", rules=RULES[:1])
    measures = np.stack(result.similarity["deconvnet"])
    np.testing.assert_allclose(measures[..., 4], 1, atol=1e-4)
    assert (measures[0, :, 3] < 0.9).all()


def test_bad_input_is_refused(model, images):
    with pytest.raises(ValueError, match=r"no layer .* weights"):
        sanity(lambda x: x.mean((1, 2)), images, 0)
    with pytest.raises(ValueError, match="at least two images, not 1"):
        controls(model, images[:1], "conv2")
