"""Time two sides that take turns, so that a machine whose speed drifts is fair."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple


class Turns(NamedTuple):
    """Seconds of each side and their ratio, turn by turn."""

    theirs: float
    ours: float
    ratios: list[float]

    def __str__(self) -> str:
        """The ratio's median and range."""
        low, high = min(self.ratios), max(self.ratios)
        return f"{statistics.median(self.ratios):.2f} ({low:.2f}..{high:.2f})"

    def scale(self, factor: float) -> Turns:
        """The same turns, where ours does `factor` times as much in each."""
        return self._replace(ratios=[factor * ratio for ratio in self.ratios])


def take_turns(
    theirs: Callable[[], object], ours: Callable[[], object], turns: int
) -> Turns:
    """Call both sides once to warm up, then in turn; times are medians."""
    sides = (theirs, ours)
    for side in sides:
        side()
    seconds: dict[Callable[[], object], list[float]] = {side: [] for side in sides}
    for turn in range(turns):
        for side in sides[:: 1 if turn % 2 else -1]:
            began = time.perf_counter()
            side()
            seconds[side].append(time.perf_counter() - began)
    a, b = seconds[theirs], seconds[ours]
    ratios = [x / y for x, y in zip(a, b, strict=True)]
    return Turns(statistics.median(a), statistics.median(b), ratios)


def time_alone(side: Callable[[], object], turns: int) -> float:
    """Call a side once to warm up, then some times; the median in seconds."""
    side()
    seconds = []
    for _ in range(turns):
        began = time.perf_counter()
        side()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)
