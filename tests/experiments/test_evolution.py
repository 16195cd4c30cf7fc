"""Features over the checkpoints of a run, end to end."""

import numpy as np
import pytest

import zfnet_jax as zf
from experiments.evolution import average_motion, evolution
from tests.networks import SMALL, save
from zfnet_jax.arch import Architecture
from zfnet_jax.data import make_shapes

pytestmark = pytest.mark.usefixtures("compiled_once")

EPOCHS = (1, 2, 5)
SHAPES = ["--dataset", "shapes", "--limit", 40, "--sample", 20]


@pytest.fixture(scope="module")
def finished(compiled_once, trained, measure):
    return measure(evolution, *SHAPES, "--run", trained)[0]


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


def test_checkpoints_of_any_model_give_the_same_numbers(finished, trained, measure):
    argv = [*SHAPES, "--run", trained, "--model", f"{__name__}:build"]
    measured, _ = measure(evolution, *argv)
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


def test_runs_that_cannot_be_compared_are_refused(trained, tmp_path, refuse):
    def message(code, *argv):
        return refuse(evolution, code, *SHAPES, *argv)

    assert "there is no such folder" in message(3, "--run", tmp_path / "missing")
    save(tmp_path / "epochs/epoch_0001.safetensors", 0)
    line = message(3, "--run", tmp_path)
    assert "kept 1 epoch, and at least 2 are needed" in line
    other = Architecture("other", (16, 16), SMALL.layers[1:])
    save(tmp_path / "epochs/epoch_0002.safetensors", 0, other)
    line = message(2, "--run", tmp_path, "--layers", "conv2")
    assert "different architectures" in line
    assert "omit it" in message(2, "--run", trained, "--weights", "a")
