"""The command line, the result folder and the progress display."""

import dataclasses
import errno
import json
import os
import pty
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments import common
from experiments.common import (
    Progress,
    Results,
    UsageError,
    load_network,
    main,
    trained_on,
)
from tests.networks import save
from zfnet_jax.checkpoint import DamagedFileError
from zfnet_jax.data import DataNotFoundError
from zfnet_jax.training import NonFiniteLossError

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Options:
    """Train a net."""

    model: Literal["zfnet32", "alexnet"] = "zfnet32"
    """Which net."""
    batch_size: int = 128
    """Images a step."""
    limit: int | None = None
    """Images in all."""
    out: Path = Path("results")
    """Where to write."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UsageError(f"--batch-size must be at least 1, got {self.batch_size}")


def outcome(capsys, run, *argv: str) -> tuple[int, str]:
    """Exit code of an experiment and its one line of error, which must be one line."""
    code = main(run, Options, argv)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1 and captured.err.endswith("\n")
    assert captured.err.startswith("error: ")
    return code, captured.err.removeprefix("error: ").removesuffix("\n")


def never(options: Options) -> None:
    pytest.fail(f"ran with {options}")


def raiser(error: BaseException):
    def run(options: Options) -> None:
        raise error

    return run


# The command line.


def test_help_needs_no_library_that_takes_long_to_import():
    script = """
import sys
from experiments import evolution, feature_maps, gallery, predict, project
from experiments import top_features, train_cifar10
slow = {"keras", "matplotlib", "orbax", "tensorflow", "tensorflow_datasets", "torch"}
sys.exit(", ".join(slow & set(sys.modules)) or None)
"""
    command = [sys.executable, "-c", script]
    answer = subprocess.run(command, capture_output=True, env=environment(), text=True)
    assert (answer.returncode, answer.stderr) == (0, "")


def test_options_reach_the_experiment_and_success_is_silent(capsys):
    seen = []
    assert main(seen.append, Options, ["--batch-size", "7", "--model", "alexnet"]) == 0
    assert seen == [Options(model="alexnet", batch_size=7)]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--bogus"], ["--bogus"]),
        (["--batch-sise", "3"], ["--batch-sise", "perhaps you meant --batch-size INT"]),
        (["--model", "vgg"], ["'--model'", "'vgg'", "'zfnet32'", "'alexnet'"]),
        (["--batch-size", "many"], ["--batch-size", "'many'"]),
        (["--limit", "many"], ["--limit", "'many'"]),
        (["--batch-size"], ["--batch-size", "Missing value"]),
        (["stray"], ["stray"]),
        (["--batch-size", "-4"], ["--batch-size must be at least 1, got -4"]),
    ],
)
def test_a_wrong_command_line_is_one_line_and_2(capsys, argv, parts):
    code, line = outcome(capsys, never, *argv)
    assert code == 2
    for part in [*parts, "--help"]:
        assert part in line
    # Nothing of the box around tyro's message is left, nor of its other sections.
    assert not set(line) & set("╭╮╰╯│─\x1b")
    assert "helptext" not in line and "Got errors" not in line
    assert "Options" not in line


def test_a_post_init_check_speaks_first(capsys):
    _, line = outcome(capsys, never, "--batch-size", "0")
    assert line.startswith("--batch-size must be at least 1, got 0")


def test_help_goes_to_stdout_with_every_option(capsys):
    assert main(never, Options, ["--help"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for option in ("--model {zfnet32,alexnet}", "--batch-size INT", "Images in all."):
        assert option in out


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("--epochs must be at least 1, got 0"), 2),
        (DataNotFoundError("CIFAR-10 is not in data/"), 3),
        (DamagedFileError("weights.safetensors is truncated"), 4),
        (NonFiniteLossError("the loss is nan in epoch 3"), 1),
    ],
)
def test_each_failure_has_its_code_and_its_own_words(capsys, error, code):
    assert outcome(capsys, raiser(error)) == (code, str(error))


def test_a_message_of_many_lines_becomes_one(capsys):
    error = DataNotFoundError("not found:\n  give --data-dir\n")
    assert outcome(capsys, raiser(error)) == (3, "not found: give --data-dir")


def test_an_interruption_is_130(capsys):
    assert outcome(capsys, raiser(KeyboardInterrupt())) == (130, "interrupted")


@pytest.mark.parametrize("error", [TypeError("a bug"), ValueError("a bug")])
def test_a_fault_of_the_program_keeps_its_traceback(error):
    with pytest.raises(type(error), match="a bug"):
        main(raiser(error), Options, [])


@pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="needs a device that is full"
)
def test_a_full_disk_is_1_and_says_so(capsys):
    def run(options: Options) -> None:
        Path("/dev/full").write_bytes(b"x")

    code, line = outcome(capsys, run)
    assert code == 1
    assert line.startswith("no space left") and "--out" in line


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_behind_another_error_is_1(capsys, number):
    def from_cause(options: Options) -> None:
        try:
            raise OSError(number, os.strerror(number), "results/metrics.json")
        except OSError as error:
            raise RuntimeError("could not commit") from error

    code, line = outcome(capsys, from_cause)
    assert (code, "results/metrics.json" in line) == (1, True)
    told = ValueError(f"RESOURCE_EXHAUSTED: writing: {os.strerror(number)}")
    assert outcome(capsys, raiser(told))[0] == 1


def test_another_failing_file_is_named(capsys):
    def run(options: Options) -> None:
        Path("/no/such/folder/file").read_bytes()

    assert outcome(capsys, run) == (
        1,
        "/no/such/folder/file: No such file or directory",
    )


def test_a_device_out_of_memory_is_1(capsys):
    def run(options: Options) -> None:
        jax.block_until_ready(jnp.zeros(1 << 50, jnp.float32))

    code, line = outcome(capsys, run)
    assert code == 1
    assert "out of memory" in line and "--batch-size" in line


SCRIPT = """
import sys, time
from experiments.common import Progress, main
from tests.experiments.test_common import Options

def run(options):
    with Progress("training", 3) as progress:
        for epoch in (1, 2, 3):
            time.sleep(0.05)
            progress.update(epoch, validation_error=0.25)

sys.exit(main(run, Options))
"""


def environment(**changes: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **changes}


def on_a_terminal(*argv: str) -> tuple[int, str]:
    """Exit code and output of the script on a terminal of its own."""
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *argv],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=environment(TERM="xterm", COLUMNS="100"),
    ) as process:
        os.close(follower)
        output = b""
        # Linux answers EIO once the other side is closed.
        while True:
            try:
                chunk = os.read(leader, 4096)
            except OSError:
                break
            if not chunk:
                break
            output += chunk
    os.close(leader)
    return process.returncode, output.decode()


def test_a_terminal_gets_a_bar():
    code, output = on_a_terminal()
    assert code == 0
    assert "\x1b[" in output and "━" in output
    assert "3/3" in output and "validation error 0.25" in output
    assert "training epoch" not in output


def test_a_terminal_gets_one_plain_line_of_error():
    code, output = on_a_terminal("--bogus")
    assert code == 2
    assert output == (
        "error: Unrecognized options: --bogus (--help lists the options)\r\n"
    )


def test_an_output_without_unicode_gets_the_same_line_of_error():
    answer = subprocess.run(
        [sys.executable, "-c", SCRIPT, "--bogus"],
        capture_output=True,
        env=environment(PYTHONIOENCODING="ascii"),
        text=True,
    )
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr == (
        "error: Unrecognized options: --bogus (--help lists the options)\n"
    )


# Progress.


def test_elsewhere_each_whole_epoch_is_one_line(capsys):
    with Progress("training", 5, start=2) as progress:
        progress.update(2.5, loss=9.0)
        progress.update(3, loss=np.float32(1.23456), val_error=jnp.float32(0.5), step=7)
        progress.update(3.9, loss=9.0)
        progress.update(5)
    lines = capsys.readouterr().out.splitlines()
    assert [line.rsplit("  ", 1)[0] for line in lines] == [
        "training epoch 3/5  loss 1.235  val error 0.5  step 7",
        "training epoch 5/5",
    ]
    assert all(float(line.rsplit("  ", 1)[1].removesuffix(" s")) >= 0 for line in lines)


@pytest.mark.parametrize(
    ("total", "every", "lines"),
    [(10, 4, [4, 8, 10]), (10, 5, [5, 10]), (3, 0, [1, 2, 3]), (2, 9, [2])],
)
def test_elsewhere_a_line_may_stand_for_many(capsys, total, every, lines):
    with Progress("searching", total, unit="images", every=every) as progress:
        for done in range(1, total + 1):
            progress.update(done)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in printed] == [f"{x}/{total}" for x in lines]


def test_the_total_may_be_that_of_a_tool(capsys):
    with Progress("searching", 50, unit="images", every=3) as progress:
        for done in range(1, 5):
            progress.update(done, 4, total="of a tool")
    lines = capsys.readouterr().out.splitlines()
    assert [line.rsplit("  ", 1)[0] for line in lines] == [
        "searching images 3/4  total of a tool",
        "searching images 4/4  total of a tool",
    ]


# Inputs.


@pytest.mark.parametrize(
    ("metadata", "name"),
    [
        ({"dataset": "shapes"}, "shapes"),
        ({"dataset": "cifar10"}, "cifar10"),
        ({}, "cifar10"),
    ],
)
def test_a_network_s_own_dataset_is_the_default(tmp_path, metadata, name):
    file = tmp_path / "weights.safetensors"
    save(file, 0, metadata=metadata)
    assert trained_on(load_network(str(file))) == name


# The result folder.


def test_a_folder_that_can_be_written_is_made_and_left_empty(tmp_path):
    results = Results(tmp_path / "a" / "b")
    assert results.path == tmp_path / "a" / "b"
    assert list(results.path.iterdir()) == []


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_an_out_that_cannot_be_written_is_2_before_any_work(tmp_path, capsys, out):
    (tmp_path / "file").write_text("mine")

    def run(options: Options) -> None:
        Results(options.out)
        never(options)

    code, line = outcome(capsys, run, "--out", str(tmp_path / out))
    assert code == 2
    assert line.startswith(f"--out {tmp_path / out} cannot be written (")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to a read-only folder")
def test_a_read_only_out_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="Permission denied"):
        Results(tmp_path)


def test_a_write_that_fails_keeps_the_old_file_whole(tmp_path):
    results = Results(tmp_path)
    results.write("metrics.json", b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            results.write("metrics.json", bytes(1 << 21))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"]
    assert (tmp_path / "metrics.json").read_bytes() == b"old"


def test_json_is_sorted_and_plain(tmp_path):
    @dataclasses.dataclass
    class Point:
        y: int
        x: tuple[float, ...]

    Results(tmp_path).metrics(
        {
            "b": np.float32(0.5),
            "a": {"point": Point(1, (2.0,)), "path": Path("data"), "none": None},
            "c": [np.arange(2), jnp.zeros(1), np.bool_(True), "é"],
        }
    )
    text = (tmp_path / "metrics.json").read_text(encoding="utf-8")
    assert text.endswith("}\n") and '"é"' in text
    assert list(json.loads(text)) == ["a", "b", "c"]
    assert json.loads(text) == {
        "a": {"none": None, "path": "data", "point": {"x": [2.0], "y": 1}},
        "b": 0.5,
        "c": [[0, 1], [0.0], True, "é"],
    }


@pytest.mark.parametrize("bad", [float("nan"), np.float32("inf"), jnp.inf])
def test_json_names_a_number_that_is_not_finite(tmp_path, bad):
    message = r"^metrics.json: history\[1\]: loss is (nan|inf)"
    with pytest.raises(ValueError, match=message):
        Results(tmp_path).metrics({"history": [{"loss": 1.0}, {"loss": bad}]})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [{1: 2}, object()])
def test_json_names_what_it_cannot_hold(tmp_path, bad):
    with pytest.raises(TypeError, match=r"^metrics.json: it "):
        Results(tmp_path).metrics({"it": bad})


def line_figure() -> Figure:
    figure = Figure()
    figure.subplots().plot([0, 1], [1, 0])
    return figure


def test_a_figure_of_lines_is_png_and_pdf_and_the_same_twice(tmp_path):
    for run in ("one", "two"):
        Results(tmp_path / run).figure("curves", line_figure())
    for run in ("one", "two"):
        names = sorted(file.name for file in (tmp_path / run).iterdir())
        assert names == ["curves.pdf", "curves.png"]
    assert (tmp_path / "one/curves.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "one/curves.pdf").read_bytes().startswith(b"%PDF")
    for name in ("curves.pdf", "curves.png"):
        one, two = ((tmp_path / run / name).read_bytes() for run in ("one", "two"))
        assert one == two


def test_config_holds_the_defaults_too(tmp_path):
    Results(tmp_path).config(Options(batch_size=7))
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "batch_size": 7,
        "limit": None,
        "model": "zfnet32",
        "out": "results",
    }


def test_a_manifest_is_the_same_twice_but_for_the_time(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/a/path/train.py", "--out", "two words"])
    manifests = []
    for run in ("one", "two"):
        results = Results(tmp_path / run)
        results.manifest(seed=3, digests={"data": "ab", "weights": "cd"})
        manifests.append(json.loads((results.path / "manifest.json").read_text()))
    for manifest in manifests:
        assert manifest.pop("wall_seconds") >= 0
    one, two = manifests
    assert one == two
    assert (one["seed"], one["digests"]) == (3, {"data": "ab", "weights": "cd"})
    assert one["command"].endswith("--out 'two words'")
    assert "/a/path" not in one["command"]
    assert one["versions"]["jax"] == jax.__version__
    assert one["versions"]["numpy"] == np.__version__
    assert {"flax", "optax", "python", "zfnet_jax"} <= set(one["versions"])
    assert one["device"] == {
        "count": jax.device_count(),
        "kind": jax.devices()[0].device_kind,
        "platform": jax.devices()[0].platform,
    }


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_that_of_a_checkout_which_tracks_the_file(tmp_path):
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
        return subprocess.run(
            ["git", *identity, *arguments], capture_output=True, check=True, text=True
        ).stdout.strip()

    file = tmp_path / "file.py"
    file.write_text("1")
    assert common._git_commit(file) is None
    git("init")
    assert common._git_commit(file) is None
    git("add", "file.py")
    assert common._git_commit(file) is None
    git("commit", "-m", "first")
    assert common._git_commit(file) == git("rev-parse", "HEAD")
    file.write_text("2")
    assert common._git_commit(file) == git("rev-parse", "HEAD") + "-dirty"
    (tmp_path / "copy.py").write_text("1")
    assert common._git_commit(tmp_path / "copy.py") is None
