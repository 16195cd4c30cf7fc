"""Mining against a search of every activation, for any batches and devices."""

import itertools
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import zfnet_jax as zf
from tests.networks import IMAGE_SHAPE, MIXED, TINY, residual_nnx
from tests.references.deconvnet_cases import draw_state
from zfnet_jax.analysis.mining import (
    TopActivations,
    project_strongest,
    top_activations,
)
from zfnet_jax.analysis.sanity import RULES
from zfnet_jax.crops import find_crop
from zfnet_jax.networks import network

LAYERS = [layer.name for layer in TINY.layers]
COUNT = 70


@pytest.fixture(scope="module")
def model():
    state = draw_state(TINY)
    state["conv2.bias"][:] = [1, -1e3, 1, 1]  # the second never fires
    return zf.load_weights(state, TINY)


def draw_images(count=COUNT):
    images = np.random.default_rng(0).normal(size=(count, 9, 12, 3)).astype(np.float32)
    # The same image in two groups: everything in it is a tie.
    images[49] = images[4]
    return images


@pytest.fixture(scope="module")
def images():
    return draw_images()


def search(maps: np.ndarray, k: int) -> np.ndarray:
    """Sort all activations of each unit; value, image and position of the best k."""
    if maps.ndim == 2:
        maps = maps[:, None, None]
    rows = []
    for unit in range(maps.shape[-1]):
        best = []
        for index, image in enumerate(maps[..., unit]):
            position = min(np.ndindex(*image.shape), key=lambda p: (-image[p], p))
            best.append((-image[position], index, *position))
        rows.append([(-value, *rest) for value, *rest in sorted(best)[:k]])
    return np.array(rows)


def assert_same(ours: TopActivations, theirs: TopActivations):
    for name, value in vars(theirs).items():
        np.testing.assert_array_equal(getattr(ours, name), value, name)


@pytest.mark.parametrize("k", [9, 100])
def test_equals_a_search_of_every_activation(model, images, k):
    labels = np.random.default_rng(1).integers(0, 3, COUNT)
    labels[labels == 1] = 4  # two classes without images, one that is no output
    result = top_activations(model, images, k=k, labels=labels)
    assert list(result) == LAYERS
    features = jax.jit(lambda x: model.features(x).features)(images)
    for layer in LAYERS:
        top, maps = result[layer], np.asarray(features[layer])
        expected = search(maps, k)
        assert top.layer == layer and top.images.shape[1] == min(k, COUNT)
        np.testing.assert_allclose(
            top.activations, expected[..., 0], rtol=1e-5, atol=1e-6
        )
        # Rounding may swap the order of what is nearly equal, never the strongest's.
        live = ~top.dead
        np.testing.assert_array_equal(top.images[live, 0], expected[live, 0, 1])
        np.testing.assert_array_equal(top.positions[live, 0], expected[live, 0, 2:])
        for unit, chosen in enumerate(top.images):
            assert len(set(chosen)) == len(chosen)
            at = tuple(top.positions[unit].T) if maps.ndim == 4 else ()
            np.testing.assert_allclose(
                top.activations[unit], maps[chosen, *at, unit], rtol=1e-5, atol=1e-6
            )
        peaks = maps.reshape(COUNT, -1, maps.shape[-1]).max(1)
        np.testing.assert_allclose(top.mean, peaks.mean(0), rtol=1e-5)
        np.testing.assert_allclose(top.active, (peaks > 0).mean(0))
        rates = np.maximum(peaks, 0).astype(float)
        with np.errstate(invalid="ignore"):
            share = rates.mean(0) ** 2 / (rates**2).mean(0)
        sparsity = (1 - share) / (1 - 1 / COUNT)
        np.testing.assert_allclose(top.sparsity, sparsity, rtol=1e-5, atol=1e-6)
        assert top.class_means.shape == (peaks.shape[1], 5)
        for label in range(5):
            part = peaks[labels == label]
            np.testing.assert_array_equal(top.class_counts[:, label], (part > 0).sum(0))
            mean = part.mean(0) if len(part) else np.full(part.shape[1], np.nan)
            np.testing.assert_allclose(top.class_means[:, label], mean, rtol=1e-5)
    assert result["conv2"].dead.tolist() == [False, True, False, False]
    shown = f"TopActivations(conv2: 4 units, k={min(k, COUNT)}, 1 dead)"
    assert repr(result["conv2"]) == shown


def test_ties_go_to_the_first_image_and_position():
    # One unit sees its pixel: all is exact.
    net = network(lambda x: jax.nn.relu(x @ np.eye(3, dtype=np.float32)), (4, 5, 3))
    images = np.zeros((80, 4, 5, 3), np.float32)
    images[[7, 40, 79], 1, 3] = 2
    images[[7, 79], 1, 4] = images[[40, 79], 2, 0] = 2
    images[33, 3, 4] = 3
    (top,) = top_activations(net, images, k=6, batch_size=1).values()
    for unit in range(3):
        assert top.images[unit].tolist() == [33, 7, 40, 79, 0, 1]
        positions = [[3, 4], [1, 3], [1, 3], [1, 3], [0, 0], [0, 0]]
        assert top.positions[unit].tolist() == positions
        assert top.activations[unit].tolist() == [3, 2, 2, 2, 0, 0]


class Stream:
    """Images that are made when they are asked for, and never all at once."""

    def __init__(self, images, most):
        self.images, self.most = images, most

    def __len__(self):
        return len(self.images)

    def __getitem__(self, indices):
        assert isinstance(indices, np.ndarray) and indices.ndim == 1
        assert len(indices) <= self.most
        return self.images[indices]


@pytest.mark.parametrize("batch_size", [1, 40])
def test_batches_and_streams_do_not_matter(model, images, batch_size):
    reference = top_activations(model, images, k=5, labels=np.arange(COUNT) % 3)
    done = []
    result = top_activations(
        network(model),
        Stream(images, -(-batch_size // 32) * 32),
        k=5,
        labels=np.arange(COUNT) % 3,
        batch_size=batch_size,
        progress=lambda *numbers: done.append(numbers),
    )
    for layer in LAYERS:
        assert_same(result[layer], reference[layer])
    assert done[-1] == (COUNT, COUNT) and len(done) == len(set(done))


CHILD = """
import json, sys
import jax, numpy as np
from tests.analysis.test_mining import draw_images
from tests.networks import TINY, random_model
from zfnet_jax.analysis.mining import top_activations

model = random_model(TINY)
result = top_activations(model, draw_images(), k=5, batch_size=8)
assert all(top.activations.dtype == np.float32 for top in result.values())
assert all(top.images.dtype == np.int32 for top in result.values())
project = result["conv2"].project(model, draw_images(), [2]).pixels
print(len(jax.devices()), json.dumps([
    {name: np.asarray(value).tolist() for name, value in vars(top).items()}
    for top in result.values()
] + [project.tolist()]))
"""


def run_child(**environment: str) -> tuple[int, list]:
    result = subprocess.run(
        [sys.executable, "-c", CHILD],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert not result.returncode, result.stderr
    devices, _, values = result.stdout.partition(" ")
    return int(devices), json.loads(values)


def test_devices_and_64_bit_mode_do_not_matter():
    """float32 images stay float32; Python's and NumPy's integers become int64."""
    one = run_child(JAX_NUM_CPU_DEVICES="1")
    four = run_child(JAX_NUM_CPU_DEVICES="4", JAX_ENABLE_X64="1")
    assert (one[0], four[0]) == (1, 4)
    assert one[1] == four[1]


def test_any_model_and_a_folder_of_photographs(tmp_path):
    rng = np.random.default_rng(0)
    height, width, _ = IMAGE_SHAPE
    for index in range(40):
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index:02}.png")
    net = network(
        residual_nnx(), IMAGE_SHAPE, preprocess=lambda x: x / np.float32(64) - 2
    )
    images = net.images(net.load_images(tmp_path))
    result = top_activations(net, tmp_path, k=4, batch_size=1)
    maps = net.activations(images)
    assert list(result) == list(net.layers) == list(maps)
    for layer, top in result.items():
        expected = search(maps[layer], 4)
        np.testing.assert_allclose(
            top.activations, expected[..., 0], rtol=1e-4, atol=1e-5
        )
        # Another program rounds otherwise, and near ties may swap.
        for unit, chosen in enumerate(top.images):
            at = tuple(top.positions[unit].T) if maps[layer].ndim == 4 else ()
            np.testing.assert_allclose(
                maps[layer][chosen, *at, unit],
                top.activations[unit],
                rtol=1e-4,
                atol=1e-5,
            )


def test_labels_are_checked(model):
    images = np.zeros((3, 9, 12, 3), np.float32)
    for labels, message in (
        ([0, 1], r"labels are int64\[2\], not int\[3\]"),
        ([0, -1, 2], "label -1 is negative"),
    ):
        with pytest.raises(ValueError, match=message):
            top_activations(model, images, "conv1", labels=np.array(labels))
    with pytest.raises(ValueError, match="k must be at least 1, not 0"):
        top_activations(model, images, "conv1", k=0)


def test_sparsity_by_hand():
    def apply(params, x):
        return x.mean((1, 2)) @ params["fc"]["kernel"]

    params = {"fc": {"kernel": np.eye(4, dtype=np.float32)}}
    net = network(apply, (1, 1, 4), params=params)
    images = np.array([[1, 1, -1, 0], [0, 1, -2, 3], [0, 1, -3, 1]], np.float32)
    top = top_activations(net, images[:, None, None])["fc"]
    # One image, all alike, dead, and (1 - (4/3)² / (10/3)) / (1 - 1/3) = 0.7.
    np.testing.assert_allclose(top.sparsity, [1, 0, np.nan, 0.7], rtol=1e-6)


def make_top(means: list[list[float]], active: list[float]) -> TopActivations:
    values = np.zeros((len(means), 1), np.float32)
    return TopActivations(
        "layer",
        values,
        values.astype(np.int32),
        np.zeros((len(means), 1, 2), np.int32),
        np.array(active, np.float32),
        values[:, 0],
        values[:, 0],
        np.zeros(np.shape(means), np.int32),
        np.array(means, np.float32),
    )


def test_selectivity_by_hand():
    nan = np.nan  # a class without images does not count
    top = make_top(
        [[3, nan, 1, 0.5, 0], [2, nan, 2, 2, 2], [0, nan, 0, 0, 0], [5, nan, -1, 0, 0]],
        [0.5, 1, 0, 1],
    )
    # 3 against (1 + 0.5 + 0) / 3 = 0.5: 2.5 / 3.5.
    np.testing.assert_allclose(top.selectivity, [2.5 / 3.5, 0, np.nan, np.nan])
    assert top.favorite.tolist() == [0, 0, -1, 0]


@pytest.mark.parametrize("layer", ["conv3", "stem.pool", "fc"])
def test_rules_share_a_forward_pass_and_give_each_its_own_projections(layer):
    """Windows, crops and whole images, in batches, against one signal at a time."""
    if layer == "conv3":
        net = network(zf.load_weights(draw_state(MIXED), MIXED))
    else:
        net = network(residual_nnx(), (40, 37, 3))
        assert (find_crop(net, layer) is None) == (layer == "fc")
    images = np.random.default_rng(1).normal(size=(9, *net.image_shape))
    images = images.astype(np.float32)
    top, units = top_activations(net, images, layer, k=6)[layer], [4, 0, 1]
    best = top.images, top.positions, top.activations
    parts = project_strongest(net, Stream(images, 16), layer, units, *best, RULES)
    signals = np.zeros((18, *net.layer(layer).shape), np.float32)
    for row, (unit, rank) in enumerate(itertools.product(units, range(6))):
        place = top.positions[unit, rank] if signals.ndim == 4 else ()
        signals[(row, *place, unit)] = top.activations[unit, rank]
    for rule, part in zip(RULES, parts, strict=True):
        np.testing.assert_array_equal(part.images, top.images[units].ravel())
        whole = zf.backproject(net, images[part.images], layer, signals, rule=rule)
        padded = np.pad(whole, ((0, 0), (99, 99), (99, 99), (0, 0)))
        for pixels, one, box in zip(part.pixels, padded, part.boxes + 99, strict=True):
            expected = one[box[0] : box[2], box[1] : box[3]]
            scale = np.abs(expected).max() or 1
            np.testing.assert_allclose(pixels, expected, atol=1e-5 * scale)
    own = top.project(net, images, units, rule=RULES[-1])
    np.testing.assert_array_equal(own.pixels, parts[-1].pixels)
