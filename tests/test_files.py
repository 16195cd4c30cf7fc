"""Files appear whole or not at all; digests and names."""

import json
import resource
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zfnet_jax.files import (
    DamagedFileError,
    digest,
    extract_single,
    slug,
    to_json,
    unpack,
    write_atomically,
)


def test_a_write_that_fails_keeps_the_old_file_and_names_it(tmp_path):
    path = write_atomically(tmp_path / "file", "old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 10, limits[1]))
    try:
        with pytest.raises(OSError, match=str(path)):
            write_atomically(path, bytes(1 << 12))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def pack(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_the_weight_file_of_a_zip(tmp_path):
    content = np.random.default_rng(0).bytes(3 * 10**6)
    members = {"net/a.pth": content, "net/README": "x", "__MACOSX/net/._a.pth": "x"}
    path = pack(tmp_path / "net.zip", members)
    assert extract_single(path, tmp_path / "net.pth").read_bytes() == content
    with unpack(path) as file:
        assert file.read_bytes() == content
    assert not file.exists()
    # Other files, those of torch.save included, are what they are.
    saved = pack(tmp_path / "net.pt", {"net/data.pkl": "", "net/a.pth": ""})
    for other in (saved, tmp_path / "net.pth"):
        with unpack(other) as file:
            assert file == other


def test_a_zip_that_is_refused_leaves_nothing(tmp_path):
    content = np.random.default_rng(0).bytes(10**4)
    path = pack(tmp_path / "net.zip", {"a.pth": content})
    good = path.read_bytes()
    refused = {
        "0 weight files": {"a.txt": content},
        "2 weight files": {"a.pth": content, "b.safetensors": content},
        "20000000 bytes packed into": {"a.pt": bytes(2 * 10**7)},
    }
    for message, members in refused.items():
        pack(path, members)
        with pytest.raises(DamagedFileError, match=message), unpack(path):
            pass
    pack(path, {"a.pth": content}, zipfile.ZIP_LZMA)
    with pytest.raises(DamagedFileError, match="not how weights are published"):
        extract_single(path, tmp_path / "net.pth")
    for position in [*range(0, len(good), 997), *range(len(good) - 120, len(good))]:
        flipped = bytearray(good)
        flipped[position] ^= 4
        for damaged in (good[:position], flipped):
            path.write_bytes(damaged)
            try:
                target = extract_single(path, tmp_path / "net.pth")
            except DamagedFileError as error:
                assert "\n" not in str(error)
            else:  # such as its date
                assert target.read_bytes() == content
                target.unlink()
    assert [*tmp_path.iterdir()] == [path]


def test_json_is_sorted_strict_and_holds_arrays():
    value = {"b": np.arange(3), "a": (1.5, jnp.float32(2), None), "c": {"x": np.nan}}
    text = to_json({**value, "d": Path("folder/file"), "e": [np.inf, True]})
    assert json.loads(text) == {
        "a": [1.5, 2, None],
        "b": [0, 1, 2],
        "c": {"x": None},
        "d": "folder/file",
        "e": [None, True],
    }
    assert text.index('"a"') < text.index('"b"')


def test_a_digest_tells_values_types_and_order(tmp_path):
    (tmp_path / "file").write_bytes(b"data")
    parts = [
        *("data", b"data", tmp_path / "file", ["data"], np.arange(3)),
        *(np.arange(3.0), np.arange(3).reshape(1, 3)),
    ]
    digests = {digest(part) for part in parts} | {digest(1, 2), digest(2, 1)}
    # The file and the bytes in it are the same data.
    assert len(digests) == len(parts) - 1 + 2
    assert digest(np.arange(3, dtype=">i8")) == digest(np.arange(3, dtype="<i8"))


@given(st.text(), st.text())
def test_a_slug_stays_in_its_folder_and_tells_names_apart(one, other):
    name = slug(one)
    assert Path("folder", name).name == name and not name.startswith(".")
    assert name.isascii() and not set(name) & {*"/\\ $\0\n"}
    assert (slug(one) == slug(other)) == (one == other)
