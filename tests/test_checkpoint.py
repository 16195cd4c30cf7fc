"""Checkpoints: bit for bit, or a clear error; never a damaged step taken for good."""

import collections
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from zfnet_jax import checkpoint
from zfnet_jax.files import DamagedFileError

Pair = collections.namedtuple("Pair", ["first", "second"])


def training_state():
    """A state with every kind of leaf and container that training uses."""
    key = jax.random.key(7)
    params = {
        "conv1": {
            "kernel": jnp.asarray(np.random.default_rng(1).normal(size=(3, 3, 3, 4))),
            "bias": jnp.full((4,), -0.0),
        },
        "logits": {"kernel": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3) / 7},
    }
    optimizer = optax.chain(
        optax.sgd(1e-2, momentum=0.9), optax.contrib.reduce_on_plateau(patience=2)
    )
    return {
        "params": params,
        "optimizer": optimizer.init(params),
        "key": jax.random.key_data(key),
        "order": np.random.default_rng(0).permutation(50)[::2],
        "pair": Pair(np.float64(1) / 3, (np.asfortranarray(np.ones((2, 3))), [])),
        "odd": jnp.array([np.nan, np.inf, -np.inf, 1e-45]),
        "mask": np.array([True, False]),
        "nothing": np.zeros((0, 3), np.int8),
        "epoch": 2**40 + 1,
        "best": 0.1 + 0.2,
        "done": False,
    }


def blank(leaf):
    if isinstance(leaf, np.ndarray | jax.Array):
        zeros = np.zeros(leaf.shape, leaf.dtype)
        return zeros if isinstance(leaf, np.ndarray) else jnp.asarray(zeros)
    return type(leaf)()


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    for left, right in pairs:
        assert type(left) is type(right)
        left, right = np.asarray(left), np.asarray(right)
        assert left.dtype == right.dtype and left.shape == right.shape
        assert left.tobytes() == right.tobytes()


def small_state(step):
    return {"w": np.arange(1000, dtype=np.float32) + step, "n": step}


def saved(directory, numbers, **options):
    for step in numbers:
        checkpoint.save(directory, step, small_state(step), {"step": step}, **options)
    return directory


def tree(directory):
    return {
        path.relative_to(directory): path.read_bytes() if path.is_file() else None
        for path in directory.rglob("*")
    }


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("two"), [3, 12])


def files_of(directory, step):
    folder = directory / f"step_{step:08d}"
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip_byte(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 0x20
    path.write_bytes(content)


def test_round_trip_is_bit_exact(tmp_path):
    state = training_state()
    metadata = {"epoch": 3, "loss": 0.1, "history": [1.5, None], "text": "ü"}
    checkpoint.save(tmp_path, 3, state, metadata)
    template = jax.tree.map(blank, state)
    for restored in (
        checkpoint.restore_latest(tmp_path, template),
        checkpoint.restore(tmp_path, 3, template),
    ):
        assert restored.step == 3
        assert restored.metadata == metadata
        assert restored.damaged == ()
        assert_same(restored.state, state)


def test_abstract_template(tmp_path):
    state = {"w": jnp.arange(3.0), "b": jnp.ones(2, jnp.bfloat16)}
    checkpoint.save(tmp_path, 0, state, {})
    restored = checkpoint.restore(tmp_path, 0, jax.eval_shape(lambda: state))
    assert_same(restored.state, state)


def test_restored_arrays_are_bound_to_devices_as_the_template_is(tmp_path):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    spread = NamedSharding(mesh, PartitionSpec("data"))
    state = {"free": jnp.ones(4), "spread": jax.device_put(jnp.arange(4), spread)}
    checkpoint.save(tmp_path, 1, state, {})
    restored = checkpoint.restore(tmp_path, 1, state).state
    assert restored["spread"].sharding == spread
    assert not restored["free"].committed
    assert_same(restored, state)


def test_files_are_verifiable_with_standard_tools(two_steps):
    if not shutil.which("sha256sum"):
        pytest.skip("sha256sum is not installed")
    folder = two_steps / "step_00000012"
    command = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    assert subprocess.run(command, cwd=folder).returncode == 0
    listed = (folder / "SHA256SUMS").read_text().splitlines()
    assert len(listed) == len(files_of(two_steps, 12)) - 1


def test_one_flipped_byte_anywhere_is_caught(two_steps, tmp_path):
    generator = random.Random(0)
    for path in files_of(two_steps, 12):
        size = path.stat().st_size
        positions = {0, size // 2, size - 1, generator.randrange(size)} if size else ()
        for position in positions:
            copy = tmp_path / "copy"
            shutil.copytree(two_steps, copy)
            flip_byte(copy / path.relative_to(two_steps), position)
            restored = checkpoint.restore_latest(copy, small_state(0))
            assert restored.step == 3
            assert_same(restored.state, small_state(3))
            (line,) = restored.damaged
            assert line.startswith("step 12 is damaged: ")
            if path.name != "SHA256SUMS":
                assert path.relative_to(path.parents[-1]).name in line
            with pytest.raises(DamagedFileError, match="step 12 is damaged"):
                checkpoint.restore(copy, 12, small_state(0))
            shutil.rmtree(copy)


def test_a_missing_truncated_or_extra_file_is_caught(two_steps, tmp_path):
    for path in files_of(two_steps, 12):
        copy = tmp_path / "copy"
        shutil.copytree(two_steps, copy)
        (copy / path.relative_to(two_steps)).unlink()
        (line,) = checkpoint.restore_latest(copy, small_state(0)).damaged
        assert f"{path.name} is missing" in line
        shutil.rmtree(copy)
    copy = tmp_path / "other"
    shutil.copytree(two_steps, copy)
    (copy / "step_00000012" / "state" / "more").write_text("")
    (line,) = checkpoint.restore_latest(copy, small_state(0)).damaged
    assert line == "step 12 is damaged: state/more is not listed in SHA256SUMS"
    (copy / "step_00000012" / "SHA256SUMS").unlink()
    (copy / "step_00000012" / "SHA256SUMS").mkdir()
    (line,) = checkpoint.restore_latest(copy, small_state(0)).damaged
    assert "SHA256SUMS cannot be read: Is a directory" in line


def test_all_damaged(two_steps, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(two_steps, copy)
    for step in (3, 12):
        flip_byte(copy / f"step_{step:08d}" / "metadata.json", 5)
    with pytest.raises(DamagedFileError) as caught:
        checkpoint.restore_latest(copy, small_state(0))
    message = str(caught.value)
    assert str(copy) in message and "\n" not in message
    assert message.count("metadata.json does not match its sha256") == 2


def test_nothing_to_restore(two_steps, tmp_path):
    for directory in (tmp_path, tmp_path / "absent"):
        assert checkpoint.steps(directory) == []
        with pytest.raises(FileNotFoundError, match=f"no checkpoint in {directory}"):
            checkpoint.restore_latest(directory, {})
    with pytest.raises(FileNotFoundError, match=r"no step 4 in .*; there: 3, 12"):
        checkpoint.restore(two_steps, 4, {})


@pytest.mark.parametrize(
    ("template", "named"),
    [
        ({"w": np.zeros(999, np.float32), "n": 0}, r"w is float32\[1000\] where"),
        ({"w": np.zeros(1000, jnp.bfloat16), "n": 0}, r"where bfloat16\[1000\] is"),
        ({"w": np.zeros(1000, np.float32)}, "n is not expected"),
        ({**small_state(0), "fc7": {"bias": np.zeros(2)}}, "fc7/bias is missing"),
    ],
)
def test_template_of_another_architecture(two_steps, template, named):
    with pytest.raises(ValueError, match=named) as caught:
        checkpoint.restore_latest(two_steps, template)
    assert "\n" not in str(caught.value)


def test_only_wanted_steps_are_kept(tmp_path):
    saved(tmp_path, range(1, 5))
    assert checkpoint.steps(tmp_path) == [3, 4]
    saved(tmp_path, [5, 6], keep=1, keep_steps=[4])
    assert checkpoint.steps(tmp_path) == [4, 6]
    saved(tmp_path, [7, 8, 9], keep=None)
    assert checkpoint.steps(tmp_path) == [4, 6, 7, 8, 9]
    # A run that goes on from an earlier step must not lose what it has just written.
    saved(tmp_path, [5], keep=1)
    assert checkpoint.steps(tmp_path) == [5, 6, 7, 8, 9]


def test_a_good_step_is_never_overwritten_a_damaged_one_is(tmp_path):
    saved(tmp_path, [1, 2])
    before = tree(tmp_path)
    with pytest.raises(FileExistsError, match="step 2 is already in"):
        checkpoint.save(tmp_path, 2, small_state(9), {})
    assert tree(tmp_path) == before
    flip_byte(tmp_path / "step_00000002" / "metadata.json", 3)
    checkpoint.save(tmp_path, 2, small_state(9), {})
    restored = checkpoint.restore_latest(tmp_path, small_state(0))
    assert (restored.step, restored.damaged) == (2, ())
    assert_same(restored.state, small_state(9))


def test_leftovers_of_a_killed_run_are_no_steps_and_are_removed(two_steps, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(two_steps, copy)
    (copy / "step_00000012").rename(copy / ".unfinished-step_00000012")
    assert checkpoint.steps(copy) == [3]
    assert checkpoint.restore_latest(copy, small_state(0)).damaged == ()
    saved(copy, [4])
    assert sorted(os.listdir(copy)) == ["step_00000003", "step_00000004"]


SAVE_LOOP = """
import itertools, sys
import numpy as np
from zfnet_jax import checkpoint
for step in itertools.count(int(sys.argv[2])):
    state = {"w": np.arange(1000, dtype=np.float32) + step, "n": step}
    checkpoint.save(sys.argv[1], step, state, {"step": step})
"""


def test_kill_at_any_moment_leaves_a_good_newest_step(tmp_path):
    generator = random.Random(1)
    start = 0
    for _ in range(4):
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
        restored = checkpoint.restore_latest(tmp_path, small_state(0))
        assert restored.damaged == ()
        assert restored.step == restored.metadata["step"] >= start
        assert_same(restored.state, small_state(restored.step))
        start = restored.step + 1


def test_unwritable_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        checkpoint.save(tmp_path / "file" / "out", 0, small_state(0), {})
    assert os.listdir(tmp_path) == ["file"]


FULL_DISK = """
import resource, sys
import numpy as np
from zfnet_jax import checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    checkpoint.save(sys.argv[1], 13, {"w": np.ones(100_000, np.float32)}, {})
except OSError as error:
    print(error.errno, error)
"""


def test_a_write_that_the_system_refuses(two_steps, tmp_path):
    # The limit on the size of a file needs no mount, and fails inside TensorStore.
    copy = tmp_path / "copy"
    shutil.copytree(two_steps, copy)
    before = tree(copy)
    command = [sys.executable, "-W", "error", "-c", FULL_DISK, str(copy)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.stdout.startswith("27 [Errno 27] File too large: ")
    assert result.stdout.count("\n") == 1
    assert (result.returncode, result.stderr) == (0, "")
    assert tree(copy) == before


def test_full_disk(tmp_path, capfd):
    """Of many arrays, each of which a thread would fail to write in its own words."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if (
        not shutil.which("mount")
        or subprocess.run(mount, capture_output=True).returncode
    ):
        pytest.skip("mounting a small file system needs root")
    try:
        saved(tmp_path, [1])
        before = tree(tmp_path)
        with pytest.raises(OSError, match="No space left on device"):
            checkpoint.save(tmp_path, 2, {str(i): np.ones(2000) for i in range(66)}, {})
        assert tree(tmp_path) == before
        assert capfd.readouterr() == ("", "")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize("leaf", ["text", jax.random.key(0), np.array(["a"]), object()])
def test_a_leaf_that_is_no_number_is_named(tmp_path, leaf):
    with pytest.raises(TypeError, match="here/0 has dtype"):
        checkpoint.save(tmp_path, 0, {"here": [leaf]}, {})
    assert os.listdir(tmp_path) == []


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="-1"):
        checkpoint.save(tmp_path, -1, {}, {})
    with pytest.raises(ValueError, match="keep >= 1"):
        checkpoint.save(tmp_path, 1, {}, {}, keep=0)
    with pytest.raises(TypeError, match="JSON"):
        checkpoint.save(tmp_path, 1, small_state(0), {"a": object()})
    clash = {"a/b": np.ones(1), "a": {"b": np.ones(1)}}
    with pytest.raises(ValueError, match="one path"):
        checkpoint.save(tmp_path, 1, clash, {})
    assert os.listdir(tmp_path) == []


QUIET = """
import asyncio, logging, sys, threading, warnings
import jax.numpy as jnp
from zfnet_jax import checkpoint
assert "orbax" not in sys.modules
state = {"w": jnp.ones(10)}
def process():
    return (
        logging.root.handlers[:], logging.root.level, warnings.filters[:],
        asyncio.run, asyncio.events.get_running_loop,
    )
before = process()
async def as_in_a_notebook():
    checkpoint.save(sys.argv[1], 1, state, {})
    return checkpoint.restore_latest(sys.argv[1], state).step
assert asyncio.run(as_in_a_notebook()) == 1
assert process() == before
for thread in set(threading.enumerate()) - {threading.main_thread()}:
    thread.join(5)
assert threading.active_count() == 1
"""


def test_the_process_is_left_as_it_was(tmp_path):
    command = [sys.executable, "-W", "error", "-c", QUIET, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
