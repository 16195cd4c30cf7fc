"""Table 3, its rows as data, and its command with a training of one row."""

import json

import numpy as np
import pytest
from PIL import Image

from experiments import ablation
from experiments.ablation import MINI, TABLE_3, Options, correlate, run, table
from experiments.common import main
from tests.networks import SMALL

pytestmark = pytest.mark.usefixtures("compiled_once")

ROWS = (
    ablation.Row("none", SMALL, (30.0, 40.0, 20.0)),
    ablation.Row("layer 3 removed", SMALL, (35.0, 50.0, 30.0), ("fc3",)),
)


def test_every_row_of_the_table_is_there():
    """The paper's Table 3: seven variants of AlexNet, five of ZFNet."""
    names = [row.name for row in TABLE_3]
    assert len(set(names)) == len(names) == 12
    assert sum(row.base is ablation.ALEXNET_MINI for row in TABLE_3) == 7
    kernels = {row.name: row.arch.kernel_shapes() for row in TABLE_3}
    assert list(kernels["alexnet: layers 3, 4, 6, 7 removed"]) == [
        "conv1",
        "conv2",
        "conv5",
        "logits",
    ]
    assert kernels["zfnet: both of the last two"]["conv4"] == (3, 3, 128, 256)
    assert kernels["zfnet: both of the last two"]["fc7"] == (2048, 2048)
    # Both of the paper's networks give layer 3 the same map.
    assert {row.arch.shapes()["conv5"][:2] for row in TABLE_3} == {(4, 4)}


@pytest.fixture
def two_rows(monkeypatch):
    """Two rows of a network that trains in a moment."""
    monkeypatch.setattr(ablation, "TABLE_3", ROWS)
    monkeypatch.setattr(ablation, "ALEXNET_MINI", SMALL)
    monkeypatch.setattr(ablation, "ZFNET_MINI", SMALL)


def test_finished_trainings_are_not_repeated(two_rows, tmp_path, capsys):
    argv = ["--dataset", "shapes", "--train-images", "128", "--epochs", "1"]
    argv += ["--validation-images", "50", "--seeds", "1", "--out", str(tmp_path)]
    assert main(run, Options, argv) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert set(metrics["rows"]) == {row.name for row in ROWS}
    errors = metrics["rows"]["small: none"]["errors"]
    assert errors["validation"][0] * 50 / 100 == pytest.approx(
        round(errors["validation"][0] * 50 / 100)
    )
    assert errors["validation_top5"][0] <= errors["validation"][0] <= 100
    assert metrics["rows"]["small: none"]["paper"]["train"] == 30.0
    with Image.open(tmp_path / "ablation.png") as image:
        assert np.asarray(image.convert("RGB")).std() > 1

    # What was trained is kept: a changed record shows that it is read.
    kept = sorted((tmp_path / "runs").glob("*.json"))
    assert len(kept) == 2
    first = next(x for x in kept if json.loads(x.read_text())["row"] == "small: none")
    first.write_text(
        json.dumps(
            {
                "row": "small: none",
                "errors": {"train": 1.0, "validation": 2.0, "validation_top5": 0.5},
            }
        )
    )
    assert main(run, Options, argv) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["rows"]["small: none"]["errors"]["validation"] == [2.0]
    assert "2.0 ± 0.0" in capsys.readouterr().out
    # Other options are another training.
    assert main(run, Options, [*argv, "--seed", "1"]) == 0
    assert len(list((tmp_path / "runs").glob("*.json"))) == 4


def test_rank_correlation_by_hand():
    rows = list(TABLE_3[:3])
    metrics = {
        row.name: {
            "paper": dict(zip(ablation._COLUMNS, row.paper, strict=True)),
            "errors": {name: [x, x + 1] for name in ablation._COLUMNS},
        }
        for row, x in zip(rows, (10.0, 20.0, 5.0), strict=True)
    }
    # The paper's order of training errors: 35.1, 41.8, 27.4.
    assert correlate(rows, metrics)["train"] == pytest.approx(1)
    for row, x in zip(rows, (5.0, 10.0, 20.0), strict=True):
        metrics[row.name]["errors"]["train"] = [x]
    assert correlate(rows, metrics)["train"] == pytest.approx(-0.5)
    assert "20.0 ± 0.0   27.4" in table(metrics)


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--seeds", "0"], ["--seeds"]),
        (["--epochs", "0"], ["--epochs"]),
        (["--limit", "10"], [f"at least {MINI.batch_size} images"]),
        (["--train-images", "9999"], ["9999", "2000", "10000"]),
    ],
)
def test_bad_arguments_fail_in_one_line(argv, parts, tmp_path, refusal):
    line = refusal(
        run, Options, 2, "--dataset", "shapes", "--out", str(tmp_path), *argv
    )
    for part in parts:
        assert part in line
