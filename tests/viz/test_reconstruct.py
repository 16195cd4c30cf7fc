"""Rows of signals on their sheet."""

from typing import Any

import numpy as np

from zfnet_jax.viz.reconstruct import (
    Descent,
    Reconstruction,
    Stage,
    draw_reconstructions,
)


def test_a_row_is_the_photograph_the_maps_and_the_pixels_each_on_its_scale():
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(4, 4)), np.zeros((8, 8))]
    pixels = 3 * rng.normal(size=(8, 8, 3))
    stages = [Stage(f"stage {i}", (*x.shape, 7), x) for i, x in enumerate(maps)]
    measures = {
        "sharpness": 2.5,
        "photograph_sharpness": 1.25,
        "edge_correlation": -0.001,
    }
    descent = Descent("all", [*stages, Stage("end", (8, 8, 3), pixels)], measures)
    image = rng.integers(0, 256, (8, 8, 3), np.uint8)
    blocks = [
        Reconstruction(name, image, [("cat", 0.5)], descent, descent, (0, 1, 9, 4))
        for name in ("one", "other")
    ]
    (ax,) = draw_reconstructions("t", blocks, "max").axes
    images = [np.asarray(x.get_array()) for x in ax.images]
    peak = np.abs(pixels).max()
    for start in range(0, 16, 4):
        drawn = images[start : start + 4]
        for shown, expected in zip(
            drawn, [image, *maps, 0.5 + pixels / peak / 2], strict=True
        ):
            np.testing.assert_allclose(shown, expected, atol=1e-6)
        limits: Any = ax.images[start + 1].norm
        assert limits.vmax == -limits.vmin == np.abs(maps[0]).max()
    # Maps of any size are drawn as large.
    widths = {np.ptp(x.get_extent()[:2]) for x in (ax.images[1], ax.images[2])}
    assert len(widths) == 1
    words = [text.get_text() for text in ax.texts]
    for line in (
        *(f"± {peak:.3g}", "all zero", "8 x 8 x 7", "50.0%  cat"),
        *("sharpness 2.5, photograph 1.2", "edge correlation 0.00"),
    ):
        assert line in words
