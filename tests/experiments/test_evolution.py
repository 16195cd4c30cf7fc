"""Features over the checkpoints of a run, end to end."""

import json

import numpy as np
import pytest

import zfnet_jax as zf
from experiments.evolution import average_motion, evolution
from experiments.harness import main
from zfnet_jax.data import make_shapes

pytestmark = pytest.mark.usefixtures("compiled_once")

EPOCHS = (1, 2, 5)
SHAPES = ["--dataset", "shapes", "--limit", "40", "--sample", "20", "--count", "6"]


def measure(out, *argv):
    assert main(evolution, [*SHAPES, *map(str, argv), "--out", str(out)]) == 0
    return json.loads((out / "metrics.json").read_text())


@pytest.fixture(scope="module")
def finished(compiled_once, trained, tmp_path_factory):
    return measure(tmp_path_factory.mktemp("results"), "--run", trained)


def test_numbers_are_those_of_the_activations_at_each_epoch(finished, trained):
    assert finished["epochs"] == list(EPOCHS)
    assert list(finished["layers"]) == ["conv1", "conv2"]
    # The paper searches the training images.
    dataset = make_shapes(40, seed=0)
    files = [trained / f"epochs/epoch_{epoch:04d}.safetensors" for epoch in EPOCHS]
    nets = [zf.load(file) for file in files]
    features = [net.activations(net.load_images(dataset)) for net in nets]
    for layer, measured in finished["layers"].items():
        maps = np.stack([x[layer] for x in features])
        peaks = maps.max((2, 3))
        for drawn in measured["drawn"]:
            each = peaks[..., drawn["unit"]]
            assert drawn["images"] == each.argmax(1).tolist()
            assert drawn["activations"] == pytest.approx(each.max(1), rel=1e-4)
            assert each.max(1).min() > 0, "a dead unit is drawn"
        images = peaks.argmax(1)
        assert measured["jumps"] == pytest.approx(
            (images[1:] != images[:-1]).mean(1), abs=1e-9
        )
        for step in range(2):
            pair = maps[step : step + 2, :20].reshape(2, -1, maps.shape[-1])
            units = [x for x in range(maps.shape[-1]) if pair[..., x].std(1).all()]
            r = [np.corrcoef(*pair[..., unit])[0, 1] for unit in units]
            assert measured["motion"][step] == pytest.approx(
                1 - np.mean(r), rel=1e-3, abs=1e-5
            )


def build(file):
    """A plain function in place of the network of a weight file."""
    net = zf.load(file)
    return zf.network(net.model.__call__, (16, 16, 3), preprocess=net.preprocess)


def test_checkpoints_of_any_model_give_the_same_numbers(finished, trained, tmp_path):
    measured = measure(tmp_path, "--run", trained, "--model", f"{__name__}:build")
    layers = zip(measured["layers"].values(), finished["layers"].values(), strict=True)
    for one, other in layers:
        assert one["jumps"] == other["jumps"]
        assert one["motion"] == pytest.approx(other["motion"], rel=1e-4)
        assert [x["images"] for x in one["drawn"]] == [
            x["images"] for x in other["drawn"]
        ]


def test_motion_of_units_that_never_vary_is_left_out():
    motion = np.array([[0.2, np.nan, 0.4], [np.nan] * 3])
    assert average_motion(motion) == pytest.approx([0.3, 1])


@pytest.mark.parametrize(
    ("run", "argv", "code", "message"),
    [
        ("untrained", [], 3, "kept 1 epoch, and at least 2 are needed"),
        ("missing", [], 3, "there is no such folder"),
        ("mixed", ["--layers", "conv2"], 2, "different architectures"),
        ("trained", ["--weights", "a"], 2, "--weights: the weights are those of --run"),
    ],
)
def test_unusable_runs_fail_in_one_line(
    run, argv, code, message, request, tmp_path, capsys
):
    folder = tmp_path / run
    if run != "missing":
        folder = request.getfixturevalue(run)
    argv = [*SHAPES, *argv, "--run", str(folder), "--out", str(tmp_path / "out")]
    assert main(evolution, argv) == code
    assert message in capsys.readouterr().err
