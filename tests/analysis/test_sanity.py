"""Measures against scipy and scikit-image, and comparisons with known answers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import skimage.filters
import skimage.metrics
from flax import nnx

import zfnet_jax as zf
from tests.references.deconvnet_cases import draw_state
from tests.references.small_network import SMALL
from zfnet_jax.analysis import (
    cascade,
    controls,
    edges,
    randomisation,
    similarity,
    spearman,
    ssim,
)
from zfnet_jax.arch import Architecture, Conv, Dense, MaxPool

pytestmark = pytest.mark.usefixtures("compiled_once")

RULES = ("deconvnet", "guided", "gradient")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(7, 16, 16, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    state = draw_state(SMALL)
    state["conv2.bias"] += 1  # several units are active at a place
    return zf.load_weights(state, SMALL)


def built(*layers, hw=16) -> zf.ConvNet:
    arch = Architecture("built", (hw, hw), layers)
    return zf.load_weights(draw_state(arch), arch)


def features(model: zf.ConvNet, images, layer: str) -> np.ndarray:
    found = jax.jit(lambda x: model.features(x, until=layer).features[layer])(images)
    return np.asarray(found)


# Measures


@pytest.mark.parametrize("count", [2, 3, 50, 3072])
@pytest.mark.parametrize("levels", [2, 9, None])
def test_ranks_correlate_as_by_scipy(count, levels):
    rng = np.random.default_rng(count)
    a, b = rng.normal(size=(2, count)).astype(np.float32)
    b += a
    if levels:
        a, b = (np.rint(levels * x / 4).astype(np.float32) for x in (a, b))
        a[: count // 2] *= -0.0  # equal to 0
        a[-1], b[-1] = 9, 9
    expected = scipy.stats.spearmanr(a, b)[0]
    assert spearman(a, b) == pytest.approx(expected, abs=1e-12)


def test_ranks_by_hand():
    a = np.array([1.0, 2.0, 2.0, 5.0])
    # About their mean -1.5, 0, 0, 1.5 and 1.5, 0.5, -0.5, -1.5: -4.5 / sqrt(4.5 * 5).
    b = np.array([9.0, 3.0, 2.0, -1.0])
    assert spearman(a, b) == pytest.approx(-4.5 / np.sqrt(22.5))
    assert spearman(a, a**3) == pytest.approx(1)
    assert spearman(a, -a) == pytest.approx(-1)
    assert spearman(a, np.ones(4)) == spearman(np.ones(4), np.ones(4)) == 0


@pytest.mark.parametrize("hw", [(32, 32), (11, 17), (7, 9)])
def test_ssim_is_scikit_images(hw):
    rng = np.random.default_rng(1)
    a = rng.random((3, *hw)).astype(np.float32)
    b = np.clip(a + rng.normal(0, 0.2, a.shape), 0, 1).astype(np.float32)
    b[2] = rng.random(hw)
    got = np.asarray(ssim(a, b))
    for x, y, here in zip(a, b, got, strict=True):
        # It refuses images smaller than its window.
        pad = [(6 if extent < 11 else 0,) * 2 for extent in hw]
        x, y = (np.pad(v.astype(np.float64), pad, "symmetric") for v in (x, y))
        measured = skimage.metrics.structural_similarity(
            x,
            y,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1.0,
            full=True,
        )
        rows, columns = (
            slice(before, before + extent)
            for (before, _), extent in zip(pad, hw, strict=True)
        )
        expected = np.asarray(measured[1])[rows, columns]
        np.testing.assert_allclose(here, expected, atol=1e-4)


def test_edges_are_scikit_images(images):
    for image, got in zip(images, np.asarray(edges(images)), strict=True):
        expected = np.stack([skimage.filters.sobel(x) for x in image.T], -1)
        # It divides by 4, and by the root of the number of directions.
        expected = 4 * np.sqrt(2) * expected.swapaxes(0, 1)
        np.testing.assert_allclose(got, expected, atol=1e-4)
    assert not np.asarray(edges(np.ones((1, 5, 6, 3), np.float32))).any()


def test_a_picture_is_like_itself_whatever_its_scale(images):
    same = similarity(images, 3 * images)
    np.testing.assert_allclose(same, 1, atol=1e-5)
    turned = similarity(images, -images)
    np.testing.assert_allclose(turned.signed, -1, atol=1e-6)
    np.testing.assert_allclose(turned.magnitude, 1, atol=1e-6)
    np.testing.assert_allclose(turned.ssim, 1, atol=1e-5)
    empty = similarity(images, 0 * images)
    assert not empty.signed.any() and not empty.magnitude.any()
    assert (empty.ssim < 0.3).all()


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


# Layers drawn anew


def test_the_cascade_replaces_what_it_says_and_nothing_else(model):
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))
    stages = list(cascade(model, 3))
    names = ["logits", "fc3", "conv2", "conv1"]
    assert [name for name, _ in stages] == names
    for count, (_, drawn) in enumerate(stages, 1):
        for name in names:
            own, old = getattr(drawn, name), before[name]
            # A layer is drawn once and stays as it is at later stages.
            first = getattr(stages[names.index(name)][1], name)
            for new, was, then in (
                (own.kernel[...], old["kernel"], first.kernel[...]),
                (own.bias[...], old["bias"], first.bias[...]),
            ):
                replaced = name in names[:count]
                assert (np.asarray(new) == was).all() != replaced
                assert not replaced or (np.asarray(new) == np.asarray(then)).all()
    after = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    again = dict(cascade(model, 3))["conv1"].conv1.kernel[...]
    other = dict(cascade(model, 4))["conv1"].conv1.kernel[...]
    np.testing.assert_array_equal(stages[-1][1].conv1.kernel[...], again)
    assert (np.asarray(again) != np.asarray(other)).all()


def test_a_layer_keeps_its_mean_and_deviation():
    wide = built(Dense("fc1", 200), Dense("logits", 3, relu=False))
    wide.fc1.kernel[...] = 2 + wide.fc1.kernel[...]
    drawn = dict(cascade(wide))["fc1"].fc1
    for name in ("kernel", "bias"):
        new, old = (np.asarray(getattr(x, name)[...]) for x in (drawn, wide.fc1))
        assert new.mean() == pytest.approx(old.mean(), abs=0.05)
        assert new.std() == pytest.approx(old.std(), rel=0.15)


def test_pictures_are_those_of_the_class_at_each_stage(model, images):
    classes = np.array([0, 1, 2, 3, 4, 5, 6])
    found = randomisation(model, images, classes, 5, shown=2)
    assert found.columns == ("trained", "logits", "fc3", "conv2", "conv1", "edges")
    stages = [model, *(drawn for _, drawn in cascade(model, 5))]
    methods = (zf.deconvnet, zf.guided_backprop, zf.saliency)

    @functools.partial(jax.jit, static_argnums=0)
    def pictures(graph, weights):
        net = nnx.merge(graph, weights)
        return [m(lambda x: net.features(x).logits, images, classes) for m in methods]

    made = [pictures(*nnx.split(net)) for net in stages]
    for index, rule in enumerate(RULES):
        assert found.pictures[rule].shape == (6, 2, 16, 16, 3)
        maps = [np.asarray(by_rule[index]) for by_rule in made]
        for column, expected in enumerate(maps):
            np.testing.assert_allclose(
                found.pictures[rule][column], expected[:2], atol=1e-5
            )
            known = similarity(maps[0], expected)
            for name in ("signed", "magnitude", "ssim"):
                got = getattr(found.similarity[rule], name)[column]
                np.testing.assert_allclose(got, getattr(known, name), atol=0.01)
            np.testing.assert_array_equal(
                found.empty[rule][column], ~expected.any((1, 2, 3))
            )
        contours = np.asarray(edges(images))
        np.testing.assert_allclose(found.pictures[rule][-1], contours[:2], rtol=1e-5)
        known = similarity(maps[0], contours).magnitude
        np.testing.assert_allclose(
            found.similarity[rule].magnitude[-1], known, atol=0.01
        )


def test_batches_do_not_matter(model, images, monkeypatch):
    done = []
    whole = controls(model, images, "conv2", rules=RULES[:1], shown=5)
    monkeypatch.setattr("zfnet_jax.analysis.sanity._TOGETHER", 3)
    parts = controls(
        model, images, "conv2", rules=RULES[:1], shown=5, progress=done.append
    )
    assert done == [3, 6, 7]
    for a, b in zip(*(x.similarity["deconvnet"] for x in (whole, parts)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    for x, y in zip(whole.pictures.values(), parts.pictures.values(), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


def test_a_linear_network_drawn_anew_gives_an_unrelated_picture(images):
    """Its picture is the kernel: 768 values drawn anew correlate by chance, ± 0.036."""
    linear = built(Dense("logits", 4, relu=False))
    found = randomisation(linear, images, np.arange(7) % 4)
    for rule in RULES:
        signed = found.similarity[rule].signed
        np.testing.assert_allclose(signed[0], 1, atol=1e-6)
        assert (np.abs(signed[1]) < 4 / np.sqrt(768)).all()


def test_upper_layers_that_do_not_matter_change_nothing(images):
    """One positive number goes down through a single map, whatever its size."""
    model = built(
        Conv("conv1", 3, 3, padding=1),
        Conv("conv2", 1, 16),
        Dense("logits", 4, relu=False),
    )
    model.conv2.bias[...] = jnp.full(1, 100.0)  # active in every image
    kernel = model.logits.kernel
    kernel[...] = jnp.asarray(1 + 0.01 * np.asarray(kernel[...]))
    found = randomisation(model, images, np.arange(7) % 4, shown=1)
    assert found.columns[1:3] == ("logits", "conv2")
    for rule in RULES:
        assert (found.pictures[rule][0] != found.pictures[rule][1]).any()
        np.testing.assert_allclose([x[1] for x in found.similarity[rule]], 1, atol=1e-4)
        assert (found.similarity[rule].signed[2] < 0.9).all()


# What takes a unit's place


def test_controls_are_what_they_are_called(model, images):
    layer = "conv2"
    rule = "guided"
    found = controls(model, images, layer, 2, rules=[rule], shown=7)
    assert found.columns == (
        "unit",
        "random there",
        "random everywhere",
        "another unit",
        "another image",
        "edges",
    )
    maps = features(model, images, layer)
    assert ((maps > 0).sum(-1).max((1, 2)) > 1).all()
    for i in range(3):
        place = np.unravel_index(maps[i].argmax(), maps.shape[1:])
        row, column, unit = (int(x) for x in place)
        rivals = maps[:, row, column, unit].copy()
        rivals[i] = -1
        rival = int(rivals.argmax())
        pictures = found.pictures[rule][:, i]
        own, others = (
            zf.project(
                model,
                images[j][None],
                layer,
                range(maps.shape[-1]),
                [(row, column)],
                rule=rule,
            )
            for j in (i, rival)
        )
        value = own.values[unit]
        np.testing.assert_allclose(pictures[0], own.pixels[unit] / value, atol=1e-5)
        value = others.values[unit] or 1
        np.testing.assert_allclose(pictures[4], others.pixels[unit] / value, atol=1e-5)
        candidates = [
            np.abs(pictures[3] - own.pixels[u] / own.values[u]).max()
            for u in np.flatnonzero(own.values > 0)
            if u != unit
        ]
        assert min(candidates) < 1e-5
        top, left, bottom, right = zf.receptive_field(SMALL, layer).box(row, column)
        outside = np.ones((16, 16), bool)
        outside[top:bottom, left:right] = False
        drawn = pictures[:, outside]
        assert not drawn[[0, 1, 3, 4]].any() and drawn[2].any()


def test_without_switches_a_deconvnet_picture_knows_no_image(images):
    """By the deconvnet's rule nothing but pooling is of the image."""
    model = built(
        Conv("conv1", 4, 3, padding=1),
        Conv("conv2", 5, 3, padding=1),
        Dense("logits", 4, relu=False),
    )
    found = controls(model, images, "conv2", rules=RULES[:1])
    likeness = found.similarity["deconvnet"]
    np.testing.assert_allclose([x[4] for x in likeness], 1, atol=1e-4)
    assert (likeness.signed[3] < 0.9).all()


def test_with_a_single_unit_random_numbers_are_that_unit(images):
    model = built(
        Conv("conv1", 4, 3, padding=1),
        MaxPool("pool1", 2, 2),
        Conv("conv2", 1, 3, padding=1),
        Dense("logits", 4, relu=False),
    )
    found = controls(model, images, "conv2", rules=RULES[:1])
    for measure in found.similarity["deconvnet"]:
        np.testing.assert_allclose(measure[[1, 3]], 1, atol=1e-4)


def test_a_dense_layer_is_one_place(model, images):
    found = controls(model, images, "fc3", rules=RULES[2:], shown=3)
    assert found.columns == (
        "unit",
        "random there",
        "another unit",
        "another image",
        "edges",
    )
    strongest = features(model, images, "fc3").argmax(1)[:, None]
    own = zf.project(model, images, "fc3", strongest, rule="gradient")
    np.testing.assert_allclose(
        found.pictures["gradient"][0],
        (own.pixels / own.values[:, None, None, None])[:3],
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: randomisation(m, x, np.full(7, 10)), "classes must be 7 .* 9"),
        (lambda m, x: randomisation(m, x, np.arange(3)), "classes must be 7"),
        (lambda m, x: randomisation(m, x[:0], np.arange(0)), "no images"),
        (lambda m, x: controls(m, x[:1], "conv2"), "two images at least, not 1"),
        (lambda m, x: controls(m, x, "conv9"), "no layer 'conv9'"),
    ],
)
def test_what_cannot_be_is_refused(model, images, call, message, monkeypatch):
    import jaxtyping

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        call(model, images)


def test_the_same_seed_gives_the_same_numbers(model, images):
    a, b, other = (
        controls(model, images, "conv2", seed, rules=RULES[:1], shown=1)
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(a.pictures["deconvnet"], b.pictures["deconvnet"])
    assert (a.pictures["deconvnet"][1] != other.pictures["deconvnet"][1]).any()
