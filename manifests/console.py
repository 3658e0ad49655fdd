"""How every command speaks: data on stdout, everything else on stderr, errors in one sentence with an exit code.

Progress is a live bar on a terminal and plain lines elsewhere. Both command lines run through `main`, and each of
their commands through `reported`.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from io import TextIOWrapper
from typing import Any, ParamSpec

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bar

from .errors import INTERRUPTED_EXIT_CODE, MoepackError, StorageError
from .progress import Task

P = ParamSpec("P")
SECONDS_BETWEEN_LINES = 5.0

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """A remark for the person, on stderr, without markup."""
    err.print(text, markup=False)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def main(app: Callable[[], None]) -> None:
    """Run a typer application to its exit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows ?, and the work goes on
    run(app)


def reported(command: Callable[P, None]) -> Callable[P, None]:
    """`command` under `run` already inside typer, which would give a broken pipe the exit code of a bad pack."""

    @wraps(command)
    def inside(*args: P.args, **kwargs: P.kwargs) -> None:
        run(lambda: command(*args, **kwargs))

    return inside


def run(command: Callable[[], None]) -> None:
    """Run a command to its exit: an error of ours becomes one sentence and its exit code, never a traceback."""
    try:
        command()
    except MoepackError as error:
        _leave(str(error), error.exit_code)
    except KeyboardInterrupt:
        _leave("interrupted", INTERRUPTED_EXIT_CODE)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        _leave(f"{error.strerror or error}: {error.filename}", StorageError.exit_code)


def _leave(sentence: str, code: int) -> None:
    err.print("[bold red]error:[/]", end=" ")
    say(sentence)
    sys.exit(code)


class ConsoleProgress:
    """Shows tasks on stderr: a bar with rate and time left on a terminal, else a line every few seconds."""

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Task]:
        """Show `title` until the block ends; the rate counts only what this run does."""
        if err.is_terminal:
            with _bar() as bar:
                yield _BarTask(bar, title, total, done)
        else:
            task = _LineTask(title, total, done)
            yield task
            task.finish()


def _bar() -> Bar:
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
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
    def __init__(self, title: str, total: int, done: int) -> None:
        self._title, self._total, self._done, self._before = title, total, done, done
        self._text = ""
        self._start = self._last = time.monotonic()

    def advance(self, size: int) -> None:
        self._done += size
        if time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            self._print()

    def note(self, text: str) -> None:
        self._text = f", {text}"

    def finish(self) -> None:
        self._print()

    def _print(self) -> None:
        rate = (self._done - self._before) / max(time.monotonic() - self._start, 1e-9)
        say(f"{self._title}{self._text}: {self._done / 1e9:.2f} of {self._total / 1e9:.2f} GB, {rate / 1e9:.2f} GB/s")
