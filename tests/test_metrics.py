"""Numbers that judge and compare attribution maps: by hand, laws and plain loops."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import scipy.stats
import skimage.metrics

from tests.networks import TINY, random_model
from zfnet_jax.metrics import (
    Curves,
    deletion,
    importance,
    insertion,
    pointing_game,
    sharpness,
    spearman,
    ssim,
)
from zfnet_jax.networks import network


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, *shape])
    return rng.normal(size=shape).astype(np.float32)


# --- importance and the pointing game ---


def test_importance_is_the_greatest_magnitude_of_the_channels():
    maps = np.array([[[[1, -3, 2], [0, 0, 0]], [[-1, 0, 0.5], [4, -4, 1]]]], np.float32)
    np.testing.assert_array_equal(importance(maps), [[[3, 0], [1, 4]]])


def mark(*pixels, shape=(6, 7)) -> np.ndarray:
    values = np.zeros((1, *shape), np.float32)
    values[0][tuple(np.transpose(pixels))] = 1
    return values


def test_pointing_at_one_pixel_by_hand():
    """5 pixels away: 3 rows and 4 columns."""
    point, mask = mark((0, 0)), mark((3, 4)).astype(bool)
    for tolerance, hit in ((0.0, 0), (4.999, 0), (5.0, 1)):
        assert pointing_game(point, mask, tolerance) == [hit]


def test_equal_maxima_share_the_hit():
    mask = np.zeros((1, 6, 7), bool)
    mask[0, 2:4, 3:6] = True
    three = mark((0, 0), (2, 3), (3, 5))
    np.testing.assert_allclose(pointing_game(three, mask), [2 / 3])
    # A map of zeros points everywhere.
    np.testing.assert_allclose(pointing_game(np.zeros_like(three), mask), [6 / 42])
    # The maximum counts, not the magnitude.
    np.testing.assert_array_equal(pointing_game(-mark((0, 0)), ~mask), [35 / 41])


def test_pointing_agrees_with_a_search_over_all_pixels():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 12, (20, 8, 5)).astype(np.float32)
    masks = rng.random((20, 8, 5)) < 0.06
    masks[:, 4, 2] = True
    for tolerance in (0.0, 1.0, 2**0.5, 2.3):
        expected = []
        for importances, mask in zip(values, masks, strict=True):
            peaks = np.argwhere(importances == importances.max())
            gaps = peaks[:, None] - np.argwhere(mask)[None]
            nearest = np.hypot(gaps[..., 0], gaps[..., 1]).min(1)
            expected.append(np.mean(nearest <= tolerance))
        result = pointing_game(values, masks, tolerance)
        np.testing.assert_allclose(result, expected)
        assert 0 < result.mean() < 1


# --- insertion and deletion ---

# What each pixel of an image of ones adds to a probability that starts at a tenth.
WEIGHTS = np.array([[0.2, 0.4], [0.1, 0.1]], np.float32) / 2
ONES = np.ones((1, 2, 2, 1), np.float32)


def as_probability(p: jax.Array) -> jax.Array:
    """Logits whose softmax is (p, 1 - p)."""
    return jnp.stack([jnp.log(p), jnp.log1p(-p)], -1)


def weigh(x):
    return as_probability(0.1 + (x[..., 0] * WEIGHTS).sum((1, 2)))


@pytest.mark.parametrize(
    ("curve", "ranks", "values"),
    [
        (insertion, [[2, 4], [1, 3]], (0.1, 0.3, 0.35, 0.45, 0.5)),
        (deletion, [[3, 1], [4, 2]], (0.5, 0.45, 0.35, 0.3, 0.1)),
    ],
)
def test_a_weighted_sum_by_hand(curve, ranks, values):
    result = curve(weigh, ONES, 0, np.array([ranks], np.float32), steps=4)
    assert isinstance(result, Curves)
    np.testing.assert_array_equal(result.fractions, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(result.probabilities, [values], rtol=1e-5)
    area = (sum(values) - 0.3) / 4
    np.testing.assert_allclose(result.areas, [area], rtol=1e-5)


def test_a_linear_function_has_known_areas():
    """Each pixel is in for what is left when its turn comes: a sum of products."""
    x, order = draw(3, 4, 5, 2), draw(3, 4, 5)
    # Small enough for all sums to stay between -0.5 and 0.5.
    weights, baseline = draw(4, 5, 2) / 100, draw(4, 5, 2, seed=1)
    x, weights, baseline = (a.astype(np.float64) for a in (x, weights, baseline))

    def sums(x):
        return 0.5 + (x * weights).sum((1, 2, 3))

    added = ((x - baseline) * weights).sum(-1).reshape(3, -1)
    ranks = np.argsort(np.argsort(-order.reshape(3, -1)))
    empty, full = sums(baseline[None]), sums(x)
    areas = empty + (added * (1 - (ranks + 0.5) / 20)).sum(1)
    rtol = 1e-12
    with jax.enable_x64(True):
        net = network(lambda x: as_probability(sums(x)), (4, 5, 2))
        curves = insertion(net, x, 0, order, baseline=baseline, steps=20)
        np.testing.assert_allclose(curves.areas, areas, rtol=rtol)
        # Whatever the steps, one is what the other leaves.
        for steps in (None, 3):
            inserted, deleted = (
                curve(net, x, 0, order, baseline=baseline, steps=steps)
                for curve in (insertion, deletion)
            )
            total = inserted.areas + deleted.areas
            np.testing.assert_allclose(total, empty + full, rtol=rtol)
            ends = inserted.probabilities[:, [0, -1]]
            np.testing.assert_allclose(ends[:, 0], np.tile(empty, 3), rtol=rtol)
            np.testing.assert_allclose(ends[:, 1], full, rtol=rtol)
    assert curves.areas.dtype == x.dtype


def test_curves_agree_with_a_loop_over_images_and_steps():
    model = random_model(TINY)
    net = network(model, class_names=("cat", "dog", "owl"))
    images, targets, order = draw(4, 9, 12, 3), np.array([2, 0, 1, 2]), draw(4, 9, 12)
    fill, calls = np.array([0.5, -1, 2], np.float32), []
    options = {
        "baseline": fill,
        "steps": 5,
        "batch_size": 3,
        "progress": lambda *done: calls.append(done),
    }
    inserted = insertion(net, images, ["owl", "cat", "dog", "owl"], order, **options)
    deleted = deletion(net, images, targets, order, **options)
    assert calls == [(3, 4), (4, 4)] * 2
    counts = [0, 21, 43, 64, 86, 108]
    np.testing.assert_allclose(inserted.fractions, np.divide(counts, 108), rtol=1e-6)
    forward = jax.jit(lambda x: model(x))
    for i in range(4):
        ranked = np.argsort(-order[i].reshape(-1))
        for step, count in enumerate(counts):
            first = np.isin(np.arange(108), ranked[:count]).reshape(9, 12, 1)
            for curves, mask in ((inserted, first), (deleted, ~first)):
                out = np.asarray(forward(np.where(mask, images[i], fill)[None]))[0]
                probability = np.exp(out) / np.exp(out).sum()
                np.testing.assert_allclose(
                    curves.probabilities[i, step], probability[targets[i]], rtol=1e-4
                )


def test_equal_importances_go_in_row_major_order():
    """In an image so large that a sort that is not stable would show."""
    weights = np.abs(draw(40, 30))
    weights /= weights.sum()

    def fn(x):
        return as_probability(0.1 + 0.8 * (x[..., 0] * weights).sum((1, 2)))

    order = np.random.default_rng(0).integers(0, 3, (40, 30)).astype(np.float32)
    curves = insertion(fn, np.ones((1, 40, 30, 1), np.float32), 0, order[None])
    # Python's sort is stable.
    ranking = sorted(range(1200), key=lambda i: -order.ravel()[i])
    sums = np.append(0, weights.ravel()[ranking].reshape(40, 30).sum(1).cumsum())
    np.testing.assert_allclose(curves.probabilities, [0.1 + 0.8 * sums], rtol=1e-5)


# --- bad input ---


@pytest.fixture
def unhooked(monkeypatch):
    """As users see it: without the tests' own shape checks."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


MASKS = np.zeros((2, 4, 5), bool)
MASKS[:, 1, 2] = True
VALUES = draw(2, 4, 5)


@pytest.mark.parametrize(
    ("importances", "masks", "message"),
    [
        (VALUES, MASKS & [[[True]], [[False]]], r"masks\[1\] is empty"),
        (VALUES, MASKS[:, :3], r"floats \[2, 3, 5\].*float32 \[2, 4, 5\]"),
        (VALUES * np.nan, MASKS, "not finite"),
    ],
)
def test_bad_masks_are_refused(importances, masks, message, unhooked):
    with pytest.raises(ValueError, match=message):
        pointing_game(importances, masks)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 5}, "steps must be from 1 to the 4 pixels.*not 5"),
        ({"importances": WEIGHTS}, r"floats \[1, 2, 2\].*not float32 \[2, 2\]"),
        ({"baseline": np.zeros((3, 1), np.float32)}, r"baseline \[3, 1\] does not fit"),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(value),
)
def test_curves_of_what_does_not_fit_are_refused(change, message, unhooked):
    net = network(weigh, (2, 2, 1))
    arguments = {"images": ONES, "targets": 0, "importances": WEIGHTS[None], "steps": 2}
    with pytest.raises(ValueError, match=message):
        insertion(net, **{**arguments, **change})


# --- similarity of pictures, against SciPy and scikit-image ---


@pytest.mark.parametrize("hw", [(64, 64), (48, 200)])
def test_a_wave_is_as_sharp_as_its_cycles_at_any_size_and_contrast(hw):
    rows, columns = (np.arange(extent) / extent for extent in hw)
    angle = 2 * np.pi * (3 * rows[:, None] + 4 * columns)
    wave = np.sin(angle)[..., None]
    faint = 200 + 1e-3 * np.concatenate([wave, -wave, np.cos(angle)[..., None]], -1)
    for pictures in (wave[None], faint[None]):
        np.testing.assert_allclose(sharpness(pictures), 5, rtol=0.02)


def test_blurred_noise_is_less_sharp_and_a_constant_not_at_all():
    noise = np.random.default_rng(0).normal(size=(64, 64, 3))
    soft = (noise + np.roll(noise, 1, 0)) / 2
    values = sharpness(np.stack([noise, soft, 0 * noise + 7]))
    # Neighbors differ by twice the variance; down the averages by half as much.
    expected = 64 / (2 * np.pi) * np.sqrt([2 + 2, 1 + 2, 0])
    np.testing.assert_allclose(values, expected, rtol=0.02)


@pytest.mark.parametrize("count", [2, 3072])
@pytest.mark.parametrize("levels", [2, None])
def test_rank_correlations_are_scipys(count, levels):
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
    # Minus their mean: -1.5, 0, 0, 1.5 and 1.5, 0.5, -0.5, -1.5: -4.5 / sqrt(4.5 * 5).
    b = np.array([9.0, 3.0, 2.0, -1.0])
    assert spearman(a, b) == pytest.approx(-4.5 / np.sqrt(22.5))
    assert spearman(a, a**3) == pytest.approx(1)
    assert spearman(a, -a) == pytest.approx(-1)
    assert spearman(a, np.ones(4)) == spearman(np.ones(4), np.ones(4)) == 0


@pytest.mark.parametrize("hw", [(32, 32), (7, 9)])
def test_ssim_is_scikit_images(hw):
    rng = np.random.default_rng(1)
    a = rng.random((3, *hw)).astype(np.float32)
    b = np.clip(a + rng.normal(0, 0.2, a.shape), 0, 1).astype(np.float32)
    b[2] = rng.random(hw)
    result = np.asarray(ssim(a, b))
    for x, y, values in zip(a, b, result, strict=True):
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
        np.testing.assert_allclose(values, expected, atol=1e-4)
