"""Fig. 5, end to end."""

import numpy as np
import pytest

import zfnet_jax as zf
from experiments.invariance import choose_amounts, invariance
from zfnet_jax.analysis.invariance import periodicity
from zfnet_jax.data import make_shapes


def test_metrics_are_those_of_the_library(measure, weights):
    metrics, _ = measure(invariance, "--weights", weights, "--limit", 20)
    net, shapes = zf.load(weights), make_shapes(20, seed=1)
    results = {}
    for transform, known in metrics["transforms"].items():
        result = results[transform] = zf.invariance(
            net, net.load_images(shapes), shapes.labels, transform, known["amounts"]
        )
        assert list(known["layers"]) == ["conv1", "fc3"]
        for layer, curves in result.distances.items():
            row = known["layers"][layer]
            for key, values in (
                ("distance", curves.mean(0)),
                ("relative_of_each_shown", result.relative[layer][:5]),
            ):
                np.testing.assert_allclose(row[key], values, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            known["probability"], result.probability.mean(0), rtol=1e-4
        )
    turns = metrics["transforms"]["rotate"]["periodicity_by_class"]["square"]
    curves = results["rotate"].distances["fc3"]
    squares = curves[shapes.labels == 2, :-1].mean(0)
    assert turns["fc3"]["4"] == pytest.approx(periodicity(squares, 4), abs=1e-3)


def test_amounts_and_layers_may_be_given(measure, weights):
    scale = ["--transform", "scale", "--amounts", 1, 1.5, "--layers", "pool1"]
    metrics, out = measure(invariance, "--weights", weights, "--limit", 3, *scale)
    assert metrics["transforms"]["scale"]["amounts"] == [1, 1.5]
    assert list(metrics["transforms"]["scale"]["layers"]) == ["pool1"]
    assert metrics["transforms"]["scale"]["layers"]["pool1"]["distance"][0] == 0
    figures = [file.name for file in sorted(out.glob("*.p*"))]
    assert figures == ["invariance_scale.pdf", "invariance_scale.png"]


def test_default_amounts_are_those_of_the_paper():
    assert choose_amounts("translate", 224)[[0, -1]].tolist() == [-60, 60]
    assert choose_amounts("scale", 224)[[0, -1]] == pytest.approx([1, 1.8])
    assert choose_amounts("rotate", 224)[[0, -1]].tolist() == [0, 360]


def test_impossible_requests_are_refused(refuse, weights):
    given = ["--weights", weights, "--limit", 2]
    assert "single --transform" in refuse(invariance, 2, *given, "--amounts", 1)
    shift = ["--transform", "translate", "--amounts", 17]
    assert "17" in refuse(invariance, 2, *given, *shift)
    assert "pool1" in refuse(invariance, 2, *given, "--layers", "conv9")
