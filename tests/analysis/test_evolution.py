"""Features over training, on networks whose course is known."""

import numpy as np
import pytest
from flax import nnx

import zfnet_jax as zf
from tests.analysis.test_mining import Stream
from tests.networks import TINY
from tests.references.deconvnet_cases import draw_state
from zfnet_jax.analysis.evolution import evolution, motion
from zfnet_jax.analysis.mining import top_activations
from zfnet_jax.networks import network

LAYERS = ["conv1", "conv2", "logits"]


def draw_model(seed: int) -> zf.ConvNet:
    state = draw_state(TINY, seed)
    for name in ("conv1", "conv2"):
        state[f"{name}.bias"][:] = 2  # alive
    return zf.load_weights(state, TINY)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return rng.normal(size=(37, 9, 12, 3)).astype(np.float32)


def test_each_checkpoint_is_mined(images):
    models = {5: draw_model(2), 1: draw_model(0), 2: draw_model(1)}
    done = []
    result = evolution(models, images, LAYERS, progress=lambda *x: done.append(x))
    assert done == [(1, 3), (2, 3), (3, 3)] and list(result) == LAYERS
    for layer, course in result.items():
        assert course.epochs == (1, 2, 5)
        for row, epoch in enumerate(course.epochs):
            top = top_activations(models[epoch], images, layer, k=1)[layer]
            for name in ("activations", "images", "positions"):
                ours, theirs = getattr(course, name)[row], getattr(top, name)[:, 0]
                np.testing.assert_array_equal(ours, theirs)
            np.testing.assert_array_equal(course.dead[row], top.dead)
        assert not course.jumps[0].any()
        moved = course.images[0] != course.images[1]
        np.testing.assert_array_equal(course.jumps[1], moved)
        assert course.jumps.any()
    assert repr(result["conv2"]) == "Evolution(conv2: 4 units, epochs 1, 2, 5)"


def test_an_unchanged_or_scaled_unit_does_not_move(images):
    same = draw_model(0)
    scaled = nnx.clone(same)
    kernel, bias = scaled.conv1.kernel, scaled.conv1.bias
    kernel[...], bias[...] = 3 * kernel[...], 3 * bias[...]
    for other in (nnx.clone(same), scaled):
        moved = motion({1: same, 3: other}, images, ["conv1"])
        np.testing.assert_allclose(moved["conv1"], np.zeros((1, 5)), atol=1e-5)
    course = evolution({1: same, 3: nnx.clone(same)}, images, ["conv1"])["conv1"]
    assert not course.jumps.any()


def test_motion_is_one_minus_the_correlation(images):
    models = {1: draw_model(0), 2: draw_model(1)}
    nets = [network(model) for model in models.values()]
    moved = motion(models, Stream(images, 32), LAYERS)
    assert list(moved) == LAYERS
    for layer in LAYERS:
        before, after = (
            np.asarray(net.activations(images, layer)[layer], np.float64)
            for net in nets
        )
        with np.errstate(invalid="ignore"):  # NaN for a dead unit
            expected = [
                1 - np.corrcoef(before[..., u].ravel(), after[..., u].ravel())[0, 1]
                for u in range(before.shape[-1])
            ]
        np.testing.assert_allclose(moved[layer], [expected], rtol=1e-3, err_msg=layer)


def test_too_few_or_different_networks_are_refused(images):
    arch = zf.ablate(TINY, widths={"conv2": 5})
    other = zf.load_weights(draw_state(arch), arch)
    for function in (evolution, motion):
        with pytest.raises(ValueError, match=r"two checkpoints are needed, not 1"):
            function({1: draw_model(0)}, images, LAYERS)
        with pytest.raises(ValueError, match="different architectures"):
            function({1: draw_model(0), 2: other}, images, LAYERS)


def test_each_checkpoint_projects_its_own_strongest(images):
    models = {epoch: draw_model(seed) for seed, epoch in enumerate((1, 4))}
    course = evolution(models, images, ["conv2"])["conv2"]
    units = [3, 0]
    result = course.project(models, images, units)
    assert len(result) == 4 and len(course.project(models, images)) == 8
    for index, (unit, row) in enumerate((u, r) for u in units for r in (0, 1)):
        image, position = course.images[row, unit], course.positions[row, unit]
        own = images[image][None], "conv2", unit, position
        one = zf.project(models[course.epochs[row]], *own, crop=True)
        np.testing.assert_allclose(result.pixels[index], one.pixels[0], atol=1e-5)
        np.testing.assert_array_equal(result.boxes[index], one.boxes[0])
        assert (result.images[index], result.units[index]) == (image, unit)
        activation = course.activations[row, unit]
        assert result.activations[index] == pytest.approx(activation)
