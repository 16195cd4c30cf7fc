"""How near two results are."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

# Compiler options of users, where conftest.py has chosen the older code generator.
AS_USERS = (
    {"xla_cpu_use_fusion_emitters": True} if jax.__version_info__ < (0, 11) else {}
)


def distance(actual: Any, expected: Any) -> float:
    """Relative L2 distance; an expected zero must be zero."""
    actual, expected = np.asarray(actual), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    error, scale = np.linalg.norm(actual - expected), np.linalg.norm(expected)
    return float(error / scale) if scale else float(error > 0)


def cut(pixels: np.ndarray, box: Any) -> np.ndarray:
    """A box of an image, zero outside it."""
    top, left, bottom, right = box
    margin = max(0, -top, -left, bottom - len(pixels), right - pixels.shape[1])
    padded = np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)))
    return padded[top + margin : bottom + margin, left + margin : right + margin]


def arrays(result: Any) -> Iterator[np.ndarray]:
    """Every array and number of a result, in order; names are left out."""
    if dataclasses.is_dataclass(result):
        result = {x.name: getattr(result, x.name) for x in dataclasses.fields(result)}
    if isinstance(result, Mapping):
        result = tuple(result.values())
    if isinstance(result, tuple):
        for value in result:
            yield from arrays(value)
    elif not isinstance(result, str):
        yield np.asarray(result)


def assert_close(actual: Any, expected: Any, rtol=1e-4, atol=1e-5) -> None:
    """Compare all arrays of two results; only floats may differ, by rounding."""
    pairs = list(zip(arrays(actual), arrays(expected), strict=True))
    assert pairs
    for one, other in pairs:
        assert one.shape == other.shape
        if np.issubdtype(other.dtype, np.floating):
            np.testing.assert_allclose(one, other, rtol=rtol, atol=atol)
        else:
            np.testing.assert_array_equal(one, other)
