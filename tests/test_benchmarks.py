"""The benchmark for GPUs, tried on the CPU."""

import importlib.util
import time

import pytest

import zfnet_jax as zf
from benchmarks.gpu import (
    DRY,
    Options,
    Part,
    Row,
    count_flop,
    find_peak,
    run_parts,
    write_table,
)


def test_every_part_runs():
    rows, failures = run_parts(Options(dry=True), DRY)
    assert not failures
    by_name = {row.what.split(",")[0]: row for row in rows}
    assert list(by_name) == [
        "training step",
        "projections",
        "mining",
        "occlusion",
        "shapes to 100.00%",
    ]
    assert by_name["shapes to 100.00%"].ours.startswith("not reached")
    has_torch = importlib.util.find_spec("torch") is not None
    for name in ("training step", "projections", "occlusion"):
        assert bool(by_name[name].theirs) == bool(by_name[name].ratio) == has_torch
    lines = write_table(rows, failures).splitlines()
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1


def test_a_part_that_fails_or_is_slow_is_named_and_the_others_go_on(capsys):
    def fail(options, sizes):
        yield Row("first", "1 ms")
        raise ValueError("no such card\nand more")

    def wait(options, sizes):
        yield Row("second", "2 ms")
        time.sleep(5)

    def succeed(options, sizes):
        yield Row("third", "3 ms")

    began = time.monotonic()
    parts = Part("a", 9, fail), Part("b", 0.05, wait), Part("c", 9, succeed)
    rows, failures = run_parts(Options(), DRY, parts)
    assert time.monotonic() - began < 4
    assert [row.what for row in rows] == ["first", "second", "third"]
    assert failures[0] == "a: ValueError: no such card"
    assert failures[1].startswith("b: OutOfTime")
    assert all(line in write_table(rows, failures) for line in failures)


def test_operations_are_counted():
    arch = zf.Architecture(
        "two",
        (4, 4),
        (zf.Conv("conv1", 2, kernel=3), zf.Dense("logits", 5, relu=False)),
    )
    # 2 x 2 positions of 2 maps of 3 x 3 x 3, then 8 values to 5.
    first, second = 4 * 2 * 27, 8 * 5
    assert count_flop(arch) == 2 * (2 * first + 3 * second)
    assert find_peak("NVIDIA H100 PCIe", 1) == pytest.approx(756e12)
    assert find_peak("NVIDIA A100-SXM4-80GB", 0) == pytest.approx(156e12)
    assert find_peak("cpu", 0) is None
