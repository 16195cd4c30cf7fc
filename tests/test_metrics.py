"""Similarity of pictures against SciPy and scikit-image."""

import numpy as np
import pytest
import scipy.stats
import skimage.metrics

from zfnet_jax.metrics import spearman, ssim


@pytest.mark.parametrize("count", [2, 3, 50, 3072])
@pytest.mark.parametrize("levels", [2, 9, None])
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


@pytest.mark.parametrize("hw", [(32, 32), (11, 17), (7, 9)])
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
