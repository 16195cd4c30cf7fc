"""Pictures of randomized networks and of other signals, end to end."""

import numpy as np

import zfnet_jax as zf
from experiments.sanity import sanity
from zfnet_jax.analysis.sanity import controls
from zfnet_jax.data import make_shapes


def test_metrics_are_those_of_the_library(measure, weights):
    argv = ["--weights", weights, "--limit", 6, "--layers", "conv2", "fc3"]
    metrics, out = measure(sanity, *argv)
    net, shapes = zf.load(weights), make_shapes(6, seed=1)
    images = net.load_images(shapes)
    for known, comparison in (
        (metrics["randomization"], zf.sanity(net, images, shapes.labels)),
        (metrics["controls"]["conv2"], controls(net, images, "conv2")),
        (metrics["controls"]["fc3"], controls(net, images, "fc3")),
    ):
        assert known["columns"] == list(comparison.columns)
        assert list(known["rules"]) == ["deconvnet", "gradient", "guided"]
        for rule, measures in known["rules"].items():
            assert measures["empty"] == comparison.empty[rule].sum(0).tolist()
            for name, values in comparison.similarity[rule]._asdict().items():
                known = [column[~np.isnan(column)] for column in values.T]
                expected = {
                    "mean": [column.mean() for column in known],
                    "spread": [column.std(ddof=1) for column in known],
                    "known": [len(column) for column in known],
                }
                for key, numbers in expected.items():
                    np.testing.assert_allclose(measures[name][key], numbers)
    figures = {file.stem for file in out.glob("*.p*")}
    pictures = {"randomized_pictures", "controls_conv2", "controls_fc3"}
    assert figures == {"randomization", *pictures}


def test_photographs_and_any_model(measure, photographs):
    model = ["--model", "tests.networks:small_network", "--image", photographs]
    metrics, _ = measure(sanity, *model, "--shown", 1)
    assert metrics["images"] == 3
    assert metrics["randomization"]["columns"][1:-1] == ["fc", "conv2", "conv1"]
    assert list(metrics["controls"]) == ["conv2"]


def test_impossible_requests_are_refused(refuse, weights):
    given = ["--weights", weights, "--limit"]
    assert "pool1" in refuse(sanity, 2, *given, 4, "--layers", "conv9")
    assert "give at least 2" in refuse(sanity, 2, *given, 1)
