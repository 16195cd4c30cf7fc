"""Likeness of units, against float64 in NumPy."""

import itertools

import numpy as np
import pytest

import zfnet_jax as zf
from tests.gallery_case import DEAD, IMAGES, NET, ODD, UNITS, YOUNG
from zfnet_jax.analysis import likeness as module
from zfnet_jax.analysis.likeness import Likeness

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def like(compiled_once) -> Likeness:
    return zf.likeness(NET, IMAGES)


@pytest.fixture(scope="module")
def responses(compiled_once) -> dict[str, np.ndarray]:
    """Each unit's strongest activation per image, [n, u]."""
    return {
        name: x.max(tuple(range(1, x.ndim - 1))).astype(np.float64)
        for name, x in NET.activations(IMAGES).items()
    }


def correlate(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Cosines of centered columns; NaN for a column that is never positive."""
    x, y = (np.where(a.max(0) > 0, a - a.mean(0), np.nan) for a in (x, y))
    return (x.T @ y) / np.outer(*(np.linalg.norm(a, axis=0) for a in (x, y)))


def make(*layers: list[list[float]]) -> Likeness:
    """A likeness of given directions."""
    directions = {
        f"layer{i}": np.array(rows, np.float32) for i, rows in enumerate(layers)
    }
    count = len(layers[0][0])
    copies = {name: np.zeros(len(rows), bool) for name, rows in directions.items()}
    return Likeness(np.arange(count), directions, copies)


@pytest.mark.parametrize("layer", ["conv1", "logits"])
def test_nearest_units_of_a_layer_are_those_of_brute_force(
    like, responses, layer, monkeypatch
):
    monkeypatch.setattr(module, "_BLOCK", 5)
    table = correlate(responses[layer], responses[layer])
    np.fill_diagonal(table, np.nan)
    expected = -np.sort(-np.nan_to_num(table, nan=-np.inf), 1)[:, :8]
    expected[np.isinf(expected)] = np.nan
    nearest = like.nearest(layer)
    expected = expected[:, : nearest.cosines.shape[1]]
    np.testing.assert_allclose(nearest.cosines, expected, atol=1e-5)
    for unit, row in enumerate(nearest.units):
        shown = row[row >= 0]
        np.testing.assert_allclose(
            table[unit, shown], expected[unit, : len(shown)], atol=1e-5
        )
        assert unit not in shown


def test_nearest_units_elsewhere_are_those_of_brute_force(like, responses):
    names = [name for name in NET.layers if name != "conv1"]
    nearest = like.nearest("conv1", elsewhere=True)
    assert nearest.layers == tuple(names)
    seen = list(responses["conv1"].T)
    tables = []
    for name in NET.layers:
        is_copy = [any(np.array_equal(x, y) for y in seen) for x in responses[name].T]
        live = responses[name].max(0) > 0
        if name != "conv1":
            np.testing.assert_array_equal(
                like.copies[name][live], np.array(is_copy)[live]
            )
        seen += list(responses[name].T)
        if name != "conv1":
            table = correlate(responses["conv1"], responses[name])
            tables.append(np.where(is_copy, np.nan, table))
    whole = np.nan_to_num(np.concatenate(tables, 1), nan=-np.inf)
    for unit in range(UNITS):
        expected = np.sort(whole[unit])[::-1][:8]
        if unit == DEAD:
            assert np.isnan(nearest.cosines[unit]).all()
            continue
        np.testing.assert_allclose(nearest.cosines[unit], expected, atol=1e-5)
        pairs = zip(nearest.places[unit], nearest.units[unit], strict=True)
        values = [tables[place][unit, other] for place, other in pairs]
        np.testing.assert_allclose(values, expected, atol=1e-5)
    # Each is the maximum of the same values, as after a pooling.
    assert like.copies["conv1.pool"].all()


def test_a_dead_unit_is_similar_to_none(like):
    assert not like.directions["conv1"][DEAD].any()
    for elsewhere in (False, True):
        nearest = like.nearest("conv1", elsewhere=elsewhere)
        assert (nearest.units[DEAD] == -1).all()
        assert np.isnan(nearest.cosines[DEAD]).all()
    assert DEAD not in like.nearest("conv1").units
    assert np.isnan(like.map("conv1")).any(1).tolist() == [
        x == DEAD for x in range(UNITS)
    ]


def test_a_constant_response_is_similar_to_none():
    def constant(params, x):
        return x.mean((1, 2)) @ params["fc"]["kernel"] + params["fc"]["bias"]

    kernel = np.array([[0, 1e-9, 1], [0, 0, 1], [0, 0, 1]], np.float32)
    params = {"fc": {"kernel": kernel, "bias": np.array([1, 1, 4], np.float32)}}
    net = zf.network(constant, (12, 12, 3), params=params)
    directions = zf.likeness(net, IMAGES).directions["fc"]
    assert directions.any(1).tolist() == [False, False, True]


def test_of_many_images_a_sample_is_read_in_small_parts(responses):
    parts = []

    class Source:
        def __len__(self):
            return len(IMAGES) * 10

        def __getitem__(self, indices):
            parts.append(len(indices))
            return IMAGES[np.asarray(indices) % len(IMAGES)]

    one, same, other = (
        zf.likeness(NET, Source(), "logits", limit=40, seed=seed) for seed in (1, 1, 2)
    )
    assert max(parts) <= 32 and sum(parts) == 120
    assert (np.diff(one.images) > 0).all() and len(one.images) == 40
    np.testing.assert_array_equal(one.images, same.images)
    np.testing.assert_array_equal(one.directions["logits"], same.directions["logits"])
    assert one.images.tolist() != other.images.tolist()
    expected = responses["logits"][one.images % len(IMAGES)].T
    expected = expected - expected.mean(1, keepdims=True)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    live = one.directions["logits"].any(1)
    np.testing.assert_allclose(
        one.directions["logits"][live], expected[live], atol=1e-5
    )
    assert live.sum() == (responses["logits"].max(0) > 0).sum()


def test_every_pair_of_a_group_is_above_the_threshold():
    angles = np.radians([0, 120, 19, 240, 39, 121, 300, 4])
    rows = np.stack([np.cos(angles), np.sin(angles)], 1)
    like = make([*rows.tolist(), [0, 0]])
    # cos 19° = 0.946, cos 39° = 0.78: the ends of the chain are not close themselves.
    assert like.groups("layer0", 0.9) == [[0, 2, 7], [1, 5]]
    assert like.groups("layer0", 0.95) == [[0, 7], [1, 5]]
    assert make([[0, 0], [0, 0]]).groups("layer0") == []
    assert make([[1, 0]]).groups("layer0") == []


@pytest.mark.parametrize("shape", [(9, 20), (20, 9), (3, 5), (1, 5)])
def test_a_map_is_the_first_two_principal_components(shape):
    points = np.random.default_rng(3).normal(size=shape)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    place = make(points.tolist()).map("layer0")
    centered = points - points.mean(0)
    left, values, _ = np.linalg.svd(centered, full_matrices=False)
    expected = np.zeros((len(points), 2))
    components = (left * values)[:, :2]
    expected[:, : components.shape[1]] = components
    for axis in range(2):
        if np.ptp(expected[:, axis]) > 1e-6:
            extreme = np.abs(expected[:, axis]).argmax()
            expected[:, axis] *= np.sign(expected[extreme, axis])
    np.testing.assert_allclose(place, expected, atol=1e-5)


def test_a_map_is_the_same_each_time(like):
    again = zf.likeness(NET, IMAGES)
    for name in NET.layers:
        np.testing.assert_array_equal(like.map(name), again.map(name))


def test_a_map_by_umap_is_reproducible_by_seed(monkeypatch):
    # Its compilation would take ten times as long.
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    pytest.importorskip("umap", reason="needs the extra umap", exc_type=ImportError)
    rows = np.random.default_rng(0).normal(size=(9, 5))
    rows[4] = 0
    one, same, other = (
        make(rows.tolist()).map("layer0", "umap", seed=seed) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other, equal_nan=True)
    assert np.isnan(one).any(1).tolist() == [row == 4 for row in range(9)]


def test_permuted_channels_are_matched_exactly(like):
    order = np.random.default_rng(5).permutation(UNITS)
    permuted = NET.map_weights("conv1", lambda x: x[..., order]).map_weights(
        ODD, lambda x: x[:, :, order] if x.ndim == 4 else x
    )
    np.testing.assert_allclose(permuted(IMAGES), NET(IMAGES), atol=1e-5)
    match = like.match(zf.likeness(permuted, IMAGES), "conv1")
    live = np.delete(np.arange(UNITS), DEAD)
    # Unit i of the permuted network is unit order[i] of the first.
    np.testing.assert_array_equal(match.units[live], np.argsort(order)[live])
    np.testing.assert_allclose(match.cosines[live], 1, atol=1e-6)
    np.testing.assert_array_equal(match.best.units[live, 0], match.units[live])
    assert {match.best.layers[x] for x in match.best.places[live, 0]} == {"conv1"}
    assert match.units[DEAD] == -1 and np.isnan(match.cosines[DEAD])


def test_a_match_has_the_greatest_sum_of_cosines():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(4, 6)), rng.normal(size=(5, 6))
    first, second = (x / np.linalg.norm(x, axis=1)[:, None] for x in (first, second))
    first[2] = 0
    match = make(first.tolist()).match(make(second.tolist()), "layer0")
    table = first @ second.T
    live = [0, 1, 3]
    best = max(
        itertools.permutations(range(5), 3),
        key=lambda units: sum(table[a, b] for a, b in zip(live, units, strict=True)),
    )
    assert match.units.tolist() == [best[0], best[1], -1, best[2]]
    np.testing.assert_allclose(match.cosines[live], table[live, best], atol=1e-6)
    np.testing.assert_array_equal(match.best.units[live, 0], table[live].argmax(1))
    assert match.best.units[2, 0] == -1


def test_a_layer_that_the_other_network_lacks_has_only_a_best_match():
    one = make([[1, 0]], [[0, 1]])
    other = Likeness(
        one.images, {"other": one.directions["layer1"]}, {"other": np.array([False])}
    )
    match = one.match(other, "layer1")
    assert match.units.tolist() == [-1] and match.best.layers == ("other",)
    assert match.best.cosines.tolist() == [[1]]


def test_networks_that_saw_different_images_are_not_compared(like):
    with pytest.raises(ValueError, match="saw different images"):
        like.match(zf.likeness(YOUNG, IMAGES[:9]), "conv1")


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="there are no images"):
        zf.likeness(NET, IMAGES[:0])
