"""Long reading that others hardly notice: at a given rate, after everybody else, and without filling the page cache."""

import ctypes
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import CorruptInputError, StorageError
from .files import FilePlace, open_regular

LEAST_NICE = 19
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}  # the number of the system call; the C library has no name for it
_IOPRIO_WHO_PROCESS, _IOPRIO_IDLE = 1, 3 << 13


class Pace:
    """How fast bytes may be read, and whether they stay cached. Thread-safe; the default is as fast as it goes."""

    def __init__(self, rate: int | None = None, *, keep_cached: bool = True) -> None:
        """`rate` is in bytes per second."""
        self._rate, self._keep_cached = rate, keep_cached
        self._read = 0
        self._start = time.monotonic()
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def advance(self, size: int) -> None:
        """`size` more bytes were read: wait until that is due. Raises Stopped once `stop` was called."""
        if self._rate is not None:
            with self._lock:
                self._read += size
                due = self._start + self._read / self._rate
            self._stopped.wait(max(0.0, due - time.monotonic()))
        if self._stopped.is_set():
            raise Stopped

    def stop(self) -> None:
        """Let every thread that reads give up at its next step."""
        self._stopped.set()

    @contextmanager
    def reading(self, path: FilePlace) -> Iterator[None]:
        """Read a file in the block: from the disk, not from memory, if nothing is to stay cached."""
        self._forget(path)
        try:
            yield
        finally:
            self._forget(path)

    def _forget(self, path: FilePlace) -> None:
        if self._keep_cached or not hasattr(os, "posix_fadvise"):
            return
        try:
            descriptor = open_regular(path)
        except (CorruptInputError, StorageError):
            return  # whoever reads it has the words for that
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError:
            pass  # a wish, not a need
        finally:
            os.close(descriptor)


class Stopped(Exception):  # noqa: N818 (no error: somebody else has one)
    """Reading was given up because something else ended the work."""


def lower_priority() -> list[str]:
    """Let this process run after all others, as far as the system can; what was lowered, in words."""
    lowered = [f"CPU nice {os.nice(LEAST_NICE)}"]
    number = _IOPRIO_SET.get(platform.machine()) if sys.platform == "linux" else None
    if number is not None and ctypes.CDLL(None).syscall(number, _IOPRIO_WHO_PROCESS, 0, _IOPRIO_IDLE) == 0:
        lowered.append("disk idle")
    return lowered
