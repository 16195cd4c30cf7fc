"""The benchmark for GPUs, tried on the CPU."""

import importlib.util
import time
from types import SimpleNamespace

import pytest

import zfnet_jax as zf
from benchmarks import gpu
from benchmarks.gpu import DRY, Options, Sizes, Target, compare, describe_training
from benchmarks.parts import Part, Row, run_parts, write_table
from benchmarks.peaks import count_flop, find_peak, share_of_peak

TWO = zf.Architecture(
    "two",
    (4, 4),
    (zf.Conv("conv1", 2, kernel=3), zf.Dense("logits", 5, relu=False)),
)


def test_every_part_runs(tmp_path, monkeypatch):
    out, run = tmp_path / "gpu.md", gpu.run_parts
    results = []
    monkeypatch.setattr(
        gpu, "run_parts", lambda *x: results.append(run(*x)) or results[0]
    )
    assert gpu.main(Options(dry=True, out=out)) == 0
    rows, failures = results[0]
    assert not failures
    by_name = {row.what.split(",")[0]: row for row in rows}
    assert list(by_name) == [
        "training step",
        "projections",
        "mining",
        "occlusion",
        "shapes to 100.00%",
    ]
    answer = by_name["shapes to 100.00%"].ours
    assert answer.startswith("not reached: best") and "epoch 2 of a sch" in answer
    has_torch = importlib.util.find_spec("torch") is not None
    for name in ("training step", "projections", "occlusion"):
        assert bool(by_name[name].theirs) == bool(by_name[name].ratio) == has_torch
    lines = out.read_text().splitlines()
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1


def test_a_part_that_fails_or_is_slow_is_named_and_the_others_go_on():
    def fail():
        yield Row("first", "1 ms")
        raise ValueError("no such card\nand more")

    def wait():
        yield Row("second", "2 ms")
        try:
            time.sleep(5)
        except Exception:  # as libraries do
            time.sleep(5)

    def succeed():
        yield Row("third", "3 ms")

    began = time.monotonic()
    parts = [Part("a", 9, fail), Part("b", 0.05, wait), Part("c", 9, succeed)]
    rows, failures = run_parts(parts, 60)
    assert time.monotonic() - began < 4
    assert [row.what for row in rows] == ["first", "second", "third"]
    assert failures[0] == "a: ValueError: no such card"
    assert failures[1] == "b: OutOfTime: out of time after 0 s"
    assert all(line in write_table(rows, failures, "") for line in failures)
    # The time of all parts limits each.
    rows, failures = run_parts([Part("b", 9, wait), Part("c", 9, succeed)], 0.05)
    assert failures[1] == "c: no time was left" and [*rows] == [Row("second", "2 ms")]


def test_an_alarm_that_is_swallowed_comes_again(monkeypatch):
    monkeypatch.setattr("benchmarks.parts._REPEAT", 0.05)

    def swallow():
        yield Row("a", "")
        try:
            time.sleep(5)
        except BaseException:
            time.sleep(5)

    began = time.monotonic()
    _, failures = run_parts([Part("a", 0.05, swallow)], 60)
    assert len(failures) == 1 and time.monotonic() - began < 4


def test_training_out_of_time_gives_its_row():
    target = Target(1.0, DRY.arch, DRY.targets[0].recipe, 10_000, 3)
    part = next(x for x in gpu.list_parts(Options(dry=True), DRY) if "100" in x.name)
    run = lambda: gpu.measure_accuracy(Options(dry=True), target)  # noqa: E731
    (row,), failures = run_parts([part._replace(run=run)], 3)
    assert not failures and row.ours.startswith("not reached: ")
    epoch = SimpleNamespace(number=41, train_seconds=61.24, compile_seconds=20)
    target = target._replace(accuracy=0.94, epochs=80)
    place = "61.2 s, epoch 41 of a schedule of 80 (compilation 20 s)"
    assert describe_training(target, 0.94, epoch) == place
    assert describe_training(target, 0.9312, epoch) == (
        f"not reached: best 93.12% in {place}"
    )


def test_budgets_fit_the_time():
    parts = gpu.list_parts(Options(), Sizes())
    assert sum(part.seconds for part in parts) <= gpu._SECONDS


def test_a_dry_run_has_time_on_a_busy_machine(monkeypatch):
    def run_parts(parts: list[Part], seconds: float):
        assert min(seconds, *(part.seconds for part in parts)) >= 3600
        return [], []

    monkeypatch.setattr(gpu, "run_parts", run_parts)
    assert gpu.main(Options(dry=True)) == 0


@pytest.mark.parametrize(
    ("kind", "tf32", "bfloat16"),
    [
        ("NVIDIA H100 80GB HBM3", 495, 989),
        ("NVIDIA H100 PCIe", 378, 756),
        ("NVIDIA A100-SXM4-80GB", 156, 312),
        ("NVIDIA A100-PCIE-40GB", 156, 312),
        ("NVIDIA L40", 90.5, 181),
        ("NVIDIA L40S", 183, 362),
        ("NVIDIA L4", 60, 121),
        ("NVIDIA GeForce RTX 4090", 83, 165),
    ],
)
def test_peaks_are_those_of_the_card(kind, tf32, bfloat16):
    assert find_peak(kind, "TF32") == pytest.approx(1e12 * tf32)
    assert find_peak(kind, "bfloat16") == pytest.approx(1e12 * bfloat16)


@pytest.mark.parametrize(
    "kind",
    [
        "NVIDIA H100 NVL",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA A10G",
        "NVIDIA RTX A1000",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GH200 480GB",
        "cpu",
    ],
)
def test_other_cards_have_no_peak(kind):
    assert find_peak(kind, "bfloat16") is None
    assert share_of_peak(TWO, 1e9, kind, "bfloat16") is None


def test_operations_and_their_share_of_the_peak():
    # 2 x 2 positions of 2 maps of 3 x 3 x 3, then 8 values to 5.
    first, second = 4 * 2 * 27, 8 * 5
    assert count_flop(TWO) == 2 * (2 * first + 3 * second) == 1104
    share = share_of_peak(TWO, 1e9, "NVIDIA L4", "bfloat16")
    assert share == pytest.approx(1104e9 / 121e12)


def test_a_ratio_is_theirs_by_ours_for_equal_work(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("benchmarks.turns.time.perf_counter", lambda: clock[0])

    def take(seconds):
        clock[0] += seconds

    pair = compare(lambda: take(2.0), lambda: take(8.0), 3, scale=5)
    assert pair == (2.0, 8.0, "20.00 (20.00..20.00)")
    assert compare(lambda: take(2.0), None, 3) == (2.0, None, "")


def test_rates_are_images_per_second(monkeypatch):
    pair = gpu.Pair(0.5, 0.25, "0.50")
    monkeypatch.setattr(gpu, "compare", lambda *_, **__: pair)
    monkeypatch.setattr(gpu, "has_torch", lambda *_: False)
    monkeypatch.setattr(gpu, "share_of_peak", lambda arch, rate, *_: rate / 100)
    options, sizes = Options(dry=True), DRY
    row = next(gpu.measure_training(options, sizes))
    # Two images per step, and one step.
    assert row[1:4] == ("4 images/s, 0.04 of peak", "8 images/s", "0.50")
    row = next(gpu.measure_projections(options, sizes))
    # Three units of ours, one of theirs.
    assert row[1:4] == ("167 ms", "Captum 250 ms", "0.50")


def test_what_is_missing_is_said_first(tmp_path, monkeypatch, capsys):
    out = tmp_path / "nowhere" / "gpu.md"
    assert gpu.main(Options(dry=True, out=out)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --out {out} cannot be written (No such file")
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    (tmp_path / "cifar10").mkdir()
    assert gpu.main(Options(data_dir=tmp_path)) == 2
    assert "cifar10 cannot be read" in capsys.readouterr().err
