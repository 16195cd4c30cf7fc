"""The base of all results."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, SupportsFloat

import jax
import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike


class Result:
    """A dataclass of arrays that shows their shapes and not their values."""

    def __repr__(self) -> str:
        """Name each field with the dtype and shape of its array."""
        fields = ", ".join(
            f"{field.name}={_summarize(getattr(self, field.name))}"
            for field in dataclasses.fields(self)  # pyright: ignore[reportArgumentType]
        )
        return f"{type(self).__name__}({fields})"


def _summarize(value: Any) -> str:
    if isinstance(value, np.ndarray | jax.Array) and value.ndim:
        return f"{value.dtype}[{', '.join(map(str, value.shape))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{k!r}: {_summarize(v)}' for k, v in value.items())}}}"
    return repr(value)


def spell(value: SupportsFloat) -> str:
    """Write a number with three digits, or all those before the point."""
    number = float(value)
    return f"{number:.3g}" if abs(number) < 1000 else f"{number:,.0f}"


def spread(values: ArrayLike, axis: int = 0) -> Any:
    """Compute the sample standard deviation, which is NaN for a single value.

    The squares are divided by n - 1.
    """
    values = np.asarray(values, np.float64)
    if values.shape[axis] < 2:
        return values.sum(axis) * np.nan
    return values.std(axis, ddof=1)


class Summary(NamedTuple):
    """The values of each column that are not NaN.

    Attributes:
        mean: Their mean.
        spread: Their sample standard deviation, which is NaN for a single value.
        known: Their number.
    """

    mean: np.ndarray
    spread: np.ndarray
    known: np.ndarray


def summarize(values: Float[np.ndarray, "n columns"]) -> Summary:
    """Summarize the values of each column that are not NaN."""
    known = np.ma.masked_invalid(values)
    mean, deviation = known.mean(0), known.std(0, ddof=1)
    return Summary(mean.filled(np.nan), deviation.filled(np.nan), known.count(0))


def spell_mean(mean: SupportsFloat, error: SupportsFloat, form: str) -> str:
    """Write a mean and its spread or error, if that is known, as in "8.77 ± 0.05"."""
    mean, error = float(mean), float(error)
    return f"{mean:{form}}" + (f" ± {error:{form}}" if math.isfinite(error) else "")
