"""The harness: command line, failures, progress and result folder."""

import errno
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.__main__ import list_commands
from experiments.harness import Metrics, Positive, Run, UserError, command, main
from experiments.inputs import NetworkRun
from experiments.progress import Progress
from zfnet_jax.files import DamagedFileError, DataNotFoundError
from zfnet_jax.training import NonFiniteLossError

ROOT = Path(__file__).parents[2]


def toy(
    run: Run,
    layers: tuple[str, ...] = (),
    units: tuple[int, ...] = (),
    limit: Positive | None = None,
    fill: Literal["gray", "mean"] = "gray",
    fast: bool = False,
) -> Metrics:
    """Measure nothing.

    Args:
        layers: Layers, by default
            all.
        units: Units.
        limit: Images at most.
        fill: Content of the square.
        fast: Do it fast.
    """
    run.figure("curves/line", Figure())
    yield "options", [layers, units, limit, fill, fast]
    yield "draw", run.rng.random()
    yield "nothing", jnp.float32(np.nan)


def test_options_are_the_parameters(tmp_path):
    argv = ["--layers", "conv1", "conv3", "--units", "3", "17", "--fast"]
    assert main(toy, [*argv, "--out", str(tmp_path), "--seed", "5"]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["options"] == [["conv1", "conv3"], [3, 17], None, "gray", True]
    assert metrics["nothing"] is None, "JSON has no NaN"
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["seed"] == 5 and config["fill"] == "gray" and config["dpi"] == 256
    figures = {file.name for file in (tmp_path / "curves").iterdir()}
    assert figures == {"line.png", "line.pdf"}


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    def write(seed: int, name: str) -> dict[str, bytes]:
        out = tmp_path / name
        assert main(toy, ["--seed", str(seed), "--out", str(out)]) == 0
        names = ("metrics.json", "curves/line.png", "curves/line.pdf")
        return {name: (out / name).read_bytes() for name in names}

    assert write(0, "a") == write(0, "b") != write(1, "c")


def test_the_command_has_no_folders(monkeypatch):
    words = "x --data-dir a/b --epochs 2 --out=c --data_dir=d --resume --out e --seed 1"
    monkeypatch.setattr("sys.argv", words.split())
    assert command().endswith(" --epochs 2 --seed 1")


def test_help_has_every_option_in_plain_words(capsys):
    with pytest.raises(SystemExit) as stop:
        main(toy, ["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert "Layers, by default all." in text and "{None}" not in text
    for option in ("--layers", "--units", "--limit INT", "--fill {gray,mean}", "--out"):
        assert option in text


@pytest.mark.parametrize("argv", [["--limit", "many"], ["--fill", "grey"], ["--lim"]])
def test_a_wrong_option_ends_with_2_and_tyros_message(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(toy, argv)
    assert stop.value.code == 2 and argv[-1] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("--units 9: there is no such unit"), 2),
        (DataNotFoundError("there is no data"), 3),
        (DamagedFileError("the file is\ndamaged"), 4),
        (NonFiniteLossError("the loss is not finite"), 1),
        (ImportError('grain is missing: pip install "zfnet_jax[imagenet]"'), 1),
        (OSError(errno.ENOSPC, "No space left on device"), 1),
        (MemoryError(), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_a_failure_is_one_line_and_its_code(error, code, tmp_path, capsys):
    def fail(run: Run) -> Metrics:
        """Fail."""
        yield "before", 1
        raise error

    assert main(fail, ["--out", str(tmp_path)]) == code
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1
    assert " ".join(str(error.args[-1] if error.args else "").split()) in line
    assert not list(tmp_path.iterdir()), "an incomplete result is left"


def test_counts_are_at_least_one(refuse):
    assert "--limit 0: give a whole number" in refuse(toy, 2, "--limit", 0)


def test_a_figure_stays_in_its_folder(tmp_path):
    def draw(run: Run) -> Metrics:
        """Draw."""
        run.figure("../../escaped/$x", Figure())
        yield "drawn", 1

    assert main(draw, ["--out", str(tmp_path / "out")]) == 0
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    assert len(list((tmp_path / "out").rglob("*.png"))) == 1


def test_a_fault_of_the_program_keeps_its_traceback(tmp_path):
    def fail(run: Run) -> Metrics:
        """Fail."""
        yield "before", 1
        raise ValueError("a bug in a model")  # of neither the library nor the commands

    with pytest.raises(ValueError, match="a bug"):
        main(fail, ["--out", str(tmp_path)])


def test_an_out_that_cannot_be_written_is_refused_first(tmp_path, refuse):
    (tmp_path / "file").write_text("mine")
    assert main(toy, ["--out", str(tmp_path / "file")]) == 2
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert main(toy, ["--out", str(tmp_path / "below")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def network(run: NetworkRun) -> Metrics:
    """Name the network."""
    yield "layers", list(run.net.layers)


def test_a_model_is_given_as_module_and_function(measure, refuse):
    metrics, _ = measure(network, "--model", "tests.networks:small_network")
    assert metrics["layers"][0] == "conv1"
    line = refuse(network, 2, "--model", "tests.networks:missing")
    assert "tests.networks:missing" in line and "module:function" in line
    refuse(network, 2, "--model", "nowhere:net")
    refuse(network, 2, "--model", "tests.networks:small_network", "--weights", "w")
    refuse(network, 3, "--weights", "missing.safetensors")


def test_the_list_of_commands_is_complete():
    files = {path.stem for path in (ROOT / "experiments").glob("*.py")}
    parts = {"__init__", "__main__", "distributed", "harness", "inputs", "mini"}
    parts |= {"prediction_rows", "progress", "roll_call", "tensorboard"}
    assert set(list_commands()) == files - parts
    assert all(list_commands().values())


# Processes of their own.


def start(*argv: object, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, argv)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_ctrl_c_while_libraries_are_imported_is_one_line():
    process = start("experiments.predict")
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert (process.returncode, error) == (130, b"error: interrupted\n")


def test_a_missing_accelerator_is_one_line(tmp_path):
    process = start("experiments.invariance", "--out", tmp_path, JAX_PLATFORMS="cuda")
    _, error = process.communicate()
    assert process.returncode == 2
    assert error.count(b"\n") == 1 and b"cuda" in error


def test_an_odd_environment_changes_nothing(photographs, tmp_path):
    """A notebook's backend, an ASCII terminal, TeX, a name that is not UTF-8."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\naxes.facecolor: red\n")
    folder = tmp_path / "photographs"
    folder.mkdir()
    name = os.fsencode(folder) + b"/caf\xe9.png"
    Path(os.fsdecode(name)).write_bytes((photographs / "0.png").read_bytes())
    process = start(
        *("experiments.top_features", "--model", "tests.networks:small_network"),
        *("--layers", "conv1", "--count", 1, "--k", 1),
        *("--image", folder, "--out", tmp_path / "out"),
        MPLBACKEND="module://matplotlib_inline.backend_inline",
        MATPLOTLIBRC=str(tmp_path),
        PYTHONIOENCODING="ascii",
        LC_ALL="C",
    )
    output, error = process.communicate()
    assert process.returncode == 0, error
    output.decode("ascii")
    results = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"metrics.json", "config.json", "manifest.json"} <= results


def test_a_terminal_gets_a_bar_and_a_pipe_lines(capsys):
    progress = Progress("searching")
    progress(1, 2)
    progress(2, 2, loss=0.25)
    progress.note("found")
    progress.close()
    said = r"searching  2/2  loss 0.25  0 s\nfound\n"
    assert re.fullmatch(said, capsys.readouterr().out)

    code = (
        "from experiments.progress import Progress\n"
        "p = Progress('searching', lambda: 'a table'); "
        "p(1, 2, loss=0.25); p.note('not this'); p(2, 2); p.close()"
    )
    leader, follower = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=follower, env=env)
    shown = os.read(leader, 1 << 16).decode()
    assert "compiling" in shown and "2/2" in shown and "━" in shown
    assert "a table" in shown and "not this" not in shown


def test_a_pipe_that_closes_early_does_not_stop_the_work():
    code = (
        "from experiments.progress import say\n"
        "for _ in range(9999): say('line')\n"
        "import sys; print('done', file=sys.stderr)"
    )
    command = f'{sys.executable} -c "{code}" | head -1'
    run = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True)
    assert run.stderr == b"done\n"
