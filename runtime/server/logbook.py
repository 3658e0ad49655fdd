"""Where a server's log goes: stderr, with everything escaped that a terminal or a CI's log could obey.

A record may have a client's texts in it: a path, a name, what an exception says. Only a traceback has lines of its own,
each after a bar. Knows nothing of what is logged; libraries' records and Python's warnings take the same way.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from ...manifests.console import printable

# GitHub's runner obeys a command after blanks, too.
BAR = "| "


class Escaping(logging.Formatter):
    """One line for a message, and more only for a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The record, without a traceback's text that another handler left in it."""
        record.exc_text = None
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        """The message on one line."""
        return printable(super().formatMessage(record))

    def formatException(  # noqa: N802 (logging's name)
        self, ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
    ) -> str:
        """The traceback, each line after a bar."""
        return "\n".join(f"{BAR}{printable(line)}" for line in super().formatException(ei).split("\n"))


@contextmanager
def kept() -> Iterator[None]:
    """A block whose warnings and errors are told so."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.WARNING)
    handler.setFormatter(Escaping())
    logging.getLogger().addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        logging.getLogger().removeHandler(handler)
