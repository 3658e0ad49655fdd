"""Ctrl-C while an answer comes: the first ends it after the token that is under way, a second one at once.

Before the first token there is nothing to keep, so that one Ctrl-C is enough. Works in the main thread only, where
Python hears signals; elsewhere interrupts are what they were.
"""

import signal
import threading
from types import FrameType
from typing import Any


class Interrupts:
    """A context manager around one answer; `wanted` says whether there was one."""

    def __init__(self) -> None:
        self.wanted = False
        self.speaking = False  # a token was shown
        self._before: Any = None

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._heard)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.wanted or not self.speaking:
            self.wanted = True
            raise KeyboardInterrupt
        self.wanted = True
