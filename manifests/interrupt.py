"""An interrupt while a program has nothing to lose yet.

Python turns one into an exception wherever it is, and modules being imported make other errors of that, or swallow it.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .errors import INTERRUPTED_EXIT_CODE


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """Ctrl-C ends the process with one line and its exit code, unless it is ignored; nothing is cleaned up."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"error: interrupted\n")
    os._exit(INTERRUPTED_EXIT_CODE)
