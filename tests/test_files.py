"""Files appear whole or not at all; digests and names."""

import json
import resource
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zfnet_jax.files import digest, slug, to_json, write_atomically


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
