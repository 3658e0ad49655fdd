"""Progress of long work, told by whoever does it to whoever shows it.

Workers call a `Progress`; they do not know whether a terminal, a log or nobody listens.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

BYTES = "bytes"


class Task(Protocol):
    """One piece of work under way."""

    def advance(self, size: int) -> None:
        """`size` more bytes, or whatever the task counts, are done. May be called from any thread."""

    def note(self, text: str) -> None:
        """What is being worked on now, such as "layer 12 of 60"."""


class Progress(Protocol):
    """Starts tasks; each shows until its `with` block ends."""

    def task(self, title: str, total: int, done: int = 0, *, unit: str = BYTES) -> AbstractContextManager[Task]:
        """Begin `title`, of `total` bytes or `unit`s, `done` of which an earlier run has already finished."""


class _NoTask:
    def advance(self, size: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass


class Silent:
    """Shows nothing."""

    def task(self, title: str, total: int, done: int = 0, *, unit: str = BYTES) -> AbstractContextManager[Task]:
        """A task that goes unseen."""
        return nullcontext(_NoTask())
