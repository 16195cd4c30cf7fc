"""Progress of a command: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

import rich.console
import rich.progress
from rich.console import RenderableType
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

# Seconds between plain lines, and of silence after which one says that work goes on.
_INTERVAL, _SILENCE = 10.0, 30.0


def say(*words: object, file: TextIO | None = None) -> None:
    """Print a line; escape what is not text, and go on if nobody reads it."""
    stream = sys.stdout if file is None else file
    if stream is None:
        return
    line = " ".join(map(str, words))
    encoding = stream.encoding or "utf-8"
    line = "".join(
        x if x.isprintable() or x == "\n" else x.encode("unicode_escape").decode()
        for x in line.encode(errors="backslashreplace").decode()
    )
    try:
        print(line.encode(encoding, "backslashreplace").decode(encoding), file=stream)
        stream.flush()
    except OSError:  # nobody reads it, or the disk is full
        drop_output(stream)


def drop_output(stream: TextIO) -> None:
    """Send all further output of a stream to nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def say_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of cells in aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        say("  ".join(map(str.ljust, row, widths)).rstrip())


def plural(number: int, noun: str) -> str:
    """Write a number with its noun, as in "1 layer" and "2 layers"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def share(progress: Progress, done: int, total: int) -> Callable[..., None]:
    """Make the progress of one network's training that of the next after `done`."""

    def report(passes: float, epochs: float, /, **values: Any) -> None:
        # A network counts as finished once it is measured.
        progress(done + min(passes / epochs, 0.99), total, **values)

    return report


class _Bar(rich.progress.Progress):
    """A bar below something else."""

    above: Callable[[], RenderableType] | None = None

    def get_renderables(self) -> Iterator[RenderableType]:
        if self.above is not None:
            yield self.above()
        yield from super().get_renderables()


class Progress:
    """Progress of a task, reported by calling it with (done, total, **values)."""

    def __init__(
        self, task: str, above: Callable[[], RenderableType] | None = None
    ) -> None:
        """Show the task as compiling, until the first report.

        Args:
            task: Its name.
            above: Builds what a terminal shows above the bar, several times a second.
        """
        self._task, self._start = task, time.perf_counter()
        self._last = self._start
        self._state = "compiling"
        self._closed = threading.Event()
        console = rich.console.Console()
        self._bar: _Bar | None = None
        if console.is_terminal and not console.is_dumb_terminal:
            self._bar = _Bar(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[state]}", markup=False),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=console,
            )
            self._bar.above = above
            self._id = self._bar.add_task(task, total=None, state=self._state)
            self._bar.start()
        else:
            threading.Thread(target=self._break_silence, daemon=True).start()

    def __call__(self, done: float, total: float, /, **values: Any) -> None:
        """Report progress.

        Args:
            done: Work done so far; a fraction moves the bar.
            total: Work in all.
            values: Values to show beside it.
        """
        parts = [f"{done:.4g}/{total:.4g}" if done % 1 else f"{done:,}/{total:,}"]
        for name, value in values.items():
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            parts.append(f"{name.replace('_', ' ')} {text}")
        self._state = "  ".join(parts)
        if self._bar:
            self._bar.update(self._id, completed=done, total=total, state=self._state)
        elif time.perf_counter() - self._last >= _INTERVAL or done >= total:
            self._say()

    def note(self, *words: object) -> None:
        """Print a line, unless a terminal shows the same above the bar."""
        if not self._bar:
            say(*words)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._closed.set()
        if self._bar:
            self._bar.stop()

    def _say(self) -> None:
        self._last = time.perf_counter()
        say(f"{self._task}  {self._state}  {self._last - self._start:.0f} s")

    def _break_silence(self) -> None:
        while not self._closed.wait(1.0):
            if time.perf_counter() - self._last >= _SILENCE:
                self._say()
