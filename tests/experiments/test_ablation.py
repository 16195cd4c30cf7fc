"""Table 3, its rows as data, and its command with trainings of two rows."""

import json

import pytest

from experiments import ablation as module
from experiments import mini
from experiments.ablation import TABLE_3, ablation, correlate
from experiments.harness import main
from tests.networks import SMALL
from zfnet_jax.arch import ALEXNET_MINI
from zfnet_jax.data import make_shapes

pytestmark = pytest.mark.usefixtures("compiled_once")

TINY = ["--train-images", 128, "--validation-images", 50]


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    monkeypatch.setattr(mini, "load_dataset", lambda *args: make_shapes(300))


def test_rows_are_those_of_the_paper():
    """Its Table 3: seven variants of AlexNet, five of ZFNet."""
    names = [row.name for row in TABLE_3]
    assert len(set(names)) == len(names) == 12
    assert sum(row.base is ALEXNET_MINI for row in TABLE_3) == 7
    kernels = {row.name: row.arch.kernel_shapes() for row in TABLE_3}
    few = list(kernels["alexnet: layers 3, 4, 6, 7 removed"])
    assert few == ["conv1", "conv2", "conv5", "logits"]
    assert kernels["zfnet: both of the last two"]["conv4"] == (3, 3, 128, 256)
    assert kernels["zfnet: both of the last two"]["fc7"] == (2048, 2048)
    # Both of the paper's networks give layer 3 the same map.
    assert {row.arch.shapes()["conv5"][:2] for row in TABLE_3} == {(4, 4)}


def test_finished_trainings_are_read_and_others_are_not(monkeypatch, tmp_path, capsys):
    row = module.Row("layer 3 removed", SMALL, (30.0, 40.0, 20.0), ("fc3",))
    monkeypatch.setattr(module, "TABLE_3", [row])
    monkeypatch.setattr(module, "ALEXNET_MINI", SMALL)
    monkeypatch.setattr(module, "ZFNET_MINI", SMALL)

    def measure(*argv):
        words = [*TINY, "--epochs", 1, *argv, "--out", tmp_path]
        assert main(ablation, [*map(str, words)]) == 0
        rows = json.loads((tmp_path / "metrics.json").read_text())["rows"]
        return rows["small: layer 3 removed"]

    row = measure("--seeds", 1)
    (error,), (top5,) = row["errors"]["validation"], row["errors"]["validation_top5"]
    # Of 50 images.
    assert error / 2 == pytest.approx(round(error / 2)) and top5 <= error <= 100
    assert list(row["paper"].values()) == [30.0, 40.0, 20.0]
    (file,) = tmp_path.glob("runs/*.json")
    content = json.loads(file.read_text())
    content["errors"]["validation"] = 2.0
    file.write_text(json.dumps(content))
    capsys.readouterr()
    first, second = measure("--seeds", 2)["errors"]["validation"]
    assert first == 2.0 != second
    assert f"{(2 + second) / 2:.1f} ± " in capsys.readouterr().out
    assert len([*tmp_path.glob("runs/*.json")]) == 2


def test_rank_correlation_by_hand():
    rows = [
        {"paper": dict.fromkeys(module._ERRORS, paper), "errors": errors}
        for paper, errors in zip(
            (35.1, 41.8, 27.4),
            (
                {"train": [x, y], "validation": [y], "validation_top5": [1.0]}
                for x, y in ((10.0, 5.0), (20.0, 10.0), (5.0, 20.0))
            ),
            strict=True,
        )
    ]
    expected = {"train": 0.5, "validation": -0.5, "validation_top5": 0}
    assert correlate(rows) == pytest.approx(expected)


def test_impossible_numbers_of_images_are_refused(refuse):
    line = refuse(ablation, 2, "--limit", 10)
    assert "10 images in batches of 64 hold no step" in line
    line = refuse(ablation, 2, "--limit", 200)
    assert "200 and --validation-images 200: there are 300 images" in line
