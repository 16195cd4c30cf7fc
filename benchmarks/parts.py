"""Parts of a benchmark with budgets of time, and the Markdown table of their rows."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

# Seconds from one alarm to the next: a library may swallow the first.
_REPEAT = 5


class Row(NamedTuple):
    """A row of the table, as text."""

    what: str
    ours: str
    theirs: str = ""
    ratio: str = ""
    goal: str = ""


class Part(NamedTuple):
    """One part: a generator of rows, and its budget in seconds."""

    name: str
    seconds: float
    run: Callable[[], Iterator[Row]]


class OutOfTime(BaseException):
    """The budget of a part is spent; no `except Exception` takes it for an error."""


@contextlib.contextmanager
def limit_time(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the block once the seconds have passed, and again later.

    It comes as soon as Python runs again, after a compilation or a step in progress.
    """

    def stop(*_: object) -> None:
        raise OutOfTime(f"out of time after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, _REPEAT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_parts(parts: list[Part], seconds: float) -> tuple[list[Row], list[str]]:
    """Run all parts within the time; return the rows, and a line for each failure."""
    rows, failures, end = [], [], time.monotonic() + seconds
    for part in parts:
        left = min(part.seconds, end - time.monotonic())
        if left <= 0:
            failures.append(f"{part.name}: no time was left")
            continue
        try:
            with limit_time(left):
                for row in part.run():
                    rows.append(row)
                    print(format_row(row), flush=True)
        except (Exception, OutOfTime) as error:
            reason = (str(error).splitlines() or [""])[0]
            failures.append(f"{part.name}: {type(error).__name__}: {reason}")
            print(failures[-1], file=sys.stderr, flush=True)
    return rows, failures


def format_row(row: Row) -> str:
    """Write a row of a Markdown table."""
    return f"| {' | '.join(row)} |"


def write_table(rows: list[Row], failures: list[str], title: str) -> str:
    """Write the section for BENCHMARKS.md."""
    heading = Row("what", "ours", "PyTorch", "ratio, median (range)", "goal")
    lines = [
        title,
        "",
        format_row(heading),
        format_row(Row(*["---"] * len(heading))),
        *map(format_row, rows),
    ]
    if failures:
        lines += ["", "Not measured:", "", *(f"- {line}" for line in failures)]
    return "\n".join(lines) + "\n"
