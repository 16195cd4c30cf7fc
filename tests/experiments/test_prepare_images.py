"""Photographs written as records: what they hold, damage, and interruption."""

import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import prepare_images as command
from experiments.harness import main
from experiments.prepare_images import prepare_images
from tests.data.labeled_case import CLASSES, make_photograph, write_folders
from zfnet_jax.data import open_labeled, resize_shortest_side
from zfnet_jax.data.encoding import encode_chunk

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Photographs, of which one is damaged and one is a large file of few pixels."""
    folder = write_folders(tmp_path_factory.mktemp("folders"))
    (folder / "train" / CLASSES[0] / "damaged.JPEG").write_bytes(b"\xff\xd8\xff" * 9)
    noise = np.random.default_rng(0).integers(0, 256, (90, 80, 3), np.uint8)
    Image.fromarray(noise).save(folder / "val" / CLASSES[2] / "noise.png")
    return folder


def prepare(images: Path, out: Path) -> dict[str, bytes]:
    """Run the command, and return the files that do not depend on the time."""
    argv = ["--images", str(images), "--out", str(out), "--workers", "0"]
    assert main(prepare_images, argv) == 0
    names = [*out.glob("*.array_record"), *out.glob("*.safetensors")]
    names += [out / "images.json", out / "metrics.json"]
    return {path.name: path.read_bytes() for path in names}


def test_small_files_stay_and_others_become_jpeg(folders, tmp_path, capsys):
    files = prepare(folders, tmp_path)
    metrics = json.loads(files["metrics.json"])
    assert (metrics["train_images"], metrics["val_images"]) == (12, 4)
    assert metrics["skipped_images"] == 1 and metrics["classes"] == 3
    assert "damaged.JPEG" in metrics["skipped"][0]
    said = capsys.readouterr()
    assert "damaged.JPEG" in said.err
    assert f"{metrics['bytes'] / 1e6:.3g} MB, 1 damaged image" in said.out
    for split in ("train", "val"):
        paths = sorted((folders / split).glob("*/*"))
        paths = [path for path in paths if path.name != "damaged.JPEG"]
        records = open_labeled(tmp_path, split)
        assert len(records) == len(paths)
        for index, path in enumerate(paths):
            content, label = records.items.fetch(index)
            original = np.asarray(Image.open(path))
            assert CLASSES[label] == path.parent.name
            if path.suffix == ".JPEG" and min(original.shape[:2]) <= 256:
                assert content == path.read_bytes()
                continue
            image = Image.open(io.BytesIO(content))
            is_small = min(original.shape[:2]) <= 256
            expected = original if is_small else resize_shortest_side(original, 256)
            assert image.format == "JPEG"
            assert len(content) < path.stat().st_size or not is_small
            assert np.asarray(image).shape == expected.shape
    assert prepare(folders, tmp_path) == files


def test_it_takes_no_options_without_effect(capsys):
    with pytest.raises(SystemExit):
        main(prepare_images, ["--help"])
    text = capsys.readouterr().out
    assert "--workers" in text and "--seed" not in text and "--dpi" not in text


def test_what_is_refused_is_one_line(folders, tmp_path, refuse):
    assert "no folder train" in refuse(prepare_images, 3, "--images", tmp_path)
    other = shutil.copytree(folders, tmp_path / "other")
    (other / "train" / "n02").mkdir()
    line = refuse(prepare_images, 3, "--images", other)
    assert "n02 holds no images" in line
    records = tmp_path / "records"
    prepare(folders, records)
    (other / "train" / "n02").rmdir()
    (other / "train" / CLASSES[0] / "damaged.JPEG").unlink()
    argv = ["--images", str(other), "--out", str(records), "--workers", "0"]
    assert main(prepare_images, argv) == 2


def test_a_class_of_damaged_files_is_refused(tmp_path, refuse, capsys):
    folder = write_folders(tmp_path / "images")
    argv = ["--images", folder, "--workers", 0]
    for path in (folder / "train" / CLASSES[1]).iterdir():
        path.write_bytes(b"damaged")
    out = ["--out", str(tmp_path / "out")]
    assert main(prepare_images, [*map(str, argv), *out]) == 4
    error = capsys.readouterr().err
    assert f"all train images of class {CLASSES[1]} are damaged" in error
    assert not (tmp_path / "out" / "images.json").exists()


def test_a_file_that_cannot_be_read_is_named_and_left_out(tmp_path):
    images = open_labeled(write_folders(tmp_path), "train")
    gone = tmp_path / "train" / CLASSES[0] / f"{CLASSES[0]}_01.JPEG"
    gone.unlink()
    chunk = encode_chunk(images, 12, 0)
    assert len(chunk.contents) == 11 and chunk.labels.count(0) == 3
    assert str(gone) in chunk.skipped[0] and len(chunk.skipped) == 1


SCRIPT = """
import sys
from experiments import prepare_images as command
from experiments.harness import main
if __name__ == "__main__":
    command.CHUNK, command.SHARD = 2, 4
    sys.exit(main(command.prepare_images))
"""


def test_a_killed_run_goes_on_to_the_same_records(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "CHUNK", 2)
    monkeypatch.setattr(command, "SHARD", 4)
    folders, out = tmp_path / "folders", tmp_path / "out"
    for index in range(200):
        kind = folders / ("val" if index < 5 else "train") / f"n{index % 5}"
        kind.mkdir(parents=True, exist_ok=True)
        content = make_photograph(index, (40, 60)) if index != 30 else b"damaged"
        (kind / f"{index:03d}.JPEG").write_bytes(content)
    whole = prepare(folders, tmp_path / "whole")

    (tmp_path / "run.py").write_text(SCRIPT)
    argv = ["--images", folders, "--out", out, "--workers", 1]
    process = subprocess.Popen(
        [sys.executable, tmp_path / "run.py", *map(str, argv)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    while process.poll() is None and len(list(out.glob("*.array_record"))) < 5:
        time.sleep(0.002)
    process.kill()
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in out.glob("*.array_record")}
    assert 5 <= len(finished) < 40 and not (out / "images.json").exists()

    assert prepare(folders, out) == whole
    kept = sum(path.stat().st_mtime_ns == was for path, was in finished.items())
    assert len(finished) - 1 <= kept, "finished shards were written again"

    # One is damaged where no one looks until it is read, and one is lost.
    shards = sorted(out.glob("train-*"))
    content = bytearray(shards[2].read_bytes())
    content[5_000] ^= 1
    shards[2].write_bytes(content)
    shards[7].unlink()
    times = {path: path.stat().st_mtime_ns for path in (shards[0], shards[2])}
    assert prepare(folders, out) == whole
    assert shards[0].stat().st_mtime_ns == times[shards[0]]
    assert shards[2].stat().st_mtime_ns > times[shards[2]]
    # Images that have changed since cannot fill the place of a lost shard.
    shards[2].unlink()
    names = sorted((folders / "train").glob("*/*"))
    names[8].write_bytes(bytes(names[8].stat().st_size))
    argv = ["--images", str(folders), "--out", str(out), "--workers", "0"]
    assert main(prepare_images, argv) == 4
