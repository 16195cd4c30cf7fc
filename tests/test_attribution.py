"""Attribution maps by hand and by laws, and the numbers that judge them."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import zfnet_jax as zf
from tests.references.deconvnet_cases import draw_state
from zfnet_jax.arch import Architecture, ContrastNorm, Conv, Dense, MaxPool
from zfnet_jax.attribution import (
    Curves,
    deconvnet,
    deletion,
    guided_backprop,
    importance,
    insertion,
    pointing_game,
    saliency,
)
from zfnet_jax.relu_rules import with_relu_rule

METHODS = {
    "gradient": saliency,
    "guided": guided_backprop,
    "deconvnet": deconvnet,
}


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, *shape])
    return rng.normal(size=shape).astype(np.float32)


SMALL = Architecture(
    "small",
    (9, 8),
    (
        Conv("conv1", 4, kernel=3, padding=1),
        MaxPool("pool1", kernel=3, stride=2, padding=1),
        Conv("conv2", 5, kernel=3, padding=1),
        Dense("fc3", 6),
        Dense("logits", 3, relu=False),
    ),
    channels=2,
)
IMAGES = drawn(4, 9, 8, 2)


def network(arch: Architecture) -> zf.ConvNet:
    return zf.load_weights(draw_state(arch), arch)


@pytest.fixture(scope="module")
def model():
    return network(SMALL)


@pytest.fixture(scope="module")
def logits(model):
    """A small network as a function, the way the paper draws it, compiled once."""
    return jax.jit(lambda x: model.features(x).features["logits"])


# --- maps ---


@pytest.mark.parametrize(
    "target", [1, np.int64(1), jnp.array(1), np.array([1, 1, 1]), jnp.array([1, 1, 1])]
)
def test_the_saliency_of_a_linear_function_is_its_weights(target):
    weights, x = drawn(2 * 3 * 2, 4), drawn(3, 2, 3, 2)
    maps = saliency(lambda x: x.reshape(3, -1) @ weights, x, target)
    np.testing.assert_allclose(maps, [weights[:, 1].reshape(2, 3, 2)] * 3, rtol=1e-6)


def two_layers(x):
    """Of the image (1, 2): hidden units (0, 3, 1), then (1, 0), then logits (2, -1)."""
    first = jnp.array([[1.0, 1.0, 3.0], [-1.0, 1.0, -1.0]])
    second = jnp.array([[2.0, 1.0], [1.0, -1.0], [-2.0, 1.0]])
    last = jnp.array([[2.0, -1.0], [3.0, 1.0]])
    hidden = jax.nn.relu(x.reshape(-1, 2) @ first)
    return jax.nn.relu(hidden @ second) @ last


@pytest.mark.parametrize(
    ("rule", "target", "expected"),
    [
        # (2, 3) comes down on the upper ReLU; then (4, 2, -4) or, where the silent unit
        # passes it too, (7, -1, -1) on the lower one.
        ("gradient", 0, (-10, 6)),
        ("guided", 0, (2, 2)),
        ("deconvnet", 0, (7, -7)),
        # (-1, 1); then (-2, -1, 2), nothing, or (1, -1, 1).
        ("gradient", 1, (5, -3)),
        ("guided", 1, (0, 0)),
        ("deconvnet", 1, (4, -2)),
    ],
)
def test_two_relus_by_hand(rule, target, expected):
    x = np.array([1, 2], np.float32).reshape(1, 1, 2, 1)
    np.testing.assert_array_equal(two_layers(x), [[2, -1]])
    maps = METHODS[rule](two_layers, x, target)
    np.testing.assert_array_equal(maps.reshape(-1), expected)


def test_saliency_is_a_row_of_the_jacobian():
    weights, targets = drawn(12, 4), np.array([3, 0, 2])

    def fn(x):
        return jnp.tanh(x.reshape(3, -1) @ weights) ** 2

    x = drawn(3, 2, 3, 2)
    jacobian = jax.jacobian(fn)(jnp.asarray(x))
    rows = jacobian[np.arange(3), targets, np.arange(3)]
    np.testing.assert_allclose(saliency(fn, x, targets), rows, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_batch_is_one_at_a_time(method, logits):
    targets = np.array([2, 0, 1, 2])
    compiled = jax.jit(lambda x, y: method(logits, x, y))
    maps = compiled(IMAGES, targets)
    assert maps.shape == IMAGES.shape and maps.dtype == np.float32
    assert maps.min() < 0 < maps.max()
    for image, target, together in zip(IMAGES, targets, maps, strict=True):
        alone = compiled(image[None], target)[0]
        np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-6)
    eager = method(logits, IMAGES, targets)
    np.testing.assert_allclose(maps, eager, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rule", METHODS)
def test_any_scalar_will_do(rule, logits):
    """The difference of two logits, which no target can name."""

    def difference(x):
        out = logits(x)
        return out[:, 0] - 2 * out[:, 1]

    expected = jax.grad(lambda x: with_relu_rule(difference, rule)(x).sum())(IMAGES)
    maps = METHODS[rule](difference, IMAGES, None)
    np.testing.assert_allclose(maps, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(maps).max() > 0.01


def test_a_target_out_of_sight_and_range_gives_zeros(logits):
    maps = jax.jit(lambda y: saliency(logits, IMAGES, y))(np.array([3, -1, 0, 9]))
    assert maps[2].any() and not maps[np.array([0, 1, 3])].any()


def test_a_network_can_be_called_as_it_is(model, logits):
    """It pools before it rectifies: the same derivative, but another deconvnet."""
    plain, expected = (saliency(fn, IMAGES, 1) for fn in (jax.jit(model), logits))
    assert strength(plain - expected) < 1e-4 * strength(expected)
    other, expected = (deconvnet(fn, IMAGES, 1) for fn in (jax.jit(model), logits))
    assert strength(other - expected) > 0.01 * strength(expected)


def strength(x):
    return float(np.linalg.norm(x))


@pytest.mark.parametrize("rule", METHODS)
def test_the_explicit_deconvnet_of_the_logits_agrees(rule, model, logits):
    """It starts with the logit's value, where attribution starts with 1."""
    image = IMAGES[:1]
    values = np.asarray(logits(image))[0]
    # Rules that rectify send something else down from a negative logit.
    unit = int(values.argmin() if rule == "gradient" else values.argmax())
    assert values.min() < 0 < values.max()
    projected = zf.project(model, image, "logits", unit, rule=rule)
    maps = METHODS[rule](logits, image, unit)
    expected = projected.pixels / projected.values[:, None, None, None]
    assert strength(maps - expected) < 1e-4 * strength(expected)


def test_contrast_normalisation_is_differentiated_if_allowed():
    layers = (SMALL.layers[0], ContrastNorm("norm1", alpha=0.3), *SMALL.layers[1:])
    model = network(Architecture("normed", (9, 8), layers, 2))
    fn = jax.jit(lambda x: model.features(x, until="fc3").features["fc3"])
    with pytest.raises(ValueError, match="allow="):
        deconvnet(fn, IMAGES[:1], 0)
    values = np.asarray(fn(IMAGES))
    best, unit = map(int, np.unravel_index(values.argmax(), values.shape))
    image = IMAGES[best : best + 1]
    projected = zf.project(model, image, "fc3", unit, norm="backprop")
    maps = deconvnet(fn, image, unit, allow=("square", "pow", "div"))
    expected = projected.pixels / projected.values[:, None, None, None]
    assert projected.values[0] > 0 and expected.any()
    assert strength(maps - expected) < 1e-4 * strength(expected)


# --- importance and the pointing game ---


def test_importance_is_the_greatest_magnitude_of_the_channels():
    maps = np.array([[[[1, -3, 2], [0, 0, 0]], [[-1, 0, 0.5], [4, -4, 1]]]], np.float32)
    np.testing.assert_array_equal(importance(maps), [[[3, 0], [1, 4]]])


def pointing_at(*pixels, shape=(6, 7)) -> np.ndarray:
    values = np.zeros((1, *shape), np.float32)
    values[0][tuple(np.transpose(pixels))] = 1
    return values


@pytest.mark.parametrize(
    ("pixel", "tolerance", "hit"),
    [
        ((3, 4), 0.0, 1),
        ((3, 3), 0.0, 0),
        ((3, 3), 1.0, 1),
        ((2, 3), 1.0, 0),
        ((2, 3), 1.5, 1),
        # 5 pixels away: 3 rows and 4 columns.
        ((0, 0), 4.999, 0),
        ((0, 0), 5.0, 1),
        ((5, 6), 1e9, 1),
    ],
)
def test_pointing_at_one_pixel_by_hand(pixel, tolerance, hit):
    mask = pointing_at((3, 4)).astype(bool)
    result = pointing_game(pointing_at(pixel), mask, tolerance)
    np.testing.assert_array_equal(result, [hit])


def test_equal_maxima_share_the_hit():
    mask = np.zeros((1, 6, 7), bool)
    mask[0, 2:4, 3:6] = True
    three = pointing_at((0, 0), (2, 3), (3, 5))
    np.testing.assert_allclose(pointing_game(three, mask), [2 / 3])
    # A map of nothing but zeros points everywhere.
    np.testing.assert_allclose(pointing_game(np.zeros_like(three), mask), [6 / 42])
    # The maximum counts, not the magnitude.
    np.testing.assert_array_equal(pointing_game(-pointing_at((0, 0)), ~mask), [35 / 41])


def test_pointing_is_as_a_search_over_all_pixels():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 12, (20, 8, 5)).astype(np.float32)
    masks = rng.random((20, 8, 5)) < 0.06
    masks[:, 4, 2] = True
    for tolerance in (0.0, 1.0, 2**0.5, 2.3):
        expected = []
        for importances, mask in zip(values, masks, strict=True):
            peaks = np.argwhere(importances == importances.max())
            gaps = peaks[:, None] - np.argwhere(mask)[None]
            nearest = np.hypot(gaps[..., 0], gaps[..., 1]).min(1)
            expected.append(np.mean(nearest <= tolerance))
        result = pointing_game(values, masks, tolerance)
        np.testing.assert_allclose(result, expected)
        assert 0 < result.mean() < 1


# --- insertion and deletion ---

# One image of ones under a sum weighted by these: what each pixel brings.
WEIGHTS = np.array([[2.0, 4.0], [1.0, 3.0]], np.float32)
ONES = np.ones((1, 2, 2, 1), np.float32)


def weighted(x):
    return (x[..., 0] * WEIGHTS).sum((1, 2))


@pytest.mark.parametrize(
    ("curve", "sign", "values"),
    [
        (insertion, 1, (0, 4, 7, 9, 10)),
        (insertion, -1, (0, 1, 3, 6, 10)),
        (deletion, 1, (10, 6, 3, 1, 0)),
        (deletion, -1, (10, 9, 7, 4, 0)),
    ],
)
def test_a_weighted_sum_by_hand(curve, sign, values):
    result = curve(weighted, ONES, None, sign * WEIGHTS[None], steps=4)
    assert isinstance(result, Curves)
    np.testing.assert_array_equal(result.fractions, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(result.values, [values], rtol=1e-6)
    area = (sum(values) - 5) / 4
    np.testing.assert_allclose(result.areas, [area], rtol=1e-6)


def test_a_linear_function_s_areas_are_known():
    """Each pixel is in for what is left when its turn comes: a sum of products."""
    x, weights, order = drawn(3, 4, 5, 2), drawn(4, 5, 2), drawn(3, 4, 5)

    def fn(x):
        return (x * weights).sum((1, 2, 3))

    baseline = drawn(4, 5, 2, seed=1)
    brought = ((x - baseline) * weights).sum(-1).reshape(3, -1)
    ranks = np.argsort(np.argsort(-order.reshape(3, -1)))
    empty, full = fn(baseline[None]), fn(x)
    areas = empty + (brought * (1 - (ranks + 0.5) / 20)).sum(1)
    inserted = insertion(fn, x, None, order, baseline, steps=20)
    np.testing.assert_allclose(inserted.areas, areas, rtol=1e-4, atol=1e-4)
    # Whatever the steps, one is what the other leaves.
    for steps in (None, 3):
        both = [
            curve(fn, x, None, order, baseline, steps)
            for curve in (insertion, deletion)
        ]
        np.testing.assert_allclose(
            both[0].areas + both[1].areas, empty + full, rtol=1e-4, atol=1e-4
        )
        np.testing.assert_allclose(both[0].values[:, -1], full, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(
            both[0].values[:, 0], np.tile(empty, 3), rtol=1e-4, atol=1e-4
        )


def test_curves_are_as_a_loop_over_images_and_steps(logits):
    targets, order = np.array([2, 0, 1, 2]), drawn(4, 9, 8)
    fill = np.array([0.5, -1], np.float32)
    inserted = insertion(logits, IMAGES, targets, order, fill, steps=5)
    deleted = deletion(logits, IMAGES, targets, order, fill, steps=5)
    counts = [0, 14, 28, 43, 57, 72]
    np.testing.assert_allclose(inserted.fractions, np.divide(counts, 72), rtol=1e-6)
    for i in range(4):
        ranked = np.argsort(-order[i].reshape(-1))
        for step, count in enumerate(counts):
            first = np.isin(np.arange(72), ranked[:count]).reshape(9, 8, 1)
            for curves, kept in ((inserted, first), (deleted, ~first)):
                out = np.asarray(logits(np.where(kept, IMAGES[i], fill)[None]))[0]
                probability = np.exp(out) / np.exp(out).sum()
                np.testing.assert_allclose(
                    curves.values[i, step], probability[targets[i]], rtol=1e-4
                )
    for curves in (inserted, deleted):
        expected = np.trapezoid(curves.values, curves.fractions)
        np.testing.assert_allclose(curves.areas, expected, rtol=1e-5)


def test_a_better_order_has_better_areas():
    """Of a class that some pixels speak for and others against."""
    weights = drawn(6, 6)

    def fn(x):
        total = (x[..., 0] * weights).sum((1, 2))
        return jnp.stack([total, jnp.zeros_like(total)], -1)

    x = np.ones((1, 6, 6, 1), np.float32)
    orders = (weights[None], drawn(1, 6, 6), -weights[None])
    inserted = [insertion(fn, x, 0, order).areas[0] for order in orders]
    deleted = [deletion(fn, x, 0, order).areas[0] for order in orders]
    assert inserted == sorted(inserted, reverse=True) and deleted == sorted(deleted)
    assert min(np.diff(deleted)) > 0.02 and min(np.diff(inserted[::-1])) > 0.02


def test_equal_importances_go_in_row_major_order():
    result = insertion(weighted, ONES, None, np.zeros((1, 2, 2), np.float32), steps=4)
    np.testing.assert_allclose(result.values, [[0, 2, 6, 7, 10]], rtol=1e-6)


def test_all_steps_are_one_program():
    traced = []

    def fn(x):
        traced.append(x)
        return weighted(x)

    order = WEIGHTS[None].repeat(3, 0)
    curves = jax.jit(lambda x: insertion(fn, x, None, order, steps=4))
    many = curves(ONES.repeat(3, 0))
    once = len(traced)
    assert 1 <= once <= 2
    curves(2 * ONES.repeat(3, 0))
    assert len(traced) == once
    np.testing.assert_allclose(many.areas, [6.25] * 3, rtol=1e-6)


def test_steps_are_rows_unless_given():
    x = np.ones((1, 5, 3, 1), np.float32)
    curves = insertion(lambda x: x.sum((1, 2, 3)), x, None, drawn(1, 5, 3))
    np.testing.assert_allclose(curves.values, [[0, 3, 6, 9, 12, 15]])


# --- what is refused ---


@pytest.fixture
def unhooked(monkeypatch):
    """As users see it: without the tests' own shape checks."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize(
    ("fn", "x", "target", "message"),
    [
        (None, IMAGES, 3, "target 3 is not one of the logits 0 to 2"),
        (None, IMAGES, -1, "target -1 is not one of the logits 0 to 2"),
        (None, IMAGES, np.array([0, 1, 7, 2]), "target 7 is not"),
        (None, IMAGES, np.array([0, 1]), r"int\[4\].*got int64\[2\]"),
        (None, IMAGES, np.zeros((4, 1), int), r"int\[4\].*got int64\[4, 1\]"),
        (None, IMAGES, 1.0, r"target must be an int.*got float64\[\]"),
        (None, IMAGES, True, r"target must be an int.*got bool\[\]"),
        (None, IMAGES, None, r"float\[4\], a scalar.*got float32\[4, 3\]"),
        (None, IMAGES[0], 1, r"x must be float\[b, h, w, c\], got float32\[9, 8, 2\]"),
        (None, IMAGES.astype(np.uint8), 1, r"got uint8\[4, 9, 8, 2\]"),
        (lambda out: out[:, 0], IMAGES, 0, r"logits.*got float32\[4\]"),
        (lambda out: out.sum(), IMAGES, None, r"scalar.*got float32\[\]"),
        (lambda out: out[0], IMAGES, 0, r"logits.*got float32\[3\]"),
        (lambda out: {"logits": out}, IMAGES, 0, "one array of floats, got dict"),
    ],
)
def test_maps_of_what_cannot_be(method, fn, x, target, message, unhooked):
    def whole(x):
        out = jax.nn.relu(x[:, 0, :3].sum(-1))
        return fn(out) if fn else out

    with pytest.raises(ValueError, match=message) as raised:
        method(whole, x, target)
    assert "\n" not in str(raised.value)


def test_a_function_without_relu_has_a_gradient_only():
    x = drawn(1, 2, 2, 1)
    saliency(weighted, x, None)
    for method in (guided_backprop, deconvnet):
        with pytest.raises(ValueError, match="no ReLU"):
            method(weighted, x, None)
    with pytest.raises(ValueError, match="'tanh'"):
        guided_backprop(lambda x: jnp.tanh(jax.nn.relu(weighted(x))), x, None)
    guided_backprop(lambda x: jnp.tanh(jax.nn.relu(weighted(x))), x, None, ["tanh"])


def two_logits(x):
    return jnp.stack([weighted(x), -weighted(x)], -1)


MASKS = np.zeros((2, 4, 5), bool)
MASKS[:, 1, 2] = True
VALUES = drawn(2, 4, 5)


@pytest.mark.parametrize(
    ("importances", "masks", "tolerance", "message"),
    [
        (VALUES, MASKS & [[[True]], [[False]]], 0, r"masks\[1\] holds no object"),
        (VALUES, MASKS[:, :3], 0, r"float\[2, 3, 5\].*got float32\[2, 4, 5\]"),
        (VALUES[..., None], MASKS, 0, r"got float32\[2, 4, 5, 1\]"),
        (VALUES.astype(int), MASKS, 0, r"got int64\[2, 4, 5\]"),
        (VALUES, MASKS.astype(np.uint8), 0, r"bool\[b, h, w\], got uint8"),
        (VALUES, MASKS[0], 0, r"bool\[b, h, w\], got bool\[4, 5\]"),
        (VALUES * np.nan, MASKS, 0, "not finite"),
        (VALUES + np.inf, MASKS, 0, "not finite"),
        (VALUES, MASKS, -1, "tolerance.*-1"),
        (VALUES, MASKS, np.nan, "tolerance.*nan"),
    ],
)
def test_pointing_at_what_cannot_be(importances, masks, tolerance, message, unhooked):
    with pytest.raises(ValueError, match=message) as raised:
        pointing_game(importances, masks, tolerance)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("curve", [insertion, deletion])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be from 1 to the 4 pixels.*not 0"),
        ({"steps": 5}, "steps must be from 1 to the 4 pixels.*not 5"),
        ({"importances": WEIGHTS}, r"float\[1, 2, 2\].*got float32\[2, 2\]"),
        ({"importances": WEIGHTS[None] * np.nan}, "not finite"),
        ({"x": ONES[0]}, r"x must be.*got float32\[2, 2, 1\]"),
        ({"baseline": np.zeros((3, 1), np.float32)}, r"baseline float32\[3, 1\]"),
        ({"baseline": np.zeros((1, 1, 2, 2, 1), np.float32)}, "baseline"),
        ({"target": 0}, r"logits float\[1, classes\], got float32\[1\]"),
        ({"fn": two_logits}, r"scalar for each image, got float32\[1, 2\]"),
        ({"fn": two_logits, "target": 2}, "target 2 is not"),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(value),
)
def test_curves_of_what_cannot_be(curve, change, message, unhooked):
    arguments = {
        "fn": weighted,
        "x": ONES,
        "target": None,
        "importances": WEIGHTS[None],
        "baseline": 0.0,
        "steps": 2,
    }
    with pytest.raises(ValueError, match=message) as raised:
        curve(**{**arguments, **change})
    assert "\n" not in str(raised.value)
