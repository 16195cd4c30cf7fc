"""The table of a network's layers, end to end."""

import zfnet_jax as zf
from experiments.describe import describe


def test_numbers_are_those_of_the_table(measure, weights, capsys):
    metrics, _ = measure(describe, "--weights", weights)
    table = str(zf.load(weights)).splitlines()
    assert capsys.readouterr().out.splitlines()[: len(table)] == table
    _, _, conv2, fc3, _ = layers = metrics["layers"]
    # 8 x 8 positions of 6 units with 3 x 3 x 4 weights.
    assert conv2 == {
        "name": "conv2",
        "kind": "conv",
        "output": [8, 8, 6],
        "rectified": True,
        "parameters": 222,
        "receptive_field": [8, 8],
        "stride": [2, 2],
        "multiply_adds": 13_824,
    }
    assert fc3["receptive_field"] is None
    assert metrics["parameters"] == sum(x["parameters"] for x in layers)
    assert metrics["multiply_adds"] == sum(x["multiply_adds"] for x in layers)


def test_any_model_has_a_table(measure, capsys):
    metrics, _ = measure(describe, "--model", "tests.networks:small_network")
    assert metrics["network"] == "networks:small_network"
    assert metrics["image_shape"] == [24, 24, 3]
    assert metrics["parameters"] == 3 * 9 * 8 + 8 + 8 * 9 * 16 + 16 + 16 * 4 + 4
    assert "mean pool" in capsys.readouterr().out
