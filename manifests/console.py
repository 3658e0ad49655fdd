"""How every command speaks: data on stdout, everything else on stderr.

Progress is a live bar on a terminal and plain lines elsewhere. What `say` and tables show may come from a pack: it can
neither begin a line of its own nor command a terminal.
"""

import json
import math
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bar

from .progress import BYTES, Task

SECONDS_BETWEEN_LINES = 5.0

out = Console(highlight=False, soft_wrap=True, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def say(text: str) -> None:
    """A remark for the person, on stderr, one line without markup."""
    err.print(printable(text), markup=False)


def printable(text: str) -> str:
    """A text with its control characters, line breaks and marks of direction escaped."""
    shown = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
    return shown.replace("##[", "#\\x23[")  # a CI's log may obey this wherever in a line it stands


def print_json(value: Any) -> None:
    """One JSON document on stdout; null stands for the infinite and for what is no number, which JSON cannot say."""
    sys.stdout.write(json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class ConsoleProgress:
    """Shows tasks on stderr: a bar with rate and time left on a terminal, else a line every few seconds."""

    @contextmanager
    def task(self, title: str, total: int, done: int = 0, *, unit: str = BYTES) -> Iterator[Task]:
        """Show `title` until the block ends; the rate counts only what this run does."""
        if err.is_terminal:
            with _bar(unit) as bar:
                yield _BarTask(bar, title, total, done)
        else:
            task = _LineTask(title, total, done, unit)
            yield task
            task.finish()


def _bar(unit: str) -> Bar:
    amount: tuple[ProgressColumn, ...] = (DownloadColumn(), TransferSpeedColumn())
    if unit != BYTES:
        amount = (MofNCompleteColumn(), TextColumn(unit))
    columns = (BarColumn(), *amount, TimeRemainingColumn())
    return Bar(TextColumn("{task.description}"), *columns, console=err, transient=True)


class _BarTask:
    def __init__(self, bar: Bar, title: str, total: int, done: int) -> None:
        self._bar, self._title = bar, title
        self._id = bar.add_task(title, total=total, completed=done)

    def advance(self, size: int) -> None:
        self._bar.advance(self._id, size)

    def note(self, text: str) -> None:
        self._bar.update(self._id, description=f"{self._title}, {text}")


class _LineTask:
    def __init__(self, title: str, total: int, done: int, unit: str) -> None:
        self._title, self._total, self._done, self._before, self._unit = title, total, done, done, unit
        self._text = ""
        self._start = self._last = time.monotonic()
        self._lock = threading.Lock()  # several threads advance one task

    def advance(self, size: int) -> None:
        with self._lock:
            self._done += size
            if time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
                self._last = time.monotonic()
                self._print()

    def note(self, text: str) -> None:
        self._text = f", {text}"

    def finish(self) -> None:
        self._print()

    def _print(self) -> None:
        if self._unit != BYTES:
            say(f"{self._title}{self._text}: {self._done} of {self._total} {self._unit}")
            return
        rate = (self._done - self._before) / max(time.monotonic() - self._start, 1e-9)
        say(f"{self._title}{self._text}: {self._done / 1e9:.2f} of {self._total / 1e9:.2f} GB, {rate / 1e9:.2f} GB/s")
