"""The authors' SqueezeNet on real photographs, and the shapes of all three."""

import csv
import functools
import warnings
from typing import Any

import numpy as np
import pytest

import zfnet_jax as zf
from tests.comparison import distance
from tests.networks import build, load_squeezenet
from tests.references import make_squeezenet as reference
from tests.references.make_squeezenet import PHOTOGRAPH, WEIGHTS
from zfnet_jax.imagenet.squeezenet import V1_0, V1_0_CAFFE, V1_1
from zfnet_jax.networks import Network

COUNT, K = 48, 9
LAYERS = ("pool4", "fire8/conv3x3_2", "logits")
RULES: Any = ("deconvnet", "guided", "gradient")

needs_shared = pytest.mark.skipif(
    not (WEIGHTS.exists() and PHOTOGRAPH.exists()),
    reason="needs the weights and photographs of the folder shared",
)


@functools.cache
def squeezenet() -> Network:
    return load_squeezenet(str(WEIGHTS))


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


@needs_shared
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


@needs_shared
def test_a_folder_that_streams_gives_the_same(top, folder, images):
    streamed = zf.top_activations(squeezenet(), folder, LAYERS, k=K, batch_size=32)
    for layer, expected in top.items():
        for name in ("activations", "images", "positions", "active", "mean"):
            np.testing.assert_array_equal(
                getattr(streamed[layer], name), getattr(expected, name)
            )
    best = top["pool4"]
    one, other = (
        best.project(squeezenet(), source, [7]) for source in (folder, images)
    )
    np.testing.assert_array_equal(one.pixels, other.pixels)
    np.testing.assert_array_equal(one.images, best.images[7])
    np.testing.assert_allclose(one.activations, best.activations[7], rtol=1e-4)


def compare(expected, photograph, layer, stride=1):
    """The strongest unit of a layer against what the reference says of it."""
    image = reference.prepare(photograph)
    for rule in RULES:
        top = zf.project(squeezenet(), image[None], layer, rule=rule)
        assert top.units[0] == expected[f"{layer}/unit"]
        np.testing.assert_array_equal(top.positions[0], expected[f"{layer}/position"])
        assert distance(top.activations[0], expected[f"{layer}/value"]) <= 1e-5
        pixels = top.pixels[0, ::stride, ::stride]
        assert distance(pixels, expected[f"{layer}/{rule}"]) <= 1e-4, rule


@needs_shared
@pytest.mark.parametrize("layer", reference.LAYERS)
def test_projections_are_those_stored(layer):
    with np.load(reference.STORE) as expected:
        assert all(expected[f"{layer}/{rule}"].any() for rule in RULES)
        compare(expected, PHOTOGRAPH, layer, reference.STRIDE)


@needs_shared
@pytest.mark.parity
def test_projections_are_those_of_captum():
    pytest.importorskip("torch", reason="needs the parity extra")
    pytest.importorskip("captum", reason="needs the parity extra")
    photograph = PHOTOGRAPH.with_name("n02132136_brown_bear.jpg")
    image = reference.prepare(photograph)
    with warnings.catch_warnings():
        # Captum says each time that it hooks the model.
        warnings.filterwarnings("ignore", "Setting backward hooks", UserWarning)
        expected = reference.references(image)
    for layer in reference.LAYERS:
        compare(expected, photograph, layer)


@needs_shared
def test_photographs_are_recognized():
    with (PHOTOGRAPH.parent / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))[::12]
    files = [PHOTOGRAPH.with_name(row["file"]) for row in rows]
    net = squeezenet()
    images = np.concatenate([net.load_images(file)[:] for file in files])
    guesses = np.asarray(net(images)).argmax(-1)
    labels = np.array([int(row["class_index"]) for row in rows])
    # 67% of a larger sample.
    assert (guesses == labels).mean() >= 0.5


@pytest.mark.parametrize(
    ("plain", "heights"),
    [
        (V1_0_CAFFE, {"conv1": 111, "pool1": 55, "conv_final": 15}),
        # 54 rows are pooled to 27: sizes are rounded up.
        (V1_0, {"conv1": 109, "pool1": 54, "pool4": 27, "conv_final": 13}),
        (V1_1, {"conv1": 111, "pool3": 27, "conv_final": 13}),
    ],
)
def test_layers_have_the_shapes_of_the_paper(plain, heights):
    net = build(plain)
    assert {x: net.layers[x].shape[0] for x in heights} == heights
    assert net.layers["fire4"].shape[-1] == 256
    assert net.layers["logits"].shape == (1000,)
