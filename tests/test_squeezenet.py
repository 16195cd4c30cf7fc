"""A public ImageNet network, read off its function, over real photographs."""

import functools

import numpy as np
import pytest

import zfnet_jax as zf
from experiments.squeezenet import v1_0
from tests.references.make_squeezenet import PHOTOGRAPH, WEIGHTS
from zfnet_jax.networks import Network

COUNT, K = 96, 9
LAYERS = ("pool4", "fire5", "fire8/conv3x3_2", "conv_final", "logits")

pytestmark = pytest.mark.skipif(
    not (WEIGHTS.exists() and PHOTOGRAPH.exists()),
    reason="needs the weights and photographs of the folder shared",
)


@functools.cache
def squeezenet() -> Network:
    return v1_0(str(WEIGHTS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Some of the photographs, spread over the classes."""
    folder = tmp_path_factory.mktemp("photographs")
    files = sorted(PHOTOGRAPH.parent.glob("*.jpg"))
    for file in files[:: len(files) // COUNT][:COUNT]:
        (folder / file.name).symlink_to(file)
    return folder


@pytest.fixture(scope="module")
def images(folder):
    return squeezenet().images(squeezenet().load_images(folder))


@pytest.fixture(scope="module")
def top(images):
    return zf.top_activations(squeezenet(), images, LAYERS, k=K)


def test_top_activations_are_those_of_a_search(top, images):
    """Every activation is looked at. Values decide: rounding may swap near ties."""
    assert tuple(top) == LAYERS
    for layer in LAYERS:
        maps = squeezenet().activations(images, layer, batch_size=16)[layer]
        flat = maps.reshape(COUNT, -1, maps.shape[-1])
        peaks = flat.max(1)
        strongest = -np.sort(-peaks, 0)[:K].T
        result = top[layer]
        close = functools.partial(
            np.testing.assert_allclose, rtol=1e-4, atol=1e-5 * peaks.max()
        )
        close(result.activations, strongest)
        close(result.mean, peaks.mean(0))
        unit = np.arange(maps.shape[-1])[:, None]
        close(peaks[result.images, unit], result.activations)
        row, column = np.moveaxis(result.positions, -1, 0)
        place = row * maps.shape[2] + column if maps.ndim == 4 else row
        close(flat[result.images, place, unit], result.activations)
        assert all(len(set(chosen)) == K for chosen in result.images.tolist())
        # The search above accepts any of many zeros.
        clear = (strongest[:, 0] > 1.001 * strongest[:, 1]) & (strongest[:, 0] > 0)
        assert clear.mean() > 0.5
        np.testing.assert_array_equal(result.images[clear, 0], peaks.argmax(0)[clear])


def test_a_folder_that_streams_gives_the_same(top, folder):
    streamed = zf.top_activations(squeezenet(), folder, LAYERS, k=K, batch_size=32)
    for layer, expected in top.items():
        for name in ("activations", "images", "positions", "active", "mean"):
            np.testing.assert_array_equal(
                getattr(streamed[layer], name), getattr(expected, name)
            )


def test_strongest_activations_are_projected(top, folder, images):
    """From the folder and from the array, with crops that hold the activation."""
    best = top["fire5"]
    units = [int(best.activations[:, 0].argmax()), 7]
    streamed, loaded = (
        best.project(squeezenet(), source, units) for source in (folder, images)
    )
    np.testing.assert_array_equal(streamed.pixels, loaded.pixels)
    np.testing.assert_array_equal(loaded.images, best.images[units].ravel())
    np.testing.assert_allclose(
        loaded.activations, best.activations[units].ravel(), rtol=1e-4
    )
    assert np.abs(loaded.pixels).max((1, 2, 3)).all()
