"""The sign-Hamming measure on known changes, and its permutation test."""

import itertools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx

import zfnet_jax as zf
from tests.networks import TINY, random_model
from zfnet_jax.analysis.correspondence import (
    correspondence,
    draw_boxes,
    mask_boxes,
    sign_distances,
)
from zfnet_jax.arch import Architecture, Conv, Dense
from zfnet_jax.networks import network

# Wide enough for signs to tell something, and nothing that takes long to compile.
LINEAR = Architecture(
    "linear",
    (10, 10),
    (
        Conv("conv1", 2, kernel=1),
        Dense("fc2", 100),
        Dense("logits", 2, relu=False),
    ),
)


def noise(count: int, *hw: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, *hw, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    return random_model(TINY)


@pytest.fixture(scope="module")
def linear():
    """A network whose ReLUs are always active, so that every change shows."""
    model = zf.ConvNet(LINEAR, rngs=nnx.Rngs(0))
    model.conv1.bias[...] = model.conv1.bias[...] + 30
    model.fc2.bias[...] = model.fc2.bias[...] + 3000
    return model


def by_definition(signs: np.ndarray) -> float:
    """The paper's sum over i ≠ j of the Hamming distance, over pairs and dimensions."""
    count, width = signs.shape
    total = sum(
        int((signs[i] != signs[j]).sum())
        for i, j in itertools.permutations(range(count), 2)
    )
    return total / (count * (count - 1) * width)


def test_distances_by_hand():
    signs = np.array([[1, 0, -1, 1], [1, 0, 0, -1], [0, 0, -1, 1]], np.int8)
    # Of (1, 2), (1, 3), (2, 3): two, one and three of four dimensions differ.
    np.testing.assert_allclose(sign_distances(signs), [0.5, 0.25, 0.75])
    assert by_definition(signs) == pytest.approx(0.5)
    # Opposite changes in every dimension are 1 apart.
    assert sign_distances(np.array([[1, -1], [-1, 1]], np.int8)) == pytest.approx([1])


def test_delta_is_the_papers(model):
    # Two batches, the second of them filled up.
    count = 35
    images = noise(count, 9, 12)
    boxes = {
        "one": draw_boxes(np.tile([[0, 0, 4, 3]], (count, 1)), (9, 12), 1, 5)[0],
        "other": draw_boxes(np.tile([[0, 0, 3, 5]], (count, 1)), (9, 12), 1, 6)[0],
    }
    done = []
    options = {"draws": 3, "seed": 2, "progress": lambda *x: done.append(x)}
    results = correspondence(model, images, boxes, layers=["fc3", "pool1"], **options)
    assert list(results) == ["pool1", "fc3"]
    assert done == [(step, 8) for step in range(1, 9)]
    features = jax.jit(lambda images: model.features(images).features)
    before = features(images)
    for index, (part, places) in enumerate(boxes.items()):
        for draw, rows in enumerate((places, *draw_boxes(places, (9, 12), 3, 2))):
            hidden = images.copy()
            for image, (top, left, bottom, right) in zip(hidden, rows, strict=True):
                image[top:bottom, left:right] = 0
            after = features(hidden)
            for layer, x in results.items():
                change = np.asarray(before[layer]) - np.asarray(after[layer])
                signs = np.sign(change).reshape(count, -1).astype(np.int8)
                expected = by_definition(signs)
                if draw:
                    assert x.random[index, draw - 1] == pytest.approx(expected)
                    continue
                assert x.parts[index] == part
                assert x.delta[index] == pytest.approx(expected)
                assert x.changed[index] == pytest.approx((signs != 0).mean())
                spread = sign_distances(signs).std(ddof=1)
                assert x.spread[index] == pytest.approx(spread)


def test_only_what_sees_the_mask_changes(linear, model):
    images = noise(3, 10, 10)
    boxes = {"part": np.tile([[2, 3, 5, 9]], (3, 1))}
    results = correspondence(linear, images, boxes, layers=["conv1", "fc2"], draws=2)
    assert results["conv1"].changed == pytest.approx([18 / 100])
    assert results["conv1"].random_changed == pytest.approx([18 / 100])
    assert results["fc2"].changed == pytest.approx([1])
    # Windows of 3 x 3 at the corner of an image, rectified: at most 2 x 2 positions.
    corner = {"part": np.tile([[0, 0, 1, 1]], (3, 1))}
    results = correspondence(model, noise(3, 9, 12), corner, layers="conv1", draws=1)
    assert 0 < results["conv1"].changed[0] <= 4 / 108


def test_both_sides_of_a_change_have_one_place_in_the_batch():
    """Rounding that depends on the place, exaggerated, changes no feature."""

    def uneven(images):
        place = 1 + jnp.arange(len(images))[:, None, None, None]
        return jax.nn.relu(images * place + 1000).reshape(len(images), -1)

    net = network(uneven, (10, 10, 3))
    boxes = {"part": np.tile([[2, 3, 5, 9]], (35, 1))}
    results = correspondence(net, noise(35, 10, 10), boxes, layers="relu1", draws=2)
    assert results["relu1"].changed == pytest.approx([18 / 100])
    assert results["relu1"].random_changed == pytest.approx([18 / 100])


def test_p_values_are_uniform_where_parts_are_draw_boxes(linear):
    draws = 9
    values = {"p_random": [], "p_mixed": []}
    for seed in range(12):
        images = noise(4, 10, 10, seed=seed)
        sizes = np.tile([[0, 0, 4, 4]], (4, 1))
        places = draw_boxes(sizes, (10, 10), 4, seed=100 + seed)
        boxes = {f"part {index}": box for index, box in enumerate(places)}
        results = correspondence(
            linear, images, boxes, layers="fc2", draws=draws, seed=seed
        )
        for name in values:
            values[name].append(getattr(results["fc2"], name))
    for name, parts in values.items():
        all_values = np.concatenate(parts)
        # Each multiple of 1 / (1 + draws) is as likely; 48 of them, some dependent.
        assert abs(all_values.mean() - 0.55) < 0.13, name
        for level in (0.2, 0.5, 0.8):
            assert abs((all_values <= level).mean() - level) < 0.2, name


def test_planted_parts_are_detected(linear):
    images = noise(8, 10, 10)
    rng = np.random.default_rng(3)
    boxes = {}
    # Each part looks alike wherever the network meets it, unlike all else.
    for part, (top, left) in {"one": (1, 1), "other": (6, 5)}.items():
        images[:, top : top + 3, left : left + 3] += 8 * rng.normal(size=(3, 3, 3))
        boxes[part] = np.tile([[top, left, top + 3, left + 3]], (8, 1))
    result = correspondence(linear, images, boxes, layers="fc2", draws=99)["fc2"]
    assert (result.delta < 0.2).all()
    np.testing.assert_allclose(result.p_random, 0.01)
    assert (result.p_mixed < 0.03).all()
    assert result.random.mean() > 0.3 and result.mixed.mean() > 0.3


def test_boxes_keep_their_sizes_and_reach_every_place():
    boxes = np.array([[0, 0, 2, 3], [4, 4, 5, 5]])
    places = draw_boxes(boxes, (5, 6), 4000, seed=1)
    sizes = places[..., 2:] - places[..., :2]
    assert (sizes[:, 0] == [2, 3]).all() and (sizes[:, 1] == [1, 1]).all()
    for image, (rows, columns) in enumerate([(4, 4), (5, 6)]):
        corners = places[:, image, 0] * columns + places[:, image, 1]
        counts = np.bincount(corners, minlength=rows * columns)
        expected = 4000 / len(counts)
        # Six standard deviations.
        assert abs(counts - expected).max() < 6 * np.sqrt(expected)
    assert (places != draw_boxes(boxes, (5, 6), 4000, seed=2)).any()


def test_masks_fill_their_boxes_and_no_more():
    images, mean = noise(2, 5, 6), noise(1, 5, 6, seed=1)[0]
    boxes = np.array([[1, 2, 3, 6], [0, 0, 0, 0]])
    for fill in (0.5, mean):
        expected = images.copy()
        expected[0, 1:3, 2:6] = np.broadcast_to(fill, (5, 6, 3))[1:3, 2:6]
        np.testing.assert_array_equal(mask_boxes(images, boxes, fill=fill), expected)


def test_boxes_are_checked(model, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    places = np.array([[0, 0, 3, 3], [2, 2, 5, 5]])
    for count, boxes, message in (
        (1, {"eye": places}, "at least two images, not 1"),
        (2, {"eye": places[:1]}, "eye: 1 boxes for 2 images"),
        (2, {"eye": places + 5}, "eye in image 1: .*leaves the image"),
    ):
        with pytest.raises(ValueError, match=message):
            correspondence(model, noise(count, 9, 12), boxes)
