"""Two processes give what one gives; a search that was killed goes on in either."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.networks import save
from tests.two_processes import (
    COUNT,
    STEP,
    build_logits,
    run_both,
    run_predict,
    search,
)
from zfnet_jax.analysis import search_state
from zfnet_jax.data import make_shapes


class Killed(BaseException):
    """Ends a search after its first part."""


def kill_at(images: int):
    def progress(done: int, total: int) -> None:
        if done >= images:
            raise Killed

    return progress


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The results of two processes, which resume a search of one."""
    folder = tmp_path_factory.mktemp("processes")
    for seed, name in enumerate("ab"):
        save(folder / f"{name}.safetensors", seed)
    (folder / "photographs").mkdir()
    for index, pixels in enumerate(make_shapes(5, (40, 50)).images):
        Image.fromarray(pixels).save(folder / f"photographs/{index}.png")
    damaged = (folder / "photographs/3.png").read_bytes()[:500]
    (folder / "photographs/3.png").write_bytes(damaged)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(search_state, "_SAVE_EVERY", 0)
        search(partial=folder / "partial", progress=kill_at(STEP + 32))
    run_both(folder)
    return folder


@pytest.fixture(scope="module")
def alone():
    return search()


@pytest.mark.parametrize("name", ["whole", "resumed"])
def test_two_processes_find_what_one_finds(folder, alone, name):
    expected, reads = alone
    assert reads == [*range(COUNT)]
    assert (expected["conv2 mean"] > 0).any()
    for index in range(2):
        with np.load(folder / f"{name}-{index}.npz") as arrays:
            assert {*arrays} == {*expected, "reads"}
            for key, value in expected.items():
                np.testing.assert_array_equal(arrays[key], value, key)


def test_each_process_reads_its_part_once(folder):
    parts = [np.load(folder / f"whole-{index}.npz")["reads"] for index in range(2)]
    assert sorted(np.concatenate(parts)) == [*range(COUNT)]
    assert set(parts[0]) == {*range(64), *range(128, 192), *range(256, COUNT)}
    # Process 0 reads the first 64 to know the images again.
    parts = [np.load(folder / f"resumed-{index}.npz")["reads"] for index in range(2)]
    assert sorted(np.concatenate(parts)) == [*range(64), *range(STEP + 32, COUNT)]


def test_a_gallery_of_two_processes_is_that_of_one(folder, tmp_path):
    build_logits(tmp_path)
    ours, theirs = folder / "gallery", tmp_path
    files = [{x.relative_to(f) for x in f.rglob("*")} for f in (ours, theirs)]
    assert files[0] == files[1] and Path("pages/layers/logits/2.webp") in files[0]
    for name in ("layers/logits/record.json", "compare/logits/matches.js"):
        one, other = (
            (folder / "pages" / name).read_text() for folder in (ours, theirs)
        )
        assert one == other


def test_predictions_of_two_processes_are_those_of_one(folder, tmp_path):
    run_predict(folder, tmp_path)
    ours, theirs = (
        json.loads((out / "predictions.json").read_text())
        for out in (folder / "predict", tmp_path)
    )
    assert [row["image"] for row in ours["images"]] == [
        f"{i}.png" for i in (0, 1, 2, 4)
    ]
    assert ours["skipped"] == theirs["skipped"] and len(ours["skipped"]) == 1
    for row, expected in zip(ours["images"], theirs["images"], strict=True):
        for one, other in (
            (row, expected),
            *zip(row["networks"].values(), expected["networks"].values(), strict=True),
        ):
            assert one["classes"] == other["classes"]
            np.testing.assert_allclose(
                one["probabilities"], other["probabilities"], rtol=1e-5
            )


def test_a_search_that_was_killed_reads_only_what_is_left(tmp_path, alone, monkeypatch):
    monkeypatch.setattr(search_state, "_SAVE_EVERY", 0)
    for stop in (64, 224):
        with pytest.raises(Killed):
            search(partial=tmp_path, batch_size=32, progress=kill_at(stop))
    (file,) = tmp_path.iterdir()
    # A search of another k in the same folder.
    with pytest.raises(Killed):
        search(partial=tmp_path, k=3, progress=kill_at(32))
    arrays, reads = search(partial=tmp_path, layers=["conv2", "fc3"], batch_size=32)
    assert reads == [*range(64), *range(224, COUNT)]
    for key, value in arrays.items():
        np.testing.assert_array_equal(value, alone[0][key], key)
    assert search(partial=tmp_path, layers="fc3")[1] == [*range(64)]
    # conv1 is no longer in the file; nor is anything in a damaged one.
    content = bytearray(file.read_bytes())
    assert search(partial=tmp_path, layers="conv1")[1] == [*range(64), *range(COUNT)]
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert search(partial=tmp_path, layers="fc3")[1] == [*range(64), *range(COUNT)]
