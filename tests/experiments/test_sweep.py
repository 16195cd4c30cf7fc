"""Sweeps: their runs are trainings, and killed ones continue."""

import csv
import dataclasses
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import rich.console

import zfnet_jax as zf
from experiments import train_cifar10
from experiments.harness import main
from experiments.sweep import Member, build_table, rank, sweep
from zfnet_jax.arch import Architecture, Conv, Dense
from zfnet_jax.data import Dataset, load_dataset
from zfnet_jax.inference import evaluate, loss_and_accuracy
from zfnet_jax.training import split_validation

ROOT = Path(__file__).parents[2]
TINY = Architecture(
    "tiny", (8, 8), (Conv("conv1", 4, kernel=3), Dense("logits", 10, relu=False))
)
SHAPES = "--dataset shapes --limit 64 --batch-size 16 --epochs 2".split()
TWICE = [*SHAPES, *"--learning-rate 0.01 0.02 --seed 0 1 --dpi 32".split()]
FOLDERS = [
    f"learning-rate={rate} seed={seed}" for rate in (0.01, 0.02) for seed in (0, 1)
]
VARIED = "learning_rate seed".split()
MEASURED = "train_loss train_accuracy validation_loss validation_accuracy".split()


@pytest.fixture(scope="module", autouse=True)
def tiny() -> Iterator[None]:
    """A small network under the name of the default one, and no event files."""
    with pytest.MonkeyPatch.context() as patch:
        train_tiny(patch)
        yield


def train_tiny(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(train_cifar10.ARCHITECTURES, "zfnet32", TINY)
    patch.setattr(train_cifar10, "write_events", lambda *arguments: None)


def run_until_killed(out: str) -> None:
    """In a process of its own: a sweep that dies in the second epoch of its third run.

    That epoch is trained, but not recorded.
    """
    measure, count = train_cifar10.measure_validation, itertools.count()

    def strike(*arguments: Any) -> dict[str, float]:
        if next(count) == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return measure(*arguments)

    train_tiny(patch := pytest.MonkeyPatch())
    patch.setattr(train_cifar10, "measure_validation", strike)
    main(sweep, [*TWICE, "--out", out])


def run_sweep(out: Path, *argv: object) -> int:
    return main(sweep, [*map(str, argv), "--out", str(out)])


def read_runs(out: Path) -> list[dict[str, Any]]:
    """The runs of a sweep without their times."""
    runs = json.loads((out / "runs.json").read_text())["runs"]
    return [{k: x for k, x in run.items() if k != "train_seconds"} for run in runs]


def read_table(out: Path) -> str:
    """The table of a sweep without the last column, the times."""
    return re.sub(",[^,]*$", "", (out / "runs.csv").read_text(), flags=re.MULTILINE)


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory) -> Path:
    """The folder of an unbroken sweep of 2 x 2 runs."""
    out = tmp_path_factory.mktemp("sweeps") / "whole"
    assert run_sweep(out, *TWICE) == 0
    return out


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "copy")


def test_the_table_has_every_epoch_of_every_run(whole):
    with (whole / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == [x for x in FOLDERS for _ in range(2)]
    assert all(
        float(x["train_seconds"]) < float(y["train_seconds"])
        for x, y in zip(rows[::2], rows[1::2], strict=True)
    )
    records = iter(rows)
    for run, name in zip(read_runs(whole), FOLDERS, strict=True):
        assert run["folder"] == name and run["error"] is None
        for record, row in zip(run["history"], records, strict=False):
            given = [f"{x.replace('_', '-')}={row[x]}" for x in VARIED]
            assert (" ".join(given), int(row["epoch"])) == (name, record["epoch"])
            assert [float(row[x]) for x in MEASURED] == [record[x] for x in MEASURED]
        assert run["result"] == {x: run["history"][-1][x] for x in MEASURED}
    assert next(records, None) is None
    final = [float(row["validation_accuracy"]) for row in rows if row["epoch"] == "2"]
    ranking = json.loads((whole / "metrics.json").read_text())["ranking"]
    means = {x["values"]["learning_rate"]: x["validation_accuracy"] for x in ranking}
    expected = np.reshape(final, (2, 2)).mean(1)
    assert means == dict(zip((0.01, 0.02), expected, strict=True))
    assert [*means.values()] == sorted(means.values(), reverse=True)
    assert all(row["epochs"] == 2 and row["train_seconds"] > 0 for row in ranking)
    digest = load_dataset("shapes", "train", limit=64).digest()
    manifest = json.loads((whole / "manifest.json").read_text())
    assert manifest["digests"] == {"64 images of shapes": digest}
    assert (whole / "sweep.png").exists() and (whole / "sweep.pdf").exists()


def test_a_run_is_the_training_of_its_values(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(train_cifar10, "draw", lambda *arguments: None)
    argv = [*SHAPES, "--learning-rate", "0.02", "--seed", "1", "--validation", "6"]
    command = train_cifar10.train_cifar10
    assert main(command, [*argv, "--out", str(tmp_path)]) == 0
    expected = json.loads((tmp_path / "metrics.json").read_text())["history"]
    run = read_runs(whole)[3]
    assert run["history"] == expected
    net = zf.load(whole / run["folder"] / "weights.safetensors")
    alone = zf.load(tmp_path / "weights.safetensors")
    for ours, theirs in zip(*map(jax.tree.leaves, (net, alone)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    _, held_out = split_validation(load_dataset("shapes", "train", limit=64), 6, 1)
    assert held_out is not None
    _, accuracy = loss_and_accuracy(evaluate(net, held_out.images), held_out.labels)
    assert accuracy == run["result"]["validation_accuracy"]


def test_a_killed_sweep_continues_to_the_same_table(whole, tmp_path):
    code = "import sys; from tests.experiments import test_sweep as t; "
    code += "t.run_until_killed(sys.argv[1])"
    process = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT)
    assert process.returncode == -signal.SIGKILL
    lengths = [len(run["history"]) for run in read_runs(tmp_path)]
    assert lengths == [2, 2, 1, 0]
    first = tmp_path / FOLDERS[0]
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    assert run_sweep(tmp_path, *TWICE, "--resume") == 0
    assert before == {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    assert read_table(tmp_path) == read_table(whole)
    assert read_runs(tmp_path) == read_runs(whole)
    for name in ("sweep.png", f"{FOLDERS[2]}/training_curves.png"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()


def test_values_can_be_added_and_those_that_diverge_are_recorded(copy, whole, capsys):
    # As if it was killed between the end of this run and the removal.
    (rest := copy / FOLDERS[0] / "checkpoints").mkdir()
    argv = [*TWICE, "--learning-rate", 0.01, 0.02, 1e38, "--resume"]
    assert run_sweep(copy, *argv) == 0
    assert not rest.exists()
    runs = read_runs(copy)
    assert runs[:4] == read_runs(whole)
    for run in runs[4:]:
        assert run["values"]["learning_rate"] == 1e38 and run["result"] is None
        assert "the loss is not finite" in run["error"]
    metrics = json.loads((copy / "metrics.json").read_text())
    assert set(metrics["failed"]) == {run["folder"] for run in runs[4:]}
    assert metrics["ranking"][-1]["values"]["learning_rate"] == 1e38
    best = metrics["ranking"][0]["values"]
    said = capsys.readouterr().out
    assert "python -m experiments.train_cifar10 --dataset shapes --epochs 2" in said
    assert f"--learning-rate {best['learning_rate']}" in said
    assert "--batch-size 16" in said


def test_a_sweep_of_failures_ends_with_1(tmp_path, capsys):
    assert run_sweep(tmp_path, *SHAPES, "--learning-rate", 1e38) == 1
    line = capsys.readouterr().err
    assert line.startswith("error: every run failed; the first: the loss is not finite")
    assert [run["folder"] for run in read_runs(tmp_path)] == ["seed=0"]


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ([], "holds the runs of an earlier sweep: add --resume"),
        (["--limit", 60, "--resume"], "--limit 60: .* with --limit 64; keep"),
        (["--seed", 1, 2, "--resume"], "--seed 1 2: .* with --seed 0; keep"),
        (["--dropout", 0.1, "--resume"], "--dropout 0.1: .* with no --dropout; keep"),
        (
            ["--resume"],
            r"training images \w{12}: .* with training images .*; give those",
        ),
    ],
)
def test_another_sweep_is_not_continued(argv, named, whole, capsys, monkeypatch):
    def load(*arguments: Any) -> Dataset:
        images = load_dataset(*arguments)
        return dataclasses.replace(images, labels=images.labels[::-1].copy())

    monkeypatch.setattr("experiments.sweep.load_dataset", load)
    before = (whole / "runs.json").read_bytes()
    assert run_sweep(whole, *TWICE, *argv) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert re.search(named, line)
    assert (whole / "runs.json").read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b"\xff\xfe\x00",
        b'{"runs": [{"folder": "x"}]}',
        b'{"runs": [{"folder": "x", "values": {}, "history": [{"epoch": 1}]}]}',
        b'{"runs": [{"folder": "x", "values": {}, "error": "it failed"}]}',
    ],
)
def test_a_damaged_record_is_named(content, tmp_path, capsys):
    (tmp_path / "runs.json").write_bytes(content)
    assert run_sweep(tmp_path, *SHAPES, "--resume") == 4
    line = capsys.readouterr().err
    assert "runs.json is not the record of a sweep" in line and line.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--seed", 0, 1, 0], "--seed 0 1 0: give each value once"),
        (["--learning-rate", 0.1, 0], "--learning-rate 0.0: give a number above 0"),
        (["--seed", 0, -1], "--seed -1: give a number from 0"),
        (["--epochs", 2, 0], "--epochs 2 0: give a whole number of at least 1"),
        (["--keep-epochs", 3], "--keep-epochs 3: there are epochs 1 to 2"),
        (["--recipe", "fast", "modern", "--batch-size", 15], "--batch-size 15: mixup"),
        (["--learning-rate"], "--learning-rate: give at least one value"),
        (["--limit", 9], "--limit 9: --recipe paper, --target-accuracy and sweeps"),
        (["--validation", 0], "--validation 0: --recipe paper, --target-accuracy and"),
        (["--validation", 64], "cannot set 64 of 64 training images apart"),
        (["--batch-size", 32, 60], "--batch-size 60: there are 58 training images"),
    ],
)
def test_impossible_values_are_named_before_any_training(argv, named, refuse):
    assert named in refuse(sweep, 2, *SHAPES, *argv)


def test_a_sweep_that_is_stopped_at_once_has_its_record(tmp_path, monkeypatch, capsys):
    def interrupt(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.sweep.train_network", interrupt)
    # By default there are fewer epochs.
    argv = [*SHAPES, "--epochs", 8, 9, "--batch-size", 16, 32, "--seed", 0, 1]
    argv += ["--keep-epochs", 8]
    assert run_sweep(tmp_path, *argv) == 130
    folders = [run["folder"] for run in read_runs(tmp_path)]
    assert folders == [
        f"epochs={epochs} batch-size={size} seed={seed}"
        for epochs, size, seed in itertools.product((8, 9), (16, 32), (0, 1))
    ]
    assert run_sweep(tmp_path, *argv) == 2
    assert "add --resume" in capsys.readouterr().err


def test_the_live_table_fits_the_terminal_around_the_current_run(monkeypatch):
    record = {"epoch": 3, **dict.fromkeys(MEASURED, 0.5)}
    members = [Member(f"seed={x}", {"seed": x}) for x in range(50)]
    for member in members[:20]:
        member.history, member.result = [record], record
    members[3].result, members[3].error = None, "the loss is not finite"
    size = os.terminal_size((100, 15))
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: size)
    console = rich.console.Console(width=100)
    with console.capture() as capture:
        console.print(build_table(members, ["seed"]))
    header, *lines = capture.get().splitlines()
    assert header.split() == (
        "seed epoch train loss validation loss validation accuracy".split()
    )
    cells = [line.split() for line in lines]
    assert [int(row[0]) for row in cells] == list(range(16, 25))
    assert cells[0][1:] == ["3", "0.5", "0.5", "50.00%", "finished"]
    assert cells[4] == ["20", "training"] and cells[5] == ["21", "waiting"]


def test_values_with_failures_are_ranked_last():
    def member(rate: float, size: int, seed: int, accuracy: float | None) -> Member:
        result = None if accuracy is None else {"validation_accuracy": accuracy}
        error = "failed" if accuracy is None else None
        values = {"learning_rate": rate, "batch_size": size, "seed": seed}
        return Member("", values, "", [{}, {}], [1.0, 10.0 * rate], result, error)

    table = {
        (0.1, 16): (0.9, None),
        (0.2, 16): (0.5, 0.7),
        (0.3, 16): (0.7, 0.8),
        (0.3, 32): (None, None),
    }
    members = [member(*x, y, a) for x, row in table.items() for y, a in enumerate(row)]
    rows = rank(members, ["learning_rate", "batch_size", "seed"])
    ranking = [(x["values"]["learning_rate"], x["values"]["batch_size"]) for x in rows]
    assert ranking == [(0.3, 16), (0.2, 16), (0.1, 16), (0.3, 32)]
    assert [row["failed"] for row in rows] == [0, 0, 1, 2]
    assert rows[0]["validation_accuracy"] == pytest.approx(0.75)
    assert rows[0]["spread"] == pytest.approx(0.05 * 2**0.5)
    assert rows[0]["epochs"] == 2 and rows[0]["train_seconds"] == pytest.approx(3)
    assert np.isnan(rows[2]["spread"])
    assert rows[3]["validation_accuracy"] is None
