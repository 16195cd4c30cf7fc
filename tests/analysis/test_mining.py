"""Mining against a search of every activation, for any batch and any devices."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zfnet_jax as zf
from tests.references.deconvnet_cases import draw_state
from zfnet_jax.analysis import TopActivations, project_top, top_activations
from zfnet_jax.arch import Architecture, Conv, Dense, MaxPool
from zfnet_jax.data import Dataset

pytestmark = pytest.mark.usefixtures("compiled_once")

SMALL = Architecture(
    "small",
    (9, 12),
    (
        Conv("conv1", 5, 3, padding=1),
        MaxPool("pool1", 3, 2),
        Conv("conv2", 4, 2),
        Dense("fc3", 6),
        Dense("logits", 3, relu=False),
    ),
)
LAYERS = [layer.name for layer in SMALL.layers]
COUNT = 23


@pytest.fixture(scope="module")
def model():
    state = draw_state(SMALL)
    state["conv2.bias"][:] = [1, -1e3, 1, 1]  # the second never fires
    return zf.load_weights(state, SMALL)


@pytest.fixture(scope="module")
def dataset():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (COUNT, 9, 12, 3), np.uint8)
    # The same image twice: all that it holds is a tie.
    images[17] = images[4]
    labels = rng.integers(0, 3, COUNT).astype(np.int32)
    labels[labels == 1] = 2  # a class without images
    return Dataset(images, labels, ("a", "b", "c"), "drawn")


def preprocess(images):
    return jnp.asarray(images, jnp.float32) / 64 - 2


def searched(maps: np.ndarray, k: int, per_image: int):
    """Every activation of every unit, sorted: value, image and position of k."""
    if maps.ndim == 2:
        maps = maps[:, None, None]
    found = []
    for unit in range(maps.shape[-1]):
        every = []
        for image, of_image in enumerate(maps[..., unit]):
            places = sorted(np.ndindex(*of_image.shape), key=lambda p: -of_image[p])
            every += [(-of_image[p], image, p) for p in places[:per_image]]
        every.sort()
        found.append([(-value, image, *place) for value, image, place in every[:k]])
    return np.array(found)


def assert_same(ours: TopActivations, theirs: TopActivations):
    for name, value in vars(theirs).items():
        np.testing.assert_array_equal(getattr(ours, name), value, name)


@pytest.mark.parametrize(("k", "per_image"), [(9, 1), (9, 2), (30, 4), (1, 1)])
def test_it_is_a_search_of_every_activation(model, dataset, k, per_image):
    found = top_activations(
        model, dataset, LAYERS, k, per_image, preprocess=preprocess, batch_size=7
    )
    assert list(found) == LAYERS
    features = jax.jit(lambda x: model.features(x).features)(preprocess(dataset.images))
    for layer in LAYERS:
        maps, ours = np.asarray(features[layer]), found[layer]
        expected = searched(maps, k, per_image)
        np.testing.assert_allclose(ours.values, expected[..., 0], rtol=1e-5, atol=1e-6)
        live = ~ours.dead
        np.testing.assert_array_equal(ours.images[live], expected[live, :, 1])
        np.testing.assert_array_equal(ours.positions[live], expected[live, :, 2:])
        maxima = maps.reshape(COUNT, -1, maps.shape[-1]).max(1)
        np.testing.assert_allclose(ours.mean, maxima.mean(0), rtol=1e-5)
        np.testing.assert_allclose(ours.active, (maxima > 0).mean(0))
        for label in range(3):
            of_class = maxima[dataset.labels == label]
            counts = ours.class_counts[:, label]
            np.testing.assert_array_equal(counts, (of_class > 0).sum(0))
            mean = of_class.mean(0) if len(of_class) else 0
            np.testing.assert_allclose(ours.class_means[:, label], mean, rtol=1e-5)
    assert found["conv2"].dead.tolist() == [False, True, False, False]


def test_at_most_so_many_of_one_image(model, dataset):
    for per_image in (1, 2):
        found = top_activations(
            model, dataset, "conv1", 9, per_image, preprocess=preprocess
        )["conv1"]
        for images in found.images:
            assert np.unique(images, return_counts=True)[1].max() <= per_image


def test_of_equals_the_first_image_and_place_come_first(model):
    images = np.zeros((6, 9, 12, 3), np.float32)
    images[3] = 1e-3
    found = top_activations(model, images, "conv1", k=4, batch_size=2)["conv1"]
    flat = found.values[:, 0] == found.values[:, 3]
    assert flat.any()
    for listed in found.images[flat]:
        assert listed.tolist() in ([0, 1, 2, 3], [0, 1, 2, 4])


@pytest.mark.parametrize("batch_size", [1, 4, 23, 100])
def test_the_batch_does_not_matter(model, dataset, batch_size):
    options = {"k": 5, "per_image": 2, "preprocess": preprocess}
    found = top_activations(model, dataset, LAYERS, batch_size=batch_size, **options)
    reference = top_activations(model, dataset, LAYERS, batch_size=8, **options)
    for layer in LAYERS:
        assert_same(found[layer], reference[layer])


DEVICES = """
import json, sys
import numpy as np
import jax
import zfnet_jax as zf
from tests.analysis.test_mining import LAYERS, SMALL
from tests.references.deconvnet_cases import draw_state
from zfnet_jax.analysis import top_activations

model = zf.load_weights(draw_state(SMALL), SMALL)
images = np.random.default_rng(0).normal(size=(23, 9, 12, 3)).astype(np.float32)
images[17] = images[4]
for count in (1, 2, 4):
    found = top_activations(
        model, images, LAYERS, 5, 2, batch_size=8, devices=jax.devices()[:count]
    )
    print(json.dumps({
        layer: {name: value.tolist() for name, value in vars(top).items()}
        for layer, top in found.items()
    }))
"""


def test_the_devices_do_not_matter():
    flags = "--xla_force_host_platform_device_count=4"
    result = subprocess.run(
        [sys.executable, "-c", DEVICES],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=True,
    )
    one, *others = map(json.loads, result.stdout.splitlines())
    assert len(others) == 2
    for other in others:
        assert other == one


def test_images_alone_have_no_classes(model):
    images = np.random.default_rng(0).normal(size=(3, 9, 12, 3)).astype(np.float32)
    found = top_activations(model, images, "logits")["logits"]
    assert found.values.shape == (3, 3) and found.class_means.shape == (3, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": "conv9"}, "conv9.*conv1"),
        ({"layers": []}, "no layer"),
        ({"k": 0}, "k must be 1 or more, not 0"),
        ({"per_image": 0}, "per_image"),
        ({"batch_size": 0}, "batch_size"),
        ({"preprocess": None}, "preprocess"),
        ({"dataset": np.zeros((0, 9, 12, 3), np.float32)}, "no images"),
        ({"dataset": np.zeros((2, 9, 11, 3), np.float32)}, "9, 11"),
    ],
)
def test_what_cannot_be_is_refused(model, dataset, change, message):
    arguments = {"dataset": dataset, "layers": "conv1", "preprocess": preprocess}
    with pytest.raises(ValueError, match=message):
        top_activations(model, **{**arguments, **change})


def statistics(means: list[list[float]], active: list[float]) -> TopActivations:
    values = np.zeros((len(means), 1), np.float32)
    return TopActivations(
        values,
        values.astype(np.int32),
        np.zeros((len(means), 1, 2), np.int32),
        np.array(active, np.float32),
        values[:, 0],
        np.zeros(np.shape(means), np.int32),
        np.array(means, np.float32),
    )


def test_selectivity_by_hand():
    top = statistics(
        [[3, 1, 0.5, 0], [2, 2, 2, 2], [0, 0, 0, 0], [5, -1, 0, 0]], [0.5, 1, 0, 1]
    )
    # 3 against (1 + 0.5 + 0) / 3 = 0.5: 2.5 / 3.5.
    np.testing.assert_allclose(top.selectivity, [2.5 / 3.5, 0, np.nan, np.nan])
    assert top.favourite.tolist() == [0, 0, -1, 0]


def test_without_labels_nothing_is_selective():
    top = statistics([[], []], [1, 0])
    assert np.isnan(top.selectivity).all() and top.favourite.tolist() == [-1, -1]


@pytest.mark.parametrize("rule", ["deconvnet", "gradient"])
def test_each_of_the_strongest_is_projected_from_its_own_image(model, dataset, rule):
    top = top_activations(model, dataset, "conv1", 3, preprocess=preprocess)["conv1"]
    units = [4, 1]
    found = project_top(
        model, dataset, "conv1", top, units, rule=rule, preprocess=preprocess
    )
    rank = 0
    for unit in units:
        for image, position in zip(top.images[unit], top.positions[unit], strict=True):
            x = np.asarray(preprocess(dataset.images[image : image + 1]))
            one = zf.project(
                model, x, "conv1", unit, position[None], rule=rule, crop=True
            )
            np.testing.assert_allclose(found.pixels[rank], one.pixels[0], atol=1e-6)
            np.testing.assert_array_equal(found.boxes[rank], one.boxes[0])
            assert (found.images[rank], found.units[rank]) == (image, unit)
            rank += 1
    assert rank == len(found)
    np.testing.assert_allclose(found.values, top.values[units].ravel(), rtol=1e-5)


def test_what_is_not_active_projects_to_zeros(model, dataset):
    top = top_activations(model, dataset, "conv2", 2, preprocess=preprocess)["conv2"]
    assert top.dead.tolist() == [False, True, False, False]
    found = project_top(model, dataset, "conv2", top, [1], preprocess=preprocess)
    assert not found.pixels.any() and not found.values.any()


def test_images_of_a_dataset_need_preprocessing_to_be_projected(model, dataset):
    top = top_activations(model, dataset, "conv1", 1, preprocess=preprocess)["conv1"]
    with pytest.raises(ValueError, match="preprocess"):
        project_top(model, dataset, "conv1", top, [0])
