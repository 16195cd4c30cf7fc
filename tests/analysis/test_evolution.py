"""Features over training, on networks whose course is known."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

import zfnet_jax as zf
from tests.analysis.test_mining import SMALL
from tests.references.deconvnet_cases import draw_state
from zfnet_jax.analysis import evolution, motion, project_course, top_activations

pytestmark = pytest.mark.usefixtures("compiled_once")

LAYERS = ["conv1", "conv2", "logits"]


def network(seed: int) -> zf.ConvNet:
    state = draw_state(SMALL, seed)
    for name in ("conv1", "conv2"):
        state[f"{name}.bias"][:] = 2  # alive
    return zf.load_weights(state, SMALL)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return rng.normal(size=(37, 9, 12, 3)).astype(np.float32)


def test_each_checkpoint_is_mined(images):
    networks = {5: network(2), 1: network(0), 2: network(1)}
    done = []
    found = evolution(networks, images, LAYERS, progress=done.append)
    assert done == [1, 2, 3] and list(found) == LAYERS
    for layer, course in found.items():
        assert course.epochs == (1, 2, 5)
        for row, epoch in enumerate(course.epochs):
            top = top_activations(networks[epoch], images, layer, k=1)[layer]
            np.testing.assert_array_equal(course.values[row], top.values[:, 0])
            np.testing.assert_array_equal(course.images[row], top.images[:, 0])
            np.testing.assert_array_equal(course.positions[row], top.positions[:, 0])
        assert not course.jumps[0].any()
        moved = course.images[0] != course.images[1]
        np.testing.assert_array_equal(course.jumps[1], moved)
        assert course.jumps.any()


def test_what_stays_does_not_move(images):
    same = network(0)
    scaled = nnx.clone(same)
    kernel, bias = scaled.conv1.kernel, scaled.conv1.bias
    kernel[...], bias[...] = 3 * kernel[...], 3 * bias[...]
    for other in (nnx.clone(same), scaled):
        moved = motion({1: same, 3: other}, images, ["conv1"])
        np.testing.assert_allclose(moved["conv1"], np.zeros((1, 5)), atol=1e-5)
    course = evolution({1: same, 3: nnx.clone(same)}, images, ["conv1"])["conv1"]
    assert not course.jumps.any()


def test_motion_is_one_minus_the_correlation(images):
    networks = {1: network(0), 2: network(1)}
    maps = [
        np.asarray(net.features(images, "conv1").features["conv1"], np.float64)
        for net in networks.values()
    ]
    expected = [
        1 - np.corrcoef(maps[0][..., unit].ravel(), maps[1][..., unit].ravel())[0, 1]
        for unit in range(5)
    ]
    moved = motion(networks, images, ["conv1"])["conv1"]
    np.testing.assert_allclose(moved, [expected], rtol=1e-3)


def test_a_unit_that_does_not_vary_has_no_correlation(images):
    other = network(1)
    other.conv1.bias[...] = other.conv1.bias[...].at[2].set(-1e3)
    moved = motion({1: network(0), 2: other}, images, ["conv1"])["conv1"]
    assert np.isnan(moved[0]).tolist() == [False, False, True, False, False]


def test_what_cannot_be_is_refused(images):
    arch = dataclasses.replace(SMALL, name="other")
    other = zf.load_weights(draw_state(SMALL), arch)
    for function in (evolution, motion):
        with pytest.raises(ValueError, match=r"two checkpoints are needed.*1"):
            function({1: network(0)}, images, LAYERS)
        with pytest.raises(ValueError, match="different architectures"):
            function({1: network(0), 2: other}, images, LAYERS)
        with pytest.raises(ValueError, match="conv9"):
            function({1: network(0), 2: network(1)}, images, ["conv9"])
        with pytest.raises(ValueError, match="no images"):
            function({1: network(0), 2: network(1)}, images[:0], LAYERS)


def test_each_checkpoint_projects_its_own_strongest(images):
    networks = {epoch: network(seed) for seed, epoch in enumerate((1, 4))}
    course = evolution(networks, images, ["conv2"])["conv2"]
    units = [3, 0]
    found = project_course(networks, images, "conv2", course, units)
    assert len(found) == 4
    for index, (unit, row) in enumerate((u, r) for u in units for r in (0, 1)):
        image = course.images[row, unit]
        one = zf.project(
            networks[course.epochs[row]],
            images[image : image + 1],
            "conv2",
            unit,
            course.positions[row, unit][None],
            crop=True,
        )
        np.testing.assert_allclose(found.pixels[index], one.pixels[0], atol=1e-5)
        np.testing.assert_array_equal(found.boxes[index], one.boxes[0])
        assert (found.images[index], found.units[index]) == (image, unit)
        assert found.values[index] == pytest.approx(course.values[row, unit])
