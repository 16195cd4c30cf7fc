"""Batches: a pure function of seed and step, on any number of processes."""

import itertools
import multiprocessing
import os
import sys
import time

import numpy as np
import pytest

from tests.data.labeled_case import Numbers
from zfnet_jax.data import LabeledImages, read_batches
from zfnet_jax.data.pipeline import _iterate, compute_ahead
from zfnet_jax.files import DamagedFileError

IMAGES = LabeledImages((), "numbers", Numbers(11))


def read_labels(**options) -> list[list[int]]:
    batches = read_batches(IMAGES, **{"batch_size": 4, "seed": 7, **options})
    return [labels.tolist() for _, labels in batches]


def test_every_epoch_has_each_image_once_in_its_own_order():
    batches = read_labels(stop=6)
    for epoch in range(3):
        order = np.random.default_rng([7, epoch]).permutation(11)
        assert batches[2 * epoch : 2 * epoch + 2] == order[:8].reshape(2, 4).tolist()
    assert read_labels(stop=6, seed=8) != batches
    assert sorted(*read_labels(stop=1, batch_size=11)) == list(range(11))


def test_pixels_are_those_of_their_labels():
    for images, labels in read_batches(IMAGES, batch_size=4, seed=0, stop=3):
        assert images.shape == (4, 256, 256, 3) and images.dtype == np.uint8
        assert (images == labels[:, None, None, None]).all()


def test_a_run_goes_on_with_the_very_next_batch():
    whole = read_labels(stop=7)
    for start in (1, 2, 5, 7):
        assert read_labels(start=start, stop=7) == whole[start:]


def test_processes_share_each_batch():
    whole = read_labels(stop=5)
    for count in (2, 4):
        parts = [read_labels(stop=5, process=(k, count)) for k in range(count)]
        joined = [[*itertools.chain(*rows)] for rows in zip(*parts, strict=True)]
        assert joined == whole


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="batch_size 4: it does not split over 3"):
        read_labels(stop=1, process=(0, 3))
    for size in (0, 12):
        with pytest.raises(ValueError, match=f"do not fill a batch of {size}"):
            read_labels(stop=1, batch_size=size)
    with pytest.raises(ValueError, match="workers -1: give at least 0"):
        read_labels(stop=1, workers=-1)


def test_without_grain_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ImportError, match=r'pip install "zfnet_jax\[imagenet\]"'):
        read_labels(stop=1)


# Worker processes.


def test_workers_read_the_same_and_pass_on_what_is_wrong():
    *before, last = map(set, read_labels(stop=3))
    damaged = min(last.difference(*before))
    images = LabeledImages((), "numbers", Numbers(11, damaged))
    alone, ahead = (
        read_batches(images, batch_size=4, seed=7, stop=9, workers=workers)
        for workers in (0, 2)
    )
    for _ in before:
        for x, y in zip(next(alone), next(ahead), strict=True):
            np.testing.assert_array_equal(x, y)
    for batches in (alone, ahead):
        with pytest.raises(DamagedFileError, match=f"^number {damaged} is not an im"):
            next(batches)
    assert not multiprocessing.active_children()


def is_alive(process: int) -> bool:
    """Whether a process runs: a dead one may wait for its parent."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def find_process(number: int) -> int:
    return os.getpid()


def hold_worker(pipe) -> None:
    values = compute_ahead(find_process, 0, 9, workers=1)
    pipe.send(next(values))
    time.sleep(60)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")
def test_workers_end_with_a_parent_that_is_killed():
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    parent = context.Process(target=hold_worker, args=(theirs,))
    parent.start()
    worker = ours.recv()
    assert is_alive(worker)
    parent.kill()
    parent.join()
    deadline = time.monotonic() + 10
    while is_alive(worker) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(worker)


def test_a_value_that_is_lost_on_the_way_is_an_error():
    values = _iterate((number for number in (1, 2)), range(3), 0)
    assert (next(values), next(values)) == (1, 2)
    with pytest.raises(RuntimeError):
        next(values)
