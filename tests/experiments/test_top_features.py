"""Fig. 2, end to end."""

import numpy as np
import pytest

import zfnet_jax as zf
from experiments.top_features import top_features
from zfnet_jax.data import make_shapes


@pytest.fixture(scope="module")
def finished(measure, weights):
    return measure(top_features, "--weights", weights, "--limit", 60, "--count", 3)


def test_metrics_are_those_of_the_search(finished, weights):
    metrics, out = finished
    net, dataset = zf.load(weights), make_shapes(60, seed=1)
    images = net.load_images(dataset)
    tops = zf.top_activations(net, images, ["conv1", "conv2"], labels=dataset.labels)
    assert list(metrics["layers"]) == ["conv1", "conv2"] and metrics["images"] == 60
    assert metrics["layers"]["conv2"]["dead"] == [1]
    for layer, top in tops.items():
        known = metrics["layers"][layer]
        assert known["median_selectivity"] == pytest.approx(
            np.nanmedian(top.selectivity)
        )
        labels = [dataset.labels[x] for x in top.images[~top.dead]]
        shares = np.array([np.bincount(x).max() / 9 for x in labels])
        assert known["mean_share_of_one_class"] == pytest.approx(shares.mean())
        assert known["three_quarters_of_one_class"] == (shares >= 0.75).mean()
        for unit in known["drawn"]:
            index = unit["unit"]
            assert not top.dead[index], "a dead unit is drawn"
            assert unit["images"] == top.images[index].tolist()
            assert unit["positions"] == top.positions[index].tolist()
        assert (out / f"top_{layer}.png").stat().st_size > 5_000


def test_the_same_seed_chooses_the_same_units(finished, measure, weights):
    def choose(seed):
        argv = ["--weights", weights, "--limit", 60, "--count", 3, "--layers", "conv1"]
        metrics, out = measure(top_features, *argv, "--seed", seed)
        units = [unit["unit"] for unit in metrics["layers"]["conv1"]["drawn"]]
        return units, (out / "top_conv1.png").read_bytes()

    assert choose(0) == choose(0)
    assert len({str(choose(seed)[0]) for seed in range(4)}) > 1


def test_named_units_may_be_dead(measure, weights):
    argv = ["--weights", weights, "--limit", 20, "--layers", "conv2", "--units", 1, 4]
    metrics, _ = measure(top_features, *argv)
    assert [x["unit"] for x in metrics["layers"]["conv2"]["drawn"]] == [1, 4]


def test_impossible_units_are_refused(refuse, weights):
    given = ["--weights", weights, "--limit", 20, "--units", 6]
    assert "exactly one --layers" in refuse(top_features, 2, *given)
    line = refuse(top_features, 2, *given, "--layers", "conv2")
    assert "--units 6: conv2 has 6 units (0 to 5)" in line


def test_any_model_is_searched_over_photographs(measure, photographs):
    argv = ["--model", "tests.networks:small_network", "--image", photographs]
    metrics, _ = measure(top_features, *argv, "--k", 2, "--count", 2)
    assert metrics["images"] == 3 and list(metrics["layers"]) == ["conv1", "conv2"]
    assert "class_means" not in metrics["layers"]["conv1"]["drawn"][0]
