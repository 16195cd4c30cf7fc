"""Relevance by hand, by its law, by finite differences, and searched image by image."""

import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zfnet_jax as zf
from tests.networks import MIXED, TINY, as_function, random_model
from tests.references.deconvnet_cases import draw_state
from zfnet_jax.analysis import search_state
from zfnet_jax.analysis.relevance import MOST, TopRelevance, relevance, top_relevance

COUNT, EXAMPLES = 70, 2
LAYERS = ("conv1", "pool1", "conv2", "fc3", "logits")


def draw_images(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, *shape)).astype(np.float32)


def test_a_net_by_hand():
    def model(params, x):
        hidden = jax.nn.relu(x @ params["hidden"]["kernel"] + jnp.array([0.0, 2.0]))
        return hidden.mean((1, 2)) @ params["logits"]["kernel"]

    # Maps of two pixels: the first unit is 2, 6 and the second 1, 0 for pixels 1, 3.
    hidden = np.array([[2.0, -1.0]], np.float32)
    logits = np.array([[1.0, -1.0], [4.0, 3.0]], np.float32)
    params = {"hidden": {"kernel": hidden}, "logits": {"kernel": logits}}
    net = zf.network(model, (1, 2, 1), params=params, class_names=["a", "b"])
    images = np.array([1, 3], np.float32).reshape(1, 1, 2, 1)
    # Each position has half of the mean's gradient; the logits are 6 and -2.5.
    own = relevance(net, images)
    assert own["hidden"].tolist() == [[4, 2]] and own["logits"].tolist() == [[6, 0]]
    other = relevance(net, images, "b")
    assert other["hidden"].tolist() == [[-4, 1.5]]
    assert other["logits"].tolist() == [[0, -2.5]]
    top = top_relevance(net, images, "hidden", labels=[1], examples=1)["hidden"]
    assert (
        top.relevances.tolist() == [[-4], [1.5]] and top.classes.tolist() == [[1]] * 2
    )
    assert top.positions.tolist() == [[[0, 0]], [[0, 0]]]
    assert top.class_counts.tolist() == [[0, 0], [0, 1]]
    assert top.class_shares.tolist() == [[0, 0], [0, 1]]
    assert top.example_units[1].tolist() == [[1, 0]]
    best = top_relevance(net, images, "hidden")["hidden"]
    assert best.positions.tolist() == [[[0, 1]], [[0, 0]]]


def test_without_biases_the_relevances_of_a_layer_sum_to_the_logit():
    state = {
        name: 0 * value if name.endswith("bias") else value
        for name, value in draw_state(TINY).items()
    }
    images = draw_images(4, 9, 12, 3)
    chain = zf.network(zf.load_weights(state, TINY))
    rng = np.random.default_rng(1)
    kernels = [rng.normal(size=(3, 3)).astype(np.float32) for _ in range(4)]

    def branch(x):
        x = jax.nn.relu(x @ kernels[0])
        x = x + jax.nn.relu(x @ kernels[1]) @ kernels[2]
        return jax.nn.relu(x).mean((1, 2)) @ kernels[3]

    for net in (chain, zf.network(branch, (9, 12, 3))):
        targets = np.arange(4) % net.num_classes
        logits = np.asarray(net(images))[np.arange(4), targets]
        trunk = [*net.trunk(net.output), net.output]
        assert len(trunk) > 2
        by_layer = relevance(net, images, targets, layers=trunk, batch_size=3)
        for name in trunk:
            sums = by_layer[name].sum(1)
            np.testing.assert_allclose(sums, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", ["conv1", "conv3"])
def test_equals_the_change_when_a_unit_is_scaled(layer):
    """A ReLU's output scales with its weights, through normalization and pooling."""
    images, step = draw_images(3, 23, 19, 3), 1e-3
    net = zf.network(random_model(MIXED))
    targets = [3, 0, 1]
    ours = relevance(net, images, targets, layers=layer)[layer]
    for unit in (0, net.layers[layer].shape[-1] - 1):
        changed = []
        for factor in (1 + step, 1 - step):
            scale = np.ones(net.layers[layer].shape[-1], np.float32)
            scale[unit] = factor
            other = net.map_weights(layer, lambda x, scale=scale: x * scale)
            changed.append(np.asarray(other(images))[np.arange(3), targets])
        slope = (changed[0] - changed[1]) / (2 * step)
        np.testing.assert_allclose(ours[:, unit], slope, rtol=0.01, atol=2e-4)


def test_a_convnet_equals_itself_as_a_function():
    model, images = random_model(MIXED), draw_images(3, 23, 19, 3)
    ours = relevance(model, images, [3, 0, 1])
    theirs = relevance(as_function(model), images, [3, 0, 1])
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(theirs[name], value, atol=1e-5 * scale)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    images = draw_images(COUNT, 9, 12, 3)
    images[49] = images[4]  # a tie of two groups
    return images


def search(net, images, labels, layers, k) -> dict[str, TopRelevance]:
    return top_relevance(net, images, layers, k=k, labels=labels, examples=EXAMPLES)


def test_a_search_that_was_killed_goes_on(images, tmp_path, monkeypatch):
    monkeypatch.setattr(search_state, "_SAVE_EVERY", 0)
    net, stops = zf.network(random_model(TINY)), [16, 48]

    def search_on(done: int, total: int) -> None:
        parts.append(done)
        if done in stops:
            stops.remove(done)
            raise KeyboardInterrupt

    parts: list[int] = []
    options = {"k": 5, "examples": EXAMPLES, "partial": tmp_path, "batch_size": 16}
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            top_relevance(net, images, LAYERS, progress=search_on, **options)
    result = top_relevance(net, images, LAYERS, progress=search_on, **options)
    assert parts == [16, 32, 48, 64, COUNT]
    for name, expected in search(net, images, None, LAYERS, 5).items():
        for field, value in vars(expected).items():
            np.testing.assert_array_equal(vars(result[name])[field], value, field)


@pytest.mark.parametrize(("k", "has_labels"), [(5, True), (100, False)])
def test_equals_a_search_of_every_image(images, k, has_labels):
    model = random_model(TINY)
    classes = np.asarray(model(images)).argmax(1)
    if has_labels:
        classes = np.where(np.arange(COUNT) % 7, 2, 0)  # none of class 1
        classes[49] = classes[4]
    labels = classes if has_labels else None
    values = relevance(model, images, labels)
    result = search(model, images, labels, None, k)
    assert tuple(result) == LAYERS
    logits = np.asarray(model(images))[np.arange(COUNT), classes]
    for name, top in result.items():
        own, units = values[name], values[name].shape[1]
        order = np.argsort(-own, 0, kind="stable")[:k].T
        expected = np.take_along_axis(own.T, order, 1)
        np.testing.assert_allclose(top.relevances, expected, rtol=1e-4, atol=1e-5)
        picked = np.take_along_axis(own.T, top.images, 1)
        np.testing.assert_allclose(top.relevances, picked, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(top.classes, classes[top.images])
        most = np.argsort(-own, 1, kind="stable")[:, :MOST]
        is_most = np.zeros(own.shape)
        np.put_along_axis(is_most, most, np.take_along_axis(own, most, 1) > 0, 1)
        positive = np.maximum(own, 0)
        shares = positive / np.maximum(positive.sum(1, keepdims=True), 1e-30)
        for label in range(3):
            part = classes == label
            count = max(part.sum(), 1)
            assert top.class_sizes[label] == part.sum()
            np.testing.assert_array_equal(
                top.class_counts[:, label], is_most[part].sum(0)
            )
            for ours, all_values in (
                (top.class_shares, shares),
                (top.class_means, own),
            ):
                mean = all_values[part].sum(0) / count
                np.testing.assert_allclose(ours[:, label], mean, rtol=1e-4, atol=1e-5)
            best = np.flatnonzero(part)[np.argsort(-logits[part], kind="stable")]
            best = best[:EXAMPLES]
            assert top.example_images[label, : len(best)].tolist() == best.tolist()
            assert (top.example_images[label, len(best) :] == -1).all()
            for rank, image in enumerate(best):
                example = top.example_relevances[label, rank]
                assert len(example) == min(MOST, units)
                np.testing.assert_allclose(
                    example, own[image, most[image]], rtol=1e-4, atol=1e-5
                )


def test_positions_are_those_of_the_greatest_relevance(images):
    model = random_model(TINY)
    (top,) = search(model, images, 1, "conv2", 3).values()
    maps = model.features(images).features["conv2"]

    def logit(maps):
        return model.classify(maps)[:, 1].sum()

    product = np.asarray(maps * jax.grad(logit)(maps))
    flat = product.reshape(COUNT, -1, product.shape[-1])
    for unit, row in enumerate(top.images):
        places = np.unravel_index(flat[row, :, unit].argmax(1), maps.shape[1:3])
        np.testing.assert_array_equal(top.positions[unit].T, places)


CHILD = """
import hashlib, jax, numpy as np
from tests.analysis.test_relevance import COUNT, draw_images, search
from tests.networks import TINY, random_model

result = search(random_model(TINY), draw_images(COUNT, 9, 12, 3), None, None, 5)
values = [x for top in result.values() for x in list(vars(top).values())[1:]]
assert {x.dtype.itemsize for x in values} == {4}
data = b"".join(x.tobytes() for x in values)
print(len(jax.devices()), hashlib.sha256(data).hexdigest())
"""


def test_devices_do_not_matter():
    """Also in 64-bit mode: float32 images stay float32."""
    answers = []
    for count, mode in (("1", "0"), ("4", "1")):
        flag = f"--xla_force_host_platform_device_count={count}"
        changes = {"XLA_FLAGS": flag, "JAX_ENABLE_X64": mode}
        answer = subprocess.run(
            [sys.executable, "-c", CHILD],
            env={**os.environ, **changes},
            capture_output=True,
            text=True,
        )
        assert not answer.returncode, answer.stderr
        answers.append(answer.stdout.split())
    assert [x[0] for x in answers] == ["1", "4"] and answers[0][1] == answers[1][1]


def test_bad_arguments_are_named(images):
    model = random_model(TINY)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"labels": [0, 1]}, "2 targets for 70 images"),
        ({"labels": 3}, "target 3: the network has classes 0 to 2"),
        ({"layers": "conv9"}, "no layer 'conv9'"),
        ({"k": 0}, "k must be at least 1, not 0"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            top_relevance(model, images, **arguments)
    net = zf.network(lambda x: jax.nn.relu(x @ np.eye(3, dtype="f4")), (2, 2, 3))
    with pytest.raises(ValueError, match="gives a map of 2 x 2 x 3"):
        relevance(net, draw_images(1, 2, 2, 3))
