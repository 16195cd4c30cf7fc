"""Checkpoints: bit for bit, or a clear error; a damaged step is never used."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zfnet_jax import checkpoint, files
from zfnet_jax.files import DamagedFileError


def small_state(step: int) -> dict:
    return {"w": np.arange(1000, dtype=np.float32) + step, "n": np.asarray(step)}


def save_steps(folder: Path, *numbers: int, **options) -> Path:
    for step in numbers:
        checkpoint.save(folder, step, small_state(step), {"step": step}, **options)
    return folder


def restore(folder: Path, check=lambda metadata: None) -> checkpoint.Restored:
    restored = checkpoint.restore(folder, check)
    assert restored is not None
    assert_holds(restored.state, small_state(restored.step))
    return restored


def assert_holds(leaves, state) -> None:
    for leaf, known in zip(leaves, jax.tree.leaves(state), strict=True):
        known = np.asarray(known)
        assert (leaf.dtype, leaf.shape) == (known.dtype, known.shape)
        assert np.asarray(leaf).tobytes() == known.tobytes()


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory) -> Path:
    return save_steps(tmp_path_factory.mktemp("two"), 3, 12)


@pytest.fixture
def copy(two_steps, tmp_path) -> Path:
    return shutil.copytree(two_steps, tmp_path / "copy")


def files_of(folder: Path, step: int) -> list[Path]:
    paths = (folder / f"step_{step:08d}").rglob("*")
    return sorted(path for path in paths if path.is_file())


def read_bytes(folder: Path) -> dict[Path, bytes]:
    return {x: x.read_bytes() for x in folder.rglob("*") if x.is_file()}


def flip_byte(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x20
    path.write_bytes(content)


def test_a_state_comes_back_bit_for_bit(tmp_path):
    state = {
        "kernel": jnp.asarray(np.random.default_rng(1).normal(size=(3, 3, 3, 4))),
        "half": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3) / 7,
        "key": jax.random.key_data(jax.random.key(7)),
        "odd": [jnp.array([np.nan, np.inf, -0.0, 1e-45]), (None, np.array([True]))],
        "strides": np.asfortranarray(np.ones((2, 3))),
        "step": jnp.int32(7),
    }
    metadata = {"epoch": 3, "loss": 0.1, "history": [1.5, None], "text": "ü"}
    checkpoint.save(tmp_path, 3, state, metadata)
    restored = checkpoint.restore(tmp_path)
    assert restored is not None
    assert (restored.step, restored.metadata, restored.damaged) == (3, metadata, ())
    assert_holds(restored.state, state)


def test_one_changed_missing_or_extra_file_is_caught(two_steps, tmp_path):
    generator = random.Random(0)

    def flip(path: Path) -> None:
        if size := path.stat().st_size:
            flip_byte(path, generator.randrange(size))
        else:
            path.write_text("more")

    for path in [*files_of(two_steps, 12), two_steps / "step_00000012/state/more"]:
        for damage in (flip, Path.unlink) if path.exists() else (Path.touch,):
            copy = shutil.copytree(two_steps, tmp_path / "copy")
            damage(copy / path.relative_to(two_steps))
            restored = restore(copy)
            assert restored.step == 3
            (line,) = restored.damaged
            assert line.startswith("step 12 is damaged: ") and "\n" not in line
            assert path.name in line or path.name == "digests.json"
            shutil.rmtree(copy)


@pytest.mark.parametrize("part", ["metadata", "state"])
def test_wrong_content_under_right_digests_counts_as_damaged(copy, part):
    step = copy / "step_00000012"
    if part == "state":
        shutil.rmtree(step / "state")
    else:
        (step / "metadata.json").write_text("{}")
    (step / "digests.json").write_text(files.to_json(checkpoint._digests(step)))
    restored = restore(copy, lambda metadata: metadata["step"])
    assert restored.step == 3 and part in restored.damaged[0]


def test_a_check_refuses_the_checkpoint_of_another_run(two_steps):
    def check(metadata):
        raise ValueError(f"another run: {metadata['step']}")

    with pytest.raises(ValueError, match="another run: 12"):
        checkpoint.restore(two_steps, check)


def test_when_every_step_is_damaged_the_error_names_each(copy):
    for step in (3, 12):
        flip_byte(copy / f"step_{step:08d}/metadata.json", 5)
    each = "metadata.json is not the file"
    message = rf"every checkpoint in {copy} is damaged .*{each}.*{each}"
    with pytest.raises(DamagedFileError, match=message):
        checkpoint.restore(copy)


def test_a_folder_without_steps_restores_nothing(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        assert checkpoint.steps(folder) == []
        assert checkpoint.restore(folder) is None


def test_old_steps_are_removed_and_later_ones_stay(tmp_path):
    save_steps(tmp_path, 1, 2, 3, 4)
    assert checkpoint.steps(tmp_path) == [3, 4]
    # A run that resumed before a damaged step must not lose what it writes.
    flip_byte(tmp_path / "step_00000004/metadata.json", 3)
    save_steps(tmp_path, 3, keep=1)
    assert checkpoint.steps(tmp_path) == [3, 4]
    save_steps(tmp_path, 4)
    assert restore(tmp_path).damaged == ()


def test_leftovers_of_a_killed_run_are_no_steps_and_are_removed(copy):
    (copy / "step_00000012").rename(copy / ".unfinished")
    assert checkpoint.steps(copy) == [3]
    assert restore(copy).damaged == ()
    save_steps(copy, 4)
    assert sorted(os.listdir(copy)) == ["step_00000003", "step_00000004"]


SAVE_LOOP = """
import itertools, sys
from pathlib import Path
from tests.test_checkpoint import save_steps
for step in itertools.count(int(sys.argv[2])):
    save_steps(Path(sys.argv[1]), step)
"""


def test_a_kill_at_any_moment_leaves_a_good_newest_step(tmp_path):
    generator = random.Random(1)
    start = 0
    for _ in range(2):
        command = [sys.executable, "-c", SAVE_LOOP, str(tmp_path), str(start)]
        process = subprocess.Popen(command)
        try:
            deadline = time.monotonic() + 300
            while start not in checkpoint.steps(tmp_path):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)
            time.sleep(generator.uniform(0, 0.2))
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        restored = restore(tmp_path)
        assert restored.damaged == ()
        assert restored.step == restored.metadata["step"] >= start
        start = restored.step + 1


FULL_DISK = """
import resource, sys
import numpy as np
from zfnet_jax import checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    checkpoint.save(sys.argv[1], 13, {"w": np.ones(100_000, np.float32)}, {})
except OSError as error:
    print(error)
"""


def test_a_write_that_the_system_refuses_is_one_os_error(copy):
    # A limit on the size of a file fails inside TensorStore, as a full disk would.
    before = read_bytes(copy)
    command = [sys.executable, "-W", "error", "-c", FULL_DISK, str(copy)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.stdout.startswith("[Errno 5] Input/output error: ")
    assert result.stdout.count("\n") == 1
    assert (result.returncode, result.stderr) == (0, "")
    assert read_bytes(copy) == before


def test_a_full_disk_leaves_the_earlier_steps(copy, monkeypatch):
    before = read_bytes(copy)
    usage = shutil.disk_usage(copy)._replace(free=70_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError) as error:
        checkpoint.save(copy, 13, {"w": np.ones(10_000)}, {})
    assert error.value.errno == errno.ENOSPC
    assert read_bytes(copy) == before
